//! Checks route tables: matches, edits, splits, redirects, retries.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method, StatusCode, uri};
use outrigger_proto::mesh::{self, arm::To, http_rule, path_match, path_rewrite, string_match};

use super::{Checked, Fault, In, balancing::cookie, check_name, duration, each, named, policy::breaker, port, refuse};
use crate::{
    balance::{key::KeySource, stable_hash::hash},
    resilience::retry::{Conditions, RetryPolicy},
    route::{
        Action, Arm, HeaderEdit, HttpRule, Leg, PathMatch, PathRewrite, Redirect, RequestMatch, Rewrite, RouteTable,
        Split, Sticky, StringMatch, Target, TcpRule,
    },
};

pub(super) fn table(table: &mesh::RouteTable) -> Checked<RouteTable<Target>> {
    let http = each("http", &table.http, http_rule)?;
    let tcp = each("tcp", &table.tcp, |rule| {
        let Some(shares) = &rule.split else { return refuse("is missing").in_field("split") };
        Ok(TcpRule { name: named(&rule.name, "name")?, split: split(shares).in_field("split")? })
    })?;
    Ok(RouteTable::new(http, tcp))
}

fn http_rule(rule: &mesh::HttpRule) -> Checked<HttpRule<Target>> {
    Ok(HttpRule {
        name: named(&rule.name, "name")?,
        matches: each("matches", &rule.matches, request_match)?,
        request_edit: edit(rule.request_headers.as_ref()).in_field("request_headers")?,
        response_edit: edit(rule.response_headers.as_ref()).in_field("response_headers")?,
        rewrite: match &rule.rewrite {
            Some(value) => Some(rewrite(value).in_field("rewrite")?),
            None => None,
        },
        action: match &rule.action {
            Some(http_rule::Action::Split(value)) => Action::Split(split(value).in_field("split")?),
            Some(http_rule::Action::Redirect(value)) => Action::Redirect(redirect(value).in_field("redirect")?),
            None => return refuse("says neither split nor redirect, or something this version does not know"),
        },
        timeout: duration(rule.timeout.as_ref()).in_field("timeout")?,
        try_timeout: duration(rule.try_timeout.as_ref()).in_field("try_timeout")?,
        retry: match &rule.retry {
            Some(value) => Arc::new(retry(value).in_field("retry")?),
            None => Arc::default(),
        },
        breaker: match &rule.breaker {
            Some(value) => Some(Arc::new(breaker(value).in_field("breaker")?)),
            None => None,
        },
    })
}

fn request_match(wanted: &mesh::RequestMatch) -> Checked<RequestMatch> {
    Ok(RequestMatch {
        path: match &wanted.path {
            Some(value) => Some(path_match(value).in_field("path")?),
            None => None,
        },
        method: match wanted.method.as_str() {
            "" => None,
            word => match Method::from_bytes(word.as_bytes()) {
                Ok(method) => Some(method),
                Err(_) => return refuse(format!("\"{word}\" is no method")).in_field("method"),
            },
        },
        headers: each("headers", &wanted.headers, |header| {
            Ok((header_name(&header.name).in_field("name")?, value_match(header.value.as_ref()).in_field("value")?))
        })?,
        query: each("query", &wanted.query, |parameter| {
            check_name(&parameter.name).in_field("name")?;
            Ok((parameter.name.as_str().into(), value_match(parameter.value.as_ref()).in_field("value")?))
        })?,
    })
}

fn path_match(path: &mesh::PathMatch) -> Checked<PathMatch> {
    let absolute = |value: &str, field: &str| {
        if value.starts_with('/') { Ok(()) } else { refuse("does not start with \"/\"") }.in_field(field)
    };
    Ok(match &path.kind {
        Some(path_match::Kind::Exact(value)) => {
            absolute(value, "exact")?;
            PathMatch::Exact(value.as_str().into())
        }
        Some(path_match::Kind::SegmentPrefix(value)) => {
            absolute(value, "segment_prefix")?;
            PathMatch::segment_prefix(value)
        }
        Some(path_match::Kind::Regex(value)) => {
            PathMatch::regex(value).map_err(|error| Fault::new(error.to_string()).under("regex"))?
        }
        None => return refuse("says nothing, or something this version does not know"),
    })
}

