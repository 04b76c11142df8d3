//! Asking for a destination that was never seen, and telling which ones are used.
//!
//! The data path calls [`Demand::want`] when a name or address is not in its view, and [`Demand::used`] when it sends
//! something to a service. The control runtime holds the other end ([`Requests`]), subscribes, answers once the
//! service stands in a published view, remembers what does not exist, and forgets what nobody uses any more.
//! Nothing here talks to the control plane.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

use super::view::Map;
use crate::{host, settings::Limits};

/// What the application dialled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DemandName {
    /// An address that belongs to no service in the view.
    Vip(IpAddr),
    /// A host name, complete or short ("reviews", "reviews.shop"); case and a trailing dot do not matter.
    Host(String),
}

/// What became of a demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It stands in the newest view now: read that again.
    Found,
    /// The control plane says that it does not exist (or is not visible from here).
    Absent,
    /// No answer in time, or too many demands are waiting.
    TimedOut,
}

/// The data path's end; cheap to clone.
#[derive(Clone, Debug)]
pub struct Demand {
    requests: mpsc::Sender<Request>,
    uses: Arc<Uses>,
}

/// The control runtime's end.
#[derive(Debug)]
pub struct Requests {
    pub(super) receiver: mpsc::Receiver<Request>,
    pub(super) uses: Arc<Uses>,
}

/// One demand on its way.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) name: DemandName,
    /// Closed when the asker has stopped waiting.
    pub(super) reply: oneshot::Sender<Answer>,
}

/// Which services were used since the last look.
#[derive(Debug, Default)]
pub(super) struct Uses {
    flags: ArcSwap<Map<Arc<str>, Arc<AtomicBool>>>,
}

/// Two connected ends; at most `limits.pending_demands` demands wait in between.
pub fn channel(limits: &Limits) -> (Demand, Requests) {
    let (sender, receiver) = mpsc::channel(limits.pending_demands.max(1));
    let uses = Arc::new(Uses::default());
    (Demand { requests: sender, uses: Arc::clone(&uses) }, Requests { receiver, uses })
}

impl Demand {
    /// Asks for a name and waits, at most `wait`, until a view that contains it is published.
    ///
    /// [`Answer::TimedOut`] at once when the queue is full. Dropping the future gives up waiting; the name stays
    /// subscribed, so a later attempt finds it.
    pub async fn want(&self, name: DemandName, wait: Duration) -> Answer {
        let (reply, answer) = oneshot::channel();
        if self.requests.try_send(Request { name, reply }).is_err() {
            return Answer::TimedOut;
        }
        tokio::select! {
            biased;
            answer = answer => answer.unwrap_or(Answer::TimedOut),
            () = host::sleep(wait) => Answer::TimedOut,
        }
    }

    /// Notes that a service (resource name) is used; a table look-up and one relaxed load.
    pub fn used(&self, service: &Arc<str>) {
        if let Some(flag) = self.uses.flags.load().get(service)
            && !flag.load(Ordering::Relaxed)
        {
            flag.store(true, Ordering::Relaxed);
        }
    }
}

impl Uses {
    /// Follows these services from now on; what was noted of the ones that stay is kept.
    pub(super) fn follow<'a>(&self, services: impl Iterator<Item = &'a Arc<str>>) {
        let old = self.flags.load();
        let new: Map<_, _> =
            services.map(|name| (Arc::clone(name), old.get(name).cloned().unwrap_or_default())).collect();
        self.flags.store(Arc::new(new));
    }

    /// The services used since the last call.
    pub(super) fn take(&self) -> Vec<Arc<str>> {
        let flags = self.flags.load();
        let used = flags.iter().filter(|(_, flag)| flag.swap(false, Ordering::Relaxed));
        used.map(|(name, _)| Arc::clone(name)).collect()
    }
}

impl DemandName {
    /// The resource name or alias to subscribe to; `None` for something that cannot be a name.
    ///
    /// Names of the form `service.namespace.svc[.suffix]` give the resource name itself, single labels are taken
    /// to be of the node's own namespace, every other host is looked up by alias.
    pub fn resource_name(&self, namespace: &str, domain_suffix: &str) -> Option<Arc<str>> {
        let host = match self {
            Self::Vip(address) => return Some(format!("vip/{}", address.to_canonical()).into()),
            Self::Host(host) => host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase(),
        };
        if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return Some(format!("vip/{}", address.to_canonical()).into());
        }
        let valid = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        if host.len() > MAX_HOST_BYTES || !host.split('.').all(valid) {
            return None;
        }
        let without_suffix = host.strip_suffix(domain_suffix).and_then(|rest| rest.strip_suffix('.')).unwrap_or(&host);
        let labels: Vec<&str> = without_suffix.split('.').collect();
        Some(match labels.as_slice() {
            [service, of, "svc"] => format!("{of}/{service}.{of}.svc.{domain_suffix}").into(),
            [service] if *service == host => format!("{namespace}/{service}.{namespace}.svc.{domain_suffix}").into(),
            _ => format!("host/{host}").into(),
        })
    }
}

/// RFC 1035 §2.3.4: names of 255 octets or less, which leaves 253 characters.
const MAX_HOST_BYTES: usize = 253;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_what_they_mean_in_the_cluster() {
        // A short name taken for another namespace's service would send requests to a stranger.
        for (host, expected) in [
            ("reviews", Some("shop/reviews.shop.svc.mesh.test")),
            ("Reviews.", Some("shop/reviews.shop.svc.mesh.test")),
            ("reviews.bank.svc", Some("bank/reviews.bank.svc.mesh.test")),
            ("reviews.bank.svc.mesh.test", Some("bank/reviews.bank.svc.mesh.test")),
            ("reviews.bank", Some("host/reviews.bank")),
            ("api.example.com", Some("host/api.example.com")),
            ("mesh.test", Some("host/mesh.test")),
            ("x.mesh.test", Some("host/x.mesh.test")),
            ("10.0.0.1", Some("vip/10.0.0.1")),
            ("[2001:DB8::1]", Some("vip/2001:db8::1")),
            ("", None),
            (".", None),
            ("a..b", None),
            ("a_b*", None),
        ] {
            let name = DemandName::Host(host.to_owned()).resource_name("shop", "mesh.test");
            assert_eq!(name.as_deref(), expected, "{host}");
        }
        let mapped = DemandName::Vip("::ffff:10.0.0.1".parse().unwrap());
        assert_eq!(mapped.resource_name("shop", "mesh.test").as_deref(), Some("vip/10.0.0.1"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_answers_at_once() {
        // When the control runtime is stuck, connections must fail or pass, not pile up.
        let (demand, _requests) = channel(&Limits { pending_demands: 1, ..Limits::default() });
        let first = demand.clone();
        let waiting =
            host::spawn(async move { first.want(DemandName::Host("a".into()), Duration::from_secs(1)).await });
        tokio::task::yield_now().await;
        let before = host::now();
        assert_eq!(demand.want(DemandName::Host("b".into()), Duration::from_secs(1)).await, Answer::TimedOut);
        assert_eq!(host::now(), before);
        assert_eq!(waiting.await.unwrap(), Answer::TimedOut);
    }

    #[test]
    fn use_is_noted_once_and_kept_over_changes() {
        // A flag lost when services change would make a busy service look unused.
        let (demand, requests) = channel(&Limits::default());
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        requests.uses.follow([&a].into_iter());
        demand.used(&a);
        demand.used(&b);
        requests.uses.follow([&a, &b].into_iter());
        assert_eq!(requests.uses.take(), [a]);
        assert!(requests.uses.take().is_empty());
    }
}
