//! `apply`, `delete` and `rollback`: commands that make a new revision, and the wait until proxies have it in effect.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use outrigger_proto::admin::{
    ApplyRequest, ApplyResponse, Change, DeleteRequest, Document, ObjectKey, RollbackRequest, Rollout,
    WatchRolloutRequest,
};
use outrigger_proxy::{arguments::name, settings::parse_duration};
use serde_json::{Value, json};
use tonic::Code;

use super::{
    connection::{Client, ConnectError, ConnectionArgs, call, explain, run},
    files,
    kinds::{self, Target},
    outcome::{Exit, Failure, Outcome},
    output::{Report, count, elapsed, note, print, print_json, print_yaml, progress_wanted},
    problems,
};
use crate::api;

/// Waiting for a new revision to be in effect.
#[derive(Args, Clone, Debug)]
pub struct WaitArgs {
    /// Wait until every connected proxy has the change in effect
    #[arg(long)]
    pub wait: bool,
    /// Longest wait
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// `outrigger apply`.
#[derive(Args, Clone, Debug)]
pub struct ApplyArgs {
    /// File, directory (read recursively) or - for standard input; repeatable
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Namespace of objects that name none
    #[arg(short = 'n', long, default_value = "default", value_parser = name)]
    pub namespace: String,
    #[command(flatten)]
    pub wait: WaitArgs,
    /// Check and say what would change; store nothing
    #[arg(long, conflicts_with = "wait")]
    pub dry_run: bool,
    /// Why, for the history
    #[arg(short = 'm', long, value_name = "TEXT", default_value = "")]
    pub message: String,
    /// Refuse unless this is still the newest revision
    #[arg(long, value_name = "N", value_parser = kinds::revision)]
    pub expect_revision: Option<u64>,
    /// How to print the outcome
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Report,
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// `outrigger delete`.
#[derive(Args, Clone, Debug)]
pub struct DeleteArgs {
    /// KIND NAME... or KIND/NAME...
    #[arg(value_name = "KIND NAME", required_unless_present = "files", conflicts_with = "files")]
    pub targets: Vec<String>,
    /// Delete the objects that these files describe; repeatable
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Namespace of the objects
    #[arg(short = 'n', long, default_value = "default", value_parser = name)]
    pub namespace: String,
    /// An object that does not exist is no failure
    #[arg(long)]
    pub ignore_not_found: bool,
    #[command(flatten)]
    pub wait: WaitArgs,
    /// Why, for the history
    #[arg(short = 'm', long, value_name = "TEXT", default_value = "")]
    pub message: String,
    /// Refuse unless this is still the newest revision
    #[arg(long, value_name = "N", value_parser = kinds::revision)]
    pub expect_revision: Option<u64>,
    /// How to print the outcome
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Report,
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// `outrigger rollback`.
#[derive(Args, Clone, Debug)]
pub struct RollbackArgs {
    /// Revision whose objects are stored again (see `outrigger history`)
    #[arg(value_name = "REVISION", value_parser = kinds::revision)]
    pub revision: u64,
    #[command(flatten)]
    pub wait: WaitArgs,
    /// Why, for the history
    #[arg(short = 'm', long, value_name = "TEXT", default_value = "")]
    pub message: String,
    /// How to print the outcome
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Report,
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// Runs `outrigger apply`.
pub fn apply(args: &ApplyArgs) -> Outcome {
    let documents = files::read(&args.files)?;
    run(async {
        let mut client = match args.connection.connect().await {
            Ok(client) => client,
            Err(error) => return Err(unreachable_or_wrong(error, &documents, &args.namespace)),
        };
        let request = ApplyRequest {
            documents,
            expected_revision: args.expect_revision.unwrap_or(0),
            message: args.message.clone(),
            dry_run: args.dry_run,
            namespace: args.namespace.clone(),
        };
        let response = call(client.apply(request)).await?;
        finish(&mut client, &response, &args.wait, args.output, args.dry_run).await
    })
}

/// Runs `outrigger delete`.
pub fn delete(args: &DeleteArgs) -> Outcome {
    let mut objects = if args.files.is_empty() {
        kinds::targets(&args.targets, &args.namespace)?
            .into_iter()
            .map(|target| match target {
                Target { key, named: true } => Ok(key),
                Target { key, named: false } => Err(Failure::usage(format_args!(
                    "name the {} to delete (hint: outrigger delete {} NAME; `outrigger get {}` lists them)",
                    key.kind, key.kind, key.kind
                ))),
            })
            .collect::<Result<Vec<_>, _>>()?
    } else {
        described(&files::read(&args.files)?, &args.namespace)?
    };
    run(async {
        let mut client = args.connection.connect().await?;
        if args.ignore_not_found {
            objects = existing(&mut client, objects).await?;
            if objects.is_empty() {
                note("nothing to delete");
                return Ok(Exit::Ok);
            }
        }
        let request = DeleteRequest {
            objects,
            message: args.message.clone(),
            expected_revision: args.expect_revision.unwrap_or(0),
        };
        let response = call(client.delete(request)).await?;
        finish(&mut client, &response, &args.wait, args.output, false).await
    })
}

/// Runs `outrigger rollback`.
pub fn rollback(args: &RollbackArgs) -> Outcome {
    run(async {
        let mut client = args.connection.connect().await?;
        let request = RollbackRequest { to: args.revision, message: args.message.clone() };
        let response = call(client.rollback(request)).await?;
        finish(&mut client, &response, &args.wait, args.output, false).await
    })
}

/// The objects that documents describe.
///
/// Errors (exit 65): documents that cannot be read, after printing why.
pub fn described(documents: &[Document], namespace: &str) -> Result<Vec<ObjectKey>, Failure> {
    let mut keys = Vec::new();
    let mut wrong = Vec::new();
    for document in documents {
        let (objects, found) = api::parse(&document.file, &document.text, namespace);
        wrong.extend(found.iter().filter(|problem| problem.is_error()).map(problems::from_local));
        keys.extend(objects.iter().map(|object| ObjectKey {
            kind: object.kind.clone(),
            namespace: object.namespace.clone(),
            name: object.name.clone(),
        }));
    }
    refuse(&wrong)?;
    if keys.is_empty() {
        return Err(Failure::bad_input("the files hold no object"));
    }
    Ok(keys)
}

/// Prints problems and fails when there are any.
fn refuse(wrong: &[outrigger_proto::admin::Problem]) -> Result<(), Failure> {
    for problem in wrong {
        note(problems::render(problem).trim_end());
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Failure::bad_input(format_args!("{} in the files; nothing was changed", problems::summary(wrong))))
}

/// Without a control plane the documents are at least checked here: their own mistakes are nearer than a missing server.
fn unreachable_or_wrong(error: ConnectError, documents: &[Document], namespace: &str) -> Failure {
    if matches!(error, ConnectError::Unreachable(_)) {
        let wrong: Vec<_> = documents
            .iter()
            .flat_map(|document| api::parse(&document.file, &document.text, namespace).1)
            .filter(api::Problem::is_error)
            .map(|problem| problems::from_local(&problem))
            .collect();
        if let Err(failure) = refuse(&wrong) {
            return failure;
        }
    }
    error.into()
}

async fn existing(client: &mut Client, objects: Vec<ObjectKey>) -> Result<Vec<ObjectKey>, Failure> {
    let mut found = Vec::new();
    for key in objects {
        let request = outrigger_proto::admin::GetRequest {
            kind: key.kind.clone(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            revision: 0,
        };
        match client.get(request).await {
            Ok(response) if response.get_ref().objects.is_empty() => {}
            Ok(_) => found.push(key),
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(explain(&status)),
        }
    }
    Ok(found)
}

/// Says what a new revision changed and, when asked, waits until it is in effect.
async fn finish(
    client: &mut Client,
    response: &ApplyResponse,
    wait: &WaitArgs,
    report: Report,
    dry_run: bool,
) -> Outcome {
    for problem in &response.problems {
        note(problems::render(problem).trim_end());
    }
    if report == Report::Text && !response.refused {
        let mut text = String::new();
        for change in &response.changes {
            text.push_str(&sentence(change));
            text.push_str(if dry_run { " (dry run)\n" } else { "\n" });
        }
        print(&text)?;
    }
    let changed = response.changes.iter().any(|change| change.action != "unchanged");
    let rollout = if wait.wait && !response.refused && changed {
        Some(watch(client, response.revision, wait.timeout).await?)
    } else {
        None
    };
    match report {
        Report::Text => {}
        Report::Json => print_json(&outcome_json(response, rollout.as_ref(), dry_run))?,
        Report::Yaml => print_yaml(&outcome_json(response, rollout.as_ref(), dry_run))?,
    }
    if response.refused {
        return Err(Failure::bad_input(format_args!(
            "refused: {}; nothing was changed",
            problems::summary(&response.problems)
        )));
    }
    match rollout {
        None => {
            if wait.wait && report == Report::Text {
                note("nothing changed, so there is nothing to wait for");
            }
            Ok(Exit::Ok)
        }
        Some(rollout) => conclude(&rollout, report, wait.timeout),
    }
}

fn sentence(change: &Change) -> String {
    let object = change.object.clone().unwrap_or_default();
    format!("{}/{} {}", object.kind.to_ascii_lowercase(), object.name, change.action)
}

/// Follows a rollout to its end: everywhere in effect, refused somewhere, or out of time.
async fn watch(client: &mut Client, revision: u64, timeout: Duration) -> Result<Rollout, Failure> {
    let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1);
    let mut updates = call(client.watch_rollout(WatchRolloutRequest { revision, timeout_ms })).await?;
    let progress = progress_wanted();
    let mut newest = Rollout::default();
    // The control plane ends the stream itself; the margin covers one that hangs.
    let deadline = tokio::time::Instant::now() + timeout + Duration::from_secs(5);
    loop {
        match tokio::time::timeout_at(deadline, updates.message()).await {
            Ok(Ok(Some(rollout))) => {
                newest = rollout;
                if progress && !newest.done {
                    note(&format!("in effect on {} of {} ...", newest.in_effect, newest.total));
                }
                if newest.done {
                    return Ok(newest);
                }
            }
            Ok(Ok(None)) | Err(_) => return Ok(newest),
            Ok(Err(status)) if status.code() == Code::DeadlineExceeded => return Ok(newest),
            Ok(Err(status)) => return Err(explain(&status)),
        }
    }
}

fn conclude(rollout: &Rollout, report: Report, timeout: Duration) -> Outcome {
    for refused in &rollout.refused {
        let path = if refused.path.is_empty() { String::new() } else { format!(" at {}", refused.path) };
        note(&format!("proxy {} refused {}{path}: {}", refused.proxy, refused.resource, refused.reason));
    }
    let total = rollout.total as usize;
    if rollout.done && rollout.refused.is_empty() && rollout.in_effect == rollout.total {
        if report == Report::Text {
            let proxies = if total == 1 { "proxy" } else { "proxies" };
            print(&format!(
                "in effect on {} of {total} {proxies} in {}\n",
                rollout.in_effect,
                elapsed(rollout.elapsed_us)
            ))?;
        }
        return Ok(Exit::Ok);
    }
    let reason = if rollout.refused.is_empty() {
        format!("after {timeout:?} (hint: `outrigger proxies` shows which are behind)")
    } else {
        format!("and refused by {}", count(rollout.refused.len(), "proxy", "proxies"))
    };
    Err(Failure::failed(format_args!("in effect on {} of {total} {reason}", rollout.in_effect)))
}

fn outcome_json(response: &ApplyResponse, rollout: Option<&Rollout>, dry_run: bool) -> Value {
    let changes: Vec<Value> = response
        .changes
        .iter()
        .map(|change| {
            json!({
                "object": change.object.as_ref().map(problems::key_to_json),
                "action": change.action,
            })
        })
        .collect();
    let mut outcome = json!({
        "revision": response.revision,
        "refused": response.refused,
        "dry_run": dry_run,
        "changes": changes,
        "problems": response.problems.iter().map(problems::to_json).collect::<Vec<_>>(),
    });
    if let (Some(rollout), Value::Object(fields)) = (rollout, &mut outcome) {
        let refused: Vec<Value> = rollout
            .refused
            .iter()
            .map(|refused| {
                json!({
                    "proxy": refused.proxy,
                    "resource": refused.resource,
                    "path": refused.path,
                    "reason": refused.reason,
                })
            })
            .collect();
        fields.insert(
            "rollout".to_owned(),
            json!({
                "in_effect": rollout.in_effect,
                "total": rollout.total,
                "elapsed_ms": rollout.elapsed_us as f64 / 1000.0,
                "done": rollout.done,
                "refused": refused,
            }),
        );
    }
    outcome
}
