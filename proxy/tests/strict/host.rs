//! The one Host field (RFC 9112 §3.2, RFC 9110 §7.2).

use super::{Field, Unsafe, no, values};

/// Exactly one, and a name or address with an optional port.
pub(super) fn check(fields: &[Field]) -> Result<(), Unsafe> {
    let hosts = values(fields, "host");
    let [host] = hosts[..] else { return no(format!("{} Host fields", hosts.len())) };
    match parse(host) {
        Some(_) => Ok(()),
        None => no(format!("Host is {:?}", String::from_utf8_lossy(host))),
    }
}

/// `None`: not a host; otherwise its port, if it names one.
pub(super) fn parse(host: &[u8]) -> Option<Option<u16>> {
    let host = std::str::from_utf8(host).ok()?;
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (None, port)
        }
        None => match host.split_once(':') {
            Some((name, _)) => (Some(name), &host[name.len()..]),
            None => (Some(host), ""),
        },
    };
    if let Some(name) = name {
        let visible = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if name.is_empty() || name.len() > 255 || !name.bytes().all(visible) {
            return None;
        }
    }
    match port.strip_prefix(':') {
        None => port.is_empty().then_some(None),
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok().map(Some),
        Some(_) => None,
    }
}
