//! One thread, one runtime, one listener each.
//!
//! Every worker listens on every address itself (`SO_REUSEPORT`) and carries what it accepts to the end. Where few
//! long-lived connections pile up on one worker, new ones are handed to the least loaded.

use std::{
    io,
    net::{SocketAddr, TcpStream as StdTcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{net::TcpStream, sync::mpsc};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    accept::{Accepted, ConnectionLimit, ConnectionSlot, listener},
    host, inbound, outbound,
    residents::{Residents, Worker},
    settings::RuntimeKind,
    upstream::pool::IdleLimits,
};

/// Connections more than the least loaded worker has before a new one is handed over.
const SKEW: usize = 4;
/// Connections on their way to another worker; past it they stay where they were accepted.
const HANDOVERS: usize = 256;
/// How often pools drop what is spent.
const SWEEP: Duration = Duration::from_secs(1);

/// What a listening address is for.
#[derive(Clone, Debug)]
pub enum Entrance {
    Inbound(inbound::Way),
    Outbound(outbound::Way),
}

/// One listening address.
#[derive(Clone, Debug)]
pub struct Opening {
    pub address: SocketAddr,
    pub entrance: Entrance,
}

/// How the workers are told to stop.
#[derive(Clone, Debug, Default)]
pub struct Stops {
    /// No more inbound connections.
    pub inbound: CancellationToken,
    /// No more outbound connections.
    pub outbound: CancellationToken,
    /// Everything ends now.
    pub all: CancellationToken,
}

/// The running workers.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<thread::JoinHandle<()>>,
    pub loads: Arc<[Load]>,
}

/// Open connections of one worker.
#[derive(Debug, Default)]
pub struct Load {
    pub inbound: AtomicUsize,
    pub outbound: AtomicUsize,
}

/// A connection on its way to another worker.
struct Handover {
    io: StdTcpStream,
    peer: SocketAddr,
    local: SocketAddr,
    slot: ConnectionSlot,
    entrance: Entrance,
}

/// One worker's share of what the workers have in common.
#[derive(Clone)]
struct Post {
    worker: Worker,
    loads: Arc<[Load]>,
    others: Arc<[mpsc::Sender<Handover>]>,
}

