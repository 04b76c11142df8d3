//! Which rule carries a request, and what it makes of it: pure but for the weighted choice.

use std::{sync::Arc, time::Duration};

use http::{
    HeaderValue, Response, StatusCode,
    header::{LOCATION, SET_COOKIE},
    request::Parts,
    uri::{Authority, PathAndQuery},
};

use super::{
    backend::RouteBackend,
    destination::Toward,
    exchange::{Head, Speaks},
};
use crate::{
    balance::key::{Key, KeySource},
    failure::{Failure, Reason},
    host,
    http::{
        Body, grpc, headers,
        interim::Interim,
        seen::{Field, Seen},
        upgrade::Upgrade,
    },
    resilience::{call::Plan, deadline::Deadline, retry::RetryPolicy},
    route::{Action, Arm, HttpRule, Leg, Sticky},
};

/// What a request's rule wants.
pub enum Chosen<'a> {
    /// Answered at once.
    Redirect(Box<Response<Body>>),
    Forward(Forward<'a>),
}

/// A request's way.
#[derive(Debug)]
pub struct Forward<'a> {
    pub route: &'a RouteBackend,
    /// `None` where no rules exist.
    matched: Option<Matched<'a>>,
    /// Set-Cookie field for a client that a sticky split did not know yet.
    cookie: Option<Box<HeaderValue>>,
}

#[derive(Debug)]
struct Matched<'a> {
    rule: &'a HttpRule<RouteBackend>,
    arm: &'a Arm<RouteBackend>,
    prefix: Option<&'a str>,
}

/// Looks the request up in the rules of where it goes.
///
/// # Errors
/// `Loop` for a request that goes in circles; `NoRoute` when rules exist and none matches; `BadBackend` for the share of a reference that
/// does not resolve.
pub fn choose<'a>(toward: &'a Toward, request: &Parts, seen: Seen) -> Result<Chosen<'a>, Failure> {
    if headers::goes_in_circles(&request.headers, seen) {
        return Err(Reason::Loop.into());
    }
    let table = match toward {
        Toward::Service(destination) => destination.routes.as_ref().filter(|table| !table.http.is_empty()),
        Toward::Endpoint(..) | Toward::Outside(_) => None,
    };
    let Some(table) = table else {
        return Ok(Chosen::Forward(Forward { route: toward.own(), matched: None, cookie: None }));
    };
    let (rule, prefix) = table.choose(request).ok_or(Reason::NoRoute)?;
    let split = match &rule.action {
        Action::Split(split) => split,
        Action::Redirect(redirect) => {
            let port = match toward {
                Toward::Service(destination) => destination.port,
                Toward::Endpoint(..) | Toward::Outside(_) => 80,
            };
            let location = redirect.location(request, prefix, port).ok_or(Reason::BadRequest)?;
            let mut response = Response::new(Body::empty());
            *response.status_mut() = redirect.status;
            response.headers_mut().insert(LOCATION, location);
            rule.response_edit.apply(response.headers_mut());
            return Ok(Chosen::Redirect(Box::new(response)));
        }
    };
    let (point, cookie) = match &split.sticky {
        None => (host::random_below(split.total), None),
        Some(sticky) => stay(sticky, request, split.total),
    };
    let arm =
        split.choose(point).ok_or_else(|| Failure::new(Reason::BadBackend).because("no backend has any weight"))?;
    match &arm.leg {
        Leg::To(route) => Ok(Chosen::Forward(Forward { route, matched: Some(Matched { rule, arm, prefix }), cookie })),
        Leg::Bad(reason) => Err(Failure::new(Reason::BadBackend).because(reason.to_string())),
    }
}

/// Where a user belongs on the line of a split, and the cookie by which we know them again.
fn stay(sticky: &Sticky, request: &Parts, total: u64) -> (u64, Option<Box<HeaderValue>>) {
    match (sticky.key_of(request), &sticky.key) {
        (Key::Is(key), _) => (sticky.point(key, total), None),
        (Key::Generate, KeySource::Cookie(cookie)) => {
            let (key, field) = cookie.generate(host::random_u128());
            (sticky.point(key, total), field.map(Box::new))
        }
        _ => (host::random_below(total), None),
    }
}

impl<'a> Forward<'a> {
    /// Everything to the backend, without rules.
    pub const fn straight(route: &'a RouteBackend) -> Self {
        Self { route, matched: None, cookie: None }
    }

    pub fn rule_name(&self) -> Option<&Arc<str>> {
        self.matched.as_ref().map(|matched| &matched.rule.name)
    }

    /// The whole request's limit; `None`: none.
    pub fn timeout(&self) -> Option<Duration> {
        self.matched.as_ref().and_then(|matched| matched.rule.timeout)
    }

    /// How hard to try; `default` where no rule says.
    pub fn plan<'p>(&'p self, deadline: Deadline, default: &'p RetryPolicy) -> Plan<'p> {
        match &self.matched {
            Some(matched) => Plan { retry: &matched.rule.retry, try_timeout: matched.rule.try_timeout, deadline },
            None => Plan { retry: default, try_timeout: None, deadline },
        }
    }

    /// The request as it goes upstream: edited, without what belongs to the connection it came on; `seen` is what it came with,
    /// `interim` where interim responses go.
    ///
    /// # Errors
    /// `BadRequest` when an edit gives something that is no request.
    pub fn head(
        &self,
        mut parts: Parts,
        seen: Seen,
        interim: Option<Interim>,
        authority: Authority,
        leaving: Option<Upgrade>,
    ) -> Result<Head, Failure> {
        headers::strip_hop_by_hop(&mut parts.headers, seen, None);
        headers::pass_on(&mut parts.headers, seen);
        let mut authority = authority;
        let mut uri = parts.uri;
        if let Some(Matched { rule, arm, prefix }) = &self.matched {
            rule.request_edit.apply(&mut parts.headers);
            arm.request_edit.apply(&mut parts.headers);
            if let Some(rewrite) = &rule.rewrite {
                uri = rewrite.apply(&uri, *prefix);
                if let Some(host) = &rewrite.host {
                    authority = Authority::try_from(host.as_bytes())
                        .map_err(|error| Failure::new(Reason::BadRequest).because(error))?;
                }
            }
        }
        parts.headers.remove(http::header::HOST);
        let path = match uri.path_and_query() {
            Some(path) => path.clone(),
            None => PathAndQuery::from_static("/"),
        };
        let speaks = match leaving {
            Some(upgrade) => Speaks::Upgrade(upgrade),
            None if parts.version == http::Version::HTTP_2 => Speaks::Http2,
            None => Speaks::Http1,
        };
        let grpc = seen.has(Field::ContentType) && grpc::is_grpc(&parts.headers);
        Ok(Head { method: parts.method, path, authority, headers: parts.headers, grpc, speaks, interim })
    }

    /// Applies the rule's changes to a response.
    pub fn edit_response<B>(&self, response: &mut Response<B>) {
        if let Some(Matched { rule, arm, .. }) = &self.matched
            && response.status() != StatusCode::SWITCHING_PROTOCOLS
        {
            arm.response_edit.apply(response.headers_mut());
            rule.response_edit.apply(response.headers_mut());
        }
        if let Some(cookie) = &self.cookie {
            response.headers_mut().append(SET_COOKIE, HeaderValue::clone(cookie));
        }
    }
}
