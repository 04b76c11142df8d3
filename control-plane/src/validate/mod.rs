//! What is wrong with what users wrote, what it would do at run time, and the smallest fix.
//!
//! Problems are found while objects are read (`api`) and while they are put together (`model`). The command line,
//! the admin API and status conditions all print the same ones. Every code stands in one table, `codes`.

pub mod codes;

use std::fmt;

use serde::Serialize;

use crate::api::{Location, ObjectKey};

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; everything works as written.
    Info,
    /// Accepted, but part of it has no effect or a surprising one.
    Warning,
    /// Refused.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One thing that is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Stable code, `ORG` and four digits; the table is [`codes::CODES`].
    pub code: &'static str,
    pub severity: Severity,
    /// The object it is about; `None` where none could be read.
    pub object: Option<ObjectKey>,
    /// Where it was written; `None` for objects that did not come from a text.
    #[serde(flatten)]
    pub location: Option<Location>,
    /// Path of the field, for example `spec.rules[0].matches[1].path.value`; empty for the object as a whole.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What it does at run time; empty where that is obvious.
    pub effect: String,
    /// The smallest change that helps; empty where none is known.
    pub fix: String,
    /// The line of the source, without surrounding blanks; empty where the text is not at hand.
    pub snippet: String,
}

impl Problem {
    /// A problem with the severity that the table gives its code, and nothing but a message yet.
    pub fn new(code: &'static codes::Code, message: impl Into<String>) -> Self {
        Self {
            code: code.code,
            severity: code.severity,
            object: None,
            location: None,
            path: String::new(),
            message: message.into(),
            effect: String::new(),
            fix: String::new(),
            snippet: String::new(),
        }
    }

    /// Says which object it is about.
    #[must_use]
    pub fn about(mut self, object: &crate::api::Object) -> Self {
        self.object = Some(object.key());
        self.location = Some(object.location.clone());
        self
    }

    /// Says which field it is about.
    #[must_use]
    pub fn at(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// Says what it does at run time.
    #[must_use]
    pub fn effect(mut self, effect: impl Into<String>) -> Self {
        self.effect = effect.into();
        self
    }

    /// Says what to do about it.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = fix.into();
        self
    }

    /// Whether the object is refused because of it.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}[{}]", self.severity, self.code)?;
        if let Some(location) = &self.location
            && !location.file.is_empty()
        {
            write!(formatter, " {location}")?;
        }
        if let Some(object) = &self.object {
            write!(formatter, " {object}")?;
        }
        if !self.path.is_empty() {
            write!(formatter, ": {}", self.path)?;
        }
        write!(formatter, "\n  {}", self.message)?;
        if !self.effect.is_empty() {
            write!(formatter, "\n  Effect: {}", self.effect)?;
        }
        if !self.fix.is_empty() {
            write!(formatter, "\n  Fix: {}", self.fix)?;
        }
        if !self.snippet.is_empty() {
            write!(formatter, "\n  > {}", self.snippet)?;
        }
        Ok(())
    }
}

/// All codes with their meaning, as a table in Markdown.
pub fn reference() -> String {
    let mut text = String::from("| code | severity | meaning |\n|---|---|---|\n");
    for code in codes::CODES {
        text.push_str(&format!("| {} | {} | {} |\n", code.code, code.severity, code.meaning));
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    #[test]
    fn problems_are_flat_for_programs() {
        // Editors and pipelines read file, line and column from the top level.
        let (_, problems) = crate::api::parse("a.yaml", "apiVersion: v1\nkind: Servce\n", "default");
        let json = serde_json::to_value(&problems[0]).unwrap();
        for (name, value) in [
            ("code", "ORG0205"),
            ("severity", "error"),
            ("file", "a.yaml"),
            ("path", "kind"),
            ("fix", "did you mean Service?"),
        ] {
            assert_eq!(json[name], value, "{json}");
        }
        assert_eq!((json["line"].as_u64(), json["column"].as_u64()), (Some(2), Some(7)));
    }
}
