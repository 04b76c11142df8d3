//! Connections of our own that come back to us: redirect rules that do not know the sidecar's user or mark.
//!
//! Whatever the sidecar dials is then handed to itself, which dials again, until nothing is left of the host. `upstream/dial.rs` notes what
//! it dials, and `original_dst` asks here whether a redirected connection is one of those. Both ends of a connection have the same
//! pair of addresses, and no two live connections share one. Short: a circle comes back at once, and ports are used again later.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use parking_lot::Mutex;

use super::original_dst::unmapped;
use crate::host::{self, Instant};

/// Dials remembered; a circle that comes back later goes round once more.
const REMEMBERED: usize = 256;
/// How long one is remembered.
const AGE: Duration = Duration::from_secs(1);

struct Dial {
    local: SocketAddr,
    remote: SocketAddr,
    at: Instant,
}

static RECENT: Mutex<VecDeque<Dial>> = Mutex::new(VecDeque::new());

/// Begins a connection of ours to `remote` and notes it. `begin` gives the address that it comes from.
///
/// Nobody can ask meanwhile: a connection that comes back may be accepted by another thread before `begin` is done.
pub fn note(remote: SocketAddr, begin: &mut dyn FnMut() -> Option<SocketAddr>) {
    let mut recent = RECENT.lock();
    let Some(local) = begin() else { return };
    if recent.len() >= REMEMBERED {
        recent.pop_front();
    }
    recent.push_back(Dial { local: unmapped(local), remote: unmapped(remote), at: host::now() });
}

/// Whether we made the connection that comes from `peer` and was going to `dialled`.
pub(super) fn is_ours(peer: SocketAddr, dialled: SocketAddr) -> bool {
    let (peer, now) = (unmapped(peer), host::now());
    let recent = RECENT.lock();
    recent
        .iter()
        .rev()
        .take_while(|dial| now.saturating_duration_since(dial.at) < AGE)
        .any(|dial| dial.local == peer && dial.remote == dialled)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn m02_only_our_own_recent_connections_are_a_circle() {
        // Applications would be refused, or a circle go on.
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (local, remote) = (at("[::ffff:10.1.2.3]:40000"), at("10.9.9.9:80"));
        note(remote, &mut || Some(local));
        assert!(is_ours(at("10.1.2.3:40000"), remote));
        assert!(!is_ours(at("10.1.2.3:40001"), remote), "an application's");
        assert!(!is_ours(at("10.1.2.3:40000"), at("10.9.9.8:80")), "the same port towards somebody else");
        host::sleep(AGE).await;
        assert!(!is_ours(at("10.1.2.3:40000"), remote), "the port may be somebody else's by now");
        for port in 1..=u16::try_from(REMEMBERED).unwrap() * 4 {
            note(remote, &mut || Some(SocketAddr::new(local.ip(), port)));
        }
        assert!(RECENT.lock().len() <= REMEMBERED);
    }
}
