//! Network namespaces for `--transparent`: one for each host, joined by a bridge.
//!
//! The end-to-end tests of transparent mode stand on the same ground. Names begin with a prefix of this run, so that runs side by side do not meet and [`remove_all`] (also called by
//! `guardian`) finds everything. Uses the `ip` command; needs root. Redirect rules are not made here.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail, ensure};
use rustix::process::Signal;

use super::guardian;

/// Where `ip netns exec` looks for files that replace those of /etc.
const ETC_NETNS: &str = "/etc/netns";
/// First address of a host within the subnet; the bridge has 1.
const FIRST_HOST: u8 = 10;

/// The namespaces of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    prefix: String,
    /// First three bytes of the /24 between the namespaces.
    subnet: [u8; 3],
}

/// Removes namespaces, links and files when dropped.
pub struct NetworkHold(pub Network);

impl Drop for NetworkHold {
    fn drop(&mut self) {
        remove_all(self.0.prefix());
    }
}

impl Network {
    /// Chooses names and a subnet that this machine does not use.
    pub fn plan() -> anyhow::Result<Self> {
        let taken = ip(&["-4", "-o", "route", "show", "table", "all"])?;
        for _ in 0..200 {
            let subnet = [10, fastrand::u8(200..250), fastrand::u8(..)];
            let [a, b, c] = subnet;
            // Any route into the same /16 is reason enough to look elsewhere.
            if !taken.contains(&format!("{a}.{b}.")) {
                // Link names have at most 15 bytes.
                return Ok(Self { prefix: format!("og{:05x}", fastrand::u32(..0x10_0000)), subnet: [a, b, c] });
            }
        }
        bail!("no free subnet between 10.200.0.0 and 10.249.255.0 for the namespaces")
    }

    /// One with given names, for tests.
    #[cfg(test)]
    pub fn planned(prefix: &str, subnet: [u8; 3]) -> Self {
        Self { prefix: prefix.to_owned(), subnet }
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    fn host(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, last)
    }

    /// The bridge's address: the host as the namespaces see it.
    pub fn gateway(&self) -> Ipv4Addr {
        self.host(1)
    }

    /// Address of the host with this index.
    pub fn address(&self, index: usize) -> Ipv4Addr {
        self.host(FIRST_HOST + u8::try_from(index).expect("a handful of hosts"))
    }

    /// Its other address, where the kernel has IPv6: a unique local one (RFC 4193) that ends like the first.
    pub fn address_v6(&self, index: usize) -> Ipv6Addr {
        let [a, b, c, last] = self.address(index).octets().map(u16::from);
        Ipv6Addr::new(0xfd00 | a, b, c, 0, 0, 0, 0, last)
    }

    /// Name of a host's namespace.
    pub fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    /// Words that run what follows in a host's namespace.
    pub fn enter(&self, host: &str) -> Vec<String> {
        vec!["ip".to_owned(), "netns".to_owned(), "exec".to_owned(), self.namespace(host)]
    }

