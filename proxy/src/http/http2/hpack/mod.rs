//! Header compression (RFC 7541). Pure.
//!
//! `decode` reads what a peer sends, `encode` writes what we send; each holds one of the two tables of a connection (`table`).
//! `huffman` reads compressed strings.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

pub mod decode;
pub mod encode;
pub mod huffman;
pub mod table;

/// Greatest table that either side keeps, in the measure of RFC 7541 §4.1; also what is agreed before anybody says otherwise.
pub const TABLE_BYTES: usize = 4096;

/// Why a header block cannot be read; the connection cannot go on, because the tables no longer agree (RFC 9113 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HpackFault {
    #[error("a header block ends in the middle")]
    Truncated,
    #[error("a number in a header block is too large")]
    Number,
    #[error("a header block names an entry that its table does not have")]
    Index,
    #[error("a string in a header block is not a valid Huffman code")]
    Huffman,
    #[error("a header table is made larger than agreed, or resized in the middle of a block")]
    TableSize,
}
