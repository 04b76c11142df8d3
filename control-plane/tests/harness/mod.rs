//! What the case walkers share: reading a case, and showing resources as JSON.

#![allow(dead_code, clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::Arc,
};

use outrigger_control_plane::{
    api::{self, Object, Problem},
    compile::Resource,
    model::{MeshSettings, PeerKind, RegisteredWorkload, WorkloadPort, needs_virtual_address},
};
use outrigger_proto::{kind::Kind, mesh};
use prost::Message;
use serde_json::{Value, json};

/// Whether expected files are to be written instead of compared.
pub fn rewrite() -> bool {
    std::env::var_os("OUTRIGGER_REWRITE_CASES").is_some_and(|value| value == "1")
}

/// Entries of a folder, sorted.
pub fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Compares with the expected text, or writes it.
pub fn compare(path: &Path, actual: &str) {
    if rewrite() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, actual).unwrap();
        return;
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    assert!(
        expected == actual,
        "{} differs; set OUTRIGGER_REWRITE_CASES=1 to rewrite it after a check by eye\n--- expected\n{expected}\n--- actual\n{actual}",
        path.display()
    );
}

/// All objects of a folder's YAML files, with the problems found while reading.
pub fn read_objects(folder: &Path) -> (Vec<Arc<Object>>, Vec<Problem>) {
    let (mut objects, mut problems) = (Vec::new(), Vec::new());
    for path in entries(folder) {
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let (read, found) = api::parse(&file, &fs::read_to_string(&path).unwrap(), "default");
        objects.extend(read.into_iter().map(Arc::new));
        problems.extend(found);
    }
    (objects, problems)
}

/// An address for each service that needs one, in order.
pub fn addresses(objects: &[Arc<Object>], settings: &MeshSettings) -> BTreeMap<String, Vec<IpAddr>> {
    let keys = needs_virtual_address(objects, settings);
    let address = |index: usize| IpAddr::V4(Ipv4Addr::from(0xf0f0_0000 + u32::try_from(index).unwrap() + 1));
    keys.into_iter().enumerate().map(|(index, key)| (key, vec![address(index)])).collect()
}

/// Registered workloads as a case writes them.
pub fn read_workloads(path: &Path) -> Vec<RegisteredWorkload> {
    let Ok(text) = fs::read_to_string(path) else { return Vec::new() };
    let list: Value = serde_saphyr::from_str(&text).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let port = |value: &Value| u16::try_from(value.as_u64().unwrap()).unwrap();
    let workload = |one: &Value| RegisteredWorkload {
        uid: format!("{}/{}", text(&one["namespace"]), text(&one["workload"])),
        namespace: text(&one["namespace"]),
        workload: text(&one["workload"]),
        service_account: text(&one["serviceAccount"]),
        labels: one["labels"]
            .as_object()
            .map(|labels| labels.iter().map(|(name, value)| (name.clone(), text(value))).collect())
            .unwrap_or_default(),
        locality: text(&one["locality"]),
        address: one["address"].as_str().map(|address| address.parse().unwrap()),
        ports: one["ports"]
            .as_array()
            .map(|ports| {
                let read = |one: &Value| WorkloadPort {
                    target_port: port(&one["targetPort"]),
                    name: text(&one["name"]),
                    reachable_port: port(&one["reachablePort"]),
                };
                ports.iter().map(read).collect()
            })
            .unwrap_or_default(),
        ready: one["ready"].as_bool().unwrap_or(true),
        draining: one["draining"].as_bool().unwrap_or(false),
        mesh: PeerKind::Outrigger,
    };
    list.as_array().unwrap().iter().map(workload).collect()
}

/// A resource for people to read.
pub fn show(resource: &Resource) -> Value {
    let bytes = resource.bytes.clone();
    let message = match resource.kind {
        Kind::TrustBundle => debug_to_json(&mesh::TrustBundle::decode(bytes).unwrap()),
        Kind::EndpointShard => debug_to_json(&mesh::EndpointShard::decode(bytes).unwrap()),
        Kind::BackendPolicy => debug_to_json(&mesh::BackendPolicy::decode(bytes).unwrap()),
        Kind::Service => debug_to_json(&mesh::Service::decode(bytes).unwrap()),
        Kind::RouteTable => debug_to_json(&mesh::RouteTable::decode(bytes).unwrap()),
        Kind::Node => debug_to_json(&mesh::Node::decode(bytes).unwrap()),
    };
    let mut shown = json!({ "message": message });
    shown["origins"] = resource.origins.iter().map(ToString::to_string).collect();
    if !resource.aliases.is_empty() {
        shown["aliases"] = resource.aliases.iter().map(ToString::to_string).collect();
    }
    shown
}

