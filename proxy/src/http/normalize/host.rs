//! The one spelling of a host. Pure.

use http::uri::{Authority, Scheme};

use super::Violation;

/// A host in its one spelling.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Host {
    pub name: String,
    pub port: Option<u16>,
}

/// RFC 1035 §2.3.4, and a trailing dot.
const MAX_HOST_BYTES: usize = 254;

impl Host {
    /// `uri-host [ ":" port ]` (RFC 9110 §7.2), without user information, escapes and the empty forms.
    pub fn parse(bytes: &[u8]) -> Result<Self, Violation> {
        let text = std::str::from_utf8(bytes).map_err(|_| Violation::HostInvalid)?;
        let (name, port) = if let Some(rest) = text.strip_prefix('[') {
            let (address, rest) = rest.split_once(']').ok_or(Violation::HostInvalid)?;
            let address: std::net::Ipv6Addr = address.parse().map_err(|_| Violation::HostInvalid)?;
            (format!("[{address}]"), rest)
        } else {
            let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            if !is_name(name) {
                return Err(Violation::HostInvalid);
            }
            let name = name.strip_suffix('.').unwrap_or(name);
            (name.to_ascii_lowercase(), port)
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            Some(digits) if (1..=5).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_digit()) => {
                Some(digits.parse().ok().filter(|port| *port != 0).ok_or(Violation::HostInvalid)?)
            }
            _ => return Err(Violation::HostInvalid),
        };
        Ok(Self { name, port })
    }

    /// Whether both mean the same place; a port that the scheme implies may be left out.
    pub fn is_same(&self, other: &Self, scheme: &Scheme) -> bool {
        let implied = if *scheme == Scheme::HTTPS { 443 } else { 80 };
        self.name == other.name && self.port.unwrap_or(implied) == other.port.unwrap_or(implied)
    }

    pub fn authority(self) -> Result<Authority, Violation> {
        let text = match self.port {
            Some(port) => format!("{}:{port}", self.name),
            None => self.name,
        };
        Authority::try_from(text).map_err(|_| Violation::HostInvalid)
    }
}

fn is_name(name: &str) -> bool {
    let labels = name.strip_suffix('.').unwrap_or(name);
    name.len() <= MAX_HOST_BYTES
        && labels.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~'))
        })
}

/// Whether a host is a name in lower case, with or without a port: what [`Host::parse`] and [`Host::authority`] would give back unchanged.
pub(super) fn is_plain(host: &[u8]) -> bool {
    let colon = memchr::memchr(b':', host);
    let (name, port) = host.split_at(colon.unwrap_or(host.len()));
    let mut label_ended = true;
    for byte in name {
        match byte {
            b'.' if label_ended => return false,
            b'.' => label_ended = true,
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' => label_ended = false,
            _ => return false,
        }
    }
    let plain_port = match port {
        [] => true,
        [b':', first @ b'1'..=b'9', rest @ ..] if rest.len() <= 4 => rest
            .iter()
            .try_fold(u32::from(first - b'0'), |port, digit| {
                digit.is_ascii_digit().then(|| port * 10 + u32::from(digit - b'0'))
            })
            .is_some_and(|port| port <= u32::from(u16::MAX)),
        _ => false,
    };
    !label_ended && name.len() <= MAX_HOST_BYTES && plain_port
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_plain_host_is_one_that_stays_as_it_is(host in "[a-z0-9A.~_-]{0,6}(:[0-9]{0,6})?") {
            // Two spellings of one host would be two hosts to a rule.
            let settled = Host::parse(host.as_bytes()).ok().and_then(|host| host.authority().ok());
            let stays = settled.is_some_and(|authority| authority.as_str() == host);
            prop_assert_eq!(is_plain(host.as_bytes()), stays, "{}", host);
        }
    }
}
