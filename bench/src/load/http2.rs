//! Our own generator for HTTP/2 and gRPC, on hyper: constant rates, streams of messages, and closed loops where h2load is missing.

use std::{
    cell::RefCell,
    convert::Infallible,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;
use http::{
    HeaderMap, Method, Request, StatusCode, Version,
    header::{CONTENT_TYPE, TE},
};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Bytes, Frame},
    client::conn::http2::{Builder, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::mpsc, task::LocalSet};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};

use super::{
    Aim, Load,
    constant_rate::{Schedule, on_schedules},
    histogram, record,
};
use crate::{
    chain::HOST,
    floor::Local,
    origin,
    process::on_core,
    scenario::{Client, Scenario},
};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Each of `streams` on each of `connections` asks again when it was answered, or sends the next message.
///
/// # Errors
/// When a connection breaks or an answer is not what it should be.
pub fn closed(aim: &Aim<'_>, connections: u32, streams: u32) -> Result<Load> {
    on_core(aim.core, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let latencies = Rc::new(RefCell::new(histogram()?));
        let started = Instant::now();
        let end = started + aim.time;
        LocalSet::new().block_on(&runtime, async {
            let mut tasks = Vec::new();
            for _ in 0..connections {
                let sender = connect(aim.entry).await?;
                for _ in 0..streams {
                    let question = Question::of(aim.scenario)?;
                    tasks.push(tokio::task::spawn_local(repeat(sender.clone(), question, end, Rc::clone(&latencies))));
                }
            }
            for task in tasks {
                task.await??;
            }
            anyhow::Ok(())
        })?;
        Ok(Load::of(&latencies.borrow(), started.elapsed()))
    })
}

/// One request at a time on each connection, each at its intended start.
///
/// # Errors
/// As [`closed`].
pub fn constant_rate(aim: &Aim<'_>, connections: u32, requests_per_second: u32) -> Result<Load> {
    on_schedules(aim, connections, requests_per_second, |schedule| ask(aim, schedule))
}

/// One request, or one message and its answer.
///
/// # Errors
/// As [`closed`]; or when it takes too long.
pub fn ask_once(entry: SocketAddr, scenario: &Scenario, patience: Duration) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let question = Question::of(scenario)?;
    LocalSet::new().block_on(&runtime, async {
        let asking = async {
            let mut sender = connect(entry).await?;
            if scenario.client == Client::GrpcStream {
                Conversation::open(&mut sender, &question).await?.exchange().await
            } else {
                question.ask(&mut sender).await
            }
        };
        tokio::time::timeout(patience, asking).await.context("no answer")?
    })
}

fn ask(aim: &Aim<'_>, mut schedule: Schedule) -> Result<Histogram<u64>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    let question = Question::of(aim.scenario)?;
    let mut latencies = histogram()?;
    let mut sender = local.block_on(&runtime, connect(aim.entry))?;
    while let Some(intended) = schedule.next() {
        local.block_on(&runtime, question.ask(&mut sender))?;
        record(&mut latencies, intended);
    }
    Ok(latencies)
}

async fn repeat(
    mut sender: SendRequest<Body>,
    question: Question,
    end: Instant,
    latencies: Rc<RefCell<Histogram<u64>>>,
) -> Result<()> {
    if question.client == Client::GrpcStream {
        let mut conversation = Conversation::open(&mut sender, &question).await?;
        while Instant::now() < end {
            let start = Instant::now();
            conversation.exchange().await?;
            record(&mut latencies.borrow_mut(), start);
        }
        return Ok(());
    }
    while Instant::now() < end {
        let start = Instant::now();
        question.ask(&mut sender).await?;
        record(&mut latencies.borrow_mut(), start);
    }
    Ok(())
}

