//! A text as a tree of values that remember where they were written.
//!
//! YAML (and JSON, which is YAML) is read document by document, so that one broken document spoils only itself.
//! Limits are those of the YAML reader: nesting, nodes, bytes, aliases. Positions refer to the whole text.

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A value and its place. Line and column count from 1; 0 when unknown.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) line: u32,
    pub(crate) column: u32,
}

/// The name of a field and its place.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) text: String,
    pub(crate) line: u32,
    pub(crate) column: u32,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Flag(bool),
    Number(serde_json::Number),
    Text(String),
    List(Vec<Node>),
    /// In the order written.
    Map(Vec<(Key, Node)>),
}

impl Value {
    /// What it is, for messages.
    pub(crate) fn noun(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Flag(_) => "true or false",
            Self::Number(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "an object",
        }
    }
}

impl Node {
    /// The tree of a stored value; places are unknown.
    pub(crate) fn from_json(value: &serde_json::Value) -> Self {
        let value = match value {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(flag) => Value::Flag(*flag),
            serde_json::Value::Number(number) => Value::Number(number.clone()),
            serde_json::Value::String(text) => Value::Text(text.clone()),
            serde_json::Value::Array(items) => Value::List(items.iter().map(Self::from_json).collect()),
            serde_json::Value::Object(fields) => Value::Map(
                fields
                    .iter()
                    .map(|(name, value)| (Key { text: name.clone(), line: 0, column: 0 }, Self::from_json(value)))
                    .collect(),
            ),
        };
        Self { value, line: 0, column: 0 }
    }

    /// The value without places.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Flag(flag) => serde_json::Value::Bool(*flag),
            Value::Number(number) => serde_json::Value::Number(number.clone()),
            Value::Text(text) => serde_json::Value::String(text.clone()),
            Value::List(items) => serde_json::Value::Array(items.iter().map(Self::to_json).collect()),
            Value::Map(fields) => serde_json::Value::Object(
                fields.iter().map(|(key, value)| (key.text.clone(), value.to_json())).collect(),
            ),
        }
    }

    /// The field of an object.
    pub(crate) fn field(&self, name: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(fields) => fields.iter().find(|(key, _)| key.text == name).map(|(_, value)| value),
            _ => None,
        }
    }

    fn shift(&mut self, lines: u32) {
        self.line = self.line.saturating_add(lines);
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|item| item.shift(lines)),
            Value::Map(fields) => fields.iter_mut().for_each(|(key, value)| {
                key.line = key.line.saturating_add(lines);
                value.shift(lines);
            }),
            _ => {}
        }
    }
}

/// Why a document could not be read.
#[derive(Clone, Debug)]
pub(crate) struct SyntaxError {
    pub(crate) message: String,
    pub(crate) line: u32,
    pub(crate) column: u32,
}

/// Reads all documents of a text; empty ones are left out.
pub(crate) fn read(text: &str) -> Vec<Result<Node, SyntaxError>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut read = Vec::new();
    for (first_line, document) in documents(text) {
        let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
        match serde_saphyr::from_multiple_with_options::<Node>(document, options) {
            Ok(nodes) => read.extend(nodes.into_iter().map(|mut node| {
                node.shift(first_line);
                Ok(node)
            })),
            Err(error) => {
                let location = error.location();
                let place = |value: Option<u64>| value.and_then(|value| u32::try_from(value).ok()).unwrap_or(0);
                let line = place(location.map(|location| location.line()));
                let column = place(location.map(|location| location.column()));
                let message = error.to_string();
                read.push(Err(SyntaxError {
                    message: plain(&message),
                    line: if line == 0 { first_line + 1 } else { line.saturating_add(first_line) },
                    column,
                }));
            }
        }
    }
    read
}

/// The reader's message without its own place (which counts from the document) and without advice for programmers.
fn plain(message: &str) -> String {
    let line = message.lines().next().unwrap_or("cannot be read");
    let line = line.split(" at line ").next().unwrap_or(line);
    line.split(", set DuplicateKeyPolicy").next().unwrap_or(line).to_owned()
}

