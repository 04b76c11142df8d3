//! The server behind every chain, as cheap as it can be: it shares a core with the load generator.
//!
//! HTTP on one port: HTTP/1.1 by hand with one fixed response, HTTP/2 and gRPC by hyper when a connection starts with the
//! preface (RFC 9113 §3.4). Raw TCP is another mode: the first byte of a connection says what to do.

use std::{convert::Infallible, net::SocketAddr};

use anyhow::{Context as _, Result};
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, Either, Full, StreamBody};
use hyper::{
    body::{Bytes, Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::LocalSet,
};

use crate::floor::Local;

/// gRPC method that answers once.
pub const UNARY: &str = "/bench.Bench/Unary";
/// gRPC method that answers each message with one.
pub const STREAM: &str = "/bench.Bench/Stream";
/// First byte of a raw connection: send without end.
pub const DOWNLOAD: u8 = b'D';
/// First byte of a raw connection: take without end.
pub const UPLOAD: u8 = b'U';
/// First byte of a raw connection: send back what comes.
pub const ECHO: u8 = b'E';

const HEAD_END: &[u8] = b"\r\n\r\n";
const BUFFER_BYTES: usize = 16 * 1024;
const RAW_BUFFER_BYTES: usize = 256 * 1024;
/// Longest client preface that tells HTTP/2 from HTTP/1.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// Answers HTTP until it is killed.
///
/// # Errors
/// When it cannot listen.
pub fn run_http(listen: SocketAddr, response_bytes: usize) -> Result<()> {
    let mut response =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {response_bytes}\r\n\r\n").into_bytes();
    response.resize(response.len() + response_bytes, b'x');
    let response: &'static [u8] = response.leak();
    accept(listen, move |stream| answer_http(stream, response, response_bytes))
}

/// Answers raw connections until it is killed.
///
/// # Errors
/// When it cannot listen.
pub fn run_tcp(listen: SocketAddr) -> Result<()> {
    accept(listen, |stream| async move {
        // A connection that breaks is the load generator's to notice.
        let _ = answer_raw(stream).await;
    })
}

fn accept<F: Future<Output = ()> + 'static>(listen: SocketAddr, answer: impl Fn(TcpStream) -> F) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::task::spawn_local(answer(stream));
        }
    })
}

async fn answer_http(stream: TcpStream, response: &'static [u8], response_bytes: usize) {
    let mut start = [0; PREFACE.len()];
    // The preface comes in one piece from every client there is here; what is shorter is no preface.
    match stream.peek(&mut start).await {
        Ok(bytes) if bytes > 0 && PREFACE.starts_with(&start[..bytes]) => answer_http2(stream, response_bytes).await,
        Ok(bytes) if bytes > 0 => answer_http1(stream, response).await,
        _ => {}
    }
}

async fn answer_http1(mut stream: TcpStream, response: &'static [u8]) {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut filled = 0;
    loop {
        // Answers in turn what came in one read.
        while let Some(end) = buffer[..filled].windows(HEAD_END.len()).position(|window| window == HEAD_END) {
            let head_end = end + HEAD_END.len();
            let body = body_of(&buffer[..head_end]);
            buffer.copy_within(head_end..filled, 0);
            filled -= head_end;
            if !skip(&mut stream, &mut buffer, &mut filled, body).await || stream.write_all(response).await.is_err() {
                return;
            }
        }
        if filled == buffer.len() {
            return;
        }
        match stream.read(&mut buffer[filled..]).await {
            Ok(0) | Err(_) => return,
            Ok(bytes) => filled += bytes,
        }
    }
}

/// How a request's body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Bytes(usize),
    Chunked,
}

/// Of a request head. A GET is not looked at further: most requests are.
fn body_of(head: &[u8]) -> Body {
    if head.starts_with(b"GET ") {
        return Body::Bytes(0);
    }
    for line in head.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            let bytes = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
            return Body::Bytes(bytes.unwrap_or(0));
        }
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            return Body::Chunked;
        }
    }
    Body::Bytes(0)
}

/// Reads a body away; what follows it stays in the buffer. False when the connection broke.
async fn skip(stream: &mut TcpStream, buffer: &mut [u8], filled: &mut usize, body: Body) -> bool {
    match body {
        Body::Bytes(bytes) => skip_bytes(stream, buffer, filled, bytes).await,
        Body::Chunked => loop {
            let Some(line_end) = buffer[..*filled].windows(2).position(|window| window == b"\r\n") else {
                match stream.read(&mut buffer[*filled..]).await {
                    Ok(0) | Err(_) => return false,
                    Ok(bytes) => *filled += bytes,
                }
                continue;
            };
            let digits = String::from_utf8_lossy(&buffer[..line_end]).into_owned();
            let Ok(size) = usize::from_str_radix(digits.trim(), 16) else { return false };
            // Size line, data, and the line end after it; no trailers are sent here.
            if !skip_bytes(stream, buffer, filled, line_end + 2 + size + 2).await {
                return false;
            }
            if size == 0 {
                return true;
            }
        },
    }
}

