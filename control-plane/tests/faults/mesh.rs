//! A mesh of real processes: control plane, sidecars, applications. Started, signalled, and ended with the test.
//!
//! A [`Place`] says where a workload is and how it is entered; loopback and network namespaces differ in that only.

use std::{
    any::Any,
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{
    application,
    control::{Control, NAMESPACE, admin_get},
    ledger::Ledger,
    load::{Door, Front},
};

/// Port of every service, as its callers name it.
pub const SERVICE_PORT: u16 = 9080;
pub const CONTROL_PLANE: &str = "control-plane";
/// Environment variables: a program to test instead of the one just built, and where its data goes, to test with a disk.
const PROGRAM: &str = "OUTRIGGER_TEST_PROGRAM";
const FOLDER: &str = "OUTRIGGER_TEST_FOLDER";

/// Where one workload is.
#[derive(Clone, Debug)]
pub struct Place {
    pub name: &'static str,
    /// Its service: also its service account and its label `app`.
    pub app: &'static str,
    pub version: &'static str,
    /// What is put before a command to run it there; empty: nothing.
    pub enter: Vec<OsString>,
    /// The same for the sidecar, which may need another user.
    pub enter_sidecar: Vec<OsString>,
    /// Where the application listens; `None`: it has none.
    pub application: Option<SocketAddr>,
    /// Flags of the sidecar beyond identity and control plane.
    pub flags: Vec<String>,
    /// Admin port of the sidecar.
    pub admin: Door,
    /// Commands to run there before the sidecar, as arguments of `outrigger`.
    pub before: Vec<Vec<String>>,
}

/// Everything's place.
#[derive(Clone)]
pub struct Plan {
    pub places: Vec<Place>,
    /// Where sidecars reach the control plane.
    pub discovery: SocketAddr,
    pub admin: Door,
    /// What is put before the control plane's command.
    pub enter_control_plane: Vec<OsString>,
    /// Where the load goes in.
    pub front: Front,
    /// Where calls of the workload api-1 to the service `store` go in.
    pub way_out: Front,
    /// Finds the addresses of the two above, once there are names to look up; `None`: they are known.
    pub look_up: Option<fn(&mut Self)>,
    /// What the mesh stands in; goes last.
    pub ground: Option<Arc<dyn Any + Send + Sync>>,
    /// User that sidecars run as, if not our own; their folders belong to it.
    pub sidecar_user: Option<u32>,
}

/// A caller, `replicas` instances of `api` (the last of them version v2), and one of `store`, which `api-1` may call.
pub const API: [&str; 3] = ["api-1", "api-2", "api-3"];

impl Plan {
    /// Everything on loopback.
    pub fn explicit(replicas: usize) -> Self {
        let here = |address| Door { address, host: None };
        let mut ports = FreePorts::default();
        let front = ports.next();
        let way_out = ports.next();
        let local = |listen: SocketAddr, service: &str| {
            vec!["--local".to_owned(), format!("{listen}={service}.{NAMESPACE}:{SERVICE_PORT}")]
        };
        let mut place = |name, app, version, has_application, mut flags: Vec<String>| {
            let (application, inbound) = (ports.next(), ports.next());
            if has_application {
                flags
                    .extend(["--inbound".to_owned(), format!("{inbound}={application},port={SERVICE_PORT},name=http")]);
            }
            Place {
                name,
                app,
                version,
                enter: Vec::new(),
                enter_sidecar: Vec::new(),
                application: has_application.then_some(application),
                flags,
                admin: here(ports.next()),
                before: Vec::new(),
            }
        };
        let mut places = vec![place("caller", "caller", "v1", false, local(front, "api"))];
        for (index, name) in API.into_iter().take(replicas).enumerate() {
            let version = if index + 1 == replicas { "v2" } else { "v1" };
            let flags = if index == 0 { local(way_out, "store") } else { Vec::new() };
            places.push(place(name, "api", version, true, flags));
        }
        places.push(place("store", "store", "v1", true, Vec::new()));
        Self {
            places,
            discovery: ports.next(),
            admin: here(ports.next()),
            enter_control_plane: Vec::new(),
            front: Front { door: here(front), authority: authority("api") },
            way_out: Front { door: here(way_out), authority: authority("store") },
            look_up: None,
            ground: None,
            sidecar_user: None,
        }
    }
}

/// A service as its callers write it.
pub fn authority(service: &str) -> String {
    format!("{service}.{NAMESPACE}:{SERVICE_PORT}")
}

/// Services of the mesh, STRICT mutual TLS, and whatever the scenario adds.
pub fn services() -> String {
    let services = ["api", "store"].map(|app| {
        format!(
            "apiVersion: v1
kind: Service
metadata: {{name: {app}, namespace: {NAMESPACE}}}
spec:
  selector: {{app: {app}}}
  ports:
  - {{name: http, port: {SERVICE_PORT}, targetPort: {SERVICE_PORT}}}
---
"
        )
    });
    let versions = ["v1", "v2"].map(|version| {
        format!(
            "apiVersion: v1
kind: Service
metadata: {{name: api-{version}, namespace: {NAMESPACE}}}
spec:
  selector: {{app: api, version: {version}}}
  ports:
  - {{name: http, port: {SERVICE_PORT}, targetPort: {SERVICE_PORT}}}
---
"
        )
    });
    format!(
        "{}{}apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: {NAMESPACE}}}
spec:
  mtls: {{mode: STRICT}}
",
        services.concat(),
        versions.concat()
    )
}

struct Process {
    child: Child,
    log: PathBuf,
}

/// The running mesh. Dropping it kills everything.
pub struct Mesh {
    pub plan: Plan,
    pub control: Control,
    pub ledger: Arc<Ledger>,
    tokens: BTreeMap<&'static str, PathBuf>,
    processes: BTreeMap<String, Process>,
    folder: tempfile::TempDir,
    /// Whether sidecars keep their identity over a restart, which needs a memory filesystem.
    keeps_identity: bool,
    program: PathBuf,
    _turn: tokio::sync::MutexGuard<'static, ()>,
}

/// One mesh at a time: the tests measure, and the machine may be small.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

impl Mesh {
    /// Starts everything, applies `documents` beside the services, and waits until every replica has answered.
    pub async fn start(plan: Plan, documents: &str) -> Self {
        let turn = TURN.lock().await;
        // On memory where there is some: the store syncs at each revision, and disks differ.
        let memory = Path::new("/dev/shm");
        let asked = std::env::var_os(FOLDER).map(PathBuf::from);
        let keeps_identity = asked.is_none() && memory.is_dir();
        let folder = match asked {
            Some(asked) => tempfile::tempdir_in(asked),
            None if keeps_identity => tempfile::tempdir_in(memory),
            None => tempfile::tempdir(),
        }
        .unwrap();
        let built = || PathBuf::from(env!("CARGO_BIN_EXE_outrigger"));
        let mut program = std::env::var_os(PROGRAM).map_or_else(built, PathBuf::from);
        if plan.sidecar_user.is_some() {
            use std::os::unix::fs::PermissionsExt as _;
            // Another user must reach it; a home folder is often closed to others.
            let copy = folder.path().join("outrigger");
            fs::copy(&program, &copy).unwrap();
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
            program = copy;
        }
        let ledger = Arc::new(Ledger::new(&folder.path().join("ledger"), "id"));
        let mut processes = BTreeMap::new();
        let data = folder.path().join(CONTROL_PLANE);
        let serve = serve(&plan, &data);
        let log = folder.path().join(format!("{CONTROL_PLANE}.log"));
        processes.insert(CONTROL_PLANE.to_owned(), spawn(&program, &plan.enter_control_plane, &serve, &[], log));
        let control = Control::connect(&data, &plan.admin).await;
        let mut mesh = Self {
            plan,
            control,
            ledger,
            tokens: BTreeMap::new(),
            processes,
            folder,
            keeps_identity,
            program,
            _turn: turn,
        };
        let revision = mesh.control.apply(&format!("{}---\n{documents}", services())).await;
        for place in mesh.plan.places.clone() {
            let token = mesh.control.token(place.app).await;
            let file = mesh.folder.path().join(format!("{}.token", place.name));
            fs::write(&file, token).unwrap();
            let (state, identity) = (mesh.state(place.name), mesh.identity(place.name));
            for path in [&state, &identity] {
                fs::DirBuilder::new().mode(0o700).create(path).unwrap();
            }
            for path in [&file, &state, &identity] {
                std::os::unix::fs::chown(path, mesh.plan.sidecar_user, mesh.plan.sidecar_user).unwrap();
            }
            mesh.tokens.insert(place.name, file);
            for command in &place.before {
                let log = mesh.log(&format!("{}-before", place.name));
                let mut process = spawn(&mesh.program, &place.enter, command, &[], log);
                assert!(process.child.wait().unwrap().success(), "{command:?} failed for {}", place.name);
            }
            mesh.start_application(place.name, Duration::ZERO);
            mesh.start_sidecar(place.name);
        }
        let names: Vec<_> = mesh.plan.places.iter().map(|place| place.name).collect();
        mesh.control.ready(&names).await;
        mesh.control.in_effect(revision).await;
        if let Some(look_up) = mesh.plan.look_up {
            // Blocks, as resolvers do.
            let mut plan = mesh.plan.clone();
            mesh.plan = tokio::task::spawn_blocking(move || {
                look_up(&mut plan);
                plan
            })
            .await
            .unwrap();
        }
        mesh.all_answer().await;
        mesh
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn place(&self, workload: &str) -> &Place {
        self.plan.places.iter().find(|place| place.name == workload).unwrap()
    }

    fn state(&self, workload: &str) -> PathBuf {
        self.folder.path().join(format!("{workload}.state"))
    }

    fn identity(&self, workload: &str) -> PathBuf {
        self.folder.path().join(format!("{workload}.identity"))
    }

    fn log(&self, process: &str) -> PathBuf {
        self.folder.path().join(format!("{process}.log"))
    }

    /// Starts the control plane again.
    pub async fn start_control_plane(&mut self) {
        let data = self.folder.path().join(CONTROL_PLANE);
        let process = spawn(
            &self.program,
            &self.plan.enter_control_plane,
            &serve(&self.plan, &data),
            &[],
            self.log(CONTROL_PLANE),
        );
        self.processes.insert(CONTROL_PLANE.to_owned(), process);
        self.control = Control::connect(&data, &self.plan.admin).await;
    }

    pub fn start_sidecar(&mut self, workload: &'static str) {
        let place = self.place(workload).clone();
        let mut args: Vec<String> = vec!["proxy".to_owned()];
        let mut flag = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
        flag("--control-plane", self.plan.discovery.to_string());
        flag("--token-file", self.tokens[workload].display().to_string());
        flag("--namespace", NAMESPACE.to_owned());
        flag("--workload", workload.to_owned());
        flag("--service-account", place.app.to_owned());
        flag("--label", format!("app={}", place.app));
        flag("--label", format!("version={}", place.version));
        flag("--admin", place.admin.address.to_string());
        flag("--state-dir", self.state(workload).display().to_string());
        if self.keeps_identity {
            flag("--identity-dir", self.identity(workload).display().to_string());
        }
        args.extend(place.flags.iter().cloned());
        let process = spawn(&self.program, &place.enter_sidecar, &args, &[], self.log(workload));
        self.processes.insert(workload.to_owned(), process);
    }

    /// Starts the application of a workload, if it has one; it answers each request `delay` late.
    pub fn start_application(&mut self, workload: &str, delay: Duration) {
        let place = self.place(workload).clone();
        let Some(listen) = place.application else { return };
        let program = std::env::current_exe().unwrap();
        let args = ["--exact", "application", "--ignored", "--nocapture"].map(str::to_owned);
        let settings = format!("{workload} {listen} {} {}", self.ledger.file().display(), delay.as_millis());
        let name = application_of(workload);
        let environment = [(application::SETTINGS, settings)];
        let process = spawn(&program, &place.enter, &args, &environment, self.log(&name));
        self.processes.insert(name, process);
    }

    fn pid(&self, process: &str) -> Pid {
        let process = self.processes.get(process).unwrap_or_else(|| panic!("{process} does not run"));
        Pid::from_raw(i32::try_from(process.child.id()).unwrap()).unwrap()
    }

    /// Number of a process, to look at it in /proc.
    pub fn process_id(&self, process: &str) -> u32 {
        self.processes[process].child.id()
    }

    pub fn signal(&self, process: &str, signal: Signal) {
        kill_process(self.pid(process), signal).unwrap();
    }

    /// Ends a process as an outage does.
    pub fn kill(&mut self, process: &str) {
        self.signal(process, Signal::KILL);
        self.processes.remove(process).unwrap().child.wait().unwrap();
    }

    /// Waits until a process has ended by itself.
    pub async fn ended(&mut self, process: &str, within: Duration) -> ExitStatus {
        let end = Instant::now() + within;
        loop {
            if let Some(status) = self.processes.get_mut(process).unwrap().child.try_wait().unwrap() {
                self.processes.remove(process);
                return status;
            }
            assert!(Instant::now() < end, "{process} has not ended within {within:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until a sidecar serves.
    pub async fn sidecar_ready(&self, workload: &str) {
        let end = Instant::now() + Duration::from_secs(10);
        while admin_get(&self.place(workload).admin, "/ready").await.is_none() {
            assert!(Instant::now() < end, "the sidecar of {workload} is not ready");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until every instance of `api` has answered a request of the caller.
    async fn all_answer(&self) {
        use super::load::Load;
        let wanted = self.plan.places.iter().filter(|place| place.app == "api").count();
        let end = Instant::now() + Duration::from_secs(10);
        let probe = Arc::new(Ledger::new(&self.folder.path().join("probe"), "probe"));
        let began = Instant::now();
        let load = Load::start(&probe, &self.plan.front, 1, 0, Duration::from_millis(5));
        while probe.shares(began).len() < wanted {
            assert!(Instant::now() < end, "answers came from {:?} only\n{}", probe.shares(began), probe.verdict());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        load.stop().await;
        // What was asked before the test began is not the test's.
        fs::write(self.ledger.file(), "").unwrap();
    }
}

/// Name of a workload's application process.
pub fn application_of(workload: &str) -> String {
    format!("{workload}-app")
}

fn serve(plan: &Plan, data: &Path) -> Vec<String> {
    let mut args: Vec<String> = ["serve", "--monitoring", "off", "--data-dir"].map(str::to_owned).to_vec();
    args.push(data.display().to_string());
    args.extend([
        "--discovery".to_owned(),
        plan.discovery.to_string(),
        "--admin".to_owned(),
        plan.admin.address.to_string(),
    ]);
    args
}

fn spawn(program: &Path, enter: &[OsString], args: &[String], environment: &[(&str, String)], log: PathBuf) -> Process {
    let output = File::options().create(true).append(true).open(&log).unwrap();
    let mut words: Vec<OsString> = enter.to_vec();
    words.push(program.into());
    words.extend(args.iter().map(Into::into));
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OUTRIGGER_")) {
        command.env_remove(name);
    }
    command.envs(environment.iter().map(|(name, value)| (*name, value)));
    Process { child: command.spawn().unwrap(), log }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        for process in self.processes.values_mut() {
            let _ = process.child.kill();
        }
        for process in self.processes.values_mut() {
            let _ = process.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.ledger.verdict());
            let mut logs: Vec<_> =
                fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
            logs.sort();
            for log in logs.iter().filter(|path| path.extension().is_some_and(|extension| extension == "log")) {
                let text = fs::read_to_string(log).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("--- {}", log.display());
                lines[lines.len().saturating_sub(15)..].iter().for_each(|line| eprintln!("{line}"));
            }
        }
    }
}

/// Free loopback ports, each given out once; from below the range that the kernel gives to outgoing connections.
#[derive(Default)]
pub struct FreePorts {
    held: Vec<TcpListener>,
}

impl FreePorts {
    pub fn next(&mut self) -> SocketAddr {
        loop {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(20_000..32_000)));
            if let Ok(listener) = TcpListener::bind(address) {
                self.held.push(listener);
                return address;
            }
        }
    }
}
