//! What a run gives: figures with their unit and which way is better, the report that holds them, and what stands for many
//! rounds.
//!
//! `measure` and `mesh` fill a [`Report`]; `table`, `html`, `compare` and `readme` only read one. It is also the JSON that
//! `-o json` writes and that `compare` reads.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What one figure counts, in the order in which tables show them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Figure {
    /// User and system time of all proxies for one unit of work.
    Cpu,
    UserCpu,
    SystemCpu,
    /// Work done in a second.
    Rate,
    /// p50 less the p50 without a proxy, of the same round.
    AddedP50,
    P50,
    P90,
    P99,
    P999,
    /// System calls of all proxies for one unit of work.
    Syscalls,
    /// Resident memory of all proxies before the first request.
    IdleMemory,
    /// The most that was resident.
    PeakMemory,
    /// What one idle connection adds to resident memory.
    ConnectionMemory,
    /// What services that are not used add to resident memory.
    MoreMemory,
    /// From starting the process to the first answer through it.
    StartToReady,
    /// From sending a change to the last proxy that answers by it.
    EffectP50,
    EffectP99,
    /// From storing a change to the last acknowledgement.
    AckP50,
    AckP99,
    /// Changes that the control plane stored in a second.
    Stored,
    /// Changes in effect in a second: what is stored while another is being worked on takes effect with the next.
    Swaps,
    /// Requests that failed.
    Failed,
    /// p99 without changes, for comparison.
    QuietP99,
    /// From starting the control plane again to the last proxy that holds everything.
    BackAfter,
    /// The most memory of the control plane.
    PlaneMemory,
}

/// What is counted when figures are "per" something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    #[default]
    Request,
    Message,
    Connection,
    Handshake,
    Gigabyte,
}

impl Work {
    const fn word(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Message => "message",
            Self::Connection => "connection",
            Self::Handshake => "handshake",
            Self::Gigabyte => "GB",
        }
    }

    /// Microseconds in the unit that CPU per work is told in: microseconds, and seconds for a gigabyte.
    pub const fn cpu_unit_micros(self) -> f64 {
        match self {
            Self::Gigabyte => 1e6,
            _ => 1.0,
        }
    }
}

impl Figure {
    /// Name with unit.
    pub fn heading(self, work: Work) -> String {
        let unit = if work == Work::Gigabyte { "s" } else { "us" };
        let each = work.word();
        match self {
            Self::Cpu => format!("CPU {unit}/{each}"),
            Self::UserCpu => "user".to_owned(),
            Self::SystemCpu => "system".to_owned(),
            Self::Rate if work == Work::Gigabyte => "GB/s".to_owned(),
            Self::Rate => format!("{each}s/s"),
            Self::AddedP50 => "added p50 us".to_owned(),
            Self::P50 => "p50 us".to_owned(),
            Self::P90 => "p90 us".to_owned(),
            Self::P99 => "p99 us".to_owned(),
            Self::P999 => "p99.9 us".to_owned(),
            Self::Syscalls => format!("syscalls/{each}"),
            Self::IdleMemory => "MB idle".to_owned(),
            Self::PeakMemory => "MB peak".to_owned(),
            Self::ConnectionMemory => "KB/connection".to_owned(),
            Self::MoreMemory => "MB more".to_owned(),
            Self::StartToReady => "start to ready ms".to_owned(),
            Self::EffectP50 => "in effect p50 ms".to_owned(),
            Self::EffectP99 => "in effect p99 ms".to_owned(),
            Self::AckP50 => "acked p50 ms".to_owned(),
            Self::AckP99 => "acked p99 ms".to_owned(),
            Self::Stored => "stored/s".to_owned(),
            Self::Swaps => "swaps/s".to_owned(),
            Self::Failed => "failed".to_owned(),
            Self::QuietP99 => "p99 us without".to_owned(),
            Self::BackAfter => "all back after s".to_owned(),
            Self::PlaneMemory => "MB control plane".to_owned(),
        }
    }

    /// Whether more of it is better.
    pub const fn more_is_better(self) -> bool {
        matches!(self, Self::Rate | Self::Stored | Self::Swaps)
    }

    /// Whether the spread over the rounds is worth a place in the table.
    pub const fn shows_spread(self) -> bool {
        matches!(
            self,
            Self::Cpu | Self::Rate | Self::StartToReady | Self::AddedP50 | Self::BackAfter | Self::MoreMemory
        )
    }
}

