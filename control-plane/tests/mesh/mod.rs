//! A real mesh for end-to-end tests: hosts are network namespaces joined by a bridge, control plane and sidecars are
//! processes of the real binary, redirect rules are the kernel's.
//!
//! A test describes its hosts ([`Member`]), starts a [`Mesh`], and then acts inside them: [`Mesh::host`] runs async code
//! with the sockets of that host ([`host`]), [`Mesh::start_process`] starts any program there. Needs root; without it
//! [`Mesh::start`] says so and gives `None`, unless OUTRIGGER_REQUIRE_NETNS=1. Everything is removed when the mesh is
//! dropped and, by the guardian process, when the test ends in any other way (so a mesh may live in a `static`).
//! OUTRIGGER_TEST_LOGS=DIR keeps the logs of all processes.

#![allow(dead_code, clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, Permissions},
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use outrigger_control_plane::demo::{
    guardian::{self, Guard},
    network::{self, Network, NetworkHold},
    processes::{Folder, Launch, Processes},
};
use parking_lot::Mutex;
use rustix::process::Signal;

use self::{control::Control, host::Host, metrics::Metrics};

pub mod control;
pub mod host;
pub mod http;
pub mod metrics;

/// Longest wait for anything that must come; far above what any of it takes.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// User id of sidecars; the redirect rules let it pass.
const SIDECAR_USER: u32 = 1337;
/// Name of the control plane's process and of its host.
pub const CONTROL_PLANE: &str = "plane";
/// Where sidecars reach it.
const DISCOVERY_PORT: u16 = 15012;
/// Operator's port of every sidecar, on loopback in its host.
pub const ADMIN_PORT: u16 = 15000;
const DNS_PORT: u16 = 15053;
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// One host of the mesh and the workload on it.
#[derive(Clone, Debug)]
pub struct Member {
    pub name: &'static str,
    pub namespace: &'static str,
    /// Service account, and the label `app`.
    pub app: &'static str,
    pub labels: Vec<(&'static str, &'static str)>,
    /// Ports that are registered, with their names.
    pub ports: Vec<(u16, &'static str)>,
    /// Further arguments of `outrigger proxy`.
    pub args: Vec<String>,
    /// Further arguments of `outrigger intercept apply`.
    pub rule_args: Vec<String>,
    /// Without it, the host is outside the mesh.
    pub sidecar: bool,
}

impl Member {
    /// A workload in namespace `shop`, with a sidecar.
    pub const fn new(name: &'static str, app: &'static str) -> Self {
        Self {
            name,
            namespace: "shop",
            app,
            labels: Vec::new(),
            ports: Vec::new(),
            args: Vec::new(),
            rule_args: Vec::new(),
            sidecar: true,
        }
    }

    /// A host that knows nothing of the mesh.
    pub const fn outside(name: &'static str) -> Self {
        let mut member = Self::new(name, "outside");
        member.sidecar = false;
        member
    }

    #[must_use]
    pub const fn namespace(mut self, namespace: &'static str) -> Self {
        self.namespace = namespace;
        self
    }

    #[must_use]
    pub fn label(mut self, key: &'static str, value: &'static str) -> Self {
        self.labels.push((key, value));
        self
    }

    #[must_use]
    pub fn port(mut self, port: u16, name: &'static str) -> Self {
        self.ports.push((port, name));
        self
    }

    #[must_use]
    pub fn args<const N: usize>(mut self, args: [&str; N]) -> Self {
        self.args.extend(args.map(str::to_owned));
        self
    }