impl Workers {
    /// Starts `count` workers that listen on all openings.
    ///
    /// # Errors
    /// When an address cannot be had, or a thread or runtime cannot be made.
    pub fn start(
        count: usize,
        kind: RuntimeKind,
        residents: &Arc<Residents>,
        openings: &[Opening],
        limit: &Arc<ConnectionLimit>,
        stops: &Stops,
    ) -> io::Result<Self> {
        let (threads, runtime_threads) = match kind {
            RuntimeKind::ThreadPerCore => (count.max(1), 1),
            RuntimeKind::MultiThread => (1, count.max(1)),
        };
        let loads: Arc<[Load]> = (0..threads).map(|_| Load::default()).collect();
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..threads).map(|_| mpsc::channel(HANDOVERS)).unzip();
        let others: Arc<[_]> = senders.into();
        let mut handles = Vec::new();
        for (index, handed) in receivers.into_iter().enumerate() {
            let worker =
                Worker { index, telemetry: residents.telemetry.worker(index), residents: Arc::clone(residents) };
            let post = Post { worker, loads: Arc::clone(&loads), others: Arc::clone(&others) };
            let runtime = host::runtime(runtime_threads)?;
            let listeners = {
                let _entered = runtime.enter();
                openings
                    .iter()
                    .map(|opening| Ok((host::listen(opening.address, true)?, opening.entrance.clone())))
                    .collect::<io::Result<Vec<_>>>()?
            };
            let (limit, stops) = (Arc::clone(limit), stops.clone());
            let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                runtime.block_on(post.run(listeners, handed, limit, stops));
                // Tasks that are left belong to connections that had their time.
                runtime.shutdown_background();
            })?;
            handles.push(thread);
        }
        Ok(Self { threads: handles, loads })
    }

    /// Open inbound and outbound connections.
    pub fn open(&self) -> (usize, usize) {
        self.loads.iter().fold((0, 0), |(inbound, outbound), load| {
            (inbound + load.inbound.load(Ordering::Relaxed), outbound + load.outbound.load(Ordering::Relaxed))
        })
    }

    /// Waits for the threads after [`Stops::all`].
    pub fn join(self) {
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

impl Post {
    async fn run(
        self,
        listeners: Vec<(tokio::net::TcpListener, Entrance)>,
        handed: mpsc::Receiver<Handover>,
        limit: Arc<ConnectionLimit>,
        stops: Stops,
    ) {
        let tcp_user = self.worker.residents.settings.timeouts.tcp_user;
        for (listener, entrance) in listeners {
            let stop = match entrance {
                Entrance::Inbound(_) => stops.inbound.clone(),
                Entrance::Outbound(_) => stops.outbound.clone(),
            };
            let (post, limit) = (self.clone(), Arc::clone(&limit));
            host::spawn(async move {
                let serve = move |accepted, slot| post.clone().place(accepted, slot, entrance.clone());
                listener::run(listener, limit, tcp_user, stop, serve).await;
            });
        }
        host::spawn(self.clone().receive(handed));
        host::spawn(self.clone().sweep());
        stops.all.cancelled().await;
    }

    /// Carries a connection here, or hands it to a worker that has much less to do.
    async fn place(self, accepted: Accepted, slot: ConnectionSlot, entrance: Entrance) {
        let mine = self.loads.get(self.worker.index).map_or(0, Load::total);
        let least = self.loads.iter().enumerate().min_by_key(|(_, load)| load.total());
        let elsewhere = least.filter(|(_, load)| mine > load.total() + SKEW && mine > 2 * load.total());
        let Some(other) = elsewhere.and_then(|(index, _)| self.others.get(index)).cloned() else {
            return self.carry(accepted, slot, entrance).await;
        };
        let Accepted { io, peer, local } = accepted;
        match (other.try_reserve(), io.into_std()) {
            (Ok(place), Ok(io)) => place.send(Handover { io, peer, local, slot, entrance }),
            (Err(_), Ok(io)) => match TcpStream::from_std(io) {
                Ok(io) => self.carry(Accepted { io, peer, local }, slot, entrance).await,
                Err(error) => warn!(%peer, %error, "connection was lost between two workers"),
            },
            (_, Err(error)) => warn!(%peer, %error, "connection was lost between two workers"),
        }
    }

    async fn receive(self, mut handed: mpsc::Receiver<Handover>) {
        while let Some(Handover { io, peer, local, slot, entrance }) = handed.recv().await {
            match TcpStream::from_std(io) {
                Ok(io) => {
                    host::spawn(self.clone().carry(Accepted { io, peer, local }, slot, entrance));
                }
                Err(error) => warn!(%peer, %error, "connection was lost between two workers"),
            }
        }
    }

    async fn carry(self, accepted: Accepted, slot: ConnectionSlot, entrance: Entrance) {
        let Some(load) = self.loads.get(self.worker.index) else { return };
        let count = match entrance {
            Entrance::Inbound(_) => &load.inbound,
            Entrance::Outbound(_) => &load.outbound,
        };
        let _counted = Counted::one(count);
        let _slot = slot;
        match entrance {
            Entrance::Inbound(way) => inbound::serve_connection(accepted, way, self.worker.clone()).await,
            Entrance::Outbound(way) => outbound::serve_connection(accepted, way, self.worker.clone()).await,
        }
    }

    async fn sweep(self) {
        let residents = &self.worker.residents;
        loop {
            host::sleep(SWEEP).await;
            let now = host::now();
            let idle = match residents.overload.empties_pools() {
                false => IdleLimits::new(&residents.settings.timeouts),
                true => IdleLimits::none(),
            };
            if let Some(mesh) = residents.mesh() {
                mesh.sweep(self.worker.index, now, idle);
            }
            residents.outside.sweep(self.worker.index, now, idle);
            residents.applications.sweep(self.worker.index, now, idle);
        }
    }
}

impl Load {
    fn total(&self) -> usize {
        self.inbound.load(Ordering::Relaxed) + self.outbound.load(Ordering::Relaxed)
    }
}

struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn one(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
