//! Envoy: one worker, HTTP/2 or HTTP/1.1 between its hops, router filter only.

use std::{path::Path, process::Command};

use anyhow::Result;
use serde_json::{Value, json};

use super::{Place, Side, certificates};

pub(super) fn command(binary: &Path, http2: bool, place: &Place<'_>, side: Side) -> Result<Command> {
    let name = format!("envoy-{}.json", place.listen(side).port());
    let path = place.write(&name, &serde_json::to_string_pretty(&config(http2, place, side))?)?;
    let mut command = Command::new(binary);
    command.arg("-c").arg(path).args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
    Ok(command)
}

fn config(http2: bool, place: &Place<'_>, side: Side) -> Value {
    let socket = |address: std::net::SocketAddr| json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}});
    let common = json!({
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{
            "certificate_chain": {"filename": place.certificate(certificates::CERTIFICATE)},
            "private_key": {"filename": place.certificate(certificates::KEY)},
        }],
        "validation_context": {"trusted_ca": {"filename": place.certificate(certificates::AUTHORITY)}},
        "alpn_protocols": [if http2 { "h2" } else { "http/1.1" }],
    });
    let tls = |word: &str, rest: Value| {
        let mut typed = json!({
            "@type": format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{word}TlsContext"),
            "common_tls_context": common,
        });
        if let (Some(typed), Value::Object(rest)) = (typed.as_object_mut(), rest) {
            typed.extend(rest);
        }
        json!({"name": "envoy.transport_sockets.tls", "typed_config": typed})
    };
    let mut filter_chain = json!({"filters": [{
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "in",
            "route_config": {"virtual_hosts": [{
                "name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "next"}}],
            }]},
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }],
        },
    }]});
    if place.terminates_tls(side) {
        filter_chain["transport_socket"] = tls("Downstream", json!({"require_client_certificate": true}));
    }
    let mut cluster = json!({
        "name": "next", "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {"cluster_name": "next", "endpoints": [{
            "lb_endpoints": [{"endpoint": {"address": socket(place.next(side))}}],
        }]},
    });
    if place.originates_tls(side) {
        cluster["transport_socket"] = tls("Upstream", json!({"sni": certificates::SERVER_NAME}));
        if http2 {
            cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }});
        }
    }
    json!({"static_resources": {
        "listeners": [{"name": "in", "address": socket(place.listen(side)), "filter_chains": [filter_chain]}],
        "clusters": [cluster],
    }})
}
