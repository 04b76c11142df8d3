//! Gateway API's HTTPRoute and TCPRoute, as far as Services are their parents.
//!
//! Also judges what the published schema's rules judge, because standalone no API server does.

use outrigger_proto::mesh::{
    HeaderEdit, HeaderValue, NamedMatch, PathMatch, PathRewrite, Redirect, RequestMatch, Retry, Sticky, StringMatch,
    UrlRewrite, path_match, path_rewrite, string_match,
};
use prost_types::Duration;

use super::{
    Problem, Spec,
    fields::{Field, Fields, Place},
    kinds::Header,
    sticky,
    values::{self, DurationStyle},
};
use crate::validate::codes;

const RULE_LIMIT: usize = 16;
const MATCH_LIMIT: usize = 64;
const MATCH_LIMIT_TOTAL: usize = 128;
const BACKEND_LIMIT: usize = 16;
const PARENT_LIMIT: usize = 32;
const FILTER_LIMIT: usize = 16;
const WEIGHT_LIMIT: u64 = 1_000_000;

/// What a route is attached to.
#[derive(Clone, Debug, PartialEq)]
pub struct ParentRef {
    pub group: String,
    pub kind: String,
    /// The route's own unless given.
    pub namespace: String,
    pub name: String,
    /// `None`: every port.
    pub port: Option<u16>,
    /// Name of the port.
    pub section: Option<String>,
    pub place: Place,
}

/// Where a share of traffic goes.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendRef {
    pub group: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub port: Option<u16>,
    pub weight: u32,
    pub request_headers: Option<HeaderEdit>,
    pub response_headers: Option<HeaderEdit>,
    pub place: Place,
}

/// Gateway API's HTTPRoute.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpRoute {
    pub parents: Vec<ParentRef>,
    /// Where `hostnames` stands, if it does.
    pub hostnames: Option<Place>,
    pub rules: Vec<HttpRule>,
    /// How weighted backends know their users; without its seed.
    pub sticky: Option<Sticky>,
}

/// One rule of an HTTPRoute.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpRule {
    pub name: Option<String>,
    /// Never empty: a rule without matches has the one that matches everything.
    pub matches: Vec<RequestMatch>,
    pub request_headers: Option<HeaderEdit>,
    pub response_headers: Option<HeaderEdit>,
    pub redirect: Option<Redirect>,
    pub rewrite: Option<UrlRewrite>,
    pub backends: Vec<BackendRef>,
    pub timeout: Option<Duration>,
    pub try_timeout: Option<Duration>,
    pub retry: Option<Retry>,
    pub place: Place,
}

/// Gateway API's TCPRoute.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpRoute {
    pub parents: Vec<ParentRef>,
    pub rules: Vec<TcpRule>,
}

/// One rule of a TCPRoute.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpRule {
    pub name: Option<String>,
    pub backends: Vec<BackendRef>,
    pub place: Place,
}

fn limited<'a>(fields: &mut Fields<'a>, name: &'static str, limit: usize) -> Vec<Field<'a>> {
    let Some(field) = fields.get(name) else { return Vec::new() };
    let items = field.items();
    if items.len() > limit {
        field.problem_with_fix(
            &codes::TOO_MANY,
            format!("{} entries; at most {limit} are allowed", items.len()),
            "split it into several objects",
        );
    }
    items
}

fn parents(spec: &mut Fields<'_>, header: &Header<'_>) -> Vec<ParentRef> {
    let fields = limited(spec, "parentRefs", PARENT_LIMIT);
    if fields.is_empty() {
        spec.field.say(Problem::new(&codes::MISSING, "parentRefs is missing").at("spec.parentRefs").fix(
            r#"attach the route, for example parentRefs: [{group: "", kind: Service, name: reviews, port: 9080}]"#,
        ));
    }
    fields.iter().filter_map(|field| parent(field, header)).collect()
}

