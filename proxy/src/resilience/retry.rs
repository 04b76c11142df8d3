//! May this failure be retried, and after how long? Pure.
//!
//! Asked by the attempt loop after each try; the budget, the limit of retries in flight and the deadline are asked after
//! this. Two questions, both must be answered yes: does the rule want it (`Conditions`, `codes`), and is it safe?
//!
//! | the endpoint | idempotent, body in memory | otherwise |
//! |---|---|---|
//! | provably saw nothing (`Sent::Nothing`) | retry | retry |
//! | may have seen it (`Sent::Maybe`), or answered with an error | retry | keep |
//! | broke off inside its answer (`Sent::Answered`) | keep | keep |
//!
//! RFC 9110 §9.2.2: "A proxy MUST NOT automatically retry non-idempotent requests." No condition overrides that; a gRPC
//! call or another POST that may be repeated says so with an `Idempotency-Key`. What our own side refused (breaker open, no
//! endpoint, a limit reached) is never retried: the next try would meet the same.

use std::time::Duration;

use http::{HeaderMap, HeaderName, Method, StatusCode};

use crate::failure::{Failure, Reason, Sent};

/// What a rule says about retries (Istio's HTTPRetry, Gateway API's retry).
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// Tries after the first. Default 2; 0: never.
    pub attempts: u32,
    pub conditions: Conditions,
    /// Statuses that may be retried. 504 also means a try that took too long, since that would be its answer.
    pub codes: Vec<StatusCode>,
    /// First wait. Default 25 ms.
    pub backoff: Duration,
}

/// Longest wait, as a multiple of [`RetryPolicy::backoff`] (Envoy's default: ten times).
const MAX_BACKOFF_FACTOR: u32 = 10;

/// Retries for rules that do not speak of them: Istio's default with 503 among the codes, and `reset`, which is safe
/// here because only idempotent requests are repeated after a reset, and hides an endpoint that dies under load.
impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 2,
            conditions: Conditions {
                connect_failure: true,
                refused_stream: true,
                reset: true,
                grpc_unavailable: true,
                grpc_cancelled: true,
                ..Conditions::default()
            },
            codes: vec![StatusCode::SERVICE_UNAVAILABLE],
            backoff: Duration::from_millis(25),
        }
    }
}

/// Istio's and Envoy's words as flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "one flag per word of the standard")]
pub struct Conditions {
    /// No connection: refused, timed out, no TLS, or another identity than expected.
    pub connect_failure: bool,
    /// The endpoint refused the stream unseen.
    pub refused_stream: bool,
    /// The connection broke before the request was handed to it.
    pub reset_before_request: bool,
    /// No answer: the connection broke or the try took too long.
    pub reset: bool,
    /// 502, 503, 504, or no answer.
    pub gateway_error: bool,
    /// Any 5xx, no answer, or no connection (Envoy's `5xx` includes connect-failure and refused-stream).
    pub server_error: bool,
    /// 409, as Envoy has it.
    pub retriable_4xx: bool,
    pub grpc_unavailable: bool,
    pub grpc_cancelled: bool,
    pub grpc_deadline_exceeded: bool,
    pub grpc_internal: bool,
    pub grpc_resource_exhausted: bool,
}

/// A word in a retry condition that no proxy, or only another one, understands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("retry condition {word:?} is not supported (hint: use one of {})", Conditions::WORDS.join(", "))]
pub struct UnknownCondition {
    pub word: Box<str>,
}

impl Conditions {
    /// The words that [`Conditions::parse`] understands, beside status codes.
    pub const WORDS: [&'static str; 13] = [
        "connect-failure",
        "refused-stream",
        "reset-before-request",
        "reset",
        "gateway-error",
        "5xx",
        "retriable-4xx",
        "retriable-status-codes",
        "unavailable",
        "cancelled",
        "deadline-exceeded",
        "internal",
        "resource-exhausted",
    ];