    #[must_use]
    pub fn rule_args<const N: usize>(mut self, args: [&str; N]) -> Self {
        self.rule_args.extend(args.map(str::to_owned));
        self
    }
}

/// The running mesh.
pub struct Mesh {
    members: Vec<Member>,
    control: Mutex<Option<Control>>,
    // Dropped in this order: processes first, then what they stood in, the guardian last.
    processes: Mutex<Processes>,
    hosts: BTreeMap<&'static str, Host>,
    network: Option<NetworkHold>,
    folder: Option<Folder>,
    program: PathBuf,
    logs: PathBuf,
    plan: Network,
}

impl Mesh {
    /// Brings up control plane and sidecars, and waits until all listen. `None`: not possible on this machine.
    ///
    /// Applications on registered ports are the caller's to start; after that, [`Self::wait_ready`].
    pub fn start(members: Vec<Member>) -> Option<Self> {
        if let Err(reason) = network::check() {
            let required = std::env::var_os("OUTRIGGER_REQUIRE_NETNS").is_some_and(|value| value == "1");
            assert!(!required, "OUTRIGGER_REQUIRE_NETNS=1, but {reason:#}");
            // Past the test harness, which swallows what passing tests print.
            let _ = writeln!(std::io::stderr(), "skipped: {reason:#}");
            return None;
        }
        let built = Path::new(env!("CARGO_BIN_EXE_outrigger"));
        let mut guard = Guard::start(built).unwrap();
        let folder = Folder::create().unwrap();
        guard.folder(folder.path());
        let plan = Network::plan().unwrap();
        guard.network(plan.prefix());
        let network = NetworkHold(plan.clone());
        let mut hosts: Vec<(&'static str, &'static str)> = vec![(CONTROL_PLANE, "default")];
        hosts.extend(members.iter().map(|member| (member.name, member.namespace)));
        plan.create(&hosts).unwrap();
        let hosts = hosts.iter().enumerate().map(|(index, (name, _))| (*name, Host::enter(&plan, index, name)));
        let hosts: BTreeMap<_, _> = hosts.collect();
        // Where a sidecar with another user id can execute it, whatever the folders above the original allow.
        let program = folder.path().join("outrigger");
        if fs::hard_link(built, &program).is_err() {
            fs::copy(built, &program).unwrap();
        }
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        let logs = std::env::var_os("OUTRIGGER_TEST_LOGS").map_or_else(|| folder.path().join("logs"), PathBuf::from);
        fs::create_dir_all(&logs).unwrap();
        for name in ["state", "tokens"] {
            DirBuilder::new().mode(0o711).create(folder.path().join(name)).unwrap();
        }
        let mesh = Self {
            members,
            control: Mutex::default(),
            processes: Mutex::new(Processes::new(logs.clone(), guard)),
            hosts,
            network: Some(network),
            folder: Some(folder),
            program,
            logs,
            plan,
        };
        mesh.start_control_plane();
        for member in mesh.members.iter().filter(|member| member.sidecar) {
            mesh.join(member);
        }
        for member in mesh.members.iter().filter(|member| member.sidecar) {
            mesh.wait_listening(member.name);
        }
        Some(mesh)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.as_ref().unwrap().path().join(name)
    }

    /// A host of this mesh.
    pub fn host(&self, name: &str) -> &Host {
        self.hosts.get(name).unwrap_or_else(|| panic!("no host {name}"))
    }

    fn member(&self, name: &str) -> &Member {
        self.members.iter().find(|member| member.name == name).unwrap_or_else(|| panic!("no member {name}"))
    }

    /// The binary under test, executable by everybody.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// A join token and redirect rules, then the sidecar.
    fn join(&self, member: &Member) {
        let token = self.host(CONTROL_PLANE).run({
            let mut control = self.control();
            let (namespace, app) = (member.namespace, member.app);
            async move { control.token(namespace, app).await }
        });
        let file = self.path("tokens").join(member.name);
        let mut opened = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file).unwrap();
        opened.write_all(token.as_bytes()).unwrap();
        let state = self.path("state").join(member.name);
        DirBuilder::new().mode(0o700).create(&state).unwrap();
        for path in [&file, &state] {
            chown(path, Some(SIDECAR_USER), Some(SIDECAR_USER)).unwrap();
        }
        let mut args = ["intercept", "apply", "--dns", "--proxy-uid"].map(str::to_owned).to_vec();
        args.push(SIDECAR_USER.to_string());
        args.extend(member.rule_args.iter().cloned());
        self.run_process(member.name, &format!("{}-rules", member.name), &self.program, args);
        self.start_sidecar(member.name);
    }

