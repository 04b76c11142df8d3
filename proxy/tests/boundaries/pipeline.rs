//! HTTP/1 through the proxy: from a client's bytes to the origin's, and from an origin's bytes to the client's.

use outrigger_proxy::http::serve::Version;

use super::{
    conversation::{Origin, forward, in_virtual_time, served, speak},
    strict,
};

/// Everything a client hears must be answers that a strict reader tells apart. `asked`: methods of the requests, as far as they are known.
fn answers(mut heard: &[u8], asked: &[String]) -> Vec<strict::Response> {
    let mut found = Vec::new();
    let mut finals = 0;
    while !heard.is_empty() {
        let asked = asked.get(finals).map_or("GET", String::as_str);
        match strict::response(heard, asked, true) {
            Ok(Some(response)) => {
                heard = &heard[response.length..];
                finals += usize::from(response.status >= 200);
                found.push(response);
            }
            // Broken off: the client sees that.
            Ok(None) => break,
            Err(why) => panic!("{why}: the client heard {:?}", String::from_utf8_lossy(heard)),
        }
    }
    found
}

fn converse(said: &[u8], piece: usize) -> (Vec<strict::Request>, Vec<strict::Response>) {
    converse_in(said.chunks(piece.max(1)))
}

/// What stood at the origin, and what the client heard, when it said these pieces one after the other.
pub fn converse_in<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<strict::Request>, Vec<strict::Response>) {
    let origin = Origin::default();
    let heard = in_virtual_time(async {
        let toward = origin.clone();
        let io = served(Version::Http1, move |request, downstream| forward(request, downstream, toward.clone()));
        speak(io, pieces).await
    });
    let requests = origin.requests();
    let asked: Vec<String> = requests.iter().map(|request| request.method.clone()).collect();
    (requests, answers(&heard, &asked))
}

/// Nothing unsafe reaches the origin; what reaches it is what a strict reader finds in what the client said, the same wherever that was
/// cut, and each was answered once.
pub fn h1_pipeline_differential(said: &[u8]) {
    let (requests, answers) = converse(said, said.len());
    let delivered = answers.iter().filter(|answer| answer.status == 200).count();
    let promised = requests.iter().filter(|request| request.method != "CONNECT").count();
    assert_eq!(delivered, promised, "answers and requests of {:?}", String::from_utf8_lossy(said));
    // A strict reader stops at the first thing that is not strict, ours may go on: only what both have read must be the same.
    let mut rest = said;
    for request in &requests {
        let Ok(Some(strictly)) = strict::request(rest) else { break };
        rest = &rest[strictly.length..];
        assert_eq!((&request.method, &request.content), (&strictly.method, &strictly.content));
    }
    for piece in [1, 5, 16] {
        let (cut, _) = converse(said, piece);
        let told = |requests: &[strict::Request]| -> Vec<_> {
            let tell =
                |request: &strict::Request| (request.method.clone(), request.target.clone(), request.content.clone());
            requests.iter().map(tell).collect()
        };
        assert_eq!(told(&cut), told(&requests), "in pieces of {piece}: {:?}", String::from_utf8_lossy(said));
    }
}

/// Whatever an origin answers, the client hears whole answers of a strict form, or sees that one broke off; two requests are answered by
/// at most two final answers.
pub fn h1_upstream_response(answer: &[u8]) {
    for method in ["GET", "HEAD"] {
        let origin = Origin::that_says(answer);
        let said =
            format!("{method} /1 HTTP/1.1\r\nhost: a\r\nte: trailers\r\n\r\n{method} /2 HTTP/1.1\r\nhost: a\r\n\r\n");
        let heard = in_virtual_time(async {
            let toward = origin.clone();
            let io = served(Version::Http1, move |request, downstream| forward(request, downstream, toward.clone()));
            speak(io, std::iter::once(said.as_bytes())).await
        });
        let requests = origin.requests();
        assert!(requests.len() <= 2, "{requests:?}");
        let asked = vec![method.to_owned(), method.to_owned()];
        let finals = answers(&heard, &asked).iter().filter(|answer| answer.status >= 200).count();
        assert!(finals <= 2, "{finals} answers to two requests");
    }
}
