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
