//! Knocks on the port of a workload whose stream is gone, until it is gone itself.

use std::{future::Future, io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use tokio::{net::TcpStream, time};

use super::rules::{Knock, Probation};

/// Time between two knocks, 0.8 to 1.2 times.
const INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(1);

/// How to knock; tests put their own answers here.
pub type Dial = Arc<dyn Fn(SocketAddr) -> Pin<Box<dyn Future<Output = Knock> + Send>> + Send + Sync>;

/// Knocks by opening and closing a TCP connection.
pub fn tcp() -> Dial {
    Arc::new(|address| {
        Box::pin(async move {
            match time::timeout(TIMEOUT, TcpStream::connect(address)).await {
                Ok(Ok(_)) => Knock::Answered,
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Knock::Refused,
                Ok(Err(_)) | Err(_) => Knock::Silent,
            }
        })
    })
}

/// Returns when the workload at `address` is gone. The first knock comes at once.
pub async fn until_gone(address: SocketAddr, dial: Dial) {
    let mut probation = Probation::default();
    while !probation.is_gone_after(dial(address).await) {
        time::sleep(INTERVAL.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
    }
}
