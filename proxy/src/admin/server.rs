//! Connections of the admin and public ports: accepts, bounds, closes. What is answered is in `paths`.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::paths::Port;
use crate::host;

/// Connections at once; more wait to be accepted.
const CONNECTIONS_AT_ONCE: usize = 64;
/// Longest wait for a request head, also between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest life of a connection, which also bounds a client that does not read its answer.
const CONNECTION_AGE: Duration = Duration::from_secs(300);
/// Bytes of a request head, and of what is read ahead.
const HEAD_BYTES: usize = 16 * 1024;
/// Header fields of a request.
const HEADER_FIELDS: usize = 64;

pub(super) async fn serve(listener: TcpListener, port: Arc<Port>, stop: CancellationToken) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_AT_ONCE));
    loop {
        let accepted = async {
            let permit = connections.clone().acquire_owned().await.ok()?;
            listener.accept().await.ok().map(|(stream, client)| (permit, stream, client))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = stop.cancelled() => return,
        };
        let Some((permit, stream, client)) = accepted else {
            // Out of descriptors, most likely: trying again at once would only burn CPU.
            host::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (port, stop) = (port.clone(), stop.clone());
        host::spawn(async move {
            let _permit = permit;
            tokio::select! {
                () = serve_connection(stream, &port, client) => {}
                () = host::sleep(CONNECTION_AGE) => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

async fn serve_connection(stream: impl host::Stream, port: &Port, client: SocketAddr) {
    let service = service_fn(|request| async move {
        Ok::<_, Infallible>(port.answer(&request, client).map(|body| Full::new(Bytes::from(body))))
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADER_FIELDS)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        debug!(%client, %error, "admin connection ended");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::{super::paths::tests::Fake, *};

    fn port() -> Arc<Port> {
        Arc::new(Port::Admin { source: Arc::new(Fake::default()), log: None })
    }

    #[tokio::test]
    async fn answers_over_a_real_socket_and_ends_with_stop() {
        // The whole way once, as curl goes it.
        let listener = host::listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serving = host::spawn(serve(listener, port(), stop.clone()));
        let mut stream = host::connect(address, host::ConnectOptions::default()).await.unwrap();
        let head = format!("GET /server_info HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"version\""), "{answer}");
        assert!(answer.contains("no-store"), "{answer}");
        stop.cancel();
        serving.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_finishes_its_head_is_closed() {
        // Sixty-four of them would otherwise lock the operator out.
        let (mut client, server) = tokio::io::duplex(1024);
        let serving =
            host::spawn(async move { serve_connection(server, &port(), "127.0.0.1:1".parse().unwrap()).await });
        client.write_all(b"GET / HTTP/1.1\r\nHost: local").await.unwrap();
        serving.await.unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert!(!rest.starts_with(b"HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn large_heads_are_refused() {
        // The admin port must not be a way to fill the proxy's memory.
        let (mut client, server) = tokio::io::duplex(256 * 1024);
        let serving =
            host::spawn(async move { serve_connection(server, &port(), "127.0.0.1:1".parse().unwrap()).await });
        let head = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(HEAD_BYTES * 2));
        client.write_all(head.as_bytes()).await.unwrap();
        serving.await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
    }
}
