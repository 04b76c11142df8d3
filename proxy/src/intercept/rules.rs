//! Which traffic is redirected to the proxy, as rules for iptables and nft. Pure.
//!
//! `apply` hands the text to the tools; nothing here runs anything. Of what the application sends, everything goes to
//! the outbound port except: what the proxy itself sends (by user id or mark, or a connection would loop for ever),
//! loopback, and what the user excluded. Of what arrives, everything goes to the inbound port except the proxy's
//! ports for operators. A connection from the application to its own address passes the proxy like any other.
//!
//! TCP only, and DNS over UDP where asked; other UDP and ICMP pass untouched.

use std::{fmt, fmt::Write as _, net::IpAddr, str::FromStr};

use ipnet::IpNet;

/// Chain for what arrives.
pub const INBOUND_CHAIN: &str = "OUTRIGGER_INBOUND";
/// Chain for what leaves.
pub const OUTBOUND_CHAIN: &str = "OUTRIGGER_OUTBOUND";
/// nft's table, of family inet.
pub const NFT_TABLE: &str = "outrigger";

/// Ports of the proxy that nobody should reach through itself: admin, metrics, readiness, DNS.
///
/// The two redirect ports are not among them: who connects to those from outside is redirected to the inbound port,
/// where the proxy sees its own address as destination and refuses.
const OPERATOR_PORTS: [u16; 3] = [15000, 15020, 15021];

/// What to redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectRules {
    /// Where outbound connections go. Default 15001.
    pub outbound_port: u16,
    /// Where inbound connections go. Default 15006.
    pub inbound_port: u16,
    /// User of the proxy, whose traffic passes. Default 1337; `None`: the mark alone tells.
    pub proxy_uid: Option<u32>,
    /// Mark of the proxy's sockets, whose traffic passes; `None`: the user alone tells.
    pub mark: Option<u32>,
    /// Inbound ports to redirect; empty: all.
    pub included_inbound_ports: Vec<PortRange>,
    /// Inbound ports that pass, beside the proxy's own for operators.
    pub excluded_inbound_ports: Vec<PortRange>,
    /// Outbound ports to redirect; empty: all.
    pub included_outbound_ports: Vec<PortRange>,
    /// Outbound ports that pass.
    pub excluded_outbound_ports: Vec<PortRange>,
    /// Destinations to redirect; empty: all.
    pub included_outbound_cidrs: Vec<IpNet>,
    /// Destinations that pass.
    pub excluded_outbound_cidrs: Vec<IpNet>,
    /// `None`: DNS is not redirected.
    pub dns: Option<DnsRedirect>,
    /// Default true; without it IPv6 goes around the mesh.
    pub ipv6: bool,
}

/// Redirection of DNS, UDP and TCP port 53.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsRedirect {
    /// Where the proxy answers. Default 15053.
    pub port: u16,
    /// Resolvers whose traffic is redirected; empty: all. A caching resolver on this machine must not be caught
    /// when it asks its own upstreams, or it would ask itself.
    pub resolvers: Vec<IpAddr>,
}

impl Default for RedirectRules {
    fn default() -> Self {
        Self {
            outbound_port: 15001,
            inbound_port: 15006,
            proxy_uid: Some(1337),
            mark: None,
            included_inbound_ports: Vec::new(),
            excluded_inbound_ports: Vec::new(),
            included_outbound_ports: Vec::new(),
            excluded_outbound_ports: Vec::new(),
            included_outbound_cidrs: Vec::new(),
            excluded_outbound_cidrs: Vec::new(),
            dns: None,
            ipv6: true,
        }
    }
}

/// One port, or several in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl From<u16> for PortRange {
    fn from(port: u16) -> Self {
        Self { first: port, last: port }
    }
}

impl FromStr for PortRange {
    type Err = String;

    /// Reads "80" or "6000-6010".
    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |part: &str| part.trim().parse::<u16>().ok().filter(|port| *port > 0);
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(format!("{text:?} is no port and no range of ports (write 80, or 6000-6010)")),
        }
    }
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    const fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chain {
    Inbound,
    Outbound,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Leave it alone.
    Pass,
    Redirect(u16),
}

/// One rule, in no tool's language yet. Unset conditions always hold.
#[derive(Clone, Copy, Debug)]
struct Rule {
    chain: Chain,
    to: Option<IpNet>,
    transport: Option<Transport>,
    ports: Option<PortRange>,
    uid: Option<u32>,
    mark: Option<u32>,
    verdict: Verdict,
}