fn parent(field: &Field<'_>, header: &Header<'_>) -> Option<ParentRef> {
    let mut fields = field.object()?;
    let group = fields.text("group");
    let kind = fields.text("kind").unwrap_or_else(|| "Gateway".to_owned());
    let namespace = fields.text("namespace").unwrap_or_else(|| header.namespace.to_owned());
    let name = fields.require("name").and_then(|field| field.text());
    let port = fields.get("port").and_then(|field| field.port());
    let section = fields.text("sectionName");
    fields.finish();
    // The API server fills in this group when none is written, so both forms are tolerated for a Service.
    if kind == "Service" && group.as_deref().is_none_or(|group| group == "gateway.networking.k8s.io") {
        field.say(
            Problem::new(&codes::PARENT_GROUP, "a parentRef of kind Service needs the empty group")
                .effect("it is read as the core Service here; other meshes leave the route unattached")
                .fix("add group: \"\""),
        );
    }
    let group = match group.as_deref() {
        _ if kind != "Service" => group.unwrap_or_else(|| "gateway.networking.k8s.io".to_owned()),
        None | Some("core" | "gateway.networking.k8s.io") => String::new(),
        Some(group) => group.to_owned(),
    };
    Some(ParentRef { group, kind, namespace, name: name?, port, section, place: field.place() })
}

fn rule_name(fields: &mut Fields<'_>, seen: &mut Vec<String>) -> Option<String> {
    let field = fields.get("name")?;
    let name = field.text()?;
    if !values::is_dns_name(&name) {
        field.problem(&codes::BAD_NAME, format!("\"{name}\" is not a valid rule name"));
    }
    if seen.contains(&name) {
        field.problem(&codes::DUPLICATE, format!("rule name \"{name}\" is used twice"));
    }
    seen.push(name.clone());
    Some(name)
}

pub(super) fn http_route(root: &mut Fields<'_>, header: &Header<'_>) -> Option<Spec> {
    let spec_field = root.require("spec")?;
    let mut spec = spec_field.object()?;
    let parents = parents(&mut spec, header);
    let hostnames = spec.get("hostnames").filter(|field| !field.items().is_empty()).map(|field| field.place());
    spec.not_supported(&["useDefaultGateways"], "it has no effect");
    let mut names = Vec::new();
    let mut rules = Vec::new();
    let rule_fields = limited(&mut spec, "rules", RULE_LIMIT);
    if rule_fields.is_empty() {
        // The schema's default: one rule that matches everything and has no backend.
        spec.field
            .say(Problem::new(&codes::MISSING, "rules is missing").at("spec.rules").fix("add a rule with backendRefs"));
    }
    let mut total = 0;
    for field in &rule_fields {
        if let Some(rule) = http_rule(field, header, &mut names) {
            total += rule.matches.len();
            rules.push(rule);
        }
    }
    if total > MATCH_LIMIT_TOTAL {
        spec.field.problem(
            &codes::TOO_MANY,
            format!("{total} matches in all rules; at most {MATCH_LIMIT_TOTAL} are allowed"),
        );
    }
    spec.finish();
    let sticky = sticky::read(header, &spec_field);
    Some(Spec::HttpRoute(HttpRoute { parents, hostnames, rules, sticky }))
}

