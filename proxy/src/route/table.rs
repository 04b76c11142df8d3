//! Rules in order of precedence: which one decides. Pure.
//!
//! The control plane has already put the rules in order; here the first that matches wins. Asked once per request,
//! after normalisation. A table of thousands of rules is not walked: an index leads from the request's path to the
//! few rules that can match, and the answer is the same as that of the walk. It does not choose a backend (`split`)
//! and changes nothing (`edit`).

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use foldhash::fast::RandomState;
use http::request::Parts;

use super::{Arm, HeaderEdit, Leg, PathMatch, Redirect, RequestMatch, Rewrite, Split};
use crate::resilience::{breaker::BreakerPolicy, retry::RetryPolicy};

/// The rules of one service port; the control plane has already put them in order.
///
/// `http` is read freely but changed only by making a new table: the index belongs to exactly these rules.
#[derive(Clone)]
pub struct RouteTable<L> {
    pub http: Vec<HttpRule<L>>,
    pub tcp: Vec<TcpRule<L>>,
    index: Arc<Index>,
}

/// One rule for requests.
#[derive(Clone, Debug)]
pub struct HttpRule<L> {
    /// "namespace/route/rule".
    pub name: Arc<str>,
    /// Any of them; empty: every request.
    pub matches: Vec<RequestMatch>,
    pub request_edit: HeaderEdit,
    pub response_edit: HeaderEdit,
    pub rewrite: Option<Rewrite>,
    pub action: Action<L>,
    /// Whole request including retries; `None`: unbounded.
    pub timeout: Option<Duration>,
    /// One try; `None`: unbounded.
    pub try_timeout: Option<Duration>,
    pub retry: Arc<RetryPolicy>,
    /// Overrides the backends' own.
    pub breaker: Option<Arc<BreakerPolicy>>,
}

/// What a rule does.
#[derive(Clone, Debug)]
pub enum Action<L> {
    Split(Split<L>),
    Redirect(Redirect),
}

/// One rule for connections.
#[derive(Clone, Debug)]
pub struct TcpRule<L> {
    pub name: Arc<str>,
    pub split: Split<L>,
}

/// What [`RouteTable::map`] tells about the rule whose leg is being joined.
#[derive(Clone, Copy, Debug)]
pub struct RuleInfo<'a> {
    pub name: &'a Arc<str>,
    /// As in [`HttpRule::breaker`].
    pub breaker: Option<&'a Arc<BreakerPolicy>>,
}

impl<L> RouteTable<L> {
    /// A table of rules that are already in order of precedence.
    pub fn new(http: Vec<HttpRule<L>>, tcp: Vec<TcpRule<L>>) -> Self {
        let index = Arc::new(Index::of(&http));
        Self { http, tcp, index }
    }

    /// The first rule that matches, and the path prefix its match matched (for rewrites).
    ///
    /// The prefix is `Some` when the match looked at a prefix, stored without a trailing slash, or did not look at the
    /// path at all (the empty prefix, which Gateway API calls "/"); `None` after an exact path or a regex.
    pub fn choose(&self, request: &Parts) -> Option<(&HttpRule<L>, Option<&str>)> {
        let path = request.uri.path();
        let mut best = None;
        if let Some(places) = self.index.exact.get(path) {
            self.first_match(request, places, &mut best);
        }
        for prefix in segment_prefixes(path).take(self.index.prefix_lengths) {
            if let Some(places) = self.index.prefixes.get(prefix) {
                self.first_match(request, places, &mut best);
            }
        }
        self.first_match(request, &self.index.others, &mut best);

        let best = best?;
        let rule = self.http.get(best.rule)?;
        Some((rule, matched_prefix(rule.matches.get(best.alternative))))
    }

    /// Walks `places`, which are in order, up to the best so far, and improves on it with the first that matches.
    fn first_match(&self, request: &Parts, places: &[Place], best: &mut Option<Place>) {
        for &place in places {
            if best.is_some_and(|best| best <= place) {
                return;
            }
            let Some(rule) = self.http.get(place.rule) else { return };
            // No alternative at this place: the rule has none, so it matches every request.
            if rule.matches.get(place.alternative).is_none_or(|alternative| alternative.matches(request)) {
                *best = Some(place);
                return;
            }
        }
    }

