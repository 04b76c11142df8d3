//! What went wrong, whose fault it was, and what had already been sent. Pure.
//!
//! Every stage returns its trouble as a [`Failure`]; `http/reply.rs` alone turns one into a response, and
//! `resilience/retry.rs` alone decides whether to try again. The words of [`Reason`] are an interface: they stand
//! in responses, logs and metrics, and are documented from [`Reason::ALL`].

use std::{error::Error as StdError, fmt};

/// Why a request or connection could not be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The request broke a rule of HTTP that we enforce.
    BadRequest,
    /// Head larger than a limit.
    HeadTooLarge,
    /// The destination's name or address is not known, and unknown destinations are refused.
    UnknownDestination,
    /// Rules exist for the destination and none matches.
    NoRoute,
    /// The route names a backend that does not exist.
    BadBackend,
    /// The backend has no endpoint at all.
    NoEndpoints,
    /// The backend has endpoints, but none of them may be used.
    NoHealthyEndpoint,
    /// Requests in flight, or waiting, at their limit.
    UpstreamOverflow,
    /// Connections at their limit.
    ConnectionOverflow,
    /// The breaker is open.
    BreakerOpen,
    /// The endpoint refused the connection or could not be reached.
    UpstreamConnectRefused,
    /// Connecting took too long.
    UpstreamConnectTimeout,
    /// The TLS handshake with the endpoint failed.
    UpstreamTlsFailed,
    /// The endpoint proved another identity than expected.
    UpstreamIdentityMismatch,
    /// The connection broke before a response head came.
    UpstreamReset,
    /// The endpoint refused the stream without looking at it (REFUSED_STREAM, or GOAWAY below its id).
    UpstreamRefusedStream,
    /// The connection broke after the response head had come.
    UpstreamResetBody,
    /// The endpoint's response broke HTTP.
    UpstreamProtocol,
    /// One try took too long.
    TryTimeout,
    /// The request as a whole took too long.
    RequestTimeout,
    /// The client went away.
    DownstreamClosed,
    /// The client's body ended early or broke HTTP.
    DownstreamBody,
    /// Plaintext where mutual TLS is required.
    PlaintextRefused,
    /// A connection to the proxy's own port would loop.
    Loop,
    /// The proxy is not ready: no identity or no configuration yet.
    NotReady,
    /// The proxy is shutting down.
    Draining,
    /// The proxy is short of memory, descriptors or room for handshakes.
    Overloaded,
    /// A task died; a bug of ours.
    Internal,
}

impl Reason {
    /// Every reason, in the order of the documentation.
    pub const ALL: [Self; 28] = [
        Self::BadRequest,
        Self::HeadTooLarge,
        Self::UnknownDestination,
        Self::NoRoute,
        Self::BadBackend,
        Self::NoEndpoints,
        Self::NoHealthyEndpoint,
        Self::UpstreamOverflow,
        Self::ConnectionOverflow,
        Self::BreakerOpen,
        Self::UpstreamConnectRefused,
        Self::UpstreamConnectTimeout,
        Self::UpstreamTlsFailed,
        Self::UpstreamIdentityMismatch,
        Self::UpstreamReset,
        Self::UpstreamRefusedStream,
        Self::UpstreamResetBody,
        Self::UpstreamProtocol,
        Self::TryTimeout,
        Self::RequestTimeout,
        Self::DownstreamClosed,
        Self::DownstreamBody,
        Self::PlaintextRefused,
        Self::Loop,
        Self::NotReady,
        Self::Draining,
        Self::Overloaded,
        Self::Internal,
    ];

