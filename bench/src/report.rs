//! Figures for people and for programs: medians, spread, and ratios first.
//!
//! Absolute figures hold for one machine and one moment; the ratios to the floor and to the best peer of the same run are
//! what can be compared with other runs.

use std::fmt::Write as _;

use serde::Serialize;

use crate::measure::{Machine, Measured, Outcome, Round};

/// Everything that `-o json` writes.
#[derive(Serialize)]
pub struct Report<'a> {
    pub machine: &'a Machine,
    pub rounds: u32,
    pub seconds: u64,
    pub scenarios: &'a [Outcome],
}

/// The middle and the ends of one figure over the rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

/// Of the rounds' figures; `None` without rounds.
pub fn spread(rounds: &[Round], figure: impl Fn(&Round) -> f64) -> Option<Spread> {
    let mut values: Vec<f64> = rounds.iter().map(figure).collect();
    values.sort_by(f64::total_cmp);
    let (least, most) = (*values.first()?, *values.last()?);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get((values.len() - 1) / 2)?;
    Some(Spread { median: f64::midpoint(lower, upper), least, most })
}

fn cpu(measured: &Measured) -> Option<Spread> {
    spread(&measured.rounds, |round| round.cpu_micros_per_request).filter(|spread| spread.median > 0.0)
}

/// One table per scenario.
pub fn table(report: &Report<'_>) -> String {
    let mut text = String::new();
    let machine = report.machine;
    let _ =
        writeln!(text, "{}, kernel {}, {} rounds of {} s", machine.cpu, machine.kernel, report.rounds, report.seconds);
    for (name, version) in &machine.versions {
        let _ = writeln!(text, "  {name}: {version}");
    }
    for outcome in report.scenarios {
        let _ = write!(text, "\n{}: {}\n{}", outcome.scenario, outcome.title, rows(outcome));
        for gap in &outcome.gaps {
            let _ = writeln!(text, "  {gap}");
        }
    }
    text
}

fn rows(outcome: &Outcome) -> String {
    let median_cpu = |wanted: &dyn Fn(&&Measured) -> bool| {
        let medians = outcome.chains.iter().filter(wanted).filter_map(|measured| Some(cpu(measured)?.median));
        medians.min_by(f64::total_cmp)
    };
    let floor = median_cpu(&|measured| measured.chain == "floor");
    let best_peer = median_cpu(&|measured| measured.is_peer);
    let mut text = format!(
        "{:14} {:>8} {:>10} {:>18} {:>18} {:>9} {:>9} {:>15}\n",
        "", "x floor", "x best peer", "CPU us/request", "requests/s", "p50 us", "p99 us", "MB idle, peak"
    );
    for measured in &outcome.chains {
        let ratio = |to: Option<f64>| match (cpu(measured), to) {
            (Some(own), Some(to)) => format!("{:.2}", own.median / to),
            _ => "-".to_owned(),
        };
        let figure = |spread: Option<Spread>, digits: usize| match spread {
            Some(spread) => {
                let half = (spread.most - spread.least) / 2.0;
                format!("{:.digits$} ±{half:.digits$}", spread.median)
            }
            None => "-".to_owned(),
        };
        let micros = |figure: fn(&Round) -> f64| {
            spread(&measured.rounds, figure).map_or_else(|| "-".to_owned(), |spread| format!("{:.0}", spread.median))
        };
        let memory = if measured.peak_kib == 0 {
            "-".to_owned()
        } else {
            format!("{:.1}, {:.1}", measured.idle_kib as f64 / 1024.0, measured.peak_kib as f64 / 1024.0)
        };
        let _ = writeln!(
            text,
            "{:14} {:>8} {:>11} {:>18} {:>18} {:>9} {:>9} {:>15}",
            measured.chain,
            ratio(floor),
            ratio(best_peer),
            figure(cpu(measured), 1),
            figure(spread(&measured.rounds, |round| round.requests_per_second), 0),
            micros(|round| round.p50_micros),
            micros(|round| round.p99_micros),
            memory,
        );
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rounds(cpu: &[f64]) -> Vec<Round> {
        cpu.iter()
            .map(|cpu| Round {
                requests_per_second: 1000.0,
                p50_micros: 1.0,
                p99_micros: 2.0,
                cpu_micros_per_request: *cpu,
            })
            .collect()
    }

    #[test]
    fn the_median_is_the_middle_and_the_spread_its_ends() {
        // One disturbed round would decide the figure.
        let of = |cpu: &[f64]| spread(&rounds(cpu), |round| round.cpu_micros_per_request);
        assert_eq!(of(&[9.0, 1.0, 2.0]), Some(Spread { median: 2.0, least: 1.0, most: 9.0 }));
        assert_eq!(of(&[4.0, 1.0, 2.0, 9.0]).unwrap().median, 3.0);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn ratios_are_to_the_floor_and_to_the_cheapest_peer() {
        // A reader would take another chain's ratio for ours.
        let chain = |chain: &str, is_peer, cpu: &[f64]| Measured {
            chain: chain.to_owned(),
            is_peer,
            rounds: rounds(cpu),
            idle_kib: 1024,
            peak_kib: 2048,
        };
        let outcome = Outcome {
            scenario: "x".to_owned(),
            title: "y".to_owned(),
            chains: vec![
                chain("no proxy", false, &[0.0]),
                chain("floor", false, &[10.0]),
                chain("outrigger", false, &[12.0]),
                chain("nginx", true, &[30.0]),
                chain("haproxy", true, &[24.0]),
            ],
            gaps: Vec::new(),
        };
        let text = rows(&outcome);
        let row = text.lines().find(|line| line.starts_with("outrigger")).unwrap();
        assert_eq!(row.split_whitespace().skip(1).take(3).collect::<Vec<_>>(), ["1.20", "0.50", "12.0"]);
        let direct = text.lines().find(|line| line.starts_with("no proxy")).unwrap();
        assert_eq!(direct.split_whitespace().skip(2).take(3).collect::<Vec<_>>(), ["-", "-", "-"]);
    }
}
