//! Hostile and broken peers against real sidecars: processes of the real binary, real sockets, bytes written by hand.
//!
//! Every test carries the id of its case; `docs/reference/hostile-cases.md` lists them. Nothing here uses an HTTP library: whatever the
//! data path is made of, it is judged by the bytes it sends. `sidecar` starts processes, `certificates` signs for honest and crooked
//! peers, `wire` has sockets and a strict reader of HTTP/1, `frames` writes HTTP/2.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod certificates;
mod frames;
mod sidecar;
mod wire;

mod floods;
mod overload;
mod policy;
mod size;
mod time;
mod time_http2;
mod tls;
mod topology;
mod upstream_http1;
mod upstream_http2;
