//! `outrigger demo`: a whole mesh and a small shop from one command, and proof that it does what it promises.
//!
//! Starts the control plane, sidecars and services as separate processes of this very binary, drives traffic, and
//! tells a story in acts ([`story`]): mutual TLS, a canary, retries, an outage with breaker and fallback, and dozens of
//! configuration swaps. Everything is applied through the admin API, exactly as a user would. The same story runs in
//! explicit mode (no privileges) and, with `--transparent`, in network namespaces with redirect rules.
//!
//! Read in this order: `topology` (what runs where), `documents` (what is applied), `stage` (bringing it up),
//! `story` (the acts), `verdict` (what was promised and whether it was kept).

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use clap::{Args, Subcommand, ValueEnum};

mod binomial;
mod http_client;
pub mod shop;
mod traffic;
mod verdict;

/// What `outrigger demo` was asked to do.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Stop after this long, for example 30s or 2m (default: until Ctrl-C).
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    pub duration: Option<Duration>,

    /// Requests per second that the demo itself sends.
    #[arg(long, value_name = "REQUESTS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(50..=20_000))]
    pub rate: u32,

    /// Where the front end can be reached through the mesh (default: a free port of 127.0.0.1).
    #[arg(long, value_name = "ADDRESS", conflicts_with = "transparent")]
    pub listen: Option<SocketAddr>,

    /// One network namespace per workload, with real redirect rules (needs root).
    #[arg(long)]
    pub transparent: bool,

    /// `json` ends with one JSON object on standard output; the story then goes to standard error.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: Output,

    #[command(subcommand)]
    pub role: Option<Role>,
}

/// How the outcome is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

/// What the demo's own child processes run as.
#[derive(Subcommand, Clone, Debug)]
pub enum Role {
    /// One service of the shop.
    #[command(hide = true)]
    ShopService(shop::ShopArgs),
    /// Cleans up when the demo dies without doing so itself.
    #[command(hide = true)]
    Guardian,
}

/// Runs the demo, or the part of it that `args.role` names. Blocks; must not be called inside an async runtime.
pub fn run(args: DemoArgs) -> ExitCode {
    match args.role {
        Some(Role::ShopService(args)) => shop::run(args),
        Some(Role::Guardian) | None => ExitCode::FAILURE,
    }
}

/// Reads `30s`, `2m`, `1h`, `500ms`, or several of them in a row.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("\"{text}\" is not a duration (write for example 30s, 2m or 1h30m)");
    let mut rest = text;
    let mut sum = Duration::ZERO;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit()).ok_or_else(bad)?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|letter: char| letter.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let millis = match unit {
            "ms" => Some(1),
            "s" => Some(1_000),
            "m" => Some(60_000),
            "h" => Some(3_600_000),
            _ => None,
        };
        let part = millis.and_then(|unit: u64| unit.checked_mul(number)).ok_or_else(bad)?;
        sum = sum.checked_add(Duration::from_millis(part)).ok_or_else(bad)?;
        rest = tail;
    }
    if sum.is_zero() { Err(format!("\"{text}\" is no time at all (write for example 30s)")) } else { Ok(sum) }
}
