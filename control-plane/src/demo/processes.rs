//! The demo's child processes: started, watched, stopped; nothing left behind.
//!
//! Each child has its own process group (Ctrl-C in a terminal reaches the demo alone, which then stops the children in
//! order) and writes to a log file of its own. A child that ends without having been told to is a broken promise.
//! Dropping [`Processes`] kills what still runs; `guardian` does it when the demo itself is killed.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::Signal;
use tokio::time::Instant;

use super::guardian::{self, Guard};

/// Lines of a log that are shown when its process died.
const TAIL_LINES: usize = 8;
/// Bytes of a log that are searched for them.
const TAIL_BYTES: u64 = 4096;

/// Variables beside `OUTRIGGER_*` that a sidecar reads.
const OTHER_MESH_VARIABLES: [&str; 5] = ["POD_NAME", "POD_NAMESPACE", "SERVICE_ACCOUNT", "TRUST_DOMAIN", "INSTANCE_IP"];

/// A process to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Unique among the demo's processes; also names the log file.
    pub name: String,
    pub program: OsString,
    pub args: Vec<OsString>,
    /// Whether the process takes orders on standard input.
    pub orders: bool,
    /// Whether it ends by itself, so that its end is no death.
    pub brief: bool,
}

impl Launch {
    /// `program` with `args`.
    pub fn new<A: Into<OsString>>(
        name: impl Into<String>,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        Self {
            name: name.into(),
            program: program.as_ref().to_owned(),
            args: args.into_iter().map(Into::into).collect(),
            orders: false,
            brief: false,
        }
    }

    /// The same, expected to end by itself.
    #[must_use]
    pub const fn brief(mut self) -> Self {
        self.brief = true;
        self
    }

    /// The same, taking orders on standard input, which closes when the demo ends.
    #[must_use]
    pub fn with_orders(mut self) -> Self {
        self.orders = true;
        self
    }

    /// The same, run by another program that executes the rest of its arguments (`ip netns exec ..`).
    #[must_use]
    pub fn through<A: Into<OsString>>(mut self, runner: impl IntoIterator<Item = A>) -> Self {
        let mut words: Vec<OsString> = runner.into_iter().map(Into::into).collect();
        if words.is_empty() {
            return self;
        }
        let program = words.remove(0);
        words.push(std::mem::replace(&mut self.program, program));
        words.append(&mut self.args);
        self.args = words;
        self
    }
}

/// A child that ended although nobody told it to.
#[derive(Debug)]
pub struct Death {
    pub name: String,
    status: ExitStatus,
    last_words: Vec<String>,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => write!(f, "{} ended with exit code {code}", self.name)?,
            (None, Some(signal)) => write!(f, "{} was killed by signal {signal}", self.name)?,
            (None, None) => write!(f, "{} ended", self.name)?,
        }
        if self.last_words.is_empty() {
            return f.write_str("; its log is empty");
        }
        f.write_str("; the last lines of its log:")?;
        self.last_words.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

impl std::error::Error for Death {}

impl Death {
    /// Whether it ended with exit code 0.
    pub fn succeeded(&self) -> bool {
        self.status.success()
    }
}

struct Running {
    name: String,
    brief: bool,
    child: Child,
    log: PathBuf,
    orders: Option<ChildStdin>,
}

/// All of them.
pub struct Processes {
    logs: PathBuf,
    running: Vec<Running>,
    guard: Option<Guard>,
}

impl Processes {
    /// Logs go to the folder `logs`, which must exist.
    pub const fn new(logs: PathBuf, guard: Guard) -> Self {
        Self { logs, running: Vec::new(), guard: Some(guard) }
    }

