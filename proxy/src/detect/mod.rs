//! What does it speak? Decided from the first bytes, which are given back.

use std::io;

use crate::host::Stream;

pub mod client_hello;
pub mod http_start;
pub mod rewound;

pub use client_hello::ClientHello;
pub use rewound::Rewound;

/// What the first bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detected {
    Http1,
    Http2,
    Tls(ClientHello),
    Opaque,
}

impl<S: Stream> Rewound<S> {
    /// Reads ahead until the bytes are decisive.
    ///
    /// # Errors
    /// The connection's own.
    pub async fn detect(&mut self) -> io::Result<Detected> {
        unimplemented!()
    }
}
