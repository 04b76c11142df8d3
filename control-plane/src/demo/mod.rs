//! `outrigger demo`: a whole mesh and a small shop from one command, and proof that it does what it promises.
//!
//! Starts the control plane, sidecars and services as separate processes of this very binary, drives traffic, and
//! tells a story in acts (`story`): mutual TLS, a canary, retries, an outage with breaker and fallback, and dozens of
//! configuration swaps. Everything is applied through the admin API, exactly as a user would. The same story runs in
//! explicit mode (no privileges) and, with `--transparent`, in network namespaces with redirect rules.
//!
//! Read in this order: `topology` (what runs where), `documents` (what is applied), `stage` (bringing it up),
//! `story` (the acts), `verdict` (what was promised and whether it was kept).

use std::{io::Write, net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use clap::{Args, Subcommand, ValueEnum};

use anyhow::Context;
use parking_lot::Mutex;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};

use self::{
    display::{Display, Status, Stream, status_line},
    observe::BreakerHistory,
    stage::Stage,
    story::{Seen, Story, breaker_name},
    topology::{CALLER_OF_RATINGS, Mode, SERVICE_PORT},
    verdict::{Propagation, Report},
};

pub mod binomial;
mod control;
mod display;
mod documents;
pub mod guardian;
mod http_client;
pub mod network;
mod observe;
pub mod processes;
pub mod shop;
mod stage;
mod story;
mod topology;
mod traffic;
mod verdict;

/// What `outrigger demo` was asked to do.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Stop after this long, but not before the story is told (about 25 s) [default: until Ctrl-C].
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

    /// Keep the logs of all processes in this folder.
    #[arg(long, value_name = "DIR")]
    pub logs: Option<PathBuf>,

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

/// Exit code of a command that was ended by Ctrl-C before it was done: 128 + SIGINT, as shells count.
const INTERRUPTED: u8 = 130;
/// Between two looks at traffic and sidecars for the status line.
const STATUS_INTERVAL: Duration = Duration::from_millis(250);