fn value_match(value: Option<&mesh::StringMatch>) -> Checked<StringMatch> {
    Ok(match value.and_then(|value| value.kind.as_ref()) {
        Some(string_match::Kind::Exact(value)) => StringMatch::Exact(value.as_str().into()),
        Some(string_match::Kind::Prefix(value)) => StringMatch::Prefix(value.as_str().into()),
        Some(string_match::Kind::Suffix(value)) => StringMatch::Suffix(value.as_str().into()),
        Some(string_match::Kind::Regex(value)) => {
            StringMatch::regex(value).map_err(|error| Fault::new(error.to_string()).under("regex"))?
        }
        Some(string_match::Kind::Present(true)) => StringMatch::Present,
        Some(string_match::Kind::Present(false)) => {
            return refuse("is false, which has no meaning").in_field("present");
        }
        None => return refuse("says nothing, or something this version does not know"),
    })
}

fn edit(edit: Option<&mesh::HeaderEdit>) -> Checked<HeaderEdit> {
    let Some(edit) = edit else { return Ok(HeaderEdit::default()) };
    let pair = |header: &mesh::HeaderValue| {
        let name = editable(&header.name).in_field("name")?;
        match HeaderValue::from_str(&header.value) {
            Ok(value) => Ok((name, value)),
            Err(_) => refuse("is no valid header value").in_field("value"),
        }
    };
    Ok(HeaderEdit {
        set: each("set", &edit.set, pair)?,
        add: each("add", &edit.add, pair)?,
        remove: each("remove", &edit.remove, |name| editable(name))?,
    })
}

fn header_name(name: &str) -> Checked<HeaderName> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| Fault::new(format!("\"{name}\" is no header name")))
}

