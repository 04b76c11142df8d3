//! Everything the story plays on: processes, control plane, sidecars, traffic. Brought up in order, taken down whole.
//!
//! [`Stage::stop`] ends everything in order; dropping a stage (an error, a panic, Ctrl-C while it comes up) kills and
//! removes the same things at once. What even that cannot do, `guardian` does.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow, bail, ensure};
use http::StatusCode;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    DemoArgs,
    control::Control,
    display::Display,
    documents::{self, Document},
    guardian::Guard,
    http_client::Client,
    network::{self, Network, NetworkHold},
    observe::Observer,
    processes::{Death, Folder, Launch, Processes},
    topology::{CONTROL_PLANE, Mode, NAMESPACE, Placed, Plan, SIDECAR_USER, WORKLOADS, application_name},
    traffic::{Recorder, Traffic},
};

/// Longest wait until all sidecars are connected and ready.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait for the first answer of the front end.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for redirect rules to be made.
const INTERCEPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Between SIGTERM and SIGKILL at the end.
const STOP_GRACE: Duration = Duration::from_secs(6);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Copies this program to where a sidecar with another user id may start it; a home folder is often closed to others.
fn reachable_copy(program: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let copy = folder.join("outrigger");
    fs::copy(program, &copy)
        .and_then(|_| fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot copy {} to {} (hint: set TMPDIR)", program.display(), copy.display()))?;
    Ok(copy)
}

/// See the module.
pub struct Stage {
    pub plan: Plan,
    pub recorder: Arc<Recorder>,
    pub observer: Observer,
    program: PathBuf,
    traffic: Mutex<Option<Traffic>>,
    // Dropped in this order: processes first, then what they stood in.
    processes: Mutex<Processes>,
    network: Option<NetworkHold>,
    folder: Folder,
}

impl Stage {
    /// Makes folders, namespaces and the guardian; starts nothing else yet.
    pub fn prepare(args: &DemoArgs) -> anyhow::Result<Self> {
        let mut program =
            std::env::current_exe().context("cannot find the file of this program to start more of it")?;
        if args.transparent {
            network::check()?;
        }
        let mut guard = Guard::start(&program).context("cannot start the demo's guardian")?;
        let folder = Folder::create().context("cannot make a folder for temporary files (hint: set TMPDIR)")?;
        guard.folder(folder.path());
        for (name, mode) in [("logs", 0o700), ("mesh", 0o755), ("tokens", 0o711), ("state", 0o711)] {
            let path = folder.path().join(name);
            fs::DirBuilder::new()
                .mode(mode)
                .create(&path)
                .with_context(|| format!("cannot make the folder {}", path.display()))?;
        }
        let (plan, network) = if args.transparent {
            let network = Network::plan()?;
            guard.network(network.prefix());
            let hold = NetworkHold(network.clone());
            network.create(&WORKLOADS.map(|workload| (workload.name, NAMESPACE)))?;
            program = reachable_copy(&program, folder.path())?;
            (Plan::transparent(network)?, Some(hold))
        } else {
            (Plan::explicit(args.listen)?, None)
        };
        Ok(Self {
            observer: Observer::new(&plan),
            recorder: Arc::default(),
            processes: Mutex::new(Processes::new(folder.path().join("logs"), guard)),
            plan,
            program,
            traffic: Mutex::default(),
            network,
            folder,
        })
    }

    /// Where the documents are written that are applied.
    pub fn documents_folder(&self) -> PathBuf {
        self.folder.path().join("mesh")
    }

    /// Starts control plane, sidecars and applications, applies the first documents, and waits until all is in effect.
    pub async fn bring_up(&self, display: &Display) -> anyhow::Result<Control> {
        let started = Instant::now();
        let data = self.folder.path().join("control-plane");
        self.start(&self.plan.serve(&self.program, &data))?;
        let mut control = Control::connect(&data, self.plan.control_admin).await?;
        display.check(&format!("control plane for sidecars on {}", self.plan.discovery));

        let revision =
            control.apply(&self.documents_folder(), &documents::initial(), "the shop, with reviews v1 only").await?;
        for placed in &self.plan.placed {
            self.start_workload(&mut control, placed).await?;
        }
        self.wait_for_sidecars(&mut control).await?;
        let in_effect = control.in_effect(revision).await?;
        self.wait_for_front().await?;
        display.check(&format!(
            "{} sidecars and {} services ready in {:.1} s",
            in_effect.sidecars,
            self.plan.placed.iter().filter(|placed| placed.workload.has_application).count(),
            started.elapsed().as_secs_f64()
        ));
        Ok(control)
    }

    fn start(&self, launch: &Launch) -> anyhow::Result<()> {
        self.processes.lock().start(launch).with_context(|| format!("cannot start {}", launch.name))
    }

    async fn start_workload(&self, control: &mut Control, placed: &Placed) -> anyhow::Result<()> {
        let workload = placed.workload;
        let token = control.token(workload.app).await?;
        let token_file = self.folder.path().join("tokens").join(workload.name);
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&token_file)
            .and_then(|mut file| std::io::Write::write_all(&mut file, token.as_bytes()))
            .with_context(|| format!("cannot write {}", token_file.display()))?;
        let state = self.folder.path().join("state").join(workload.name);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&state)
            .with_context(|| format!("cannot make the folder {}", state.display()))?;
        if let Mode::Transparent(network) = &self.plan.mode {
            for path in [&token_file, &state] {
                std::os::unix::fs::chown(path, Some(SIDECAR_USER), Some(SIDECAR_USER))
                    .with_context(|| format!("cannot give {} to user {SIDECAR_USER}", path.display()))?;
            }
            self.run_to_end(&self.plan.intercept(&self.program, placed, network)).await?;
        }
        self.start(&self.plan.sidecar(&self.program, placed, &token_file, &state))?;
        if workload.has_application {
            self.start(&self.plan.application(&self.program, placed))?;
        }
        Ok(())
    }

    /// Starts something that ends by itself, and waits until it has.
    async fn run_to_end(&self, launch: &Launch) -> anyhow::Result<()> {
        self.start(launch)?;
        let end = Instant::now() + INTERCEPT_TIMEOUT;
        loop {
            if let Some(death) = self.processes.lock().find_ended(&launch.name) {
                ensure!(death.succeeded(), "{death}");
                return Ok(());
            }
            ensure!(Instant::now() < end, "{} did not end within {} s", launch.name, INTERCEPT_TIMEOUT.as_secs());
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn wait_for_sidecars(&self, control: &mut Control) -> anyhow::Result<()> {
        let end = Instant::now() + READY_TIMEOUT;
        loop {
            let ready = control.ready_sidecars().await?;
            let is_ready =
                |name: &str| ready.iter().any(|id| id == name || id.rsplit(['/', '~']).any(|part| part == name));
            let missing: Vec<&str> =
                self.plan.placed.iter().map(|placed| placed.workload.name).filter(|name| !is_ready(name)).collect();
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("sidecars not ready within {} s: {}", READY_TIMEOUT.as_secs(), missing.join(", "));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn wait_for_front(&self) -> anyhow::Result<()> {
        let client = Client::new(self.plan.front(), 1, FIRST_ANSWER_TIMEOUT);
        let end = Instant::now() + FIRST_ANSWER_TIMEOUT;
        loop {
            let why = match client.get("/").await {
                Ok(answer) if answer.status == StatusCode::OK => return Ok(()),
                Ok(answer) => {
                    let text = String::from_utf8_lossy(&answer.body).trim().to_owned();
                    format!("status {}: {text}", answer.status.as_u16())
                }
                Err(error) => error.to_string(),
            };
            if Instant::now() > end {
                bail!("the front end cannot be reached through the mesh at {}: {why}", self.plan.front());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Begins to send steady traffic.
    pub fn start_traffic(&self, rate: u32) {
        *self.traffic.lock() = Some(Traffic::start(&self.plan.front(), rate, &self.recorder));
    }

    /// Sends nothing more and waits for what is under way.
    pub async fn stop_traffic(&self) {
        let traffic = self.traffic.lock().take();
        if let Some(traffic) = traffic {
            traffic.stop().await;
        }
    }

    /// Tells a service how many of its requests shall fail.
    pub fn make_flaky(&self, workload: &str, percent: u32) -> anyhow::Result<()> {
        let name = application_name(workload);
        self.processes.lock().order(&name, &format!("fail {percent}")).with_context(|| format!("cannot reach {name}"))
    }

    /// Kills the application of a workload; its sidecar stays.
    pub fn kill_application(&self, workload: &str) -> anyhow::Result<()> {
        let name = application_name(workload);
        self.processes.lock().kill(&name).with_context(|| format!("cannot kill {name}"))
    }

    /// Starts it again.
    pub fn restart_application(&self, workload: &str) -> anyhow::Result<()> {
        let placed = self.plan.place(workload).ok_or_else(|| anyhow!("there is no workload {workload}"))?;
        self.start(&self.plan.application(&self.program, placed))
    }

    /// Applies one document and waits until it is in effect everywhere; gives the microseconds that took.
    pub async fn swap(&self, control: &mut Control, document: Document, message: &str) -> anyhow::Result<u64> {
        let revision = control.apply(&self.documents_folder(), &[document], message).await?;
        Ok(control.in_effect(revision).await?.elapsed_us)
    }

    /// Resolves when a process ended that nobody told to.
    pub async fn watch(&self) -> Death {
        loop {
            if let Some(death) = self.processes.lock().find_dead() {
                return death;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Ends everything in order. Gives the names of processes that had to be killed.
    pub async fn stop(self) -> Vec<String> {
        self.stop_traffic().await;
        let Self { processes, network, folder, .. } = self;
        let mut processes = processes.into_inner();
        let stubborn = processes.stop_all(CONTROL_PLANE, STOP_GRACE).await;
        drop(network);
        drop(folder);
        if let Some(guard) = processes.take_guard() {
            guard.done();
        }
        stubborn
    }

    /// Copies the logs to where they outlive the stage.
    pub fn keep_logs(&self, to: &Path) -> std::io::Result<()> {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(self.folder.path().join("logs"))? {
            let entry = entry?;
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        Ok(())
    }
}
