//! HTTP/1.1 to an endpoint: one request at a time, on a connection of our own codec.

use std::{io, time::Duration};

use http::Response;

use super::dial::{Hold, Upstream};
use crate::{
    accept::socket,
    failure::{Failure, Reason, Sent},
    host::{self, Instant},
    http::{
        Body, BodyError,
        http1::{
            Broken, Parted,
            client::{Connection, Rules, Unanswered},
            write::Outgoing,
        },
        interim::Interim,
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
    ) -> impl Future<Output = Result<Box<Response<Body>>, Failure>> + Send + use<> {
        self.requests = self.requests.saturating_add(1);
        // Serialised before the future exists, so that it does not hold the request.
        let answered = self.connection.send(request, body, interim);
        let connection = self.connection.clone();
        async move {
            answered.await.map_err(|Unanswered { broken, untouched, upload_failed, ended, written_before }| {
                // RFC 9112 §9.3.1: a connection may be closed at any time, also while a request is on its way to it. When the end of the
                // far side crossed the request, it acknowledged nothing of it, and so cannot have read any.
                let crossed = ended
                    && connection
                        .with_io(|io| match io {
                            Upstream::Plain(tcp) => socket::acknowledged(tcp),
                            // What was written into TLS is not what was written on the wire.
                            Upstream::Tls(_) => None,
                        })
                        .flatten()
                        .is_some_and(|acknowledged| acknowledged <= written_before);
                let reason = match &broken {
                    _ if upload_failed => Reason::DownstreamBody,
                    Broken::Fault(_) => Reason::UpstreamProtocol,
                    Broken::Io(error) if error.kind() == io::ErrorKind::OutOfMemory => Reason::Overloaded,
                    _ => Reason::UpstreamReset,
                };
                let sent = if untouched || crossed { Sent::Nothing } else { Sent::Maybe };
                let failure = Failure::new(reason).sent(sent);
                match broken {
                    // In the words that the reply knows: 408 and not 400.
                    Broken::BodyTooSlow => failure.because(BodyError::TooSlow),
                    broken => failure.because(broken),
                }
            })
        }
    }

    /// The stream, after a response that agreed to leave HTTP.
    pub fn part(&self) -> Option<Parted> {
        self.connection.part()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::{HeaderMap, Method, StatusCode, uri::PathAndQuery};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::{
        http::http1::write::Target,
        settings::TelemetrySettings,
        telemetry::{Direction, LabelSet, Telemetry},
    };

    async fn connected() -> (Http1, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let io = Upstream::Plain(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
        let telemetry = Telemetry::new(&TelemetrySettings::default(), LabelSet::default(), 1);
        let hold = (None, telemetry.worker(0).upstream_opened(Direction::Inbound));
        (open(io, &Limits::default(), Duration::from_secs(60), hold), listener.accept().await.unwrap().0)
    }

    async fn post(connection: &mut Http1) -> Result<Box<Response<Body>>, Failure> {
        let (path, host) = (PathAndQuery::from_static("/"), "a".parse().unwrap());
        let outgoing = Outgoing {
            method: &Method::POST,
            target: Target::Origin(&path),
            host: &host,
            headers: &HeaderMap::new(),
            own: &[],
            upgrade: None,
        };
        connection.send(&outgoing, Body::full("content"), None).await
    }

    async fn answer(far: &mut TcpStream) {
        let mut request = [0; 1024];
        assert!(far.read(&mut request).await.unwrap() > 0);
        far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    }

    #[tokio::test]
    async fn an_end_that_crosses_a_request_proves_that_it_was_not_read() {
        // Applications close idle connections when they stop; a POST that is just then on its way would fail at the user.
        for earlier in 0..3 {
            let (mut connection, mut far) = connected().await;
            for _ in 0..earlier {
                let (response, ()) = tokio::join!(post(&mut connection), answer(&mut far));
                assert_eq!(response.unwrap().status(), StatusCode::OK);
            }
            drop(far);
            // The end is in our system; that it has come is only seen when the answer is waited for.
            let failure = post(&mut connection).await.unwrap_err();
            assert_eq!(failure.sent, Sent::Nothing, "{earlier}: {failure}");
        }
    }

    #[tokio::test]
    async fn a_request_that_may_have_been_read_is_never_called_unsent() {
        // A payment would be made twice.
        for earlier in 0..3 {
            let (mut connection, mut far) = connected().await;
            for _ in 0..earlier {
                let (response, ()) = tokio::join!(post(&mut connection), answer(&mut far));
                assert_eq!(response.unwrap().status(), StatusCode::OK);
            }
            let read_and_close = async {
                let mut request = [0; 1024];
                assert!(far.read(&mut request).await.unwrap() > 0);
                drop(far);
            };
            let (failed, ()) = tokio::join!(post(&mut connection), read_and_close);
            let failure = failed.unwrap_err();
            assert_eq!(failure.sent, Sent::Maybe, "{earlier}: {failure}");
        }
        // Only its sending side is closed: it can still read, and nothing says whether it did.
        let (mut connection, mut far) = connected().await;
        far.shutdown().await.unwrap();
        assert_eq!(post(&mut connection).await.unwrap_err().sent, Sent::Maybe);
        // Closed with the request unread, or half read: a reset, which proves nothing.
        let (mut connection, mut far) = connected().await;
        let read_some = async {
            let mut some = [0; 10];
            far.read_exact(&mut some).await.unwrap();
            drop(far);
        };
        let (failed, ()) = tokio::join!(post(&mut connection), read_some);
        assert_eq!(failed.unwrap_err().sent, Sent::Maybe);
    }
}
