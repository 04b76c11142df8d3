//! Interim responses (1xx, RFC 9110 §15.2): they travel beside the response that follows.

use std::{fmt, sync::Arc};

use http::{HeaderMap, StatusCode};

use super::http2::Link;

/// Where interim responses go while a request is under way.
#[derive(Clone)]
pub struct Interim(Way);

#[derive(Clone)]
enum Way {
    Http1(Arc<dyn Announce>),
    Http2 { link: Arc<Link>, stream: u32 },
}

/// A connection that can say something before its response.
pub trait Announce: Send + Sync {
    fn announce(&self, status: StatusCode, headers: &HeaderMap);
}

impl Interim {
    pub fn http1(connection: Arc<dyn Announce>) -> Self {
        Self(Way::Http1(connection))
    }

    pub fn http2(link: Arc<Link>, stream: u32) -> Self {
        Self(Way::Http2 { link, stream })
    }

    /// Sends an interim response ahead of the final one. 100 is not passed on: we ask for the content ourselves.
    pub fn announce(&self, status: StatusCode, headers: &HeaderMap) {
        if status == StatusCode::CONTINUE || !status.is_informational() {
            return;
        }
        match &self.0 {
            Way::Http1(connection) => connection.announce(status, headers),
            Way::Http2 { link, stream } => link.announce(*stream, status, headers),
        }
    }
}

impl fmt::Debug for Interim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Interim")
    }
}