    /// Reads words, each of which may itself be a comma-separated list (Istio's `retryOn`), and numeric status codes
    /// mixed with them. `retriable-status-codes` only announces codes and sets nothing.
    ///
    /// # Errors
    /// The first word that means nothing here; the caller refuses the rule.
    pub fn parse<'w>(words: impl IntoIterator<Item = &'w str>) -> Result<(Self, Vec<StatusCode>), UnknownCondition> {
        let mut conditions = Self::default();
        let mut codes = Vec::new();
        for word in words.into_iter().flat_map(|words| words.split(',')).map(str::trim) {
            match word {
                "" | "retriable-status-codes" => {}
                "connect-failure" => conditions.connect_failure = true,
                "refused-stream" => conditions.refused_stream = true,
                "reset-before-request" => conditions.reset_before_request = true,
                "reset" => conditions.reset = true,
                "gateway-error" => conditions.gateway_error = true,
                "5xx" => conditions.server_error = true,
                "retriable-4xx" => conditions.retriable_4xx = true,
                "unavailable" => conditions.grpc_unavailable = true,
                "cancelled" => conditions.grpc_cancelled = true,
                "deadline-exceeded" => conditions.grpc_deadline_exceeded = true,
                "internal" => conditions.grpc_internal = true,
                "resource-exhausted" => conditions.grpc_resource_exhausted = true,
                _ => match StatusCode::from_bytes(word.as_bytes()) {
                    Ok(code) if !codes.contains(&code) => codes.push(code),
                    Ok(_) => {}
                    Err(_) => return Err(UnknownCondition { word: word.into() }),
                },
            }
        }
        Ok((conditions, codes))
    }

    /// Whether any word asks for a retry when no answer came.
    const fn wants_unanswered(self) -> bool {
        self.reset || self.gateway_error || self.server_error
    }

    /// Whether the gRPC status of a trailers-only response may be retried.
    const fn want_grpc(self, status: u32) -> bool {
        // The numbers of google.rpc.Code.
        match status {
            1 => self.grpc_cancelled,
            4 => self.grpc_deadline_exceeded,
            8 => self.grpc_resource_exhausted,
            13 => self.grpc_internal,
            14 => self.grpc_unavailable,
            _ => false,
        }
    }
}

/// How one try ended.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// A response head came.
    Answered {
        status: StatusCode,
        /// gRPC's status, where it stands in the head.
        grpc: Option<u32>,
        headers: &'a HeaderMap,
    },
    Failed(&'a Failure),
}

/// Everything about a request that decides whether it may be sent twice.
#[derive(Clone, Copy, Debug)]
pub struct Repeatable {
    /// GET, HEAD, OPTIONS, PUT, DELETE, TRACE or a request with an `Idempotency-Key`.
    pub idempotent: bool,
    /// Its body can be sent again from memory.
    pub replayable: bool,
}

/// Whether to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This outcome is final.
    Keep,
    /// Try again at once: nothing had been sent. Still costs an attempt.
    Again,
    /// Try again after a wait.
    AfterWait,
}

impl RetryPolicy {
    /// What to do after a try; `tried` counts tries so far, at least 1.
    pub fn judge(&self, outcome: Outcome<'_>, request: Repeatable, tried: u32) -> Verdict {
        if tried > self.attempts {
            return Verdict::Keep;
        }
        match outcome {
            Outcome::Answered { status, grpc, headers } => {
                if self.wants_answer(status, grpc)
                    && request.is_safe_after(Sent::Maybe)
                    && !asks_to_be_left_alone(headers)
                {
                    Verdict::AfterWait
                } else {
                    Verdict::Keep
                }
            }
            Outcome::Failed(failure) => {
                if !request.is_safe_after(failure.sent) || !self.wants_failure(failure) {
                    Verdict::Keep
                } else if failure.sent == Sent::Nothing && failure.reason != Reason::TryTimeout {
                    Verdict::Again
                } else {
                    Verdict::AfterWait
                }
            }
        }
    }

    /// Wait before try number `tried + 1`; `random` is uniform in `[0, 1)`.
    ///
    /// Full jitter, as Envoy: uniform below `backoff * (2^tried - 1)`, at most ten times the backoff. So that many clients
    /// that failed together do not come back together.
    pub fn wait(&self, tried: u32, random: f64) -> Duration {
        let growth = 1_u32.checked_shl(tried).map_or(u32::MAX, |power| power - 1);
        let most = self.backoff.saturating_mul(growth.min(MAX_BACKOFF_FACTOR));
        Duration::try_from_secs_f64(most.as_secs_f64() * random.clamp(0.0, 1.0)).unwrap_or(most)
    }

    fn wants_answer(&self, status: StatusCode, grpc: Option<u32>) -> bool {
        let Conditions { server_error, gateway_error, retriable_4xx, .. } = self.conditions;
        self.codes.contains(&status)
            || (server_error && status.is_server_error())
            || (gateway_error && matches!(status.as_u16(), 502..=504))
            || (retriable_4xx && status == StatusCode::CONFLICT)
            || grpc.is_some_and(|status| self.conditions.want_grpc(status))
    }

