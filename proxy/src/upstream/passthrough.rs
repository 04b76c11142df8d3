//! Unknown destinations: straight to the address the application wanted, in the plaintext it sent.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use super::{
    backend::{Backend, BackendState, RouteBackend},
    dial::Transport,
    endpoint::{Endpoint, EndpointKey},
    pool::IdleLimits,
};
use crate::{
    config::view::{self, Health, Policy},
    failure::{Failure, Reason},
    host,
    telemetry::LabelId,
};

/// Addresses tried for one name.
const ADDRESSES: usize = 4;
/// Destinations whose pooled connections are remembered; past it, those not in use are forgotten.
const REMEMBERED: usize = 1024;
/// Nobody is asked for a name more often than this.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long the last good addresses serve while nobody can say better ones.
const LAST_GOOD: Duration = Duration::from_secs(300);
/// Longest wait for the machine's resolver.
const RESOLVE: Duration = Duration::from_secs(10);
/// Wait for a connection where no policy speaks.
const CONNECT: Duration = Duration::from_secs(10);

/// Destinations outside the mesh, with their connections.
#[derive(Debug)]
pub struct Outside {
    workers: usize,
    labels: LabelId,
    known: Mutex<HashMap<Vec<SocketAddr>, RouteBackend>>,
    names: Mutex<HashMap<String, Resolved>>,
}

/// What the resolver said of a name.
#[derive(Debug, Default)]
struct Resolved {
    /// The last that were any.
    addresses: Vec<SocketAddr>,
    /// When those were said.
    good: Option<host::Instant>,
    asked: Option<host::Instant>,
}

impl Outside {
    pub fn new(workers: usize, labels: LabelId) -> Self {
        Self { workers, labels, known: Mutex::default(), names: Mutex::default() }
    }

    /// The backend for a name outside the mesh.
    ///
    /// # Errors
    /// `UnknownDestination` when nobody knows the name.
    pub async fn by_name(&self, name: &str, port: u16) -> Result<RouteBackend, Failure> {
        let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(self.at(&[SocketAddr::new(address, port)]));
        }
        let found =
            self.resolve(format!("{name}:{port}"), host::now(), async |name: &str| host::resolve(name).await).await?;
        Ok(self.at(&found))
    }

    /// The addresses of "name:port": what was said a moment ago, or what `ask` says, or what was last known while it says nothing.
    async fn resolve(
        &self,
        name: String,
        now: host::Instant,
        ask: impl AsyncFnOnce(&str) -> io::Result<Vec<SocketAddr>>,
    ) -> Result<Vec<SocketAddr>, Failure> {
        let age = |since: Option<host::Instant>| since.map(|since| now.saturating_duration_since(since));
        {
            let mut names = self.names.lock();
            if names.len() >= REMEMBERED {
                names.retain(|_, known| age(known.asked).is_some_and(|age| age < ASK_AGAIN));
            }
            if let Some(known) = names.get_mut(&name) {
                if age(known.asked).is_some_and(|age| age < ASK_AGAIN) {
                    return known.usable();
                }
                // Those who come while the answer is under way take what there is.
                if !known.addresses.is_empty() {
                    known.asked = Some(now);
                }
            }
        }
        let answer = match tokio::time::timeout(RESOLVE, ask(&name)).await {
            Ok(answer) => answer,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        let mut names = self.names.lock();
        if names.len() >= REMEMBERED && !names.contains_key(&name) {
            // So many names at once that none can be remembered: each is asked for.
            let found = answer.map_err(|error| Failure::new(Reason::UnknownDestination).because(error))?;
            return Resolved { addresses: found.into_iter().take(ADDRESSES).collect(), ..Resolved::default() }.usable();
        }
        let known = names.entry(name).or_default();
        known.asked = Some(now);
        match answer {
            Ok(found) if !found.is_empty() => {
                known.addresses = found.into_iter().take(ADDRESSES).collect();
                known.good = Some(now);
            }
            // A resolver that is away says the same as one that knows nothing.
            _ if age(known.good).is_none_or(|age| age > LAST_GOOD) => known.addresses.clear(),
            _ => {}
        }
        known.usable()
    }

    /// The backend for addresses outside the mesh.
    pub fn at(&self, addresses: &[SocketAddr]) -> RouteBackend {
        let mut known = self.known.lock();
        if let Some(backend) = known.get(addresses) {
            return backend.clone();
        }
        if known.len() >= REMEMBERED {
            known.retain(|_, route| Arc::strong_count(&route.backend) > 1);
        }
        let route = RouteBackend { backend: self.backend(addresses), breaker: None, fallback: None };
        if known.len() < REMEMBERED {
            known.insert(addresses.to_vec(), route.clone());
        }
        route
    }

    /// Drops connections that are closed or idle for too long; for one worker.
    pub fn sweep(&self, worker: usize, now: host::Instant, idle: IdleLimits) {
        for route in self.known.lock().values() {
            for endpoint in &route.backend.endpoints {
                endpoint.state.pool(worker).sweep(now, idle);
            }
        }
    }

    fn backend(&self, addresses: &[SocketAddr]) -> Arc<Backend> {
        let policy = Arc::new(Policy::default());
        let state = Arc::new(BackendState::new(&policy));
        let endpoints = addresses
            .iter()
            .map(|address| {
                let key = EndpointKey { address: *address, identity: None, multiplex: false };
                Arc::new(Endpoint {
                    address: *address,
                    transport: Transport::Plain,
                    weight: 1,
                    health: Health::Ready,
                    labels: self.labels,
                    config: Arc::new(view::Endpoint::bare(*address)),
                    state: state.endpoint(key, self.workers),
                })
            })
            .collect();
        let labels = self.labels;
        Arc::new(Backend {
            name: Arc::from("passthrough"),
            policy,
            ejection: None,
            affinity: None,
            arrangement: None,
            endpoints,
            connect_timeout: CONNECT,
            labels,
            state,
        })
    }
}

