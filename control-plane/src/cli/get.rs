//! `get`: what is stored, as a table or as the objects themselves.

use clap::Args;
use outrigger_proto::admin::{GetRequest, StoredObject};
use outrigger_proxy::arguments::name;
use serde_json::{Value, json};
use tonic::Code;

use super::{
    connection::{ConnectionArgs, call, explain, run},
    kinds,
    outcome::{Exit, Failure, Outcome},
    output::{Format, age, note, print, print_json, to_yaml, unix_now},
    table::Table,
};

/// `outrigger get`.
#[derive(Args, Clone, Debug)]
pub struct GetArgs {
    /// KIND, KIND NAME..., KIND/NAME..., or nothing for all kinds
    #[arg(value_name = "KIND NAME")]
    pub targets: Vec<String>,
    /// Namespace to look in
    #[arg(short = 'n', long, default_value = "default", value_parser = name)]
    pub namespace: String,
    /// Look in all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// As of this revision instead of the newest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub revision: Option<u64>,
    /// How to print
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Format,
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// Runs `outrigger get`.
pub fn get(args: &GetArgs) -> Outcome {
    let namespace = if args.all_namespaces { "" } else { &args.namespace };
    let words: &[String] = match args.targets.as_slice() {
        [all] if all == "all" => &[],
        words => words,
    };
    let targets = kinds::targets(words, namespace)?;
    if args.all_namespaces && targets.iter().any(|target| target.named) {
        return Err(Failure::usage(
            "an object is named, so its namespace must be too (hint: -n NAMESPACE instead of -A)",
        ));
    }
    let one = matches!(targets.as_slice(), [target] if target.named);
    let mut requests: Vec<(GetRequest, bool)> = targets
        .into_iter()
        .map(|target| {
            let key = target.key;
            let request = GetRequest {
                kind: key.kind,
                namespace: key.namespace,
                name: key.name,
                revision: args.revision.unwrap_or(0),
            };
            (request, target.named)
        })
        .collect();
    if requests.is_empty() {
        let request = GetRequest {
            kind: String::new(),
            namespace: namespace.to_owned(),
            name: String::new(),
            revision: args.revision.unwrap_or(0),
        };
        requests.push((request, false));
    }
    let objects = run(async {
        let mut client = args.connection.connect().await?;
        let mut objects = Vec::new();
        for (request, named) in requests {
            let missing = not_found(&request);
            match client.get(request).await {
                Ok(response) => {
                    let found = response.into_inner().objects;
                    if named && found.is_empty() {
                        return Err(missing);
                    }
                    objects.extend(found);
                }
                Err(status) if status.code() == Code::NotFound && named => return Err(missing),
                Err(status) => return Err(explain(&status)),
            }
        }
        Ok(objects)
    })?;
    show(&objects, args, one)
}

fn not_found(request: &GetRequest) -> Failure {
    let place =
        if request.namespace.is_empty() { String::new() } else { format!(" in namespace \"{}\"", request.namespace) };
    let when = if request.revision == 0 { String::new() } else { format!(" at revision {}", request.revision) };
    Failure::failed(format_args!("{} \"{}\" not found{place}{when}", request.kind.to_ascii_lowercase(), request.name))
}

fn show(objects: &[StoredObject], args: &GetArgs, one: bool) -> Outcome {
    match args.output {
        Format::Json | Format::Yaml => {
            let mut values = objects.iter().map(parsed).collect::<Result<Vec<Value>, _>>()?;
            if args.output == Format::Yaml {
                let documents = values.iter().map(to_yaml).collect::<Result<Vec<_>, _>>()?;
                print(&documents.join("---\n"))?;
            } else if one && values.len() == 1 {
                print_json(&values.remove(0))?;
            } else {
                print_json(&json!({ "apiVersion": "v1", "kind": "List", "items": values }))?;
            }
        }
        Format::Table | Format::Wide => {
            if objects.is_empty() {
                let place =
                    if args.all_namespaces { String::new() } else { format!(" in namespace \"{}\"", args.namespace) };
                note(&format!("no objects found{place}"));
                return Ok(Exit::Ok);
            }
            print(&table(objects, args.output == Format::Wide, args.all_namespaces)?)?;
        }
    }
    Ok(Exit::Ok)
}

fn parsed(object: &StoredObject) -> Result<Value, Failure> {
    serde_json::from_str(&object.json)
        .map_err(|error| Failure::failed(format_args!("the control plane sent an object that is not JSON: {error}")))
}

fn table(objects: &[StoredObject], wide: bool, namespaces: bool) -> Result<String, Failure> {
    let mut heads = Vec::new();
    if namespaces {
        heads.push("NAMESPACE");
    }
    heads.extend(["KIND", "NAME", "SUMMARY", "STATUS", "AGE"]);
    if wide {
        heads.extend(["GENERATION", "REVISION"]);
    }
    let mut table = Table::new(&heads);
    let now = unix_now();
    for object in objects {
        let key = object.key.clone().unwrap_or_default();
        let value = parsed(object)?;
        let mut row = Vec::new();
        if namespaces {
            row.push(key.namespace);
        }
        row.extend([key.kind.clone(), key.name, summary(&key.kind, &value), status(&value), age_of(object, now)]);
        if wide {
            row.extend([object.generation.to_string(), object.revision.to_string()]);
        }
        table.row(row);
    }
    Ok(table.render())
}

fn age_of(object: &StoredObject, now: i64) -> String {
    if object.created_unix == 0 { String::new() } else { age(now - object.created_unix) }
}

/// The conditions in one word: the reason of the first that is not true, else "Ok".
fn status(object: &Value) -> String {
    let mut conditions = Vec::new();
    conditions_below(&object["status"], &mut conditions);
    if conditions.is_empty() {
        return String::new();
    }
    let bad = conditions.iter().find(|condition| condition["status"] == "False" || condition["status"] == false);
    match bad {
        Some(condition) => format!(
            "{}={}",
            text(&condition["type"]),
            condition["reason"].as_str().filter(|reason| !reason.is_empty()).unwrap_or("False")
        ),
        None => "Ok".to_owned(),
    }
}

/// Conditions stand in `status.conditions` or, for routes, in `status.parents[].conditions`.
pub(super) fn conditions_below<'a>(status: &'a Value, into: &mut Vec<&'a Value>) {
    if let Some(conditions) = status["conditions"].as_array() {
        into.extend(conditions);
    }
    for parent in status["parents"].as_array().into_iter().flatten() {
        conditions_below(parent, into);
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What a person wants to know of an object at a glance.
fn summary(kind: &str, object: &Value) -> String {
    let spec = &object["spec"];
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    match kind {
        "Service" => list(&spec["ports"])
            .iter()
            .map(|port| {
                let protocol = port["appProtocol"].as_str().or(port["name"].as_str()).or(port["protocol"].as_str());
                format!("{}/{}", text(&port["port"]), protocol.unwrap_or("tcp"))
            })
            .collect::<Vec<_>>()
            .join(","),
        "EndpointSlice" => {
            let addresses: usize =
                list(&object["endpoints"]).iter().map(|endpoint| list(&endpoint["addresses"]).len()).sum();
            super::output::count(addresses, "address", "addresses")
        }
        "HTTPRoute" | "TCPRoute" | "GRPCRoute" | "TLSRoute" => {
            list(&spec["rules"]).iter().map(|rule| backends(&list(&rule["backendRefs"]))).collect::<Vec<_>>().join("; ")
        }
        "DestinationRule" => {
            let subsets: Vec<String> = list(&spec["subsets"]).iter().map(|subset| text(&subset["name"])).collect();
            let host = text(&spec["host"]);
            if subsets.is_empty() { host } else { format!("{host} ({})", subsets.join(",")) }
        }
        "PeerAuthentication" => text(&spec["mtls"]["mode"]),
        "CircuitBreaker" => list(&spec["targetRefs"])
            .iter()
            .map(|target| format!("{}/{}", text(&target["kind"]).to_ascii_lowercase(), text(&target["name"])))
            .collect::<Vec<_>>()
            .join(","),
        _ => String::new(),
    }
}

fn backends(backends: &[Value]) -> String {
    let weight = |backend: &Value| backend["weight"].as_u64().unwrap_or(1);
    let total: u64 = backends.iter().map(weight).sum();
    backends
        .iter()
        .map(|backend| match (backends.len(), total) {
            (1, _) | (_, 0) => text(&backend["name"]),
            _ => format!("{} {}%", text(&backend["name"]), weight(backend) * 100 / total),
        })
        .collect::<Vec<_>>()
        .join(", ")
}

/// Runs one listing without arguments; `check` uses it too.
pub(super) async fn everything(client: &mut super::connection::Client) -> Result<Vec<StoredObject>, Failure> {
    Ok(call(client.get(GetRequest::default())).await?.objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_shows_its_split_in_percent() {
        // The canary's share is what people look at the table for.
        let route = json!({"spec": {"rules": [
            {"backendRefs": [{"name": "v1", "weight": 9}, {"name": "v2", "weight": 1}]},
            {"backendRefs": [{"name": "v3"}]},
        ]}});
        assert_eq!(summary("HTTPRoute", &route), "v1 90%, v2 10%; v3");
        assert_eq!(summary("HTTPRoute", &json!({"spec": {"rules": "broken"}})), "");
    }

    #[test]
    fn the_first_false_condition_is_the_status() {
        // A route that was refused must not look like one that works.
        let parents = json!({"status": {"parents": [{"conditions": [
            {"type": "Accepted", "status": "True", "reason": "Accepted"},
            {"type": "ResolvedRefs", "status": "False", "reason": "BackendNotFound"},
        ]}]}});
        assert_eq!(status(&parents), "ResolvedRefs=BackendNotFound");
        assert_eq!(status(&json!({"status": {"conditions": [{"type": "Accepted", "status": "True"}]}})), "Ok");
        assert_eq!(status(&json!({})), "");
    }
}
