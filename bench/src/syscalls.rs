//! System calls of a chain while it works: counted by perf, or else by strace.
//!
//! perf counts in the kernel and disturbs little; strace stops the process at each call, so that more is done with each. Both are
//! used in a round of their own, which gives nothing but this count.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::peers::{self, Peer};

/// From the start of the tool until it certainly counts: it does not say when.
const ATTACH: Duration = Duration::from_millis(300);

/// A tool that counts.
pub struct Counting {
    tool: Child,
    kind: Peer,
    output: PathBuf,
}

/// The better tool that is here.
pub fn tool() -> Option<Peer> {
    [Peer::Perf, Peer::Strace].into_iter().find(|peer| peers::find(*peer).is_some() && works(*peer))
}

/// Whether it may be used: containers often forbid either.
fn works(peer: Peer) -> bool {
    let mut command = Command::new(peer.name());
    match peer {
        Peer::Perf => command.args(["stat", "-e", "raw_syscalls:sys_enter", "true"]),
        _ => command.args(["-c", "true"]),
    };
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

impl Counting {
    /// Starts to count the calls of these processes.
    ///
    /// # Errors
    /// When the tool cannot be started.
    pub fn start(kind: Peer, pids: &[u32], folder: &Path) -> Result<Self> {
        let output = folder.join("syscalls.txt");
        let mut command = Command::new(kind.name());
        let pids: Vec<_> = pids.iter().map(u32::to_string).collect();
        match kind {
            Peer::Perf => {
                command
                    .args(["stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p", &pids.join(","), "-o"])
                    .arg(&output);
            }
            _ => {
                command.args(["-c", "-f", "-o"]).arg(&output);
                for pid in &pids {
                    command.args(["-p", pid]);
                }
            }
        }
        let tool = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let tool = tool.with_context(|| format!("cannot start {}", kind.name()))?;
        thread::sleep(ATTACH);
        Ok(Self { tool, kind, output })
    }

    /// Ends it and gives the number of calls.
    ///
    /// # Errors
    /// When its report cannot be read.
    pub fn finish(mut self) -> Result<f64> {
        if let Some(pid) = i32::try_from(self.tool.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::INT);
        }
        self.tool.wait()?;
        let text = fs::read_to_string(&self.output).context("no count of system calls was written")?;
        let count = if self.kind == Peer::Perf { of_perf(&text) } else { of_strace(&text) };
        count.with_context(|| format!("the count of system calls cannot be read: {text}"))
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        let _ = self.tool.kill();
        let _ = self.tool.wait();
    }
}

/// `perf stat -x,`: the count is the first field.
fn of_perf(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.contains("raw_syscalls:sys_enter"))?;
    line.split(',').next()?.parse().ok()
}

/// `strace -c`: % time, seconds, usecs/call, calls, errors or nothing, syscall; the last line is the total.
fn of_strace(text: &str) -> Option<f64> {
    let line = text.lines().rev().find(|line| line.trim_end().ends_with(" total"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn both_tools_reports_are_read() {
        // Calls per request would be microseconds, or errors.
        let perf = "# started on x\n\n29,,raw_syscalls:sys_enter,1094542,100.00,,\n";
        assert_eq!(of_perf(perf), Some(29.0));
        assert_eq!(of_perf("<not counted>,,raw_syscalls:sys_enter,0,0.00,,\n"), None);
        let strace = "% time     seconds  usecs/call     calls    errors syscall\n------ --- --- --- --- ----\n \
             60.00    0.001000           1      1000         3 read\n------ --- --- --- --- ----\n\
            100.00    0.002000           1      1500         3 total\n";
        assert_eq!(of_strace(strace), Some(1500.0));
        assert_eq!(of_strace("100.00    0.002000           1      1500           total\n"), Some(1500.0));
    }
}