impl Resolved {
    fn usable(&self) -> Result<Vec<SocketAddr>, Failure> {
        if self.addresses.is_empty() { Err(Reason::UnknownDestination.into()) } else { Ok(self.addresses.clone()) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn m08_a_resolver_that_fails_or_floods_changes_little() {
        // Every request to a name would be a question, and a resolver that is away for a minute an outage.
        let outside = Outside::new(1, LabelId::UNKNOWN);
        let start = host::now();
        let asked = std::cell::Cell::new(0);
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let look = async |after_ms: u64, answer: io::Result<Vec<SocketAddr>>| {
            let now = start + Duration::from_millis(after_ms);
            let ask = async |_: &str| {
                asked.set(asked.get() + 1);
                answer
            };
            outside.resolve("db.example:80".to_owned(), now, ask).await.ok()
        };
        let failed = || Err(io::ErrorKind::ConnectionRefused.into());
        assert_eq!(look(0, Ok(vec![at("10.0.0.1:80")])).await, Some(vec![at("10.0.0.1:80")]));
        for ms in [1, 500, 999] {
            assert_eq!(look(ms, Ok(vec![at("10.0.0.2:80")])).await, Some(vec![at("10.0.0.1:80")]), "{ms}");
        }
        assert_eq!(asked.get(), 1, "at most once a second");
        assert_eq!(look(1000, Ok(vec![at("10.0.0.2:80")])).await, Some(vec![at("10.0.0.2:80")]));
        // Gone, away, and nonsense: the last good addresses stay for a while.
        assert_eq!(look(2000, failed()).await, Some(vec![at("10.0.0.2:80")]));
        assert_eq!(look(3000, Ok(Vec::new())).await, Some(vec![at("10.0.0.2:80")]));
        assert_eq!(look(200_000, failed()).await, Some(vec![at("10.0.0.2:80")]));
        assert_eq!(look(400_000, failed()).await, None);
        // A thousand addresses are as good as four.
        let many =
            (0..1000).map(|host: u32| SocketAddr::from((std::net::Ipv4Addr::from(0x0a00_0000 + host), 80))).collect();
        assert_eq!(look(402_000, Ok(many)).await.unwrap().len(), ADDRESSES);
        // A resolver that never answers is not waited for, and what does not exist is not asked for again at once.
        let never = async |_: &str| std::future::pending().await;
        assert!(outside.resolve("x.example:80".to_owned(), start, never).await.is_err());
        let unasked = async |_: &str| -> io::Result<Vec<SocketAddr>> { panic!("asked again") };
        assert!(outside.resolve("x.example:80".to_owned(), start + Duration::from_millis(900), unasked).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn m08_names_that_clients_make_up_do_not_fill_the_memory() {
        // An application that asks for a new name each time would grow its sidecar.
        let outside = Outside::new(1, LabelId::UNKNOWN);
        for number in 0..REMEMBERED * 3 {
            let found = async |_: &str| Ok(vec![SocketAddr::from(([10, 0, 0, 1], 80))]);
            let now = host::now();
            assert!(outside.resolve(format!("n{number}.example:80"), now, found).await.is_ok());
        }
        assert!(outside.names.lock().len() <= REMEMBERED);
    }
}