    /// The stable word for responses, logs and metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::HeadTooLarge => "head_too_large",
            Self::UnknownDestination => "unknown_destination",
            Self::NoRoute => "no_route",
            Self::BadBackend => "bad_backend",
            Self::NoEndpoints => "no_endpoints",
            Self::NoHealthyEndpoint => "no_healthy_endpoint",
            Self::UpstreamOverflow => "upstream_overflow",
            Self::ConnectionOverflow => "connection_overflow",
            Self::BreakerOpen => "breaker_open",
            Self::UpstreamConnectRefused => "upstream_connect_refused",
            Self::UpstreamConnectTimeout => "upstream_connect_timeout",
            Self::UpstreamTlsFailed => "upstream_tls_failed",
            Self::UpstreamIdentityMismatch => "upstream_identity_mismatch",
            Self::UpstreamReset => "upstream_reset",
            Self::UpstreamRefusedStream => "upstream_refused_stream",
            Self::UpstreamResetBody => "upstream_reset_body",
            Self::UpstreamProtocol => "upstream_protocol",
            Self::TryTimeout => "try_timeout",
            Self::RequestTimeout => "request_timeout",
            Self::DownstreamClosed => "downstream_closed",
            Self::DownstreamBody => "downstream_body",
            Self::PlaintextRefused => "plaintext_refused",
            Self::Loop => "loop",
            Self::NotReady => "not_ready",
            Self::Draining => "draining",
            Self::Overloaded => "overloaded",
            Self::Internal => "internal",
        }
    }

    /// What it means, in one sentence for people: the text of the responses, and of the reference.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::BadRequest => "the request is not valid HTTP",
            Self::HeadTooLarge => "the head of the request is too large",
            Self::UnknownDestination => "the destination is not known to the mesh",
            Self::NoRoute => "no route of the destination matches the request",
            Self::BadBackend => "the route names a backend that does not exist",
            Self::NoEndpoints => "the service has no endpoints",
            Self::NoHealthyEndpoint => "no endpoint of the service may be used now",
            Self::UpstreamOverflow => "too many requests to the service are in flight",
            Self::ConnectionOverflow => "too many connections to the service are open",
            Self::BreakerOpen => "the circuit breaker of the service is open",
            Self::UpstreamConnectRefused => "the endpoint cannot be reached",
            Self::UpstreamConnectTimeout => "connecting to the endpoint took too long",
            Self::UpstreamTlsFailed => "no secure connection to the endpoint was possible",
            Self::UpstreamIdentityMismatch => "the endpoint did not prove the expected identity",
            Self::UpstreamReset => "the endpoint closed the connection before it answered",
            Self::UpstreamRefusedStream => "the endpoint refused the request",
            Self::UpstreamResetBody => "the endpoint closed the connection in the middle of its answer",
            Self::UpstreamProtocol => "the answer of the endpoint is not valid HTTP",
            Self::TryTimeout => "the endpoint did not answer in time",
            Self::RequestTimeout => "the request was not answered in time",
            Self::DownstreamClosed => "the client closed the connection",
            Self::DownstreamBody => "the body of the request ended early or came too slowly",
            Self::PlaintextRefused => "mutual TLS is required here",
            Self::Loop => "the request came back to the proxy that sent it",
            Self::NotReady => "the proxy has no identity or configuration yet",
            Self::Draining => "the proxy is shutting down",
            Self::Overloaded => "the proxy is short of memory or connections",
            Self::Internal => "the proxy failed (please report it)",
        }
    }

    /// Envoy's short response flag, for the tools that know it; "-" where Envoy has none.
    pub const fn flag(self) -> &'static str {
        match self {
            Self::BadRequest | Self::HeadTooLarge | Self::DownstreamBody => "DPE",
            Self::UnknownDestination | Self::BadBackend => "NC",
            Self::NoRoute => "NR",
            Self::NoEndpoints | Self::NoHealthyEndpoint => "UH",
            Self::UpstreamOverflow | Self::ConnectionOverflow | Self::BreakerOpen => "UO",
            Self::UpstreamConnectRefused
            | Self::UpstreamConnectTimeout
            | Self::UpstreamTlsFailed
            | Self::UpstreamIdentityMismatch => "UF",
            Self::UpstreamReset | Self::UpstreamRefusedStream => "UR",
            Self::UpstreamResetBody => "UC",
            Self::UpstreamProtocol => "UPE",
            Self::TryTimeout | Self::RequestTimeout => "UT",
            Self::DownstreamClosed => "DC",
            Self::Overloaded => "OM",
            Self::PlaintextRefused | Self::Loop | Self::NotReady | Self::Draining | Self::Internal => "-",
        }
    }

    /// Whether the endpoint is to blame: what ejection and the breaker count.
    pub const fn is_upstream_fault(self) -> bool {
        matches!(
            self,
            Self::UpstreamConnectRefused
                | Self::UpstreamConnectTimeout
                | Self::UpstreamTlsFailed
                | Self::UpstreamIdentityMismatch
                | Self::UpstreamReset
                | Self::UpstreamRefusedStream
                | Self::UpstreamResetBody
                | Self::UpstreamProtocol
                | Self::TryTimeout
        )
    }
}

/// How much of a request an endpoint may have seen when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sent {
    /// Provably nothing: no byte was handed to the kernel, or the endpoint said that it ignored the stream.
    Nothing,
    /// Something may have been processed.
    Maybe,
    /// A response head had already come back.
    Answered,
}

/// One thing that went wrong.
#[derive(Debug)]
pub struct Failure {
    pub reason: Reason,
    pub sent: Sent,
    /// What lies beneath, for the log; never shown to the other side.
    pub source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Failure {
    /// A failure before anything reached an endpoint.
    pub const fn new(reason: Reason) -> Self {
        Self { reason, sent: Sent::Nothing, source: None }
    }

    /// The same failure, with what the endpoint may have seen.
    #[must_use]
    pub fn sent(mut self, sent: Sent) -> Self {
        self.sent = sent;
        self
    }

    /// The same failure, with its cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason.word())?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl StdError for Failure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

impl From<Reason> for Failure {
    fn from(reason: Reason) -> Self {
        Self::new(reason)
    }
}
