//! Load from wrk: each connection asks again as soon as it was answered. Gives rate and latency at saturation.

use std::{net::SocketAddr, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};

use crate::{measure::Load, process::on_core};

/// Loads `address` for `time` from `core`.
///
/// # Errors
/// When wrk cannot be run, or requests failed: a chain that fails is not a fast chain.
pub fn run(address: SocketAddr, host: &str, connections: u32, time: Duration, core: usize) -> Result<Load> {
    let mut command = Command::new("wrk");
    command
        .args(["--threads", "1", "--latency"])
        .args(["--connections", &connections.to_string()])
        .args(["--duration", &format!("{}s", time.as_secs().max(1))])
        .args(["--header", &format!("Host: {host}")])
        .arg(format!("http://{address}/"));
    let output = on_core(core, || {
        command.output().context("cannot run wrk (hint: `outrigger-bench peers` says how to get it)")
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("wrk failed: {}{}", text, String::from_utf8_lossy(&output.stderr));
    }
    read(&text)
}

/// wrk's report.
fn read(text: &str) -> Result<Load> {
    let lines = || text.lines().map(str::trim);
    if let Some(errors) = lines().find(|line| line.starts_with("Non-2xx") || line.starts_with("Socket errors")) {
        bail!("requests failed: {errors}");
    }
    let percentile = |name: &str| {
        lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|value| micros(value.trim()))
            .with_context(|| format!("wrk's report has no {name}"))
    };
    let rate = lines()
        .find_map(|line| line.strip_prefix("Requests/sec:"))
        .and_then(|value| value.trim().parse().ok())
        .context("wrk's report has no Requests/sec")?;
    let requests = lines()
        .find_map(|line| line.split_once(" requests in "))
        .and_then(|(count, _)| count.parse().ok())
        .context("wrk's report has no number of requests")?;
    Ok(Load { requests, rate, p50_micros: percentile("50%")?, p99_micros: percentile("99%")? })
}

/// `1.20ms` and the like.
fn micros(text: &str) -> Option<f64> {
    let digits = text.trim_end_matches(char::is_alphabetic);
    let factor = match &text[digits.len()..] {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" => 60e6,
        _ => return None,
    };
    digits.parse::<f64>().ok().map(|value| value * factor)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const REPORT: &str = "Running 3s test @ http://127.0.0.1:1/\n  1 threads and 64 connections\n  Thread Stats   Avg      Stdev     \
        Max   +/- Stdev\n    Latency   652.14us  110.61us   5.33ms   89.52%\n    Req/Sec    93.88k     3.42k   98.84k    73.33%\n  \
        Latency Distribution\n     50%  641.00us\n     75%  690.00us\n     90%  752.00us\n     99%    1.05ms\n  280266 requests in \
        3.00s, 35.01MB read\nRequests/sec:  93389.29\nTransfer/sec:     11.67MB\n";

    #[test]
    fn wrk_reports_are_read() {
        // The table would show nothing, or milliseconds as microseconds.
        let load = read(REPORT).unwrap();
        assert_eq!((load.requests, load.p50_micros, load.p99_micros), (280_266, 641.0, 1050.0));
        assert_eq!(load.rate, 93389.29);
        for (text, expected) in [("2.5s", Some(2.5e6)), ("1m", Some(60e6)), ("7", None), ("xus", None)] {
            assert_eq!(micros(text), expected);
        }
    }

    #[test]
    fn failing_chains_give_no_figures() {
        // A proxy that answers 503 to everything would win.
        let failing = format!("{REPORT}  Non-2xx or 3xx responses: 7\n");
        assert!(read(&failing).unwrap_err().to_string().contains("Non-2xx"));
        let broken = format!("  Socket errors: connect 0, read 5, write 0, timeout 0\n{REPORT}");
        assert!(read(&broken).is_err());
    }
}
