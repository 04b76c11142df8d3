//! The lean binary: arguments to the library's entry points, nothing else.
//!
//! For containers and init containers; `outrigger proxy` is the same sidecar with files instead of a control plane as
//! a further choice.

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use outrigger_proxy::{
    arguments::SidecarArguments,
    intercept,
    sidecar::{self, Source},
    telemetry::log::{self, LogFormat},
};

/// sysexits(3): EX_USAGE.
const USAGE: u8 = 64;

/// The Outrigger sidecar.
#[derive(Parser)]
#[command(name = "outrigger-proxy", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a sidecar that joins a control plane.
    Run(Box<RunArguments>),
    /// Redirect this machine's or container's traffic to the proxy, or stop that.
    Intercept(Box<intercept::InterceptArgs>),
}

#[derive(Args)]
struct RunArguments {
    #[command(flatten)]
    sidecar: SidecarArguments,
    /// How the process log is written
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(message) => {
            // Nobody reads standard output: there is nobody left to tell.
            let _ = message.print();
            return if message.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match arguments.command {
        Command::Run(arguments) => run(&arguments),
        Command::Intercept(args) => intercept::run(*args),
    }
}

fn run(arguments: &RunArguments) -> ExitCode {
    let usage = |problem: &dyn std::fmt::Display| {
        eprintln!("error: {problem}");
        ExitCode::from(USAGE)
    };
    // The lean binary carries no YAML parser; JSON is YAML too.
    let read = |text: &str| serde_json::from_str(text).map_err(|error| error.to_string());
    let settings = match arguments.sidecar.settings(read) {
        Ok(settings) => settings,
        Err(problem) => return usage(&problem),
    };
    if arguments.sidecar.print_settings {
        return match serde_json::to_string_pretty(&settings) {
            Ok(text) => {
                println!("{text}");
                ExitCode::SUCCESS
            }
            Err(error) => usage(&error),
        };
    }
    if let Err(problem) = arguments.sidecar.check_joined(&settings) {
        return usage(&problem);
    }
    let log = match log::start(arguments.log_format, &arguments.sidecar.log_level) {
        Ok(log) => log,
        Err(problem) => return usage(&problem),
    };
    let outcome = sidecar::run(settings, Source::ControlPlane, Some(log.clone()));
    log.flush();
    sidecar::exit(outcome)
}
