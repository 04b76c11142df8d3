//! Which of two HTTP matches decides when both could: Gateway API's order over all routes of one port. Pure.
//!
//! Exact path, then the longer path (prefix and regular expression compared by the length of their text), then a method, then more
//! headers, then more query parameters; then the older route, its namespace and name, and the place in it.

use std::cmp::Reverse;

use outrigger_proto::mesh::{RequestMatch, path_match::Kind};

/// Sorts before what it beats.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank<'a> {
    not_exact: bool,
    path_length: Reverse<usize>,
    no_method: bool,
    headers: Reverse<usize>,
    query: Reverse<usize>,
    created_unix: i64,
    // "alphabetical order by {namespace}/{name}"; namespaces hold no character below "/", so the pair orders the same.
    route: (&'a str, &'a str),
    rule: usize,
    matched: usize,
}

/// The rank of one match: `rule` and `matched` are its indexes.
pub(super) fn rank<'a>(
    request: &RequestMatch,
    created_unix: i64,
    route: (&'a str, &'a str),
    (rule, matched): (usize, usize),
) -> Rank<'a> {
    let (not_exact, length) = match request.path.as_ref().and_then(|path| path.kind.as_ref()) {
        Some(Kind::Exact(text)) => (false, text.chars().count()),
        // "/abc" and "/abc/" are the same prefix.
        Some(Kind::SegmentPrefix(text)) => (true, text.trim_end_matches('/').chars().count().max(1)),
        Some(Kind::Regex(text)) => (true, text.chars().count()),
        None => (true, 1),
    };
    Rank {
        not_exact,
        path_length: Reverse(length),
        no_method: request.method.is_empty(),
        headers: Reverse(request.headers.len()),
        query: Reverse(request.query.len()),
        created_unix,
        route,
        rule,
        matched,
    }
}

#[cfg(test)]
mod tests {
    use outrigger_proto::mesh::{NamedMatch, PathMatch};

    use super::*;

    fn matched(path: Kind, method: &str, headers: usize, query: usize) -> RequestMatch {
        RequestMatch {
            path: Some(PathMatch { kind: Some(path) }),
            method: method.to_owned(),
            headers: vec![NamedMatch::default(); headers],
            query: vec![NamedMatch::default(); query],
        }
    }

    fn prefix(text: &str) -> Kind {
        Kind::SegmentPrefix(text.to_owned())
    }

    #[test]
    fn the_order_of_gateway_api() {
        // A rule in the wrong place silently takes the requests of another: canaries would go to the wrong version.
        let order = [
            matched(Kind::Exact("/match/exact/one".into()), "", 0, 0),
            matched(Kind::Exact("/match".into()), "", 0, 0),
            matched(prefix("/match/prefix/one/"), "", 0, 0),
            matched(Kind::Regex("/match/[a-z]+".into()), "", 0, 0),
            matched(prefix("/match"), "GET", 0, 0),
            matched(prefix("/match"), "", 2, 0),
            matched(prefix("/match"), "", 1, 2),
            matched(prefix("/match"), "", 1, 0),
            matched(prefix("/match"), "", 0, 1),
            matched(prefix("/match"), "", 0, 0),
            matched(prefix("/"), "POST", 3, 3),
            matched(prefix("/"), "", 0, 0),
        ];
        let ranks: Vec<_> = order.iter().map(|one| rank(one, 0, ("a", "b"), (0, 0))).collect();
        assert!(ranks.is_sorted_by(|left, right| left < right), "{ranks:#?}");
    }

    #[test]
    fn ties_go_to_the_older_route_then_to_the_name_then_to_the_place() {
        // Without a total order the same YAML could route differently on two days.
        let one = matched(prefix("/"), "", 0, 0);
        let ranks = [
            rank(&one, 1, ("z", "z"), (5, 5)),
            rank(&one, 2, ("a", "b"), (0, 0)),
            rank(&one, 2, ("a", "b"), (0, 1)),
            rank(&one, 2, ("a", "b"), (1, 0)),
            rank(&one, 2, ("a", "c"), (0, 0)),
            rank(&one, 2, ("b", "a"), (0, 0)),
        ];
        assert!(ranks.is_sorted_by(|left, right| left < right), "{ranks:#?}");
    }

    #[test]
    fn a_slash_at_the_end_of_a_prefix_does_not_count() {
        // "/a/" is not more specific than "/a": the older route keeps its requests.
        let with = rank(&matched(prefix("/a/"), "", 0, 0), 2, ("a", "b"), (0, 0));
        let without = rank(&matched(prefix("/a"), "", 0, 0), 1, ("a", "b"), (0, 0));
        assert!(without < with);
    }
}
