//! WebSockets: a client library that knows nothing of the mesh.

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::{client_async, tungstenite::Message};

use crate::{http1::megabyte, world};

#[test]
fn messages_go_both_ways() {
    // Chats and live views: small and large, text and binary, pings, and an orderly end.
    let Some(world) = world() else { return };
    let address = world.service("chat.shop", 80);
    world.on_web(async move {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut socket, answer) = client_async("ws://chat.shop/talk", stream).await.unwrap();
        assert_eq!(answer.status(), 101);
        for message in [Message::text("hello"), Message::binary(megabyte()), Message::text("é".repeat(70_000))] {
            socket.send(message.clone()).await.unwrap();
            assert!(socket.next().await.unwrap().unwrap() == message);
        }
        socket.send(Message::Ping("are you there".into())).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong("are you there".into()));
        socket.close(None).await.unwrap();
        // RFC 6455 §7.1.1: the closing handshake is answered, then the connection ends.
        assert!(socket.next().await.unwrap().unwrap().is_close());
        assert!(socket.next().await.is_none());
    });
}

#[test]
fn many_at_once() {
    // Each has a connection of its own between the sidecars; none may wait for another.
    let Some(world) = world() else { return };
    let address = world.service("chat.shop", 80);
    world.on_web(async move {
        let mut sockets = Vec::new();
        for _ in 0..30 {
            let stream = TcpStream::connect(address).await.unwrap();
            sockets.push(client_async("ws://chat.shop/talk", stream).await.unwrap().0);
        }
        for (number, socket) in sockets.iter_mut().enumerate() {
            socket.send(Message::text(number.to_string())).await.unwrap();
        }
        for (number, socket) in sockets.iter_mut().enumerate().rev() {
            assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(number.to_string()));
        }
    });
}
