//! A connection between a client that is only bytes and an origin that is only bytes, with our own code in between, in memory and
//! in virtual time.
//!
//! Between the two stands what the journeys do with a request that has no rule: `normalize`, `strip_hop_by_hop`, and the request
//! written anew by the HTTP/1 client.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use http::{Request, Response, StatusCode, header};
use http_body::Body as _;
use outrigger_proxy::{
    arguments,
    drain::drain,
    http::{
        Body, Downstream, headers,
        http1::{
            client::{Connection, Rules},
            write::{Outgoing, Target},
        },
        normalize::normalize,
        seen::Seen,
        serve::{self, ServeSettings, Version},
        upgrade,
    },
    settings::Settings,
};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::strict;

pub static SETTINGS: LazyLock<Settings> = LazyLock::new(arguments::defaults);
static SERVE: LazyLock<ServeSettings> = LazyLock::new(|| ServeSettings::new(&SETTINGS, false));

/// Longer than every limit of time; the clock jumps there when nothing moves any more.
const FOR_EVER: Duration = Duration::from_secs(100_000);
/// Memory between two ends.
const PIPE_BYTES: usize = 64 * 1024;

/// Everything that was said on connections to the origin.
#[derive(Clone, Default)]
pub struct Origin {
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    says: Option<Arc<[u8]>>,
}

impl Origin {
    /// One that answers whatever it is asked with these bytes, and closes.
    pub fn that_says(answer: &[u8]) -> Self {
        Self { heard: Arc::default(), says: Some(answer.into()) }
    }

    fn connect(&self) -> Connection<DuplexStream> {
        let (near, far) = duplex(PIPE_BYTES);
        tokio::spawn(self.clone().answer(far));
        let limits = &SETTINGS.limits;
        let rules = Rules {
            head: serve::http1_head(limits),
            chunks: serve::http1_chunks(limits),
            interim: limits.interim_responses,
        };
        Connection::new(near, rules)
    }

    /// Reads requests as the strict reader does, and answers each.
    async fn answer(self, mut io: DuplexStream) {
        let place = {
            let mut heard = self.heard.lock();
            heard.push(Vec::new());
            heard.len() - 1
        };
        let mut read = 0;
        let mut bytes = vec![0; 4096];
        while let Ok(more @ 1..) = io.read(&mut bytes).await {
            loop {
                let request = {
                    let mut heard = self.heard.lock();
                    let all = &mut heard[place];
                    if read <= all.len() && !bytes.is_empty() {
                        all.extend_from_slice(&bytes[..more]);
                        bytes.clear();
                    }
                    strict::request(&all[read..])
                };
                let Ok(Some(request)) = request else { break };
                read += request.length;
                if let Some(answer) = &self.says {
                    let _ = io.write_all(answer).await;
                    return;
                }
                if request.method == "CONNECT" {
                    let _ = io.write_all(b"HTTP/1.1 501 Not Implemented\r\ncontent-length: 0\r\n\r\n").await;
                    return;
                }
                let content = if request.method == "HEAD" { "" } else { "origin" };
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{content}", 6);
                if io.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
            bytes.resize(4096, 0);
        }
    }

    /// Every whole request, in the order of connections; panics when something unsafe was written.
    pub fn requests(&self) -> Vec<strict::Request> {
        let heard = self.heard.lock();
        let read = |bytes: &Vec<u8>| match strict::requests(bytes) {
            Ok((requests, _)) => requests,
            Err(why) => panic!("{why}: {:?}", String::from_utf8_lossy(bytes)),
        };
        heard.iter().flat_map(read).collect()
    }
}

/// A request on its way to the origin, as a sidecar without rules would send it on.
pub async fn forward(request: Request<Body>, downstream: Downstream, origin: Origin) -> Response<Body> {
    let Downstream { mut seen, interim, .. } = downstream;
    let (mut parts, body) = request.into_parts();
    let wanted = upgrade::wants_upgrade(&parts, seen);
    headers::take_orig_proto(&mut parts.headers, &mut seen);
    let target = match normalize(&mut parts, !body.is_end_stream(), seen, &SETTINGS.limits) {
        Ok(target) => target,
        Err(failure) => return outrigger_proxy::http::reply::reply(&failure, false),
    };
    let Some(authority) = target.authority else { return status(StatusCode::BAD_REQUEST) };
    headers::request_id(&mut parts.headers, seen);
    headers::set_client_cert(&mut parts.headers, seen, None);
    headers::strip_hop_by_hop(&mut parts.headers, seen, None);
    parts.headers.remove(header::HOST);
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"));
    let mut target = Target::Origin(&path);
    let mut asks = None;
    match &wanted {
        Some(upgrade::Upgrade::Http1 { protocol }) => asks = http::HeaderValue::from_str(protocol).ok(),
        Some(upgrade::Upgrade::Connect) => target = Target::Authority(&authority),
        // What a WebSocket over HTTP/2 becomes is made elsewhere.
        Some(upgrade::Upgrade::ExtendedConnect { .. }) => return status(StatusCode::NOT_IMPLEMENTED),
        None => {}
    }
    let outgoing = Outgoing {
        method: &parts.method,
        target,
        host: &authority,
        headers: &parts.headers,
        own: &[],
        upgrade: asks.as_ref(),
    };
    let answer = origin.connect().send(&outgoing, body, Some(interim)).await;
    match answer {
        Ok(mut answer) if answer.status() != StatusCode::SWITCHING_PROTOCOLS => {
            let seen = Seen::of(answer.headers());
            headers::strip_hop_by_hop(answer.headers_mut(), seen, None);
            *answer
        }
        Ok(_) | Err(_) => status(StatusCode::BAD_GATEWAY),
    }
}

fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// Runs something with a clock that jumps.
pub fn in_virtual_time<F: Future>(run: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without sockets").block_on(run)
}

/// A connection that our server serves; what it hands over goes to `handler`.
pub fn served<H, F>(version: Version, handler: H) -> DuplexStream
where
    H: Fn(Request<Body>, Downstream) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (near, far) = duplex(PIPE_BYTES);
    tokio::spawn(async move {
        let (_trigger, watch) = drain();
        let _ = serve::serve(far, version, &SERVE, watch, handler, |_| (), |_| ()).await;
    });
    near
}

/// Says `pieces`, each after what the one before has caused, and hears all there is until the server closes.
pub async fn speak<'a>(io: DuplexStream, pieces: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let (mut read, mut write) = tokio::io::split(io);
    let pieces: Vec<Vec<u8>> = pieces.map(<[u8]>::to_vec).collect();
    let said = tokio::spawn(async move {
        for piece in pieces {
            if write.write_all(&piece).await.is_err() {
                return None;
            }
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
        }
        // Kept open: a client that ends its side gives up its requests.
        Some(write)
    });
    let mut heard = Vec::new();
    let _ = tokio::time::timeout(FOR_EVER, read.read_to_end(&mut heard)).await;
    said.abort();
    heard
}
