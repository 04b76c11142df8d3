//! `check`: is the control plane well, do its proxies keep up, and if not, what to do.
//!
//! One line per check with a mark, a hint under each that fails, and an exit code for scripts.

use std::time::Duration;

use clap::Args;
use outrigger_proto::admin::{InfoRequest, ListProxiesRequest, Proxy};
use outrigger_proxy::settings::parse_duration;
use serde_json::{Value, json};

use super::{
    connection::{Client, ConnectionArgs, call, run},
    get::{conditions_below, everything},
    outcome::{Exit, Outcome},
    output::{GREEN, RED, Report, YELLOW, print, print_json, print_yaml, styled},
    version::VERSION,
};

/// `outrigger check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Try again until all is well, at most this long
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    pub wait: Duration,
    /// How to print
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Report,
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Good,
    Warning,
    Bad,
}

#[derive(Debug)]
struct Check {
    section: &'static str,
    what: String,
    mark: Mark,
    /// What is wrong and what to do; empty when good.
    hint: String,
}

/// Pause between two rounds of `--wait`.
const PAUSE: Duration = Duration::from_millis(500);

/// Runs `outrigger check`.
pub fn check(args: &CheckArgs) -> Outcome {
    let checks = run(async {
        let deadline = tokio::time::Instant::now() + args.wait;
        loop {
            let checks = round(&args.connection).await;
            let bad = checks.iter().any(|check| check.mark == Mark::Bad);
            if !bad || tokio::time::Instant::now() + PAUSE > deadline {
                return Ok(checks);
            }
            tokio::time::sleep(PAUSE).await;
        }
    })?;
    let good = checks.iter().all(|check| check.mark != Mark::Bad);
    match args.output {
        Report::Text => print(&render(&checks, good))?,
        Report::Json => print_json(&checks_json(&checks, good))?,
        Report::Yaml => print_yaml(&checks_json(&checks, good))?,
    }
    Ok(if good { Exit::Ok } else { Exit::Failed })
}

async fn round(connection: &ConnectionArgs) -> Vec<Check> {
    const REACH: &str = "control plane";
    let mut checks = Vec::new();
    let mut add = |section, what: &str, mark, hint: String| {
        checks.push(Check { section, what: what.to_owned(), mark, hint });
    };
    let mut client = match connection.connect().await {
        Ok(client) => {
            add(REACH, "is reachable and has a trusted certificate", Mark::Good, String::new());
            client
        }
        Err(error) => {
            let failure: super::outcome::Failure = error.into();
            add(REACH, "is reachable and has a trusted certificate", Mark::Bad, failure.message);
            return checks;
        }
    };
    let info = match call(client.info(InfoRequest {})).await {
        Ok(info) => {
            add(REACH, "accepts our admin token", Mark::Good, String::new());
            info
        }
        Err(failure) => {
            add(REACH, "accepts our admin token", Mark::Bad, failure.message);
            return checks;
        }
    };
    let (mark, hint) = if info.version == VERSION {
        (Mark::Good, String::new())
    } else {
        (Mark::Warning, format!("it has version {}, this command line {VERSION}", info.version))
    };
    add(REACH, "has the version of this command line", mark, hint);
    checks.extend(objects(&mut client).await);
    checks.extend(proxies(&mut client, &info.version).await);
    checks
}

async fn objects(client: &mut Client) -> Vec<Check> {
    const SECTION: &str = "configuration";
    let check = |what: &str, mark, hint| Check { section: SECTION, what: what.to_owned(), mark, hint };
    let objects = match everything(client).await {
        Ok(objects) => objects,
        Err(failure) => return vec![check("can be read", Mark::Bad, failure.message)],
    };
    let mut wrong = Vec::new();
    for object in &objects {
        let value: Value = serde_json::from_str(&object.json).unwrap_or_default();
        let mut conditions = Vec::new();
        conditions_below(&value["status"], &mut conditions);
        let bad = |condition: &&&Value| condition["status"] == "False" || condition["status"] == false;
        if let Some(condition) = conditions.iter().find(bad) {
            let key = object.key.clone().unwrap_or_default();
            wrong.push(format!(
                "{} {}: {}",
                key.kind,
                super::problems::full_name(&key),
                condition["message"].as_str().or(condition["reason"].as_str()).unwrap_or("a condition is false")
            ));
        }
    }
    let what = format!("has no object with a false condition ({} looked at)", objects.len());
    vec![check(&what, if wrong.is_empty() { Mark::Good } else { Mark::Bad }, few(&wrong))]
}