    fn wants_failure(&self, failure: &Failure) -> bool {
        let on = self.conditions;
        match failure.reason {
            Reason::UpstreamConnectRefused
            | Reason::UpstreamConnectTimeout
            | Reason::UpstreamTlsFailed
            | Reason::UpstreamIdentityMismatch => on.connect_failure || on.wants_unanswered(),
            Reason::UpstreamRefusedStream => on.refused_stream || on.wants_unanswered(),
            // A pooled connection that turned out to be dead is no worse than one that could not be made.
            Reason::UpstreamReset if failure.sent == Sent::Nothing => {
                on.reset_before_request || on.connect_failure || on.wants_unanswered()
            }
            Reason::UpstreamReset | Reason::UpstreamProtocol => on.wants_unanswered(),
            Reason::TryTimeout => on.wants_unanswered() || self.codes.contains(&StatusCode::GATEWAY_TIMEOUT),
            _ => false,
        }
    }
}

/// gRPC proposal A6: "if the value is not a valid non-negative number", the call must not be retried. A server that is going under says so.
fn asks_to_be_left_alone(headers: &HeaderMap) -> bool {
    headers.get(GRPC_PUSHBACK).is_some_and(|wait| {
        let digits = wait.as_bytes();
        digits.is_empty() || !digits.iter().all(u8::is_ascii_digit)
    })
}

const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

impl Repeatable {
    /// Reads method and headers.
    pub fn of(method: &Method, headers: &HeaderMap, replayable: bool) -> Self {
        // `Method::is_idempotent` is RFC 9110 §9.2.2: the safe methods, PUT and DELETE.
        Self { idempotent: method.is_idempotent() || headers.contains_key(IDEMPOTENCY_KEY), replayable }
    }