    /// The same table with every target replaced by what it leads to; order and index stay.
    ///
    /// `lead` is told the name and the breaker of the rule (a breaker lives per rule and backend), `lead_tcp` the name.
    /// Legs that are already bad stay bad and are not asked for.
    pub fn map<M>(
        self,
        mut lead: impl FnMut(RuleInfo<'_>, L) -> Leg<M>,
        mut lead_tcp: impl FnMut(&Arc<str>, L) -> Leg<M>,
    ) -> RouteTable<M> {
        let http = self
            .http
            .into_iter()
            .map(|rule| {
                let info = RuleInfo { name: &rule.name, breaker: rule.breaker.as_ref() };
                let action = match rule.action {
                    Action::Split(split) => Action::Split(split.map(|target| lead(info, target))),
                    Action::Redirect(redirect) => Action::Redirect(redirect),
                };
                HttpRule {
                    action,
                    name: rule.name,
                    matches: rule.matches,
                    request_edit: rule.request_edit,
                    response_edit: rule.response_edit,
                    rewrite: rule.rewrite,
                    timeout: rule.timeout,
                    try_timeout: rule.try_timeout,
                    retry: rule.retry,
                    breaker: rule.breaker,
                }
            })
            .collect();
        let tcp = self
            .tcp
            .into_iter()
            .map(|rule| TcpRule { split: rule.split.map(|target| lead_tcp(&rule.name, target)), name: rule.name })
            .collect();
        RouteTable { http, tcp, index: self.index }
    }

    /// Every arm of every rule, requests first; for those who want to know what a table refers to.
    pub fn arms(&self) -> impl Iterator<Item = &Arm<L>> {
        let http = self.http.iter().filter_map(|rule| match &rule.action {
            Action::Split(split) => Some(split),
            Action::Redirect(_) => None,
        });
        http.chain(self.tcp.iter().map(|rule| &rule.split)).flat_map(|split| &split.arms)
    }
}

impl<L: fmt::Debug> fmt::Debug for RouteTable<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteTable").field("http", &self.http).field("tcp", &self.tcp).finish_non_exhaustive()
    }
}

/// The prefix that a match looked at; a rule without matches looks at "/", as one that leaves out the path does.
fn matched_prefix(alternative: Option<&RequestMatch>) -> Option<&str> {
    match alternative.and_then(|alternative| alternative.path.as_ref()) {
        None => Some(""),
        Some(PathMatch::SegmentPrefix(prefix)) => Some(prefix),
        Some(PathMatch::Exact(_) | PathMatch::Regex(_)) => None,
    }
}

/// Where each kind of path match stands, in order of precedence.
#[derive(Debug, Default)]
struct Index {
    exact: HashMap<Box<str>, Vec<Place>, RandomState>,
    prefixes: HashMap<Box<str>, Vec<Place>, RandomState>,
    /// How many prefixes of a path can be worth a look: one more than the slashes of the deepest stored one, so that a
    /// path made of slashes costs no more than any other.
    prefix_lengths: usize,
    /// Matches that a path cannot rule out at once: regexes, and those that do not look at the path.
    others: Vec<Place>,
}

/// One match of one rule; the order of places is the order of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    rule: usize,
    alternative: usize,
}

impl Index {
    fn of<L>(rules: &[HttpRule<L>]) -> Self {
        let mut index = Self::default();
        for (rule, HttpRule { matches, .. }) in rules.iter().enumerate() {
            if matches.is_empty() {
                index.others.push(Place { rule, alternative: 0 });
            }
            for (alternative, request_match) in matches.iter().enumerate() {
                let place = Place { rule, alternative };
                match &request_match.path {
                    Some(PathMatch::Exact(path)) => index.exact.entry(path.clone()).or_default().push(place),
                    Some(PathMatch::SegmentPrefix(prefix)) => {
                        let slashes = prefix.bytes().filter(|&byte| byte == b'/').count();
                        index.prefix_lengths = index.prefix_lengths.max(slashes + 1);
                        index.prefixes.entry(prefix.clone()).or_default().push(place);
                    }
                    Some(PathMatch::Regex(_)) | None => index.others.push(place),
                }
            }
        }
        index
    }
}

