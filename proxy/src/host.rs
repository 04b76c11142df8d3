//! Sockets, clock, randomness and tasks: the one seam between the proxy and the machine.
//!
//! Everything else in this crate asks here and never the standard library or the runtime directly, so that the
//! whole sidecar can also run in a seeded simulation with virtual time. Nothing in here decides anything.

#![allow(clippy::disallowed_methods, reason = "the seam itself: everybody else asks here")]

use std::{
    future::Future,
    io,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UdpSocket},
    runtime::Runtime,
    task::JoinHandle,
};

pub mod usage;

/// A moment on the monotonic clock; stands still in paused tests.
pub type Instant = tokio::time::Instant;

/// The monotonic clock: for every wait and every measurement.
pub fn now() -> Instant {
    Instant::now()
}

/// The wall clock: only for certificates and for people.
pub fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// Waits; dropping the future cancels.
pub async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// A uniformly distributed number below `bound`; 0 when `bound` is 0.
pub fn random_below(bound: u64) -> u64 {
    if bound == 0 { 0 } else { fastrand::u64(0..bound) }
}

/// A uniformly distributed number in `[0, 1)`.
pub fn random_unit() -> f64 {
    fastrand::f64()
}

/// 128 random bits, for request ids.
pub fn random_u128() -> u128 {
    fastrand::u128(..)
}

/// Runs a task on the runtime of the calling thread.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future)
}

/// Runs work that blocks (files) beside the runtime; the result comes when it is done, even if nobody waits.
pub fn run_blocking<F, R>(work: F) -> JoinHandle<R>
where
    F: FnOnce() -> R + Send + 'static,
    R: Send + 'static,
{
    tokio::task::spawn_blocking(work)
}

/// A runtime: on the thread that blocks on it for `threads` of 1, work-stealing beyond.
///
/// # Errors
/// The operating system's, unchanged.
pub fn runtime(threads: usize) -> io::Result<Runtime> {
    if threads <= 1 {
        return tokio::runtime::Builder::new_current_thread().enable_all().build();
    }
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()
}

/// Raises the soft limit of open files to the hard one; leaves it where the system refuses.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum || limit.maximum.is_none() {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}

/// The soft limit of open files; `None`: there is none.
pub fn descriptor_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

/// Whether the system had no descriptor or memory for us: nobody else's fault.
pub fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let short = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| short.iter().any(|errno| errno.raw_os_error() == code))
}

/// Gives the system back what the allocator keeps for later. Takes milliseconds; not for threads that carry traffic.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "no safe crate offers it")]
pub fn return_freed_memory() {
    // SAFETY: malloc_trim(3) takes the allocator's own locks and touches no memory that is in use; zero is any padding's least.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Gives the system back what the allocator keeps for later; here it keeps little.
#[cfg(not(target_env = "gnu"))]
pub fn return_freed_memory() {}

/// CPUs this process may use: the cgroup's quota, rounded up, or what the scheduler allows; at least 1.
pub fn cpu_limit() -> usize {
    // Takes cgroup quotas and affinity into account on Linux.
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Any connected byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + ?Sized> Stream for T {}

/// Connects; the caller bounds the time. Dropping the future abandons the attempt.
///
/// # Errors
/// The operating system's, unchanged.
pub async fn connect(address: SocketAddr, options: ConnectOptions) -> io::Result<TcpStream> {
    outgoing(address, options)?.connect(address).await
}

/// As [`connect`]; the moment in which the connection begins, and may already be accepted, is inside of `around`. It is given what begins
/// the connection and says which address of ours it comes from; `None`: it did not begin.
///
/// # Errors
/// The operating system's, unchanged.
pub async fn connect_within(
    address: SocketAddr,
    options: ConnectOptions,
    around: impl Fn(&mut dyn FnMut() -> Option<SocketAddr>),
) -> io::Result<TcpStream> {
    use std::{os::fd::AsFd as _, task::Poll};
    let socket = outgoing(address, options)?;
    let same = socket2::Socket::from(socket.as_fd().try_clone_to_owned()?);
    let mut connecting = std::pin::pin!(socket.connect(address));
    let first = std::future::poll_fn(|cx| {
        let mut first = Poll::Pending;
        // The system chooses the address when it is first asked to connect.
        around(&mut || {
            first = connecting.as_mut().poll(cx);
            same.local_addr().ok()?.as_socket()
        });
        Poll::Ready(first)
    })
    .await;
    drop(same);
    match first {
        Poll::Ready(connected) => connected,
        Poll::Pending => connecting.await,
    }
}

fn outgoing(address: SocketAddr, options: ConnectOptions) -> io::Result<tokio::net::TcpSocket> {
    let domain = socket2::Domain::for_address(address);
    let socket =
        socket2::Socket::new(domain, socket2::Type::STREAM.nonblocking().cloexec(), Some(socket2::Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if let Some(mark) = options.mark {
        socket.set_mark(mark)?;
    }
    let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
    if let Some(source) = options.source {
        socket.bind(source)?;
    }
    Ok(socket)
}

/// The addresses of "host:port"; the caller bounds the time.
///
/// # Errors
/// The resolver's, unchanged.
pub async fn resolve(address: &str) -> io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host(address).await?.collect())
}

/// How an outgoing connection differs from the ordinary.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectOptions {
    /// Bind to this address first; `None` leaves the choice to the system.
    pub source: Option<SocketAddr>,
    /// `SO_MARK`, so that redirect rules let the connection pass (needs `CAP_NET_ADMIN`); `None` sets none.
    pub mark: Option<u32>,
}

/// Listens; with `shared`, several listeners may hold the same address and the kernel spreads connections.
///
/// # Errors
/// The operating system's, unchanged.
pub fn listen(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM.nonblocking().cloexec(),
        Some(socket2::Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        // "[::]" takes IPv4 as well: redirect rules send both families to one port.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    TcpListener::from_std(socket.into())
}

/// Binds a datagram socket, with `SO_MARK` if given (needs `CAP_NET_ADMIN`).
///
/// # Errors
/// The operating system's, unchanged.
pub fn datagram(address: SocketAddr, mark: Option<u32>) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::DGRAM.nonblocking().cloexec(),
        Some(socket2::Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}
