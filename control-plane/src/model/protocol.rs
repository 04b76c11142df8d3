//! What a port speaks, as far as users declared it. Pure.

use outrigger_proto::mesh::Protocol;

/// Ports whose servers speak first by custom: looking at the first bytes would only delay them.
const SERVER_FIRST: [u16; 11] = [25, 53, 465, 587, 3306, 4444, 5432, 6379, 9300, 11211, 27017];

/// The protocol of a port: its appProtocol, else the first word of its name, else what is customary for its number.
///
/// An appProtocol that is not known means "find out"; the name is not looked at then, as in Istio.
pub fn of_port(app_protocol: Option<&str>, name: &str, number: u16) -> Protocol {
    let declared = match app_protocol {
        Some(text) => of_word(&text.to_ascii_lowercase()),
        None => of_name(name),
    };
    declared.unwrap_or(if SERVER_FIRST.contains(&number) { Protocol::Tcp } else { Protocol::Detect })
}

/// The protocol that a port's name declares: `http`, `grpc-web`, `tcp-metrics`.
pub fn of_name(name: &str) -> Option<Protocol> {
    let name = name.to_ascii_lowercase();
    if name.starts_with("grpc-web") {
        return Some(Protocol::Http);
    }
    of_word(name.split('-').next().unwrap_or_default())
}

fn of_word(word: &str) -> Option<Protocol> {
    Some(match word {
        "http" | "grpc-web" => Protocol::Http,
        "kubernetes.io/ws" => Protocol::Http1,
        "http2" | "kubernetes.io/h2c" => Protocol::Http2,
        "grpc" => Protocol::Grpc,
        "https" | "tls" | "kubernetes.io/wss" => Protocol::Tls,
        "tcp" | "mongo" | "mysql" | "redis" | "udp" => Protocol::Tcp,
        _ => return None,
    })
}

/// Whether HTTP rules can apply to a port.
pub(crate) fn may_be_http(protocol: Protocol) -> bool {
    !matches!(protocol, Protocol::Tcp | Protocol::Tls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_before_customary_before_detected() {
        // A port read as the wrong protocol breaks every connection to it.
        for (app_protocol, name, number, protocol) in [
            (None, "http", 80, Protocol::Http),
            (None, "HTTP-web", 80, Protocol::Http),
            (None, "http2-api", 80, Protocol::Http2),
            (None, "grpc", 7070, Protocol::Grpc),
            (None, "grpc-web-x", 80, Protocol::Http),
            (None, "https", 443, Protocol::Tls),
            (None, "tcp-echo", 9090, Protocol::Tcp),
            (None, "web", 80, Protocol::Detect),
            (None, "", 3306, Protocol::Tcp),
            (None, "", 5432, Protocol::Tcp),
            (None, "http", 3306, Protocol::Http),
            (Some("http"), "tcp", 80, Protocol::Http),
            (Some("kubernetes.io/h2c"), "http", 80, Protocol::Http2),
            (Some("kubernetes.io/ws"), "", 80, Protocol::Http1),
            (Some("kubernetes.io/wss"), "", 443, Protocol::Tls),
            (Some("example.com/custom"), "http", 80, Protocol::Detect),
            (Some("example.com/custom"), "http", 6379, Protocol::Tcp),
            (Some("GRPC"), "", 80, Protocol::Grpc),
        ] {
            assert_eq!(of_port(app_protocol, name, number), protocol, "{app_protocol:?} {name} {number}");
        }
    }
}