async fn skip_bytes(stream: &mut TcpStream, buffer: &mut [u8], filled: &mut usize, mut bytes: usize) -> bool {
    loop {
        let here = bytes.min(*filled);
        buffer.copy_within(here..*filled, 0);
        *filled -= here;
        bytes -= here;
        if bytes == 0 {
            return true;
        }
        match stream.read(buffer).await {
            Ok(0) | Err(_) => return false,
            Ok(read) => *filled = read,
        }
    }
}

type GrpcBody = http_body_util::combinators::BoxBody<Bytes, hyper::Error>;

async fn answer_http2(stream: TcpStream, response_bytes: usize) {
    let plain = Bytes::from(vec![b'x'; response_bytes]);
    let message = message(response_bytes);
    let service = service_fn(move |request: Request<Incoming>| {
        let (plain, message) = (plain.clone(), message.clone());
        async move {
            let is_grpc = request.headers().get(CONTENT_TYPE).is_some_and(|value| value == "application/grpc");
            let body = match (is_grpc, request.uri().path()) {
                (true, STREAM) => Either::Right(echo(request.into_body())),
                (true, _) => {
                    let _ = request.into_body().collect().await;
                    Either::Right(with_trailers(message))
                }
                (false, _) => {
                    let _ = request.into_body().collect().await;
                    Either::Left(Full::new(plain))
                }
            };
            let mut response = Response::new(body);
            let kind = if is_grpc { "application/grpc" } else { "text/plain" };
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            Ok::<_, Infallible>(response)
        }
    });
    let _ = http2::Builder::new(Local)
        .max_concurrent_streams(1024)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(16 << 20)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// A gRPC message of so many bytes, with its prefix: flag and length.
pub fn message(bytes: usize) -> Bytes {
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes());
    framed.resize(framed.len() + bytes, b'x');
    framed.into()
}

fn succeeded() -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))])
}

fn with_trailers(message: Bytes) -> GrpcBody {
    let frames = [Ok(Frame::data(message)), Ok(Frame::trailers(succeeded()))];
    StreamBody::new(futures_util::stream::iter(frames)).boxed()
}

/// The bytes of the request as they come, then trailers.
fn echo(body: Incoming) -> GrpcBody {
    body.with_trailers(async { Some(Ok(succeeded())) }).boxed()
}

async fn answer_raw(mut stream: TcpStream) -> std::io::Result<()> {
    let what = stream.read_u8().await?;
    let mut buffer = vec![b'x'; RAW_BUFFER_BYTES];
    match what {
        DOWNLOAD => loop {
            stream.write_all(&buffer).await?;
        },
        UPLOAD => while stream.read(&mut buffer).await? > 0 {},
        ECHO => loop {
            match stream.read(&mut buffer).await? {
                0 => break,
                bytes => stream.write_all(&buffer[..bytes]).await?,
            }
        },
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn bodies_end_where_their_heads_say() {
        // The rest of a body would be read as the next request, and an upload would never be answered.
        for (head, body) in [
            ("GET / HTTP/1.1\r\ncontent-length: 9\r\n\r\n", Body::Bytes(0)),
            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n", Body::Bytes(12)),
            ("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", Body::Chunked),
            ("POST / HTTP/1.1\r\nhost: x\r\n\r\n", Body::Bytes(0)),
        ] {
            assert_eq!(body_of(head.as_bytes()), body, "{head}");
        }
    }

    #[tokio::test]
    async fn requests_with_bodies_are_answered_one_by_one() {
        // A proxy that sends a body in chunks, or two requests at once, would hang in front of this server.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let serving = tokio::spawn(answer_http1(server, b"ok."));
        let large = vec![b'y'; 3 * BUFFER_BYTES];
        client.write_all(b"GET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc").await.unwrap();
        client.write_all(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n").await.unwrap();
        client.write_all(format!("{:x}\r\n", large.len()).as_bytes()).await.unwrap();
        client.write_all(&large).await.unwrap();
        client.write_all(b"\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n").await.unwrap();
        client.shutdown().await.unwrap();
        let mut answers = String::new();
        client.read_to_string(&mut answers).await.unwrap();
        assert_eq!(answers, "ok.ok.ok.ok.");
        serving.await.unwrap();
    }
}