    /// Whether the request may be sent again after an endpoint has seen that much of it.
    const fn is_safe_after(self, sent: Sent) -> bool {
        match sent {
            Sent::Nothing => true,
            Sent::Maybe => self.idempotent && self.replayable,
            Sent::Answered => false,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const GET: Repeatable = Repeatable { idempotent: true, replayable: true };
    const POST: Repeatable = Repeatable { idempotent: false, replayable: true };
    const BIG_GET: Repeatable = Repeatable { idempotent: true, replayable: false };
    const BIG_POST: Repeatable = Repeatable { idempotent: false, replayable: false };

    fn rule(words: &str) -> RetryPolicy {
        let (conditions, codes) = Conditions::parse([words]).unwrap();
        RetryPolicy { conditions, codes, ..RetryPolicy::default() }
    }

    fn answered(policy: &RetryPolicy, status: u16, grpc: Option<u32>, request: Repeatable) -> Verdict {
        let status = StatusCode::from_u16(status).unwrap();
        policy.judge(Outcome::Answered { status, grpc, headers: &HeaderMap::new() }, request, 1)
    }

    fn failed(policy: &RetryPolicy, reason: Reason, sent: Sent, request: Repeatable) -> Verdict {
        policy.judge(Outcome::Failed(&Failure::new(reason).sent(sent)), request, 1)
    }

    #[test]
    fn what_was_seen_decides_who_may_be_repeated() {
        // RFC 9110 §9.2.2: a payment sent twice is worse than an error shown once.
        use Verdict::{AfterWait, Again, Keep};
        let policy = RetryPolicy::default();
        for (reason, sent, expected) in [
            // GET, POST, GET with a body too large to keep, POST with one.
            (Reason::UpstreamConnectRefused, Sent::Nothing, [Again, Again, Again, Again]),
            (Reason::UpstreamConnectTimeout, Sent::Nothing, [Again, Again, Again, Again]),
            (Reason::UpstreamTlsFailed, Sent::Nothing, [Again, Again, Again, Again]),
            (Reason::UpstreamIdentityMismatch, Sent::Nothing, [Again, Again, Again, Again]),
            (Reason::UpstreamRefusedStream, Sent::Nothing, [Again, Again, Again, Again]),
            (Reason::UpstreamReset, Sent::Nothing, [Again, Again, Again, Again]),
            (Reason::TryTimeout, Sent::Nothing, [AfterWait, AfterWait, AfterWait, AfterWait]),
            (Reason::UpstreamReset, Sent::Maybe, [AfterWait, Keep, Keep, Keep]),
            (Reason::UpstreamProtocol, Sent::Maybe, [AfterWait, Keep, Keep, Keep]),
            (Reason::TryTimeout, Sent::Maybe, [AfterWait, Keep, Keep, Keep]),
            (Reason::UpstreamReset, Sent::Answered, [Keep, Keep, Keep, Keep]),
            (Reason::UpstreamResetBody, Sent::Answered, [Keep, Keep, Keep, Keep]),
        ] {
            let verdicts = [GET, POST, BIG_GET, BIG_POST].map(|request| failed(&policy, reason, sent, request));
            assert_eq!(verdicts, expected, "{reason:?} {sent:?}");
        }
        assert_eq!(answered(&policy, 503, None, GET), AfterWait);
        for (status, request) in [(503, POST), (503, BIG_GET), (500, GET), (200, GET), (404, GET)] {
            assert_eq!(answered(&policy, status, None, request), Keep, "{status} {request:?}");
        }
    }

    #[test]
    fn our_own_refusals_are_final() {
        // Retrying against an open breaker or a full backend would only add to the load.
        let policy = rule("5xx,gateway-error,reset,connect-failure,refused-stream,reset-before-request,503,504");
        let retried = [
            Reason::UpstreamConnectRefused,
            Reason::UpstreamConnectTimeout,
            Reason::UpstreamTlsFailed,
            Reason::UpstreamIdentityMismatch,
            Reason::UpstreamReset,
            Reason::UpstreamRefusedStream,
            Reason::UpstreamProtocol,
            Reason::TryTimeout,
        ];
        for reason in Reason::ALL {
            let verdict = failed(&policy, reason, Sent::Nothing, GET);
            assert_eq!(verdict != Verdict::Keep, retried.contains(&reason), "{reason:?}");
        }
    }

    #[test]
    fn words_ask_for_what_envoy_says() {
        // A word that means less than documented leaves errors visible; one that means more repeats what nobody asked for.
        let outcomes = |policy: &RetryPolicy| {
            let retried = |verdict| verdict != Verdict::Keep;
            let fails = |reason, sent| retried(failed(policy, reason, sent, GET));
            let answers = |status, grpc| retried(answered(policy, status, grpc, GET));
            [
                ("refused", fails(Reason::UpstreamConnectRefused, Sent::Nothing)),
                ("stream", fails(Reason::UpstreamRefusedStream, Sent::Nothing)),
                ("dead", fails(Reason::UpstreamReset, Sent::Nothing)),
                ("reset", fails(Reason::UpstreamReset, Sent::Maybe)),
                ("timeout", fails(Reason::TryTimeout, Sent::Maybe)),
                ("500", answers(500, None)),
                ("503", answers(503, None)),
                ("504", answers(504, None)),
                ("409", answers(409, None)),
                ("grpc1", answers(200, Some(1))),
                ("grpc4", answers(200, Some(4))),
                ("grpc8", answers(200, Some(8))),
                ("grpc13", answers(200, Some(13))),
                ("grpc14", answers(200, Some(14))),
                ("grpc0", answers(200, Some(0))),
            ]
            .into_iter()
            .filter_map(|(name, retried)| retried.then_some(name))
            .collect::<Vec<_>>()
            .join(" ")
        };
        for (words, expected) in [
            ("", ""),
            ("retriable-status-codes", ""),
            ("connect-failure", "refused dead"),
            ("refused-stream", "stream"),
            ("reset-before-request", "dead"),
            ("reset", "refused stream dead reset timeout"),
            ("gateway-error", "refused stream dead reset timeout 503 504"),
            ("5xx", "refused stream dead reset timeout 500 503 504"),
            ("retriable-4xx", "409"),
            ("500", "500"),
            ("retriable-status-codes,503", "503"),
            ("504", "timeout 504"),
            ("cancelled", "grpc1"),
            ("deadline-exceeded", "grpc4"),
            ("resource-exhausted", "grpc8"),
            ("internal", "grpc13"),
            ("unavailable", "grpc14"),
        ] {
            assert_eq!(outcomes(&rule(words)), expected, "{words}");
        }
    }

    #[test]
    fn every_documented_word_is_understood_and_no_other() {
        // A word silently ignored is a retry somebody believes in.
        for word in Conditions::WORDS {
            let (conditions, codes) = Conditions::parse([word]).unwrap();
            assert!(codes.is_empty());
            assert_eq!(conditions == Conditions::default(), word == "retriable-status-codes", "{word}");
        }
        let (conditions, codes) = Conditions::parse(["reset, 503,503", " 500 "]).unwrap();
        assert_eq!(conditions, Conditions { reset: true, ..Conditions::default() });
        assert_eq!(codes, [StatusCode::SERVICE_UNAVAILABLE, StatusCode::INTERNAL_SERVER_ERROR]);
        for word in ["envoy-ratelimited", "Reset", "reset;5xx", "99", "5000"] {
            let error = Conditions::parse(["reset", word]).unwrap_err();
            assert_eq!(&*error.word, word);
            assert!(error.to_string().contains("hint: use one of connect-failure, "));
        }
    }

    #[test]
    fn tries_are_counted() {
        // "attempts: 2" is three tries at most, and 0 is one.
        let refused = Failure::new(Reason::UpstreamConnectRefused);
        for (attempts, allowed) in [(0, 0), (1, 1), (2, 2), (u32::MAX, 5)] {
            let policy = RetryPolicy { attempts, ..RetryPolicy::default() };
            let again = |tried| policy.judge(Outcome::Failed(&refused), GET, tried) == Verdict::Again;
            assert_eq!((1..=5).take_while(|&tried| again(tried)).count(), allowed, "{attempts}");
        }
    }

    #[test]
    fn idempotent_requests_are_known_by_method_or_key() {
        // A PATCH taken for idempotent would be applied twice.
        let keyed = HeaderMap::from_iter([(IDEMPOTENCY_KEY, HeaderValue::from_static("1"))]);
        for (method, expected) in [
            (Method::GET, true),
            (Method::HEAD, true),
            (Method::OPTIONS, true),
            (Method::TRACE, true),
            (Method::PUT, true),
            (Method::DELETE, true),
            (Method::POST, false),
            (Method::PATCH, false),
            (Method::CONNECT, false),
            (Method::from_bytes(b"get").unwrap(), false),
        ] {
            assert_eq!(Repeatable::of(&method, &HeaderMap::new(), true).idempotent, expected, "{method}");
            assert!(Repeatable::of(&method, &keyed, true).idempotent, "{method} with a key");
        }
        assert!(!Repeatable::of(&Method::GET, &keyed, false).replayable);
    }

    #[test]
    fn waits_grow_to_ten_times_the_backoff() {
        // Without growth and jitter, a thousand clients come back in the same millisecond.
        let policy = RetryPolicy::default();
        let nearly_one = 1.0 - f64::EPSILON;
        for (tried, most_millis) in [(1, 25), (2, 75), (3, 175), (4, 250), (31, 250), (32, 250), (u32::MAX, 250)] {
            assert_eq!(policy.wait(tried, 0.0), Duration::ZERO);
            assert_eq!(policy.wait(tried, 0.5), Duration::from_micros(most_millis * 500), "{tried}");
            let longest = policy.wait(tried, nearly_one);
            assert!(longest <= Duration::from_millis(most_millis) && longest > Duration::from_millis(most_millis - 1));
        }
        let forever = RetryPolicy { backoff: Duration::MAX, ..RetryPolicy::default() };
        assert!(forever.wait(9, nearly_one) >= Duration::from_secs(1 << 60), "and does not overflow");
    }

    proptest! {
        #[test]
        fn what_may_have_been_processed_is_not_repeated(
            reason in 0..Reason::ALL.len(), sent in 0..3, status in 100_u16..600, grpc in 0_u32..17, words in 0_usize..1 << 13,
            tried in 1_u32..4, replayable: bool,
        ) {
            // P3, over every condition: no configuration repeats a non-idempotent request that was not provably unseen.
            let words: Vec<_> =
                Conditions::WORDS.iter().enumerate().filter(|(bit, _)| words >> bit & 1 == 1).map(|(_, word)| *word).collect();
            let mut policy = rule(&words.join(","));
            let status = StatusCode::from_u16(status).unwrap();
            policy.codes.push(status);
            let outcome = Outcome::Answered { status, grpc: Some(grpc), headers: &HeaderMap::new() };
            let request = Repeatable { idempotent: false, replayable };
            prop_assert_eq!(policy.judge(outcome, request, tried), Verdict::Keep);
            let sent = [Sent::Nothing, Sent::Maybe, Sent::Answered][sent as usize];
            let failure = Failure::new(Reason::ALL[reason]).sent(sent);
            let verdict = policy.judge(Outcome::Failed(&failure), request, tried);
            prop_assert!(verdict == Verdict::Keep || (sent == Sent::Nothing && tried <= policy.attempts));
        }
    }
}