fn http_rule(field: &Field<'_>, header: &Header<'_>, names: &mut Vec<String>) -> Option<HttpRule> {
    let mut fields = field.object()?;
    let name = rule_name(&mut fields, names);
    let match_fields = limited(&mut fields, "matches", MATCH_LIMIT);
    let mut matches: Vec<RequestMatch> = match_fields.iter().filter_map(request_match).collect();
    if match_fields.is_empty() {
        matches.push(RequestMatch { path: Some(everything()), ..RequestMatch::default() });
    }
    let filters = filters(&mut fields, true);
    let backend_fields = limited(&mut fields, "backendRefs", BACKEND_LIMIT);
    let backends = backend_fields.iter().filter_map(|field| backend(field, header, true)).collect();
    if filters.redirect.is_some() && !backend_fields.is_empty() {
        field.problem_with_fix(
            &codes::EXCLUSIVE,
            "a rule that redirects has no use for backendRefs",
            "remove backendRefs or the RequestRedirect filter",
        );
    }
    if filters.redirect.is_some() && filters.rewrite.is_some() {
        field.problem_with_fix(
            &codes::EXCLUSIVE,
            "RequestRedirect and URLRewrite exclude each other",
            "remove one of the two filters",
        );
    }
    let replaces_prefix = [
        filters.redirect.as_ref().and_then(|redirect| redirect.path.as_ref()),
        filters.rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref()),
    ]
    .into_iter()
    .flatten()
    .any(|path| matches!(path.kind, Some(path_rewrite::Kind::Prefix(_))));
    let by_prefix = |matched: &RequestMatch| {
        matches!(matched.path.as_ref().and_then(|path| path.kind.as_ref()), Some(path_match::Kind::SegmentPrefix(_)))
    };
    if replaces_prefix && !(matches.len() == 1 && matches.iter().all(by_prefix)) {
        field.problem_with_fix(
            &codes::INCONSISTENT,
            "ReplacePrefixMatch needs a rule with exactly one match, of type PathPrefix",
            "split the rule, one match each",
        );
    }
    let (mut timeout, mut try_timeout) = (None, None);
    if let Some(mut timeouts) = fields.object("timeouts") {
        timeout = timeouts.duration("request", DurationStyle::Gateway);
        try_timeout = timeouts.duration("backendRequest", DurationStyle::Gateway);
        if let (Some(request), Some(backend)) = (&timeout, &try_timeout)
            && values::millis(request) != 0
            && values::millis(backend) > values::millis(request)
        {
            timeouts.field.problem_with_fix(
                &codes::INCONSISTENT,
                "backendRequest is longer than request",
                "make backendRequest at most as long as request",
            );
        }
        timeouts.finish();
    }
    let retry = fields.get("retry").and_then(|field| retry(&field));
    if let (Some(retry), Some(request), Some(one)) = (&retry, &timeout, &try_timeout) {
        let (request, one) = (values::millis(request), values::millis(one));
        let all = one.saturating_mul(i64::from(retry.attempts) + 1);
        if request > 0 && one > 0 && all > request {
            field.say(
                Problem::new(
                    &codes::RETRIES_CUT,
                    format!(
                        "{} tries of {one} ms take longer than the request timeout of {request} ms",
                        retry.attempts + 1
                    ),
                )
                .effect(format!("only {} of {} tries can run to their end", request / one, retry.attempts + 1))
                .fix("lengthen timeouts.request or shorten timeouts.backendRequest"),
            );
        }
    }
    fields.not_supported(&["sessionPersistence"], "requests of one session may reach different endpoints");
    fields.finish();
    Some(HttpRule {
        name,
        matches,
        request_headers: filters.request_headers,
        response_headers: filters.response_headers,
        redirect: filters.redirect,
        rewrite: filters.rewrite,
        backends,
        timeout,
        try_timeout,
        retry,
        place: field.place(),
    })
}

fn everything() -> PathMatch {
    PathMatch { kind: Some(path_match::Kind::SegmentPrefix("/".to_owned())) }
}

fn request_match(field: &Field<'_>) -> Option<RequestMatch> {
    let mut fields = field.object()?;
    let path = match fields.object("path") {
        None => everything(),
        Some(path) => path_match(path).unwrap_or_else(everything),
    };
    let method = fields.get("method").and_then(|field| {
        let words =
            ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"].map(|word| (word, word));
        field.word(&words)
    });
    let mut headers: Vec<NamedMatch> = Vec::new();
    for field in limited(&mut fields, "headers", FILTER_LIMIT) {
        let Some(named) = named_match(&field) else { continue };
        if !values::is_header_name(&named.name) {
            field.problem(&codes::BAD_HEADER, format!("\"{}\" is not a valid header name", named.name));
        }
        let named = NamedMatch { name: named.name.to_ascii_lowercase(), ..named };
        // HTTPHeaderMatch: of entries with an equivalent name, only the first is considered.
        if headers.iter().any(|other| other.name == named.name) {
            field.problem(&codes::DUPLICATE, format!("header \"{}\" is matched twice", named.name));
        } else {
            headers.push(named);
        }
    }
    let mut query: Vec<NamedMatch> = Vec::new();
    for field in limited(&mut fields, "queryParams", FILTER_LIMIT) {
        let Some(named) = named_match(&field) else { continue };
        if named.name.is_empty() || named.name.len() > 256 || named.name.chars().any(char::is_control) {
            field.problem(&codes::BAD_NAME, "the name of a query parameter has 1 to 256 printable characters");
        }
        if query.iter().any(|other| other.name == named.name) {
            field.problem(&codes::DUPLICATE, format!("query parameter \"{}\" is matched twice", named.name));
        } else {
            query.push(named);
        }
    }
    fields.finish();
    Some(RequestMatch { path: Some(path), method: method.unwrap_or_default().to_owned(), headers, query })
}

