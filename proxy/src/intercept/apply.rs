//! Puts redirect rules into the kernel, compares them with what is there, takes them out.
//!
//! Runs the machine's own tools: iptables (over nf_tables or legacy) or nft. Called by `intercept` only; what the rules
//! are is decided in `rules`. Each family is one transaction, and a half-done pair is taken back.

use std::{
    io::{self, Write},
    process::{Command, Stdio},
};

use super::rules::{self, Family, INBOUND_CHAIN, JUMPS, NFT_TABLE, OUTBOUND_CHAIN, RedirectRules};

/// Which tool to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ToolChoice {
    /// The first that works: iptables, iptables-legacy, iptables-nft, nft.
    #[default]
    Auto,
    /// iptables, as this machine has it (over nf_tables or legacy).
    Iptables,
    IptablesLegacy,
    IptablesNft,
    Nft,
}

/// A tool that was found to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// iptables under one of its names, with the name for IPv6.
    Iptables {
        v4: &'static str,
        v6: &'static str,
    },
    Nft,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Backend {
    Legacy,
    NfTables,
    /// A table of nft's own.
    Table,
}

const IPTABLES: Tool = Tool::Iptables { v4: "iptables", v6: "ip6tables" };
const IPTABLES_LEGACY: Tool = Tool::Iptables { v4: "iptables-legacy", v6: "ip6tables-legacy" };
const IPTABLES_NFT: Tool = Tool::Iptables { v4: "iptables-nft", v6: "ip6tables-nft" };

impl ToolChoice {
    /// The tool as chosen, whether it works here or not; for `Auto` the first.
    pub fn first(self) -> Tool {
        self.candidates().first().copied().unwrap_or(Tool::Nft)
    }

    const fn candidates(self) -> &'static [Tool] {
        match self {
            Self::Auto => &[IPTABLES, IPTABLES_LEGACY, IPTABLES_NFT, Tool::Nft],
            Self::Iptables => &[IPTABLES],
            Self::IptablesLegacy => &[IPTABLES_LEGACY],
            Self::IptablesNft => &[IPTABLES_NFT],
            Self::Nft => &[Tool::Nft],
        }
    }
}

impl Tool {
    /// The name people know it by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Iptables { v4, .. } => v4,
            Self::Nft => "nft",
        }
    }

    /// Whether it is there and may read its rules.
    fn probe(self) -> Result<String, ApplyError> {
        match self {
            Self::Iptables { v4, .. } => run(&format!("{v4}-save"), &["-t", "nat"], None),
            Self::Nft => run("nft", &["list", "tables"], None),
        }
    }

    /// Where its rules live in the kernel: two names of iptables may mean the same place.
    fn backend(self) -> Backend {
        match self {
            Self::Nft => Backend::Table,
            IPTABLES_LEGACY => Backend::Legacy,
            IPTABLES_NFT => Backend::NfTables,
            Self::Iptables { v4, .. } => match run(v4, &["--version"], None) {
                Ok(version) if version.contains("nf_tables") => Backend::NfTables,
                _ => Backend::Legacy,
            },
        }
    }

    fn families(self, ipv6: bool) -> Vec<(Family, &'static str)> {
        match self {
            Self::Iptables { v4, v6 } if ipv6 => vec![(Family::V4, v4), (Family::V6, v6)],
            Self::Iptables { v4, .. } => vec![(Family::V4, v4)],
            Self::Nft => Vec::new(),
        }
    }
}

/// What went wrong with a tool.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("no tool for redirect rules works here:\n{tried}")]
    NoTool { tried: String },
    #[error("changing redirect rules is not permitted (run as root, or give the container the capability NET_ADMIN)")]
    NotPermitted,
    #[error("cannot run {command}: not installed (install the package {package})")]
    Missing { command: String, package: &'static str },
    #[error("{command} failed: {message}")]
    Failed { command: String, message: String },
    #[error("cannot run {command}: {source}")]
    Run { command: String, source: io::Error },
}

/// Whether this network namespace can have IPv6. An interface may get an address later, so what counts is whether the
/// kernel allows it, not whether there is one now.
pub fn has_ipv6() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6").is_ok_and(|disabled| disabled.trim() != "1")
}

/// The tool to use: the first of the choice that can read its rules.
///
/// # Errors
/// Why each of them cannot.
pub fn find_tool(choice: ToolChoice) -> Result<Tool, ApplyError> {
    let mut tried = Vec::new();
    let mut last = None;
    for tool in choice.candidates() {
        match tool.probe() {
            Ok(_) => return Ok(*tool),
            // What one tool may not do, the others may not either.
            Err(ApplyError::NotPermitted) => return Err(ApplyError::NotPermitted),
            Err(error) => {
                tried.push(format!("  {error}"));
                last = Some(error);
            }
        }
    }
    match last {
        Some(error) if tried.len() == 1 => Err(error),
        _ => Err(ApplyError::NoTool { tried: tried.join("\n") }),
    }
}