impl Rule {
    const fn pass(chain: Chain) -> Self {
        Self { chain, to: None, transport: None, ports: None, uid: None, mark: None, verdict: Verdict::Pass }
    }

    const fn redirect(chain: Chain, transport: Transport, port: u16) -> Self {
        Self { transport: Some(transport), verdict: Verdict::Redirect(port), ..Self::pass(chain) }
    }

    const fn tcp(self, ports: PortRange) -> Self {
        Self { transport: Some(Transport::Tcp), ports: Some(ports), ..self }
    }

    fn is_for(&self, family: Family) -> bool {
        self.to.is_none_or(|to| Family::of(to.addr()) == family)
    }

    /// As `iptables-save` prints it, so that what is in force can be compared.
    fn iptables(&self) -> String {
        let chain = match self.chain {
            Chain::Inbound => INBOUND_CHAIN,
            Chain::Outbound => OUTBOUND_CHAIN,
        };
        let mut text = format!("-A {chain}");
        if let Some(to) = self.to {
            let _ = write!(text, " -d {to}");
        }
        if let Some(transport) = self.transport {
            let _ = write!(text, " -p {}", transport.word());
        }
        if let (Some(transport), Some(ports)) = (self.transport, self.ports) {
            let _ = write!(text, " -m {} --dport {}", transport.word(), Joined(ports, ':'));
        }
        if let Some(uid) = self.uid {
            let _ = write!(text, " -m owner --uid-owner {uid}");
        }
        if let Some(mark) = self.mark {
            let _ = write!(text, " -m mark --mark {mark:#x}");
        }
        match self.verdict {
            Verdict::Pass => text.push_str(" -j RETURN"),
            Verdict::Redirect(port) => {
                let _ = write!(text, " -j REDIRECT --to-ports {port}");
            }
        }
        text
    }

    fn nft(&self) -> String {
        let mut words = Vec::new();
        if let Some(to) = self.to {
            let family = match Family::of(to.addr()) {
                Family::V4 => "ip",
                Family::V6 => "ip6",
            };
            words.push(format!("{family} daddr {to}"));
        }
        match (self.transport, self.ports) {
            (Some(transport), Some(ports)) => words.push(format!("{} dport {}", transport.word(), Joined(ports, '-'))),
            (Some(transport), None) => words.push(format!("meta l4proto {}", transport.word())),
            (None, _) => {}
        }
        if let Some(uid) = self.uid {
            words.push(format!("meta skuid {uid}"));
        }
        if let Some(mark) = self.mark {
            words.push(format!("meta mark {mark:#x}"));
        }
        words.push(match self.verdict {
            Verdict::Pass => "return".to_owned(),
            Verdict::Redirect(port) => format!("redirect to :{port}"),
        });
        words.join(" ")
    }
}

/// A range as the tools write it.
struct Joined(PortRange, char);

impl fmt::Display for Joined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.first == self.0.last {
            write!(f, "{}", self.0.first)
        } else {
            write!(f, "{}{}{}", self.0.first, self.1, self.0.last)
        }
    }
}

impl RedirectRules {
    /// Whether the rules make sense.
    ///
    /// # Errors
    /// What is wrong, and the smallest fix.
    pub fn validate(&self) -> Result<(), String> {
        if self.proxy_uid.is_none() && self.mark.is_none() {
            return Err("neither the proxy's user nor its mark is known, so its own connections would be redirected \
                        to it for ever (give --proxy-uid or --mark)"
                .to_owned());
        }
        if self.mark == Some(0) {
            return Err("mark 0 is the mark of everything (give another to --mark)".to_owned());
        }
        let mut ports = vec![("--outbound-port", self.outbound_port), ("--inbound-port", self.inbound_port)];
        ports.extend(self.dns.iter().map(|dns| ("--dns-port", dns.port)));
        for (index, (name, port)) in ports.iter().enumerate() {
            if *port == 0 {
                return Err(format!("{name} is 0 (give the port the proxy listens on)"));
            }
            if let Some((other, _)) = ports.iter().skip(index + 1).find(|(_, other)| other == port) {
                return Err(format!("{name} and {other} are both {port} (each needs a port of its own)"));
            }
        }
        Ok(())
    }

