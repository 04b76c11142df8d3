//! `proxies` and `config`: which sidecars there are, whether they keep up, and what one of them holds.

use clap::Args;
use outrigger_proto::admin::{ListProxiesRequest, Proxy, ProxyConfigRequest};
use outrigger_proxy::settings::overlay::distance;
use serde_json::{Value, json};
use tonic::Code;

use super::{
    connection::{ConnectionArgs, call, explain, run},
    outcome::{Exit, Failure, Outcome},
    output::{Format, age, note, print, print_json, print_yaml, unix_now},
    table::Table,
};

/// `outrigger proxies`.
#[derive(Args, Clone, Debug)]
pub struct ProxiesArgs {
    /// How to print
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Format,
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// `outrigger config`.
#[derive(Args, Clone, Debug)]
pub struct ConfigArgs {
    /// Proxy as `outrigger proxies` names it: NAMESPACE/WORKLOAD
    #[arg(value_name = "PROXY")]
    pub proxy: String,
    /// Only this type of resource, for example Service or RouteTable
    #[arg(long = "type", value_name = "TYPE")]
    pub of_type: Option<String>,
    /// How to print
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Format,
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// Runs `outrigger proxies`.
pub fn proxies(args: &ProxiesArgs) -> Outcome {
    let (proxies, revision) = run(async {
        let mut client = args.connection.connect().await?;
        let answer = call(client.list_proxies(ListProxiesRequest {})).await?;
        Ok((answer.proxies, answer.revision))
    })?;
    match args.output {
        Format::Json => print_json(&proxies_json(&proxies, revision))?,
        Format::Yaml => print_yaml(&proxies_json(&proxies, revision))?,
        Format::Table | Format::Wide if proxies.is_empty() => {
            note("no proxy is known yet (hint: start one with `outrigger proxy --control-plane HOST:PORT`)");
        }
        Format::Table | Format::Wide => {
            let wide = args.output == Format::Wide;
            let mut heads = vec!["PROXY", "STATUS", "CONFIG", "REVISION", "VERSION", "AGE"];
            if wide {
                heads.extend(["ADDRESS", "RESOURCES", "IDENTITY", "FEATURES"]);
            }
            let mut table = Table::new(&heads);
            let now = unix_now();
            for proxy in &proxies {
                let connected_for = now - proxy.connected_unix_ms / 1000;
                let mut row = vec![
                    proxy.id.clone(),
                    status(proxy).to_owned(),
                    sync(proxy, revision),
                    proxy.revision.to_string(),
                    proxy.version.clone(),
                    if proxy.connected_unix_ms == 0 { String::new() } else { age(connected_for) },
                ];
                if wide {
                    row.extend([
                        proxy.address.clone(),
                        proxy.resources.to_string(),
                        proxy.identity.clone(),
                        proxy.features.join(","),
                    ]);
                }
                table.row(row);
            }
            print(&table.render())?;
            for proxy in &proxies {
                for refused in &proxy.refused {
                    let path = if refused.path.is_empty() { String::new() } else { format!(" at {}", refused.path) };
                    note(&format!("proxy {} refused {}{path}: {}", proxy.id, refused.resource, refused.reason));
                }
            }
        }
    }
    Ok(Exit::Ok)
}

/// What a proxy is doing, in one word.
pub(super) fn status(proxy: &Proxy) -> &'static str {
    match (proxy.connected, proxy.draining, proxy.ready) {
        (false, ..) => "disconnected",
        (true, true, _) => "draining",
        (true, false, true) => "ready",
        (true, false, false) => "not-ready",
    }
}

/// Whether a proxy has the newest configuration.
fn sync(proxy: &Proxy, newest: u64) -> String {
    if !proxy.refused.is_empty() {
        return format!("refused {}", proxy.refused.len());
    }
    match newest.saturating_sub(proxy.revision) {
        0 => "in-effect".to_owned(),
        behind => format!("{behind} behind"),
    }
}

fn proxies_json(proxies: &[Proxy], revision: u64) -> Value {
    let proxies: Vec<Value> = proxies
        .iter()
        .map(|proxy| {
            json!({
                "id": proxy.id,
                "status": status(proxy),
                "in_effect": proxy.refused.is_empty() && proxy.revision >= revision,
                "revision": proxy.revision,
                "connected": proxy.connected,
                "ready": proxy.ready,
                "draining": proxy.draining,
                "connected_unix_ms": proxy.connected_unix_ms,
                "identity": proxy.identity,
                "version": proxy.version,
                "address": proxy.address,
                "resources": proxy.resources,
                "features": proxy.features,
                "refused": proxy.refused.iter().map(|refused| json!({
                    "type": refused.type_url,
                    "resource": refused.resource,
                    "path": refused.path,
                    "reason": refused.reason,
                })).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({ "revision": revision, "proxies": proxies })
}

/// Runs `outrigger config`.
pub fn config(args: &ConfigArgs) -> Outcome {
    let wanted = if args.proxy.contains('/') { args.proxy.clone() } else { format!("default/{}", args.proxy) };
    let text = run(async {
        let mut client = args.connection.connect().await?;
        match client.proxy_config(ProxyConfigRequest { proxy: wanted.clone() }).await {
            Ok(response) => Ok(response.into_inner().json),
            Err(status) if status.code() == Code::NotFound => {
                let known = call(client.list_proxies(ListProxiesRequest {})).await?.proxies;
                let near = known
                    .iter()
                    .map(|proxy| (distance(&proxy.id, &wanted), proxy.id.as_str()))
                    .filter(|(apart, id)| *apart <= 3 || id.ends_with(&format!("/{}", args.proxy)))
                    .min();
                Err(Failure::failed(match near {
                    Some((_, near)) => format!("no proxy \"{wanted}\" (did you mean \"{near}\"?)"),
                    None => format!("no proxy \"{wanted}\" (hint: `outrigger proxies` lists them)"),
                }))
            }
            Err(status) => Err(explain(&status)),
        }
    })?;
    let mut dump: Value = serde_json::from_str(&text)
        .map_err(|error| Failure::failed(format_args!("the control plane sent a dump that is not JSON: {error}")))?;
    if let (Some(wanted), Value::Object(types)) = (&args.of_type, &mut dump) {
        let known: Vec<String> = types.keys().map(|url| short(url).to_owned()).collect();
        types.retain(|url, _| short(url).eq_ignore_ascii_case(wanted));
        if types.is_empty() {
            return Err(Failure::usage(format_args!("no type \"{wanted}\" there (known: {})", known.join(", "))));
        }
    }
    match args.output {
        Format::Json => print_json(&dump)?,
        Format::Yaml => print_yaml(&dump)?,
        Format::Table | Format::Wide => print(&dump_table(&dump))?,
    }
    Ok(Exit::Ok)
}

/// "Service" out of "type.googleapis.com/outrigger.mesh.v1.Service".
fn short(type_url: &str) -> &str {
    type_url.rsplit('.').next().unwrap_or(type_url)
}

fn dump_table(dump: &Value) -> String {
    let mut table = Table::new(&["TYPE", "NAME", "VERSION", "ACKED"]);
    for (type_url, resources) in dump.as_object().into_iter().flatten() {
        for (name, resource) in resources.as_object().into_iter().flatten() {
            let acked = match &resource["acked"] {
                Value::Bool(true) => "yes".to_owned(),
                Value::Bool(false) => "no".to_owned(),
                Value::String(text) => text.clone(),
                Value::Null => String::new(),
                other => other.to_string(),
            };
            let version = resource["version"].as_str().unwrap_or_default().to_owned();
            table.row([short(type_url).to_owned(), name.clone(), version, acked]);
        }
    }
    table.render()
}