/// Runs the demo, or the part of it that `args.role` names. Blocks; must not be called inside an async runtime.
///
/// Exit code 0: every promise was kept. 1: one was broken, or the demo could not run. 130: interrupted too early to tell.
pub fn run(args: DemoArgs) -> ExitCode {
    match args.role {
        Some(Role::ShopService(args)) => return shop::run(args),
        Some(Role::Guardian) => return guardian::run(),
        None => {}
    }
    let display = Display::new(if args.output == Output::Json { Stream::Stderr } else { Stream::Stdout });
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")
        .and_then(|runtime| runtime.block_on(perform(&args, &display)));
    display.clear_status();
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// How the performance went.
enum Ending {
    /// The story was told and the time is over.
    Told,
    Interrupted,
    /// It could not go on, in words.
    Broken(String),
}

/// Comes up, tells the story, cleans up, reports.
async fn perform(args: &DemoArgs, display: &Display) -> anyhow::Result<ExitCode> {
    let mut interruption = Interruption::listen().context("cannot listen for signals")?;
    let started = Instant::now();
    display.act("Outrigger demo: a mesh and a small shop on this machine");
    let stage = Stage::prepare(args)?;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let ending = tokio::select! {
        played = play(&stage, args, display, &seen, started) => match played {
            Ok(()) => Ending::Told,
            Err(error) => Ending::Broken(format!("{error:#}")),
        },
        death = stage.watch() => Ending::Broken(death.to_string()),
        () = interruption.comes() => Ending::Interrupted,
        never = draw_status(&stage, display, &seen, started) => match never {},
    };
    display.clear_status();
    stage.stop_traffic().await;
    let (report, doubts) = report(&stage, &seen).await;
    let told = seen.lock().told;
    let mut broken = Vec::new();
    let code = match &ending {
        Ending::Broken(sentence) => {
            broken.push(sentence.clone());
            broken.extend(stage.recorder.failure_notes());
            ExitCode::FAILURE
        }
        Ending::Interrupted if !told => ExitCode::from(INTERRUPTED),
        Ending::Told | Ending::Interrupted => {
            broken.extend(seen.lock().broken.clone());
            broken.extend(doubts);
            broken.extend(report.broken());
            broken.extend(stage.recorder.failure_notes());
            if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
    };
    if let Some(folder) = &args.logs {
        stage.keep_logs(folder).with_context(|| format!("cannot keep the logs in {}", folder.display()))?;
    }
    let stubborn = stage.stop().await;
    summarize(display, &report, told, &broken);
    if !stubborn.is_empty() {
        display.note(&format!("killed, because SIGTERM was not enough: {}", stubborn.join(", ")));
    }
    if args.output == Output::Json {
        let json = serde_json::to_string(&report).context("cannot write the report")?;
        // A reader that went away has what it wanted.
        let _ = writeln!(std::io::stdout(), "{json}");
    }
    Ok(code)
}

/// Brings everything up, tells the story, and keeps traffic flowing until the time is over.
async fn play(
    stage: &Stage,
    args: &DemoArgs,
    display: &Display,
    seen: &Arc<Mutex<Seen>>,
    started: Instant,
) -> anyhow::Result<()> {
    let control = stage.bring_up(display).await?;
    let front = stage.plan.front();
    display.check(&format!("the front end, through the mesh: {front}/"));
    display.plain(&format!("  curl {front}/"));
    display.plain(&format!("  wrk -t2 -c64 -d30s {front}/"));
    display.plain(&format!("  curl -x http://{} http://frontend.shop:{SERVICE_PORT}/", stage.plan.forward_proxy));
    if let Mode::Transparent(network) = &stage.plan.mode {
        let inside = network.enter("frontend-v1").join(" ");
        display.plain(&format!("  sudo {inside} curl http://reviews:{SERVICE_PORT}/"));
    }
    stage.start_traffic(args.rate);
    Story::new(stage, control, display, Arc::clone(seen)).tell().await?;
    seen.lock().told = true;
    display.act("The story is told; traffic goes on");
    match args.duration {
        Some(duration) => tokio::time::sleep_until(started + duration).await,
        None => {
            display.note("Ctrl-C ends the demo");
            std::future::pending::<()>().await;
        }
    }
    Ok(())
}

/// Everything that was seen, and what could not be seen although it should.
async fn report(stage: &Stage, seen: &Mutex<Seen>) -> (Report, Vec<String>) {
    let (counters, mut doubts) = stage.observer.reachable_counters().await;
    let breaker = stage.observer.breaker(CALLER_OF_RATINGS, &breaker_name()).await.unwrap_or_else(|error| {
        doubts.push(format!("{error:#}"));
        BreakerHistory::default()
    });
    let total = stage.recorder.total();
    let seen = seen.lock();
    let report = Report {
        requests: total.requests,
        failed: total.failed,
        config_swaps: seen.config_swaps,
        failed_during_swaps: stage.recorder.failed_during_swaps(),
        canary: seen.canary.clone(),
        mtls_connections: counters.mtls_connections,
        plaintext_connections: counters.plaintext_connections,
        retries: counters.retries,
        breaker_transitions: breaker.states,
        fallback_responses: total.fallback,
        propagation_ms: Propagation::of(&seen.propagation_us),
    };
    (report, doubts)
}

/// The end of the story in words.
fn summarize(display: &Display, report: &Report, told: bool, broken: &[String]) {
    display.act("Summary");
    if report.requests > 0 {
        display.plain(&format!(
            "{} requests, {} failed, {} answered by the fallback; {} retries",
            report.requests, report.failed, report.fallback_responses, report.retries
        ));
        display.plain(&format!(
            "{} configuration swaps, {} requests failed during them; in effect everywhere after p50 {} ms, p99 {} ms",
            report.config_swaps, report.failed_during_swaps, report.propagation_ms.p50, report.propagation_ms.p99
        ));
        display.plain(&format!(
            "{} connections with mutual TLS, {} in plaintext",
            report.mtls_connections, report.plaintext_connections
        ));
    }
    for sentence in broken {
        display.cross(sentence);
    }
    if !broken.is_empty() {
        return;
    }
    if told {
        display.check("every promise was kept");
    } else {
        display.note("ended before the story was told: nothing is proved either way");
    }
}

/// Draws the status line until dropped.
async fn draw_status(
    stage: &Stage,
    display: &Display,
    seen: &Mutex<Seen>,
    started: Instant,
) -> std::convert::Infallible {
    let mut rate = RateGauge::new(started);
    let (mut retries, mut breaker) = (0, String::new());
    loop {
        tokio::time::sleep(STATUS_INTERVAL).await;
        let tally = stage.recorder.total();
        if tally.requests == 0 {
            continue;
        }
        // A sidecar that cannot be asked just now keeps its last numbers; the acts complain if it matters.
        if let Ok(counters) = stage.observer.counters(CALLER_OF_RATINGS).await {
            retries = counters.retries;
        }
        if let Ok(history) = stage.observer.breaker(CALLER_OF_RATINGS, &breaker_name()).await {
            breaker = history.state;
        }
        let (canary_percent, swaps) = {
            let seen = seen.lock();
            (seen.canary_percent, seen.config_swaps)
        };
        let now = Instant::now();
        let requests_per_second = rate.update(now, tally.requests);
        let elapsed = now - started;
        let breaker = breaker.clone();
        display.status(&status_line(&Status {
            elapsed,
            canary_percent,
            requests_per_second,
            tally,
            retries,
            breaker,
            swaps,
        }));
    }
}

/// Requests per second over about the last second.
struct RateGauge {
    since: Instant,
    requests: u64,
    rate: f64,
}

impl RateGauge {
    const fn new(now: Instant) -> Self {
        Self { since: now, requests: 0, rate: 0.0 }
    }

    fn update(&mut self, now: Instant, requests: u64) -> f64 {
        let seconds = (now - self.since).as_secs_f64();
        if seconds >= 1.0 {
            self.rate = requests.saturating_sub(self.requests) as f64 / seconds;
            (self.since, self.requests) = (now, requests);
        }
        self.rate
    }
}

/// Whatever asks the demo to end: Ctrl-C, SIGTERM, a closed terminal.
struct Interruption {
    signals: [Signal; 3],
}

impl Interruption {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            signals: [
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
                signal(SignalKind::hangup())?,
            ],
        })
    }

    async fn comes(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        demo: DemoArgs,
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        // `--for 30` must not mean 30 of something else.
        for (text, millis) in [("30s", 30_000), ("2m", 120_000), ("1h30m", 5_400_000), ("500ms", 500)] {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for bad in ["", "30", "s", "-3s", "3 s", "0s", "9999999999999999999s", "18446744073709551615h", "3d"] {
            assert!(parse_duration(bad).unwrap_err().contains("for example"), "{bad}");
        }
    }

    #[test]
    fn the_command_line_of_the_readme_is_understood() {
        // The first command a newcomer types.
        let line = Line::try_parse_from(["demo", "--for", "30s", "-o", "json"]).unwrap();
        assert_eq!((line.demo.duration, line.demo.output), (Some(Duration::from_secs(30)), Output::Json));
        let line = Line::try_parse_from(["demo"]).unwrap();
        assert_eq!((line.demo.duration, line.demo.rate, line.demo.transparent), (None, 300, false));
        assert!(Line::try_parse_from(["demo", "--transparent", "--listen", "127.0.0.1:1"]).is_err());
        assert!(Line::try_parse_from(["demo", "--rate", "1"]).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_of_the_last_second() {
        // An average since the start would hide that traffic has stopped.
        let mut gauge = RateGauge::new(Instant::now());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!((gauge.update(Instant::now(), 300) - 300.0).abs() < 0.1);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!((gauge.update(Instant::now(), 300) - 0.0).abs() < 0.1);
    }
}
