//! One host: a thread that lives in a network namespace, with a runtime whose sockets are that host's.
//!
//! Applications and clients of a test run here as ordinary async code. The rest of the process stays where it was.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    panic::resume_unwind,
    process::Command,
    str::FromStr,
    sync::mpsc,
    thread::JoinHandle,
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Name, RData, RecordType},
};
use outrigger_control_plane::demo::network::Network;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::{net::UdpSocket, runtime::Handle, sync::oneshot, task};

use super::PATIENCE;

pub struct Host {
    pub name: &'static str,
    pub address: Ipv4Addr,
    pub address_v6: Ipv6Addr,
    resolver: Ipv4Addr,
    enter: Vec<String>,
    runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    /// Starts a thread in the namespace of the host with this index and name.
    pub fn enter(network: &Network, index: usize, name: &'static str) -> Self {
        let namespace = File::open(format!("/run/netns/{}", network.namespace(name))).unwrap();
        let (started, start) = mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let live = move || {
            // Only this thread moves, and with it the threads that its runtime starts.
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            started.send(runtime.handle().clone()).unwrap();
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(live).unwrap();
        Self {
            name,
            address: network.address(index),
            address_v6: network.address_v6(index),
            resolver: network.resolver(),
            enter: network.enter(name),
            runtime: start.recv().unwrap(),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// The host's address with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.address), port)
    }

    /// Runs a future inside and waits for what it gives; panics go through to the caller.
    ///
    /// Must not be called from async code; there, use [`Self::spawn`].
    pub fn run<F>(&self, future: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        let bounded = async move { tokio::time::timeout(PATIENCE * 2, future).await };
        match self.runtime.block_on(self.runtime.spawn(bounded)) {
            Ok(Ok(output)) => output,
            Ok(Err(_)) => panic!("nothing came of it on {} within {:?}", self.name, PATIENCE * 2),
            Err(error) => resume_unwind(error.into_panic()),
        }
    }

    /// Starts a future inside.
    pub fn spawn<F>(&self, future: F) -> task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        self.runtime.spawn(future)
    }

    /// A program that will run inside, with the host's name server.
    pub fn command(&self, program: &str) -> Command {
        let mut words = self.enter.iter();
        let mut command = Command::new(words.next().unwrap());
        command.args(words).arg(program);
        command
    }

    /// Asks the host's name server as a resolver library would, without search domains.
    pub fn lookup(&self, name: &str, kind: RecordType) -> Vec<IpAddr> {
        let mut message = Message::new(fastrand::u16(..), MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
        let server = SocketAddr::new(IpAddr::V4(self.resolver), 53);
        let answer = self.run(async move {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap();
            socket.connect(server).await.unwrap();
            socket.send(&message.to_vec().unwrap()).await.unwrap();
            let mut bytes = vec![0; 4096];
            let length = socket.recv(&mut bytes).await.unwrap();
            Message::from_vec(&bytes[..length]).unwrap()
        });
        let address = |data: &RData| match data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) => Some(IpAddr::V6(address.0)),
            _ => None,
        };
        answer.answers.iter().filter_map(|record| address(&record.data)).collect()
    }

    /// The virtual address of a service, by its complete or short name.
    pub fn address_of(&self, name: &str) -> IpAddr {
        let found = self.lookup(name, RecordType::A);
        *found.first().unwrap_or_else(|| panic!("{} finds no address of {name}", self.name))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
