//! Rules in order of precedence. Pure.

use std::{sync::Arc, time::Duration};

use http::request::Parts;

use super::{HeaderEdit, Redirect, RequestMatch, Rewrite, Split};
use crate::resilience::{breaker::BreakerPolicy, retry::RetryPolicy};

/// The rules of one service port; the control plane has already put them in order.
#[derive(Clone, Debug)]
pub struct RouteTable<L> {
    pub http: Vec<HttpRule<L>>,
    pub tcp: Vec<TcpRule<L>>,
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

impl<L> RouteTable<L> {
    /// The first rule that matches, and the path prefix its match matched (for rewrites).
    pub fn choose(&self, _request: &Parts) -> Option<(&HttpRule<L>, Option<&str>)> {
        None
    }

    /// The same table with every target replaced by what it leads to.
    pub fn map<M>(
        self,
        _lead: impl FnMut(&HttpRule<L>, L) -> super::Leg<M>,
        _lead_tcp: impl FnMut(L) -> super::Leg<M>,
    ) -> RouteTable<M> {
        RouteTable { http: Vec::new(), tcp: Vec::new() }
    }
}
