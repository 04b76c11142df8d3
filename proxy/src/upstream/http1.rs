//! HTTP/1.1 to an endpoint: one request at a time. The one file with hyper's HTTP/1 client types.

use std::time::Duration;

use http::{Request, Response};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;

use super::dial::{Hold, Upstream};
use crate::{
    failure::{Failure, Reason, Sent},
    host::{self, Instant},
    http::body::Body,
    settings::Limits,
};

const HYPER_HEADER_FIELDS: usize = 100;

/// A connection that is idle or carries one request.
#[derive(Debug)]
pub struct Http1 {
    sender: http1::SendRequest<Body>,
    born: Instant,
    /// When it last became idle.
    pub idle_since: Instant,
    /// Requests sent so far.
    pub requests: u32,
    max_age: Duration,
    /// Its place among the backend's connections.
    _hold: Hold,
}

/// A try that did not bring a response head.
pub struct Unanswered {
    pub failure: Failure,
    /// The request, when it provably never left.
    pub request: Option<Request<Body>>,
}

/// Starts HTTP/1.1 on a fresh connection.
///
/// # Errors
/// When the connection breaks at once; nothing has been sent.
pub async fn open(io: Upstream, limits: &Limits, max_age: Duration, hold: Hold) -> Result<Http1, Failure> {
    let mut builder = http1::Builder::new();
    if limits.header_fields != HYPER_HEADER_FIELDS {
        // Any call, even with the default, moves the table of fields from the stack to the heap.
        builder.max_headers(limits.header_fields.max(1));
    }
    builder.max_header_size(limits.http1_head_bytes.max(8192)).max_buf_size(limits.http1_head_bytes.max(8192));
    let (sender, connection) = builder
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| Failure::new(Reason::UpstreamReset).because(error))?;
    host::spawn(async move {
        // Its errors surface in the request that was under way; an idle connection may close as it likes.
        let _ = connection.with_upgrades().await;
    });
    let now = host::now();
    Ok(Http1 { sender, born: now, idle_since: now, requests: 0, max_age, _hold: hold })
}

impl Http1 {
    /// Whether a request may start on it right now.
    pub fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Whether it should not be kept: closed, too old, or idle for longer than `idle_limit`.
    pub fn is_spent(&self, now: Instant, idle_limit: Duration) -> bool {
        self.sender.is_closed()
            || now.saturating_duration_since(self.born) >= self.max_age
            || now.saturating_duration_since(self.idle_since) >= idle_limit
    }

    /// Sends one request and waits for the response head. Dropping the future closes the connection.
    ///
    /// # Errors
    /// [`Unanswered`] with the request inside when it provably never left.
    pub fn send(
        &mut self,
        request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Incoming>, Unanswered>> + Send + use<> {
        self.requests = self.requests.saturating_add(1);
        // Handed over before the future exists, so that it does not hold the request.
        let answered = self.sender.try_send_request(request);
        async move {
            answered.await.map_err(|mut error| {
                let request = error.take_message();
                let sent = if request.is_some() { Sent::Nothing } else { Sent::Maybe };
                let error = error.into_error();
                let reason = if error.is_parse() { Reason::UpstreamProtocol } else { Reason::UpstreamReset };
                Unanswered { failure: Failure::new(reason).sent(sent).because(error), request }
            })
        }
    }
}
