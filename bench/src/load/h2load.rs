//! Load from h2load: each stream asks again as soon as it was answered. HTTP/2 with prior knowledge, and gRPC unary calls.
//!
//! It does not look at `grpc-status`; `probe` does, before the load begins.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;

use super::{Aim, Latency, Load, histogram};
use crate::{chain::HOST, origin, process::on_core, scenario::Client};

/// Makes the load of `aim`.
///
/// # Errors
/// When h2load cannot be run, or requests failed.
pub fn run(aim: &Aim<'_>, connections: u32, streams: u32) -> Result<Load> {
    let log = aim.folder.join(format!("h2load-{}.log", aim.scenario.name));
    // It appends.
    let _ = fs::remove_file(&log);
    let mut command = Command::new("h2load");
    command
        .args(["--threads", "1", "--clients", &connections.to_string()])
        .args(["--max-concurrent-streams", &streams.to_string()])
        .args(["--duration", &format!("{}s", aim.time.as_secs().max(1))])
        .args(["--connect-to", &aim.entry.to_string()])
        .arg(format!("--log-file={}", log.display()));
    let body = if aim.scenario.client == Client::Grpc {
        command.args(["--header", "content-type: application/grpc", "--header", "te: trailers"]);
        Some(origin::message(aim.scenario.request_bytes).to_vec())
    } else {
        Some(vec![b'x'; aim.scenario.request_bytes]).filter(|body| !body.is_empty())
    };
    if let Some(body) = body {
        let path = aim.folder.join(format!("h2load-{}.body", aim.scenario.name));
        fs::write(&path, body).with_context(|| format!("cannot write {}", path.display()))?;
        command.arg(format!("--data={}", path.display()));
    }
    command.arg(format!("http://{HOST}{}", aim.scenario.path()));
    let output = on_core(aim.core, || command.output().context("cannot run h2load"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("h2load failed: {}{}", text, String::from_utf8_lossy(&output.stderr));
    }
    let (count, rate) = read(&text)?;
    let latencies = latencies(&fs::read_to_string(&log).context("h2load wrote no log")?)?;
    let _ = fs::remove_file(&log);
    Ok(Load { count, rate, latency: Some(Latency::of(&latencies)) })
}

/// Requests and their rate from its report.
fn read(text: &str) -> Result<(f64, f64)> {
    let line = |start: &str| {
        text.lines().find(|line| line.starts_with(start)).with_context(|| format!("h2load's report has no \"{start}\""))
    };
    let number = |line: &str, word: &str| {
        let part = line.split([',', ':']).map(str::trim).find_map(|part| part.strip_suffix(word)?.trim().parse().ok());
        part.with_context(|| format!("h2load's report has no number of {word}"))
    };
    let (requests, statuses) = (line("requests:")?, line("status codes:")?);
    let succeeded: f64 = number(requests, "succeeded")?;
    let refused: f64 = number(requests, "failed")?;
    let errors = number(statuses, "4xx")? + number(statuses, "5xx")?;
    if refused > 0.0 || errors > 0.0 {
        bail!("requests failed: {requests}; {statuses}");
    }
    if succeeded == 0.0 {
        bail!("no request was answered: {requests}");
    }
    Ok((succeeded, number(line("finished in")?, "req/s")?))
}

/// Its log: start, status, microseconds.
fn latencies(text: &str) -> Result<Histogram<u64>> {
    let mut latencies = histogram()?;
    for line in text.lines() {
        let micros = line.split('\t').nth(2).and_then(|field| field.trim().parse().ok());
        latencies.saturating_record(micros.with_context(|| format!("h2load's log has a line \"{line}\""))?);
    }
    Ok(latencies)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const REPORT: &str = "starting benchmark...\nfinished in 1.00s, 44543.00 req/s, 4.30MB/s\n\
        requests: 44543 total, 44703 started, 44543 done, 44543 succeeded, 0 failed, 0 errored, 0 timeout\n\
        status codes: 44543 2xx, 0 3xx, 0 4xx, 0 5xx\n";

    #[test]
    fn reports_are_read() {
        // The table would show nothing, or failures as answers.
        assert_eq!(read(REPORT).unwrap(), (44_543.0, 44_543.0));
        assert!(read(&REPORT.replace("0 5xx", "3 5xx")).is_err());
        assert!(read(&REPORT.replace("0 failed", "3 failed")).is_err());
        let latencies = latencies("1\t200\t150\n2\t200\t250\n").unwrap();
        assert_eq!((latencies.len(), latencies.max()), (2, 250));
    }
}
