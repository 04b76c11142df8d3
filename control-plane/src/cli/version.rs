//! `version` and `completion`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use outrigger_proto::admin::InfoRequest;
use serde_json::json;

use super::{
    Cli,
    connection::{ConnectionArgs, call, run},
    outcome::{Exit, Failure, Outcome},
    output::{Report, print, print_json, print_yaml},
};

/// Version of this binary.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `outrigger version`.
#[derive(Args, Clone, Debug)]
pub struct VersionArgs {
    /// Only the version of this binary; ask no control plane
    #[arg(long)]
    pub client: bool,
    /// How to print
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Report,
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// `outrigger completion`.
#[derive(Args, Clone, Debug)]
pub struct CompletionArgs {
    /// Shell to write the script for
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Runs `outrigger version`. A control plane that is not there is told, and is no failure.
pub fn version(args: &VersionArgs) -> Outcome {
    let info = if args.client {
        None
    } else {
        Some(run(async {
            let mut client = args.connection.connect().await?;
            call(client.info(InfoRequest {})).await
        }))
    };
    // A folder, token or root that was named and is wrong is the user's to correct; a control plane that is not there is told.
    if let Some(Err(Failure { exit: Exit::BadInput, message })) = info {
        return Err(Failure::bad_input(message));
    }
    let mut value = json!({ "client": { "version": VERSION } });
    match &info {
        Some(Ok(info)) => {
            value["control_plane"] = json!({
                "version": info.version,
                "revision": info.revision,
                "trust_domain": info.trust_domain,
                "connected_proxies": info.connected_proxies,
                "discovery_address": info.discovery_address,
                "root_pin": info.root_pin,
            });
        }
        Some(Err(failure)) => value["control_plane"] = json!({ "error": failure.message }),
        None => {}
    }
    match args.output {
        Report::Json => print_json(&value)?,
        Report::Yaml => print_yaml(&value)?,
        Report::Text => {
            let mut text = format!("client: {VERSION}\n");
            match info {
                Some(Ok(info)) => text.push_str(&format!(
                    "control plane: {} (revision {}, {} proxies, sidecars connect to {})\n",
                    info.version, info.revision, info.connected_proxies, info.discovery_address
                )),
                Some(Err(failure)) => text.push_str(&format!("control plane: {}\n", failure.message)),
                None => {}
            }
            print(&text)?;
        }
    }
    Ok(Exit::Ok)
}

/// Runs `outrigger completion`.
pub fn completion(args: &CompletionArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "outrigger", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok)
}
