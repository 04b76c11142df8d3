//! Processes of a run: started on a core of their own, measured through /proc, killed when dropped.
//!
//! A child inherits the affinity of the thread that starts it, so the starting thread moves for a moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Longest wait for a process to listen.
const START: Duration = Duration::from_secs(60);
/// Between two looks whether it does.
const LOOK: Duration = Duration::from_millis(1);

/// How often we look whether a process has ended by itself, before it is killed.
const POLITE_LOOKS: u32 = 250;

/// A running process and what it has started.
pub struct Process {
    name: String,
    child: Child,
    log: std::path::PathBuf,
}

/// Memory of a process, in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    pub now_kib: u64,
    pub peak_kib: u64,
}

/// CPU time of a process and its children, as the kernel accounts for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    user_ticks: u64,
    system_ticks: u64,
    /// Nanoseconds on a CPU, for each thread; empty where the kernel does not tell.
    threads: BTreeMap<u32, u64>,
}

/// CPU time between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Used {
    pub user_micros: f64,
    pub system_micros: f64,
}

/// The two cores of a run.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    /// Where the chain runs.
    pub chain: usize,
    /// Where load generator and origin run.
    pub load: usize,
}

impl Cores {
    /// The first two cores that this process may use.
    ///
    /// # Errors
    /// When there is only one: chain and load would take each other's time.
    pub fn choose() -> Result<Self> {
        let allowed = sched_getaffinity(None)?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        match (cores.next(), cores.next()) {
            (Some(load), Some(chain)) => Ok(Self { chain, load }),
            _ => bail!(
                "this process may use one core only (hint: two are needed, one for the proxies and one for the load)"
            ),
        }
    }
}

/// Runs `work` with the calling thread on `core`; what it starts stays there.
///
/// # Errors
/// When the core cannot be had, or what `work` says.
pub fn on_core<T>(core: usize, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = sched_getaffinity(None)?;
    let mut only = CpuSet::new();
    only.set(core);
    sched_setaffinity(None, &only).with_context(|| format!("cannot run on core {core}"))?;
    let done = work();
    sched_setaffinity(None, &before)?;
    done
}

/// What runs now, for [`end_with_us`].
static RUNNING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// From now on, a signal that ends this process ends what it has started: otherwise proxies would stay, and their core be taken.
///
/// # Errors
/// When no thread can be started.
pub fn end_with_us() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _guard = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        for pid in running().iter() {
            end(*pid, rustix::process::Signal::KILL);
        }
        std::process::exit(130);
    })?;
    Ok(())
}

fn running() -> std::sync::MutexGuard<'static, BTreeSet<u32>> {
    RUNNING.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Signals a process and its children.
fn end(pid: u32, signal: rustix::process::Signal) {
    for pid in with_children(pid) {
        if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

/// A process and its children; nothing here starts grandchildren.
fn with_children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    std::iter::once(pid).chain(children.split_whitespace().filter_map(|pid| pid.parse().ok())).collect()
}

/// Lets this process and what it starts have as many files open as they may: a thousand connections through two proxies
/// are more than the usual limit.
pub fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
}

impl Process {
    /// Starts `command` on `core`, or wherever there is room; its output goes to `<name>.log` in `folder`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, command: &mut Command, core: Option<usize>, folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let mut spawn = || command.spawn().with_context(|| format!("cannot start {name}"));
        let child = match core {
            Some(core) => on_core(core, spawn)?,
            None => spawn()?,
        };
        running().insert(child.id());
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Waits until it accepts connections.
    ///
    /// # Errors
    /// When it ends instead, or takes more than ten seconds; with the end of its output.
    pub fn wait_until_listening(&mut self, address: SocketAddr) -> Result<()> {
        let started = Instant::now();
        loop {
            if TcpStream::connect_timeout(&address, LOOK).is_ok() {
                return Ok(());
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || started.elapsed() > START {
                let what = match ended {
                    Some(status) => format!("ended ({status})"),
                    None => format!("does not listen on {address} after {} s", START.as_secs()),
                };
                bail!("{} {what}; it said:\n{}", self.name, self.last_words());
            }
            thread::sleep(LOOK);
        }
    }

    /// The end of its output.
    pub fn last_words(&self) -> String {
        const LINES: usize = 15;
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }

    /// CPU time that it and its children have used.
    ///
    /// # Errors
    /// When it has ended.
    pub fn usage(&self) -> Result<Usage> {
        let mut usage = Usage::default();
        for pid in self.pids() {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
                .with_context(|| format!("{} has ended; it said:\n{}", self.name, self.last_words()))?;
            let (user, system) = ticks_of(&stat).with_context(|| format!("/proc/{pid}/stat cannot be read"))?;
            usage.user_ticks += user;
            usage.system_ticks += system;
            for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                let Some(thread) = task.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
                let scheduled = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
                if let Some(nanos) = scheduled.split_whitespace().next().and_then(|nanos| nanos.parse().ok()) {
                    usage.threads.insert(thread, nanos);
                }
            }
        }
        Ok(usage)
    }

