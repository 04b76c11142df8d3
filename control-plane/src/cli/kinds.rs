//! What KIND and NAME on the command line mean. Pure.

use outrigger_proto::admin::ObjectKey;
use outrigger_proxy::{arguments::name, settings::overlay::distance};

use super::outcome::Failure;
use crate::api::canonical_kind;

/// Kinds to suggest to someone who mistyped one; which kinds exist is [`canonical_kind`]'s to know.
const KINDS: &[&str] = &[
    "service",
    "endpointslice",
    "httproute",
    "tcproute",
    "destinationrule",
    "peerauthentication",
    "circuitbreaker",
    "serviceentry",
    "workloadentry",
    "namespace",
    "serviceaccount",
];

/// An object, or all of a kind, that the command line names.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    pub key: ObjectKey,
    /// False: every object of the kind is meant.
    pub named: bool,
}

/// The kind behind what was typed.
///
/// Errors (exit 64): no such kind, with the nearest one.
pub fn kind(text: &str) -> Result<&'static str, Failure> {
    canonical_kind(text).ok_or_else(|| {
        let wanted = text.to_ascii_lowercase();
        let near = KINDS
            .iter()
            .filter(|known| canonical_kind(known).is_some())
            .map(|known| {
                let apart = distance(known, &wanted).min(distance(known, wanted.trim_end_matches('s')));
                (if known.starts_with(&wanted) || wanted.starts_with(known) { 1 } else { apart }, known)
            })
            .filter(|(apart, _)| *apart <= 3)
            .min();
        match near {
            Some((_, near)) => Failure::usage(format_args!("unknown kind \"{text}\" (did you mean \"{near}\"?)")),
            None => {
                let known: Vec<&str> = KINDS.iter().copied().filter(|known| canonical_kind(known).is_some()).collect();
                Failure::usage(format_args!("unknown kind \"{text}\" (known: {})", known.join(", ")))
            }
        }
    })
}

/// What `KIND NAME...`, `KIND` or `KIND/NAME...` mean.
///
/// Errors (exit 64): unknown kinds, impossible names, both forms at once.
pub fn targets(words: &[String], namespace: &str) -> Result<Vec<Target>, Failure> {
    let key = |kind: &str, name: &str| ObjectKey {
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let checked = |text: &str| name(text).map_err(Failure::usage);
    if words.iter().any(|word| word.contains('/')) {
        return words
            .iter()
            .map(|word| {
                let (of_kind, name) = word.split_once('/').ok_or_else(|| {
                    Failure::usage(format_args!(
                        "\"{word}\" stands beside KIND/NAME (hint: write every object as KIND/NAME)"
                    ))
                })?;
                Ok(Target { key: key(kind(of_kind)?, &checked(name)?), named: true })
            })
            .collect();
    }
    let Some((first, names)) = words.split_first() else { return Ok(Vec::new()) };
    let kind = kind(first)?;
    if names.is_empty() {
        return Ok(vec![Target { key: key(kind, ""), named: false }]);
    }
    names.iter().map(|name| Ok(Target { key: key(kind, &checked(name)?), named: true })).collect()
}
