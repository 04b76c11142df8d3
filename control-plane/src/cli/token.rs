//! `token`: join tokens for sidecars.

use std::time::Duration;

use clap::{Args, Subcommand};
use outrigger_proto::admin::{CreateTokenRequest, ListTokensRequest, RevokeTokenRequest, TokenInfo};
use outrigger_proxy::{arguments::name, settings::parse_duration};
use serde_json::{Value, json};

use super::{
    connection::{ConnectionArgs, call, run},
    outcome::{Exit, Failure, Outcome},
    output::{Format, Report, note, print, print_json, print_yaml, time},
    table::Table,
};

/// `outrigger token`.
#[derive(Subcommand, Clone, Debug)]
pub enum TokenCommand {
    /// Make a token with which sidecars of one service account may join
    Create(CreateArgs),
    /// List tokens that are still good
    List(ListArgs),
    /// Make a token useless; sidecars that already joined stay
    Revoke(RevokeArgs),
}

/// `outrigger token create`.
#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    /// Namespace of the workloads
    #[arg(short = 'n', long, default_value = "default", value_parser = name)]
    pub namespace: String,
    /// Service account of the workloads: the identity they get
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = name)]
    pub service_account: String,
    /// How long it is good for
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_duration)]
    pub ttl: Duration,
    /// How many joins it is good for [default: any number]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub uses: Option<u32>,
    /// How to print
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Report,
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// `outrigger token list`.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// How to print
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Format,
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// `outrigger token revoke`.
#[derive(Args, Clone, Debug)]
pub struct RevokeArgs {
    /// Id, as `outrigger token list` shows it
    #[arg(value_name = "ID")]
    pub id: String,
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// Runs `outrigger token ...`.
pub fn token(command: &TokenCommand) -> Outcome {
    match command {
        TokenCommand::Create(args) => create(args),
        TokenCommand::List(args) => list(args),
        TokenCommand::Revoke(args) => {
            if args.id.trim().is_empty() {
                return Err(Failure::usage("the id is empty (hint: `outrigger token list` shows ids)"));
            }
            run(async {
                let mut client = args.connection.connect().await?;
                call(client.revoke_token(RevokeTokenRequest { id: args.id.clone() })).await
            })?;
            print(&format!("token {} revoked\n", args.id))?;
            Ok(Exit::Ok)
        }
    }
}

fn create(args: &CreateArgs) -> Outcome {
    if args.ttl < Duration::from_secs(1) {
        return Err(Failure::usage("--ttl must be at least 1s"));
    }
    let made = run(async {
        let mut client = args.connection.connect().await?;
        let request = CreateTokenRequest {
            namespace: args.namespace.clone(),
            service_account: args.service_account.clone(),
            ttl_seconds: args.ttl.as_secs(),
            uses: args.uses.unwrap_or(0),
        };
        call(client.create_token(request)).await
    })?;
    let info = made.info.unwrap_or_default();
    let mut value = info_json(&info);
    value["token"] = Value::String(made.token.clone());
    match args.output {
        Report::Text => {
            print(&format!("{}\n", made.token))?;
            note(&format!(
                "token {} for {}/{}, good until {} UTC; it is shown only now",
                info.id,
                info.namespace,
                info.service_account,
                time(info.expires_unix)
            ));
        }
        Report::Json => print_json(&value)?,
        Report::Yaml => print_yaml(&value)?,
    }
    Ok(Exit::Ok)
}

fn list(args: &ListArgs) -> Outcome {
    let tokens = run(async {
        let mut client = args.connection.connect().await?;
        Ok(call(client.list_tokens(ListTokensRequest {})).await?.tokens)
    })?;
    match args.output {
        Format::Json => print_json(&tokens.iter().map(info_json).collect::<Vec<_>>())?,
        Format::Yaml => print_yaml(&tokens.iter().map(info_json).collect::<Vec<_>>())?,
        Format::Table | Format::Wide if tokens.is_empty() => note("no tokens (hint: `outrigger token create`)"),
        Format::Table | Format::Wide => {
            let mut table = Table::new(&["ID", "NAMESPACE", "SERVICE ACCOUNT", "EXPIRES (UTC)", "USES LEFT"]);
            for token in &tokens {
                let uses = if token.uses_left < 0 { "any".to_owned() } else { token.uses_left.to_string() };
                table.row([
                    token.id.clone(),
                    token.namespace.clone(),
                    token.service_account.clone(),
                    time(token.expires_unix),
                    uses,
                ]);
            }
            print(&table.render())?;
        }
    }
    Ok(Exit::Ok)
}

fn info_json(token: &TokenInfo) -> Value {
    json!({
        "id": token.id,
        "namespace": token.namespace,
        "service_account": token.service_account,
        "expires_unix": token.expires_unix,
        "uses_left": if token.uses_left < 0 { Value::Null } else { token.uses_left.into() },
    })
}
