//! HTTP/1 to HTTP/2 and back, as between two sidecars.
//!
//! The one place that needs a client of HTTP/2 in memory: [`connect`] is to be pointed at the codec that the proxy's upstream uses.

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri, Version as HttpVersion, header, uri::Scheme};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_proxy::http::{Body, Downstream, headers, normalize::normalize, reply, serve::Version, upgrade};

use super::{
    conversation::{Origin, SETTINGS, forward, in_virtual_time, served, speak},
    strict,
};

/// A connection to the second sidecar.
async fn connect(origin: &Origin) -> Option<SendRequest<Body>> {
    let toward = origin.clone();
    let io = served(Version::Http2, move |request, downstream| forward(request, downstream, toward.clone()));
    let (sender, connection) = http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(io)).await.ok()?;
    tokio::spawn(connection);
    Some(sender)
}

/// The first sidecar: one connection for each request, so that they can be told apart.
async fn carry(request: Request<Body>, downstream: Downstream, origin: Origin) -> Response<Body> {
    let failed = |status| {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        response
    };
    let seen = downstream.seen;
    let (mut parts, body) = request.into_parts();
    if upgrade::wants_upgrade(&parts, seen).is_some() {
        return failed(StatusCode::NOT_IMPLEMENTED);
    }
    let target = match normalize(&mut parts, !body.is_end_stream(), seen, &SETTINGS.limits) {
        Ok(target) => target,
        Err(failure) => return reply::reply(&failure, false),
    };
    let Some(authority) = target.authority else { return failed(StatusCode::BAD_REQUEST) };
    headers::strip_hop_by_hop(&mut parts.headers, seen, None);
    parts.headers.remove(header::HOST);
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(authority);
    uri.path_and_query = parts.uri.path_and_query().cloned();
    let Ok(uri) = Uri::from_parts(uri) else { return failed(StatusCode::BAD_REQUEST) };
    parts.headers.insert(headers::ORIG_PROTO, http::HeaderValue::from_static("HTTP/1.1"));
    parts.uri = uri;
    parts.version = HttpVersion::HTTP_2;
    let Some(mut sender) = connect(&origin).await else { return failed(StatusCode::BAD_GATEWAY) };
    match sender.send_request(Request::from_parts(parts, body)).await {
        Ok(response) => {
            let (parts, body) = response.into_parts();
            let content: Bytes = match body.collect().await {
                Ok(content) => content.to_bytes(),
                Err(_) => return failed(StatusCode::BAD_GATEWAY),
            };
            Response::from_parts(parts, Body::full(content))
        }
        Err(_) => failed(StatusCode::BAD_GATEWAY),
    }
}

/// What leaves the second sidecar is what the strict reader found in what entered the first.
pub fn h1_to_h2_translate(said: &[u8]) {
    let origin = Origin::default();
    let heard = in_virtual_time(async {
        let toward = origin.clone();
        let io = served(Version::Http1, move |request, downstream| carry(request, downstream, toward.clone()));
        speak(io, std::iter::once(said)).await
    });
    let requests = origin.requests();
    let mut rest = said;
    let mut heard = heard.as_slice();
    for request in &requests {
        let Ok(Some(answer)) = strict::response(heard, &request.method, true) else { break };
        heard = &heard[answer.length..];
        let Ok(Some(strictly)) = strict::request(rest) else { break };
        rest = &rest[strictly.length..];
        assert_eq!((&request.method, &request.content), (&strictly.method, &strictly.content));
    }
}
