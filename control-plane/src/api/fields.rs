//! Reads the fields of an object and says what is wrong with each.
//!
//! Used by the reader of every kind: a field that was never asked for is unknown and reported with the nearest name that was.
//! So a reader that forgets a field cannot ignore it silently. Problems collect in one `Report` per object.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    Location, ObjectKey, Problem,
    node::{Node, Value},
    values,
};
use crate::validate::{
    Severity,
    codes::{self, Code},
};

/// Longest piece of a source line that a problem quotes, in characters.
const SNIPPET_LIMIT: usize = 120;

/// Collects the problems of one object.
pub(crate) struct Report<'a> {
    pub(crate) file: Arc<str>,
    /// The text that lines refer to; `None` for stored objects.
    pub(crate) lines: Option<&'a [&'a str]>,
    /// Where the object stands, for nodes without a place of their own.
    pub(crate) fallback: Location,
    pub(crate) object: Option<ObjectKey>,
    problems: RefCell<Vec<Problem>>,
    /// What the readers asked for, for the reference of fields; `None`: nobody wants to know.
    asked: Option<RefCell<BTreeMap<String, BTreeSet<FieldUse>>>>,
}

/// What a reader does with a field it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FieldUse {
    /// Understood and carried out.
    Read,
    /// Changes nothing in the mesh, so nothing is said.
    WithoutEffect,
    /// Reported with a warning, then left out.
    NotSupported,
    /// Reported as an error; the object is refused.
    Refused,
}

impl<'a> Report<'a> {
    pub(crate) fn new(file: Arc<str>, lines: Option<&'a [&'a str]>, fallback: Location) -> Self {
        Self { file, lines, fallback, object: None, problems: RefCell::new(Vec::new()), asked: None }
    }

    /// Remembers from now on what the readers ask for.
    pub(crate) fn remember_asked(&mut self) {
        self.asked = Some(RefCell::default());
    }

    /// What was asked for since [`Report::remember_asked`], by path; numbers and keys of entries are left out of paths.
    pub(crate) fn asked(&self) -> BTreeMap<String, BTreeSet<FieldUse>> {
        self.asked.as_ref().map(|asked| asked.borrow().clone()).unwrap_or_default()
    }

    fn ask(&self, path: &str, usage: FieldUse) {
        let Some(asked) = &self.asked else { return };
        let mut plain = String::with_capacity(path.len());
        let mut inside = false;
        for c in path.chars() {
            match c {
                '[' => inside = true,
                ']' => {
                    inside = false;
                    plain.push_str("[]");
                }
                _ if !inside => plain.push(c),
                _ => {}
            }
        }
        asked.borrow_mut().entry(plain).or_default().insert(usage);
    }

    pub(crate) fn add(&self, line: u32, column: u32, mut problem: Problem) {
        problem.object.clone_from(&self.object);
        let known = line != 0;
        problem.location =
            Some(if known { Location { file: self.file.clone(), line, column } } else { self.fallback.clone() });
        if known && let Some(text) = self.lines.and_then(|lines| lines.get(line as usize - 1)) {
            problem.snippet = text.trim().chars().take(SNIPPET_LIMIT).collect();
        }
        self.problems.borrow_mut().push(problem);
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.problems.borrow().iter().any(Problem::is_error)
    }

    pub(crate) fn finish(self) -> Vec<Problem> {
        self.problems.into_inner()
    }
}

/// Where a part of an object was written, for problems that are only found later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Path of the field.
    pub path: String,
    /// Counted from 1; 0 when unknown.
    pub line: u32,
    /// Counted from 1; 0 when unknown.
    pub column: u32,
}

/// One value with its path.
#[derive(Clone)]
pub(crate) struct Field<'a> {
    pub(crate) node: &'a Node,
    pub(crate) path: String,
    pub(crate) report: &'a Report<'a>,
}

impl<'a> Field<'a> {
    pub(crate) fn place(&self) -> Place {
        Place { path: self.path.clone(), line: self.node.line, column: self.node.column }
    }

    /// Reports a problem with this value.
    pub(crate) fn problem(&self, code: &'static Code, message: impl Into<String>) {
        self.say(Problem::new(code, message));
    }

    /// Reports a problem with this value and what helps.
    pub(crate) fn problem_with_fix(&self, code: &'static Code, message: impl Into<String>, fix: impl Into<String>) {
        self.say(Problem::new(code, message).fix(fix));
    }

    pub(crate) fn say(&self, problem: Problem) {
        self.report.add(self.node.line, self.node.column, problem.at(self.path.clone()));
    }

    fn wrong_type(&self, wanted: &str) {
        let mut problem =
            Problem::new(&codes::WRONG_TYPE, format!("{} where {wanted} is needed", self.node.value.noun()));
        if wanted == "text" {
            match &self.node.value {
                Value::Number(number) => problem = problem.fix(format!("write \"{number}\" with quotes")),
                Value::Flag(flag) => problem = problem.fix(format!("write \"{flag}\" with quotes")),
                _ => {}
            }
        }
        if let (Value::Text(text), "a number") = (&self.node.value, wanted)
            && text.parse::<u64>().is_ok()
        {
            problem = problem.fix(format!("write {text} without quotes"));
        }
        self.say(problem);
    }

