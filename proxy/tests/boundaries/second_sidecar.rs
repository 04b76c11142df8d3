//! HTTP/1 to HTTP/2 and back, as between two sidecars.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use outrigger_proxy::http::{
    Body, Downstream, headers,
    http2::{
        RequestLine, Rules,
        client::{self, Pings},
    },
    normalize::normalize,
    reply,
    serve::Version,
    upgrade,
};

use super::{
    conversation::{Origin, SETTINGS, forward, in_virtual_time, served, speak},
    strict,
};

/// A connection to the second sidecar.
fn connect(origin: &Origin) -> client::Connection {
    let toward = origin.clone();
    let io = served(Version::Http2, move |request, downstream| forward(request, downstream, toward.clone()));
    let pings = Pings { interval: Duration::from_secs(10), timeout: Duration::from_secs(5) };
    client::open(io, Rules::new(&SETTINGS.limits, 0), pings, |_| ())
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
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let line = RequestLine { method: &parts.method, authority: &authority, path };
    let own = [(headers::ORIG_PROTO, headers::HTTP_11)];
    let outgoing = client::Outgoing { line, headers: &parts.headers, own: &own };
    let Some(answering) = connect(&origin).send(&outgoing, body, Some(downstream.interim)) else {
        return failed(StatusCode::BAD_GATEWAY);
    };
    match answering.await {
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