fn path_match(mut fields: Fields<'_>) -> Option<PathMatch> {
    let kind = fields.get("type").map_or(Some("PathPrefix"), |field| {
        field.word(&["Exact", "PathPrefix", "RegularExpression"].map(|word| (word, word)))
    });
    let value_field = fields.get("value");
    let value = value_field.as_ref().map_or_else(|| Some("/".to_owned()), Field::text);
    let place = value_field.unwrap_or_else(|| fields.field.clone());
    fields.finish();
    let (kind, value) = (kind?, value?);
    match kind {
        "RegularExpression" => {
            if let Some(fault) = values::regex_fault(&value) {
                place.problem(&codes::BAD_REGEX, format!("\"{value}\" is not a usable regular expression: {fault}"));
            }
        }
        _ => {
            if let Some(fault) = values::path_fault(&value) {
                place.problem(&codes::BAD_PATH, format!("\"{value}\" is not a path that requests can have: {fault}"));
            }
        }
    }
    Some(PathMatch {
        kind: Some(match kind {
            "Exact" => path_match::Kind::Exact(value),
            "PathPrefix" => path_match::Kind::SegmentPrefix(value),
            _ => path_match::Kind::Regex(value),
        }),
    })
}

fn named_match(field: &Field<'_>) -> Option<NamedMatch> {
    let mut fields = field.object()?;
    let regex = fields.get("type").and_then(|field| field.word(&[("Exact", false), ("RegularExpression", true)]));
    let name = fields.require("name").and_then(|field| field.text());
    let value_field = fields.require("value");
    fields.finish();
    let (name, value_field) = (name?, value_field?);
    let value = value_field.text()?;
    let kind = if regex.unwrap_or(false) {
        if let Some(fault) = values::regex_fault(&value) {
            value_field.problem(&codes::BAD_REGEX, format!("\"{value}\" is not a usable regular expression: {fault}"));
        }
        string_match::Kind::Regex(value)
    } else {
        string_match::Kind::Exact(value)
    };
    Some(NamedMatch { name, value: Some(StringMatch { kind: Some(kind) }) })
}

fn retry(field: &Field<'_>) -> Option<Retry> {
    let mut fields = field.object()?;
    let codes: Vec<u32> = fields
        .list("codes")
        .iter()
        .filter_map(|field| field.number(400, 599))
        .filter_map(|code| u32::try_from(code).ok())
        .collect();
    // GEP-1731 leaves the number to the implementation when it is not given; Istio's is 2.
    let attempts = fields.get("attempts").map_or(Some(2), |field| field.number(0, 100));
    let backoff = fields.duration("backoff", DurationStyle::Gateway);
    fields.finish();
    let attempts = u32::try_from(attempts?).ok()?;
    // "Implementations SHOULD retry on connection errors (disconnect, reset, timeout, TCP failure) if a retry stanza is configured."
    let conditions = ["connect-failure", "refused-stream", "reset-before-request", "reset"].map(str::to_owned).to_vec();
    Some(Retry { attempts, conditions, codes, backoff })
}

/// What the filters of a rule or a backend say.
#[derive(Default)]
struct Filters {
    request_headers: Option<HeaderEdit>,
    response_headers: Option<HeaderEdit>,
    redirect: Option<Redirect>,
    rewrite: Option<UrlRewrite>,
}

const FILTER_EFFECT: &str = "a filter may not be skipped (Gateway API), so the route is refused";

