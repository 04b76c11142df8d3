//! Names of the mesh as DNS: a small responder in front of the machine's own resolvers.
//!
//! Transparent mode points DNS here. Names that [`NameSource`] knows get the service's virtual address; everything
//! else goes, byte for byte, to the resolvers of `/etc/resolv.conf`. Nothing is cached: the mesh's answers are at hand
//! and the others' belong to the resolvers behind us. An answer over UDP is never longer than the client said it takes.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, RData, Record, RecordType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::host::{self, ConnectOptions};

/// Questions answered at once, UDP and TCP together; more are dropped, and the client asks again.
const QUESTIONS_AT_ONCE: usize = 512;
/// TCP connections at once; more are closed.
const CONNECTIONS_AT_ONCE: usize = 64;
/// Bytes of a question over UDP; real ones are far below.
const UDP_QUESTION_BYTES: usize = 4096;
/// Bytes of an answer over UDP when the client does not say (RFC 1035 §4.2.1).
const UDP_ANSWER_BYTES: usize = 512;
/// Longest wait for one resolver.
const RESOLVER_TIMEOUT: Duration = Duration::from_secs(2);
/// Resolvers asked for one question, as in resolv.conf(5).
const RESOLVERS_ASKED: usize = 3;
/// Longest silence on a TCP connection.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// How long a client may keep a mesh address. Virtual addresses are stable, but services can go.
const TTL_SECONDS: u32 = 30;

/// What the mesh knows of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// A service's addresses; may be empty, or of one family only: then the other has no records.
    Found(Vec<IpAddr>),
    /// Not a name of the mesh: ask the machine's resolvers.
    NotMesh,
    /// It could not be found out; the client is told to try again (SERVFAIL).
    Failed,
}

/// Answers of a [`NameSource`].
pub type LookupFuture<'a> = Pin<Box<dyn Future<Output = Lookup> + Send + 'a>>;

/// Knows the names of the mesh.
pub trait NameSource: Send + Sync + 'static {
    /// Looks up one name: lower case, without the final dot, as the application asked ("reviews", "reviews.shop", ...).
    fn addresses<'a>(&'a self, name: &'a str) -> LookupFuture<'a>;
}

/// How to run the responder.
#[derive(Clone, Debug)]
pub struct DnsSettings {
    /// UDP and TCP.
    pub listen: SocketAddr,
    /// Where other names go, in order.
    pub resolvers: Vec<SocketAddr>,
    /// `SO_MARK` on questions to them, so that redirect rules let them pass; `None` sets none.
    pub mark: Option<u32>,
}

/// Serves until `stop`.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(settings: DnsSettings, names: Arc<dyn NameSource>, stop: CancellationToken) -> io::Result<()> {
    let tcp = host::listen(settings.listen, false)?;
    let udp = host::datagram(tcp.local_addr()?, None)?;
    serve_on(udp, tcp, settings, names, stop).await;
    Ok(())
}

/// As [`serve`], on sockets that are bound already.
pub async fn serve_on(
    udp: UdpSocket,
    tcp: TcpListener,
    settings: DnsSettings,
    names: Arc<dyn NameSource>,
    stop: CancellationToken,
) {
    // A resolver that is us would be an endless loop.
    let resolvers = settings.resolvers.into_iter().filter(|resolver| *resolver != settings.listen).collect();
    let responder = Arc::new(Responder {
        names,
        resolvers,
        mark: settings.mark,
        questions: Semaphore::new(QUESTIONS_AT_ONCE),
        connections: Arc::new(Semaphore::new(CONNECTIONS_AT_ONCE)),
    });
    tokio::select! {
        () = responder.clone().serve_udp(Arc::new(udp)) => {}
        () = responder.serve_tcp(tcp) => {}
        () = stop.cancelled() => {}
    }
}

/// The resolvers of `/etc/resolv.conf`; empty when there is none.
pub fn system_resolvers() -> Vec<SocketAddr> {
    std::fs::read_to_string("/etc/resolv.conf").map(|text| resolvers_of(&text)).unwrap_or_default()
}

/// Reads the `nameserver` lines of resolv.conf(5).
fn resolvers_of(text: &str) -> Vec<SocketAddr> {
    let mut resolvers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() == Some("nameserver") {
            // A zone ("fe80::1%eth0") names an interface; without it the address means nothing, so it is left out.
            resolvers
                .extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()).map(|ip| SocketAddr::new(ip, 53)));
        }
    }
    resolvers.truncate(RESOLVERS_ASKED);
    resolvers
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
}

struct Responder {
    names: Arc<dyn NameSource>,
    resolvers: Vec<SocketAddr>,
    mark: Option<u32>,
    questions: Semaphore,
    connections: Arc<Semaphore>,
}

