//! Applications of the tests, unaware of any mesh: an HTTP service for every version, and byte services.
//!
//! Each `serve_*` listens at once and runs until the host goes.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use bytes::Bytes;
use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{RData, Record, RecordType},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};
use tokio_stream::wrappers::ReceiverStream;

use super::host::Host;

/// What an application answers with.
pub type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// The state of one HTTP application.
#[derive(Debug, Default)]
pub struct Behaviour {
    /// Answer 503 to this many of the next requests.
    pub failures: AtomicU32,
    /// Requests seen.
    pub seen: AtomicU32,
}

/// An HTTP/1.1 and HTTP/2 application. Paths: `/` says how the request arrived (JSON), `/echo` gives the body back as it
/// comes, with its trailers, `/empty` is 204, `/flaky` and everything else fail as [`Behaviour`] says.
pub fn serve_http(host: &Host, address: SocketAddr, name: &'static str) -> Arc<Behaviour> {
    let behaviour = Arc::new(Behaviour::default());
    let state = Arc::clone(&behaviour);
    accept(host, address, move |stream| serve_one(stream, name, Arc::clone(&state)));
    behaviour
}

/// Hands every connection to `serve`, each in a task of its own.
pub fn accept<F, C>(host: &Host, address: SocketAddr, serve: F)
where
    F: Fn(TcpStream) -> C + Send + 'static,
    C: Future<Output = ()> + Send + 'static,
{
    let listener = host.run(async move { TcpListener::bind(address).await.unwrap() });
    host.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = stream.set_nodelay(true);
            tokio::spawn(serve(stream));
        }
    });
}

async fn serve_one(stream: TcpStream, name: &'static str, behaviour: Arc<Behaviour>) {
    let mut first = [0; 4];
    // A connection that says nothing is only somebody who looks whether we are there.
    let Ok(length) = stream.peek(&mut first).await else { return };
    let service = service_fn(move |request| answer(request, name, Arc::clone(&behaviour)));
    let io = TokioIo::new(stream);
    let _ = if first.starts_with(b"PRI ") && length == first.len() {
        http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await
    } else {
        http1::Builder::new().serve_connection(io, service).with_upgrades().await
    };
}

async fn answer(
    request: Request<Incoming>,
    name: &'static str,
    behaviour: Arc<Behaviour>,
) -> Result<Reply, Infallible> {
    behaviour.seen.fetch_add(1, Ordering::SeqCst);
    let fails = behaviour.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
    if fails.is_ok() {
        return Ok(whole(StatusCode::SERVICE_UNAVAILABLE, name));
    }
    Ok(match request.uri().path() {
        "/echo" => echo(request).await,
        "/empty" => whole(StatusCode::NO_CONTENT, ""),
        "/chunks" => chunks(),
        _ => report(request, name).await,
    })
}

/// How the request arrived.
async fn report(request: Request<Incoming>, name: &str) -> Reply {
    let (parts, body) = request.into_parts();
    let headers: serde_json::Map<String, serde_json::Value> = parts
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    let collected = body.collect().await;
    let bytes = collected.map(|body| body.to_bytes()).unwrap_or_default();
    let text = json!({
        "name": name,
        "method": parts.method.as_str(),
        "path": parts.uri.path(),
        "version": format!("{:?}", parts.version),
        "headers": headers,
        "body_bytes": bytes.len(),
    })
    .to_string();
    // RFC 9110 §9.3.2: HEAD is answered like GET, without the content; hyper leaves it out and keeps its length.
    let mut reply = whole(StatusCode::OK, text.clone());
    if parts.method == Method::HEAD {
        reply.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(text.len()));
    }
    reply
}

/// The body as it comes, trailers included.
async fn echo(request: Request<Incoming>) -> Reply {
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, Infallible>>(4);
    let te = request.headers().get(header::TRAILER).cloned();
    let mut body = request.into_body();
    tokio::spawn(async move {
        while let Some(Ok(frame)) = body.frame().await {
            if sender.send(Ok(frame)).await.is_err() {
                return;
            }
        }
    });
    let mut reply = Response::new(StreamBody::new(ReceiverStream::new(receiver)).boxed_unsync());
    if let Some(names) = te {
        reply.headers_mut().insert(header::TRAILER, names);
    }
    reply
}

/// Three chunks, and trailers.
fn chunks() -> Reply {
    let mut trailers = HeaderMap::new();
    trailers.insert(HeaderName::from_static("x-sum"), HeaderValue::from_static("6"));
    let frames = [
        Frame::data(Bytes::from_static(b"one")),
        Frame::data(Bytes::from_static(b"two")),
        Frame::data(Bytes::from_static(b"three")),
        Frame::trailers(trailers),
    ];
    let stream = futures_util::stream::iter(frames.map(Ok));
    let mut reply = Response::new(StreamBody::new(stream).boxed_unsync());
    reply.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-sum"));
    reply
}

fn whole(status: StatusCode, text: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(text.into()).boxed_unsync());
    *reply.status_mut() = status;
    reply
}

