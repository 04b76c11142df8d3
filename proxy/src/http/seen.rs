//! Which of the fields that a proxy acts on a message has. Pure.
//!
//! Most messages have few of them. One look at each field there is costs less than looking up each field there might be, so
//! the journeys look once per head, and the stages look only up what is there.

use http::{HeaderMap, HeaderName};

use super::headers::OWN_PREFIX;

/// A field that some stage acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    ClientCert,
    Connection,
    ContentLength,
    ContentType,
    Cookie,
    /// Names that the next reader could take for somebody else's word: with "_", or the mesh's own that are not listed here.
    Deceptive,
    Expect,
    GrpcStatus,
    GrpcTimeout,
    /// Whatever else concerns only one hop.
    HopByHop,
    Hops,
    MaxForwards,
    OrigProto,
    Peer,
    /// Names with a quotation mark, which HTTP/1 does not know.
    Quoted,
    RequestId,
    Te,
    TransferEncoding,
    Upgrade,
}

/// The fields that one head came with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen(u32);

impl Seen {
    /// Looks at each name.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for name in headers.keys() {
            seen.add(name);
        }
        seen
    }

    pub const fn has(self, field: Field) -> bool {
        self.0 & (1 << field as u32) != 0
    }

    /// A field was taken out.
    pub const fn forget(&mut self, field: Field) {
        self.0 &= !(1 << field as u32);
    }

    /// One more name.
    pub fn add(&mut self, name: &HeaderName) {
        let name = name.as_str();
        if let Some(field) = field(name) {
            self.set(field);
        }
        if memchr::memchr2(b'_', b'"', name.as_bytes()).is_some() {
            if memchr::memchr(b'_', name.as_bytes()).is_some() {
                self.set(Field::Deceptive);
            }
            if memchr::memchr(b'"', name.as_bytes()).is_some() {
                self.set(Field::Quoted);
            }
        }
    }

    const fn set(&mut self, field: Field) {
        self.0 |= 1 << field as u32;
    }
}

fn field(name: &str) -> Option<Field> {
    if let Some(own) = name.strip_prefix(OWN_PREFIX) {
        return Some(match own {
            "hops" => Field::Hops,
            "peer" => Field::Peer,
            "orig-proto" => Field::OrigProto,
            _ => Field::Deceptive,
        });
    }
    // By length first: most names differ in that from every one here.
    let one = |known: &str, field: Field| (name == known).then_some(field);
    match name.len() {
        2 => one("te", Field::Te),
        6 => one("expect", Field::Expect).or_else(|| one("cookie", Field::Cookie)),
        7 => one("upgrade", Field::Upgrade),
        10 => one("connection", Field::Connection).or_else(|| one("keep-alive", Field::HopByHop)),
        11 => one("grpc-status", Field::GrpcStatus),
        12 => match name {
            "content-type" => Some(Field::ContentType),
            "x-request-id" => Some(Field::RequestId),
            "grpc-timeout" => Some(Field::GrpcTimeout),
            "max-forwards" => Some(Field::MaxForwards),
            _ => None,
        },
        14 => one("content-length", Field::ContentLength).or_else(|| one("http2-settings", Field::HopByHop)),
        16 => one("proxy-connection", Field::HopByHop),
        17 => one("transfer-encoding", Field::TransferEncoding),
        18 => one("proxy-authenticate", Field::HopByHop),
        19 => one("proxy-authorization", Field::HopByHop),
        23 => one("x-forwarded-client-cert", Field::ClientCert),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_seen_and_no_other() {
        // A field that is not seen would pass every check that looks for it.
        use Field::{
            ClientCert, Connection, ContentLength, ContentType, Cookie, Deceptive, Expect, GrpcStatus, GrpcTimeout,
            HopByHop, Hops, MaxForwards, OrigProto, Peer, Quoted, RequestId, Te, TransferEncoding, Upgrade,
        };
        let all = [
            ("x-forwarded-client-cert", vec![ClientCert]),
            ("connection", vec![Connection]),
            ("content-length", vec![ContentLength]),
            ("content-type", vec![ContentType]),
            ("cookie", vec![Cookie]),
            ("date", vec![]),
            ("content_length", vec![Deceptive]),
            ("x-outrigger-error", vec![Deceptive]),
            ("x-outrigger-", vec![Deceptive]),
            // As long as others, and beginning with our prefix.
            ("x-outrigger-abcde", vec![Deceptive]),
            ("x-outrigger-abcdef", vec![Deceptive]),
            ("x-outrigger-abcdefg", vec![Deceptive]),
            ("x-outrigger-abcdefghijk", vec![Deceptive]),
            ("x-outrigger-1_", vec![Deceptive]),
            ("expect", vec![Expect]),
            ("grpc-status", vec![GrpcStatus]),
            ("grpc-timeout", vec![GrpcTimeout]),
            ("keep-alive", vec![HopByHop]),
            ("proxy-connection", vec![HopByHop]),
            ("proxy-authenticate", vec![HopByHop]),
            ("proxy-authorization", vec![HopByHop]),
            ("http2-settings", vec![HopByHop]),
            ("x-outrigger-hops", vec![Hops]),
            ("max-forwards", vec![MaxForwards]),
            ("x-outrigger-orig-proto", vec![OrigProto]),
            ("x-outrigger-peer", vec![Peer]),
            ("a\"b", vec![Quoted]),
            ("a\"_", vec![Quoted, Deceptive]),
            ("x-request-id", vec![RequestId]),
            ("te", vec![Te]),
            ("transfer-encoding", vec![TransferEncoding]),
            ("upgrade", vec![Upgrade]),
            ("host", vec![]),
            ("x-outrigge", vec![]),
            ("accept", vec![]),
            ("content-types", vec![]),
            ("x-request-it", vec![]),
        ];
        let fields: Vec<Field> = all.iter().flat_map(|(_, fields)| fields.clone()).collect();
        for (name, expected) in all {
            let name = HeaderName::from_lowercase(name.as_bytes()).unwrap();
            let mut seen = Seen::default();
            seen.add(&name);
            for field in &fields {
                assert_eq!(seen.has(*field), expected.contains(field), "{name} {field:?}");
            }
        }
    }
}
