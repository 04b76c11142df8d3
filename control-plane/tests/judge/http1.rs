//! HTTP/1 conversations, and what is to be said of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::Mutex,
    thread,
    time::Duration,
};

use super::{
    case::{Case, Must, replace},
    lanes::{Lane, Mesh},
    origin::Heard,
};
use crate::strict;

struct Conversation<'a> {
    number: usize,
    lane: &'a Lane,
    case: &'a Case,
    said: Vec<u8>,
    cut: Option<usize>,
    heard: Vec<u8>,
}

/// Conversations at once.
const AT_ONCE: usize = 24;
/// Places where each case is cut in two, besides being sent whole; every offset is tried in memory (`proxy/tests/fuzz_corpus.rs`).
const CUTS: usize = 3;

/// Holds every conversation of every case in every lane, and judges them.
pub fn judge(mesh: &Mesh, cases: &[Case]) {
    let mut conversations = Vec::new();
    for (lane, case) in mesh.lanes.iter().flat_map(|lane| cases.iter().map(move |case| (lane, case))) {
        for cut in 0..=CUTS {
            let number = conversations.len();
            let host = if lane.name.contains("inbound") {
                "a.test"
            } else if lane.name.contains("plaintext") {
                "plain.shop"
            } else {
                "app.shop"
            };
            let said = replace(&case.bytes, b"<H>", format!("Host: {host}\r\n").as_bytes());
            let said = replace(&replace(&said, b"<A>", host.as_bytes()), b"<N>", format!("n{number}n").as_bytes());
            // Another place for each case, over all of its length.
            let at = (said.len() * cut / (CUTS + 1) + number * 7) % said.len().max(1);
            let cut = (cut > 0 && at > 0).then_some(at);
            if case.bytes.len() > 4000 && cut.is_some() {
                continue;
            }
            conversations.push(Conversation { number, lane, case, said, cut, heard: Vec::new() });
        }
    }
    // Short ones and those that wait for a limit of time side by side.
    let count = conversations.len();
    let waiting = Mutex::new(conversations);
    let held = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some(mut conversation) = waiting.lock().unwrap().pop() else { return };
                    conversation.heard = converse(&conversation);
                    held.lock().unwrap().push(conversation);
                }
            });
        }
    });
    let held = held.into_inner().unwrap();
    assert_eq!(held.len(), count);
    let wrong = verdicts(mesh, &held);
    assert!(wrong.is_empty(), "{} of {count} conversations went wrong:\n{}", wrong.len(), wrong.join("\n"));
    eprintln!("{count} conversations of {} cases", cases.len());
}

/// Says everything and hears everything until the proxy closes.
fn converse(conversation: &Conversation<'_>) -> Vec<u8> {
    let mut io = TcpStream::connect(conversation.lane.address).unwrap();
    io.set_nodelay(true).unwrap();
    io.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let (first, second) = conversation.said.split_at(conversation.cut.unwrap_or(conversation.said.len()));
    // The proxy may close before it has heard everything.
    let _ = io.write_all(first);
    if !second.is_empty() {
        // Two packets, not one; when the machine is busy they may be one all the same, and then this is the case sent whole.
        thread::sleep(Duration::from_millis(3));
        let _ = io.write_all(second);
    }
    let mut heard = Vec::new();
    let _ = io.read_to_end(&mut heard);
    heard
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(600)]).escape_debug().to_string()
}

fn verdicts(mesh: &Mesh, held: &[Conversation<'_>]) -> Vec<String> {
    let Heard { requests, wrong: unsafes } = mesh.origin.take();
    let mut wrong: Vec<String> =
        unsafes.iter().map(|(why, bytes)| format!("UNSAFE at the origin, {why}: {}", shown(bytes))).collect();
    // Which request at the origin belongs to which conversation stands in its target.
    let mut stood: BTreeMap<usize, Vec<&(usize, strict::Request)>> = BTreeMap::new();
    for request in &requests {
        match named(&request.1) {
            Some(number) => stood.entry(number).or_default().push(request),
            None => wrong.push(format!("nobody sent what stands at the origin: {:?}", request.1)),
        }
    }
    for conversation in held {
        let stood = stood.remove(&conversation.number).unwrap_or_default();
        if let Err(why) = verdict(conversation, &stood) {
            wrong.push(format!(
                "{} | {}{} | {why}\n    said  {}\n    stood {:?}\n    heard {}",
                conversation.case.name,
                conversation.lane.name,
                conversation.cut.map(|at| format!(", cut at {at}")).unwrap_or_default(),
                shown(&conversation.said),
                stood
                    .iter()
                    .map(|(_, request)| format!("{} {} [{}]", request.method, request.target, request.content.len()))
                    .collect::<Vec<_>>(),
                shown(&conversation.heard),
            ));
        }
    }
    wrong
}

/// The number in `n17n`, in the target or in Host for a target without a path.
fn named(request: &strict::Request) -> Option<usize> {
    let marked = |text: &str| text.split('n').find_map(|part| part.parse().ok());
    let field =
        || strict::values(&request.fields, "x-case").first().map(|value| String::from_utf8_lossy(value).into_owned());
    marked(&request.target).or_else(|| marked(&field()?))
}

fn verdict(conversation: &Conversation<'_>, stood: &[&(usize, strict::Request)]) -> Result<(), String> {
    let (mut answered, mut own) = (Vec::new(), Vec::new());
    let mut heard = conversation.heard.as_slice();
    while !heard.is_empty() {
        let asked = stood.get(answered.len()).map_or("GET", |(_, request)| request.method.as_str());
        match strict::response(heard, asked, true) {
            Ok(Some(answer)) => {
                heard = &heard[answer.length..];
                match strict::values(&answer.fields, "x-number")[..] {
                    [number] => answered
                        .push(String::from_utf8_lossy(number).parse::<usize>().map_err(|error| error.to_string())?),
                    _ if answer.status >= 200 => own.push(answer.status),
                    _ => {}
                }
            }
            Ok(None) => return Err("an answer broke off".to_owned()),
            Err(why) => return Err(format!("the client heard something that is not HTTP: {why}")),
        }
    }
    let numbers: Vec<usize> = stood.iter().map(|(number, _)| *number).collect();
    if answered != numbers {
        return Err(format!("answers {answered:?} to requests {numbers:?}"));
    }
    if numbers.iter().collect::<BTreeSet<_>>().len() != numbers.len() {
        return Err("a request reached the origin twice".to_owned());
    }
    if let Some((_, request)) = stood.iter().find(|(_, request)| request.target.contains("smug")) {
        return Err(format!("smuggled: {} {}", request.method, request.target));
    }
    if own.iter().any(|status| *status < 300) {
        return Err(format!("we said {own:?} ourselves"));
    }
    let expected = match conversation.case.must {
        Must::Either => return Ok(()),
        Must::Refuse => 0,
        Must::Forward(count) => {
            if !own.is_empty() {
                return Err(format!("we said {own:?} to good requests"));
            }
            count
        }
        Must::Until(count) => {
            if own.is_empty() {
                return Err("what came behind was not refused".to_owned());
            }
            count
        }
    };
    if stood.len() == expected { Ok(()) } else { Err(format!("{} requests instead of {expected}", stood.len())) }
}
