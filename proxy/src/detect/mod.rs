//! What does it speak? Decided from the first bytes, which are given back.
//!
//! Called by the journeys for connections whose protocol nobody declared. [`Rewound`] keeps what was read ahead and replays
//! it; `http_start` and `client_hello` judge the bytes. How long to wait, and what to do while waiting (a
//! server that speaks first), is up to the journey: dropping [`Rewound::detect`] loses nothing.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::io;

use bytes::BufMut;
use tokio::io::AsyncReadExt;

use crate::{
    failure::{Failure, Reason},
    host::{self, Stream},
    settings::Timeouts,
};

pub mod client_hello;
pub mod http_start;
mod rewound;

pub use client_hello::ClientHello;
pub use rewound::Rewound;

use client_hello::Parse;
use http_start::Start;

/// What the first bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detected {
    Http1,
    Http2,
    /// TLS, with what its first message says.
    Tls(ClientHello),
    /// None of these; also when the stream ended before it could be known.
    Opaque,
}

/// Looks at the bytes read so far; `None`: more are needed.
pub fn judge(bytes: &[u8]) -> Option<Detected> {
    match (http_start::parse(bytes), client_hello::parse(bytes)) {
        (Start::Http1, _) => Some(Detected::Http1),
        (Start::Http2, _) => Some(Detected::Http2),
        (_, Parse::Complete(hello)) => Some(Detected::Tls(hello)),
        (Start::Neither, Parse::Neither) => Some(Detected::Opaque),
        (Start::More, _) | (_, Parse::More) => None,
    }
}

impl<S: Stream> Rewound<S> {
    /// [`Rewound::detect`] for a journey: the connection's own trouble means that the client is gone.
    ///
    /// # Errors
    /// `DownstreamClosed`.
    pub async fn detect_client(&mut self) -> Result<Detected, Failure> {
        self.detect().await.map_err(|error| Failure::new(Reason::DownstreamClosed).because(error))
    }

    /// The same, for a client that must speak: its first byte within `first_byte`, and from there on what is decisive within `handshake`
    /// where it looks like TLS, else within `head`. No byte on the way prolongs that.
    ///
    /// # Errors
    /// `DownstreamClosed`, also when nothing decisive came in time, or nothing at all.
    pub async fn detect_within(&mut self, timeouts: &Timeouts) -> Result<Detected, Failure> {
        let gone = || Err(Reason::DownstreamClosed.into());
        if self.ahead.is_empty() {
            tokio::select! {
                biased;
                read = self.read_ahead() => match read {
                    // Whoever must speak and leaves without a word wanted nothing: no endpoint is bothered with it.
                    Ok(0) => return gone(),
                    Ok(_) => {}
                    Err(error) => return Err(Failure::new(Reason::DownstreamClosed).because(error)),
                },
                () = host::sleep(timeouts.first_byte) => return gone(),
            }
        }
        let limit = match self.ahead.first() {
            Some(&client_hello::RECORD_HANDSHAKE) => timeouts.handshake,
            _ => timeouts.head,
        };
        tokio::select! {
            biased;
            detected = self.detect_client() => detected,
            () = host::sleep(limit) => gone(),
        }
    }

    /// Reads ahead until the bytes are decisive, at most 16 KiB.
    ///
    /// Waits as long as the other side is silent; the caller bounds the time. Cancel-safe: bytes already read stay inside, and it may be
    /// called again. The end of the stream decides too: [`Detected::Opaque`].
    ///
    /// # Errors
    /// The connection's own.
    pub async fn detect(&mut self) -> io::Result<Detected> {
        loop {
            if let Some(detected) = judge(&self.ahead) {
                return Ok(detected);
            }
            if self.read_ahead().await? == 0 {
                return Ok(Detected::Opaque);
            }
        }
    }

    async fn read_ahead(&mut self) -> io::Result<usize> {
        self.ahead.reserve(FIRST_READ_BYTES);
        // Bounded, so that a fast sender cannot make us hold more than a ClientHello.
        let room = client_hello::MAX_BYTES.saturating_sub(self.ahead.len());
        self.io.read_buf(&mut (&mut self.ahead).limit(room)).await
    }
}