    pub(crate) fn text(&self) -> Option<String> {
        match &self.node.value {
            Value::Text(text) => Some(text.clone()),
            _ => {
                self.wrong_type("text");
                None
            }
        }
    }

    pub(crate) fn flag(&self) -> Option<bool> {
        match &self.node.value {
            Value::Flag(flag) => Some(*flag),
            _ => {
                self.wrong_type("true or false");
                None
            }
        }
    }

    /// A whole number within bounds.
    pub(crate) fn number(&self, low: u64, high: u64) -> Option<u64> {
        let Value::Number(number) = &self.node.value else {
            self.wrong_type("a number");
            return None;
        };
        let whole = number.as_u64().filter(|value| (low..=high).contains(value));
        if whole.is_none() {
            self.problem(&codes::OUT_OF_RANGE, format!("{number} is not a whole number from {low} to {high}"));
        }
        whole
    }

    /// A port, 1 to 65535.
    pub(crate) fn port(&self) -> Option<u16> {
        self.number(1, 65535).and_then(|port| u16::try_from(port).ok())
    }

    /// A share in percent, 0 to 100.
    pub(crate) fn percent(&self) -> Option<f64> {
        self.real(0.0, 100.0, "a percentage")
    }

    /// A number that need not be whole, within bounds; `noun` is what it is called when it is not.
    pub(crate) fn real(&self, low: f64, high: f64, noun: &str) -> Option<f64> {
        let Value::Number(number) = &self.node.value else {
            self.wrong_type("a number");
            return None;
        };
        let real = number.as_f64().filter(|real| (low..=high).contains(real));
        if real.is_none() {
            self.problem(&codes::OUT_OF_RANGE, format!("{number} is not {noun} from {low} to {high}"));
        }
        real
    }

    pub(crate) fn address(&self) -> Option<IpAddr> {
        let text = self.text()?;
        let address = text.parse().ok();
        if address.is_none() {
            self.problem(&codes::BAD_ADDRESS, format!("\"{text}\" is not an IP address"));
        }
        address
    }

    /// A duration as Gateway API or Go writes it; never negative.
    pub(crate) fn duration(&self, style: values::DurationStyle) -> Option<prost_types::Duration> {
        let text = self.text()?;
        match style.parse(&text) {
            Ok(duration) => Some(values::to_proto(duration)),
            Err(reason) => {
                self.problem_with_fix(
                    &codes::BAD_DURATION,
                    format!("\"{text}\" is not a duration: {reason}"),
                    "write for example \"500ms\", \"10s\" or \"1m30s\"",
                );
                None
            }
        }
    }

    /// One of a few words.
    pub(crate) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let fix = match values::nearest(&text, names.iter().copied()) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("use one of {}", names.join(", ")),
            };
            self.problem_with_fix(&codes::UNKNOWN_WORD, format!("\"{text}\" is not known here"), fix);
        }
        found
    }

    pub(crate) fn items(&self) -> Vec<Self> {
        match &self.node.value {
            Value::List(items) => items
                .iter()
                .enumerate()
                .map(|(index, node)| Self { node, path: format!("{}[{index}]", self.path), report: self.report })
                .collect(),
            Value::Null => Vec::new(),
            _ => {
                self.wrong_type("a list");
                Vec::new()
            }
        }
    }

    /// The entries of an object whose keys are free.
    pub(crate) fn entries(&self) -> Vec<(String, Self)> {
        match &self.node.value {
            Value::Map(fields) => fields
                .iter()
                .map(|(key, node)| {
                    let path = format!("{}[{}]", self.path, key.text);
                    (key.text.clone(), Self { node, path, report: self.report })
                })
                .collect(),
            Value::Null => Vec::new(),
            _ => {
                self.wrong_type("an object");
                Vec::new()
            }
        }
    }

    /// Text by text, as labels are.
    pub(crate) fn texts(&self) -> BTreeMap<String, String> {
        self.entries().into_iter().filter_map(|(key, value)| value.text().map(|text| (key, text))).collect()
    }

    /// Labels, with their values checked.
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        for (key, value) in self.entries() {
            if !values::is_label_key(&key) {
                value.problem(&codes::BAD_NAME, format!("\"{key}\" is not a valid label name"));
            }
            if let Value::Text(text) = &value.node.value
                && !values::is_label_value(text)
            {
                value.problem(&codes::BAD_NAME, format!("\"{text}\" is not a valid label value"));
            }
        }
        self.texts()
    }

    pub(crate) fn object(&self) -> Option<Fields<'a>> {
        match &self.node.value {
            Value::Map(_) => Some(Fields::new(self.clone())),
            _ => {
                self.wrong_type("an object");
                None
            }
        }
    }
}

