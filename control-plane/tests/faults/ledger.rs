//! What became of every request: the client's side in memory, the applications' side in a file.
//!
//! LOST: no answer by the deadline; or answered without a record; or an idempotent request failed although a healthy
//! endpoint existed (scenarios always keep one). DOUBLED: a request that must not be repeated has more than one record.
//! WRONG: an answer, or a record, with something of another request in it.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, fs,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How a request ended for its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered by the application of this name.
    Answered(String),
    /// An error answer: status and the mesh's word for it.
    Refused(u16, String),
    /// The connection broke before any answer.
    Broken(String),
    /// The answer broke off, visibly.
    Truncated(String),
    /// Nothing by the deadline.
    Silent,
    /// Something of another request.
    Wrong(String),
    /// Never sent: the client's own sidecar took no connection.
    NotSent,
}

/// What kind of request it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Get,
    Post,
    Stream,
}

#[derive(Clone, Debug)]
struct Entry {
    id: String,
    kind: Kind,
    outcome: Outcome,
    began: Instant,
    ended: Instant,
}

/// Both sides.
pub struct Ledger {
    file: PathBuf,
    prefix: &'static str,
    next: AtomicU64,
    entries: Mutex<Vec<Entry>>,
    began: Instant,
}

impl Ledger {
    /// A new one; applications write to `file`. Ids begin with `prefix`.
    pub fn new(file: &Path, prefix: &'static str) -> Self {
        fs::write(file, "").unwrap();
        let (next, entries) = (AtomicU64::new(1), Mutex::default());
        Self { file: file.to_owned(), prefix, next, entries, began: Instant::now() }
    }

    pub fn file(&self) -> &Path {
        &self.file
    }

    /// An id that nobody else has.
    pub fn id(&self) -> String {
        format!("{}-{:06}", self.prefix, self.next.fetch_add(1, Ordering::Relaxed))
    }

    pub fn note(&self, id: String, kind: Kind, outcome: Outcome, began: Instant) {
        self.entries.lock().unwrap().push(Entry { id, kind, outcome, began, ended: Instant::now() });
    }

    /// Answers so far.
    pub fn answered(&self) -> usize {
        self.count(|outcome| matches!(outcome, Outcome::Answered(_)))
    }

    fn count(&self, wanted: impl Fn(&Outcome) -> bool) -> usize {
        self.entries.lock().unwrap().iter().filter(|entry| wanted(&entry.outcome)).count()
    }

    /// Everything that was not a whole answer, as its client saw it.
    pub fn failures(&self) -> Vec<String> {
        let entries = self.entries.lock().unwrap();
        let failed = entries.iter().filter(|entry| !matches!(entry.outcome, Outcome::Answered(_)));
        failed.map(|entry| format!("{} {:?} {:?}", entry.id, entry.kind, entry.outcome)).collect()
    }

    /// Answers by each application to requests that began at `since` or later: what was under way before says nothing of what
    /// holds since.
    pub fn shares_of_begun(&self, since: Instant) -> BTreeMap<String, usize> {
        self.answers_by(|entry| entry.began >= since)
    }

    /// Answers by each application since `since`.
    pub fn shares(&self, since: Instant) -> BTreeMap<String, usize> {
        self.answers_by(|entry| entry.ended >= since)
    }

    fn answers_by(&self, wanted: impl Fn(&Entry) -> bool) -> BTreeMap<String, usize> {
        let mut shares = BTreeMap::new();
        for entry in self.entries.lock().unwrap().iter().filter(|entry| wanted(entry)) {
            if let Outcome::Answered(by) = &entry.outcome {
                *shares.entry(by.clone()).or_default() += 1;
            }
        }
        shares
    }

