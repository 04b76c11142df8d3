//! Real redirect rules in network namespaces of their own: what is redirected, what passes, what is left behind.
//!
//! Needs root, iproute2, iptables, nftables, bash and setpriv; says so and skips without them, or fails when
//! `OUTRIGGER_REQUIRE_NETNS=1` asks for it. Two namespaces stand for a workload and another machine.

#![allow(clippy::unwrap_used)]

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    process::{Child, Command, Output, Stdio},
    thread,
};

use socket2::{Domain, SockRef, Socket, Type};

/// Set in the process that serves inside the workload's namespace.
const SERVE: &str = "OUTRIGGER_TEST_SERVE";
/// Set, to an address, in the process that connects inside the workload's namespace with a mark.
const CONNECT: &str = "OUTRIGGER_TEST_CONNECT";
const WORKLOAD: (&str, &str) = ("198.51.100.1", "fd00:a::1");
const PEER: (&str, &str) = ("198.51.100.2", "fd00:a::2");
const ELSEWHERE: (&str, &str) = ("203.0.113.9", "fd00:b::9");

fn command(line: &str) -> Output {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("{line}: {error}"))
}

fn must(line: &str) -> String {
    let output = command(line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
}

/// Why this test cannot run here.
fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    for tool in ["ip -V", "iptables -V", "ip6tables -V", "nft -v", "bash --version", "setpriv --version"] {
        let mut words = tool.split_whitespace();
        let found =
            Command::new(words.next().unwrap()).args(words).output().is_ok_and(|output| output.status.success());
        if !found {
            return Some(format!("{tool} does not work"));
        }
    }
    None
}

/// A workload and another machine, taken away when dropped.
struct Namespaces {
    workload: String,
    peer: String,
}

impl Namespaces {
    fn create() -> Result<Self, String> {
        let id = std::process::id();
        let namespaces = Self { workload: format!("outrigger-w{id}"), peer: format!("outrigger-p{id}") };
        for name in [&namespaces.workload, &namespaces.peer] {
            let output = command(&format!("ip netns add {name}"));
            if !output.status.success() {
                return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
            }
        }
        let (workload, peer) = (&namespaces.workload, &namespaces.peer);
        must(&format!("ip -n {workload} link add name mesh0 type veth peer name mesh1 netns {peer}"));
        for (name, device, own, other) in [(workload, "mesh0", WORKLOAD, PEER), (peer, "mesh1", PEER, WORKLOAD)] {
            must(&format!("ip -n {name} link set lo up"));
            must(&format!("ip -n {name} addr add {}/24 dev {device}", own.0));
            must(&format!("ip -n {name} addr add {}/64 dev {device} nodad", own.1));
            must(&format!("ip -n {name} link set {device} up"));
            must(&format!("ip -n {name} route add default via {}", other.0));
            must(&format!("ip -n {name} -6 route add default via {}", other.1));
        }
        Ok(namespaces)
    }

    fn intercept(&self, arguments: &str) -> Output {
        let binary = env!("CARGO_BIN_EXE_outrigger-proxy");
        command(&format!("ip netns exec {} {binary} intercept {arguments}", self.workload))
    }