/// The fields of one object; remembers which were asked for.
pub(crate) struct Fields<'a> {
    pub(crate) field: Field<'a>,
    known: Vec<&'static str>,
    proto_json: bool,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(field: Field<'a>) -> Self {
        Self { field, known: Vec::new(), proto_json: false }
    }

    /// Also accepts names in snake_case, as Istio's API does.
    #[must_use]
    pub(crate) fn proto_json(mut self) -> Self {
        self.proto_json = true;
        self
    }

    /// The field, unless it is absent or null.
    pub(crate) fn get(&mut self, name: &'static str) -> Option<Field<'a>> {
        self.get_for(name, FieldUse::Read)
    }

    fn get_for(&mut self, name: &'static str, usage: FieldUse) -> Option<Field<'a>> {
        self.known.push(name);
        if self.field.report.asked.is_some() {
            self.field.report.ask(&self.path_of(name), usage);
        }
        let Value::Map(fields) = &self.field.node.value else { return None };
        let found = fields.iter().find(|(key, _)| {
            key.text == name || (self.proto_json && key.text.contains('_') && values::camel(&key.text) == name)
        });
        let (_, node) = found.filter(|(_, node)| !matches!(node.value, Value::Null))?;
        Some(Field { node, path: self.path_of(name), report: self.field.report })
    }

    fn path_of(&self, name: &str) -> String {
        if self.field.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.field.path) }
    }

    /// The field, or a problem when it is missing.
    pub(crate) fn require(&mut self, name: &'static str) -> Option<Field<'a>> {
        let found = self.get(name);
        if found.is_none() {
            let path = self.path_of(name);
            let node = self.field.node;
            self.field.report.add(
                node.line,
                node.column,
                Problem::new(&codes::MISSING, format!("{name} is missing")).at(path),
            );
        }
        found
    }

    pub(crate) fn text(&mut self, name: &'static str) -> Option<String> {
        self.get(name).and_then(|field| field.text())
    }

    pub(crate) fn list(&mut self, name: &'static str) -> Vec<Field<'a>> {
        self.get(name).map(|field| field.items()).unwrap_or_default()
    }

    pub(crate) fn object(&mut self, name: &'static str) -> Option<Self> {
        let proto_json = self.proto_json;
        let mut object = self.get(name)?.object()?;
        object.proto_json = proto_json;
        Some(object)
    }

    pub(crate) fn duration(
        &mut self,
        name: &'static str,
        style: values::DurationStyle,
    ) -> Option<prost_types::Duration> {
        self.get(name).and_then(|field| field.duration(style))
    }

    /// A count; zero when absent.
    pub(crate) fn count(&mut self, name: &'static str) -> u32 {
        let number = self.get(name).and_then(|field| field.number(0, u64::from(u32::MAX)));
        number.and_then(|number| u32::try_from(number).ok()).unwrap_or(0)
    }

    /// Fields that exist and change nothing in the mesh.
    pub(crate) fn without_effect(&mut self, names: &[&'static str]) {
        for name in names {
            self.get_for(name, FieldUse::WithoutEffect);
        }
    }

    /// Fields that exist but do nothing yet: a warning for each that is set.
    pub(crate) fn not_supported(&mut self, names: &[&'static str], effect: &str) {
        self.refuse(&codes::FIELD_NOT_SUPPORTED, names, effect);
    }

    /// Fields that exist but do nothing yet, and whose absence would be dangerous: an error for each that is set.
    pub(crate) fn not_supported_security(&mut self, names: &[&'static str], effect: &str) {
        self.refuse(&codes::SECURITY_FIELD_NOT_SUPPORTED, names, effect);
    }

    fn refuse(&mut self, code: &'static Code, names: &[&'static str], effect: &str) {
        let usage = if code.severity == Severity::Error { FieldUse::Refused } else { FieldUse::NotSupported };
        for name in names {
            if let Some(field) = self.get_for(name, usage) {
                let last = field.path.rsplit('.').next().unwrap_or_default();
                field.say(
                    Problem::new(code, format!("{last} is not supported yet"))
                        .effect(effect)
                        .fix(format!("remove {last}")),
                );
            }
        }
    }

    /// Reports every field that nobody asked for.
    pub(crate) fn finish(self) {
        let Value::Map(fields) = &self.field.node.value else { return };
        for (key, _) in fields {
            let name =
                if self.proto_json && key.text.contains('_') { values::camel(&key.text) } else { key.text.clone() };
            if self.known.contains(&name.as_str()) {
                continue;
            }
            let mut problem = Problem::new(&codes::UNKNOWN_FIELD, format!("there is no field \"{}\" here", key.text))
                .at(self.path_of(&key.text));
            problem = match values::nearest(&key.text, self.known.iter().copied()) {
                Some(near) => problem.fix(format!("did you mean \"{near}\"?")),
                None => problem.fix(format!("remove {}", key.text)),
            };
            self.field.report.add(key.line, key.column, problem);
        }
    }
}