    /// Kills it without warning.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        self.ended();
    }

    /// Resident memory of it and its children.
    ///
    /// # Errors
    /// When it has ended.
    pub fn memory(&self) -> Result<Memory> {
        let mut memory = Memory::default();
        for pid in self.pids() {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))
                .with_context(|| format!("{} has ended", self.name))?;
            memory.now_kib += kib_of(&status, "VmRSS:");
            memory.peak_kib += kib_of(&status, "VmHWM:");
        }
        Ok(memory)
    }

    /// The process and its children.
    pub fn pids(&self) -> Vec<u32> {
        with_children(self.child.id())
    }

    fn ended(&mut self) {
        let _ = self.child.wait();
        running().remove(&self.child.id());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return self.ended();
        }
        // First the polite way: nginx's master takes its workers along.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        for _ in 0..POLITE_LOOKS {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return self.ended();
            }
            thread::sleep(LOOK);
        }
        end(self.child.id(), rustix::process::Signal::KILL);
        self.ended();
    }
}

impl Usage {
    /// CPU time used since `before`.
    ///
    /// The kernel counts user and system time in steps of 10 ms, and the time of a thread in nanoseconds: the sum is
    /// taken from the threads, as long as they are the same ones, and parted as the steps are.
    pub fn since(&self, before: &Self) -> Used {
        let micros_per_tick = 1e6 / rustix::param::clock_ticks_per_second().max(1) as f64;
        let user = self.user_ticks.saturating_sub(before.user_ticks) as f64;
        let system = self.system_ticks.saturating_sub(before.system_ticks) as f64;
        let mut total = (user + system) * micros_per_tick;
        if !self.threads.is_empty() && self.threads.keys().eq(before.threads.keys()) {
            let nanos = self.threads.values().sum::<u64>().saturating_sub(before.threads.values().sum());
            total = nanos as f64 / 1e3;
        }
        let user_part = if user + system > 0.0 { user / (user + system) } else { 0.5 };
        Used { user_micros: total * user_part, system_micros: total * (1.0 - user_part) }
    }
}

impl Used {
    pub fn micros(&self) -> f64 {
        self.user_micros + self.system_micros
    }
}

/// proc_pid_stat(5): utime and stime are fields 14 and 15; the name before them may hold blanks and parentheses.
fn ticks_of(stat: &str) -> Option<(u64, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn kib_of(status: &str, field: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read_as_the_kernel_writes_them() {
        // CPU per request would be another field's number.
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194304 100 0 0 0 31 11 5 6 20 0 1 0 100 1000 10 18446744073709551615";
        assert_eq!(ticks_of(stat), Some((31, 11)));
        assert_eq!(ticks_of("7 (a"), None);
        assert_eq!(kib_of("Name:\tx\nVmHWM:\t  512 kB\nVmRSS:\t  256 kB\n", "VmRSS:"), 256);
    }
    #[test]
    fn short_times_are_told_exactly_and_long_ones_completely() {
        // A run at a low rate uses less CPU than the kernel's step; a thread that ended takes its nanoseconds along.
        let usage = |ticks, threads: &[(u32, u64)]| Usage {
            user_ticks: ticks,
            system_ticks: ticks,
            threads: threads.iter().copied().collect(),
        };
        let before = usage(10, &[(7, 1_000), (8, 500)]);
        let used = usage(11, &[(7, 4_000_000), (8, 500)]).since(&before);
        assert_eq!(used.micros(), 3999.0);
        assert_eq!(used.user_micros, used.system_micros);
        let step = 2e6 / rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(usage(11, &[(7, 4_000_000)]).since(&before).micros(), step);
    }
}
