//! nginx: one worker, upstream connections kept, HTTP/1.1 between its hops (it has HTTP/2 to upstreams for gRPC only).

use std::{fmt::Write as _, path::Path, process::Command};

use anyhow::{Context as _, Result};

use super::{HOST, Hop, Protocol, certificates, host_of};
use crate::{peers, scenario::Client};

pub(super) fn command(binary: &Path, hop: &Hop<'_>) -> Result<Command> {
    let name = format!("nginx-{}", hop.taken.address.port());
    let path = hop.write(&format!("{name}.conf"), &config(hop, &name)?)?;
    let mut command = Command::new(binary);
    command.arg("-p").arg(hop.folder).arg("-c").arg(path).args(["-e", "stderr"]);
    Ok(command)
}

fn config(hop: &Hop<'_>, name: &str) -> Result<String> {
    let folder = hop.folder.display();
    let main = format!(
        "daemon off; worker_processes 1; worker_rlimit_nofile 16384; pid {folder}/{name}.pid; error_log stderr warn;\n\
         events {{ worker_connections 8192; }}\n"
    );
    if hop.scenario.client == Client::Tcp {
        let module = peers::nginx_stream_module()
            .context("nginx has no stream module (hint: apt-get install libnginx-mod-stream)")?;
        return Ok(format!(
            "load_module {module};\n{main}stream {{\n  upstream next {{ server {next}; }}\n  server {{\n    \
             listen {listen}{ssl}; {taken}\n    proxy_pass next; tcp_nodelay on; {sent}\n  }}\n}}\n",
            next = hop.sent.address,
            listen = hop.taken.address,
            ssl = if hop.taken.tls { " ssl" } else { "" },
            taken = taken_tls(hop),
            sent = if hop.sent.tls { format!("proxy_ssl on; {}", sent_tls(hop, "proxy")) } else { String::new() },
        ));
    }
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {};\n", hop.folder.join(format!("{name}-{kind}")).display()))
        .collect();
    let mut text = format!(
        "{main}http {{\n  access_log off; keepalive_requests 100000000; keepalive_timeout 75s; client_max_body_size 0;\n  \
         server_names_hash_max_size 131072; server_names_hash_bucket_size 128;\n{temporary}"
    );
    for service in hop.other_services() {
        server(&mut text, hop, &host_of(&service), &service);
    }
    server(&mut text, hop, HOST, "next");
    text.push_str("}\n");
    Ok(text)
}

/// One service: its upstream, and who asks for it.
fn server(text: &mut String, hop: &Hop<'_>, host: &str, upstream: &str) {
    let flags = [(hop.taken.tls, " ssl"), (hop.taken.protocol == Protocol::Http2, " http2")];
    let flags: String = flags.iter().filter(|(is_on, _)| *is_on).map(|(_, flag)| *flag).collect();
    let secure = if hop.sent.tls { "s" } else { "" };
    let pass = if hop.scenario.client.is_grpc() {
        format!(
            "grpc_pass grpc{secure}://{upstream}; grpc_set_header Host $host; grpc_read_timeout 1h; {}",
            sent_tls(hop, "grpc")
        )
    } else {
        format!(
            "proxy_pass http{secure}://{upstream}; proxy_http_version 1.1; proxy_set_header Connection \"\"; \
             proxy_set_header Host $host; proxy_request_buffering off; {}",
            sent_tls(hop, "proxy")
        )
    };
    // The one that is asked for also takes what names no service: the second hop is called by another name.
    let default = if upstream == "next" { " default_server" } else { "" };
    let _ = write!(
        text,
        "  upstream {upstream} {{ server {next}; keepalive 1024; keepalive_requests 100000000; }}\n  \
         server {{\n    listen {listen}{default}{flags}; server_name {host}; {taken}\n",
        next = hop.sent.address,
        listen = hop.taken.address,
        taken = taken_tls(hop),
    );
    let prefixes = if upstream == "next" { hop.rules() } else { Vec::new() };
    if prefixes.is_empty() {
        let _ = writeln!(text, "    location / {{ {pass} }}");
    }
    for prefix in prefixes {
        let _ = writeln!(text, "    location {prefix} {{ {pass} }}");
    }
    text.push_str("  }\n");
}

fn taken_tls(hop: &Hop<'_>) -> String {
    if !hop.taken.tls {
        return String::new();
    }
    format!(
        "ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.3; ssl_client_certificate {}; ssl_verify_client on;",
        hop.certificate(certificates::CERTIFICATE),
        hop.certificate(certificates::KEY),
        hop.certificate(certificates::AUTHORITY),
    )
}

/// `module`: `proxy` or `grpc`, the first word of the directives.
fn sent_tls(hop: &Hop<'_>, module: &str) -> String {
    if !hop.sent.tls {
        return String::new();
    }
    [
        ("ssl_certificate", hop.certificate(certificates::CERTIFICATE)),
        ("ssl_certificate_key", hop.certificate(certificates::KEY)),
        ("ssl_protocols", "TLSv1.3".to_owned()),
        ("ssl_trusted_certificate", hop.certificate(certificates::AUTHORITY)),
        ("ssl_verify", "on".to_owned()),
        ("ssl_name", certificates::SERVER_NAME.to_owned()),
        ("ssl_server_name", "on".to_owned()),
    ]
    .map(|(name, value)| format!("{module}_{name} {value}; "))
    .concat()
}
