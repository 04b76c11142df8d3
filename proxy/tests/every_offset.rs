//! The cases that `control-plane/tests/judge.rs` tries over processes, in memory, cut in two at every offset.

#![allow(clippy::unwrap_used)]
#![allow(clippy::disallowed_methods, reason = "tests bring their own sockets and clocks")]

mod boundaries;

#[path = "../../control-plane/tests/judge/case.rs"]
mod case;
#[path = "../../control-plane/tests/judge/http1_cases.rs"]
mod http1_cases;

use boundaries::pipeline::converse_in;
use case::{Case, Must, replace};

/// Longer ones differ in length only.
const LONGEST_BYTES: usize = 300;

fn judge(case: &Case, said: &[u8], at: usize) {
    let (first, second) = said.split_at(at);
    let (requests, answers) = converse_in([first, second].into_iter().filter(|piece| !piece.is_empty()));
    let delivered = answers.iter().filter(|answer| answer.status == 200).count();
    let refused = answers.iter().any(|answer| answer.status >= 400);
    // CONNECT is refused by the origin of these tests.
    let stood = requests.iter().filter(|request| request.method != "CONNECT").count();
    let told = || format!("{} at {at}: {requests:?} {answers:?}", case.name);
    assert_eq!(delivered, stood, "{}", told());
    assert!(requests.iter().all(|request| !request.target.contains("smug")), "{}", told());
    match case.must {
        Must::Refuse => assert!(requests.is_empty(), "{}", told()),
        Must::Forward(count) => assert_eq!(stood, count, "{}", told()),
        Must::Until(count) => assert!(stood == count && refused, "{}", told()),
        Must::Either => {}
    }
}

#[test]
fn nothing_unsafe_gets_through_wherever_it_is_cut() {
    // An attacker chooses where one packet ends and the next begins.
    let mut conversations = 0;
    for case in http1_cases::cases() {
        let said = replace(&case.bytes, b"<H>", b"Host: a.test\r\n");
        let said = replace(&replace(&said, b"<A>", b"a.test"), b"<N>", b"n1n");
        if said.len() > LONGEST_BYTES {
            continue;
        }
        for at in 0..said.len() {
            judge(&case, &said, at);
            conversations += 1;
        }
    }
    assert!(conversations > 10_000, "only {conversations}");
}
