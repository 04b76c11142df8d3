//! HTTP/1: a strict codec of our own (RFC 9112).
//!
//! One gate for what comes in and one writer for what goes out. What `head`, `framing` and `chunked` let pass has exactly one
//! meaning; `write` serialises only from typed values, so nothing that frames a message is ever copied from one to the next.
//! `wire` is the stream with its two buffers; `server` and `client` are one connection each, seen from either end, without a task
//! of their own: whoever waits for a message drives its connection. `incoming` is a body that is still arriving.
//!
//! ```text
//! bytes -> head (grammar) -> framing (how long) -> chunked / length -> Body ..
//! .. Body -> write (line, fields, framing of its own) -> bytes
//! ```

pub mod chunked;
pub mod client;
pub mod fault;
pub mod framing;
pub mod head;
mod incoming;
pub mod server;
mod wire;
pub mod write;

pub use fault::{Broken, Fault};
pub use wire::Parted;