    /// Reads the file and compares.
    pub fn verdict(&self) -> Verdict {
        // Ends first: a request that ends meanwhile is written to the file before.
        let entries = self.entries.lock().unwrap().clone();
        let mut records: HashMap<String, Vec<String>> = HashMap::new();
        for line in fs::read_to_string(&self.file).unwrap().lines() {
            let (id, rest) = line.split_once(' ').unwrap();
            records.entry(id.to_owned()).or_default().push(rest.to_owned());
        }
        let mut verdict = Verdict::default();
        let mut times = Vec::new();
        for Entry { id, kind, outcome, began, ended } in &entries {
            let took = ended.duration_since(*began);
            verdict.requests += 1;
            let seen = records.get(id).map_or(&[][..], Vec::as_slice);
            let tell = |what: &str| {
                let at = ended.duration_since(self.began).as_secs_f64();
                format!(
                    "{what}: {id} {kind:?} {outcome:?} at {at:.3} s after {took:.1?}, records: [{}]",
                    seen.join("; ")
                )
            };
            if seen.iter().any(|record| record.starts_with("MIXED")) {
                verdict.wrong.push(tell("WRONG"));
            }
            if *kind == Kind::Post && seen.len() > 1 {
                verdict.doubled.push(tell("DOUBLED"));
            }
            if seen.len() > 1 {
                verdict.repeated += 1;
            }
            match outcome {
                Outcome::Answered(_) if seen.is_empty() => verdict.lost.push(tell("LOST")),
                Outcome::Answered(_) => {
                    verdict.answered += 1;
                    times.extend((*kind != Kind::Stream).then_some(took));
                }
                Outcome::Silent => verdict.lost.push(tell("LOST")),
                Outcome::Refused(..) | Outcome::Broken(_) if *kind == Kind::Post => {
                    verdict.failed_posts.push(tell("FAILED"));
                }
                Outcome::Refused(..) | Outcome::Broken(_) => verdict.lost.push(tell("LOST")),
                Outcome::Truncated(_) => verdict.truncated.push(tell("TRUNCATED")),
                Outcome::Wrong(_) => verdict.wrong.push(tell("WRONG")),
                Outcome::NotSent => verdict.not_sent += 1,
            }
            verdict.longest = verdict.longest.max(took);
        }
        times.sort_unstable();
        verdict.median = times.get(times.len() / 2).copied().unwrap_or_default();
        verdict
    }
}

/// What came out.
#[derive(Debug, Default)]
pub struct Verdict {
    pub requests: usize,
    pub answered: usize,
    /// Requests with more than one record; fine for those that may be repeated.
    pub repeated: usize,
    pub not_sent: usize,
    pub longest: Duration,
    /// Of answers to plain reads and writes.
    pub median: Duration,
    pub lost: Vec<String>,
    pub doubled: Vec<String>,
    pub wrong: Vec<String>,
    pub failed_posts: Vec<String>,
    pub truncated: Vec<String>,
}

impl Verdict {
    /// Nothing went wrong at all.
    pub fn assert_spotless(&self, at_least: usize) {
        self.assert_safe(at_least);
        assert!(self.failed_posts.is_empty() && self.truncated.is_empty() && self.not_sent == 0, "{self}");
    }

    /// What must hold even while endpoints die: nothing lost, doubled or wrong. What an endpoint may take with it when it
    /// dies is a POST under way, and the rest of an answer that had begun.
    pub fn assert_safe(&self, at_least: usize) {
        assert!(self.lost.is_empty() && self.doubled.is_empty() && self.wrong.is_empty(), "{self}");
        assert!(self.answered >= at_least, "only {} answers, too few to prove anything\n{self}", self.answered);
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "ledger: {} requests, {} answered, LOST {}, DOUBLED {}, WRONG {}, failed POSTs {}, truncated {}, not sent {}, \
             repeated {}, median {:.1?}, longest {:.1?}",
            self.requests,
            self.answered,
            self.lost.len(),
            self.doubled.len(),
            self.wrong.len(),
            self.failed_posts.len(),
            self.truncated.len(),
            self.not_sent,
            self.repeated,
            self.median,
            self.longest
        )?;
        for lines in [&self.lost, &self.doubled, &self.wrong, &self.failed_posts, &self.truncated] {
            for line in lines.iter().take(8) {
                writeln!(f, "  {line}")?;
            }
            if lines.len() > 8 {
                writeln!(f, "  ... and {} more", lines.len() - 8)?;
            }
        }
        Ok(())
    }
}
