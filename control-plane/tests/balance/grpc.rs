//! gRPC calls have keys too: metadata are headers.

use std::{collections::BTreeSet, convert::Infallible};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::Empty;
use hyper::{body::Incoming, client, server, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

use super::stage::{Application, Client, policy};

/// Answers every call with OK and its name, over HTTP/2 only.
async fn serve(name: &'static str) -> Application {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let answer = service_fn(move |request: Request<Incoming>| async move {
                assert_eq!(request.version(), Version::HTTP_2);
                let response = Response::builder().header("content-type", "application/grpc");
                let response = response.header("grpc-status", "0").header("x-name", name);
                Ok::<_, Infallible>(response.body(Empty::<Bytes>::new()).unwrap())
            });
            let connection = server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(connection.serve_connection(TokioIo::new(io), answer));
        }
    });
    Application::at(name, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_one_user_go_to_one_endpoint() {
    // A stateful gRPC service would see half of each user's calls.
    let all = [serve("a").await, serve("b").await, serve("c").await];
    let documents = policy("loadBalancer: {consistentHash: {httpHeaderName: x-user, maglev: {}}}");
    let sidecar = Client::start(&all, &documents, &[]);
    let io = TcpStream::connect(sidecar.http).await.unwrap();
    let (sender, connection) = client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    let call = |user: Option<usize>| {
        let mut sender = sender.clone();
        async move {
            let mut request = Request::post("http://app.shop/test.Notes/Unary")
                .header("content-type", "application/grpc")
                .header("te", "trailers");
            if let Some(user) = user {
                request = request.header("x-user", format!("user-{user}"));
            }
            let response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
            assert_eq!(response.headers()["grpc-status"], "0", "{response:?}");
            response.headers()["x-name"].to_str().unwrap().to_owned()
        }
    };
    let mut homes = BTreeSet::new();
    for user in 0..30 {
        let home = call(Some(user)).await;
        assert_eq!(home, call(Some(user)).await);
        homes.insert(home);
    }
    assert_eq!(homes.len(), 3);
    let mut anywhere = BTreeSet::new();
    for _ in 0..60 {
        anywhere.insert(call(None).await);
    }
    assert_eq!(anywhere.len(), 3);
}