/// A header that a rule may touch: not those that frame the message or belong to one connection.
fn editable(name: &str) -> Checked<HeaderName> {
    // RFC 9110 §7.6.1 and RFC 9112 §6: these are ours to write; a rule that could would be a smuggling tool.
    const FRAMING: [&str; 9] = [
        "connection",
        "content-length",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    let name = header_name(name)?;
    if FRAMING.contains(&name.as_str()) {
        return refuse(format!("\"{name}\" frames the message and cannot be edited"));
    }
    Ok(name)
}

fn split(split: &mesh::Split) -> Checked<Split<Target>> {
    let arms = each("arms", &split.arms, |arm| {
        Ok(Arm {
            weight: arm.weight,
            leg: match &arm.to {
                Some(To::Target(target)) => Leg::To(Target {
                    service: named(&target.service, "service").in_field("target")?,
                    port: port(target.port).in_field("port").in_field("target")?,
                    subset: target.subset.as_str().into(),
                }),
                Some(To::Bad(bad)) => Leg::Bad(bad.reason.as_str().into()),
                None => return refuse("leads nowhere, or to something this version does not know"),
            },
            request_edit: edit(arm.request_headers.as_ref()).in_field("request_headers")?,
            response_edit: edit(arm.response_headers.as_ref()).in_field("response_headers")?,
        })
    })?;
    let total: u64 = arms.iter().map(|arm| u64::from(arm.weight)).sum();
    if total > u64::from(u32::MAX) {
        return refuse(format!("weights add up to {total}, more than {}", u32::MAX)).in_field("arms");
    }
    let sticky = match &split.sticky {
        Some(value) => Some(Arc::new(sticky(value).in_field("sticky")?)),
        None => None,
    };
    Ok(Split { sticky, ..Split::new(arms) })
}

fn sticky(sticky: &mesh::Sticky) -> Checked<Sticky> {
    let key = match &sticky.key {
        Some(mesh::sticky::Key::Header(name)) => KeySource::Header(header_name(name).in_field("header")?),
        Some(mesh::sticky::Key::Cookie(value)) => KeySource::Cookie(cookie(value).in_field("cookie")?),
        None => return refuse("says no key, or something this version does not know"),
    };
    Ok(Sticky { key, seed: hash(sticky.seed.as_bytes(), 0) })
}

fn redirect(redirect: &mesh::Redirect) -> Checked<Redirect> {
    Ok(Redirect {
        status: match redirect.status {
            0 | 302 => StatusCode::FOUND,
            301 => StatusCode::MOVED_PERMANENTLY,
            303 => StatusCode::SEE_OTHER,
            307 => StatusCode::TEMPORARY_REDIRECT,
            308 => StatusCode::PERMANENT_REDIRECT,
            other => return refuse(format!("{other} is none of 301, 302, 303, 307, 308")).in_field("status"),
        },
        scheme: match redirect.scheme.as_str() {
            "" => None,
            word @ ("http" | "https") => Some(word.into()),
            other => return refuse(format!("\"{other}\" is neither http nor https")).in_field("scheme"),
        },
        host: match redirect.host.as_str() {
            "" => None,
            host => {
                authority(host).in_field("host")?;
                Some(host.into())
            }
        },
        port: match redirect.port {
            0 => None,
            number => Some(port(number).in_field("port")?),
        },
        path: path_rewrite(redirect.path.as_ref()).in_field("path")?,
    })
}

fn rewrite(rewrite: &mesh::UrlRewrite) -> Checked<Rewrite> {
    Ok(Rewrite {
        host: match rewrite.host.as_str() {
            "" => None,
            host => Some(authority(host).in_field("host")?),
        },
        path: path_rewrite(rewrite.path.as_ref()).in_field("path")?,
    })
}

fn authority(host: &str) -> Checked<HeaderValue> {
    match (uri::Authority::try_from(host), HeaderValue::from_str(host)) {
        (Ok(authority), Ok(value)) if !authority.as_str().contains('@') && !authority.host().is_empty() => Ok(value),
        _ => refuse(format!("\"{host}\" is no host")),
    }
}

fn path_rewrite(path: Option<&mesh::PathRewrite>) -> Checked<Option<PathRewrite>> {
    let Some(path) = path else { return Ok(None) };
    let checked = |value: &str, field: &str| -> Checked<Box<str>> {
        let plain = uri::PathAndQuery::try_from(value).is_ok_and(|parsed| parsed.query().is_none());
        match value.starts_with('/') && plain && !value.contains(['#', '?']) {
            true => Ok(value.into()),
            false => refuse(format!("\"{value}\" is no absolute path without query")).in_field(field),
        }
    };
    Ok(Some(match &path.kind {
        Some(path_rewrite::Kind::Full(value)) => PathRewrite::Full(checked(value, "full")?),
        // Taking a prefix away is a replacement with nothing.
        Some(path_rewrite::Kind::Prefix(value)) if value.is_empty() => PathRewrite::Prefix("".into()),
        Some(path_rewrite::Kind::Prefix(value)) => PathRewrite::Prefix(checked(value, "prefix")?),
        None => return refuse("says nothing, or something this version does not know"),
    }))
}

fn retry(retry: &mesh::Retry) -> Checked<RetryPolicy> {
    // Words may stand with numbers among them, as Istio's `retryOn` allows; both say which statuses count.
    let parsed = Conditions::parse(retry.conditions.iter().map(String::as_str));
    let (conditions, mut codes) = parsed.map_err(|error| Fault::new(error.to_string()).under("conditions"))?;
    codes.extend(each("codes", &retry.codes, |code| {
        let status = u16::try_from(*code).ok().and_then(|code| StatusCode::from_u16(code).ok());
        status.filter(|status| status.as_u16() <= 599).ok_or_else(|| Fault::new(format!("{code} is no status")))
    })?);
    Ok(RetryPolicy {
        attempts: retry.attempts,
        conditions,
        codes,
        backoff: duration(retry.backoff.as_ref()).in_field("backoff")?.unwrap_or(RetryPolicy::default().backoff),
    })
}
