//! One line per request or connection: Istio's default text format, or JSON with Istio's keys.
//!
//! Written by hand into the buffer of a [`LineWriter`]; records call it when they finish. Whatever a client may have
//! put into a value is escaped, so that one request is one line and every JSON line parses.

use std::{
    fmt,
    io::Write,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{HeaderMap, HeaderValue, Method, Uri, Version, header};

use super::{Direction, LabelSet, series::SeriesParts, writer::LineWriter};
use crate::{
    host::{self, Instant},
    settings::AccessLog,
};

/// What only the access log shows of a request. Unset fields are "-" in text and null in JSON.
#[derive(Debug)]
pub struct RequestLog {
    pub(super) method: Option<Method>,
    /// The target as it arrived: path and query, without scheme and authority.
    pub(super) uri: Option<Uri>,
    pub(super) version: Option<Version>,
    pub authority: Option<HeaderValue>,
    pub user_agent: Option<HeaderValue>,
    pub request_id: Option<HeaderValue>,
    pub x_forwarded_for: Option<HeaderValue>,
    pub(super) route: Option<Arc<str>>,
    pub(super) upstream: Option<SocketAddr>,
    pub(super) sent_upstream: Option<Instant>,
    pub(super) answered: Option<Instant>,
    pub connection: ConnectionLog,
}

impl RequestLog {
    pub(super) fn opened(start: Instant) -> Self {
        Self {
            method: None,
            uri: None,
            version: None,
            authority: None,
            user_agent: None,
            request_id: None,
            x_forwarded_for: None,
            route: None,
            upstream: None,
            sent_upstream: None,
            answered: None,
            connection: ConnectionLog::opened(start),
        }
    }

    pub(super) fn head(&mut self, method: &Method, uri: &Uri, version: Version, headers: &HeaderMap) {
        self.method = Some(method.clone());
        self.uri = Some(uri.clone());
        self.version = Some(version);
        self.authority = match uri.authority() {
            Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
            None => headers.get(header::HOST).cloned(),
        };
        self.user_agent = headers.get(header::USER_AGENT).cloned();
        self.request_id = headers.get("x-request-id").cloned();
        self.x_forwarded_for = headers.get("x-forwarded-for").cloned();
    }
}

/// What only the access log shows of a connection.
#[derive(Debug)]
pub struct ConnectionLog {
    start: SystemTime,
    pub(super) upstream: Option<SocketAddr>,
    /// Port of the service, which differs from the endpoint's; for the cluster name.
    pub service_port: Option<u16>,
    pub upstream_local: Option<SocketAddr>,
    pub downstream_local: Option<SocketAddr>,
    pub downstream_remote: Option<SocketAddr>,
    /// Server name of the TLS hello.
    pub server_name: Option<Arc<str>>,
    /// Why the connection to the endpoint failed, in the words of the system or of TLS.
    pub upstream_failure: Option<String>,
}

impl ConnectionLog {
    pub(super) fn opened(start: Instant) -> Self {
        let since = host::now().saturating_duration_since(start);
        Self {
            start: host::wall_clock().checked_sub(since).unwrap_or(UNIX_EPOCH),
            upstream: None,
            service_port: None,
            upstream_local: None,
            downstream_local: None,
            downstream_remote: None,
            server_name: None,
            upstream_failure: None,
        }
    }
}

/// Where lines go.
pub(super) struct AccessLogSink {
    format: AccessLog,
    writer: LineWriter,
}

impl AccessLogSink {
    pub(super) fn start(format: AccessLog, output: Box<dyn Write + Send>) -> Option<Self> {
        if format == AccessLog::Off {
            return None;
        }
        Some(Self { format, writer: LineWriter::start("access-log", output)? })
    }

    pub(super) fn dropped(&self) -> u64 {
        self.writer.dropped()
    }

    pub(super) fn flush(&self) {
        self.writer.flush(Duration::from_secs(1));
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn request(
        &self,
        log: &RequestLog,
        parts: &SeriesParts,
        labels: &LabelSet,
        duration: Duration,
        received: u64,
        sent: u64,
        retries: u32,
    ) {
        let path = log.uri.as_ref().map(|uri| uri.path_and_query().map_or("/", |path| path.as_str()));
        let service_time = log.sent_upstream.zip(log.answered).map(|(from, to)| to.saturating_duration_since(from));
        let line = Line {
            method: log.method.as_ref().map(Method::as_str),
            path,
            version: log.version,
            status: parts.status,
            retries: Some(retries),
            service_time,
            x_forwarded_for: log.x_forwarded_for.as_ref(),
            user_agent: log.user_agent.as_ref(),
            request_id: log.request_id.as_ref(),
            authority: log.authority.as_ref(),
            route: log.route.as_deref(),
            upstream: log.upstream,
            ..Line::new(&log.connection, parts, labels, duration, received, sent)
        };
        self.writer.line(|buffer| line.write(self.format, buffer));
    }

    pub(super) fn connection(
        &self,
        log: &ConnectionLog,
        parts: &SeriesParts,
        labels: &LabelSet,
        duration: Duration,
        received: u64,
        sent: u64,
    ) {
        let line = Line::new(log, parts, labels, duration, received, sent);
        self.writer.line(|buffer| line.write(self.format, buffer));
    }
}

/// Everything a line can show.
struct Line<'a> {
    log: &'a ConnectionLog,
    parts: &'a SeriesParts,
    labels: &'a LabelSet,
    method: Option<&'a str>,
    path: Option<&'a str>,
    version: Option<Version>,
    status: u16,
    retries: Option<u32>,
    duration: Duration,
    received: u64,
    sent: u64,
    service_time: Option<Duration>,
    x_forwarded_for: Option<&'a HeaderValue>,
    user_agent: Option<&'a HeaderValue>,
    request_id: Option<&'a HeaderValue>,
    authority: Option<&'a HeaderValue>,
    route: Option<&'a str>,
    upstream: Option<SocketAddr>,
}

/// One value of a line.
enum Value<'a> {
    Missing,
    Text(&'a [u8]),
    Number(u128),
    Shown(&'a dyn fmt::Display),
}

impl<'a> Value<'a> {
    fn text(text: Option<&'a str>) -> Self {
        text.map_or(Value::Missing, |text| Value::Text(text.as_bytes()))
    }

    fn header(header: Option<&'a HeaderValue>) -> Self {
        header.map_or(Value::Missing, |header| Value::Text(header.as_bytes()))
    }

    fn address(address: &'a Option<SocketAddr>) -> Self {
        address.as_ref().map_or(Value::Missing, |address| Value::Shown(address))
    }
}

impl<'a> Line<'a> {
    const fn new(
        log: &'a ConnectionLog,
        parts: &'a SeriesParts,
        labels: &'a LabelSet,
        duration: Duration,
        received: u64,
        sent: u64,
    ) -> Self {
        Self {
            log,
            parts,
            labels,
            method: None,
            path: None,
            version: None,
            status: 0,
            retries: None,
            duration,
            received,
            sent,
            service_time: None,
            x_forwarded_for: None,
            user_agent: None,
            request_id: None,
            authority: None,
            route: None,
            upstream: log.upstream,
        }
    }

    fn write(&self, format: AccessLog, buffer: &mut Vec<u8>) {
        let cluster = self.cluster();
        let start = Timestamp(self.log.start);
        let version = self.version.map(|version| match version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_11 => "HTTP/1.1",
            Version::HTTP_2 => "HTTP/2",
            Version::HTTP_3 => "HTTP/3",
            _ => "HTTP/0.9",
        });
        // Envoy's name for an answer that came from the upstream; otherwise our word for what went wrong.
        let details = match self.parts.failure {
            Some(reason) => Some(reason.word()),
            None if self.status != 0 && self.upstream.is_some() => Some("via_upstream"),
            None => None,
        };
        let flags = self.parts.failure.map_or("-", |reason| reason.flag());
        let number = |value: Duration| Value::Number(value.as_millis());
        let service_time = self.service_time.map_or(Value::Missing, number);
        match format {
            AccessLog::Off => {}
            AccessLog::Text => {
                let values: [(&[u8], Value<'_>, &[u8]); 23] = [
                    (b"[", Value::Shown(&start), b"] "),
                    (b"\"", Value::text(self.method), b" "),
                    (b"", Value::text(self.path), b" "),
                    (b"", Value::text(version), b"\" "),
                    (b"", Value::Number(self.status.into()), b" "),
                    (b"", Value::text(Some(flags)), b" "),
                    (b"", Value::text(details), b" "),
                    (b"", Value::Missing, b" "),
                    (b"\"", Value::text(self.log.upstream_failure.as_deref()), b"\" "),
                    (b"", Value::Number(self.received.into()), b" "),
                    (b"", Value::Number(self.sent.into()), b" "),
                    (b"", number(self.duration), b" "),
                    (b"", service_time, b" "),
                    (b"\"", Value::header(self.x_forwarded_for), b"\" "),
                    (b"\"", Value::header(self.user_agent), b"\" "),
                    (b"\"", Value::header(self.request_id), b"\" "),
                    (b"\"", Value::header(self.authority), b"\" "),
                    (b"\"", Value::address(&self.upstream), b"\" "),
                    (b"", Value::text(cluster.as_deref()), b" "),
                    (b"", Value::address(&self.log.upstream_local), b" "),
                    (b"", Value::address(&self.log.downstream_local), b" "),
                    (b"", Value::address(&self.log.downstream_remote), b" "),
                    (b"", Value::text(self.log.server_name.as_deref()), b" "),
                ];
                for (before, value, after) in values {
                    buffer.extend_from_slice(before);
                    write_text(&value, buffer);
                    buffer.extend_from_slice(after);
                }
                write_text(&Value::text(self.route), buffer);
                buffer.push(b'\n');
            }
            AccessLog::Json => {
                let retries = self.retries.map_or(Value::Missing, |retries| Value::Number(retries.into()));
                let values: [(&str, Value<'_>); 25] = [
                    ("start_time", Value::Shown(&start)),
                    ("route_name", Value::text(self.route)),
                    ("method", Value::text(self.method)),
                    ("path", Value::text(self.path)),
                    ("protocol", Value::text(version)),
                    ("response_code", Value::Number(self.status.into())),
                    ("response_flags", Value::text(Some(flags))),
                    ("response_code_details", Value::text(details)),
                    ("connection_termination_details", Value::Missing),
                    ("bytes_received", Value::Number(self.received.into())),
                    ("bytes_sent", Value::Number(self.sent.into())),
                    ("duration", number(self.duration)),
                    ("upstream_service_time", service_time),
                    ("x_forwarded_for", Value::header(self.x_forwarded_for)),
                    ("user_agent", Value::header(self.user_agent)),
                    ("request_id", Value::header(self.request_id)),
                    ("authority", Value::header(self.authority)),
                    ("upstream_host", Value::address(&self.upstream)),
                    ("upstream_cluster", Value::text(cluster.as_deref())),
                    ("upstream_local_address", Value::address(&self.log.upstream_local)),
                    ("downstream_local_address", Value::address(&self.log.downstream_local)),
                    ("downstream_remote_address", Value::address(&self.log.downstream_remote)),
                    ("requested_server_name", Value::text(self.log.server_name.as_deref())),
                    ("upstream_transport_failure_reason", Value::text(self.log.upstream_failure.as_deref())),
                    ("retries", retries),
                ];
                for (index, (key, value)) in values.iter().enumerate() {
                    buffer.extend_from_slice(if index == 0 { b"{\"" } else { b",\"" });
                    buffer.extend_from_slice(key.as_bytes());
                    buffer.extend_from_slice(b"\":");
                    write_json(value, buffer);
                }
                buffer.extend_from_slice(b"}\n");
            }
        }
    }

    /// Istio's name of what the request went to.
    fn cluster(&self) -> Option<String> {
        let port = self.log.service_port.or(self.upstream.map(|address| address.port()));
        match self.parts.direction {
            Direction::Inbound => Some(format!("inbound|{}||", port?)),
            Direction::Outbound if self.labels.service_host.is_empty() => {
                self.upstream.map(|_| "PassthroughCluster".to_owned())
            }
            Direction::Outbound => Some(format!("outbound|{}||{}", port.unwrap_or(0), self.labels.service_host)),
        }
    }
}

fn write_text(value: &Value<'_>, buffer: &mut Vec<u8>) {
    match value {
        Value::Missing => buffer.push(b'-'),
        Value::Text([]) => buffer.push(b'-'),
        Value::Text(text) => {
            for byte in *text {
                match byte {
                    b'"' | b'\\' => buffer.extend_from_slice(&[b'\\', *byte]),
                    0x20..=0x7e => buffer.push(*byte),
                    other => {
                        let _ = write!(buffer, "\\x{other:02x}");
                    }
                }
            }
        }
        Value::Number(number) => {
            let _ = write!(buffer, "{number}");
        }
        Value::Shown(shown) => {
            let _ = write!(buffer, "{shown}");
        }
    }
}

fn write_json(value: &Value<'_>, buffer: &mut Vec<u8>) {
    match value {
        Value::Missing => buffer.extend_from_slice(b"null"),
        Value::Number(number) => {
            let _ = write!(buffer, "{number}");
        }
        Value::Shown(shown) => {
            let _ = write!(buffer, "\"{shown}\"");
        }
        Value::Text(text) => {
            buffer.push(b'"');
            // Bytes that are no UTF-8 become the replacement character: the line must parse whatever came.
            for chunk in text.utf8_chunks() {
                for character in chunk.valid().chars() {
                    match character {
                        '"' => buffer.extend_from_slice(b"\\\""),
                        '\\' => buffer.extend_from_slice(b"\\\\"),
                        control if control < ' ' || control == '\u{7f}' => {
                            let _ = write!(buffer, "\\u{:04x}", u32::from(control));
                        }
                        other => buffer.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
                if !chunk.invalid().is_empty() {
                    buffer.extend_from_slice("\u{fffd}".as_bytes());
                }
            }
            buffer.push(b'"');
        }
    }
}

/// A moment as RFC 3339 in UTC with milliseconds, as Envoy writes it.
struct Timestamp(SystemTime);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        // Civil date from days, counted in 400-year eras that begin on 1 March (146,097 days each).
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
    }
}
