//! Small HTTP clients on hyper, unaware of any mesh: what an application in a test calls others with.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// One GET over a connection of its own; panics when there is no answer.
pub async fn get(address: SocketAddr, host: &str, path: &str) -> Response<Bytes> {
    try_get(address, host, path).await.unwrap()
}

/// One GET over a connection of its own.
///
/// Errors: no connection, or no whole answer.
pub async fn try_get(address: SocketAddr, host: &str, path: &str) -> Result<Response<Bytes>, String> {
    let mut sender = connect(address).await?;
    exchange(&mut sender, request(Method::GET, host, path, "")).await
}

/// An HTTP/1.1 connection.
pub async fn connect(address: SocketAddr) -> Result<http1::SendRequest<Full<Bytes>>, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("cannot connect: {error}"))?;
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| format!("no HTTP: {error}"))?;
    tokio::spawn(connection);
    Ok(sender)
}

/// An HTTP/2 connection with prior knowledge.
pub async fn connect_http2(address: SocketAddr) -> Result<http2::SendRequest<Full<Bytes>>, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("cannot connect: {error}"))?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|error| format!("no HTTP/2: {error}"))?;
    tokio::spawn(connection);
    Ok(sender)
}

/// A request in origin form.
pub fn request(method: Method, host: &str, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder().method(method).uri(path).header("host", host).body(Full::new(body.into())).unwrap()
}

/// Sends a request and collects its answer.
pub async fn exchange(
    sender: &mut http1::SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, String> {
    sender.ready().await.map_err(|error| format!("connection is gone: {error}"))?;
    let response = sender.send_request(request).await.map_err(|error| format!("no answer: {error}"))?;
    collect(response).await
}

/// The whole answer.
pub async fn collect(response: Response<hyper::body::Incoming>) -> Result<Response<Bytes>, String> {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_err(|error| format!("broken body: {error}"))?.to_bytes();
    Ok(Response::from_parts(parts, body))
}
