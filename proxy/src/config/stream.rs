//! One discovery stream: two bounded queues and the task between them and the wire.
//!
//! Opened by [`super::run`], which decides what to say; how long to wait before the next stream is here too. A queue
//! that is full stops the reader, and HTTP/2 flow control then stops the server.

use std::time::Duration;

use http::Uri;
use outrigger_proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient as Client,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::connect::{Channel, MESSAGE_BYTES};
use crate::host;

/// Requests on their way, and responses nobody has looked at.
const QUEUE: usize = 16;
/// Full jitter: each wait is uniform below the step, steps double from the first to the last.
const FIRST_STEP: Duration = Duration::from_millis(10);
const LAST_STEP: Duration = Duration::from_secs(15);

/// An open stream. Dropping it ends the stream.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) requests: mpsc::Sender<DeltaDiscoveryRequest>,
    /// Ends with the reason when the stream does.
    pub(super) responses: mpsc::Receiver<Result<DeltaDiscoveryResponse, Status>>,
}

/// Opens a stream on a connection; whether the server accepts it shows in the responses.
pub(super) fn open(channel: Channel, origin: Uri) -> Link {
    let (requests, outgoing) = mpsc::channel(QUEUE);
    let (incoming, responses) = mpsc::channel(QUEUE);
    let mut client = Client::with_origin(channel, origin).max_decoding_message_size(MESSAGE_BYTES);
    host::spawn(async move {
        let closed = incoming.clone();
        let read = async {
            let answer = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await;
            let mut stream = match answer {
                Ok(answer) => answer.into_inner(),
                Err(status) => return drop(incoming.send(Err(status)).await),
            };
            loop {
                let message = match stream.message().await {
                    Ok(Some(message)) => Ok(message),
                    Ok(None) => Err(Status::unavailable("control plane ended the stream")),
                    Err(status) => Err(status),
                };
                let over = message.is_err();
                if incoming.send(message).await.is_err() || over {
                    return;
                }
            }
        };
        // Also ends a call that the server has not answered yet, once nobody listens any more.
        tokio::select! {
            () = read => {}
            () = closed.closed() => {}
        }
    });
    Link { requests, responses }
}

/// How long to wait before the next connection.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The wait before the next attempt. `random(bound)` is uniform below the bound, in microseconds.
    pub(super) fn next(&mut self, random: impl FnOnce(u64) -> u64) -> Duration {
        let step =
            FIRST_STEP.saturating_mul(1_u32.checked_shl(self.attempts.min(16)).unwrap_or(u32::MAX)).min(LAST_STEP);
        self.attempts = self.attempts.saturating_add(1);
        Duration::from_micros(random(u64::try_from(step.as_micros()).unwrap_or(u64::MAX)))
    }

    /// The server has answered: start over.
    pub(super) fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnects_spread_over_a_growing_time_up_to_15_s() {
        // A thousand proxies that lose their control plane must not come back in the same moment.
        let mut backoff = Backoff::default();
        let most: Vec<u128> = (0..14).map(|_| backoff.next(|bound| bound).as_millis()).collect();
        assert_eq!(most, [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10_240, 15_000, 15_000, 15_000]);
        assert_eq!(backoff.next(|_| 0), Duration::ZERO);
        backoff.reset();
        assert_eq!(backoff.next(|bound| bound), FIRST_STEP);
    }
}