impl Responder {
    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; UDP_QUESTION_BYTES];
        loop {
            let (length, client) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    // An ICMP error of an earlier answer; the pause is for errors that do not go away.
                    debug!(%error, "cannot receive dns");
                    host::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            let question = buffer.get(..length).unwrap_or_default().to_vec();
            let (this, socket) = (self.clone(), socket.clone());
            if self.questions.available_permits() == 0 {
                continue;
            }
            host::spawn(async move {
                let Ok(_permit) = this.questions.try_acquire() else { return };
                if let Some(answer) = this.answer(&question, Transport::Udp).await {
                    let _ = socket.send_to(&answer, client).await;
                }
            });
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                host::sleep(Duration::from_millis(10)).await;
                continue;
            };
            let Ok(permit) = self.connections.clone().try_acquire_owned() else { continue };
            let this = self.clone();
            host::spawn(async move {
                let _permit = permit;
                let _ = this.serve_connection(stream).await;
            });
        }
    }

    /// One question after the other, until the client is silent or gone.
    async fn serve_connection(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let question = within(TCP_IDLE, read_framed(&mut stream)).await?;
            let answer = match self.questions.try_acquire() {
                Ok(_permit) => self.answer(&question, Transport::Tcp).await,
                Err(_) => None,
            };
            let Some(answer) = answer else { return Ok(()) };
            within(TCP_IDLE, write_framed(&mut stream, &answer)).await?;
        }
    }

    /// The answer to one message; `None` when it deserves none.
    async fn answer(&self, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
        // Answering what cannot even be read, or what is an answer itself, would feed loops.
        let Ok(message) = Message::from_vec(question) else { return None };
        if message.metadata.message_type != MessageType::Query {
            return None;
        }
        let [query] = message.queries.as_slice() else {
            return error(&message, ResponseCode::FormErr);
        };
        if message.metadata.op_code != OpCode::Query {
            return error(&message, ResponseCode::NotImp);
        }
        let mut name = query.name().to_ascii().to_ascii_lowercase();
        if name.ends_with('.') {
            name.pop();
        }
        let lookup = if name.is_empty() || query.query_class() != DNSClass::IN {
            Lookup::NotMesh
        } else {
            self.names.addresses(&name).await
        };
        match lookup {
            Lookup::Found(addresses) => found(&message, query, &addresses, transport),
            Lookup::Failed => error(&message, ResponseCode::ServFail),
            Lookup::NotMesh => match self.forward(question, &message, query, transport).await {
                Some(answer) => Some(answer),
                None => error(&message, ResponseCode::ServFail),
            },
        }
    }

    /// Asks the machine's resolvers, one after the other.
    async fn forward(
        &self,
        question: &[u8],
        message: &Message,
        query: &Query,
        transport: Transport,
    ) -> Option<Vec<u8>> {
        // An id of our own, so that only who saw our question can answer it.
        let id = (host::random_below(1 << 16) as u16).to_be_bytes();
        let mut ours = question.to_vec();
        ours.get_mut(..2)?.copy_from_slice(&id);
        for resolver in &self.resolvers {
            let asked = within(RESOLVER_TIMEOUT, async {
                match transport {
                    Transport::Udp => self.ask_udp(*resolver, &ours, query).await,
                    Transport::Tcp => self.ask_tcp(*resolver, &ours).await,
                }
            });
            match asked.await {
                Ok(mut answer) if answers(&answer, id, query) => {
                    if transport == Transport::Udp && answer.len() > udp_limit(message) {
                        return truncated(message);
                    }
                    answer.get_mut(..2)?.copy_from_slice(question.get(..2)?);
                    return Some(answer);
                }
                Ok(_) => debug!(%resolver, "resolver answered something else"),
                Err(error) => debug!(%resolver, %error, "resolver does not answer"),
            }
        }
        None
    }

    async fn ask_udp(&self, resolver: SocketAddr, question: &[u8], query: &Query) -> io::Result<Vec<u8>> {
        let any: IpAddr = if resolver.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = host::datagram(SocketAddr::new(any, 0), self.mark)?;
        socket.connect(resolver).await?;
        socket.send(question).await?;
        let id = [question.first().copied().unwrap_or(0), question.get(1).copied().unwrap_or(0)];
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            let length = socket.recv(&mut buffer).await?;
            let answer = buffer.get(..length).unwrap_or_default();
            // A forged answer with a wrong id must not keep the right one from being heard.
            if answers(answer, id, query) {
                return Ok(answer.to_vec());
            }
        }
    }

    async fn ask_tcp(&self, resolver: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = host::connect(resolver, ConnectOptions { source: None, mark: self.mark }).await?;
        write_framed(&mut stream, question).await?;
        read_framed(&mut stream).await
    }
}