    fn rules(&self) -> Vec<Rule> {
        let mut rules = Vec::new();

        let inbound = Rule::pass(Chain::Inbound);
        let own = OPERATOR_PORTS.into_iter().chain([self.dns.as_ref().map_or(15053, |dns| dns.port)]);
        rules.extend(own.map(|port| inbound.tcp(port.into())));
        rules.extend(self.excluded_inbound_ports.iter().map(|ports| inbound.tcp(*ports)));
        let redirect = Rule::redirect(Chain::Inbound, Transport::Tcp, self.inbound_port);
        if self.included_inbound_ports.is_empty() {
            rules.push(redirect);
        }
        rules.extend(self.included_inbound_ports.iter().map(|ports| redirect.tcp(*ports)));

        // First of all what the proxy itself sends, or its first connection would come back to it.
        let outbound = Rule::pass(Chain::Outbound);
        rules.extend(self.proxy_uid.map(|uid| Rule { uid: Some(uid), ..outbound }));
        rules.extend(self.mark.map(|mark| Rule { mark: Some(mark), ..outbound }));
        // DNS before loopback: a resolver of this machine often listens there.
        if let Some(dns) = &self.dns {
            for transport in [Transport::Udp, Transport::Tcp] {
                let redirect = Rule { ports: Some(53.into()), ..Rule::redirect(Chain::Outbound, transport, dns.port) };
                if dns.resolvers.is_empty() {
                    rules.push(redirect);
                }
                rules.extend(dns.resolvers.iter().map(|resolver| Rule { to: Some((*resolver).into()), ..redirect }));
            }
        }
        for loopback in
            [IpNet::new_assert([127, 0, 0, 0].into(), 8), IpNet::from(IpAddr::from(std::net::Ipv6Addr::LOCALHOST))]
        {
            rules.push(Rule { to: Some(loopback), ..outbound });
        }
        rules.extend(self.excluded_outbound_ports.iter().map(|ports| outbound.tcp(*ports)));
        rules.extend(self.excluded_outbound_cidrs.iter().map(|to| Rule { to: Some(to.trunc()), ..outbound }));
        let redirect = Rule::redirect(Chain::Outbound, Transport::Tcp, self.outbound_port);
        let mut destinations: Vec<Option<IpNet>> =
            self.included_outbound_cidrs.iter().map(|to| Some(to.trunc())).collect();
        if destinations.is_empty() {
            destinations.push(None);
        }
        for to in destinations {
            let redirect = Rule { to, ..redirect };
            if self.included_outbound_ports.is_empty() {
                rules.push(redirect);
            }
            rules.extend(self.included_outbound_ports.iter().map(|ports| redirect.tcp(*ports)));
        }
        rules
    }

    /// The lines `iptables-save` must show for one chain, in order.
    pub fn iptables_chain(&self, family: Family, chain: &str) -> Vec<String> {
        let prefix = format!("-A {chain} ");
        let rules = self.rules();
        let lines = rules.iter().filter(|rule| rule.is_for(family)).map(Rule::iptables);
        lines.filter(|line| line.starts_with(&prefix)).collect()
    }

