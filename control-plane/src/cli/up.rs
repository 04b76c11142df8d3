//! `up`: a control plane and the objects of a folder in one process; edit a file and the mesh follows.
//!
//! Objects go in through the admin API, as `apply` would send them, so history and rollback work. The folder is the truth:
//! what `up` applied from it and is no longer in it is deleted, also when that happened while `up` was not running.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use clap::Args;
use outrigger_proto::admin::{ApplyRequest, ApplyResponse, DeleteRequest, ObjectKey};
use outrigger_proxy::{arguments::name, telemetry::log};
use serde_json::Value;

use super::{
    apply::described,
    connection::{Client, ConnectionArgs, call, default_data_dir},
    files,
    outcome::{Exit, Failure, Outcome},
    output::{count, note, print, warning},
    problems,
    serve::{self, ServeArgs, Stop},
    watch::{INTERVAL, Watch},
};
use crate::control_plane::Running;

/// `outrigger up`.
#[derive(Args, Clone, Debug)]
pub struct UpArgs {
    /// File or directory (read recursively) with the objects; repeatable
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Namespace of objects that name none
    #[arg(short = 'n', long, default_value = "default", value_parser = name)]
    pub namespace: String,
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// File in the data directory that lists what `up` applied.
const APPLIED_FILE: &str = "up.objects";

/// Runs `outrigger up`.
pub fn up(args: &UpArgs) -> Outcome {
    if args.files.iter().any(|path| path.as_os_str() == "-") {
        return Err(Failure::usage(
            "`up` watches files, so it cannot read standard input (hint: use `serve` and `apply -f -`)",
        ));
    }
    let watch = Watch::new(args.files.iter().cloned());
    // Wrong files are told before anything is started.
    described(&files::read(&args.files)?, &args.namespace)?;
    let settings = args.serve.settings();
    let folder = settings.data_dir.clone();
    let log = log::start(args.serve.log_format, &args.serve.log_level).map_err(Failure::usage)?;
    let ended = serve::runtime()?.block_on(async {
        let mut stop = Stop::new()?;
        let running = serve::start(settings).await?;
        let outcome = run(args, &running, &folder, watch, &mut stop).await;
        let _ = std::fs::remove_file(folder.join(super::connection::ADDRESS_FILE));
        running.shutdown().await;
        outcome
    });
    log.flush();
    ended
}

async fn run(args: &UpArgs, running: &Running, folder: &Path, mut watch: Watch, stop: &mut Stop) -> Outcome {
    let connection = ConnectionArgs {
        server: Some(serve::reachable(running.admin_address).to_string()),
        data_dir: Some(folder.to_owned()),
        ..ConnectionArgs::default()
    };
    let mut client = connection.connect().await.map_err(Failure::from)?;
    let (revision, objects) = sync(&mut client, args, folder).await?;
    print(&next_steps(running, folder, revision, objects))?;
    let mut tick = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            () = stop.wait() => {
                note("stopping");
                return Ok(Exit::Ok);
            }
            _ = tick.tick() => {
                if !watch.changed() {
                    continue;
                }
                // The admin connection may have been asked to go; a fresh one costs little.
                let synced = match connection.connect().await {
                    Ok(mut client) => sync(&mut client, args, folder).await,
                    Err(error) => Err(error.into()),
                };
                match synced {
                    Ok((revision, objects)) => {
                        note(&format!("files changed: {} at revision {revision}", count(objects, "object", "objects")));
                    }
                    Err(failure) => warning(&format!("files changed and nothing was applied: {}", failure.message)),
                }
            }
        }
    }
}

/// Makes the store hold what the files say. Gives the revision and how many objects the files hold.
async fn sync(client: &mut Client, args: &UpArgs, folder: &Path) -> Result<(u64, usize), Failure> {
    let documents = files::read(&args.files)?;
    let wanted: BTreeSet<Key> = described(&documents, &args.namespace)?.into_iter().map(key).collect();
    let request = ApplyRequest {
        documents,
        namespace: args.namespace.clone(),
        message: "up".to_owned(),
        ..ApplyRequest::default()
    };
    let response = call(client.apply(request)).await?;
    tell(&response);
    if response.refused {
        return Err(Failure::bad_input(format_args!("refused: {}", problems::summary(&response.problems))));
    }
    let mut revision = response.revision;
    let before = applied(folder);
    let gone: Vec<ObjectKey> = before.difference(&wanted).map(object).collect();
    // Written before the delete: an object that could not be deleted now is tried again next time.
    remember(folder, &before.union(&wanted).cloned().collect())?;
    if !gone.is_empty() {
        let request =
            DeleteRequest { objects: gone, message: "up: no longer in the files".to_owned(), expected_revision: 0 };
        match client.delete(request).await {
            Ok(response) => {
                let response = response.into_inner();
                tell(&response);
                revision = revision.max(response.revision);
            }
            // Somebody deleted it by hand: that is what we wanted.
            Err(status) if status.code() == tonic::Code::NotFound => {}
            Err(status) => return Err(super::connection::explain(&status)),
        }
    }
    remember(folder, &wanted)?;
    Ok((revision, wanted.len()))
}

fn tell(response: &ApplyResponse) {
    for problem in &response.problems {
        note(problems::render(problem).trim_end());
    }
    for change in response.changes.iter().filter(|change| change.action != "unchanged") {
        let object = change.object.clone().unwrap_or_default();
        note(&format!("{}/{} {}", object.kind.to_ascii_lowercase(), object.name, change.action));
    }
}

/// Kind, namespace, name: an order for sets, which the generated message has not.
type Key = (String, String, String);

fn key(object: ObjectKey) -> Key {
    (object.kind, object.namespace, object.name)
}

fn object((kind, namespace, name): &Key) -> ObjectKey {
    ObjectKey { kind: kind.clone(), namespace: namespace.clone(), name: name.clone() }
}

fn applied(folder: &Path) -> BTreeSet<Key> {
    let text = std::fs::read_to_string(folder.join(APPLIED_FILE)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

fn remember(folder: &Path, keys: &BTreeSet<Key>) -> Result<(), Failure> {
    let path = folder.join(APPLIED_FILE);
    let text = serde_json::to_value(keys).unwrap_or(Value::Null).to_string();
    serve::write_whole(&path, &text).map_err(|error| {
        Failure::failed(format_args!(
            "cannot write {}: {}",
            path.display(),
            outrigger_proxy::arguments::plain_io(&error)
        ))
    })
}

fn next_steps(running: &Running, folder: &Path, revision: u64, objects: usize) -> String {
    let elsewhere =
        if folder == default_data_dir() { String::new() } else { format!(" --data-dir {}", folder.display()) };
    let discovery = serve::reachable(running.discovery_address);
    format!(
        "mesh is up: {} at revision {revision}; files are watched, Ctrl-C stops\n\
         \n\
         next steps, in another terminal:\n\
         \x20 a token    outrigger token create{elsewhere} > join.token\n\
         \x20 a sidecar  outrigger proxy --control-plane {discovery} --token-file join.token --workload NAME \\\n\
         \x20              --label app=NAME --inbound 127.0.0.1:8443=127.0.0.1:APP_PORT --outbound 127.0.0.1:15001\n\
         \x20 a request  curl --proxy http://127.0.0.1:15001 http://SERVICE.NAMESPACE:PORT/\n\
         \x20 a look     outrigger proxies{elsewhere}; outrigger get -A{elsewhere}; outrigger check{elsewhere}\n",
        count(objects, "object", "objects")
    )
}