/// Whether `answer` is the response with `id` to `query`.
fn answers(answer: &[u8], id: [u8; 2], query: &Query) -> bool {
    answer.get(..2) == Some(&id[..])
        && Message::from_vec(answer).is_ok_and(|message| {
            message.metadata.message_type == MessageType::Response
                && (message.queries.is_empty() || message.queries.as_slice() == [query.clone()])
        })
}

/// Bytes of an answer that the client takes over UDP.
fn udp_limit(question: &Message) -> usize {
    question.edns.as_ref().map_or(UDP_ANSWER_BYTES, |edns| usize::from(edns.max_payload()).max(UDP_ANSWER_BYTES))
}

fn response(question: &Message) -> Message {
    let mut response = Message::response(question.metadata.id, question.metadata.op_code);
    response.metadata.recursion_desired = question.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.add_queries(question.queries.iter().take(1).cloned());
    response
}

fn error(question: &Message, code: ResponseCode) -> Option<Vec<u8>> {
    let mut response = response(question);
    response.metadata.response_code = code;
    response.to_vec().ok()
}

/// "Ask again over TCP."
fn truncated(question: &Message) -> Option<Vec<u8>> {
    let mut response = response(question);
    response.metadata.truncation = true;
    response.to_vec().ok()
}

fn found(question: &Message, query: &Query, addresses: &[IpAddr], transport: Transport) -> Option<Vec<u8>> {
    let mut response = response(question);
    response.metadata.authoritative = true;
    for address in addresses {
        let data = match (query.query_type(), address) {
            (RecordType::A | RecordType::ANY, IpAddr::V4(address)) => RData::A((*address).into()),
            (RecordType::AAAA | RecordType::ANY, IpAddr::V6(address)) => RData::AAAA((*address).into()),
            // Of the other family, or of a type that services do not have: the name exists without such a record.
            _ => continue,
        };
        response.add_answer(Record::from_rdata(query.name().clone(), TTL_SECONDS, data));
    }
    let bytes = response.to_vec().ok()?;
    if transport == Transport::Udp && bytes.len() > udp_limit(question) { truncated(question) } else { Some(bytes) }
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::select! {
        done = work => done,
        () = host::sleep(limit) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// A message with its length in front (RFC 1035 §4.2.2).
async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let mut framed = Vec::with_capacity(message.len().saturating_add(2));
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::str::FromStr;

    use hickory_proto::{op::Edns, rr::Name};
    use proptest::prelude::*;

    use super::*;

    struct Mesh;

    impl NameSource for Mesh {
        fn addresses<'a>(&'a self, name: &'a str) -> LookupFuture<'a> {
            Box::pin(async move {
                match name {
                    "reviews" | "reviews.shop.svc.cluster.local" => Lookup::Found(vec!["240.240.0.1".parse().unwrap()]),
                    "large" => Lookup::Found((0..100).map(|last| IpAddr::from([240, 240, 1, last])).collect()),
                    "broken" => Lookup::Failed,
                    _ => Lookup::NotMesh,
                }
            })
        }
    }

    fn responder(resolvers: Vec<SocketAddr>) -> Responder {
        Responder {
            names: Arc::new(Mesh),
            resolvers,
            mark: None,
            questions: Semaphore::new(QUESTIONS_AT_ONCE),
            connections: Arc::new(Semaphore::new(CONNECTIONS_AT_ONCE)),
        }
    }

    fn question(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
        message
    }

    async fn ask(responder: &Responder, question: &Message, transport: Transport) -> Message {
        let bytes = responder.answer(&question.to_vec().unwrap(), transport).await.unwrap();
        Message::from_vec(&bytes).unwrap()
    }

    #[tokio::test]
    async fn mesh_names_have_their_virtual_address() {
        // Without these answers an application in transparent mode cannot call a service by name.
        let responder = responder(Vec::new());
        for (name, kind, code, count) in [
            ("reviews.", RecordType::A, ResponseCode::NoError, 1),
            ("Reviews.Shop.svc.cluster.local.", RecordType::A, ResponseCode::NoError, 1),
            ("reviews.", RecordType::AAAA, ResponseCode::NoError, 0),
            ("reviews.", RecordType::MX, ResponseCode::NoError, 0),
            ("broken.", RecordType::A, ResponseCode::ServFail, 0),
            ("example.org.", RecordType::A, ResponseCode::ServFail, 0),
        ] {
            let answer = ask(&responder, &question(name, kind), Transport::Udp).await;
            assert_eq!((answer.metadata.response_code, answer.answers.len()), (code, count), "{name} {kind}");
            assert_eq!((answer.metadata.id, answer.queries.len()), (7, 1), "{name} {kind}");
        }
    }

    #[tokio::test]
    async fn long_answers_are_cut_for_udp_and_whole_for_tcp() {
        // An answer longer than the client takes is lost, or helps to attack somebody else.
        let responder = responder(Vec::new());
        let mut large = question("large.", RecordType::A);
        let cut = ask(&responder, &large, Transport::Udp).await;
        assert!(cut.metadata.truncation && cut.answers.is_empty());
        assert_eq!(ask(&responder, &large, Transport::Tcp).await.answers.len(), 100);
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        large.set_edns(edns);
        assert_eq!(ask(&responder, &large, Transport::Udp).await.answers.len(), 100);
    }

    #[tokio::test]
    async fn other_names_go_to_the_next_resolver_that_answers() {
        // One dead resolver, or one that answers nonsense, must not take away all names.
        let resolver = host::datagram("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let dead = host::datagram("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let dead_address = dead.local_addr().unwrap();
        drop(dead);
        let address = resolver.local_addr().unwrap();
        let resolving = host::spawn(async move {
            let mut buffer = [0; 512];
            let (length, client) = resolver.recv_from(&mut buffer).await.unwrap();
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            let mut answer = response(&asked);
            let name = asked.queries[0].name().clone();
            answer.add_answer(Record::from_rdata(name, 5, RData::A(Ipv4Addr::new(192, 0, 2, 9).into())));
            let mut forged = answer.clone();
            forged.metadata.id = asked.metadata.id.wrapping_add(1);
            resolver.send_to(&forged.to_vec().unwrap(), client).await.unwrap();
            resolver.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
        });
        let responder = responder(vec![dead_address, address]);
        let answer = ask(&responder, &question("example.org.", RecordType::A), Transport::Udp).await;
        assert_eq!((answer.metadata.id, answer.answers.len()), (7, 1));
        resolving.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_question_gets_no_answer() {
        // Answering answers makes two responders talk to each other for ever.
        let responder = responder(Vec::new());
        let reply = response(&question("reviews.", RecordType::A));
        assert_eq!(responder.answer(&reply.to_vec().unwrap(), Transport::Udp).await, None);
        assert_eq!(responder.answer(b"\x00", Transport::Udp).await, None);
        let mut two = question("reviews.", RecordType::A);
        two.add_query(Query::query(Name::from_str("ratings.").unwrap(), RecordType::A));
        assert_eq!(ask(&responder, &two, Transport::Udp).await.metadata.response_code, ResponseCode::FormErr);
        let update = Message::new(7, MessageType::Query, OpCode::Status);
        let mut update = update;
        update.add_query(Query::query(Name::from_str("reviews.").unwrap(), RecordType::A));
        assert_eq!(ask(&responder, &update, Transport::Udp).await.metadata.response_code, ResponseCode::NotImp);
    }

    #[tokio::test]
    async fn serves_udp_and_tcp_on_one_port() {
        // Clients that got a truncated answer come back over TCP, several questions on one connection.
        let tcp = host::listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = host::datagram(address, None).unwrap();
        let settings = DnsSettings { listen: address, resolvers: vec![address], mark: None };
        let stop = CancellationToken::new();
        let serving = host::spawn(serve_on(udp, tcp, settings, Arc::new(Mesh), stop.clone()));
        let bytes = question("reviews.", RecordType::A).to_vec().unwrap();
        let client = host::datagram("127.0.0.1:0".parse().unwrap(), None).unwrap();
        client.send_to(&bytes, address).await.unwrap();
        let mut buffer = [0; 512];
        let length = client.recv(&mut buffer).await.unwrap();
        assert_eq!(Message::from_vec(&buffer[..length]).unwrap().answers.len(), 1);
        let mut stream = host::connect(address, ConnectOptions::default()).await.unwrap();
        for _ in 0..2 {
            write_framed(&mut stream, &bytes).await.unwrap();
            let answer = read_framed(&mut stream).await.unwrap();
            assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 1);
        }
        stop.cancel();
        serving.await.unwrap();
    }

    #[test]
    fn resolv_conf_is_read_as_the_system_does() {
        // A resolver that is missed means names that do not resolve.
        let text = "# x\nsearch a b\nnameserver 10.0.0.10\nnameserver fd00::a\n nameserver 10.0.0.11 # y\n\
                    nameserver fe80::1%eth0\nnameserver 10.0.0.12\noptions ndots:5\n";
        let resolvers = resolvers_of(text);
        assert_eq!(
            resolvers.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.0.0.10:53", "[fd00::a]:53", "10.0.0.11:53"]
        );
        assert!(resolvers_of("").is_empty());
    }

    proptest! {
        #[test]
        fn m08_arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            // One packet must not end the responder.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let _ = runtime.block_on(responder(Vec::new()).answer(&bytes, Transport::Udp));
        }
    }
}
