//! Figures for a terminal: one table per scenario, ratios first.
//!
//! Absolute figures hold for one machine and one moment; the ratios to the floor and to the best peer of the same run are
//! what can be compared with other runs.

use std::fmt::Write as _;

use crate::figures::{Figure, Measured, Outcome, Report, number};

/// Two blanks and more part the columns.
const GAP: &str = "  ";

/// The whole report.
pub fn text(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "{}, {} cores, kernel {}, {}, {} rounds of {} s\n",
        machine.cpu, machine.cores, machine.kernel, report.date, report.rounds, report.seconds
    );
    for (name, version) in &machine.versions {
        let _ = writeln!(text, "  {name}: {version}");
    }
    for outcome in &report.scenarios {
        let _ = write!(text, "\n{}: {}\n{}", outcome.scenario, outcome.title, aligned(&rows(report, outcome)));
        for gap in &outcome.gaps {
            let _ = writeln!(text, "  {gap}");
        }
    }
    let summary = summary(report);
    if report.scenarios.len() > 1 && summary.len() > 1 {
        let _ = write!(text, "\nat a glance:\n{}", aligned(&summary));
    }
    text
}

/// Every headline of Outrigger in one table, with a heading.
pub fn summary(report: &Report) -> Vec<Vec<String>> {
    let heading = ["", "figure", "outrigger", "x floor", "x best peer", "who"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for outcome in &report.scenarios {
        for glance in outcome.glances() {
            let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
            rows.push(vec![
                outcome.scenario.clone(),
                glance.figure.heading(outcome.work),
                number(glance.own),
                ratio(glance.to_floor),
                ratio(glance.to_best_peer.map(|(ratio, _)| ratio)),
                glance.to_best_peer.map_or_else(String::new, |(_, name)| name.to_owned()),
            ]);
        }
    }
    rows
}

/// Heading and one row per chain: ratios of the headlines, then every figure, then the hops apart.
pub fn rows(report: &Report, outcome: &Outcome) -> Vec<Vec<String>> {
    if outcome.chains.is_empty() {
        return Vec::new();
    }
    let compared: Vec<Figure> = outcome
        .headlines
        .iter()
        .copied()
        .filter(|figure| outcome.floor(*figure).is_some() || outcome.best_peer(*figure).is_some())
        .collect();
    let figures = outcome.present();
    let has_hops = outcome.chains.iter().any(|measured| measured.hops.len() > 1);
    let mut heading = vec![String::new()];
    for figure in &compared {
        let name = if compared.len() > 1 { format!("{} ", short(*figure)) } else { String::new() };
        heading.extend([format!("{name}x floor"), format!("{name}x best peer")]);
    }
    let baseline = outcome.baseline.as_ref().zip(outcome.headlines.first()).filter(|(_, figure)| {
        outcome.chains.iter().any(|measured| outcome.in_baseline(report, measured, **figure).is_some())
    });
    heading.extend(baseline.map(|(name, _)| format!("x {name}")));
    heading.extend(figures.iter().map(|figure| figure.heading(outcome.work)));
    if has_hops {
        heading.push("by hop".to_owned());
    }
    let mut rows = vec![heading];
    for measured in &outcome.chains {
        let mut row = vec![measured.chain.clone()];
        for figure in &compared {
            let best = outcome.best_peer(*figure).map(|(value, _)| value);
            row.extend([outcome.floor(*figure), best].map(|to| ratio(measured, *figure, to)));
        }
        row.extend(
            baseline.map(|(_, figure)| ratio(measured, *figure, outcome.in_baseline(report, measured, *figure))),
        );
        row.extend(figures.iter().map(|figure| cell(measured, *figure)));
        if has_hops {
            row.push(hops(measured));
        }
        rows.push(row);
    }
    rows
}

fn ratio(measured: &Measured, figure: Figure, to: Option<f64>) -> String {
    Outcome::ratio(measured, figure, to).map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
}

const fn short(figure: Figure) -> &'static str {
    match figure {
        Figure::AddedP50 => "added",
        Figure::P99 => "p99",
        Figure::IdleMemory => "idle",
        Figure::ConnectionMemory => "connection",
        _ => "CPU",
    }
}

/// The median, and half the distance between best and worst where that says something.
pub fn cell(measured: &Measured, figure: Figure) -> String {
    match measured.spread(figure) {
        None => "-".to_owned(),
        Some(spread) if figure.shows_spread() && spread.most > spread.least => {
            format!("{} ±{}", number(spread.median), number(spread.half()))
        }
        Some(spread) => number(spread.median),
    }
}

/// CPU of each proxy.
fn hops(measured: &Measured) -> String {
    let one = |hop: &crate::figures::Hop| {
        let sums: Vec<_> = hop.user.iter().zip(&hop.system).map(|(user, system)| user + system).collect();
        crate::figures::Spread::of(&sums).map_or_else(|| "-".to_owned(), |spread| number(spread.median))
    };
    if measured.hops.is_empty() {
        return "-".to_owned();
    }
    measured.hops.iter().map(one).collect::<Vec<_>>().join(" / ")
}

/// Columns side by side: the first to the left, the others to the right.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column == 0 { format!("{cell:width$}") } else { format!("{cell:>width$}") }
        });
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join(GAP).trim_end());
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::figures::tests::sample;

    #[test]
    fn ratios_stand_first_and_gaps_last() {
        // A reader would take another chain's ratio for ours, or miss that a chain is missing.
        let text = text(&sample(12.0));
        let row = |start: &str| {
            let line = text.lines().find(|line| line.starts_with(start)).unwrap();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(row("outrigger")[1..5], ["1.20", "0.50", "12.0", "±2.50"]);
        assert_eq!(row("no proxy")[2..5], ["-", "-", "-"]);
        assert!(text.contains("x floor") && text.contains("CPU us/request"), "{text}");
        assert!(text.trim_end().ends_with("envoy is not measured"), "{text}");
        let summary = summary(&sample(12.0));
        assert_eq!(summary[1], ["two-hops", "CPU us/request", "12.0", "1.20", "0.50", "haproxy"]);
    }

    #[test]
    fn what_differs_in_one_thing_is_compared_with_its_baseline() {
        // Whether cost grows with the number of rules could not be read from one table.
        let (mut report, one) = (sample(24.0), sample(12.0).scenarios.remove(0));
        report.scenarios[0].baseline = Some("rules-1".to_owned());
        assert!(!text(&report).contains("x rules-1"), "the baseline was not run");
        report.scenarios.push(Outcome { scenario: "rules-1".to_owned(), ..one });
        let rows = rows(&report, &report.scenarios[0]);
        let column = rows[0].iter().position(|heading| heading == "x rules-1").unwrap();
        assert_eq!((rows[3][0].as_str(), rows[3][column].as_str()), ("outrigger", "2.00"));
    }
}