fn filters(owner: &mut Fields<'_>, of_rule: bool) -> Filters {
    let mut filters = Filters::default();
    for field in limited(owner, "filters", FILTER_LIMIT) {
        let Some(mut fields) = field.object() else { continue };
        let words = [
            "RequestHeaderModifier",
            "ResponseHeaderModifier",
            "RequestRedirect",
            "URLRewrite",
            "RequestMirror",
            "CORS",
            "ExternalAuth",
            "ExtensionRef",
        ];
        let Some(kind) = fields.require("type").and_then(|field| field.word(&words.map(|word| (word, word)))) else {
            continue;
        };
        let repeated = match kind {
            "RequestHeaderModifier" => {
                let edit = fields.require("requestHeaderModifier").and_then(|field| header_edit(&field));
                edit.is_some_and(|edit| filters.request_headers.replace(edit).is_some())
            }
            "ResponseHeaderModifier" => {
                let edit = fields.require("responseHeaderModifier").and_then(|field| header_edit(&field));
                edit.is_some_and(|edit| filters.response_headers.replace(edit).is_some())
            }
            "RequestRedirect" if of_rule => {
                let redirect = fields.require("requestRedirect").and_then(|field| redirect(&field));
                redirect.is_some_and(|redirect| filters.redirect.replace(redirect).is_some())
            }
            "URLRewrite" if of_rule => {
                let rewrite = fields.require("urlRewrite").and_then(|field| rewrite(&field));
                rewrite.is_some_and(|rewrite| filters.rewrite.replace(rewrite).is_some())
            }
            _ => {
                let place = if of_rule { "" } else { " of a backendRef" };
                field.say(
                    Problem::new(
                        &codes::SECURITY_FIELD_NOT_SUPPORTED,
                        format!("filter {kind}{place} is not supported yet"),
                    )
                    .effect(FILTER_EFFECT)
                    .fix("remove the filter"),
                );
                continue;
            }
        };
        if repeated {
            field.problem(&codes::DUPLICATE, format!("filter {kind} is listed twice"));
        }
        fields.finish();
    }
    filters
}

fn header_edit(field: &Field<'_>) -> Option<HeaderEdit> {
    let mut fields = field.object()?;
    let mut names: Vec<String> = Vec::new();
    let mut check = |field: &Field<'_>, name: &str| {
        if !values::is_header_name(name) {
            field.problem(&codes::BAD_HEADER, format!("\"{name}\" is not a valid header name"));
        }
        let name = name.to_ascii_lowercase();
        if values::is_framing(&name) {
            field.say(
                Problem::new(&codes::BAD_HEADER, format!("\"{name}\" frames the message and belongs to the proxy"))
                    .fix("remove this entry"),
            );
        }
        if names.contains(&name) {
            field.problem(&codes::DUPLICATE, format!("header \"{name}\" is changed twice"));
        }
        names.push(name);
    };
    let mut entries = |fields: &mut Fields<'_>, name: &'static str| -> Vec<HeaderValue> {
        let mut read = Vec::new();
        for field in limited(fields, name, FILTER_LIMIT) {
            let Some(mut entry) = field.object() else { continue };
            let name = entry.require("name").and_then(|field| field.text());
            let value_field = entry.require("value");
            entry.finish();
            let (Some(name), Some(value_field)) = (name, value_field) else { continue };
            let Some(value) = value_field.text() else { continue };
            check(&field, &name);
            if !values::is_header_value(&value) {
                value_field.problem(&codes::BAD_HEADER, "this is not a valid header value");
            }
            read.push(HeaderValue { name, value });
        }
        read
    };
    let set = entries(&mut fields, "set");
    let add = entries(&mut fields, "add");
    let mut remove = Vec::new();
    for field in limited(&mut fields, "remove", FILTER_LIMIT) {
        if let Some(name) = field.text() {
            check(&field, &name);
            remove.push(name);
        }
    }
    fields.finish();
    Some(HeaderEdit { set, add, remove })
}

fn path_rewrite(owner: &mut Fields<'_>) -> Option<PathRewrite> {
    let mut fields = owner.object("path")?;
    let kind = fields
        .require("type")
        .and_then(|field| field.word(&[("ReplaceFullPath", true), ("ReplacePrefixMatch", false)]));
    let (full, prefix) = (fields.get("replaceFullPath"), fields.get("replacePrefixMatch"));
    let kind_of_rewrite = match kind {
        Some(true) => {
            if let Some(prefix) = prefix {
                prefix.problem(&codes::EXCLUSIVE, "replacePrefixMatch has no use with type ReplaceFullPath");
            }
            fields.require("replaceFullPath").and_then(|field| replacement(&field, false)).map(path_rewrite::Kind::Full)
        }
        Some(false) => {
            if let Some(full) = full {
                full.problem(&codes::EXCLUSIVE, "replaceFullPath has no use with type ReplacePrefixMatch");
            }
            fields
                .require("replacePrefixMatch")
                .and_then(|field| replacement(&field, true))
                .map(path_rewrite::Kind::Prefix)
        }
        None => None,
    };
    fields.finish();
    kind_of_rewrite.map(|kind| PathRewrite { kind: Some(kind) })
}

