//! The annotation of an HTTPRoute that keeps users where a weighted split has sent them.
//!
//! Gateway API has no field for it: its `sessionPersistence` binds a session to an endpoint, not users to a share that grows.

use outrigger_proto::mesh::{HashCookie, Sticky, sticky};

use super::{
    Problem,
    fields::Field,
    kinds::Header,
    values::{self, DurationStyle},
};
use crate::validate::codes;

/// Annotation that keeps users where a weighted split has sent them.
const STICKY: &str = "outrigger.mesh/sticky";

/// "header NAME", "cookie NAME", or "cookie NAME LIFETIME", which gives a cookie to who has none.
pub(super) fn read(header: &Header<'_>, spec: &Field<'_>) -> Option<Sticky> {
    let text = header.annotations.get(STICKY)?;
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let ttl = |text: &str| DurationStyle::Go.parse(text).ok().map(values::to_proto);
    let key = match words.as_slice() {
        ["header", name] if values::is_header_name(name) => Some(sticky::Key::Header(name.to_ascii_lowercase())),
        ["cookie", name] if values::is_header_name(name) => {
            Some(sticky::Key::Cookie(HashCookie { name: (*name).to_owned(), path: String::new(), ttl: None }))
        }
        ["cookie", name, lifetime] if values::is_header_name(name) => ttl(lifetime).map(|ttl| {
            sticky::Key::Cookie(HashCookie { name: (*name).to_owned(), path: String::new(), ttl: Some(ttl) })
        }),
        _ => None,
    };
    if key.is_none() {
        spec.report.add(
            spec.node.line,
            spec.node.column,
            Problem::new(&codes::UNKNOWN_WORD, format!("\"{text}\" does not say how users are known"))
                .at(format!("metadata.annotations[{STICKY}]"))
                .fix("write \"header x-user\", \"cookie user\" or, to give a cookie to who has none, \"cookie user 720h\""),
        );
    }
    Some(Sticky { key: Some(key?), seed: String::new() })
}
