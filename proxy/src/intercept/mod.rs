//! Traffic of applications that do not know about us: redirect rules, the proof that they work, names as DNS.
//!
//! `outrigger-proxy intercept` and `outrigger intercept` run [`run`] once, in an init container or a unit's start; the
//! proxy itself only serves [`dns`].

pub mod apply;
pub mod dns;
pub mod rules;
pub mod validate;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Subcommand};
use ipnet::IpNet;

use self::{
    apply::{Tool, ToolChoice},
    rules::{DnsRedirect, Family, PortRange, RedirectRules},
    validate::Proof,
};

/// Arguments of `intercept`.
#[derive(Clone, Debug, Args)]
pub struct InterceptArgs {
    #[command(subcommand)]
    pub action: InterceptAction,
}

/// What to do with the redirect rules.
#[derive(Clone, Debug, Subcommand)]
pub enum InterceptAction {
    /// Put the rules in force (needs root or NET_ADMIN).
    Apply(RuleArgs),
    /// Compare what is in force with the rules, and say what is missing.
    Check(CheckArgs),
    /// Take out everything that `apply` put in force.
    Remove,
    /// Print the rules and change nothing.
    Print(RuleArgs),
}

/// Which rules.
#[derive(Clone, Debug, Args)]
pub struct RuleArgs {
    /// Tool to use.
    #[arg(long, value_enum, default_value_t)]
    pub tool: ToolChoice,
    /// Port of the proxy for what leaves the application.
    #[arg(long, default_value_t = 15001, value_name = "PORT")]
    pub outbound_port: u16,
    /// Port of the proxy for what comes to the application.
    #[arg(long, default_value_t = 15006, value_name = "PORT")]
    pub inbound_port: u16,
    /// User the proxy runs as; its connections are not redirected ("none": only --mark tells).
    #[arg(long, default_value = "1337", value_name = "UID", value_parser = uid)]
    pub proxy_uid: Uid,
    /// Mark of the proxy's connections, which are not redirected.
    #[arg(long, value_name = "NUMBER", value_parser = mark)]
    pub mark: Option<u32>,
    /// Redirect only these inbound ports (80,6000-6010).
    #[arg(long, value_delimiter = ',', value_name = "PORTS")]
    pub include_inbound_ports: Vec<PortRange>,
    /// Do not redirect these inbound ports.
    #[arg(long, value_delimiter = ',', value_name = "PORTS")]
    pub exclude_inbound_ports: Vec<PortRange>,
    /// Redirect only these outbound ports.
    #[arg(long, value_delimiter = ',', value_name = "PORTS")]
    pub include_outbound_ports: Vec<PortRange>,
    /// Do not redirect these outbound ports.
    #[arg(long, value_delimiter = ',', value_name = "PORTS")]
    pub exclude_outbound_ports: Vec<PortRange>,
    /// Redirect only connections to these addresses (10.0.0.0/8,fd00::/8).
    #[arg(long, value_delimiter = ',', value_name = "CIDRS", value_parser = cidr)]
    pub include_outbound_cidrs: Vec<IpNet>,
    /// Do not redirect connections to these addresses.
    #[arg(long, value_delimiter = ',', value_name = "CIDRS", value_parser = cidr)]
    pub exclude_outbound_cidrs: Vec<IpNet>,
    /// Redirect DNS to the proxy as well.
    #[arg(long)]
    pub dns: bool,
    /// Port of the proxy for DNS.
    #[arg(long, default_value_t = 15053, value_name = "PORT", requires = "dns")]
    pub dns_port: u16,
    /// Resolvers whose DNS is redirected; default: those of /etc/resolv.conf.
    #[arg(long, value_delimiter = ',', value_name = "ADDRESSES", requires = "dns")]
    pub dns_resolvers: Vec<IpAddr>,
    /// Redirect DNS to whatever resolver (not beside a caching resolver on this machine).
    #[arg(long, requires = "dns", conflicts_with = "dns_resolvers")]
    pub dns_all: bool,
    /// Leave IPv6 alone; it then goes around the mesh.
    #[arg(long)]
    pub no_ipv6: bool,
}

/// Which rules to expect, and whether to try them.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    pub rules: RuleArgs,
    /// Also prove that connections are redirected, before the proxy runs.
    #[arg(long)]
    pub connect: bool,
    /// Where to connect to for the proof; default: addresses where nothing answers, IPv4 and IPv6.
    #[arg(long, value_delimiter = ',', value_name = "ADDRESSES", requires = "connect")]
    pub connect_to: Vec<SocketAddr>,
    /// Longest wait for each proof, in seconds.
    #[arg(long, default_value_t = 10, value_name = "SECONDS", requires = "connect")]
    pub connect_timeout: u64,
}

