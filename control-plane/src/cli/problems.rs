//! Problems as people read them, wherever they come from: this process or the control plane.
//!
//! What is wrong, what happens at run time, the smallest fix; with file, line and path.

use outrigger_proto::admin::{ObjectKey, Problem};
use serde_json::{Value, json};

use super::output::{GREEN, RED, YELLOW, count, styled};
use crate::validate;

/// A problem found here, in the words of the admin API.
pub fn from_local(problem: &validate::Problem) -> Problem {
    let location = problem.location.as_ref();
    Problem {
        code: problem.code.to_owned(),
        severity: problem.severity.to_string(),
        object: problem.object.as_ref().map(|key| ObjectKey {
            kind: key.kind.clone(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        }),
        file: location.map(|location| location.file.to_string()).unwrap_or_default(),
        line: location.map_or(0, |location| location.line),
        column: location.map_or(0, |location| location.column),
        path: problem.path.clone(),
        message: problem.message.clone(),
        effect: problem.effect.clone(),
        fix: problem.fix.clone(),
        snippet: problem.snippet.clone(),
    }
}

/// One problem, its lines ended.
pub fn render(problem: &Problem) -> String {
    let style = match problem.severity.as_str() {
        "error" => RED,
        "warning" => YELLOW,
        _ => GREEN,
    };
    let mut text = styled(style, &format!("{}[{}]", problem.severity, problem.code));
    if !problem.file.is_empty() {
        let file = if problem.file == "-" { "standard input" } else { &problem.file };
        text.push(' ');
        text.push_str(file);
        if problem.line > 0 {
            text.push_str(&format!(":{}", problem.line));
        }
    }
    if let Some(object) = &problem.object {
        text.push_str(&format!(" {} {}", object.kind, full_name(object)));
    }
    if !problem.path.is_empty() {
        text.push_str(&format!(": {}", problem.path));
    }
    text.push('\n');
    let mut line = |lead: &str, body: &str| {
        for part in body.lines() {
            text.push_str(&format!("  {lead}{part}\n"));
        }
    };
    line("", &problem.message);
    line("Effect: ", &problem.effect);
    line("Fix: ", &problem.fix);
    line("> ", &problem.snippet);
    text
}

/// "namespace/name", or the name alone.
pub fn full_name(object: &ObjectKey) -> String {
    if object.namespace.is_empty() { object.name.clone() } else { format!("{}/{}", object.namespace, object.name) }
}

/// "2 errors, 1 warning"; empty for none.
pub fn summary(problems: &[Problem]) -> String {
    let of = |severity: &str| problems.iter().filter(|problem| problem.severity == severity).count();
    let parts = [("error", "errors"), ("warning", "warnings"), ("info", "infos")];
    let said: Vec<String> = parts
        .iter()
        .map(|(one, many)| (of(one), *one, *many))
        .filter(|(number, ..)| *number > 0)
        .map(|(number, one, many)| count(number, one, many))
        .collect();
    said.join(", ")
}

/// One problem for programs.
pub fn to_json(problem: &Problem) -> Value {
    json!({
        "code": problem.code,
        "severity": problem.severity,
        "object": problem.object.as_ref().map(key_to_json),
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "path": problem.path,
        "message": problem.message,
        "effect": problem.effect,
        "fix": problem.fix,
    })
}

/// An object's key for programs.
pub fn key_to_json(key: &ObjectKey) -> Value {
    json!({ "kind": key.kind, "namespace": key.namespace, "name": key.name })
}
