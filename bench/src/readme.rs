//! The README's performance section, written from a committed result file.
//!
//! `outrigger-bench readme RESULT` writes it between two marks; a test checks that section and file agree. Without a committed
//! file there is no section: figures that nobody can trace are none.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};

use crate::figures::{Glance, Outcome, Report, Role, number};

const BEGIN: &str = "<!-- figures: written by `outrigger-bench readme`; do not edit -->";
const END: &str = "<!-- end of figures -->";
/// The section stands before this heading when there is none yet.
const BEFORE: &str = "## Status";

/// Scenarios of the section, in its order: what people ask for first.
const SHOWN: [&str; 10] = [
    "one-hop",
    "two-hops",
    "two-hops-http2",
    "two-hops-grpc",
    "latency-1k",
    "tcp-mtls-down",
    "tcp-plain-down",
    "handshakes",
    "idle",
    "start",
];

/// Writes the section of `result` into `readme`.
///
/// # Errors
/// When one of them cannot be read or written.
pub fn write(result: &Path, readme: &Path) -> Result<()> {
    let report = read(result)?;
    let text = fs::read_to_string(readme).with_context(|| format!("cannot read {}", readme.display()))?;
    fs::write(readme, with_section(&text, &section(&report))?)
        .with_context(|| format!("cannot write {}", readme.display()))
}

/// A result file.
///
/// # Errors
/// When it is none.
pub fn read(path: &Path) -> Result<Report> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no result of `outrigger-bench run`", path.display()))
}

/// The README with this section instead of the one it has.
fn with_section(readme: &str, section: &str) -> Result<String> {
    let block = format!("{BEGIN}\n{section}{END}\n");
    if let Some((before, rest)) = readme.split_once(BEGIN) {
        let (_, after) = rest.split_once(END).with_context(|| format!("the README has no \"{END}\""))?;
        return Ok(format!("{before}{block}\n{}", after.trim_start_matches('\n')));
    }
    let (before, after) = readme.split_once(BEFORE).with_context(|| format!("the README has no \"{BEFORE}\""))?;
    Ok(format!("{before}{block}\n{BEFORE}{after}"))
}

/// Heading, table, and what it takes to measure again.
fn section(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "## Performance\n\nOutrigger beside its peers in one run: {}, {} cores, kernel {}, {}. The floor is a bare forwarder on \
         hyper and rustls without any feature. Ratios are what can be compared with other machines; {} rounds of {} s, medians.\n\n\
         | scenario | figure | Outrigger | x floor | x best peer | all peers |\n|---|---|---|---|---|---|\n",
        machine.cpu, machine.cores, machine.kernel, report.date, report.rounds, report.seconds
    );
    for name in SHOWN {
        let Some(outcome) = report.scenarios.iter().find(|outcome| outcome.scenario == name) else { continue };
        text.extend(outcome.glances().iter().map(|glance| row(outcome, glance)));
    }
    let versions: Vec<_> = machine.versions.iter().map(|(name, version)| format!("{name}: {version}")).collect();
    let _ = write!(
        text,
        "\nVersions: {}. `outrigger-bench run` measures again, with all scenarios and a report: \
         [bench/README.md](bench/README.md).\n",
        versions.join("; ")
    );
    text
}

fn row(outcome: &Outcome, glance: &Glance<'_>) -> String {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let peers = outcome.chains.iter().filter(|measured| measured.role == Role::Peer);
    let peers = peers.filter_map(|peer| Some(format!("{} {}", peer.chain, number(peer.median(glance.figure)?))));
    let peers: Vec<_> = peers.collect();
    format!(
        "| {} | {} | {} | {} | {} | {} |\n",
        outcome.title,
        glance.figure.heading(outcome.work),
        number(glance.own),
        or_dash(glance.to_floor.map(|ratio| format!("{ratio:.2}"))),
        or_dash(glance.to_best_peer.map(|(ratio, name)| format!("{ratio:.2} ({name})"))),
        or_dash(Some(peers.join(", ")).filter(|peers| !peers.is_empty())),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::figures::tests::sample;

    /// The committed result: written by `just figures`.
    const RESULT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/results/reference.json");
    const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");

    #[test]
    fn the_readme_shows_the_committed_result() {
        // The README would promise what nobody measured.
        let readme = fs::read_to_string(README).unwrap();
        if Path::new(RESULT).exists() {
            let wanted = with_section(&readme, &section(&read(Path::new(RESULT)).unwrap())).unwrap();
            assert_eq!(readme, wanted, "hint: outrigger-bench readme bench/results/reference.json");
        } else {
            assert!(!readme.contains(BEGIN), "the README has figures, and no result file is committed");
        }
    }

    #[test]
    fn the_section_is_written_once_and_replaced() {
        // Each run would add another one, or eat what stands around it.
        let section = section(&sample(12.0));
        let line = section.lines().find(|line| line.contains("CPU us/request")).unwrap();
        assert_eq!(line, "| two hops <x> | CPU us/request | 12.0 | 1.20 | 0.50 (haproxy) | nginx 30.0, haproxy 24.0 |");
        assert!(
            section.contains("A CPU, 2 cores, kernel 6.1, 2026-11-21") && section.contains("nginx/1.22.1"),
            "{section}"
        );
        let once = with_section("# A\n\n## Status\n\nB\n", &section).unwrap();
        assert!(once.starts_with("# A\n\n<!-- figures") && once.ends_with("-->\n\n## Status\n\nB\n"), "{once}");
        assert_eq!(with_section(&once, &section).unwrap(), once);
        assert!(with_section(&once, "new\n").unwrap().contains("do not edit -->\nnew\n<!-- end"));
        assert!(with_section("# A\n", &section).is_err());
    }
}
