//! Load at a constant rate, whatever the answers do: what a service with many independent callers sees.
//!
//! Each connection has its own schedule, and latency counts from the moment a request should have started: when a response
//! is late, the requests that had to wait behind it are late as well (no coordinated omission).

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;

use super::{Aim, LONGEST, Load, histogram, record};
use crate::{chain::HOST, process::on_core};

const BUFFER_BYTES: usize = 16 * 1024;
/// From the start of the threads to the first request.
const HEAD_START: Duration = Duration::from_millis(50);

/// When each request of one connection should start.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    pub first: Instant,
    pub interval: Duration,
    pub end: Instant,
}

/// Makes the load of `aim`: HTTP/1.1.
///
/// # Errors
/// When a connection breaks or a response is not 200.
pub fn run(aim: &Aim<'_>, connections: u32, requests_per_second: u32) -> Result<Load> {
    let request = request(aim);
    on_schedules(aim, connections, requests_per_second, |schedule| ask(aim.entry, request.as_bytes(), schedule, None))
}

/// The same, but a request that fails is counted, and its connection made anew.
///
/// # Errors
/// When nobody can be connected to at all.
pub fn run_counting(aim: &Aim<'_>, connections: u32, requests_per_second: u32, failed: &AtomicU64) -> Result<Load> {
    let request = request(aim);
    on_schedules(aim, connections, requests_per_second, |schedule| {
        ask(aim.entry, request.as_bytes(), schedule, Some(failed))
    })
}

fn request(aim: &Aim<'_>) -> String {
    format!("GET {} HTTP/1.1\r\nhost: {HOST}\r\n\r\n", aim.scenario.path())
}

/// One thread per connection, because a sleeping thread wakes up within tens of microseconds, and the timers of asynchronous
/// runtimes within milliseconds.
///
/// # Errors
/// The first of any connection.
pub fn on_schedules(
    aim: &Aim<'_>,
    connections: u32,
    requests_per_second: u32,
    ask: impl Fn(Schedule) -> Result<Histogram<u64>> + Sync,
) -> Result<Load> {
    let interval = Duration::from_secs_f64(f64::from(connections) / f64::from(requests_per_second));
    let started = Instant::now() + HEAD_START;
    let latencies = on_core(aim.core, || {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..connections)
                .map(|connection| {
                    let first = started + interval.mul_f64(f64::from(connection) / f64::from(connections));
                    let schedule = Schedule { first, interval, end: started + aim.time };
                    let ask = &ask;
                    scope.spawn(move || {
                        // The kernel may wake a sleeper up to 50 us late unless asked not to; where it cannot be asked,
                        // all chains suffer alike.
                        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
                        ask(schedule)
                    })
                })
                .collect();
            let mut all = histogram()?;
            for thread in threads {
                all.add(thread.join().map_err(|_| anyhow::anyhow!("a load thread panicked"))??)?;
            }
            Ok(all)
        })
    })?;
    // The last answer may come before the last interval is over.
    Ok(Load::of(&latencies, started.elapsed().max(aim.time)))
}

impl Schedule {
    /// Sleeps until the next request should start; `None` at the end.
    pub fn next(&mut self) -> Option<Instant> {
        let intended = self.first;
        if intended >= self.end {
            return None;
        }
        self.first += self.interval;
        thread::sleep(intended.saturating_duration_since(Instant::now()));
        Some(intended)
    }
}

/// `failed` counts what fails; none: the first failure is the end.
fn ask(
    address: SocketAddr,
    request: &[u8],
    mut schedule: Schedule,
    failed: Option<&AtomicU64>,
) -> Result<Histogram<u64>> {
    let mut stream = connect(address)?;
    let mut latencies = histogram()?;
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Some(intended) = schedule.next() {
        let answered =
            stream.write_all(request).map_err(Into::into).and_then(|()| read_response(&mut stream, &mut buffer));
        match (answered, failed) {
            (Ok(()), _) => record(&mut latencies, intended),
            (Err(error), None) => return Err(error),
            (Err(_), Some(failed)) => {
                failed.fetch_add(1, Ordering::Relaxed);
                stream = connect(address)?;
            }
        }
    }
    Ok(latencies)
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LONGEST))?;
    Ok(stream)
}

/// Reads one response with a Content-Length; the body is dropped.
fn read_response(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<()> {
    let mut filled = 0;
    loop {
        if filled == buffer.len() {
            bail!("response is longer than {BUFFER_BYTES} bytes (hint: use a closed-loop scenario)");
        }
        let bytes = stream.read(&mut buffer[filled..])?;
        if bytes == 0 {
            bail!("connection was closed in the middle of a response");
        }
        filled += bytes;
        if let Some(length) = response_length(&buffer[..filled])?
            && filled >= length
        {
            return Ok(());
        }
    }
}

/// Bytes of the whole response; `None` while its head is not complete.
///
/// # Errors
/// When it is not a 200 with a Content-Length.
pub fn response_length(bytes: &[u8]) -> Result<Option<usize>> {
    let Some(head_end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..head_end])?;
    let status = head.lines().next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 200") {
        bail!("the chain answered \"{status}\"");
    }
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .context("the response has no Content-Length")?;
    Ok(Some(head_end + 4 + length.1.trim().parse::<usize>()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn responses_end_where_they_say() {
        // Every later latency on the connection would be another request's.
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(response_length(whole).unwrap(), Some(whole.len()));
        assert_eq!(response_length(&whole[..20]).unwrap(), None);
        assert!(response_length(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").is_err());
        assert!(response_length(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }

    #[test]
    fn failures_are_counted_and_the_rest_goes_on() {
        // One refused request would hide how the thousand after it fared, or pass for an answer.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answering = thread::spawn(move || {
            // Each connection answers once with success, once with an error.
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                for answer in ["200 OK", "503 No"] {
                    let mut request = [0; 64];
                    if stream.read(&mut request).unwrap() == 0 {
                        return;
                    }
                    write!(stream, "HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n").unwrap();
                }
            }
        });
        let (first, interval) = (Instant::now(), Duration::from_millis(1));
        let schedule = || Schedule { first, interval, end: first + 3 * interval };
        let failed = AtomicU64::new(0);
        let latencies = ask(address, b"GET / HTTP/1.1\r\n\r\n", schedule(), Some(&failed)).unwrap();
        assert_eq!((latencies.len(), failed.into_inner()), (2, 1));
        answering.join().unwrap();
    }
}
