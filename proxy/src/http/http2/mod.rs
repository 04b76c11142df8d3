//! HTTP/2 (RFC 9113), as strict as RFC 9113 allows.
//!
//! Pure: `frame` (frames and their heads), `hpack` (header compression), `head` (header blocks to requests and responses), `budget` (how much
//! a peer may keep us busy), `fault` (why something ended). Shared by all on a connection: `link`, with its `stream`s and what is `outgoing`.
//! With a socket: `driver`, and on it `server` and `client`. `body` is content on a stream and `stall` how long it may wait, `tunnel` a stream that has left HTTP.

mod body;
mod budget;
pub mod client;
mod driver;
pub mod fault;
pub mod frame;
pub mod head;
pub mod hpack;
mod link;
mod outgoing;
pub mod server;
mod stall;
mod stream;
mod tunnel;

pub use body::Incoming;
pub use budget::{Abuse, Deed};
pub use fault::{Ended, Lost};
pub use link::{Link, RequestLine, Rules};
pub use stall::Patience;