async fn proxies(client: &mut Client, version: &str) -> Vec<Check> {
    const SECTION: &str = "proxies";
    let check = |what: String, mark, hint| Check { section: SECTION, what, mark, hint };
    let (proxies, revision) = match call(client.list_proxies(ListProxiesRequest {})).await {
        Ok(answer) => (answer.proxies, answer.revision),
        Err(failure) => return vec![check("can be listed".to_owned(), Mark::Bad, failure.message)],
    };
    if proxies.is_empty() {
        let hint = "no sidecar has joined yet (hint: `outrigger token create`, then `outrigger proxy`)".to_owned();
        return vec![check("are connected".to_owned(), Mark::Warning, hint)];
    }
    let connected: Vec<&Proxy> = proxies.iter().filter(|proxy| proxy.connected).collect();
    let named = |wrong: &dyn Fn(&Proxy) -> Option<String>, of: &[&Proxy]| -> Vec<String> {
        of.iter().filter_map(|proxy| wrong(proxy).map(|what| format!("{}{what}", proxy.id))).collect()
    };
    let all: Vec<&Proxy> = proxies.iter().collect();
    let mut checks = Vec::new();
    let mut add = |what: &str, mark: Mark, wrong: Vec<String>| {
        checks.push(check(what.to_owned(), if wrong.is_empty() { Mark::Good } else { mark }, few(&wrong)));
    };
    add(
        &format!("are connected ({} of {})", connected.len(), proxies.len()),
        Mark::Warning,
        named(&|proxy| (!proxy.connected).then(|| " is disconnected".to_owned()), &all),
    );
    add(
        "are ready",
        Mark::Bad,
        named(&|proxy| (!proxy.ready && !proxy.draining).then(|| " is not ready".to_owned()), &connected),
    );
    add(
        "refused nothing",
        Mark::Bad,
        named(
            &|proxy| proxy.refused.first().map(|refused| format!(" refused {}: {}", refused.resource, refused.reason)),
            &connected,
        ),
    );
    add(
        &format!("have revision {revision} in effect"),
        Mark::Bad,
        named(&|proxy| (proxy.revision < revision).then(|| format!(" is at revision {}", proxy.revision)), &connected),
    );
    add(
        "have the version of the control plane",
        Mark::Warning,
        named(
            // A proxy says what it is before its version: "outrigger-proxy 0.1.0".
            &|proxy| {
                let other = proxy.version.rsplit(' ').next() != Some(version);
                other.then(|| format!(" has version {}", proxy.version))
            },
            &connected,
        ),
    );
    checks
}

/// Things named one by one before the rest is counted.
const NAMED: usize = 5;

fn few(things: &[String]) -> String {
    let mut lines: Vec<String> = things.iter().take(NAMED).cloned().collect();
    if things.len() > NAMED {
        lines.push(format!("and {} more", things.len() - NAMED));
    }
    lines.join("\n")
}

fn render(checks: &[Check], good: bool) -> String {
    let mut text = String::new();
    let mut section = "";
    for check in checks {
        if check.section != section {
            if !section.is_empty() {
                text.push('\n');
            }
            section = check.section;
            text.push_str(&format!("{section}\n{}\n", "-".repeat(section.len())));
        }
        let mark = match check.mark {
            Mark::Good => styled(GREEN, "√"),
            Mark::Warning => styled(YELLOW, "‼"),
            Mark::Bad => styled(RED, "×"),
        };
        text.push_str(&format!("{mark} {}\n", check.what));
        for line in check.hint.lines() {
            text.push_str(&format!("    {line}\n"));
        }
    }
    let status = if good { styled(GREEN, "√") } else { styled(RED, "×") };
    text.push_str(&format!("\nstatus check results are {status}\n"));
    text
}

fn checks_json(checks: &[Check], good: bool) -> Value {
    let checks: Vec<Value> = checks
        .iter()
        .map(|check| {
            let result = match check.mark {
                Mark::Good => "success",
                Mark::Warning => "warning",
                Mark::Bad => "error",
            };
            json!({ "section": check.section, "check": check.what, "result": result, "hint": check.hint })
        })
        .collect();
    json!({ "success": good, "checks": checks })
}
