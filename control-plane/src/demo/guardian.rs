//! Cleans up after a demo that died without doing so itself (SIGKILL, a crash, a closed terminal).
//!
//! A process of its own, started first, in its own process group so that Ctrl-C does not reach it. The demo tells it
//! on a pipe what exists ([`Guard`]); when the pipe closes without `done`, it ends the processes and removes
//! namespaces, links and folders. A process is only touched while it is still the one that was announced.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::network;

/// Wait between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// The demo's end of the pipe.
pub struct Guard {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Guard {
    /// Starts the guardian as `program demo guardian`.
    pub fn start(program: &Path) -> io::Result<Self> {
        let mut child = Command::new(program)
            .args(["demo", "guardian"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let pipe = child.stdin.take();
        Ok(Self { child, pipe })
    }

    /// A process to end.
    pub fn process(&mut self, pid: u32) {
        self.tell(&format!("process {pid}"));
    }

    /// A process that has ended.
    pub fn gone(&mut self, pid: u32) {
        self.tell(&format!("gone {pid}"));
    }

    /// A folder to remove.
    pub fn folder(&mut self, path: &Path) {
        self.tell(&format!("folder {}", path.display()));
    }

    /// Network namespaces and links whose names begin so.
    pub fn network(&mut self, prefix: &str) {
        self.tell(&format!("network {prefix}"));
    }

    fn tell(&mut self, line: &str) {
        // A guardian that is gone cannot help; the demo still cleans up itself.
        if let Some(pipe) = &mut self.pipe {
            let _ = writeln!(pipe, "{line}").and_then(|()| pipe.flush());
        }
    }

    /// Everything is cleaned up: lets the guardian go.
    pub fn done(mut self) {
        self.tell("done");
        self.pipe = None;
        let _ = self.child.wait();
    }
}

/// What the guardian knows to exist.
#[derive(Debug, Default, PartialEq, Eq)]
struct Estate {
    /// Process and the time it started, as the kernel counts it.
    processes: BTreeMap<u32, Option<String>>,
    folders: Vec<PathBuf>,
    networks: Vec<String>,
    settled: bool,
}

impl Estate {
    fn note(&mut self, line: &str, started: impl Fn(u32) -> Option<String>) {
        let (word, value) = line.split_once(' ').unwrap_or((line, ""));
        match (word, value.parse::<u32>()) {
            ("process", Ok(pid)) => {
                self.processes.insert(pid, started(pid));
            }
            ("gone", Ok(pid)) => {
                self.processes.remove(&pid);
            }
            ("folder", _) if !value.is_empty() => self.folders.push(PathBuf::from(value)),
            ("network", _) if !value.is_empty() => self.networks.push(value.to_owned()),
            ("done", _) => self.settled = true,
            _ => {}
        }
    }
}

/// The guardian itself: listens until the pipe closes, then cleans up if that was not done.
pub fn run() -> ExitCode {
    let mut estate = Estate::default();
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        estate.note(&line, start_time);
    }
    if estate.settled {
        return ExitCode::SUCCESS;
    }
    let alive = |(pid, started): &(u32, Option<String>)| started.is_some() && start_time(*pid) == *started;
    let mut left: Vec<_> = estate.processes.into_iter().filter(alive).collect();
    for (pid, _) in &left {
        signal(*pid, Signal::TERM);
    }
    let end = Instant::now() + GRACE;
    while Instant::now() < end && !left.is_empty() {
        std::thread::sleep(Duration::from_millis(50));
        left.retain(alive);
    }
    for (pid, _) in &left {
        signal(*pid, Signal::KILL);
    }
    for prefix in &estate.networks {
        network::remove_all(prefix);
    }
    for folder in &estate.folders {
        let _ = std::fs::remove_dir_all(folder);
    }
    ExitCode::SUCCESS
}

/// Sends a signal; a process that is gone is no error.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// When a living process started, in the kernel's ticks; `None` when there is none or it is a zombie.
fn start_time(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc_pid_stat(5): the name in parentheses may hold anything; state is field 3, start time field 22.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let started = fields.nth(18)?;
    (state != "Z").then(|| started.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_is_not_touched() {
        // The number of a process that ended may belong to a stranger by the time we clean up.
        let mut estate = Estate::default();
        for line in ["process 10", "process 11", "gone 10", "folder /tmp/a b", "network x-", "process nonsense", ""] {
            estate.note(line, |pid| Some(pid.to_string()));
        }
        assert_eq!(
            estate,
            Estate {
                processes: [(11, Some("11".to_owned()))].into(),
                folders: vec![PathBuf::from("/tmp/a b")],
                networks: vec!["x-".to_owned()],
                settled: false,
            }
        );
        estate.note("done", |_| None);
        assert!(estate.settled);
    }

    #[test]
    fn a_process_is_known_by_its_start() {
        // Without this the guardian could not tell a process from a later one with the same number.
        let own = start_time(std::process::id()).unwrap();
        assert_eq!(start_time(std::process::id()).unwrap(), own);
        assert!(own.parse::<u64>().is_ok());
        assert_eq!(start_time(0), None);
    }
}
