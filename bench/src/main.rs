//! Outrigger beside its peers, on one machine and in one run: see `bench/README.md`.
//!
//! `peers` finds the programs, `run` measures. `floor` and `origin` are parts of a chain that `run` starts as processes of
//! their own, so that the kernel accounts for them apart.

mod certificates;
mod chain;
mod closed_loop;
mod floor;
mod measure;
mod open_loop;
mod origin;
mod peers;
mod process;
mod report;
mod scenario;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};

use crate::{measure::Plan, process::Cores, report::Report};

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
    Peers,
    /// Measure; all scenarios unless some are named
    Run(Run),
    /// Be the bare forwarder that everybody is compared with
    #[command(hide = true)]
    Floor {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        to: SocketAddr,
        #[arg(long, value_enum)]
        place: floor::Place,
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
    },
}

#[derive(clap::Args)]
struct Run {
    /// Scenarios to run, by name
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
    /// Read scenarios from here instead of the built-in ones
    #[arg(long, value_name = "DIR")]
    scenario_dir: Option<PathBuf>,
    /// Keep configurations and logs of the chains here
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// How to write the figures
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Output {
    #[default]
    Table,
    Json,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Peers => {
            print!("{}", peers::report());
            Ok(())
        }
        Command::Run(arguments) => run(arguments),
        Command::Floor { listen, to, place, certificates } => floor::run(listen, to, place, &certificates),
        Command::Origin { listen, response_bytes } => origin::run(listen, response_bytes),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Run) -> Result<()> {
    let scenarios = scenario::load(&arguments.scenarios, arguments.scenario_dir.as_deref())?;
    let needs_wrk = scenarios.iter().any(|scenario| matches!(scenario.load, scenario::Load::Closed { .. }));
    if needs_wrk && peers::find(peers::Peer::Wrk).is_none() {
        bail!("wrk is not installed ({})", peers::Peer::Wrk.hint());
    }
    let outriggers = if arguments.outriggers.is_empty() {
        vec![std::env::current_exe()?.with_file_name("outrigger")]
    } else {
        arguments.outriggers
    };
    let (chains, missing) = chain::choose(&arguments.chains, &outriggers)?;
    let temporary = tempfile::tempdir().context("cannot make a temporary folder")?;
    let folder = match &arguments.keep {
        Some(folder) => {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            std::fs::canonicalize(folder)?
        }
        None => temporary.path().to_owned(),
    };
    let machine = measure::Machine::here(&outriggers);
    let plan = Plan {
        scenarios,
        chains,
        rounds: arguments.rounds,
        time: Duration::from_secs(arguments.seconds),
        cores: Cores::choose()?,
        folder: &folder,
    };
    let mut outcomes = measure::run(&plan)?;
    for outcome in &mut outcomes {
        outcome.gaps.extend_from_slice(&missing);
    }
    let report =
        Report { machine: &machine, rounds: arguments.rounds, seconds: arguments.seconds, scenarios: &outcomes };
    match arguments.output {
        Output::Table => print!("{}", report::table(&report)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    if outcomes.iter().any(|outcome| outcome.chains.is_empty()) {
        bail!("a scenario has no figures at all (hint: the gaps above say why)");
    }
    Ok(())
}
