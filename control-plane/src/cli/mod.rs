//! The command line `outrigger`: what can be asked, and how it ends.
//!
//! One file per command or pair of commands; `connection` is the way to a running control plane, `outcome` the exit codes,
//! `output` the only writer. Data goes to standard output, messages to standard error.

mod analyze;
mod apply;
pub mod certificates;
mod check;
pub mod connection;
mod files;
mod get;
mod history;
mod kinds;
mod line_diff;
pub mod outcome;
pub mod output;
mod problems;
mod proxies;
mod proxy;
mod serve;
mod static_mesh;
pub mod table;
mod token;
mod up;
mod usage;
mod version;
mod watch;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

use outcome::{Failure, Outcome};

/// A service mesh of sidecars: mutual TLS, routing, retries, canaries and circuit breaking.
#[derive(Parser, Debug)]
#[command(
    name = "outrigger",
    version,
    arg_required_else_help = true,
    after_help = "Start with `outrigger demo`. Exit codes: 0 ok, 1 failed, 64 usage, 65 bad input, 79 analysis found problems."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Show a whole mesh at work, with proof that it keeps its promises
    Demo(crate::demo::DemoArgs),
    /// Run a control plane with the objects of a folder, and follow its changes
    Up(Box<up::UpArgs>),
    /// Run a control plane
    Serve(Box<serve::ServeArgs>),
    /// Run a sidecar
    Proxy(Box<proxy::ProxyArgs>),
    /// Write, check or remove the rules that redirect traffic to a sidecar
    Intercept(Box<outrigger_proxy::intercept::InterceptArgs>),
    /// Create or change objects from files
    Apply(apply::ApplyArgs),
    /// Show objects
    Get(get::GetArgs),
    /// Delete objects
    Delete(apply::DeleteArgs),
    /// Show what files would change, or what changed between revisions
    Diff(history::DiffArgs),
    /// Show who changed what, and when
    History(history::HistoryArgs),
    /// Go back to the objects of an earlier revision
    Rollback(apply::RollbackArgs),
    /// Find mistakes in files, without a control plane
    Analyze(analyze::AnalyzeArgs),
    /// Check that the control plane and its proxies are well
    Check(check::CheckArgs),
    /// Show the sidecars and whether they keep up
    Proxies(proxies::ProxiesArgs),
    /// Show what one sidecar holds
    Config(proxies::ConfigArgs),
    /// Make, list and revoke join tokens
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Write the completion script of a shell
    Completion(version::CompletionArgs),
    /// Show versions
    Version(version::VersionArgs),
}

/// Runs the command line of this process and gives its exit code.
pub fn main() -> ExitCode {
    run(std::env::args_os())
}

/// Runs a command line, the name of the program first, and gives its exit code.
pub fn run(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => return finish(usage::outcome(&error)),
    };
    let outcome = match cli.command {
        Command::Demo(args) => return crate::demo::run(args),
        Command::Intercept(args) => return outrigger_proxy::intercept::run(*args),
        Command::Up(args) => up::up(&args),
        Command::Serve(args) => serve::serve(&args),
        Command::Proxy(args) => proxy::proxy(*args),
        Command::Apply(args) => apply::apply(&args),
        Command::Get(args) => get::get(&args),
        Command::Delete(args) => apply::delete(&args),
        Command::Diff(args) => history::diff(&args),
        Command::History(args) => history::history(&args),
        Command::Rollback(args) => apply::rollback(&args),
        Command::Analyze(args) => analyze::analyze(&args),
        Command::Check(args) => check::check(&args),
        Command::Proxies(args) => proxies::proxies(&args),
        Command::Config(args) => proxies::config(&args),
        Command::Token(command) => token::token(&command),
        Command::Completion(args) => version::completion(&args),
        Command::Version(args) => version::version(&args),
    };
    finish(outcome)
}

fn finish(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(exit) => exit.into(),
        Err(Failure { exit, message }) => {
            if !message.is_empty() {
                output::error(&message);
            }
            exit.into()
        }
    }
}
