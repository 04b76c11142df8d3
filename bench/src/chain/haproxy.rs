//! HAProxy: one thread, upstream connections shared by all, HTTP/2 or HTTP/1.1 between its hops.

use std::{path::Path, process::Command};

use anyhow::Result;

use super::{Place, Side, certificates};

pub(super) fn command(binary: &Path, http2: bool, place: &Place<'_>, side: Side) -> Result<Command> {
    let name = format!("haproxy-{}.cfg", place.listen(side).port());
    let path = place.write(&name, &config(http2, place, side))?;
    let mut command = Command::new(binary);
    command.args(["-db", "-f"]).arg(path);
    Ok(command)
}

fn config(http2: bool, place: &Place<'_>, side: Side) -> String {
    let (ca, both) = (place.certificate(certificates::AUTHORITY), place.certificate(certificates::BOTH));
    let alpn = if http2 { "h2" } else { "http/1.1" };
    let taken = if place.terminates_tls(side) {
        format!(" ssl crt {both} ca-file {ca} verify required ssl-min-ver TLSv1.3 alpn {alpn}")
    } else {
        String::new()
    };
    let sent = if place.originates_tls(side) {
        format!(
            " ssl crt {both} ca-file {ca} verify required verifyhost {name} sni str({name}) ssl-min-ver TLSv1.3 alpn {alpn}",
            name = certificates::SERVER_NAME
        )
    } else {
        String::new()
    };
    format!(
        "global\n  nbthread 1\n  maxconn 4096\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  http-reuse always\n\
         frontend in\n  bind {listen}{taken}\n  default_backend next\n\
         backend next\n  server next {next}{sent}\n",
        listen = place.listen(side),
        next = place.next(side),
    )
}