/// A figure with as many digits as mean something.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        value if value >= 100.0 || value == 0.0 => 0,
        value if value >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

/// Whom a chain stands for in the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// No proxy.
    None,
    Floor,
    Outrigger,
    Peer,
}

/// CPU of one proxy for one unit of work, one value for each round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Hop {
    pub user: Vec<f64>,
    pub system: Vec<f64>,
}

/// One chain in one scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub chain: String,
    pub role: Role,
    /// One value for each round; memory and system calls have one for the whole run.
    pub figures: BTreeMap<Figure, Vec<f64>>,
    /// The proxies apart, first hop first.
    pub hops: Vec<Hop>,
}

/// One scenario with all its chains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub scenario: String,
    pub title: String,
    pub work: Work,
    /// The figures to quote: ratios are made of these.
    pub headlines: Vec<Figure>,
    /// Scenario that differs in one thing only.
    pub baseline: Option<String>,
    pub chains: Vec<Measured>,
    /// What is not in the figures, and why.
    pub gaps: Vec<String>,
}

/// Where it was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub kernel: String,
    /// Each program with what it says of its version.
    pub versions: Vec<(String, String)>,
}

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Day of the run, UTC, `2026-11-21`.
    pub date: String,
    pub machine: Machine,
    pub rounds: u32,
    pub seconds: u64,
    pub scenarios: Vec<Outcome>,
}

/// The middle and the ends of one figure over the rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    /// Of some values; `None` without any.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let upper = *values.get(values.len() / 2)?;
        let lower = *values.get((values.len() - 1) / 2)?;
        Some(Self { median: f64::midpoint(lower, upper), least, most })
    }

    /// Half the distance between the ends.
    pub fn half(&self) -> f64 {
        (self.most - self.least) / 2.0
    }
}

/// One headline of Outrigger with what it is compared with.
#[derive(Clone, Debug, PartialEq)]
pub struct Glance<'a> {
    pub figure: Figure,
    pub own: f64,
    /// Own divided by the floor's.
    pub to_floor: Option<f64>,
    /// Own divided by the best peer's, and who that is.
    pub to_best_peer: Option<(f64, &'a str)>,
}

impl Measured {
    pub fn new(chain: String, role: Role) -> Self {
        Self { chain, role, figures: BTreeMap::new(), hops: Vec::new() }
    }

    /// Adds the value of one round.
    pub fn add(&mut self, figure: Figure, value: f64) {
        self.figures.entry(figure).or_default().push(value);
    }

    pub fn spread(&self, figure: Figure) -> Option<Spread> {
        Spread::of(self.figures.get(&figure)?)
    }

    pub fn median(&self, figure: Figure) -> Option<f64> {
        Some(self.spread(figure)?.median)
    }
}

impl Outcome {
    /// The floor's median.
    pub fn floor(&self, figure: Figure) -> Option<f64> {
        self.chains.iter().find(|measured| measured.role == Role::Floor)?.median(figure)
    }

    /// The best peer's median, and who it is.
    pub fn best_peer(&self, figure: Figure) -> Option<(f64, &str)> {
        let peers = self.chains.iter().filter(|measured| measured.role == Role::Peer);
        let medians = peers.filter_map(|measured| Some((measured.median(figure)?, measured.chain.as_str())));
        medians.min_by(|a, b| if figure.more_is_better() { b.0.total_cmp(&a.0) } else { a.0.total_cmp(&b.0) })
    }

    /// One chain's median divided by another figure of the same kind; `None` where a ratio would say nothing.
    pub fn ratio(measured: &Measured, figure: Figure, to: Option<f64>) -> Option<f64> {
        let (own, to) = (measured.median(figure)?, to?);
        (own > 0.0 && to > 0.0).then(|| own / to)
    }