    fn intercept_well(&self, arguments: &str) {
        let output = self.intercept(arguments);
        assert!(output.status.success(), "intercept {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The complaint of a check that must fail.
    fn complaint(&self, arguments: &str) -> String {
        let output = self.intercept(arguments);
        assert!(!output.status.success(), "intercept {arguments} should fail");
        String::from_utf8(output.stderr).unwrap()
    }

    fn leftovers(&self) -> String {
        let mut text = String::new();
        for tool in
            ["iptables-save", "ip6tables-save", "iptables-legacy-save", "ip6tables-legacy-save", "nft list ruleset"]
        {
            text.push_str(&String::from_utf8_lossy(
                &command(&format!("ip netns exec {} {tool}", self.workload)).stdout,
            ));
        }
        text.lines().filter(|line| line.to_lowercase().contains("outrigger")).collect()
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in [&self.workload, &self.peer] {
            command(&format!("ip netns del {name}"));
        }
    }
}

/// Who answers a connection or datagram from `namespace` to `host`: the first line.
fn answer(namespace: &str, uid: u32, protocol: &str, host: &str, port: u16) -> String {
    let script = format!("exec 3<>/dev/{protocol}/{host}/{port} && echo hello >&3 && timeout 5 head -n1 <&3");
    let output = Command::new("ip")
        .args(["netns", "exec", namespace, "setpriv", "--reuid", &uid.to_string(), "--clear-groups"])
        .args(["timeout", "5", "bash", "-c", &script])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The servers inside the workload's namespace; they end when dropped.
struct Servers(Child);

impl Servers {
    fn start(namespaces: &Namespaces) -> Self {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &namespaces.workload])
            .arg(env::current_exe().unwrap())
            .args(["--exact", "serve_inside", "--nocapture"])
            .env(SERVE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("serving")), "the servers did not start");
        Self(child)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// No test of its own: the proxy's and the application's place in the workload's namespace.
#[test]
fn serve_inside() {
    if env::var_os(SERVE).is_none() {
        return;
    }
    for (port, name) in
        [(15001, "outbound"), (15006, "inbound"), (8080, "application"), (9090, "excluded"), (15021, "ready")]
    {
        for address in
            [SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))]
        {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
            if address.is_ipv6() {
                socket.set_only_v6(true).unwrap();
            }
            socket.set_reuse_address(true).unwrap();
            socket.bind(&address.into()).unwrap();
            socket.listen(16).unwrap();
            thread::spawn(move || serve_tcp(&TcpListener::from(socket), name));
        }
    }
    for address in [SocketAddr::from((Ipv4Addr::LOCALHOST, 15053)), SocketAddr::from((Ipv6Addr::LOCALHOST, 15053))] {
        let socket = UdpSocket::bind(address).unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, client)) = socket.recv_from(&mut buffer) {
                socket.send_to(b"dns\n", client).unwrap();
            }
        });
    }
    println!("serving");
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// No test of its own: a proxy that is known by its mark.
#[test]
fn connect_marked_inside() {
    let Some(address) = env::var(CONNECT).ok().and_then(|address| address.parse::<SocketAddr>().ok()) else { return };
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_mark(1337).unwrap();
    socket.connect(&address.into()).unwrap();
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line).unwrap();
    println!("answer: {line}");
}

fn marked_answer(namespaces: &Namespaces, address: SocketAddr) -> String {
    let output = Command::new("ip")
        .args(["netns", "exec", &namespaces.workload])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "connect_marked_inside", "--nocapture"])
        .env(CONNECT, address.to_string())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find_map(|line| Some(line.split_once("answer: ")?.1.trim().to_owned())).unwrap_or(text)
}

fn serve_tcp(listener: &TcpListener, name: &str) {
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let socket = SockRef::from(&stream);
        let original = match stream.local_addr().unwrap() {
            SocketAddr::V4(_) => socket.original_dst_v4(),
            SocketAddr::V6(_) => socket.original_dst_v6(),
        };
        let original = original.ok().and_then(|address| address.as_socket());
        let answer = match original.filter(|_| matches!(name, "outbound" | "inbound")) {
            Some(original) => format!("{name} {original}\n"),
            None => format!("{name}\n"),
        };
        // In one piece: closing with bytes unread resets, and may overtake the rest of an answer.
        let _ = stream.write_all(answer.as_bytes());
    }
}

fn expect_traffic(namespaces: &Namespaces) {
    let (workload, peer) = (&namespaces.workload, &namespaces.peer);
    for (own, away, resolver, loopback) in
        [(WORKLOAD.0, ELSEWHERE.0, PEER.0, "127.0.0.1"), (WORKLOAD.1, ELSEWHERE.1, PEER.1, "::1")]
    {
        let address = |host: &str, port: u16| SocketAddr::new(host.parse().unwrap(), port).to_string();
        for (from, uid, host, port, expected) in [
            // What the application sends goes to the proxy, wherever to, itself included.
            (workload, 0, away, 80, format!("outbound {}", address(away, 80))),
            (workload, 1000, away, 443, format!("outbound {}", address(away, 443))),
            (workload, 0, own, 8080, format!("outbound {}", address(own, 8080))),
            // What the proxy sends does not, or it would loop.
            (workload, 1337, own, 8080, "application".to_owned()),
            // Neither does loopback, nor what was excluded.
            (workload, 0, loopback, 8080, "application".to_owned()),
            (workload, 0, own, 9090, "excluded".to_owned()),
            // What arrives goes to the proxy, except to its ports for operators.
            (peer, 0, own, 8080, format!("inbound {}", address(own, 8080))),
            (peer, 0, own, 7777, format!("inbound {}", address(own, 7777))),
            (peer, 0, own, 15001, format!("inbound {}", address(own, 15001))),
            (peer, 0, own, 15021, "ready".to_owned()),
            (peer, 0, own, 9090, "excluded".to_owned()),
        ] {
            assert_eq!(answer(from, uid, "tcp", host, port), expected, "uid {uid} to {host} {port}");
        }
        assert_eq!(answer(workload, 0, "udp", resolver, 53), "dns", "dns to {resolver}");
        assert_eq!(answer(workload, 1337, "udp", resolver, 53), "", "the proxy's own dns to {resolver}");
    }
}

