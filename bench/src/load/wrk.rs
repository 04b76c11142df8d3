//! Load from wrk: each connection asks again as soon as it was answered. Gives rate and latency at saturation.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, bail};

use super::{Aim, Latency, Load};
use crate::{chain::HOST, process::on_core};

/// Our own report: wrk's has no p99.9, and times in many units.
const DONE: &str = r#"done = function(summary, latency, requests)
  local errors = summary.errors
  print(string.format("figures %d %d %d %d %d %d %d %d", summary.requests, summary.duration,
    errors.connect + errors.read + errors.write + errors.timeout, errors.status,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency:percentile(99.9)))
end
"#;

/// Makes the load of `aim` on so many connections.
///
/// # Errors
/// When wrk cannot be run, or requests failed: a chain that fails is not a fast chain.
pub fn run(aim: &Aim<'_>, connections: u32) -> Result<Load> {
    let mut script = DONE.to_owned();
    if aim.scenario.request_bytes > 0 {
        script.push_str(&format!(
            "wrk.method = \"POST\"\nwrk.body = string.rep(\"x\", {})\n",
            aim.scenario.request_bytes
        ));
    }
    let path = aim.folder.join(format!("wrk-{}.lua", aim.scenario.name));
    fs::write(&path, script).with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = Command::new("wrk");
    command
        .args(["--threads", "1", "--latency"])
        .args(["--connections", &connections.to_string()])
        .args(["--duration", &format!("{}s", aim.time.as_secs().max(1))])
        .args(["--header", &format!("Host: {HOST}")])
        .arg("--script")
        .arg(path)
        .arg(format!("http://{}{}", aim.entry, aim.scenario.path()));
    let output = on_core(aim.core, || {
        command.output().context("cannot run wrk (hint: `outrigger-bench peers` says how to get it)")
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("wrk failed: {}{}", text, String::from_utf8_lossy(&output.stderr));
    }
    read(&text)
}

/// The line that the script prints.
fn read(text: &str) -> Result<Load> {
    let line = text.lines().find_map(|line| line.strip_prefix("figures ")).context("wrk's report has no figures")?;
    let numbers: Vec<f64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [requests, micros, broken, refused, p50, p90, p99, p999] = numbers[..] else {
        bail!("wrk's report has other figures than expected: {line}");
    };
    if broken > 0.0 || refused > 0.0 {
        bail!("requests failed: {broken} connections broke, {refused} answers were not 2xx or 3xx");
    }
    if requests == 0.0 || micros == 0.0 {
        bail!("no request was answered");
    }
    Ok(Load { count: requests, rate: requests / (micros / 1e6), latency: Some(Latency { p50, p90, p99, p999 }) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read() {
        // The table would show nothing, or one figure as another.
        let load = read("Running 3s test\n  280266 requests in 3.00s\nfigures 280266 3000000 0 0 641 752 1050 5330\n")
            .unwrap();
        assert_eq!((load.count, load.rate), (280_266.0, 93_422.0));
        assert_eq!(load.latency, Some(Latency { p50: 641.0, p90: 752.0, p99: 1050.0, p999: 5330.0 }));
    }

    #[test]
    fn failing_chains_give_no_figures() {
        // A proxy that answers 503 to everything would win.
        assert!(read("figures 9 1 0 7 1 1 1 1").unwrap_err().to_string().contains("not 2xx"));
        assert!(read("figures 9 1 5 0 1 1 1 1").is_err());
        assert!(read("figures 0 1 0 0 0 0 0 0").is_err());
        assert!(read("280266 requests in 3.00s").is_err());
    }
}