    /// Starts the sidecar of a host whose token and rules are there; also for one that was stopped or killed.
    pub fn start_sidecar(&self, name: &str) {
        let member = self.member(name);
        let host = self.host(name);
        let mut args = vec!["proxy".to_owned(), "--transparent".to_owned()];
        let mut flag = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
        flag("--control-plane", format!("{}:{DISCOVERY_PORT}", self.host(CONTROL_PLANE).address));
        flag("--token-file", self.path("tokens").join(name).display().to_string());
        flag("--namespace", member.namespace.to_owned());
        flag("--workload", name.to_owned());
        flag("--service-account", member.app.to_owned());
        flag("--label", format!("app={}", member.app));
        for (key, value) in &member.labels {
            flag("--label", format!("{key}={value}"));
        }
        for (port, port_name) in &member.ports {
            flag("--port", format!("{port}={port_name}"));
        }
        flag("--address", host.address.to_string());
        flag("--admin", SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN_PORT)).to_string());
        flag("--state-dir", self.path("state").join(name).display().to_string());
        flag("--dns", SocketAddr::from((Ipv4Addr::LOCALHOST, DNS_PORT)).to_string());
        if network::has_ipv6() {
            flag("--dns", SocketAddr::from((Ipv6Addr::LOCALHOST, DNS_PORT)).to_string());
        }
        flag("--access-log", "json".to_owned());
        args.extend(member.args.iter().cloned());
        let user = SIDECAR_USER.to_string();
        let mut runner = self.plan.enter(name);
        runner.extend(
            ["setpriv", "--reuid", user.as_str(), "--regid", user.as_str(), "--clear-groups", "--"].map(str::to_owned),
        );
        let launch = Launch::new(sidecar_name(name), &self.program, args).through(runner);
        self.processes.lock().start(&launch).unwrap();
    }

    /// Ends a sidecar at once, as a crash would.
    pub fn kill_sidecar(&self, name: &str) {
        self.kill(&sidecar_name(name));
    }

    /// Tells a sidecar to drain (SIGTERM) and waits until it has ended.
    pub fn stop_sidecar(&self, name: &str) {
        self.stop(&sidecar_name(name));
    }

    /// Starts the control plane, also again after [`Self::kill_control_plane`], and waits until it answers.
    pub fn start_control_plane(&self) {
        let data = self.path("control-plane");
        let host = self.host(CONTROL_PLANE);
        let mut args = vec!["serve".to_owned(), "--data-dir".to_owned(), data.display().to_string()];
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, 15010));
        for (flag, address) in [
            ("--discovery", SocketAddr::new(IpAddr::V4(host.address), DISCOVERY_PORT)),
            ("--admin", admin),
            ("--monitoring", SocketAddr::from((Ipv4Addr::LOCALHOST, 15014))),
        ] {
            args.extend([flag.to_owned(), address.to_string()]);
        }
        self.start_process(CONTROL_PLANE, CONTROL_PLANE, &self.program, args);
        *self.control.lock() = Some(host.run(Control::connect(data, admin)));
    }

    /// Ends the control plane at once, as a crash would.
    pub fn kill_control_plane(&self) {
        *self.control.lock() = None;
        self.kill(CONTROL_PLANE);
    }

    /// The admin API. Its futures must run on the control plane's host: `mesh.host(CONTROL_PLANE).run(..)`.
    pub fn control(&self) -> Control {
        self.control.lock().clone().expect("the control plane runs")
    }

    /// Applies YAML documents and waits until they are in effect on every sidecar.
    pub fn apply(&self, yaml: &str) {
        let (mut control, yaml) = (self.control(), yaml.to_owned());
        self.host(CONTROL_PLANE).run(async move {
            let revision = control.apply(&yaml).await;
            control.in_effect(revision).await;
        });
    }

    /// Waits until the sidecar of a host has an identity, a first configuration, and listens.
    pub fn wait_listening(&self, name: &str) {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN_PORT));
        let listens = self.host(name).run(async move {
            let end = Instant::now() + PATIENCE;
            while Instant::now() < end {
                let answer = http::try_get(address, "localhost", "/ready").await;
                if answer.is_ok_and(|answer| answer.status().is_success()) {
                    return true;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            false
        });
        assert!(listens, "the sidecar of {name} does not come up\n{}", self.last_words(&sidecar_name(name)));
    }

    /// Waits until every sidecar of the mesh is connected and all registered ports answer.
    pub fn wait_ready(&self) {
        let expected: Vec<String> =
            self.members.iter().filter(|member| member.sidecar).map(|member| member.name.to_owned()).collect();
        let mut control = self.control();
        let missing = self.host(CONTROL_PLANE).run(async move { control.wait_ready(expected).await });
        if !missing.is_empty() {
            panic!("sidecars not ready: {missing:?}\n{}", self.last_words(&sidecar_name(&missing[0])));
        }
    }

    /// What a sidecar counts at this moment.
    pub fn metrics(&self, name: &str) -> Metrics {
        Metrics::read(&self.admin(name, "/metrics"))
    }

    /// An answer of a sidecar's operator port.
    pub fn admin(&self, name: &str, path: &str) -> String {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN_PORT));
        let path = path.to_owned();
        let answer = self.host(name).run(async move { http::get(address, "localhost", &path).await });
        String::from_utf8(answer.into_body().to_vec()).unwrap()
    }

    /// Starts a program inside a host; its log is `PROCESS.log`.
    pub fn start_process<A: Into<std::ffi::OsString>>(
        &self,
        host: &str,
        process: &str,
        program: &Path,
        args: impl IntoIterator<Item = A>,
    ) {
        let launch = Launch::new(process, program, args).through(self.plan.enter(host));
        self.processes.lock().start(&launch).unwrap();
    }

    /// Runs a program inside a host to its end, which must be a success; gives what it printed.
    pub fn run_process<A: Into<std::ffi::OsString>>(
        &self,
        host: &str,
        process: &str,
        program: &Path,
        args: impl IntoIterator<Item = A>,
    ) -> String {
        let launch = Launch::new(process, program, args).through(self.plan.enter(host)).brief();
        self.processes.lock().start(&launch).unwrap();
        let death = self.wait_ended(process);
        assert!(death.succeeded(), "{death}");
        fs::read_to_string(self.log_file(process)).unwrap()
    }

    /// Ends a process of this mesh with SIGKILL.
    pub fn kill(&self, process: &str) {
        self.processes.lock().kill(process).unwrap();
    }

    /// Sends a signal to a process of this mesh.
    pub fn signal(&self, process: &str, signal: Signal) {
        let pid = self.processes.lock().pid(process).unwrap_or_else(|| panic!("{process} does not run"));
        guardian::signal(pid, signal);
    }

    /// Ends a process of this mesh with SIGTERM and waits until it is gone.
    pub fn stop(&self, process: &str) {
        self.signal(process, Signal::TERM);
        self.wait_ended(process);
    }

    fn wait_ended(&self, process: &str) -> outrigger_control_plane::demo::processes::Death {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(death) = self.processes.lock().find_ended(process) {
                return death;
            }
            assert!(Instant::now() < end, "{process} does not end\n{}", self.last_words(process));
            thread::sleep(LOOK_AGAIN);
        }
    }

    fn log_file(&self, process: &str) -> PathBuf {
        self.logs.join(format!("{process}.log"))
    }

    /// Everything a process wrote so far.
    pub fn log(&self, process: &str) -> String {
        fs::read_to_string(self.log_file(process)).unwrap_or_default()
    }

    /// The end of a process's log, for messages.
    pub fn last_words(&self, process: &str) -> String {
        let log = self.log(process);
        let lines: Vec<&str> = log.lines().collect();
        format!("--- last lines of {process}\n{}", lines[lines.len().saturating_sub(15)..].join("\n"))
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        // Ended with SIGKILL and waited for when replaced; the guardian goes last, when there is nothing left to do.
        let processes = self.processes.get_mut();
        let guard = processes.take_guard();
        processes.kill_all();
        self.hosts.clear();
        self.network = None;
        self.folder = None;
        if let Some(guard) = guard {
            guard.done();
        }
    }
}

/// Name of the process that is a host's sidecar.
pub fn sidecar_name(host: &str) -> String {
    format!("{host}-sidecar")
}
