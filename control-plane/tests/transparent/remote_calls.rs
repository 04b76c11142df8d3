//! gRPC with a real tonic service: all kinds of call, trailers, deadlines, status codes.

use std::time::Duration;

use tonic::{Code, Request};

use crate::{
    mesh::grpc::{Client, Note},
    world,
};

const AUTHORITY: &str = "notes.shop.svc.cluster.local:50051";

#[test]
fn every_kind_of_call_works() {
    // Unary, client streaming, server streaming, and both at once.
    let Some(world) = world() else { return };
    let address = world.service("notes.shop", 50051);
    world.on_web(async move {
        let mut client = Client::connect(address, AUTHORITY).await;
        let mut request = Request::new(Note::new("hello", 0));
        request.metadata_mut().insert("x-ask", "kept".parse().unwrap());
        let answer = client.unary(request).await.unwrap();
        assert_eq!(answer.metadata().get("x-ask").unwrap(), "kept");
        assert!(answer.metadata().get("x-forwarded-client-cert").is_some());
        assert_eq!(answer.into_inner(), Note::new("hello", 0));

        let all = client.collect((1..=100).map(|number| Note::new("x", number)).collect()).await.unwrap();
        assert_eq!((all.text.len(), all.number), (100, 5050));

        let mut counted = client.count(Note::new("count", 100)).await.unwrap();
        for number in 1..=100 {
            assert_eq!(counted.message().await.unwrap().unwrap().number, number);
        }
        assert_eq!(counted.message().await.unwrap(), None);

        // Each answer comes before the next question: nothing on the way collects.
        let (questions, receiver) = tokio::sync::mpsc::channel(1);
        let mut answers = client.chat(receiver).await.unwrap();
        for number in 0..20 {
            questions.send(Note::new("ping", number)).await.unwrap();
            assert_eq!(answers.message().await.unwrap().unwrap(), Note::new("ping", number + 1));
        }
        drop(questions);
        assert_eq!(answers.message().await.unwrap(), None);
    });
}

#[test]
fn every_status_comes_with_its_message_and_trailers() {
    // A status that became another, or lost its details, leads callers astray.
    let Some(world) = world() else { return };
    let address = world.service("notes.shop", 50051);
    world.on_web(async move {
        let mut client = Client::connect(address, AUTHORITY).await;
        for code in (1..=16).map(Code::from) {
            // UNAVAILABLE is what a mesh may retry; the caller still learns it in the end.
            let note = Note::new("é %", u32::try_from(i32::from(code)).unwrap());
            let status = client.unary(Request::new(note)).await.unwrap_err();
            assert_eq!((status.code(), status.message()), (code, "wanted: é %"));
            assert_eq!(status.metadata().get("x-trailer").unwrap(), "kept");
        }
        let mut broken = client.count(Note::new("break", 2)).await.unwrap();
        assert_eq!(broken.message().await.unwrap().unwrap().number, 1);
        assert_eq!(broken.message().await.unwrap().unwrap().number, 2);
        assert_eq!(broken.message().await.unwrap_err().code(), Code::DataLoss);
        assert_eq!(client.unknown().await.code(), Code::Unimplemented);
    });
}

#[test]
fn a_deadline_is_kept_although_the_service_never_answers() {
    // grpc-timeout is a promise to the caller; the service here does not know about deadlines.
    let Some(world) = world() else { return };
    let address = world.service("notes.shop", 50051);
    world.on_web(async move {
        let mut client = Client::connect(address, AUTHORITY).await;
        let mut request = Request::new(Note::new("sleep", 0));
        request.set_timeout(Duration::from_millis(300));
        let status = client.unary(request).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        // The connection is as good as before.
        assert!(client.unary(Request::new(Note::new("hello", 0))).await.is_ok());
    });
}
