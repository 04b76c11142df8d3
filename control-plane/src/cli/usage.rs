//! A wrong command line in one sentence, with the nearest right word.
//!
//! clap knows what is wrong; its own text spreads over many lines and starts differently for every kind of mistake.

use clap::{
    Error,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::{
    outcome::{Exit, Failure, Outcome},
    output,
};

/// Shows help and version where they were asked for; else says what is wrong (exit 64).
pub fn outcome(error: &Error) -> Outcome {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            output::print(&error.render().ansi().to_string())?;
            Ok(Exit::Ok)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            output::note(error.render().ansi().to_string().trim_end());
            Err(Failure::silent(Exit::Usage))
        }
        _ => Err(Failure::usage(sentence(error))),
    }
}

fn sentence(error: &Error) -> String {
    let first = |kind: ContextKind| texts(error, kind).into_iter().next();
    let near = [
        ContextKind::SuggestedArg,
        ContextKind::SuggestedSubcommand,
        ContextKind::SuggestedValue,
        ContextKind::SuggestedCommand,
    ]
    .into_iter()
    .find_map(first);
    let hint = near.map(|near| format!(" (did you mean `{near}`?)"));
    let argument = first(ContextKind::InvalidArg);
    let value = first(ContextKind::InvalidValue);
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let word = argument.unwrap_or_default();
            let what = if word.starts_with('-') { "flag" } else { "argument" };
            format!("unknown {what} `{word}`{}", hint.unwrap_or_else(|| see_help(error)))
        }
        ErrorKind::InvalidSubcommand => {
            let word = first(ContextKind::InvalidSubcommand).unwrap_or_default();
            format!("unknown command `{word}`{}", hint.unwrap_or_else(|| see_help(error)))
        }
        ErrorKind::MissingSubcommand => {
            let known = texts(error, ContextKind::ValidSubcommand).join(", ");
            format!("a command is missing (one of {known})")
        }
        ErrorKind::MissingRequiredArgument => {
            format!("missing {}{}", texts(error, ContextKind::InvalidArg).join(" and "), see_help(error))
        }
        ErrorKind::InvalidValue => {
            let known = texts(error, ContextKind::ValidValue);
            let argument = argument.unwrap_or_default();
            match value.filter(|value| !value.is_empty()) {
                None => format!("`{argument}` needs a value{}", choices(&known)),
                Some(value) => {
                    let hint = hint.unwrap_or_default();
                    format!("`{argument}`: `{value}` is not allowed{hint}{}", choices(&known))
                }
            }
        }
        ErrorKind::ValueValidation => {
            let reason = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            format!("`{}`: {reason}", argument.unwrap_or_default())
        }
        ErrorKind::ArgumentConflict => {
            let prior = texts(error, ContextKind::PriorArg).join(" and ");
            let argument = argument.unwrap_or_default();
            if prior.is_empty() || prior == argument {
                format!("`{argument}` may be given only once")
            } else {
                format!("`{argument}` cannot be used together with `{prior}`")
            }
        }
        ErrorKind::NoEquals => format!("`{}` needs `=` before its value", argument.unwrap_or_default()),
        ErrorKind::TooManyValues => {
            format!("`{}` has one value too many: `{}`", argument.unwrap_or_default(), value.unwrap_or_default())
        }
        ErrorKind::TooFewValues | ErrorKind::WrongNumberOfValues => {
            format!("`{}` needs more values{}", argument.unwrap_or_default(), see_help(error))
        }
        ErrorKind::InvalidUtf8 => "the command line is not UTF-8 text".to_owned(),
        _ => {
            let text = error.to_string();
            text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
        }
    }
}

/// "outrigger apply --help" out of "Usage: outrigger apply [OPTIONS] ...".
fn see_help(error: &Error) -> String {
    let usage = texts(error, ContextKind::Usage).join(" ");
    let command: Vec<&str> = usage
        .split_whitespace()
        .skip_while(|word| *word != "outrigger")
        .take_while(|word| !word.starts_with(['[', '<', '-']))
        .collect();
    let command = if command.is_empty() { "outrigger".to_owned() } else { command.join(" ") };
    format!(" (see `{command} --help`)")
}

fn choices(known: &[String]) -> String {
    if known.is_empty() { String::new() } else { format!(" (one of {})", known.join(", ")) }
}

fn texts(error: &Error, kind: ContextKind) -> Vec<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        Some(ContextValue::StyledStr(text)) => vec![text.to_string()],
        Some(ContextValue::StyledStrs(texts)) => texts.iter().map(ToString::to_string).collect(),
        Some(ContextValue::Number(number)) => vec![number.to_string()],
        Some(ContextValue::Bool(_) | ContextValue::None) | None => Vec::new(),
        Some(_) => Vec::new(),
    }
}