/// Holds nearly every ClientHello and most request heads in one read.
const FIRST_READ_BYTES: usize = 2048;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_protocol_is_known_byte_by_byte_and_nothing_is_lost() {
        // A request's first bytes would be missing, or its protocol depend on the network.
        let hello = client_hello::tests::hello_of_rustls("a.test", &["istio"]);
        let tls = Detected::Tls(ClientHello { server_name: Some("a.test".into()), alpn: vec![b"istio"[..].into()] });
        for (bytes, expected) in [
            (b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), Detected::Http1),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nrest".to_vec(), Detected::Http2),
            (hello.clone(), tls.clone()),
            (client_hello::tests::fragmented(&hello, 50), tls),
            (b"\0\0\0\x08binary".to_vec(), Detected::Opaque),
            (b"SSH-2.0-x\r\n".to_vec(), Detected::Opaque),
        ] {
            for step in [1, 7, bytes.len()] {
                let (mut near, far) = duplex(64 * 1024);
                let mut far = Rewound::new(far);
                let sent = bytes.clone();
                tokio::spawn(async move {
                    for chunk in sent.chunks(step) {
                        near.write_all(chunk).await.unwrap();
                        tokio::task::yield_now().await;
                    }
                });
                assert_eq!(far.detect().await.unwrap(), expected);
                let mut all = Vec::new();
                far.read_to_end(&mut all).await.unwrap();
                assert_eq!(all, bytes);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn giving_up_loses_no_byte() {
        // A protocol where the server speaks first would lose what the client had already sent.
        let (mut near, far) = duplex(1024);
        let mut far = Rewound::new(far);
        near.write_all(b"PRI * HT").await.unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(1), far.detect()).await.is_err());
        near.write_all(b"TP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        assert_eq!(far.detect().await.unwrap(), Detected::Http2);
        let (ahead, _) = far.into_parts();
        assert_eq!(ahead, Bytes::from_static(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
    }

    #[tokio::test(start_paused = true)]
    async fn progress_does_not_prolong_the_wait() {
        // A client that sends a byte of its handshake every second would hold its place for hours.
        let timeouts = Timeouts::default();
        for (bytes, first, limit) in [
            (b"".as_slice(), 0, timeouts.first_byte),
            (&[0x16, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3, 0, 0, 0, 0, 0, 0], 7, timeouts.handshake),
            (b"PRI * HTTP/2.0\r\n\r\n", 7, timeouts.head),
        ] {
            let (mut near, far) = duplex(1024);
            let sending = tokio::spawn(async move {
                host::sleep(Duration::from_secs(first)).await;
                for byte in bytes {
                    if near.write_all(&[*byte]).await.is_err() {
                        return;
                    }
                    host::sleep(Duration::from_secs(1)).await;
                }
                std::future::pending().await
            });
            let start = host::now();
            Rewound::new(far).detect_within(&timeouts).await.unwrap_err();
            assert_eq!(host::now() - start, Duration::from_secs(first) + limit, "{bytes:?}");
            sending.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_stream_decides() {
        // A client that says nothing and closes would hold its place until a timeout.
        for bytes in [b"".as_slice(), b"GE"] {
            let (mut near, far) = duplex(1024);
            near.write_all(bytes).await.unwrap();
            drop(near);
            let mut far = Rewound::new(far);
            assert_eq!(far.detect().await.unwrap(), Detected::Opaque);
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, bytes);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_not_read_past_the_limit() {
        // One connection could fill the memory before it has said what it is.
        let (mut near, far) = duplex(64 * 1024);
        near.write_all(&[0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xf0]).await.unwrap();
        near.write_all(&[0; 32 * 1024]).await.unwrap();
        let mut far = Rewound::new(far);
        assert_eq!(far.detect().await.unwrap(), Detected::Opaque);
        assert_eq!(far.into_parts().0.len(), client_hello::MAX_BYTES);
    }

    #[tokio::test]
    async fn bytes_given_at_the_start_come_first() {
        // What another stage has already taken from the stream would be lost or come twice.
        let (mut near, far) = duplex(1024);
        near.write_all(b"T /").await.unwrap();
        drop(near);
        let mut far = Rewound::with(far, Bytes::from_static(b"GE"));
        assert_eq!(far.detect().await.unwrap(), Detected::Http1);
        let mut all = String::new();
        far.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "GET /");
    }
}