/// Splits a text before each document marker and counts the lines before each part.
///
/// A line that starts with `---` and a blank is a marker wherever it stands, even inside a block of text
/// (YAML 1.2.2, 9.1.2 "c-forbidden"), so this never cuts a document in two. Directives stay with what follows them.
fn documents(text: &str) -> Vec<(u32, &str)> {
    let mut parts = Vec::new();
    let (mut start, mut start_line, mut offset, mut line, mut content) = (0, 0, 0, 0_u32, false);
    for piece in text.split_inclusive('\n') {
        let marker =
            piece.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker {
            if content && let Some(part) = text.get(start..offset) {
                parts.push((start_line, part));
                (start, start_line) = (offset, line);
            }
            content = piece.get(3..).is_some_and(has_content);
        } else if has_content(piece) {
            content = true;
        }
        offset += piece.len();
        line = line.saturating_add(1);
    }
    if content && let Some(part) = text.get(start..) {
        parts.push((start_line, part));
    }
    parts
}

/// Whether a line holds more than blanks, a comment, a directive or an end mark.
fn has_content(line: &str) -> bool {
    let line = line.trim();
    !(line.is_empty() || line.starts_with('#') || line.starts_with('%') || line == "...")
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        let place = |value: u64| u32::try_from(value).unwrap_or(0);
        Ok(Self {
            value: spanned.value,
            line: place(spanned.referenced.line()),
            column: place(spanned.referenced.column()),
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Flag(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_i128<E: serde::de::Error>(self, _: i128) -> Result<Value, E> {
        Err(E::custom("a number is too large"))
    }

    fn visit_u128<E: serde::de::Error>(self, _: u128) -> Result<Value, E> {
        Err(E::custom("a number is too large"))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Value, E> {
        serde_json::Number::from_f64(number).map(Value::Number).ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::Text(text))
    }

    fn visit_bytes<E: serde::de::Error>(self, _: &[u8]) -> Result<Value, E> {
        Err(E::custom("binary values have no use here"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element::<Node>()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut fields = Vec::new();
        while let Some(key) = entries.next_key::<Node>()? {
            let text = match key.value {
                Value::Text(text) => text,
                Value::Number(number) => number.to_string(),
                Value::Flag(flag) => flag.to_string(),
                _ => return Err(A::Error::custom("the name of a field is not text")),
            };
            let value = entries.next_value::<Node>()?;
            fields.push((Key { text, line: key.line, column: key.column }, value));
        }
        Ok(Value::Map(fields))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_broken_document_spoils_only_itself() {
        // A typo in one document of a file must not hide the others, and must be reported at its own line.
        let read = read("# first\n---\na: 1\n---\nb: [\n---\nc:\n  d: x\n");
        assert_eq!(read.len(), 3, "{read:?}");
        assert_eq!(read[0].as_ref().unwrap().field("a").unwrap().line, 3);
        let error = read[1].as_ref().unwrap_err();
        assert!((5..=6).contains(&error.line), "{error:?}");
        let node = read[2].as_ref().unwrap();
        let inner = node.field("c").unwrap().field("d").unwrap();
        assert_eq!((inner.line, inner.column), (8, 6));
    }

    #[test]
    fn empty_documents_and_directives_are_no_objects() {
        // Files that end in `---`, hold only comments, or start with a directive are common.
        assert!(read("").is_empty());
        assert!(read("---\n---\n# nothing\n---\n").is_empty());
        let read = read("%YAML 1.2\n---\na: 1\n...\n---\n");
        assert_eq!(read.len(), 1, "{read:?}");
        assert!(read[0].is_ok(), "{read:?}");
    }

    #[test]
    fn json_is_read_with_places() {
        // Users paste JSON too, and want the line of a mistake in it.
        let read = read("{\n  \"a\": {\"b\": true,\n  \"c\": null, \"d\": 1.5}}\n");
        let a = read[0].as_ref().unwrap().field("a").unwrap();
        assert_eq!(a.field("c").unwrap().line, 3);
        assert!(matches!(a.field("b").unwrap().value, Value::Flag(true)));
        assert!(matches!(a.field("c").unwrap().value, Value::Null));
    }
}