/// The tools of the choice that work, in order; for asking each what it holds.
///
/// # Errors
/// Why none works.
pub fn working_tools(choice: ToolChoice) -> Result<Vec<Tool>, ApplyError> {
    let first = find_tool(choice)?;
    let others = choice.candidates().iter().copied().skip_while(|tool| *tool != first).skip(1);
    Ok(std::iter::once(first).chain(others.filter(|tool| tool.probe().is_ok())).collect())
}

/// Makes the rules be in force, whatever of ours was there before, with any tool.
///
/// # Errors
/// When the tool refuses; then nothing of ours is left.
pub fn apply(rules: &RedirectRules, tool: Tool, ipv6: bool) -> Result<(), ApplyError> {
    put(rules, tool, ipv6)?;
    // Rules that another tool left would catch connections with other settings. They go last, so that there is no
    // moment without rules.
    let backend = tool.backend();
    for other in ToolChoice::Auto.candidates().iter().filter(|other| other.backend() != backend) {
        remove_with(*other)?;
    }
    Ok(())
}

fn put(rules: &RedirectRules, tool: Tool, ipv6: bool) -> Result<(), ApplyError> {
    if tool == Tool::Nft {
        run("nft", &["-f", "-"], Some(&rules.nft()))?;
        return Ok(());
    }
    for (family, name) in tool.families(ipv6) {
        let applied = saved(name).and_then(|saved| {
            let input = rules.iptables(family, &saved.jumps);
            run(&format!("{name}-restore"), &["-w", "5", "--noflush"], Some(&input))
        });
        if let Err(error) = applied {
            // The other family alone would leave a machine that is half in the mesh.
            remove_with(tool)?;
            return Err(error);
        }
    }
    Ok(())
}

/// What is missing, superfluous or out of order, in words; empty when the rules are in force.
///
/// # Errors
/// When the tool cannot be asked.
pub fn check(rules: &RedirectRules, tool: Tool, ipv6: bool) -> Result<Vec<String>, ApplyError> {
    let mut problems = Vec::new();
    if tool == Tool::Nft {
        let tables = run("nft", &["list", "tables"], None)?;
        if !tables.lines().any(|line| line.trim() == format!("table inet {NFT_TABLE}")) {
            return Ok(vec![format!("table inet {NFT_TABLE} is missing")]);
        }
        let listing = run("nft", &["list", "table", "inet", NFT_TABLE], None)?;
        let expected = rules.nft_expected();
        for (text, rule) in &expected {
            if !listing.contains(text.as_str()) {
                problems.push(format!("missing: {rule}"));
            }
        }
        for line in listing.lines().filter(|line| line.contains("redirect") || line.trim_end().ends_with('"')) {
            if !expected.iter().any(|(text, _)| line.contains(text.as_str())) {
                problems.push(format!("not ours: {}", line.trim()));
            }
        }
        return Ok(problems);
    }
    for (family, name) in tool.families(ipv6) {
        let saved = saved(name)?;
        for chain in [INBOUND_CHAIN, OUTBOUND_CHAIN] {
            if !saved.chains.contains(&chain) {
                problems.push(format!("{name}: chain {chain} is missing"));
                continue;
            }
            let expected = rules.iptables_chain(family, chain);
            let prefix = format!("-A {chain} ");
            let present: Vec<&String> = saved.rules.iter().filter(|rule| rule.starts_with(&prefix)).collect();
            let before = problems.len();
            for rule in expected.iter().filter(|rule| !present.contains(rule)) {
                problems.push(format!("{name}: missing: {rule}"));
            }
            for rule in present.iter().filter(|rule| !expected.contains(rule)) {
                problems.push(format!("{name}: not ours: {rule}"));
            }
            if problems.len() == before && !present.iter().copied().eq(expected.iter()) {
                problems.push(format!("{name}: chain {chain} has the right rules in a wrong order or more than once"));
            }
        }
        for jump in JUMPS.iter().filter(|jump| !saved.jumps.iter().any(|present| present == *jump)) {
            problems.push(format!("{name}: missing: {jump}"));
        }
    }
    Ok(problems)
}

