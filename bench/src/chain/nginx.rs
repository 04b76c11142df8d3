//! nginx: one worker, upstream connections kept, HTTP/1.1 between its hops (it has no HTTP/2 to upstreams).

use std::{path::Path, process::Command};

use anyhow::Result;

use super::{Place, Side, certificates};

pub(super) fn command(binary: &Path, place: &Place<'_>, side: Side) -> Result<Command> {
    let name = format!("nginx-{}", place.listen(side).port());
    let path = place.write(&format!("{name}.conf"), &config(place, side, &name))?;
    let mut command = Command::new(binary);
    command.arg("-p").arg(place.folder).arg("-c").arg(path).args(["-e", "stderr"]);
    Ok(command)
}

fn config(place: &Place<'_>, side: Side, name: &str) -> String {
    let (ca, certificate, key) = (
        place.certificate(certificates::AUTHORITY),
        place.certificate(certificates::CERTIFICATE),
        place.certificate(certificates::KEY),
    );
    let taken = if place.terminates_tls(side) {
        format!(
            "ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.3;
             ssl_client_certificate {ca}; ssl_verify_client on;"
        )
    } else {
        String::new()
    };
    let (scheme, sent) = if place.originates_tls(side) {
        let sent = format!(
            "proxy_ssl_certificate {certificate}; proxy_ssl_certificate_key {key}; proxy_ssl_protocols TLSv1.3;
             proxy_ssl_trusted_certificate {ca}; proxy_ssl_verify on; proxy_ssl_name {}; proxy_ssl_server_name on;",
            certificates::SERVER_NAME
        );
        ("https", sent)
    } else {
        ("http", String::new())
    };
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {};\n", place.folder.join(format!("{name}-{kind}")).display()))
        .collect();
    format!(
        "daemon off; worker_processes 1; pid {folder}/{name}.pid; error_log stderr warn;
         events {{ worker_connections 4096; }}
         http {{
           access_log off; keepalive_requests 100000000; keepalive_timeout 75s;
           {temporary}
           upstream next {{ server {next}; keepalive 256; keepalive_requests 100000000; }}
           server {{
             listen {listen}{ssl}; {taken}
             location / {{
               proxy_pass {scheme}://next; proxy_http_version 1.1; proxy_set_header Connection \"\";
               proxy_set_header Host $host; {sent}
             }}
           }}
         }}\n",
        folder = place.folder.display(),
        next = place.next(side),
        listen = place.listen(side),
        ssl = if place.terminates_tls(side) { " ssl" } else { "" },
    )
}
