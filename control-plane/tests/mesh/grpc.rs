//! A real gRPC service and client on tonic, with all four kinds of call.
//!
//! What code generators would write, written by hand over the same runtime: the messages derive `prost::Message`.

use std::{net::SocketAddr, pin::Pin};

use http::{Request, Response, Uri, uri::PathAndQuery};
use hyper::{body::Incoming, client::conn::http2::SendRequest, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Code, Status, Streaming, body::Body, codegen::Service, metadata::MetadataValue};
use tonic_prost::ProstCodec;

use super::{apps, host::Host};

/// The one message.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Note {
    #[prost(string, tag = "1")]
    pub text: String,
    #[prost(uint32, tag = "2")]
    pub number: u32,
}

impl Note {
    pub fn new(text: &str, number: u32) -> Self {
        Self { text: text.to_owned(), number }
    }
}

type Codec = ProstCodec<Note, Note>;
type Notes = Pin<Box<dyn Stream<Item = Result<Note, Status>> + Send>>;

/// Serves `test.Notes` with the methods Unary, Collect (client streaming), Count (server streaming), Chat (both).
pub fn serve(host: &Host, address: SocketAddr) {
    apps::accept(host, address, |stream: TcpStream| async move {
        let service =
            service_fn(
                |request: Request<Incoming>| async move { Ok::<_, std::convert::Infallible>(route(request).await) },
            );
        let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
    });
}

async fn route(request: Request<Incoming>) -> Response<Body> {
    let request = request.map(Body::new);
    let mut grpc = tonic::server::Grpc::new(Codec::default());
    match request.uri().path() {
        "/test.Notes/Unary" => grpc.unary(Unary, request).await,
        "/test.Notes/Collect" => grpc.client_streaming(Collect, request).await,
        "/test.Notes/Count" => grpc.server_streaming(Count, request).await,
        "/test.Notes/Chat" => grpc.streaming(Chat, request).await,
        _ => Status::unimplemented("no such method").into_http(),
    }
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<tonic::Response<T>, Status>> + Send>>;

struct Unary;

impl tonic::server::UnaryService<Note> for Unary {
    type Response = Note;
    type Future = Answer<Note>;

    /// Echoes; a number above zero is the status code to fail with, "sleep" never answers.
    fn call(&mut self, request: tonic::Request<Note>) -> Self::Future {
        Box::pin(async move {
            let metadata = request.metadata().clone();
            let note = request.into_inner();
            if note.text == "sleep" {
                std::future::pending::<()>().await;
            }
            if note.number > 0 {
                let mut status =
                    Status::new(Code::from(i32::try_from(note.number).unwrap()), format!("wanted: {}", note.text));
                status.metadata_mut().insert("x-trailer", MetadataValue::from_static("kept"));
                return Err(status);
            }
            let mut response = tonic::Response::new(note);
            for key in ["x-forwarded-client-cert", "x-ask"] {
                if let Some(value) = metadata.get(key) {
                    response.metadata_mut().insert(key, value.clone());
                }
            }
            Ok(response)
        })
    }
}

struct Collect;

impl tonic::server::ClientStreamingService<Note> for Collect {
    type Response = Note;
    type Future = Answer<Note>;

    fn call(&mut self, request: tonic::Request<Streaming<Note>>) -> Self::Future {
        Box::pin(async move {
            let mut notes = request.into_inner();
            let mut all = Note::default();
            while let Some(note) = notes.message().await? {
                all.text.push_str(&note.text);
                all.number += note.number;
            }
            Ok(tonic::Response::new(all))
        })
    }
}

struct Count;

impl tonic::server::ServerStreamingService<Note> for Count {
    type Response = Note;
    type ResponseStream = Notes;
    type Future = Answer<Notes>;

    /// Counts to the number; then ends well, or with DATA_LOSS when the text says so.
    fn call(&mut self, request: tonic::Request<Note>) -> Self::Future {
        Box::pin(async move {
            let note = request.into_inner();
            let fails = note.text == "break";
            let counted = (1..=note.number).map(|number| Ok(Note::new("count", number)));
            let end = fails.then(|| Err(Status::data_loss("broken off")));
            let stream: Notes = Box::pin(tokio_stream::iter(counted.chain(end)));
            Ok(tonic::Response::new(stream))
        })
    }
}

struct Chat;

impl tonic::server::StreamingService<Note> for Chat {
    type Response = Note;
    type ResponseStream = Notes;
    type Future = Answer<Notes>;

    /// Answers every note as it comes.
    fn call(&mut self, request: tonic::Request<Streaming<Note>>) -> Self::Future {
        Box::pin(async move {
            let answers = request.into_inner().map(|note| note.map(|note| Note::new(&note.text, note.number + 1)));
            let stream: Notes = Box::pin(answers);
            Ok(tonic::Response::new(stream))
        })
    }
}

/// A gRPC channel over one HTTP/2 connection.
#[derive(Clone)]
pub struct Channel {
    sender: SendRequest<Body>,
    authority: &'static str,
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        self.sender.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(http::uri::Scheme::HTTP);
        parts.authority = Some(self.authority.parse().unwrap());
        *request.uri_mut() = Uri::from_parts(parts).unwrap();
        Box::pin(self.sender.send_request(request))
    }
}

/// Calls `test.Notes`.
#[derive(Clone)]
pub struct Client {
    grpc: tonic::client::Grpc<Channel>,
}

impl Client {
    pub async fn connect(address: SocketAddr, authority: &'static str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { grpc: tonic::client::Grpc::new(Channel { sender, authority }) }
    }

    pub async fn unary(&mut self, request: tonic::Request<Note>) -> Result<tonic::Response<Note>, Status> {
        self.grpc.ready().await.unwrap();
        self.grpc.unary(request, path("Unary"), Codec::default()).await
    }

    pub async fn collect(&mut self, notes: Vec<Note>) -> Result<Note, Status> {
        self.grpc.ready().await.unwrap();
        let request = tonic::Request::new(tokio_stream::iter(notes));
        Ok(self.grpc.client_streaming(request, path("Collect"), Codec::default()).await?.into_inner())
    }

    pub async fn count(&mut self, note: Note) -> Result<Streaming<Note>, Status> {
        self.grpc.ready().await.unwrap();
        let request = tonic::Request::new(note);
        Ok(self.grpc.server_streaming(request, path("Count"), Codec::default()).await?.into_inner())
    }

    pub async fn chat(&mut self, notes: tokio::sync::mpsc::Receiver<Note>) -> Result<Streaming<Note>, Status> {
        self.grpc.ready().await.unwrap();
        let request = tonic::Request::new(ReceiverStream::new(notes));
        Ok(self.grpc.streaming(request, path("Chat"), Codec::default()).await?.into_inner())
    }

    pub async fn unknown(&mut self) -> Status {
        self.grpc.ready().await.unwrap();
        let request = tonic::Request::new(Note::default());
        self.grpc.unary::<Note, Note, _>(request, path("Nothing"), Codec::default()).await.unwrap_err()
    }
}

fn path(method: &str) -> PathAndQuery {
    PathAndQuery::try_from(format!("/test.Notes/{method}")).unwrap()
}