async fn connect(entry: SocketAddr) -> Result<SendRequest<Body>> {
    let stream = TcpStream::connect(entry).await.with_context(|| format!("cannot connect to {entry}"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = Builder::new(Local).handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(connection);
    Ok(sender)
}

/// What is asked again and again.
struct Question {
    client: Client,
    uri: http::Uri,
    /// Empty: a GET.
    body: Bytes,
}

impl Question {
    fn of(scenario: &Scenario) -> Result<Self> {
        let uri = format!("http://{HOST}{}", scenario.path()).parse()?;
        let body = if scenario.client.is_grpc() {
            origin::message(scenario.request_bytes)
        } else {
            Bytes::from(vec![b'x'; scenario.request_bytes])
        };
        Ok(Self { client: scenario.client, uri, body })
    }

    fn request(&self, body: Body) -> Result<Request<Body>> {
        let method = if self.body.is_empty() { Method::GET } else { Method::POST };
        let mut request = Request::builder().method(method).uri(self.uri.clone()).version(Version::HTTP_2);
        if self.client.is_grpc() {
            request = request.header(CONTENT_TYPE, "application/grpc").header(TE, "trailers");
        }
        Ok(request.body(body)?)
    }

    async fn ask(&self, sender: &mut SendRequest<Body>) -> Result<()> {
        let body = if self.body.is_empty() {
            Empty::new().boxed_unsync()
        } else {
            Full::new(self.body.clone()).boxed_unsync()
        };
        sender.ready().await?;
        let response = sender.send_request(self.request(body)?).await?;
        let (head, mut body) = response.into_parts();
        let mut trailers = None;
        while let Some(frame) = body.frame().await {
            trailers = frame?.into_trailers().ok();
        }
        check(self.client, head.status, &head.headers, trailers.as_ref())
    }
}

/// What went wrong may stand in the status, in the trailers, or, without a body, among the headers.
fn check(client: Client, status: StatusCode, headers: &HeaderMap, trailers: Option<&HeaderMap>) -> Result<()> {
    if status != StatusCode::OK {
        bail!("the chain answered {status}");
    }
    if client.is_grpc() {
        let code = trailers.and_then(|trailers| trailers.get("grpc-status")).or_else(|| headers.get("grpc-status"));
        if code.is_none_or(|code| code != "0") {
            bail!("a call ended with grpc-status {code:?}");
        }
    }
    Ok(())
}

/// A gRPC stream on which each message is answered by one.
struct Conversation {
    messages: mpsc::Sender<Bytes>,
    answers: hyper::body::Incoming,
    message: Bytes,
    /// Bytes of answers that came too early: none, but a proxy may cut them into pieces.
    ahead: usize,
}

impl Conversation {
    async fn open(sender: &mut SendRequest<Body>, question: &Question) -> Result<Self> {
        let (messages, taken) = mpsc::channel::<Bytes>(1);
        let frames = ReceiverStream::new(taken).map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
        sender.ready().await?;
        // The first message goes along with the head: nginx passes neither on before it has some of the body.
        messages.send(question.body.clone()).await?;
        let response = sender.send_request(question.request(StreamBody::new(frames).boxed_unsync())?).await?;
        if response.status() != StatusCode::OK {
            bail!("the chain answered {}", response.status());
        }
        let mut opened = Self { messages, answers: response.into_body(), message: question.body.clone(), ahead: 0 };
        opened.answer().await?;
        Ok(opened)
    }

    async fn exchange(&mut self) -> Result<()> {
        self.messages.send(self.message.clone()).await.context("the stream was closed")?;
        self.answer().await
    }

    async fn answer(&mut self) -> Result<()> {
        while self.ahead < self.message.len() {
            let frame = self.answers.frame().await.context("the stream ended")??;
            match frame.into_data() {
                Ok(bytes) => self.ahead += bytes.len(),
                Err(trailers) => bail!("the stream ended early: {:?}", trailers.into_trailers()),
            }
        }
        self.ahead -= self.message.len();
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn failed_calls_give_no_figures() {
        // A proxy that refuses every call with 200 and a grpc-status would win.
        let with = |code: &str| HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())]);
        let none = HeaderMap::new();
        let ok = StatusCode::OK;
        assert!(check(Client::Grpc, ok, &none, Some(&with("0"))).is_ok());
        assert!(check(Client::Grpc, ok, &with("0"), None).is_ok());
        assert!(check(Client::Grpc, ok, &none, Some(&with("14"))).is_err());
        assert!(check(Client::Grpc, ok, &none, None).is_err());
        assert!(check(Client::Http2, ok, &none, None).is_ok());
        assert!(check(Client::Http2, StatusCode::BAD_GATEWAY, &none, None).is_err());
    }
}
