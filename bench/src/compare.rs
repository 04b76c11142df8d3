//! Two results side by side: what changed, and whether by more than the rounds differ among themselves. Pure.

use crate::{
    figures::{Figure, Measured, Outcome, Report, Spread, number},
    table::aligned,
};

/// Figures that a comparison shows: what a chain costs, does and keeps.
const SHOWN: [Figure; 14] = [
    Figure::Cpu,
    Figure::Rate,
    Figure::AddedP50,
    Figure::P50,
    Figure::P99,
    Figure::Syscalls,
    Figure::IdleMemory,
    Figure::PeakMemory,
    Figure::ConnectionMemory,
    Figure::StartToReady,
    Figure::EffectP99,
    Figure::Swaps,
    Figure::BackAfter,
    Figure::PlaneMemory,
];

/// Which way a figure went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Better,
    Worse,
    /// The rounds of the two results overlap.
    Within,
}

/// A table per scenario that both have.
pub fn text(before: &Report, after: &Report) -> String {
    let mut text = String::new();
    if before.machine.cpu != after.machine.cpu || before.machine.kernel != after.machine.kernel {
        text.push_str("the two are of different machines or kernels: look at the ratios to the floor only\n");
    }
    for outcome in &after.scenarios {
        let Some(earlier) = before.scenarios.iter().find(|earlier| earlier.scenario == outcome.scenario) else {
            text.push_str(&format!("\n{}: only in the second\n", outcome.scenario));
            continue;
        };
        let mut rows: Vec<Vec<String>> = vec![
            ["", "figure", "before", "after", "change", "x floor before", "after", ""].map(str::to_owned).to_vec(),
        ];
        for measured in &outcome.chains {
            let Some(old) = earlier.chains.iter().find(|old| old.chain == measured.chain) else { continue };
            for figure in SHOWN {
                rows.extend(row((earlier, old), (outcome, measured), figure));
            }
        }
        text.push_str(&format!("\n{}: {}\n{}", outcome.scenario, outcome.title, aligned(&rows)));
    }
    for earlier in &before.scenarios {
        if !after.scenarios.iter().any(|outcome| outcome.scenario == earlier.scenario) {
            text.push_str(&format!("\n{}: only in the first\n", earlier.scenario));
        }
    }
    text
}

fn row(before: (&Outcome, &Measured), after: (&Outcome, &Measured), figure: Figure) -> Option<Vec<String>> {
    let (old, new) = (before.1.spread(figure)?, after.1.spread(figure)?);
    let ratio = |(outcome, measured): (&Outcome, &Measured)| {
        let ratio = Outcome::ratio(measured, figure, outcome.floor(figure));
        ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
    };
    let percent =
        if old.median == 0.0 { "-".to_owned() } else { format!("{:+.1} %", (new.median / old.median - 1.0) * 100.0) };
    let verdict = match change(figure, old, new) {
        Change::Better => "better",
        Change::Worse => "worse",
        Change::Within => "",
    };
    Some(vec![
        after.1.chain.clone(),
        figure.heading(after.0.work),
        number(old.median),
        number(new.median),
        percent,
        ratio(before),
        ratio(after),
        verdict.to_owned(),
    ])
}

/// A change counts when no round of one is among the rounds of the other.
fn change(figure: Figure, before: Spread, after: Spread) -> Change {
    if after.least <= before.most && before.least <= after.most {
        return Change::Within;
    }
    if (after.median > before.median) == figure.more_is_better() { Change::Better } else { Change::Worse }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::figures::tests::sample;

    #[test]
    fn only_what_is_outside_the_spread_is_called_a_change() {
        // Noise would be celebrated, or a loss overlooked.
        let of = |values: &[f64]| Spread::of(values).unwrap();
        let verdict = |figure, before: &[f64], after: &[f64]| change(figure, of(before), of(after));
        assert_eq!(verdict(Figure::Cpu, &[10.0, 11.0], &[10.5, 12.0]), Change::Within);
        assert_eq!(verdict(Figure::Cpu, &[10.0, 11.0], &[12.0, 13.0]), Change::Worse);
        assert_eq!(verdict(Figure::Cpu, &[10.0, 11.0], &[8.0, 9.0]), Change::Better);
        assert_eq!(verdict(Figure::Rate, &[10.0, 11.0], &[12.0, 13.0]), Change::Better);
    }

    #[test]
    fn both_results_are_named_with_their_ratios() {
        // A scenario that was not run in both would silently be missing.
        let (before, mut after) = (sample(20.0), sample(12.0));
        let mut other = after.scenarios[0].clone();
        other.scenario = "one-hop".to_owned();
        after.scenarios.push(other);
        let text = text(&before, &after);
        let line = text.lines().find(|line| line.starts_with("outrigger") && line.contains("CPU")).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words, ["outrigger", "CPU", "us/request", "20.0", "12.0", "-40.0", "%", "2.00", "1.20", "better"]);
        assert!(text.contains("one-hop: only in the second"), "{text}");
    }
}