/// Gives back what it gets, and closes its side when the client closed the other.
pub fn serve_echo(host: &Host, address: SocketAddr) {
    accept(host, address, |mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    });
}

/// Closes its side first: says all it has, half-closes, and goes on reading to the end. A second client, which
/// sends "what?", is told how many bytes came after our end.
pub fn serve_closes_first(host: &Host, address: SocketAddr) {
    let last = Arc::new(tokio::sync::watch::channel(0_usize).0);
    accept(host, address, move |mut stream| {
        let last = Arc::clone(&last);
        async move {
            let mut word = [0; 5];
            if stream.read_exact(&mut word).await.is_err() {
                return;
            }
            if word == *b"what?" {
                let mut changes = last.subscribe();
                let Ok(bytes) = changes.wait_for(|bytes| *bytes > 0).await.map(|bytes| *bytes) else { return };
                let _ = stream.write_all(bytes.to_string().as_bytes()).await;
                return;
            }
            let _ = stream.write_all(b"all I have").await;
            let _ = stream.shutdown().await;
            let mut rest = Vec::new();
            if stream.read_to_end(&mut rest).await.is_ok() {
                last.send_replace(rest.len());
            }
        }
    });
}

/// Breaks off in the middle of an answer to `r`; after `w`, waits to see how the client ends; tells it to who sends `?`:
/// "reset", or "end" for an orderly one.
pub fn serve_resets(host: &Host, address: SocketAddr) {
    let seen = Arc::new(tokio::sync::watch::channel("").0);
    accept(host, address, move |mut stream| {
        let seen = Arc::clone(&seen);
        async move {
            match stream.read_u8().await {
                Ok(b'r') => {
                    let _ = stream.write_all(b"partial").await;
                    // The client has it once it says so; a reset would overtake it otherwise.
                    let _ = stream.read_u8().await;
                    reset(stream);
                }
                Ok(b'w') => {
                    let _ = stream.write_all(b"go on").await;
                    let end = stream.read_to_end(&mut Vec::new()).await;
                    seen.send_replace(if end.is_err() { "reset" } else { "end" });
                }
                Ok(_) => {
                    let mut changes = seen.subscribe();
                    let Ok(word) = changes.wait_for(|word| !word.is_empty()).await.map(|word| *word) else { return };
                    let _ = stream.write_all(word.as_bytes()).await;
                }
                Err(_) => {}
            }
        }
    });
}

/// Ends a connection the hard way.
pub fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
}

/// A banner before the client says anything, as mail and database servers do; then one line, then the end.
pub fn serve_banner(host: &Host, address: SocketAddr, banner: &'static str) {
    accept(host, address, move |mut stream| async move {
        let talk = async {
            stream.write_all(banner.as_bytes()).await?;
            let mut line = vec![0; 64];
            let length = stream.read(&mut line).await?;
            stream.write_all(&line[..length]).await?;
            stream.shutdown().await
        };
        let _: io::Result<()> = talk.await;
    });
}

/// A WebSocket service that gives back what it gets.
pub fn serve_websocket(host: &Host, address: SocketAddr) {
    use futures_util::{SinkExt, StreamExt};
    accept(host, address, |stream| async move {
        let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
        // After a Close the library answers it while it is asked for the next message, which is none.
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                break;
            }
        }
    });
}

/// A forward proxy that opens every tunnel that CONNECT asks for, and gives back what comes through it.
pub fn serve_tunnel(host: &Host, address: SocketAddr) {
    accept(host, address, |stream| async move {
        let service = service_fn(|mut request: Request<Incoming>| async move {
            if request.method() != Method::CONNECT {
                return Ok::<_, Infallible>(whole(StatusCode::METHOD_NOT_ALLOWED, "only CONNECT"));
            }
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let Ok(tunnel) = upgrade.await else { return };
                let (mut read, mut write) = tokio::io::split(TokioIo::new(tunnel));
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
            Ok(whole(StatusCode::OK, ""))
        });
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
    });
}

/// A name server that knows one name; every other does not exist.
pub fn serve_names(host: &Host, address: SocketAddr, name: &'static str, known: Ipv4Addr) {
    let socket = host.run(async move { UdpSocket::bind(address).await.unwrap() });
    host.spawn(async move {
        let mut bytes = vec![0; 4096];
        loop {
            let (length, from) = socket.recv_from(&mut bytes).await.unwrap();
            let Ok(mut message) = Message::from_vec(&bytes[..length]) else { continue };
            message.metadata.message_type = MessageType::Response;
            message.metadata.recursion_available = true;
            let asked = message.queries.first().map(|query| (query.name().clone(), query.query_type()));
            match asked {
                Some((asked, kind)) if asked.to_ascii().trim_end_matches('.') == name => {
                    if kind == RecordType::A {
                        message.answers.push(Record::from_rdata(asked, 60, RData::A(known.into())));
                    }
                }
                _ => message.metadata.response_code = ResponseCode::NXDomain,
            }
            let _ = socket.send_to(&message.to_vec().unwrap(), from).await;
        }
    });
}
