//! `history` and `diff`: what changed, when, by whom.

use std::path::PathBuf;

use anstyle::{AnsiColor, Style};
use clap::Args;
use outrigger_proto::admin::{DiffRequest, DiffResponse, HistoryRequest, ObjectDiff, Revision};
use outrigger_proxy::arguments::name;
use serde_json::{Value, json};

use super::{
    connection::{ConnectionArgs, call, run},
    files, kinds,
    line_diff::unified,
    outcome::{Exit, Failure, Outcome},
    output::{Format, Report, note, print, print_json, print_yaml, styled, time},
    problems,
    table::Table,
};

/// `outrigger history`.
#[derive(Args, Clone, Debug)]
pub struct HistoryArgs {
    /// Only revisions that touched this object: KIND NAME or KIND/NAME
    #[arg(value_name = "KIND NAME", num_args = 0..=2)]
    pub target: Vec<String>,
    /// Namespace of the object
    #[arg(short = 'n', long, default_value = "default", value_parser = name)]
    pub namespace: String,
    /// Most revisions to show, newest first
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// How to print
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Format,
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// `outrigger diff`.
#[derive(Args, Clone, Debug)]
pub struct DiffArgs {
    /// Compare these files with what is stored; repeatable
    #[arg(short = 'f', long = "filename", value_name = "FILE", required_unless_present_any = ["from", "to"], conflicts_with_all = ["from", "to"])]
    pub files: Vec<PathBuf>,
    /// Compare from this revision ...
    #[arg(long, value_name = "N", value_parser = kinds::revision)]
    pub from: Option<u64>,
    /// ... to this one [default: the newest]
    #[arg(long, value_name = "N", requires = "from", value_parser = kinds::revision)]
    pub to: Option<u64>,
    /// Namespace of objects that name none
    #[arg(short = 'n', long, default_value = "default", value_parser = name)]
    pub namespace: String,
    /// Exit with 1 when there is a difference
    #[arg(long)]
    pub exit_code: bool,
    /// How to print
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Report,
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// Runs `outrigger history`.
pub fn history(args: &HistoryArgs) -> Outcome {
    let object = match kinds::targets(&args.target, &args.namespace)?.as_slice() {
        [] => None,
        [target] if target.named => Some(target.key.clone()),
        [target] => {
            return Err(Failure::usage(format_args!(
                "name the {} whose history to show (hint: outrigger history {} NAME)",
                target.key.kind, target.key.kind
            )));
        }
        _ => return Err(Failure::usage("give one object only (hint: outrigger history KIND NAME)")),
    };
    let revisions = run(async {
        let mut client = args.connection.connect().await?;
        Ok(call(client.history(HistoryRequest { limit: args.limit, object })).await?.revisions)
    })?;
    match args.output {
        Format::Json => print_json(&revisions.iter().map(revision_json).collect::<Vec<_>>())?,
        Format::Yaml => print_yaml(&revisions.iter().map(revision_json).collect::<Vec<_>>())?,
        Format::Table | Format::Wide if revisions.is_empty() => note("no revisions yet"),
        Format::Table | Format::Wide => {
            let mut table = Table::new(&["REVISION", "TIME (UTC)", "AUTHOR", "CHANGES", "MESSAGE"]);
            for revision in &revisions {
                table.row([
                    revision.revision.to_string(),
                    time(revision.time_unix_ms / 1000),
                    revision.author.clone(),
                    changes(revision, args.output == Format::Wide),
                    revision.message.clone(),
                ]);
            }
            print(&table.render())?;
        }
    }
    Ok(Exit::Ok)
}

/// Changes named one by one while they fit a line.
const NAMED_CHANGES: usize = 2;

fn changes(revision: &Revision, all: bool) -> String {
    let named = if all { usize::MAX } else { NAMED_CHANGES };
    let mut said: Vec<String> = revision
        .changes
        .iter()
        .take(named)
        .map(|change| {
            let object = change.object.clone().unwrap_or_default();
            format!("{}/{} {}", object.kind.to_ascii_lowercase(), object.name, change.action)
        })
        .collect();
    let more = revision.changes.len().saturating_sub(named);
    if more > 0 {
        said.push(format!("{more} more"));
    }
    said.join(", ")
}

fn revision_json(revision: &Revision) -> Value {
    json!({
        "revision": revision.revision,
        "time_unix_ms": revision.time_unix_ms,
        "author": revision.author,
        "message": revision.message,
        "changes": revision.changes.iter().map(|change| json!({
            "object": change.object.as_ref().map(problems::key_to_json),
            "action": change.action,
        })).collect::<Vec<_>>(),
    })
}

/// Runs `outrigger diff`.
pub fn diff(args: &DiffArgs) -> Outcome {
    let documents = files::read(&args.files)?;
    let response = run(async {
        let mut client = args.connection.connect().await?;
        let request = DiffRequest {
            documents,
            from: args.from.unwrap_or(0),
            to: args.to.unwrap_or(0),
            namespace: args.namespace.clone(),
        };
        call(client.diff(request)).await
    })?;
    for problem in &response.problems {
        note(problems::render(problem).trim_end());
    }
    match args.output {
        Report::Text => {
            let text: String = changed(&response).map(render).collect();
            if text.is_empty() && response.problems.is_empty() {
                note("no difference");
            }
            print(&text)?;
        }
        Report::Json => print_json(&diff_json(&response))?,
        Report::Yaml => print_yaml(&diff_json(&response))?,
    }
    if response.problems.iter().any(|problem| problem.severity == "error") {
        return Err(Failure::bad_input(format_args!("{} in the files", problems::summary(&response.problems))));
    }
    let differs = changed(&response).next().is_some();
    Ok(if differs && args.exit_code { Exit::Failed } else { Exit::Ok })
}

fn changed(response: &DiffResponse) -> impl Iterator<Item = &ObjectDiff> {
    response.objects.iter().filter(|object| object.before != object.after)
}

fn render(object: &ObjectDiff) -> String {
    const REMOVED: Style = AnsiColor::Red.on_default();
    const ADDED: Style = AnsiColor::Green.on_default();
    let key = object.object.clone().unwrap_or_default();
    let name = format!("{} {}", key.kind, problems::full_name(&key));
    let mut text = format!("--- {name}\n+++ {name} ({})\n", object.action);
    for line in unified(&object.before, &object.after).lines() {
        let style = match line.as_bytes().first() {
            Some(b'-') => Some(REMOVED),
            Some(b'+') => Some(ADDED),
            _ => None,
        };
        text.push_str(&style.map_or_else(|| line.to_owned(), |style| styled(style, line)));
        text.push('\n');
    }
    text
}

fn diff_json(response: &DiffResponse) -> Value {
    let objects: Vec<Value> = changed(response)
        .map(|object| {
            json!({
                "object": object.object.as_ref().map(problems::key_to_json),
                "action": object.action,
                "before": object.before,
                "after": object.after,
            })
        })
        .collect();
    json!({ "objects": objects, "problems": response.problems.iter().map(problems::to_json).collect::<Vec<_>>() })
}