    /// Starts a process; its output is appended to `NAME.log`.
    pub fn start(&mut self, launch: &Launch) -> io::Result<()> {
        let log = self.logs.join(format!("{}.log", launch.name));
        let output = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(&launch.program);
        command
            .args(&launch.args)
            .stdin(if launch.orders { Stdio::piped() } else { Stdio::null() })
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0);
        // What the user's shell says about another mesh must not change what this one does.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("OUTRIGGER_") || OTHER_MESH_VARIABLES.contains(&text.as_ref()) {
                command.env_remove(&name);
            }
        }
        let mut child = command.spawn()?;
        if let Some(guard) = &mut self.guard {
            guard.process(child.id());
        }
        let orders = child.stdin.take();
        self.running.push(Running { name: launch.name.clone(), brief: launch.brief, child, log, orders });
        Ok(())
    }

    /// The first child that ended unasked, if any; it is forgotten by this.
    pub fn find_dead(&mut self) -> Option<Death> {
        self.take_ended(|one| !one.brief)
    }

    /// How a child that was expected to end has ended, if it has; it is forgotten by this.
    pub fn find_ended(&mut self, name: &str) -> Option<Death> {
        self.take_ended(|one| one.name == name)
    }

    fn take_ended(&mut self, wanted: impl Fn(&Running) -> bool) -> Option<Death> {
        let ended = self.running.iter_mut().enumerate().filter(|(_, one)| wanted(one)).find_map(|(index, one)| {
            let status = one.child.try_wait().ok().flatten()?;
            Some((index, status))
        });
        let (index, status) = ended?;
        let one = self.running.remove(index);
        if let Some(guard) = &mut self.guard {
            guard.gone(one.child.id());
        }
        Some(Death { last_words: last_lines(&one.log), name: one.name, status })
    }

    /// Gives an order to a process that takes them.
    pub fn order(&mut self, name: &str, order: &str) -> io::Result<()> {
        let pipe = self.running.iter_mut().find(|one| one.name == name).and_then(|one| one.orders.as_mut());
        let pipe = pipe.ok_or_else(|| io::Error::other(format!("{name} takes no orders")))?;
        writeln!(pipe, "{order}").and_then(|()| pipe.flush())
    }

    /// The process id of one that was started and not seen to end.
    pub fn pid(&self, name: &str) -> Option<u32> {
        self.running.iter().find(|one| one.name == name).map(|one| one.child.id())
    }

    /// Ends one process with SIGKILL, as an outage would, and waits for it.
    pub fn kill(&mut self, name: &str) -> io::Result<()> {
        let index = self.running.iter().position(|one| one.name == name);
        let index = index.ok_or_else(|| io::Error::other(format!("{name} does not run")))?;
        let mut one = self.running.remove(index);
        one.child.kill()?;
        one.child.wait()?;
        if let Some(guard) = &mut self.guard {
            guard.gone(one.child.id());
        }
        Ok(())
    }

    /// Ends all with SIGTERM, `last` after all others, and after `grace` each time what is left with SIGKILL. Gives the
    /// names of those that had to be killed.
    pub async fn stop_all(&mut self, last: &str, grace: Duration) -> Vec<String> {
        let mut stubborn = self.stop(grace, |name| name != last).await;
        stubborn.extend(self.stop(grace, |_| true).await);
        stubborn
    }

    async fn stop(&mut self, grace: Duration, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        for one in self.running.iter_mut().filter(|one| wanted(&one.name)) {
            one.orders = None;
            if matches!(one.child.try_wait(), Ok(None)) {
                guardian::signal(one.child.id(), Signal::TERM);
            }
        }
        let end = Instant::now() + grace;
        loop {
            self.running.retain_mut(|one| matches!(one.child.try_wait(), Ok(None)));
            if !self.running.iter().any(|one| wanted(&one.name)) {
                return Vec::new();
            }
            if Instant::now() >= end {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut stubborn = Vec::new();
        self.running.retain_mut(|one| {
            if !wanted(&one.name) {
                return true;
            }
            stubborn.push(one.name.clone());
            let _ = one.child.kill();
            let _ = one.child.wait();
            false
        });
        stubborn
    }

    /// Ends all with SIGKILL.
    pub fn kill_all(&mut self) {
        for one in &mut self.running {
            let _ = one.child.kill();
        }
        for mut one in self.running.drain(..) {
            let _ = one.child.wait();
        }
    }

    /// The guardian, once everything else that it was told about is gone too.
    pub const fn take_guard(&mut self) -> Option<Guard> {
        self.guard.take()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// The last few lines of a log.
fn last_lines(path: &Path) -> Vec<String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = read().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.iter().skip(lines.len().saturating_sub(TAIL_LINES)).map(|line| (*line).to_owned()).collect()
}

/// A folder of the demo's own, removed when dropped.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes a new one in the system's folder for temporary files. Others may pass through it but not look into it:
    /// sidecars with another user id must reach the files that are theirs.
    pub fn create() -> io::Result<Self> {
        use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
        let name = format!("outrigger-demo-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let path = std::env::temp_dir().join(name);
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o711))?;
        Ok(Self { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn processes(folder: &Path) -> Processes {
        Processes { logs: folder.to_owned(), running: Vec::new(), guard: None }
    }

    async fn wait_for_death(processes: &mut Processes) -> Death {
        loop {
            if let Some(death) = processes.find_dead() {
                return death;
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_death_is_told_with_its_last_words() {
        // "exit code 1" alone would leave the user with nothing to look for.
        let folder = tempfile::tempdir().unwrap();
        let mut processes = processes(folder.path());
        let script = "for i in 1 2 3 4 5 6 7 8 9 10; do echo line $i; done; echo oops >&2; exit 7";
        processes.start(&Launch::new("sick", "sh", ["-c", script])).unwrap();
        let text = wait_for_death(&mut processes).await.to_string();
        assert!(text.starts_with("sick ended with exit code 7"), "{text}");
        assert!(text.ends_with("line 10\n    oops") && !text.contains("line 2\n"), "{text}");
        assert!(processes.find_dead().is_none());
    }

    #[tokio::test]
    async fn what_was_asked_to_stop_is_not_a_death() {
        // The outage act kills ratings on purpose; the watcher must not call that a broken promise.
        let folder = tempfile::tempdir().unwrap();
        let mut processes = processes(folder.path());
        processes.start(&Launch::new("app", "sleep", ["600"])).unwrap();
        processes.kill("app").unwrap();
        assert!(processes.find_dead().is_none());
        assert!(processes.kill("app").is_err());
    }

    #[tokio::test]
    async fn a_process_that_ignores_sigterm_is_killed() {
        // It would otherwise hold its ports after the demo ended.
        let folder = tempfile::tempdir().unwrap();
        let mut processes = processes(folder.path());
        let script = "trap '' TERM; echo deaf; read order; while :; do sleep 1; done";
        processes.start(&Launch::new("deaf", "sh", ["-c", script]).with_orders()).unwrap();
        processes.start(&Launch::new("polite", "sleep", ["600"])).unwrap();
        while fs::read_to_string(folder.path().join("deaf.log")).unwrap() != "deaf\n" {
            tokio::task::yield_now().await;
        }
        assert_eq!(processes.stop_all("polite", Duration::from_millis(300)).await, ["deaf"]);
        assert!(processes.running.is_empty());
    }

    #[test]
    fn a_runner_comes_before_the_program() {
        // A sidecar started outside its namespace would bind the host's ports.
        let launch = Launch::new("a", "outrigger", ["proxy", "--x"]).through(["ip", "netns", "exec", "n"]);
        assert_eq!(launch.program, "ip");
        assert_eq!(launch.args, ["netns", "exec", "n", "outrigger", "proxy", "--x"]);
    }

    #[test]
    fn the_folder_goes_with_its_owner() {
        // Tokens and logs would pile up in the folder for temporary files.
        let folder = Folder::create().unwrap();
        let path = folder.path().to_owned();
        fs::write(path.join("token"), "x").unwrap();
        drop(folder);
        assert!(!path.exists());
    }
}
