//! Envoy: one worker, HTTP/2 or HTTP/1.1 between its hops, router filter only; tcp_proxy for raw bytes.

use std::{net::SocketAddr, path::Path, process::Command};

use anyhow::Result;
use serde_json::{Value, json};

use super::{HOST, Hop, Link, Protocol, certificates, host_of};

pub(super) fn command(binary: &Path, hop: &Hop<'_>) -> Result<Command> {
    let name = format!("envoy-{}.json", hop.taken.address.port());
    let path = hop.write(&name, &serde_json::to_string(&config(hop))?)?;
    let mut command = Command::new(binary);
    command.arg("-c").arg(path).args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
    Ok(command)
}

fn config(hop: &Hop<'_>) -> Value {
    let mut filter_chain = json!({"filters": [if hop.taken.protocol == Protocol::Tcp { relay() } else { http(hop) }]});
    if hop.taken.tls {
        filter_chain["transport_socket"] =
            tls(hop, hop.taken, "Downstream", json!({"require_client_certificate": true}));
    }
    let clusters: Vec<_> = hop.other_services().chain(["next".to_owned()]).map(|name| cluster(hop, &name)).collect();
    json!({"static_resources": {
        "listeners": [{"name": "in", "address": socket(hop.taken.address), "filter_chains": [filter_chain]}],
        "clusters": clusters,
    }})
}

fn socket(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

fn relay() -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "in", "cluster": "next",
        },
    })
}

fn http(hop: &Hop<'_>) -> Value {
    let host = |name: &str, domains: &[&str], cluster: &str, prefixes: &[String]| {
        let route = |prefix: &str| json!({"match": {"prefix": prefix}, "route": {"cluster": cluster, "timeout": "0s"}});
        let routes: Vec<_> = prefixes.iter().map(|prefix| route(prefix)).collect();
        json!({"name": name, "domains": domains, "routes": routes})
    };
    let everything = ["/".to_owned()];
    let rules = hop.rules();
    let rules = if rules.is_empty() { everything.to_vec() } else { rules };
    let mut hosts: Vec<_> =
        hop.other_services().map(|service| host(&service, &[&host_of(&service)], &service, &everything)).collect();
    // The star takes what names no service: the second hop is called by another name.
    hosts.push(host("app", &[HOST, "*"], "next", &rules));
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "in",
            "route_config": {"virtual_hosts": hosts},
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }],
        },
    })
}

fn cluster(hop: &Hop<'_>, name: &str) -> Value {
    let mut cluster = json!({
        "name": name, "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{
            "lb_endpoints": [{"endpoint": {"address": socket(hop.sent.address)}}],
        }]},
    });
    if hop.sent.tls {
        cluster["transport_socket"] = tls(hop, hop.sent, "Upstream", json!({"sni": certificates::SERVER_NAME}));
    }
    if hop.sent.protocol == Protocol::Http2 {
        cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }});
    }
    cluster
}

/// `word`: whose side it is. `rest`: what only that side has.
fn tls(hop: &Hop<'_>, link: Link, word: &str, rest: Value) -> Value {
    let mut typed = json!({
        "@type": format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{word}TlsContext"),
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificates": [{
                "certificate_chain": {"filename": hop.certificate(certificates::CERTIFICATE)},
                "private_key": {"filename": hop.certificate(certificates::KEY)},
            }],
            "validation_context": {"trusted_ca": {"filename": hop.certificate(certificates::AUTHORITY)}},
            "alpn_protocols": link.protocol.alpn(),
        },
    });
    if let (Some(typed), Value::Object(rest)) = (typed.as_object_mut(), rest) {
        typed.extend(rest);
    }
    json!({"name": "envoy.transport_sockets.tls", "typed_config": typed})
}
