//! HTTP/1.1 to an endpoint: one request at a time, on a connection of our own codec.

use std::time::Duration;

use http::Response;

use super::dial::{Hold, Upstream};
use crate::{
    failure::{Failure, Reason, Sent},
    host::{self, Instant},
    http::{
        Body,
        http1::{
            Broken, Parted,
            client::{Connection, Rules, Unanswered},
            server::Interim,
            write::Outgoing,
        },
        serve::{http1_chunks, http1_head},
    },
    settings::Limits,
};

/// A connection that is idle or carries one request.
#[derive(Debug)]
pub struct Http1 {
    connection: Connection<Upstream>,
    born: Instant,
    /// When it last became idle.
    pub idle_since: Instant,
    /// Requests sent so far.
    pub requests: u32,
    max_age: Duration,
    /// Its place among the backend's connections.
    _hold: Hold,
}

/// Starts HTTP/1.1 on a fresh connection.
pub fn open(io: Upstream, limits: &Limits, max_age: Duration, hold: Hold) -> Http1 {
    let rules = Rules { head: http1_head(limits), chunks: http1_chunks(limits), interim: limits.interim_responses };
    let now = host::now();
    Http1 { connection: Connection::new(io, rules), born: now, idle_since: now, requests: 0, max_age, _hold: hold }
}

impl Http1 {
    /// Whether a request may start on it right now. Asks the socket, so a connection that the far side closed is found out here.
    pub fn is_ready(&self) -> bool {
        self.connection.is_ready()
    }

    /// Whether it should not be kept: too old, or idle for longer than `idle_limit`.
    pub fn is_spent(&self, now: Instant, idle_limit: Duration) -> bool {
        now.saturating_duration_since(self.born) >= self.max_age
            || now.saturating_duration_since(self.idle_since) >= idle_limit
    }

    /// Sends one request and waits for the response head. Dropping the future makes the connection unusable.
    ///
    /// # Errors
    /// `sent: Nothing` when it provably never arrived.
    pub fn send(
        &mut self,
        request: &Outgoing<'_>,
        body: Body,
        interim: Option<Interim>,
    ) -> impl Future<Output = Result<Response<Body>, Failure>> + Send + use<> {
        self.requests = self.requests.saturating_add(1);
        // Serialised before the future exists, so that it does not hold the request.
        let answered = self.connection.send(request, body, interim);
        async move {
            answered.await.map_err(|Unanswered { broken, untouched, upload_failed }| {
                let reason = match &broken {
                    _ if upload_failed => Reason::DownstreamBody,
                    Broken::Fault(_) => Reason::UpstreamProtocol,
                    _ => Reason::UpstreamReset,
                };
                let sent = if untouched { Sent::Nothing } else { Sent::Maybe };
                Failure::new(reason).sent(sent).because(broken)
            })
        }
    }

    /// The stream, after a response that agreed to leave HTTP.
    pub fn part(&self) -> Option<Parted> {
        self.connection.part()
    }
}