/// A user, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uid(pub Option<u32>);

fn uid(text: &str) -> Result<Uid, String> {
    match text {
        "none" => Ok(Uid(None)),
        number => number.parse().map(|uid| Uid(Some(uid))).map_err(|_| "give a number, or none".to_owned()),
    }
}

fn mark(text: &str) -> Result<u32, String> {
    let number = text.strip_prefix("0x").map_or_else(|| text.parse(), |digits| u32::from_str_radix(digits, 16));
    number.map_err(|_| "give a number such as 1337 or 0x539".to_owned())
}

fn cidr(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| "give an address or a range such as 10.0.0.0/8".to_owned())
}

impl RuleArgs {
    fn rules(&self) -> Result<RedirectRules, String> {
        let dns = self.dns.then(|| DnsRedirect { port: self.dns_port, resolvers: self.dns_resolvers.clone() });
        let mut rules = RedirectRules {
            outbound_port: self.outbound_port,
            inbound_port: self.inbound_port,
            proxy_uid: self.proxy_uid.0,
            mark: self.mark,
            included_inbound_ports: self.include_inbound_ports.clone(),
            excluded_inbound_ports: self.exclude_inbound_ports.clone(),
            included_outbound_ports: self.include_outbound_ports.clone(),
            excluded_outbound_ports: self.exclude_outbound_ports.clone(),
            included_outbound_cidrs: self.include_outbound_cidrs.clone(),
            excluded_outbound_cidrs: self.exclude_outbound_cidrs.clone(),
            dns,
            ipv6: !self.no_ipv6,
        };
        if let Some(dns) = rules.dns.as_mut().filter(|dns| dns.resolvers.is_empty() && !self.dns_all) {
            dns.resolvers = dns::system_resolvers().iter().map(SocketAddr::ip).collect();
            if dns.resolvers.is_empty() {
                return Err("/etc/resolv.conf names no resolver whose DNS could be redirected (give --dns-resolvers, \
                            or --dns-all)"
                    .to_owned());
            }
        }
        rules.validate().map(|()| rules)
    }

    fn ipv6(&self) -> bool {
        !self.no_ipv6 && apply::has_ipv6()
    }
}

