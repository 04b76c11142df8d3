//! A relay where no descriptor is left. Alone in its process: the limit holds for all of it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests bring their own sockets")]

use std::time::Duration;

use outrigger_proxy::relay::{Counts, RelayLimits, relay_sockets};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (out, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (out.unwrap(), accepted.unwrap().0)
}

#[tokio::test]
async fn a_relay_without_descriptors_for_a_pipe_copies() {
    // A proxy with many connections would break those that it has already taken in.
    let (mut near, a) = connection().await;
    let (mut far, b) = connection().await;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), maximum: limit.maximum }).unwrap();
    assert!(std::fs::File::open("/dev/null").is_err(), "there are descriptors left");

    let limits = RelayLimits { buffer_bytes: 256 * 1024, idle: Duration::from_secs(60), half_close: Duration::ZERO };
    let relay = tokio::spawn(async move { relay_sockets(a, b, limits, &Counts::default()).await });
    let bytes: Vec<u8> = (0..16_usize << 20).map(|at| (at % 251) as u8).collect();
    let mut got = Vec::new();
    let write = async {
        near.write_all(&bytes).await.unwrap();
        near.shutdown().await.unwrap();
    };
    let ((), read) = tokio::join!(write, far.read_to_end(&mut got));
    read.unwrap();
    assert!(got == bytes, "{} bytes arrived", got.len());
    far.shutdown().await.unwrap();
    relay.await.unwrap().unwrap();
    setrlimit(Resource::Nofile, limit).unwrap();
}