    /// Makes namespaces, links and name-server files for `hosts`, each with the mesh namespace in which its names are
    /// looked up first. On an error the caller removes what is there.
    pub fn create(&self, hosts: &[(&str, &str)]) -> anyhow::Result<()> {
        let bridge = format!("{}br", self.prefix);
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        ip(&["addr", "add", &format!("{}/24", self.gateway()), "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        for (index, (host, mesh_namespace)) in hosts.iter().enumerate() {
            let namespace = self.namespace(host);
            let link = format!("{}v{index}", self.prefix);
            let inside = |args: &[&str]| ip(&[&["-n", namespace.as_str()], args].concat());
            ip(&["netns", "add", &namespace])?;
            ip(&["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &namespace])?;
            ip(&["link", "set", &link, "master", &bridge, "up"])?;
            inside(&["link", "set", "lo", "up"])?;
            inside(&["addr", "add", &format!("{}/24", self.address(index)), "dev", "eth0"])?;
            if has_ipv6() {
                // nodad: usable at once, without the second in which the kernel looks for somebody who has it already.
                inside(&["addr", "add", &format!("{}/64", self.address_v6(index)), "dev", "eth0", "nodad"])?;
            }
            inside(&["link", "set", "eth0", "up"])?;
            inside(&["route", "add", "default", "via", &self.gateway().to_string()])?;
            self.write_resolver(&namespace, mesh_namespace)?;
        }
        Ok(())
    }

    /// The name server that hosts are told.
    pub fn resolver(&self) -> Ipv4Addr {
        self.host(2)
    }

    /// Names are asked of an address that nobody has: only the sidecar, through the redirect rules, can answer.
    fn write_resolver(&self, namespace: &str, mesh_namespace: &str) -> anyhow::Result<()> {
        let folder = Path::new(ETC_NETNS).join(namespace);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let text = format!(
            "search {mesh_namespace}.svc.cluster.local svc.cluster.local cluster.local\nnameserver {}\noptions ndots:5 timeout:2\n",
            self.resolver()
        );
        fs::write(folder.join("resolv.conf"), text).with_context(|| format!("cannot write into {}", folder.display()))
    }
}

/// Whether hosts get an IPv6 address beside the other one.
pub fn has_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}

/// Says what is missing for `--transparent`, before anything is made.
pub fn check() -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "--transparent makes network namespaces, which needs root (hint: run it with sudo, or leave --transparent out)"
    );
    for (tool, package) in [("ip", "iproute2"), ("setpriv", "util-linux")] {
        ensure!(is_installed(tool), "--transparent needs the command \"{tool}\" (hint: install the package {package})");
    }
    ensure!(
        is_installed("iptables") || is_installed("nft"),
        "--transparent needs iptables or nft for its redirect rules (hint: install the package iptables or nftables)"
    );
    ip(&["netns", "list"]).context("network namespaces cannot be used here (hint: a container needs CAP_SYS_ADMIN)")?;
    Ok(())
}

fn is_installed(tool: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder: PathBuf| folder.join(tool).is_file()))
}

/// Removes every namespace, link and file whose name begins with `prefix`, and ends what still runs there.
pub fn remove_all(prefix: &str) {
    for namespace in names(&ip(&["netns", "list"]).unwrap_or_default(), prefix) {
        for pid in ip(&["netns", "pids", &namespace]).unwrap_or_default().split_whitespace() {
            if let Ok(pid) = pid.parse() {
                guardian::signal(pid, Signal::KILL);
            }
        }
        let _ = ip(&["netns", "delete", &namespace]);
        let _ = fs::remove_dir_all(Path::new(ETC_NETNS).join(&namespace));
    }
    // Links inside a namespace go with it, and their other ends with them; the bridge is left.
    let links = ip(&["-o", "link", "show"]).unwrap_or_default();
    let words: String =
        links.lines().filter_map(|line| line.split_whitespace().nth(1)).fold(String::new(), |mut all, word| {
            all.push_str(word.trim_end_matches(':').split('@').next().unwrap_or_default());
            all.push('\n');
            all
        });
    for link in names(&words, prefix) {
        let _ = ip(&["link", "delete", &link]);
    }
    // Only when nobody else has files there.
    let _ = fs::remove_dir(ETC_NETNS);
}

/// First words of lines, those that begin with `prefix`.
fn names(lines: &str, prefix: &str) -> Vec<String> {
    let first = lines.lines().filter_map(|line| line.split_whitespace().next());
    first.filter(|name| !prefix.is_empty() && name.starts_with(prefix)).map(str::to_owned).collect()
}

fn ip(args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("ip").args(args).stdin(Stdio::null()).output().context("cannot run ip")?;
    if !output.status.success() {
        bail!("ip {} failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_run_are_removed() {
        // Somebody else's namespaces must survive our clean-up.
        let lines = "og12345-a (id: 3)\nog12345-b\ncni-1234\nog1234-c\n\n";
        assert_eq!(names(lines, "og12345"), ["og12345-a", "og12345-b"]);
        assert!(names(lines, "").is_empty());
    }

    #[test]
    fn names_fit_the_kernel() {
        // IFNAMSIZ: the kernel refuses link names over 15 bytes.
        let network = Network::planned("og12345", [10, 200, 1]);
        assert!(format!("{}br", network.prefix()).len() <= 15);
        assert_eq!(network.address(4), Ipv4Addr::new(10, 200, 1, 14));
        assert_eq!(network.address_v6(4), "fd0a:c8:1::e".parse::<Ipv6Addr>().expect("an address"));
        assert_eq!(network.enter("visitors"), ["ip", "netns", "exec", "og12345-visitors"]);
    }
}
