//! HTTP/1 request line or HTTP/2 preface. Pure.

/// What a stream begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Http1,
    Http2,
    Neither,
    More,
}
