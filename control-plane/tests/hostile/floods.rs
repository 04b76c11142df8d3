//! Floods over HTTP/2: that they end, and that an operator sees which one it is.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
};

use super::{
    frames::{self, GOAWAY, PING, PREFACE, RST_STREAM, SETTINGS, frame},
    sidecar::{Sidecar, Stage},
    wire,
};

const ENHANCE_YOUR_CALM: u32 = 11;
const DEEDS: &str = "outrigger_http2_abuse_deeds_total";
const CLOSED: &str = "outrigger_http2_abuse_closed_total";

fn application() -> SocketAddr {
    wire::listen(|_, mut io| {
        let _ = frames::serve(&mut io, |event| match event {
            frames::Event::Request(stream, true) => Some(frames::answer(stream, "hello")),
            _ => Some(Vec::new()),
        });
    })
}

fn get(stream: u32) -> Vec<u8> {
    let fields = [(":method", "GET"), (":scheme", "http"), (":authority", "app.shop"), (":path", "/")];
    frames::headers(stream, &fields, true)
}

/// The codes of all goodbyes, after `flood` was said on a new connection.
fn goodbyes(to: SocketAddr, flood: &[u8]) -> Vec<u32> {
    let mut io: TcpStream = wire::connect(to);
    let said = [PREFACE, &frame(SETTINGS, 0, 0, &[]), flood].concat();
    // It may be closed before all of it is out.
    let _ = io.write_all(&said);
    io.set_read_timeout(Some(wire::PATIENCE)).unwrap();
    std::iter::from_fn(|| frames::read(&mut io))
        .filter(|frame| frame.kind == GOAWAY)
        .map(|frame| frame.code())
        .collect()
}

/// What a flood has to show on a sidecar, in the words of its metrics.
fn shows(sidecar: &Sidecar, deed: &str, at_least: f64) {
    let deed = format!("deed=\"{deed}\"");
    let (inbound, downstream) = ("direction=\"inbound\"", "side=\"downstream\"");
    sidecar.wait_metric(CLOSED, &[inbound, downstream, "end=\"hard\"", &deed], |closed| closed >= 1.0);
    assert!(sidecar.metric(DEEDS, &[inbound, downstream, &deed]) >= at_least);
    let graceful = sidecar.metric(CLOSED, &[inbound, downstream, "end=\"graceful\""]);
    assert!(graceful >= 1.0, "three quarters come before the end");
}

#[test]
fn each_flood_has_its_name_in_the_metrics() {
    // An operator who sees connections end could not tell an attack from a broken client, nor which attack.
    let arguments = ["--set", "limits.http2_control_frames=200"];
    let (sidecar, inbound) = Stage::new().server(application(), "http2", &arguments);
    assert_eq!(sidecar.metric(CLOSED, &[]), 0.0);

    let pings = frame(PING, 0, 0, b"12345678").repeat(300);
    assert_eq!(goodbyes(inbound, &pings).last(), Some(&ENHANCE_YOUR_CALM));
    shows(&sidecar, "ping", 190.0);

    // Nothing is answered to these, so nothing is read in vain either.
    let resets = (0..100).flat_map(|number| {
        let stream = number * 2 + 1;
        [get(stream), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    });
    assert_eq!(goodbyes(inbound, &resets.collect::<Vec<u8>>()).last(), Some(&ENHANCE_YOUR_CALM));
    shows(&sidecar, "reset_at_once", 15.0);

    // And a client that does its work is in none of them.
    let (ends, pings) = (sidecar.metric(CLOSED, &[]), sidecar.metric(DEEDS, &["deed=\"ping\""]));
    let mut io = wire::connect(inbound);
    io.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &get(1), &frame(PING, 0, 0, b"12345678")].concat()).unwrap();
    let answered = std::iter::from_fn(|| frames::read(&mut io)).find(|frame| frame.stream == 1).unwrap();
    assert_eq!(frames::status(&answered.payload), 200);
    sidecar.wait_metric(DEEDS, &["deed=\"ping\""], |charged| charged == pings + 1.0);
    assert_eq!(sidecar.metric(CLOSED, &[]), ends);
}
