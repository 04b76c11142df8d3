//! Bytes that are not HTTP: half-closed connections, servers that speak first.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{SOON, http1::megabyte, mesh::apps::reset, world};

pub const BANNER: &str = "220 post office\r\n";

#[test]
fn a_client_may_close_its_side_first() {
    // `echo request | nc service`: the answer comes after the client's end, and must come whole.
    let Some(world) = world() else { return };
    for port in [7000, 7003] {
        let address = world.service("echo.shop", port);
        world.on_web(async move {
            let stream = TcpStream::connect(address).await.unwrap();
            let (mut read, mut write) = stream.into_split();
            let body = megabyte();
            let sent = body.clone();
            let sender = tokio::spawn(async move {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
                write
            });
            let mut back = Vec::new();
            read.read_to_end(&mut back).await.unwrap();
            assert!(back == body, "port {port}: {} bytes came back", back.len());
            drop(sender.await.unwrap());
        });
    }
}

#[test]
fn a_server_may_close_its_side_first() {
    // The client sees the end at once, and what it sends after that still arrives.
    let Some(world) = world() else { return };
    for port in [7001, 7004] {
        let address = world.service("first.shop", port);
        world.on_web(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"hello").await.unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).await.unwrap();
            assert_eq!(said, "all I have", "port {port}");
            stream.write_all(b"after").await.unwrap();
            drop(stream);
            let mut asking = TcpStream::connect(address).await.unwrap();
            asking.write_all(b"what?").await.unwrap();
            let mut answer = String::new();
            asking.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "5", "port {port}");
        });
    }
}

#[test]
fn a_connection_that_breaks_does_not_look_complete() {
    // Where the end of the connection is the end of the answer, an orderly end after half of it is a wrong answer.
    let Some(world) = world() else { return };
    for address in [world.service("resets.shop", 7005), world.mesh.host("stranger").at(7005)] {
        world.on_web(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"r").await.unwrap();
            let mut part = [0; 7];
            stream.read_exact(&mut part).await.unwrap();
            stream.write_all(b"!").await.unwrap();
            let end = stream.read_to_end(&mut Vec::new()).await.map_err(|error| error.kind());
            assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset), "server reset, {address}");

            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"w").await.unwrap();
            stream.read_exact(&mut [0; 5]).await.unwrap();
            reset(stream);
            let mut asking = TcpStream::connect(address).await.unwrap();
            asking.write_all(b"?").await.unwrap();
            let mut seen = String::new();
            asking.read_to_string(&mut seen).await.unwrap();
            assert_eq!(seen, "reset", "client reset, {address}");
        });
    }
}

/// Hears the banner without a word, then talks. Detection gives up only after 60 s, far beyond what is waited here: a
/// banner that needs it would not come.
async fn talk(address: SocketAddr) {
    let talk = async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut banner = vec![0; BANNER.len()];
        stream.read_exact(&mut banner).await.unwrap();
        assert_eq!(banner, BANNER.as_bytes());
        stream.write_all(b"HELO\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "HELO\r\n");
    };
    tokio::time::timeout(SOON, talk).await.expect("the banner comes without detection running into its limit");
}

#[test]
fn a_server_that_speaks_first_is_heard_at_once() {
    // Mail and database clients wait for the server; every second that detection waits is a second per connection.
    let Some(world) = world() else { return };
    let service = world.service("post.shop", 7002);
    world.on_web(talk(service));
    // Nobody has declared anything about an address outside the mesh.
    let outside = world.mesh.host("stranger").at(7002);
    world.on_web(talk(outside));
    // The other direction alone: a client without a sidecar, which the port's mode allows.
    let inside = world.mesh.host("api-1").at(7002);
    world.mesh.host("stranger").run(talk(inside));
    // Under STRICT, between sidecars.
    let safe = world.service("safe.vault", 7002);
    world.on_web(talk(safe));
}
