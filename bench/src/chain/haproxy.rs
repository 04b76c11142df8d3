//! HAProxy: one thread, upstream connections shared by all, HTTP/2 or HTTP/1.1 between its hops.

use std::{fmt::Write as _, path::Path, process::Command};

use anyhow::Result;

use super::{Hop, Link, Protocol, certificates, host_of};

pub(super) fn command(binary: &Path, hop: &Hop<'_>) -> Result<Command> {
    let name = format!("haproxy-{}", hop.taken.address.port());
    let path = hop.write(&format!("{name}.cfg"), &config(hop, &name)?)?;
    let mut command = Command::new(binary);
    command.args(["-db", "-f"]).arg(path);
    Ok(command)
}

fn config(hop: &Hop<'_>, name: &str) -> Result<String> {
    let (ca, both) = (hop.certificate(certificates::AUTHORITY), hop.certificate(certificates::BOTH));
    let taken = if hop.taken.tls {
        format!(" ssl crt {both} ca-file {ca} verify required ssl-min-ver TLSv1.3{}", alpn(hop.taken))
    } else {
        plain(hop.taken).to_owned()
    };
    let sent = if hop.sent.tls {
        format!(
            " ssl crt {both} ca-file {ca} verify required verifyhost {name} sni str({name}) ssl-min-ver TLSv1.3{alpn}",
            name = certificates::SERVER_NAME,
            alpn = alpn(hop.sent),
        )
    } else {
        plain(hop.sent).to_owned()
    };
    let (mode, reuse) =
        if hop.taken.protocol == Protocol::Tcp { ("tcp", "") } else { ("http", "  http-reuse always\n") };
    // Backends are found in maps, as its manual advises where there are many.
    let (mut choice, mut backends) = (String::new(), String::new());
    let services: Vec<_> = hop.other_services().collect();
    if !services.is_empty() {
        let map: String = services.iter().map(|service| format!("{} {service}\n", host_of(service))).collect();
        let path = hop.write(&format!("{name}-hosts.map"), &map)?;
        let _ = writeln!(
            choice,
            "  use_backend %[req.hdr(host),field(1,:),lower,map_str({})] if {{ req.hdr(host),field(1,:),lower,map_str({}) -m found }}",
            path.display(),
            path.display()
        );
        for service in &services {
            let _ = write!(backends, "backend {service}\n  server next {}{sent}\n", hop.sent.address);
        }
    }
    let rules = hop.rules();
    if !rules.is_empty() {
        let map: String = rules.iter().map(|prefix| format!("{prefix} next\n")).collect();
        let path = hop.write(&format!("{name}-paths.map"), &map)?;
        let _ = writeln!(choice, "  use_backend %[path,map_beg({},nowhere)]", path.display());
        backends.push_str("backend nowhere\n");
    }
    let last = if rules.is_empty() { "  default_backend next\n" } else { "" };
    Ok(format!(
        "global\n  nbthread 1\n  maxconn 8192\n\
         defaults\n  mode {mode}\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n{reuse}\
         frontend in\n  bind {listen}{taken}\n{choice}{last}\
         backend next\n  server next {next}{sent}\n{backends}",
        listen = hop.taken.address,
        next = hop.sent.address,
    ))
}

fn alpn(link: Link) -> String {
    link.protocol.alpn().iter().map(|protocol| format!(" alpn {protocol}")).collect()
}

/// What must be said without ALPN.
const fn plain(link: Link) -> &'static str {
    match link.protocol {
        Protocol::Http2 => " proto h2",
        Protocol::Http1 | Protocol::Tcp => "",
    }
}