    /// Input for `iptables-restore --noflush` (or `ip6tables-restore`): one transaction that makes our chains anew.
    ///
    /// `present` are the jumps to our chains that are in force already, as [`JUMPS`] or more than once; they are taken
    /// out first, so that applying twice is applying once.
    pub fn iptables(&self, family: Family, present: &[String]) -> String {
        let mut text = String::from("*nat\n");
        for chain in [INBOUND_CHAIN, OUTBOUND_CHAIN] {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        for jump in present {
            let _ = writeln!(text, "{}", deleted(jump));
        }
        for chain in [INBOUND_CHAIN, OUTBOUND_CHAIN] {
            for line in self.iptables_chain(family, chain) {
                let _ = writeln!(text, "{line}");
            }
        }
        for jump in JUMPS {
            let _ = writeln!(text, "{jump}");
        }
        text.push_str("COMMIT\n");
        text
    }

    /// The rules of one chain of nft's table, which is for both families.
    fn nft_chain(&self, chain: Chain) -> Vec<String> {
        let mut rules = Vec::new();
        if !self.ipv6 {
            rules.push("meta nfproto ipv6 return".to_owned());
        }
        rules.extend(self.rules().iter().filter(|rule| rule.chain == chain).map(Rule::nft));
        rules
    }

    /// One script for `nft -f -` that makes our table anew, atomically.
    pub fn nft(&self) -> String {
        let mut text =
            format!("add table inet {NFT_TABLE}\ndelete table inet {NFT_TABLE}\ntable inet {NFT_TABLE} {{\n");
        for (name, chain, hook) in
            [(INBOUND_CHAIN, Chain::Inbound, "prerouting"), (OUTBOUND_CHAIN, Chain::Outbound, "output")]
        {
            let _ = writeln!(text, "\tchain {name} {{\n\t\t{}", nft_hook(hook));
            for rule in self.nft_chain(chain) {
                let _ = writeln!(text, "\t\t{rule} comment \"{}\"", nft_tag(name, &rule));
            }
            text.push_str("\t}\n");
        }
        text.push_str("}\n");
        text
    }

    /// What `nft list table` must show: a text to look for, and the rule it stands for.
    pub fn nft_expected(&self) -> Vec<(String, String)> {
        let mut expected = Vec::new();
        for (name, chain, hook) in
            [(INBOUND_CHAIN, Chain::Inbound, "prerouting"), (OUTBOUND_CHAIN, Chain::Outbound, "output")]
        {
            expected.push((format!("hook {hook}"), format!("chain {name}: {}", nft_hook(hook))));
            for rule in self.nft_chain(chain) {
                expected.push((nft_tag(name, &rule), format!("chain {name}: {rule}")));
            }
        }
        expected
    }
}

/// The jumps to our chains, as `iptables-save` prints them.
pub const JUMPS: [&str; 2] = ["-A PREROUTING -p tcp -j OUTRIGGER_INBOUND", "-A OUTPUT -j OUTRIGGER_OUTBOUND"];

/// Input for `iptables-restore --noflush` that takes out the given jumps and our chains, all of which must exist.
pub fn iptables_removal(jumps: &[String], chains: &[&str]) -> String {
    let mut text = String::from("*nat\n");
    for jump in jumps {
        let _ = writeln!(text, "{}", deleted(jump));
    }
    for chain in chains {
        let _ = writeln!(text, "-F {chain}");
    }
    for chain in chains {
        let _ = writeln!(text, "-X {chain}");
    }
    text.push_str("COMMIT\n");
    text
}

fn deleted(rule: &str) -> String {
    rule.replacen("-A ", "-D ", 1)
}

/// A script for `nft -f -` that leaves nothing of ours, whether or not there was something.
pub fn nft_removal() -> String {
    format!("add table inet {NFT_TABLE}\ndelete table inet {NFT_TABLE}\n")
}

/// -100 is "dstnat", a name that old versions know for prerouting only.
fn nft_hook(hook: &str) -> String {
    format!("type nat hook {hook} priority -100; policy accept;")
}

/// A comment that names the rule by its content: versions of nft print rules differently, but comments as they were.
fn nft_tag(chain: &str, rule: &str) -> String {
    // FNV-1a; nothing but equality is asked of it.
    let bytes = chain.bytes().chain([b' ']).chain(rule.bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("outrigger {hash:016x}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full() -> RedirectRules {
        RedirectRules {
            mark: Some(1337),
            excluded_inbound_ports: vec![22.into()],
            excluded_outbound_ports: vec![PortRange { first: 6000, last: 6010 }],
            excluded_outbound_cidrs: vec!["10.9.8.7/16".parse().unwrap(), "2001:db8:1::/48".parse().unwrap()],
            dns: Some(DnsRedirect {
                port: 15053,
                resolvers: vec!["127.0.0.53".parse().unwrap(), "fd00::a".parse().unwrap()],
            }),
            ..RedirectRules::default()
        }
    }

    #[test]
    fn default_rules_for_iptables() {
        // The whole of a default installation; a missing line loops, leaks or locks out operators.
        let expected = "\
*nat
:OUTRIGGER_INBOUND - [0:0]
:OUTRIGGER_OUTBOUND - [0:0]
-A OUTRIGGER_INBOUND -p tcp -m tcp --dport 15000 -j RETURN
-A OUTRIGGER_INBOUND -p tcp -m tcp --dport 15020 -j RETURN
-A OUTRIGGER_INBOUND -p tcp -m tcp --dport 15021 -j RETURN
-A OUTRIGGER_INBOUND -p tcp -m tcp --dport 15053 -j RETURN
-A OUTRIGGER_INBOUND -p tcp -j REDIRECT --to-ports 15006
-A OUTRIGGER_OUTBOUND -m owner --uid-owner 1337 -j RETURN
-A OUTRIGGER_OUTBOUND -d 127.0.0.0/8 -j RETURN
-A OUTRIGGER_OUTBOUND -p tcp -j REDIRECT --to-ports 15001
-A PREROUTING -p tcp -j OUTRIGGER_INBOUND
-A OUTPUT -j OUTRIGGER_OUTBOUND
COMMIT
";
        assert_eq!(RedirectRules::default().iptables(Family::V4, &[]), expected);
        let v6 = expected.replace("127.0.0.0/8", "::1/128");
        assert_eq!(RedirectRules::default().iptables(Family::V6, &[]), v6);
    }

    #[test]
    fn applying_again_takes_out_the_old_jumps() {
        // Otherwise every restart of an init container would leave one more jump.
        let present = vec![JUMPS[1].to_owned(), JUMPS[1].to_owned()];
        let text = RedirectRules::default().iptables(Family::V4, &present);
        assert_eq!(text.matches("-D OUTPUT -j OUTRIGGER_OUTBOUND\n").count(), 2);
        assert_eq!(text.matches("-A OUTPUT -j OUTRIGGER_OUTBOUND\n").count(), 1);
        assert!(!text.contains("-D PREROUTING"));
        assert_eq!(
            iptables_removal(&present[..1], &[OUTBOUND_CHAIN]),
            "*nat\n-D OUTPUT -j OUTRIGGER_OUTBOUND\n-F OUTRIGGER_OUTBOUND\n-X OUTRIGGER_OUTBOUND\nCOMMIT\n"
        );
    }

    #[test]
    fn everything_asked_for_is_in_the_rules() {
        // Exclusions and DNS, per family; an address of the wrong family makes ip6tables refuse everything.
        assert_eq!(
            full().iptables_chain(Family::V4, OUTBOUND_CHAIN),
            [
                "-A OUTRIGGER_OUTBOUND -m owner --uid-owner 1337 -j RETURN",
                "-A OUTRIGGER_OUTBOUND -m mark --mark 0x539 -j RETURN",
                "-A OUTRIGGER_OUTBOUND -d 127.0.0.53/32 -p udp -m udp --dport 53 -j REDIRECT --to-ports 15053",
                "-A OUTRIGGER_OUTBOUND -d 127.0.0.53/32 -p tcp -m tcp --dport 53 -j REDIRECT --to-ports 15053",
                "-A OUTRIGGER_OUTBOUND -d 127.0.0.0/8 -j RETURN",
                "-A OUTRIGGER_OUTBOUND -p tcp -m tcp --dport 6000:6010 -j RETURN",
                "-A OUTRIGGER_OUTBOUND -d 10.9.0.0/16 -j RETURN",
                "-A OUTRIGGER_OUTBOUND -p tcp -j REDIRECT --to-ports 15001",
            ]
        );
        let v6 = full().iptables_chain(Family::V6, OUTBOUND_CHAIN);
        assert!(v6.contains(
            &"-A OUTRIGGER_OUTBOUND -d fd00::a/128 -p udp -m udp --dport 53 -j REDIRECT --to-ports 15053".to_owned()
        ));
        assert!(v6.contains(&"-A OUTRIGGER_OUTBOUND -d 2001:db8:1::/48 -j RETURN".to_owned()));
        assert!(v6.iter().all(|line| !line.contains("10.9") && !line.contains("127.")));
        let inbound = full().iptables_chain(Family::V4, INBOUND_CHAIN);
        assert!(inbound.contains(&"-A OUTRIGGER_INBOUND -p tcp -m tcp --dport 22 -j RETURN".to_owned()));
    }

    #[test]
    fn included_ports_and_destinations_limit_the_redirect() {
        // "Only these" must not end in a rule that redirects everything.
        let rules = RedirectRules {
            included_inbound_ports: vec![8080.into()],
            included_outbound_ports: vec![80.into(), 443.into()],
            included_outbound_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
            ..RedirectRules::default()
        };
        let v4 = rules.iptables(Family::V4, &[]);
        assert!(v4.contains("-A OUTRIGGER_INBOUND -p tcp -m tcp --dport 8080 -j REDIRECT --to-ports 15006\n"));
        assert!(
            v4.contains("-A OUTRIGGER_OUTBOUND -d 10.0.0.0/8 -p tcp -m tcp --dport 443 -j REDIRECT --to-ports 15001\n")
        );
        assert!(!v4.contains("-p tcp -j REDIRECT"));
        assert!(!rules.iptables_chain(Family::V6, OUTBOUND_CHAIN).iter().any(|line| line.contains("REDIRECT")));
    }

    #[test]
    fn rules_for_nft() {
        // One table for both families, replaced in one transaction.
        let script = full().nft();
        let without_tags: Vec<&str> =
            script.lines().map(|line| line.split(" comment ").next().unwrap().trim()).collect();
        assert_eq!(
            without_tags,
            [
                "add table inet outrigger",
                "delete table inet outrigger",
                "table inet outrigger {",
                "chain OUTRIGGER_INBOUND {",
                "type nat hook prerouting priority -100; policy accept;",
                "tcp dport 15000 return",
                "tcp dport 15020 return",
                "tcp dport 15021 return",
                "tcp dport 15053 return",
                "tcp dport 22 return",
                "meta l4proto tcp redirect to :15006",
                "}",
                "chain OUTRIGGER_OUTBOUND {",
                "type nat hook output priority -100; policy accept;",
                "meta skuid 1337 return",
                "meta mark 0x539 return",
                "ip daddr 127.0.0.53/32 udp dport 53 redirect to :15053",
                "ip6 daddr fd00::a/128 udp dport 53 redirect to :15053",
                "ip daddr 127.0.0.53/32 tcp dport 53 redirect to :15053",
                "ip6 daddr fd00::a/128 tcp dport 53 redirect to :15053",
                "ip daddr 127.0.0.0/8 return",
                "ip6 daddr ::1/128 return",
                "tcp dport 6000-6010 return",
                "ip daddr 10.9.0.0/16 return",
                "ip6 daddr 2001:db8:1::/48 return",
                "meta l4proto tcp redirect to :15001",
                "}",
                "}",
            ]
        );
        let v4_only = RedirectRules { ipv6: false, ..RedirectRules::default() }.nft();
        assert_eq!(v4_only.matches("meta nfproto ipv6 return").count(), 2);
        for (text, rule) in full().nft_expected() {
            assert!(script.contains(&text), "{rule}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_fix() {
        // Rules that loop or collide would cut the machine off.
        let cases = [
            (RedirectRules { proxy_uid: None, ..RedirectRules::default() }, "--proxy-uid"),
            (RedirectRules { mark: Some(0), ..RedirectRules::default() }, "--mark"),
            (RedirectRules { outbound_port: 0, ..RedirectRules::default() }, "--outbound-port is 0"),
            (RedirectRules { outbound_port: 15006, ..RedirectRules::default() }, "both 15006"),
            (
                RedirectRules {
                    dns: Some(DnsRedirect { port: 15001, resolvers: Vec::new() }),
                    ..RedirectRules::default()
                },
                "--dns-port",
            ),
        ];
        for (rules, words) in cases {
            assert!(rules.validate().unwrap_err().contains(words), "{words}");
        }
        assert_eq!(RedirectRules::default().validate(), Ok(()));
        for bad in ["", "0", "65536", "9-8", "a", "1-", "-1", "1-2-3"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
        assert_eq!("6000-6010".parse::<PortRange>().unwrap(), PortRange { first: 6000, last: 6010 });
    }

    proptest! {
        #[test]
        fn the_proxys_own_traffic_passes_before_anything_is_redirected(
            uid in proptest::option::of(any::<u32>()),
            mark in 1..u32::MAX,
            ports in proptest::collection::vec(1..u16::MAX, 0..4),
            dns in any::<bool>(),
        ) {
            // A redirect in front of the exemption is an endless loop of the proxy with itself.
            let rules = RedirectRules {
                proxy_uid: uid,
                mark: Some(mark),
                included_outbound_ports: ports.iter().map(|port| (*port).into()).collect(),
                dns: dns.then_some(DnsRedirect { port: 15053, resolvers: Vec::new() }),
                ..RedirectRules::default()
            };
            for family in [Family::V4, Family::V6] {
                let lines = rules.iptables_chain(family, OUTBOUND_CHAIN);
                let first_redirect = lines.iter().position(|line| line.contains("REDIRECT")).unwrap();
                let exemptions = lines.iter().filter(|line| line.contains("-m owner") || line.contains("-m mark"));
                prop_assert_eq!(exemptions.count(), 1 + usize::from(uid.is_some()));
                let last = lines.iter().rposition(|line| line.contains("-m owner") || line.contains("-m mark")).unwrap();
                prop_assert!(last < first_redirect);
            }
        }
    }
}
