//! Resources from the control plane, and the rules in them.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use outrigger_proto::kind::Kind;
use outrigger_proxy::{
    config::{
        apply::{Assembler, Held},
        decode::decode,
    },
    host,
    route::{Action, HeaderEdit, HttpRule, PathMatch, RequestMatch, RouteTable, Split, StringMatch, Target},
};

/// Any sequence of updates and removals (kind, what, name, two bytes of length, content): nothing panics, a refused update leaves what was held, and generations
/// only grow.
pub fn xds_apply(mut bytes: &[u8]) {
    let mut held = Held::default();
    let mut assembler = Assembler::new("shop", "a", "mesh.local", 0);
    let mut generation = 0;
    let mut roots = BTreeSet::new();
    let mut updates = 0;
    while let [kind, what, name, high, low, rest @ ..] = bytes {
        let length = (usize::from(*high) << 8 | usize::from(*low)).min(rest.len());
        let (content, after) = rest.split_at(length);
        bytes = after;
        updates += 1;
        if updates > 64 {
            break;
        }
        let kind = Kind::ALL[usize::from(*kind) % Kind::ALL.len()];
        let name: Arc<str> = ["shop/a", "mesh.local", "s", "t", "p", "shop/b"][usize::from(*name) % 6].into();
        if what % 4 == 3 {
            held.remove(kind, &name);
        } else {
            let before = held.get(kind, &name).map(|entry| (Arc::clone(&entry.version), entry.encoded.clone()));
            let version: Arc<str> = format!("{updates}").into();
            let taken = held.accept(kind, &name, &version, Vec::new(), Bytes::copy_from_slice(content));
            let now = held.get(kind, &name).map(|entry| (Arc::clone(&entry.version), entry.encoded.clone()));
            match taken {
                Ok(()) => assert_eq!(now, Some((version, Bytes::copy_from_slice(content)))),
                Err(refused) => {
                    assert_eq!(now, before, "a refused update changed what was held");
                    assert!(!refused.to_string().is_empty());
                    assert!(decode(kind, &name, content).is_err());
                }
            }
        }
        if kind == Kind::Service {
            roots.insert(name);
        }
        let step = super::conversation::in_virtual_time(async { assembler.step(&mut held, &roots, host::now()) });
        if let Some(view) = step.view {
            assert!(view.generation > generation, "{} after {generation}", view.generation);
            generation = view.generation;
        }
    }
}

fn rule(place: usize, line: &[u8]) -> Option<HttpRule<Target>> {
    let text = std::str::from_utf8(line).ok()?;
    let mut wanted = RequestMatch::default();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let (kind, value) = word.split_at_checked(1)?;
        match kind {
            "=" => wanted.path = Some(PathMatch::Exact(value.into())),
            "/" => wanted.path = Some(PathMatch::segment_prefix(word)),
            "~" => wanted.path = Some(PathMatch::regex(value).ok()?),
            "m" => wanted.method = Some(Method::from_bytes(value.as_bytes()).ok()?),
            "h" => {
                let (name, value) = value.split_once(':')?;
                let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
                wanted.headers.push((name, StringMatch::Exact(value.into())));
            }
            "?" => {
                let (name, value) = value.split_once(':')?;
                wanted.query.push((name.into(), StringMatch::Exact(value.into())));
            }
            _ => return None,
        }
    }
    Some(HttpRule {
        name: place.to_string().into(),
        matches: vec![wanted],
        request_edit: HeaderEdit::default(),
        response_edit: HeaderEdit::default(),
        rewrite: None,
        action: Action::Split(Split::new(Vec::new())),
        timeout: None,
        try_timeout: None,
        retry: Arc::default(),
        breaker: None,
    })
}

/// Rules, an empty line, requests (`method target name:value ..`): the index chooses what a walk through all rules would.
pub fn route_match(text: &[u8]) {
    let at = text.windows(2).position(|pair| pair == b"\n\n").unwrap_or(text.len());
    let lines = text[..at].split(|byte| *byte == b'\n').take(16).enumerate();
    let rules: Vec<HttpRule<Target>> = lines.filter_map(|(place, line)| rule(place, line)).collect();
    let table = RouteTable::new(rules.clone(), Vec::new());
    for line in text.get(at + 2..).unwrap_or_default().split(|byte| *byte == b'\n').take(16) {
        let Ok(line) = std::str::from_utf8(line) else { continue };
        let mut words = line.split(' ');
        let Ok(method) = Method::from_bytes(words.next().unwrap_or_default().as_bytes()) else { continue };
        let Ok(uri) = Uri::try_from(words.next().unwrap_or_default()) else { continue };
        let mut request = Request::new(());
        (*request.method_mut(), *request.uri_mut()) = (method, uri);
        for word in words.take(16) {
            let Some((name, value)) = word.split_once(':') else { continue };
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                request.headers_mut().append(name, value);
            }
        }
        let (parts, ()) = request.into_parts();
        let walked = rules.iter().find(|rule| rule.matches.iter().any(|wanted| wanted.matches(&parts)));
        let chosen = table.choose(&parts).map(|(rule, _)| &rule.name);
        assert_eq!(chosen, walked.map(|rule| &rule.name), "{} {}", parts.method, parts.uri);
    }
}
