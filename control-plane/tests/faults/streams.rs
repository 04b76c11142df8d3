//! Connections that stay open over a fault: WebSockets and a gRPC stream that talks both ways.
//!
//! Each sends a numbered message again and again and waits for its echo; a missing, doubled or foreign echo, or an end
//! that nobody asked for, is told by [`Streams::stop`].

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{SinkExt as _, StreamExt as _};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest as _};
use tonic_prost::ProstCodec;

use super::{application::TALK, load::Front};

/// Longest wait for one echo.
const ECHO: Duration = Duration::from_secs(5);

/// Open streams.
pub struct Streams {
    stop: Arc<AtomicBool>,
    echoes: Arc<AtomicUsize>,
    tasks: JoinSet<Result<(), String>>,
}

impl Streams {
    /// Opens `websockets` WebSockets and one gRPC stream; returns when all are open. Each speaks every `pause`.
    pub async fn open(front: &Front, websockets: usize, pause: Duration) -> Self {
        let (stop, echoes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        for number in 0..websockets {
            let url = format!("ws://{}/ws", front.authority);
            let socket = TcpStream::connect(front.address).await.unwrap();
            let (mut socket, _) =
                tokio_tungstenite::client_async(url.into_client_request().unwrap(), socket).await.unwrap();
            let (stop, echoes) = (Arc::clone(&stop), Arc::clone(&echoes));
            tasks.spawn(async move {
                let wrong = |what: String| format!("WebSocket {number}: {what}");
                for turn in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let said = format!("ws-{number}-{turn}");
                    socket.send(Message::text(said.clone())).await.map_err(|error| wrong(error.to_string()))?;
                    let heard = match tokio::time::timeout(ECHO, socket.next()).await {
                        Ok(Some(Ok(Message::Text(heard)))) => heard.to_string(),
                        other => return Err(wrong(format!("no echo of {said}: {other:?}"))),
                    };
                    check(&said, &heard).map_err(wrong)?;
                    echoes.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(pause).await;
                }
                socket.close(None).await.map_err(|error| wrong(error.to_string()))
            });
        }
        let (says, heard) = talk(front).await;
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&echoes));
        tasks.spawn(async move {
            keep_talking(says, heard, stopped, counted, pause).await.map_err(|e| format!("gRPC: {e}"))
        });
        Self { stop, echoes, tasks }
    }

    /// Echoes so far.
    pub fn echoes(&self) -> usize {
        self.echoes.load(Ordering::Relaxed)
    }

    /// Closes all; the error tells what went wrong with any of them meanwhile.
    pub async fn stop(mut self) -> Result<usize, String> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap()?;
        }
        Ok(self.echoes.load(Ordering::Relaxed))
    }
}

type Says = mpsc::Sender<String>;

/// Opens a gRPC stream; it is open when the head of the answer is there.
pub async fn talk(front: &Front) -> (Says, tonic::Streaming<String>) {
    let socket = TcpStream::connect(front.address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let (sender, connection) =
        http2::handshake::<_, _, tonic::body::Body>(TokioExecutor::new(), TokioIo::new(socket)).await.unwrap();
    tokio::spawn(connection);
    let origin = format!("http://{}", front.authority).parse().unwrap();
    let channel = Channel(sender);
    let mut client = tonic::client::Grpc::with_origin(channel, origin);
    client.ready().await.unwrap();
    let (says, said) = mpsc::channel(4);
    says.send("hello".to_owned()).await.unwrap();
    let request = tonic::Request::new(ReceiverStream::new(said));
    let codec = ProstCodec::<String, String>::default();
    let answer = client.streaming(request, TALK.parse().unwrap(), codec).await.unwrap();
    let mut heard = answer.into_inner();
    let first = heard.message().await.unwrap().unwrap();
    check("hello", &first).unwrap();
    (says, heard)
}

async fn keep_talking(
    says: Says,
    mut heard: tonic::Streaming<String>,
    stop: Arc<AtomicBool>,
    echoes: Arc<AtomicUsize>,
    pause: Duration,
) -> Result<(), String> {
    for turn in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        exchange(&says, &mut heard, &format!("grpc-{turn}")).await?;
        echoes.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(pause).await;
    }
    drop(says);
    match heard.message().await {
        Ok(None) => Ok(()),
        other => Err(format!("no clean end: {other:?}")),
    }
}

/// Says something and waits for its echo.
pub async fn exchange(says: &Says, heard: &mut tonic::Streaming<String>, what: &str) -> Result<(), String> {
    says.send(what.to_owned()).await.map_err(|_| format!("the stream takes nothing more at {what}"))?;
    match tokio::time::timeout(ECHO, heard.message()).await {
        Ok(Ok(Some(echo))) => check(what, &echo),
        other => Err(format!("no echo of {what}: {other:?}")),
    }
}

fn check(said: &str, heard: &str) -> Result<(), String> {
    match heard.split_once(' ') {
        Some((_, echo)) if echo == said => Ok(()),
        _ => Err(format!("said {said}, heard {heard}")),
    }
}

/// One HTTP/2 connection as tonic wants it.
struct Channel(http2::SendRequest<tonic::body::Body>);

impl tonic::codegen::Service<http::Request<tonic::body::Body>> for Channel {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
