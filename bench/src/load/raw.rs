//! Raw TCP: as many bytes as pass, or a new connection for each exchange. Blocking threads: nothing is between us and the socket.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;

use super::{Aim, LONGEST, Load, histogram, record};
use crate::{origin, process::on_core, scenario::Direction};

const BUFFER_BYTES: usize = 256 * 1024;
/// What an exchange carries each way.
const EXCHANGE_BYTES: usize = 64;

/// Carries bytes one way; the unit of work is a gigabyte.
///
/// # Errors
/// When a connection breaks.
pub fn bulk(aim: &Aim<'_>, connections: u32, direction: Direction) -> Result<Load> {
    let started = Instant::now();
    let end = started + aim.time;
    let bytes = on_threads(aim, connections, |entry| carry(entry, direction, end))?;
    let gigabytes = bytes.iter().sum::<u64>() as f64 / 1e9;
    if gigabytes == 0.0 {
        bail!("no bytes came through");
    }
    Ok(Load { count: gigabytes, rate: gigabytes / started.elapsed().as_secs_f64(), latency: None })
}

/// A new connection for each exchange of a few bytes; the unit of work is a connection.
///
/// # Errors
/// When a connection breaks.
pub fn connect(aim: &Aim<'_>, connections: u32) -> Result<Load> {
    let started = Instant::now();
    let end = started + aim.time;
    let each = on_threads(aim, connections, |entry| {
        let mut latencies = histogram()?;
        while Instant::now() < end {
            let start = Instant::now();
            exchange(entry)?;
            record(&mut latencies, start);
        }
        Ok(latencies)
    })?;
    let mut all: Histogram<u64> = histogram()?;
    for latencies in each {
        all.add(latencies)?;
    }
    Ok(Load::of(&all, started.elapsed()))
}

/// Sends a few bytes on a new connection and gets them back.
///
/// # Errors
/// When they do not come back.
pub fn exchange(entry: SocketAddr) -> Result<()> {
    let mut stream = open(entry)?;
    let mut bytes = [b'x'; EXCHANGE_BYTES + 1];
    bytes[0] = origin::ECHO;
    stream.write_all(&bytes)?;
    stream.read_exact(&mut bytes[1..]).context("a connection was closed in the middle of an exchange")?;
    Ok(())
}

fn carry(entry: SocketAddr, direction: Direction, end: Instant) -> Result<u64> {
    let mut stream = open(entry)?;
    let mut buffer = vec![b'x'; BUFFER_BYTES];
    let what = if direction == Direction::Download { origin::DOWNLOAD } else { origin::UPLOAD };
    stream.write_all(&[what])?;
    let mut carried = 0;
    while Instant::now() < end {
        let bytes = match direction {
            Direction::Download => stream.read(&mut buffer)?,
            Direction::Upload => stream.write(&buffer)?,
        };
        if bytes == 0 {
            bail!("a connection was closed in the middle");
        }
        carried += bytes as u64;
    }
    Ok(carried)
}

fn open(entry: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&entry, LONGEST).with_context(|| format!("cannot connect to {entry}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}

fn on_threads<T: Send>(aim: &Aim<'_>, count: u32, work: impl Fn(SocketAddr) -> Result<T> + Sync) -> Result<Vec<T>> {
    on_core(aim.core, || {
        thread::scope(|scope| {
            let work = &work;
            let entry = aim.entry;
            let threads: Vec<_> = (0..count).map(|_| scope.spawn(move || work(entry))).collect();
            let ended = threads.into_iter().map(|thread| thread.join());
            ended.map(|done| done.map_err(|_| anyhow::anyhow!("a load thread panicked"))?).collect()
        })
    })
}