/// Whether a tool has anything of ours in force, right or wrong.
///
/// # Errors
/// When the tool cannot be asked.
pub fn is_present(tool: Tool, ipv6: bool) -> Result<bool, ApplyError> {
    if tool == Tool::Nft {
        let tables = run("nft", &["list", "tables"], None)?;
        return Ok(tables.lines().any(|line| line.trim() == format!("table inet {NFT_TABLE}")));
    }
    for (_, name) in tool.families(ipv6) {
        let saved = saved(name)?;
        if [INBOUND_CHAIN, OUTBOUND_CHAIN].iter().any(|chain| saved.chains.contains(chain)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes out everything of ours, with every tool there is; nothing to do is fine.
///
/// # Errors
/// When a tool that has rules of ours cannot take them out, or no tool can be asked at all.
pub fn remove() -> Result<(), ApplyError> {
    find_tool(ToolChoice::Auto)?;
    for tool in ToolChoice::Auto.candidates() {
        remove_with(*tool)?;
    }
    Ok(())
}

/// Takes out what one tool holds; a tool that does not work holds nothing.
fn remove_with(tool: Tool) -> Result<(), ApplyError> {
    if tool == Tool::Nft {
        let Ok(tables) = run("nft", &["list", "tables"], None) else { return Ok(()) };
        if tables.lines().any(|line| line.trim() == format!("table inet {NFT_TABLE}")) {
            run("nft", &["-f", "-"], Some(&rules::nft_removal()))?;
        }
        return Ok(());
    }
    for (_, name) in tool.families(true) {
        let Ok(saved) = saved(name) else { continue };
        if !saved.jumps.is_empty() || !saved.chains.is_empty() {
            let input = rules::iptables_removal(&saved.jumps, &saved.chains);
            run(&format!("{name}-restore"), &["-w", "5", "--noflush"], Some(&input))?;
        }
    }
    Ok(())
}

/// What of ours is in force.
struct Saved {
    chains: Vec<&'static str>,
    jumps: Vec<String>,
    rules: Vec<String>,
}

fn saved(name: &str) -> Result<Saved, ApplyError> {
    Ok(Saved::read(&run(&format!("{name}-save"), &["-t", "nat"], None)?))
}

impl Saved {
    /// Reads the output of `iptables-save -t nat`.
    fn read(text: &str) -> Self {
        let chains = [INBOUND_CHAIN, OUTBOUND_CHAIN];
        let declared = |chain: &&str| text.lines().any(|line| line.starts_with(&format!(":{chain} ")));
        let of = |rule: &str, before: &str| chains.iter().any(|chain| rule.starts_with(&format!("{before}{chain} ")));
        let rules: Vec<&str> = text.lines().map(str::trim).filter(|line| line.starts_with("-A ")).collect();
        Self {
            chains: chains.into_iter().filter(declared).collect(),
            jumps: rules
                .iter()
                .filter(|rule| chains.iter().any(|chain| rule.ends_with(&format!("-j {chain}"))))
                .map(|rule| (*rule).to_owned())
                .collect(),
            rules: rules.iter().filter(|rule| of(rule, "-A ")).map(|rule| (*rule).to_owned()).collect(),
        }
    }
}

/// Runs a tool to its end and gives what it printed.
fn run(command: &str, arguments: &[&str], input: Option<&str>) -> Result<String, ApplyError> {
    let cannot = |source: io::Error| {
        if source.kind() == io::ErrorKind::NotFound {
            let package = if command == "nft" { "nftables" } else { "iptables" };
            ApplyError::Missing { command: command.to_owned(), package }
        } else {
            ApplyError::Run { command: command.to_owned(), source }
        }
    };
    // The tools live where only root looks, and not every way to become root changes the path.
    let path = std::env::var("PATH").unwrap_or_default();
    let mut child = Command::new(command)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .args(arguments)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(cannot)?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // A tool that gives up early says why on standard error, which tells more than a broken pipe.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(cannot)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    let refused = ["ermission denied", "not permitted", "must be root"].iter().any(|words| message.contains(words));
    if refused {
        return Err(ApplyError::NotPermitted);
    }
    Err(ApplyError::Failed {
        command: format!("{command} {}", arguments.join(" ")),
        message: if message.is_empty() { output.status.to_string() } else { message },
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn saved_rules_are_read_as_iptables_prints_them() {
        // What is not recognised would stay behind on removal, or be applied twice.
        let saved = Saved::read(
            "# Generated by iptables-save v1.8.9 (nf_tables)\n*nat\n:PREROUTING ACCEPT [0:0]\n:OUTRIGGER_OUTBOUND - [0:0]\n\
             -A OUTPUT -j OUTRIGGER_OUTBOUND\n-A OUTPUT -d 10.0.0.1/32 -j DOCKER\n\
             -A OUTRIGGER_OUTBOUND -d 127.0.0.0/8 -j RETURN\nCOMMIT\n",
        );
        assert_eq!(saved.chains, [OUTBOUND_CHAIN]);
        assert_eq!(saved.jumps, ["-A OUTPUT -j OUTRIGGER_OUTBOUND"]);
        assert_eq!(saved.rules, ["-A OUTRIGGER_OUTBOUND -d 127.0.0.0/8 -j RETURN"]);
    }

    #[test]
    fn missing_tools_name_their_package() {
        // "No such file or directory" helps nobody in an init container.
        let error = run("outrigger-no-such-tool-save", &[], None).unwrap_err().to_string();
        assert_eq!(error, "cannot run outrigger-no-such-tool-save: not installed (install the package iptables)");
    }
}
