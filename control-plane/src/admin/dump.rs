//! What one proxy holds, as JSON for people: type URL -> name -> {version, acked, refused, resource}.
//!
//! Messages are read through their schema, so a new field shows up here by itself. Enums appear by name, addresses as
//! addresses, durations as Go writes them, other bytes as base64.

use std::{net::IpAddr, sync::LazyLock};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use outrigger_proto::kind::Kind;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind as FieldKind, MapKey, ReflectMessage as _, Value,
};
use serde_json::{Map, Value as Json, json};

use crate::discovery::Session;

static SCHEMA: LazyLock<Option<DescriptorPool>> =
    LazyLock::new(|| DescriptorPool::decode(outrigger_proto::DESCRIPTORS).ok());

/// Everything that the session's proxy holds. Resources appear in the version that the control plane has now;
/// `stale` is true where the proxy was sent another one.
pub fn session(session: &Session) -> Json {
    let mut kinds = Map::new();
    for (kind, name, held) in session.held() {
        let resource = session.catalogue().find(kind, name);
        let current = resource.filter(|r| r.version == held.sent);
        let mut entry = json!({
            "version": held.sent.to_string(),
            "acked": held.acked.as_ref() == Some(&held.sent),
        });
        if let Some(refusal) = &held.refused {
            entry["refused"] = json!({"path": refusal.path, "reason": refusal.reason});
            entry["in_effect"] = json!(held.acked.as_ref().map(ToString::to_string));
        }
        if current.is_none() {
            entry["stale"] = json!(true);
        }
        if let Some(resource) = resource {
            entry["origins"] = resource.origins.iter().map(ToString::to_string).collect();
            entry["resource"] = message(kind, &resource.bytes);
        }
        let names = kinds.entry(kind.type_url()).or_insert_with(|| json!({}));
        if let Some(names) = names.as_object_mut() {
            names.insert(name.to_string(), entry);
        }
    }
    Json::Object(kinds)
}

/// One encoded resource.
pub fn message(kind: Kind, bytes: &[u8]) -> Json {
    let name = kind.type_url().rsplit('/').next().unwrap_or_default();
    SCHEMA
        .as_ref()
        .and_then(|pool| pool.get_message_by_name(name))
        .and_then(|descriptor| DynamicMessage::decode(descriptor, bytes).ok())
        .map_or(Json::Null, |message| show_message(&message))
}

fn show_message(message: &DynamicMessage) -> Json {
    if message.descriptor().full_name() == "google.protobuf.Duration" {
        let part = |name: &str| {
            message.get_field_by_name(name).map_or(0.0, |v| match *v {
                #[allow(clippy::cast_precision_loss)]
                Value::I64(n) => n as f64,
                Value::I32(n) => f64::from(n),
                _ => 0.0,
            })
        };
        return json!(format!("{}s", part("seconds") + part("nanos") / 1e9));
    }
    message
        .fields()
        .map(|(field, value)| (field.json_name().to_owned(), show(&field, value)))
        .collect::<Map<_, _>>()
        .into()
}

fn show(field: &FieldDescriptor, value: &Value) -> Json {
    match value {
        Value::Bool(v) => json!(v),
        Value::I32(v) => json!(v),
        Value::I64(v) => json!(v),
        Value::U32(v) => json!(v),
        Value::U64(v) => json!(v),
        Value::F32(v) => json!(v),
        Value::F64(v) => json!(v),
        Value::String(v) => json!(v),
        Value::Bytes(bytes) => show_bytes(field.name(), bytes),
        Value::EnumNumber(number) => match field.kind() {
            FieldKind::Enum(e) => e.get_value(*number).map_or_else(|| json!(number), |v| json!(v.name())),
            _ => json!(number),
        },
        Value::Message(message) => show_message(message),
        Value::List(list) => list.iter().map(|item| show(field, item)).collect(),
        Value::Map(map) => {
            let mut rows: Vec<(String, Json)> = map
                .iter()
                .map(|(key, value)| {
                    let key = match key {
                        MapKey::Bool(k) => k.to_string(),
                        MapKey::I32(k) => k.to_string(),
                        MapKey::I64(k) => k.to_string(),
                        MapKey::U32(k) => k.to_string(),
                        MapKey::U64(k) => k.to_string(),
                        MapKey::String(k) => k.clone(),
                    };
                    (key, show(field, value))
                })
                .collect();
            rows.sort_by(|a, b| a.0.cmp(&b.0));
            Json::Object(rows.into_iter().collect())
        }
    }
}

fn show_bytes(field: &str, bytes: &[u8]) -> Json {
    let address =
        <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
    match address {
        Ok(address) if field.starts_with("address") => json!(address.to_string()),
        _ => match std::str::from_utf8(bytes) {
            // PEM and bodies of replies.
            Ok(text) if text.chars().all(|c| !c.is_control() || c == '\n') => json!(text),
            _ => json!(STANDARD.encode(bytes)),
        },
    }
}

#[cfg(test)]
mod tests {
    use outrigger_proto::mesh::{Endpoint, EndpointPort, EndpointShard, Health, Node, PeerKind};
    use prost::Message as _;

    use super::*;

    #[test]
    fn resources_read_as_people_expect() {
        // `outrigger config` is for three in the morning: no numbers for words, no base64 for addresses.
        let shard = EndpointShard {
            endpoints: vec![Endpoint {
                uid: "shop/a".to_owned(),
                address: vec![10, 0, 0, 1].into(),
                health: Health::Draining.into(),
                ports: vec![EndpointPort { service_port: 80, port: 15006, peer: PeerKind::Outrigger.into() }],
                labels: [("app".to_owned(), "a".to_owned())].into(),
                ..Default::default()
            }],
        };
        let json = message(Kind::EndpointShard, &shard.encode_to_vec());
        let endpoint = &json["endpoints"][0];
        assert_eq!(endpoint["address"], "10.0.0.1");
        assert_eq!(endpoint["health"], "HEALTH_DRAINING");
        assert_eq!(endpoint["ports"][0]["peer"], "PEER_KIND_OUTRIGGER");
        assert_eq!(endpoint["labels"]["app"], "a");
        let timeout = prost_types::Duration { seconds: 1, nanos: 500_000_000 };
        let node = Node { connect_timeout: Some(timeout), ..Default::default() };
        assert_eq!(message(Kind::Node, &node.encode_to_vec())["connectTimeout"], "1.5s");
        assert_eq!(message(Kind::Node, &[0xff]), Json::Null);
    }
}