/// Every way to cut a path at the end of a segment, shortest first: "", "/a", "/a/b" of "/a/b".
fn segment_prefixes(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').filter_map(|(at, _)| path.get(..at)).chain([path])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::{Method, Request};
    use proptest::prelude::*;

    use super::*;
    use crate::route::StringMatch;

    fn rule(name: &str, matches: Vec<RequestMatch>, arms: Vec<Arm<u32>>) -> HttpRule<u32> {
        HttpRule {
            name: name.into(),
            matches,
            request_edit: HeaderEdit::default(),
            response_edit: HeaderEdit::default(),
            rewrite: None,
            action: Action::Split(Split::new(arms)),
            timeout: None,
            try_timeout: None,
            retry: Arc::new(RetryPolicy::default()),
            breaker: None,
        }
    }

    fn arm(target: u32) -> Arm<u32> {
        Arm {
            weight: 1,
            leg: Leg::To(target),
            request_edit: HeaderEdit::default(),
            response_edit: HeaderEdit::default(),
        }
    }

    fn on_path(path: PathMatch) -> RequestMatch {
        RequestMatch { path: Some(path), ..RequestMatch::default() }
    }

    fn request(method: &Method, path: &str) -> Parts {
        Request::builder().method(method).uri(path).body(()).unwrap().into_parts().0
    }

    /// The walk that the index must agree with.
    fn walk<'t>(table: &'t RouteTable<u32>, request: &Parts) -> Option<(&'t str, Option<&'t str>)> {
        for rule in &table.http {
            if rule.matches.is_empty() {
                return Some((&rule.name, Some("")));
            }
            if let Some(found) = rule.matches.iter().find(|request_match| request_match.matches(request)) {
                return Some((&rule.name, matched_prefix(Some(found))));
            }
        }
        None
    }

    fn choice<'t>(table: &'t RouteTable<u32>, request: &Parts) -> Option<(&'t str, Option<&'t str>)> {
        table.choose(request).map(|(rule, prefix)| (&*rule.name, prefix))
    }

    #[test]
    fn the_first_rule_wins_however_it_is_indexed() {
        // The order is the control plane's; an index that preferred exact paths would overrule it.
        let table = RouteTable::new(
            vec![
                rule("post", vec![RequestMatch { method: Some(Method::POST), ..RequestMatch::default() }], vec![]),
                rule("prefix", vec![on_path(PathMatch::segment_prefix("/a"))], vec![]),
                rule("exact", vec![on_path(PathMatch::Exact("/a".into()))], vec![]),
                rule("regex", vec![on_path(PathMatch::regex("/b.*").unwrap())], vec![]),
                rule(
                    "two",
                    vec![on_path(PathMatch::Exact("/c".into())), on_path(PathMatch::segment_prefix("/c"))],
                    vec![],
                ),
                rule("rest", vec![], vec![]),
                rule("never", vec![on_path(PathMatch::Exact("/d".into()))], vec![]),
            ],
            vec![],
        );
        for (method, path, expected) in [
            (Method::POST, "/a", ("post", Some(""))),
            (Method::GET, "/a", ("prefix", Some("/a"))),
            (Method::GET, "/a/b?q", ("prefix", Some("/a"))),
            (Method::GET, "/bx", ("regex", None)),
            (Method::GET, "/c", ("two", None)),
            (Method::GET, "/c/x", ("two", Some("/c"))),
            (Method::GET, "/d", ("rest", Some(""))),
        ] {
            assert_eq!(choice(&table, &request(&method, path)), Some(expected), "{method} {path}");
        }
        let empty = RouteTable::<u32>::new(vec![], vec![]);
        assert_eq!(choice(&empty, &request(&Method::GET, "/")), None);
    }

    #[test]
    fn a_path_of_slashes_costs_no_more_lookups_than_the_deepest_rule() {
        // A request of 8 KiB of slashes must not make thousands of lookups.
        let rules =
            ["/", "/a", "/a/b/c"].map(|prefix| rule(prefix, vec![on_path(PathMatch::segment_prefix(prefix))], vec![]));
        let table = RouteTable::new(rules.into(), vec![]);
        assert_eq!(table.index.prefix_lengths, 4);
        let slashes = "/".repeat(8192);
        assert_eq!(choice(&table, &request(&Method::GET, &slashes)), Some(("/", Some(""))));
    }

    #[test]
    fn map_keeps_order_index_and_bad_legs_and_names_the_rule() {
        // A table that lost a rule or mixed up names when joined to live backends would route by accident.
        let mut with_breaker = rule("b", vec![on_path(PathMatch::Exact("/b".into()))], vec![arm(2), arm(3)]);
        with_breaker.breaker = Some(Arc::new(BreakerPolicy::named("ns/breaker")));
        let tcp = TcpRule { name: "tcp".into(), split: Split::new(vec![arm(9)]) };
        let mut redirect = rule("r", vec![on_path(PathMatch::Exact("/r".into()))], vec![]);
        redirect.action = Action::Redirect(Redirect {
            status: http::StatusCode::FOUND,
            scheme: None,
            host: None,
            port: None,
            path: None,
        });
        let table = RouteTable::new(vec![redirect, with_breaker, rule("rest", vec![], vec![arm(1)])], vec![tcp]);
        assert_eq!(table.arms().count(), 4);
        let mut asked = Vec::new();
        let mapped = table.map(
            |info, target| {
                asked.push((info.name.to_string(), info.breaker.is_some(), target));
                if target == 3 { Leg::Bad("gone".into()) } else { Leg::To(target.to_string()) }
            },
            |name, target| Leg::To(format!("{name}{target}")),
        );
        assert_eq!(asked, [("b".to_owned(), true, 2), ("b".to_owned(), true, 3), ("rest".to_owned(), false, 1)]);
        let legs: Vec<_> = mapped
            .arms()
            .map(|arm| match &arm.leg {
                Leg::To(target) => target.clone(),
                Leg::Bad(reason) => format!("bad: {reason}"),
            })
            .collect();
        assert_eq!(legs, ["2", "bad: gone", "1", "tcp9"]);
        let chosen = |path| mapped.choose(&request(&Method::GET, path)).unwrap().0.name.to_string();
        assert_eq!([chosen("/r"), chosen("/b"), chosen("/x")], ["r", "b", "rest"]);
    }

    fn any_match() -> impl Strategy<Value = RequestMatch> {
        let path = prop_oneof![
            "(/[ab]{0,2}){1,3}".prop_map(|path| Some(PathMatch::Exact(path.into()))),
            "(/[ab]{0,2}){0,3}/?".prop_map(|path| Some(PathMatch::segment_prefix(&path))),
            "(/[ab.*]{1,2}){1,2}".prop_map(|path| PathMatch::regex(&path).ok()),
            Just(None),
        ];
        let header = proptest::option::weighted(0.2, Just((http::header::ACCEPT, StringMatch::Present)));
        (path, any::<bool>(), header).prop_map(|(path, get, header)| RequestMatch {
            path,
            method: get.then_some(Method::GET),
            headers: header.into_iter().collect(),
            query: Vec::new(),
        })
    }

    proptest! {
        #[test]
        fn the_index_agrees_with_the_walk(
            rules in proptest::collection::vec(proptest::collection::vec(any_match(), 0..4), 0..30),
            requests in proptest::collection::vec((any::<bool>(), any::<bool>(), "(/[ab]{0,2}){1,4}"), 1..20),
        ) {
            // The index is only for speed; any difference is traffic at the wrong backend.
            let rules: Vec<_> =
                rules.into_iter().enumerate().map(|(index, matches)| rule(&index.to_string(), matches, vec![])).collect();
            for rules in [rules.clone(), rules.into_iter().filter(|rule| !rule.matches.is_empty()).collect()] {
                let table = RouteTable::new(rules, vec![]);
                for (get, accept, path) in &requests {
                    let mut request = request(if *get { &Method::GET } else { &Method::POST }, path);
                    if *accept {
                        request.headers.insert(http::header::ACCEPT, http::HeaderValue::from_static("x"));
                    }
                    prop_assert_eq!(choice(&table, &request), walk(&table, &request), "{}", path);
                }
            }
        }
    }
}