fn replacement(field: &Field<'_>, may_be_empty: bool) -> Option<String> {
    let text = field.text()?;
    if !(values::is_plain_path(&text) || (may_be_empty && text.is_empty())) {
        field.problem_with_fix(
            &codes::BAD_PATH,
            format!("\"{text}\" is not an absolute path without query"),
            "write a path that starts with \"/\"",
        );
    }
    Some(text)
}

fn host(fields: &mut Fields<'_>) -> String {
    let Some(field) = fields.get("hostname") else { return String::new() };
    let Some(host) = field.text() else { return String::new() };
    if !values::is_dns_name(&host) {
        field.problem(&codes::BAD_HOST, format!("\"{host}\" is not a complete host name without wildcard"));
    }
    host
}

fn redirect(field: &Field<'_>) -> Option<Redirect> {
    let mut fields = field.object()?;
    let scheme = fields.get("scheme").and_then(|field| field.word(&[("http", "http"), ("https", "https")]));
    let host = host(&mut fields);
    let path = path_rewrite(&mut fields);
    let port = fields.get("port").and_then(|field| field.port()).unwrap_or(0);
    let status = fields.get("statusCode").map_or(Some(302), |field| {
        let status = field.number(300, 399)?;
        if !matches!(status, 301 | 302 | 303 | 307 | 308) {
            field.problem_with_fix(
                &codes::OUT_OF_RANGE,
                format!("{status} is not a redirect that is allowed here"),
                "use 301, 302, 303, 307 or 308",
            );
        }
        u32::try_from(status).ok()
    });
    fields.finish();
    Some(Redirect { status: status?, scheme: scheme.unwrap_or_default().to_owned(), host, port: u32::from(port), path })
}

fn rewrite(field: &Field<'_>) -> Option<UrlRewrite> {
    let mut fields = field.object()?;
    let host = host(&mut fields);
    let path = path_rewrite(&mut fields);
    fields.finish();
    Some(UrlRewrite { host, path })
}

fn backend(field: &Field<'_>, header: &Header<'_>, http: bool) -> Option<BackendRef> {
    let mut fields = field.object()?;
    let group = fields.text("group").unwrap_or_default();
    let kind = fields.text("kind").unwrap_or_else(|| "Service".to_owned());
    let namespace = fields.text("namespace").unwrap_or_else(|| header.namespace.to_owned());
    let name = fields.require("name").and_then(|field| field.text());
    let port = fields.get("port").and_then(|field| field.port());
    if kind == "Service" && group.is_empty() {
        fields.require("port");
    }
    let weight = fields.get("weight").map_or(Some(1), |field| field.number(0, WEIGHT_LIMIT));
    let filters = if http { filters(&mut fields, false) } else { Filters::default() };
    fields.finish();
    Some(BackendRef {
        group: if group == "core" { String::new() } else { group },
        kind,
        namespace,
        name: name?,
        port,
        weight: u32::try_from(weight?).ok()?,
        request_headers: filters.request_headers,
        response_headers: filters.response_headers,
        place: field.place(),
    })
}

pub(super) fn tcp_route(root: &mut Fields<'_>, header: &Header<'_>) -> Option<Spec> {
    let mut spec = root.require("spec")?.object()?;
    let parents = parents(&mut spec, header);
    spec.not_supported(&["useDefaultGateways"], "it has no effect");
    let mut names = Vec::new();
    let mut rules = Vec::new();
    let rule_fields = limited(&mut spec, "rules", RULE_LIMIT);
    if rule_fields.is_empty() {
        spec.field
            .say(Problem::new(&codes::MISSING, "rules is missing").at("spec.rules").fix("add a rule with backendRefs"));
    }
    for field in &rule_fields {
        let Some(mut fields) = field.object() else { continue };
        let name = rule_name(&mut fields, &mut names);
        let backend_fields = limited(&mut fields, "backendRefs", BACKEND_LIMIT);
        if backend_fields.is_empty() {
            fields.require("backendRefs");
        }
        let backends = backend_fields.iter().filter_map(|field| backend(field, header, false)).collect();
        fields.finish();
        rules.push(TcpRule { name, backends, place: field.place() });
    }
    spec.finish();
    Some(Spec::TcpRoute(TcpRoute { parents, rules }))
}
