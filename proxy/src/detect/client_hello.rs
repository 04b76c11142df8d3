//! SNI and ALPN out of a TLS ClientHello. Pure.

/// What a client says before anything is encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    pub server_name: Option<Box<str>>,
    pub alpn: Vec<Box<[u8]>>,
}

/// What a prefix of a stream holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parse<T> {
    Complete(T),
    /// More bytes decide.
    More,
    /// It is something else.
    Neither,
}