#[test]
fn rules_redirect_what_they_should_and_leave_nothing_behind() {
    // The rules are the only thing between an application and the mesh: a hole leaks plaintext, a loop stops
    // everything, and a rest after removal cuts the machine off.
    let obstacle = obstacle().map_or_else(Namespaces::create, Err);
    let namespaces = match obstacle {
        Ok(namespaces) => namespaces,
        Err(why) => {
            assert!(env::var_os("OUTRIGGER_REQUIRE_NETNS").is_none_or(|value| value != "1"), "cannot test: {why}");
            println!("skipped: {why}");
            return;
        }
    };
    let workload = &namespaces.workload;
    for (tool, spoil, complaint) in [
        (
            "iptables",
            "ip6tables -t nat -D OUTRIGGER_OUTBOUND -d ::1/128 -j RETURN",
            "ip6tables: missing: -A OUTRIGGER_OUTBOUND -d ::1/128 -j RETURN",
        ),
        (
            "iptables-legacy",
            "iptables-legacy -t nat -D OUTPUT -j OUTRIGGER_OUTBOUND",
            "iptables-legacy: missing: -A OUTPUT -j OUTRIGGER_OUTBOUND",
        ),
        (
            "nft",
            "nft flush chain inet outrigger OUTRIGGER_INBOUND",
            "missing: chain OUTRIGGER_INBOUND: tcp dport 15000 return",
        ),
    ] {
        let rules = format!(
            "--tool {tool} --exclude-inbound-ports 9090 --exclude-outbound-ports 9090 --dns --dns-resolvers {},{}",
            PEER.0, PEER.1
        );
        assert!(namespaces.complaint(&format!("check {rules}")).contains("missing"), "{tool}");
        namespaces.intercept_well(&format!("apply {rules}"));
        namespaces.intercept_well(&format!("apply {rules}"));
        // A check with other arguments must speak of what is there, and not of a tool that nobody used.
        let said = namespaces.complaint("check --exclude-outbound-ports 1");
        assert!(said.contains("are in force, but not these") && said.contains("dport 1"), "{tool}: {said}");
        namespaces.intercept_well(&format!("check {rules} --connect"));
        {
            let _servers = Servers::start(&namespaces);
            expect_traffic(&namespaces);
            assert!(
                namespaces.complaint(&format!("check {rules} --connect")).contains("port 15001 is taken"),
                "{tool}"
            );
        }
        must(&format!("ip netns exec {workload} {spoil}"));
        let said = namespaces.complaint(&format!("check {rules}"));
        assert!(said.contains(complaint), "{tool}: {said}");
        namespaces.intercept_well(&format!("apply {rules}"));
        namespaces.intercept_well(&format!("check {rules}"));
    }
    // A proxy without a user of its own is known by its mark.
    for tool in ["iptables", "nft"] {
        let rules = format!("--tool {tool} --proxy-uid none --mark 1337");
        namespaces.intercept_well(&format!("apply {rules}"));
        namespaces.intercept_well(&format!("check {rules}"));
        namespaces.intercept_well("check --proxy-uid none --mark 0x539");
        let _servers = Servers::start(&namespaces);
        for host in [WORKLOAD.0, WORKLOAD.1] {
            let address = SocketAddr::new(host.parse().unwrap(), 8080);
            assert_eq!(marked_answer(&namespaces, address), "application", "{tool} {address}");
            assert_eq!(answer(workload, 1337, "tcp", host, 8080), format!("outbound {address}"), "{tool} {address}");
        }
    }
    // The last tool's rules stand alone: each `apply` took out those of the tool before.
    assert!(!must(&format!("ip netns exec {workload} iptables-legacy-save")).contains("OUTRIGGER"));
    namespaces.intercept_well("remove");
    namespaces.intercept_well("remove");
    assert_eq!(namespaces.leftovers(), "");
    let _servers = Servers::start(&namespaces);
    assert_eq!(answer(&namespaces.peer, 0, "tcp", WORKLOAD.0, 8080), "application");
    assert_eq!(answer(workload, 0, "tcp", WORKLOAD.1, 8080), "application");
}
