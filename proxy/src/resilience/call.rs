//! The attempt loop: try, judge, wait, try again. The only async file of `resilience`.
//!
//! Knows nothing of endpoints or sockets: [`Attempts`] tries, `retry` judges, the budget allows. A response is
//! given back as soon as its head has come; after that nothing is retried.

use std::{pin::pin, time::Duration};

use http::Response;

use super::{
    deadline::Deadline,
    retry::{Outcome, Repeatable, RetryPolicy, Verdict},
};
use crate::{
    failure::{Failure, Reason},
    host::{self, Instant},
    telemetry::RetryRefusal,
};

/// How hard to try.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    pub retry: &'a RetryPolicy,
    /// One try; `None`: unbounded.
    pub try_timeout: Option<Duration>,
    /// The whole request.
    pub deadline: Deadline,
}

/// One request, as the loop sees it.
pub trait Attempts {
    /// What a try that was answered gives.
    type Answer: Answered;
    /// Held while a retry is under way.
    type Hold: Send;

    /// Sends the request once and waits for the response head, at most until `limit`. `tried` counts from 1.
    fn attempt(
        &mut self,
        tried: u32,
        now: Instant,
        limit: Deadline,
    ) -> impl Future<Output = Result<Self::Answer, Failure>> + Send;

    /// Whether it can be sent again.
    fn repeatable(&self) -> Repeatable;

    /// Room for one more try within budget and limits.
    ///
    /// # Errors
    /// Which of them refused.
    fn take_retry(&mut self) -> Result<Self::Hold, RetryRefusal>;

    /// Told about every refused retry.
    fn retry_refused(&mut self, why: RetryRefusal);
}

/// Something with a response head.
pub trait Answered {
    type Body;
    fn head(&self) -> &Response<Self::Body>;
    /// gRPC's status, where it stands in the head.
    fn grpc_status(&self) -> Option<u32>;
    /// When the head had come.
    fn at(&self) -> Instant;
}

/// Sends a request as often as its plan, its budget and its deadline allow. It came at `now`, just before this is called.
///
/// # Errors
/// The failure of the last try, or `RequestTimeout` when the deadline passed. Dropping the future cancels the try.
pub async fn call<A: Attempts + Send>(plan: Plan<'_>, now: Instant, attempts: &mut A) -> Result<A::Answer, Failure>
where
    A::Answer: Send,
{
    let mut tried = 0;
    let mut now = now;
    let mut _hold = None;
    loop {
        tried += 1;
        let limit = plan.deadline.min(Deadline::after(now, plan.try_timeout));
        let outcome = pin!(attempts.attempt(tried, now, limit)).await;
        now = outcome.as_ref().map_or_else(|_| host::now(), Answered::at);
        if plan.deadline.is_over(now) {
            return outcome.map_err(|failure| Failure { reason: Reason::RequestTimeout, ..failure });
        }
        let judged = match &outcome {
            Ok(answer) => {
                let head = answer.head();
                plan.retry.judge(
                    Outcome::Answered { status: head.status(), grpc: answer.grpc_status(), headers: head.headers() },
                    attempts.repeatable(),
                    tried,
                )
            }
            Err(failure) => plan.retry.judge(Outcome::Failed(failure), attempts.repeatable(), tried),
        };
        let wait = match judged {
            Verdict::Keep => return outcome,
            Verdict::Again => Duration::ZERO,
            Verdict::AfterWait => plan.retry.wait(tried, host::random_unit()),
        };
        if plan.deadline.left(now).is_some_and(|left| left <= wait) {
            return outcome;
        }
        match attempts.take_retry() {
            Ok(hold) => _hold = Some(hold),
            Err(why) => {
                attempts.retry_refused(why);
                return outcome;
            }
        }
        // The answer that is not kept gives its connection back before the wait.
        drop(outcome);
        if !wait.is_zero() {
            host::sleep(wait).await;
        }
        now = host::now();
    }
}