/// Does what the arguments say; prints data on standard output and messages on standard error.
pub fn run(args: InterceptArgs) -> ExitCode {
    let done = match args.action {
        InterceptAction::Apply(args) => put_in_force(&args),
        InterceptAction::Check(args) => check(&args),
        InterceptAction::Remove => {
            apply::remove().map(|()| eprintln!("redirect rules are removed")).map_err(|error| error.to_string())
        }
        InterceptAction::Print(args) => print(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn put_in_force(args: &RuleArgs) -> Result<(), String> {
    let rules = args.rules()?;
    let tool = apply::find_tool(args.tool).map_err(|error| error.to_string())?;
    let ipv6 = args.ipv6();
    apply::apply(&rules, tool, ipv6).map_err(|error| {
        let message = error.to_string();
        let hint = if message.contains("ip6tables") { " (to leave IPv6 alone, give --no-ipv6)" } else { "" };
        message + hint
    })?;
    eprintln!("redirect rules are in force ({})", described(tool, ipv6, args.no_ipv6));
    Ok(())
}

fn described(tool: Tool, ipv6: bool, left_alone: bool) -> String {
    let families = match (ipv6, left_alone) {
        (true, _) => "IPv4 and IPv6",
        (false, true) => "IPv4; IPv6 goes around the mesh",
        (false, false) => "IPv4; this machine has no IPv6",
    };
    format!("{}, {families}", tool.name())
}

fn check(args: &CheckArgs) -> Result<(), String> {
    let rules = args.rules.rules()?;
    let ipv6 = args.rules.ipv6();
    // Without a tool asked for, any may have put them in force: the one that holds something of ours is meant, and of
    // several the one that comes nearest.
    let mut nearest: Option<(Tool, bool, Vec<String>)> = None;
    for tool in apply::working_tools(args.rules.tool).map_err(|error| error.to_string())? {
        let present = apply::is_present(tool, ipv6).map_err(|error| error.to_string())?;
        let problems = apply::check(&rules, tool, ipv6).map_err(|error| error.to_string())?;
        let rank = |present: bool, problems: &[String]| (!present, problems.len());
        if nearest.as_ref().is_none_or(|(_, was, before)| rank(present, &problems) < rank(*was, before)) {
            nearest = Some((tool, present, problems));
        }
    }
    let Some((found, present, problems)) = nearest else {
        return Err("no tool for redirect rules works here".to_owned());
    };
    if !problems.is_empty() {
        let what = if present {
            "redirect rules are in force, but not these"
        } else {
            "no redirect rules of ours are in force"
        };
        return Err(format!("{what}:\n  {}\n(run intercept apply with the same arguments)", problems.join("\n  ")));
    }
    if args.connect {
        prove(args, &rules, ipv6)?;
    }
    eprintln!("redirect rules are in force ({})", described(found, ipv6, args.rules.no_ipv6));
    Ok(())
}

fn prove(args: &CheckArgs, rules: &RedirectRules, ipv6: bool) -> Result<(), String> {
    if rules.proxy_uid == Some(rustix::process::geteuid().as_raw()) {
        return Err(
            "the proof must not run as the proxy's user, whose connections are let through (run it as another \
                    user)"
                .to_owned(),
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start the proof: {error}"))?;
    let targets: Vec<SocketAddr> = if args.connect_to.is_empty() {
        validate::NOWHERE.into_iter().filter(|target| target.is_ipv4() || ipv6).collect()
    } else {
        args.connect_to.clone()
    };
    let mut proved = false;
    for target in targets {
        let limit = Duration::from_secs(args.connect_timeout);
        match runtime.block_on(validate::prove(rules.outbound_port, target, limit)) {
            Ok(Proof::Intercepted) => {
                eprintln!("a connection to {target} was redirected");
                proved = true;
            }
            Ok(Proof::NoRoute) => eprintln!("nothing can connect to {target}: there is no route"),
            Ok(Proof::Escaped(how)) => {
                return Err(format!(
                    "a connection to {target} was not redirected to port {}: {how}",
                    rules.outbound_port
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(format!(
                    "port {} is taken, probably by the proxy (run the proof before the proxy starts)",
                    rules.outbound_port
                ));
            }
            Err(error) => return Err(format!("cannot listen on port {}: {error}", rules.outbound_port)),
        }
    }
    if proved { Ok(()) } else { Err("no connection could be tried: there is no route to anywhere".to_owned()) }
}

fn print(args: &RuleArgs) -> Result<(), String> {
    let rules = args.rules()?;
    let tool = if args.tool == ToolChoice::Auto {
        apply::find_tool(ToolChoice::Auto).unwrap_or(Tool::Nft)
    } else {
        args.tool.first()
    };
    match tool {
        Tool::Nft => print!("# nft -f -\n{}", rules.nft()),
        Tool::Iptables { v4, v6 } => {
            print!("# {v4}-restore --noflush\n{}", rules.iptables(Family::V4, &[]));
            if !args.no_ipv6 {
                print!("# {v6}-restore --noflush\n{}", rules.iptables(Family::V6, &[]));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: InterceptArgs,
    }

    #[test]
    fn arguments_become_rules() {
        // Annotations and units are written against these names.
        let line = "x print --tool nft --proxy-uid none --mark 0x539 --exclude-inbound-ports 22,6000-6010 \
                    --exclude-outbound-cidrs 10.0.0.0/8,fd00::1 --dns --dns-resolvers 10.0.0.10 --no-ipv6";
        let parsed = Command::try_parse_from(line.split_whitespace()).unwrap();
        let InterceptAction::Print(args) = parsed.args.action else { panic!("another action") };
        let rules = args.rules().unwrap();
        assert_eq!((rules.proxy_uid, rules.mark), (None, Some(1337)));
        assert_eq!(rules.excluded_inbound_ports.len(), 2);
        assert_eq!(rules.excluded_outbound_cidrs, [cidr("10.0.0.0/8").unwrap(), cidr("fd00::1").unwrap()]);
        assert_eq!(rules.dns.unwrap().resolvers, ["10.0.0.10".parse::<IpAddr>().unwrap()]);
        for bad in [
            "x apply --proxy-uid root",
            "x apply --mark many",
            "x apply --exclude-inbound-ports 0",
            "x apply --exclude-outbound-cidrs 10.0.0.0/33",
            "x apply --dns-all",
            "x check --connect-to 1.2.3.4:5",
        ] {
            assert!(Command::try_parse_from(bad.split_whitespace()).is_err(), "{bad}");
        }
    }
}