/// The debug form of a message as JSON, so that new fields show up by themselves. What is empty, zero or absent is left out.
pub fn debug_to_json(message: &impl std::fmt::Debug) -> Value {
    let text = format!("{message:?}");
    let mut parser = Parser { rest: &text };
    let value = parser.value();
    assert!(parser.rest.is_empty(), "left over: {}", parser.rest);
    value.unwrap_or_else(|| json!({}))
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn eat(&mut self, text: &str) -> bool {
        self.rest = self.rest.trim_start();
        self.rest.strip_prefix(text).inspect(|rest| self.rest = rest).is_some()
    }

    fn value(&mut self) -> Option<Value> {
        self.rest = self.rest.trim_start();
        if self.eat("[") {
            let mut items = Vec::new();
            while !self.eat("]") {
                items.push(self.value().unwrap_or_else(|| json!({})));
                self.eat(",");
            }
            return (!items.is_empty()).then_some(Value::Array(items));
        }
        if self.eat("{") {
            return self
                .fields(|parser| parser.value().map_or_else(String::new, |key| key.as_str().unwrap().to_owned()));
        }
        if self.rest.starts_with("b\"") {
            self.eat("b");
            let bytes = self.quoted();
            return (!bytes.is_empty()).then(|| bytes_to_json(&bytes));
        }
        if self.rest.starts_with('"') {
            let text = String::from_utf8(self.quoted()).unwrap();
            return (!text.is_empty()).then_some(Value::String(text));
        }
        let end = self
            .rest
            .find(|letter: char| !(letter.is_alphanumeric() || "_.-:".contains(letter)))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        if let Ok(number) = word.parse::<serde_json::Number>() {
            return (number.as_f64() != Some(0.0)).then_some(Value::Number(number));
        }
        match word {
            "None" | "false" => return None,
            "true" => return Some(Value::Bool(true)),
            _ => {}
        }
        if self.eat("(") {
            let inner = self.value();
            assert!(self.eat(")"), "{}", self.rest);
            return if word == "Some" {
                Some(inner.unwrap_or_else(|| json!({})))
            } else {
                Some(json!({ word: inner }))
            };
        }
        if self.eat("{") {
            return self.fields(|parser| {
                let end = parser.rest.find(':').unwrap();
                let (name, rest) = parser.rest.split_at(end);
                parser.rest = rest;
                name.trim().to_owned()
            });
        }
        Some(Value::String(word.to_owned()))
    }

    fn fields(&mut self, key: impl Fn(&mut Self) -> String) -> Option<Value> {
        let mut fields = serde_json::Map::new();
        while !self.eat("}") {
            self.rest = self.rest.trim_start();
            let name = key(self);
            assert!(self.eat(":"), "{}", self.rest);
            if let Some(value) = self.value() {
                fields.insert(name, value);
            }
            self.eat(",");
        }
        (!fields.is_empty()).then_some(Value::Object(fields))
    }

    fn quoted(&mut self) -> Vec<u8> {
        assert!(self.eat("\""));
        let mut bytes = Vec::new();
        let mut letters = self.rest.char_indices();
        while let Some((index, letter)) = letters.next() {
            match letter {
                '"' => {
                    self.rest = &self.rest[index + 1..];
                    return bytes;
                }
                '\\' => match letters.next().unwrap().1 {
                    'n' => bytes.push(b'\n'),
                    't' => bytes.push(b'\t'),
                    'r' => bytes.push(b'\r'),
                    '0' => bytes.push(0),
                    'x' => {
                        let hex: String = [letters.next().unwrap().1, letters.next().unwrap().1].iter().collect();
                        bytes.push(u8::from_str_radix(&hex, 16).unwrap());
                    }
                    other => bytes.extend(other.to_string().bytes()),
                },
                other => bytes.extend(other.to_string().bytes()),
            }
        }
        panic!("a text does not end");
    }
}

fn bytes_to_json(bytes: &[u8]) -> Value {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Value::String(IpAddr::from(four).to_string());
    }
    if let Ok(sixteen) = <[u8; 16]>::try_from(bytes) {
        return Value::String(IpAddr::from(sixteen).to_string());
    }
    Value::String(String::from_utf8_lossy(bytes).into_owned())
}
