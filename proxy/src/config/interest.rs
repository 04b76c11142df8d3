//! The names that the data path asked for: who waits, what is still used, what may be forgotten. Pure.
//!
//! `subscriber` follows these names as roots besides those that the node preloads. A name that does not exist is
//! remembered too, so that the server tells us once it does and nobody waits for it twice. The table is bounded:
//! applications that dial many unknown addresses push out the longest unused, absent names first.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::sync::oneshot;

use super::demand::Answer;
use crate::{host::Instant, settings::Limits};

/// The table.
#[derive(Debug)]
pub(super) struct Interest {
    names: BTreeMap<Arc<str>, Wish>,
    waiting: usize,
    max_names: usize,
    max_waiting: usize,
}

#[derive(Debug)]
struct Wish {
    used: Instant,
    askers: Vec<oneshot::Sender<Answer>>,
}

impl Interest {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            names: BTreeMap::new(),
            waiting: 0,
            max_names: limits.demanded_names.max(1),
            max_waiting: limits.pending_demands.max(1),
        }
    }

    /// Notes a name without anybody waiting, as after a restart.
    pub(super) fn follow(&mut self, name: Arc<str>, now: Instant) {
        if self.names.len() < self.max_names {
            self.names.entry(name).or_insert(Wish { used: now, askers: Vec::new() });
        }
    }

    /// Notes an asker. `known` says what the answer to a name would be now; `None`: nobody can say yet.
    pub(super) fn ask(
        &mut self,
        name: &Arc<str>,
        asker: oneshot::Sender<Answer>,
        known: impl Fn(&str) -> Option<Answer>,
        now: Instant,
    ) {
        if !self.names.contains_key(name) && self.names.len() >= self.max_names {
            self.make_room(&known);
        }
        let wish = self.names.entry(Arc::clone(name)).or_insert(Wish { used: now, askers: Vec::new() });
        wish.used = now;
        if let Some(answer) = known(name) {
            // The asker may have gone away.
            let _ = asker.send(answer);
        } else if self.waiting < self.max_waiting {
            wish.askers.push(asker);
            self.waiting += 1;
        } else {
            let _ = asker.send(Answer::TimedOut);
        }
    }

    /// Answers whoever waits for something that is known by now, and forgets askers that went away.
    pub(super) fn answer(&mut self, known: impl Fn(&str) -> Option<Answer>) {
        if self.waiting == 0 {
            return;
        }
        self.waiting = 0;
        for (name, wish) in self.names.iter_mut().filter(|(_, wish)| !wish.askers.is_empty()) {
            if let Some(answer) = known(name) {
                for asker in wish.askers.drain(..) {
                    let _ = asker.send(answer);
                }
            } else {
                wish.askers.retain(|asker| !asker.is_closed());
                self.waiting += wish.askers.len();
            }
        }
    }

    /// Notes use, and forgets what was not used for `unused`; says whether anything was forgotten.
    pub(super) fn sweep(&mut self, used: impl Fn(&str) -> bool, unused: Duration, now: Instant) -> bool {
        let before = self.names.len();
        self.names.retain(|name, wish| {
            if used(name) {
                wish.used = now;
            }
            !wish.askers.is_empty() || now.saturating_duration_since(wish.used) < unused
        });
        self.names.len() != before
    }

    /// Every name.
    pub(super) fn names(&self) -> BTreeSet<Arc<str>> {
        self.names.keys().cloned().collect()
    }

    /// Forgets the longest unused, those that do not exist first.
    fn make_room(&mut self, known: &impl Fn(&str) -> Option<Answer>) {
        let oldest = self.names.iter().min_by_key(|(name, wish)| (known(name) != Some(Answer::Absent), wish.used));
        let Some(oldest) = oldest.map(|(name, _)| Arc::clone(name)) else { return };
        if let Some(wish) = self.names.remove(&oldest) {
            self.waiting = self.waiting.saturating_sub(wish.askers.len());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::host;

    fn interest(names: usize, waiting: usize) -> Interest {
        Interest::new(&Limits { demanded_names: names, pending_demands: waiting, ..Limits::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_is_bounded_and_absent_names_go_first() {
        // An application that scans addresses must not make the proxy grow, nor push out what is really used.
        let mut interest = interest(3, 10);
        let known = |name: &str| Some(if name == "real" { Answer::Found } else { Answer::Absent });
        for name in ["real", "vip/1", "vip/2", "vip/3", "vip/4"] {
            let (asker, answer) = oneshot::channel();
            interest.ask(&name.into(), asker, known, host::now());
            assert_eq!(answer.await.unwrap(), known(name).unwrap());
            host::sleep(Duration::from_secs(1)).await;
        }
        let names: Vec<String> = interest.names().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["real", "vip/3", "vip/4"]);
    }

    #[tokio::test(start_paused = true)]
    async fn askers_are_bounded_and_all_are_answered() {
        // A lost answer would hold a connection for the whole wait.
        let mut interest = interest(10, 2);
        let mut answers = Vec::new();
        for _ in 0..3 {
            let (asker, answer) = oneshot::channel();
            interest.ask(&"a".into(), asker, |_| None, host::now());
            answers.push(answer);
        }
        assert_eq!(answers.pop().unwrap().await.unwrap(), Answer::TimedOut);
        interest.answer(|_| None);
        interest.answer(|_| Some(Answer::Found));
        for answer in answers {
            assert_eq!(answer.await.unwrap(), Answer::Found);
        }
        assert_eq!(interest.waiting, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn unused_names_are_forgotten_and_used_ones_kept() {
        // Memory follows use; a service in use must never vanish.
        let mut interest = interest(10, 10);
        let unused = Duration::from_secs(1800);
        interest.follow("busy".into(), host::now());
        interest.follow("idle".into(), host::now());
        for _ in 0..3 {
            host::sleep(Duration::from_secs(1000)).await;
            interest.sweep(|name| name == "busy", unused, host::now());
        }
        assert_eq!(interest.names(), BTreeSet::from(["busy".into()]));
    }
}
