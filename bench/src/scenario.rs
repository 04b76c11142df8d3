//! What is measured: one scenario per data file in `bench/scenarios/`.
//!
//! The files are built in, so that the binary runs from anywhere; `--scenario-dir` reads others. Says nothing about how
//! a chain is started (`chain`) or how the load is made (`closed_loop`, `open_loop`).

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// One scenario.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Name on the command line: the file's name without its ending.
    #[serde(skip)]
    pub name: String,
    /// What the table says.
    pub title: String,
    /// Proxies between client and origin: 1 (plaintext) or 2 (mutual TLS between them).
    pub hops: u8,
    /// Size of the origin's response body.
    pub response_bytes: usize,
    pub load: Load,
}

/// How requests are made.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Load {
    /// Each connection asks again as soon as it was answered (wrk).
    Closed { connections: u32 },
    /// A constant rate, whatever the answers do; latency counts from the intended start.
    Open { connections: u32, requests_per_second: u32 },
}

const BUILT_IN: [(&str, &str); 3] = [
    ("one-hop", include_str!("../scenarios/one-hop.toml")),
    ("two-hops", include_str!("../scenarios/two-hops.toml")),
    ("latency-1k", include_str!("../scenarios/latency-1k.toml")),
];

/// The scenarios of these names, in this order; all of them when no name is given.
///
/// # Errors
/// A name that no file has, or a file that is no scenario.
pub fn load(names: &[String], folder: Option<&Path>) -> Result<Vec<Scenario>> {
    let known = match folder {
        None => BUILT_IN.iter().map(|(name, text)| parse(name, text)).collect::<Result<Vec<_>>>()?,
        Some(folder) => read(folder)?,
    };
    if names.is_empty() {
        return Ok(known);
    }
    names
        .iter()
        .map(|name| match known.iter().find(|scenario| scenario.name == *name) {
            Some(scenario) => Ok(scenario.clone()),
            None => {
                let all: Vec<_> = known.iter().map(|scenario| scenario.name.as_str()).collect();
                bail!("no scenario \"{name}\" (hint: there are {})", all.join(", "))
            }
        })
        .collect()
}

fn read(folder: &Path) -> Result<Vec<Scenario>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            parse(&path.file_stem().unwrap_or_default().to_string_lossy(), &text)
        })
        .collect()
}

fn parse(name: &str, text: &str) -> Result<Scenario> {
    let mut scenario: Scenario = toml::from_str(text).with_context(|| format!("scenario \"{name}\" cannot be read"))?;
    name.clone_into(&mut scenario.name);
    if !(1..=2).contains(&scenario.hops) {
        bail!("scenario \"{name}\": hops is {}, but chains have 1 or 2", scenario.hops);
    }
    let (connections, rate) = match scenario.load {
        Load::Closed { connections } => (connections, 1),
        Load::Open { connections, requests_per_second } => (connections, requests_per_second),
    };
    if connections == 0 || rate == 0 {
        bail!("scenario \"{name}\": connections and requests_per_second must be at least 1");
    }
    Ok(scenario)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn built_in_scenarios_can_be_read_and_chosen() {
        // `run` would fail before it measures anything.
        assert_eq!(load(&[], None).unwrap().len(), BUILT_IN.len());
        let chosen = load(&["two-hops".to_owned()], None).unwrap();
        assert_eq!((chosen.len(), chosen[0].hops), (1, 2));
        let unknown = load(&["three-hops".to_owned()], None).unwrap_err().to_string();
        assert!(unknown.contains("three-hops") && unknown.contains("one-hop"), "{unknown}");
    }

    #[test]
    fn senseless_scenarios_are_refused() {
        // A typing mistake in a file would measure something else than it says.
        for text in [
            "title = 'x'\nhops = 3\nresponse_bytes = 1\n[load]\nkind = 'closed'\nconnections = 1",
            "title = 'x'\nhops = 1\nresponse_bytes = 1\n[load]\nkind = 'closed'\nconnections = 0",
            "title = 'x'\nhops = 1\nresponse_bytes = 1\n[load]\nkind = 'open'\nconnections = 1",
            "title = 'x'\nhop = 1\nhops = 1\nresponse_bytes = 1\n[load]\nkind = 'closed'\nconnections = 1",
        ] {
            assert!(parse("x", text).is_err(), "{text}");
        }
    }
}