    /// The headlines of Outrigger, where it was measured.
    pub fn glances(&self) -> Vec<Glance<'_>> {
        let Some(ours) = self.chains.iter().find(|measured| measured.role == Role::Outrigger) else {
            return Vec::new();
        };
        let glance = |figure: Figure| {
            let best = self.best_peer(figure);
            Some(Glance {
                figure,
                own: ours.median(figure)?,
                to_floor: Self::ratio(ours, figure, self.floor(figure)),
                to_best_peer: best.and_then(|(value, name)| Some((Self::ratio(ours, figure, Some(value))?, name))),
            })
        };
        self.headlines.iter().copied().filter_map(glance).collect()
    }

    /// The same chain's median in the baseline scenario, where that was run too.
    pub fn in_baseline(&self, report: &Report, measured: &Measured, figure: Figure) -> Option<f64> {
        let name = self.baseline.as_ref()?;
        let baseline = report.scenarios.iter().find(|outcome| outcome.scenario == *name)?;
        baseline.chains.iter().find(|same| same.chain == measured.chain)?.median(figure)
    }

    /// Figures that some chain has, in their order.
    pub fn present(&self) -> Vec<Figure> {
        let mut figures: Vec<_> = self.chains.iter().flat_map(|measured| measured.figures.keys()).copied().collect();
        figures.sort_unstable();
        figures.dedup();
        figures
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub mod tests {
    use super::*;

    /// A small report of every role, for the tests of those who show one.
    pub fn sample(outrigger_cpu: f64) -> Report {
        let chain = |name: &str, role, cpu: &[f64]| {
            let mut measured = Measured::new(name.to_owned(), role);
            for value in cpu {
                measured.add(Figure::Cpu, *value);
                measured.add(Figure::Rate, (1e6 / value).round());
            }
            measured
        };
        let mut direct = Measured::new("no proxy".to_owned(), Role::None);
        direct.add(Figure::Rate, 100_000.0);
        let outcome = Outcome {
            scenario: "two-hops".to_owned(),
            title: "two hops <x>".to_owned(),
            work: Work::Request,
            headlines: vec![Figure::Cpu],
            baseline: None,
            chains: vec![
                direct,
                chain("floor", Role::Floor, &[10.0]),
                chain("outrigger", Role::Outrigger, &[outrigger_cpu - 1.0, outrigger_cpu, outrigger_cpu + 4.0]),
                chain("nginx", Role::Peer, &[30.0]),
                chain("haproxy", Role::Peer, &[24.0]),
            ],
            gaps: vec!["envoy is not measured".to_owned()],
        };
        Report {
            date: "2026-11-21".to_owned(),
            machine: Machine {
                cpu: "A CPU".to_owned(),
                cores: 2,
                kernel: "6.1".to_owned(),
                versions: vec![("nginx".to_owned(), "nginx/1.22.1".to_owned())],
            },
            rounds: 3,
            seconds: 5,
            scenarios: vec![outcome],
        }
    }

    #[test]
    fn the_median_is_the_middle_and_the_spread_its_ends() {
        // One disturbed round would decide the figure.
        assert_eq!(Spread::of(&[9.0, 1.0, 2.0]), Some(Spread { median: 2.0, least: 1.0, most: 9.0 }));
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 9.0]).unwrap().median, 3.0);
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn the_best_peer_is_the_cheapest_or_the_fastest() {
        // A reader would take another chain's ratio for ours.
        let report = sample(12.0);
        let outcome = &report.scenarios[0];
        assert_eq!(outcome.best_peer(Figure::Cpu), Some((24.0, "haproxy")));
        assert_eq!(outcome.best_peer(Figure::Rate).unwrap().1, "haproxy");
        assert_eq!(outcome.best_peer(Figure::P99), None);
        let ours = &outcome.chains[2];
        assert_eq!(Outcome::ratio(ours, Figure::Cpu, outcome.floor(Figure::Cpu)), Some(1.2));
        assert_eq!(Outcome::ratio(&outcome.chains[0], Figure::Cpu, Some(1.0)), None);
    }

    #[test]
    fn a_glance_is_of_outrigger_and_leaves_out_what_is_not_known() {
        // The first thing that a reader looks at would be somebody else's figure.
        let mut outcome = sample(12.0).scenarios.remove(0);
        outcome.headlines.push(Figure::P99);
        let expected =
            Glance { figure: Figure::Cpu, own: 12.0, to_floor: Some(1.2), to_best_peer: Some((0.5, "haproxy")) };
        assert_eq!(outcome.glances(), [expected]);
        outcome.chains.retain(|measured| measured.role != Role::Peer);
        assert_eq!(outcome.glances()[0].to_best_peer, None);
    }

    #[test]
    fn reports_survive_being_written_and_read() {
        // `compare` and the README would read something else than was measured.
        let report = sample(12.0);
        let text = serde_json::to_string_pretty(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
        assert!(text.contains("\"cpu\": [") && text.contains("\"date\": \"2026-11-21\""), "{text}");
    }
}
