//! The lean binary: arguments to the library's entry points, nothing else.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use outrigger_proxy::intercept;

/// The Outrigger sidecar.
#[derive(Parser)]
#[command(name = "outrigger-proxy", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Redirect this machine's or container's traffic to the proxy, or stop that.
    Intercept(intercept::InterceptArgs),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(message) => {
            let _ = message.print();
            // sysexits(3): EX_USAGE.
            return if message.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS };
        }
    };
    match arguments.command {
        Command::Intercept(args) => intercept::run(args),
    }
}
