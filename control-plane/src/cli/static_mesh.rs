//! Static mode: one sidecar from YAML documents, without a control plane.
//!
//! The documents go through the control plane's own reading, checking and compiling; the outcome is handed to the sidecar as
//! one view. A changed file or SIGHUP makes the next view; documents that are wrong leave the last one in force.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use outrigger_proxy::{
    config::{fixed, view::View},
    settings::Settings,
    sidecar::{Source, Update},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::{
    certificates::{self, Issuing, LEAF_LIFETIME, Origin, Proof},
    files,
    outcome::Failure,
    output::{note, warning},
    problems, watch,
};
use crate::{
    api::{self, Object},
    authority::Identity,
    compile,
    model::{Inputs, Mesh, MeshSettings, PeerKind, RegisteredWorkload, WorkloadPort, needs_virtual_address},
};

/// Views that may wait for the sidecar to take them; a further one waits here.
const UPDATES_QUEUED: usize = 4;

/// Makes the first view and identity, and starts watching for the next.
///
/// Errors: documents or certificates that are wrong, each with what to do.
pub fn source(paths: Vec<PathBuf>, origin: Origin, settings: &mut Settings) -> Result<Source, Failure> {
    // Watched from before they are read: a change in between is seen as one.
    let documents = watch::Watch::new(paths.iter().cloned());
    let objects = read(&paths, &settings.node.namespace)?;
    adopt_workload(&objects, settings);
    let keeper = Keeper::new(origin, settings)?;
    let certificates = watch::Watch::new(keeper.files());
    let proof = keeper.proof()?;
    settings.node.trust_domain.clone_from(&proof.identity.trust_domain);
    settings.node.service_account.clone_from(&proof.identity.service_account);
    if proof.identity.namespace != settings.node.namespace {
        warning(&format!(
            "the certificate proves namespace \"{}\", but this sidecar runs as {}/{}; peers believe the certificate",
            proof.identity.namespace, settings.node.namespace, settings.node.workload
        ));
    }
    let view = Arc::new(build(&objects, settings, &proof.roots_pem, 1, None)?);
    let (sender, updates) = mpsc::channel(UPDATES_QUEUED);
    let follow = Follow {
        paths,
        documents,
        certificates,
        keeper,
        settings: settings.clone(),
        roots: proof.roots_pem,
        sender,
        view: view.clone(),
    };
    std::thread::Builder::new()
        .name("static-mesh".to_owned())
        .spawn(move || follow.run())
        .map_err(|error| Failure::failed(format_args!("cannot start the thread that watches the files: {error}")))?;
    Ok(Source::Fixed { view, material: proof.material, updates })
}

/// Reads and checks the documents. Warnings are said; errors end it.
fn read(paths: &[PathBuf], namespace: &str) -> Result<Vec<Arc<Object>>, Failure> {
    let mut objects = Vec::new();
    let mut found = Vec::new();
    for document in files::read(paths)? {
        let (read, wrong) = api::parse(&document.file, &document.text, namespace);
        objects.extend(read.into_iter().map(Arc::new));
        found.extend(wrong.iter().map(problems::from_local));
    }
    for problem in &found {
        note(problems::render(problem).trim_end());
    }
    if found.iter().any(|problem| problem.severity == "error") {
        return Err(Failure::bad_input(format_args!("{} in the documents", problems::summary(&found))));
    }
    if objects.is_empty() {
        return Err(Failure::bad_input("the documents hold no object (hint: at least one Service is needed)"));
    }
    Ok(objects)
}

/// Labels and service account of the WorkloadEntry that describes this sidecar, where the documents have one.
fn adopt_workload(objects: &[Arc<Object>], settings: &mut Settings) {
    let node = &mut settings.node;
    let entry = objects.iter().find(|object| {
        object.kind == "WorkloadEntry" && object.namespace == node.namespace && object.name == node.workload
    });
    let Some(entry) = entry else { return };
    let spec = &entry.json["spec"];
    if let Some(service_account) = spec["serviceAccount"].as_str()
        && node.service_account == "default"
    {
        service_account.clone_into(&mut node.service_account);
    }
    for (key, value) in spec["labels"].as_object().into_iter().flatten() {
        if let Some(value) = value.as_str() {
            node.labels.entry(key.clone()).or_insert_with(|| value.to_owned());
        }
    }
    if let Some(locality) = spec["locality"].as_str()
        && node.locality.is_empty()
    {
        locality.clone_into(&mut node.locality);
    }
}

/// One view out of checked documents.
fn build(
    objects: &[Arc<Object>],
    settings: &Settings,
    roots_pem: &[String],
    generation: u64,
    previous: Option<&View>,
) -> Result<View, Failure> {
    let mesh_settings = MeshSettings { trust_domain: settings.node.trust_domain.clone(), ..MeshSettings::default() };
    let addresses = virtual_addresses(&needs_virtual_address(objects, &mesh_settings));
    let inputs = Inputs { objects, workloads: &[], virtual_addresses: &addresses, settings: &mesh_settings };
    let (mesh, found) = Mesh::build(inputs);
    for problem in found.iter().map(problems::from_local).filter(|problem| problem.severity != "info") {
        note(problems::render(&problem).trim_end());
    }
    let roots: Vec<Bytes> = roots_pem.iter().map(|pem| Bytes::from(pem.clone())).collect();
    let compiled = compile::compile(&mesh, &roots);
    let node = compile::node(&mesh, &workload(settings));
    let resources = compiled
        .iter()
        .map(|resource| (resource.kind, resource.name.to_string(), resource.bytes.to_vec()))
        .chain(std::iter::once((node.kind, node.name.to_string(), node.bytes.to_vec())));
    fixed::view(resources, generation, previous).map_err(|refused| {
        let first = refused.first().map(ToString::to_string).unwrap_or_else(|| "no reason was given".to_owned());
        let more = refused.len().saturating_sub(1);
        let more = if more == 0 { String::new() } else { format!(" (and {more} more)") };
        Failure::bad_input(format_args!("the documents make a configuration that the sidecar refuses: {first}{more}"))
    })
}

/// This sidecar as the mesh would know it had it joined.
fn workload(settings: &Settings) -> RegisteredWorkload {
    let node = &settings.node;
    let ports = settings
        .listeners
        .inbound
        .iter()
        .map(|inbound| WorkloadPort {
            target_port: inbound.target_port,
            name: inbound.port_name.clone(),
            reachable_port: inbound.listen.port(),
        })
        .collect();
    RegisteredWorkload {
        uid: format!("{}/{}", node.namespace, node.workload),
        namespace: node.namespace.clone(),
        workload: node.workload.clone(),
        service_account: node.service_account.clone(),
        labels: node.labels.clone(),
        locality: node.locality.clone(),
        address: settings.listeners.inbound.first().map(|inbound| inbound.listen.ip()),
        ports,
        ready: true,
        draining: false,
        mesh: PeerKind::Outrigger,
    }
}

/// An address of 240.240.0.0/16 for each service: the same for the same name in every sidecar, unless two names meet.
fn virtual_addresses(keys: &[String]) -> BTreeMap<String, Vec<IpAddr>> {
    /// Addresses to give out: the network's first and last stay free.
    const SIZE: u64 = 65_534;
    let mut taken = std::collections::HashSet::new();
    let mut given = BTreeMap::new();
    for key in keys.iter().take(SIZE as usize) {
        // FNV-1a: any spread does, but it must be the same in every process.
        let hash = key
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        let mut place = hash % SIZE;
        while !taken.insert(place) {
            place = (place + 1) % SIZE;
        }
        let [high, low] = u16::try_from(place + 1).unwrap_or(1).to_be_bytes();
        given.insert(key.clone(), vec![IpAddr::V4(Ipv4Addr::new(240, 240, high, low))]);
    }
    given
}

/// Who gives us our certificate, now and later.
enum Keeper {
    Files(PathBuf),
    Issuing(Box<Issuing>),
}

impl Keeper {
    fn new(origin: Origin, settings: &Settings) -> Result<Self, Failure> {
        let node = &settings.node;
        let identity = || {
            Identity::new(&node.trust_domain, &node.namespace, &node.service_account)
                .map_err(|error| Failure::usage(format_args!("--as: {error}")))
        };
        Ok(match origin {
            Origin::Files(folder) => Self::Files(folder),
            Origin::Shared(folder) => Self::Issuing(Box::new(certificates::shared(&folder, identity()?)?)),
            Origin::Own => Self::Issuing(Box::new(certificates::own(identity()?)?)),
        })
    }

    fn proof(&self) -> Result<Proof, Failure> {
        match self {
            Self::Files(folder) => certificates::from_files(folder),
            Self::Issuing(issuing) => issuing.issue(),
        }
    }

    /// Files to watch for a new certificate.
    fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Files(folder) => ["tls.crt", "tls.key", "ca.crt"].iter().map(|name| folder.join(name)).collect(),
            Self::Issuing(_) => Vec::new(),
        }
    }
}

/// What it takes to make the next view or identity.
struct Follow {
    paths: Vec<PathBuf>,
    documents: watch::Watch,
    certificates: watch::Watch,
    keeper: Keeper,
    settings: Settings,
    roots: Vec<String>,
    sender: mpsc::Sender<Update>,
    view: Arc<View>,
}

impl Follow {
    fn run(mut self) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!(%error, "changed files will not be noticed"),
        };
        runtime.block_on(async move {
            let mut hangup = match signal(SignalKind::hangup()) {
                Ok(hangup) => hangup,
                Err(error) => return tracing::error!(%error, "changed files will not be noticed"),
            };
            let mut tick = tokio::time::interval(watch::INTERVAL);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut issued = Instant::now();
            loop {
                let (mut reload, mut renew) = (false, false);
                tokio::select! {
                    () = self.sender.closed() => return,
                    _ = hangup.recv() => (reload, renew) = (true, matches!(self.keeper, Keeper::Files(_))),
                    _ = tick.tick() => {
                        reload |= self.documents.changed();
                        renew |= self.certificates.changed();
                        renew |= matches!(self.keeper, Keeper::Issuing(_)) && issued.elapsed() > renew_after();
                    }
                }
                if renew && self.renew().await {
                    issued = Instant::now();
                }
                if reload {
                    self.reload().await;
                }
            }
        });
    }

    async fn reload(&mut self) {
        let next = read(&self.paths, &self.settings.node.namespace).and_then(|objects| {
            let generation = self.view.generation + 1;
            build(&objects, &self.settings, &self.roots, generation, Some(&self.view))
        });
        match next {
            Ok(view) => {
                self.view = Arc::new(view);
                let generation = self.view.generation;
                let update = Update { view: Some(self.view.clone()), material: None };
                if self.sender.send(update).await.is_ok() {
                    tracing::info!(generation, "documents changed; new configuration handed over");
                }
            }
            Err(failure) => {
                tracing::warn!(reason = %failure.message, "documents changed and are wrong; the last good ones stay in force");
            }
        }
    }

    /// Hands a new identity over. False when there is none to hand over.
    async fn renew(&mut self) -> bool {
        match self.keeper.proof() {
            Ok(proof) => {
                self.roots = proof.roots_pem;
                let update = Update { view: None, material: Some(proof.material) };
                if self.sender.send(update).await.is_ok() {
                    tracing::info!(identity = %proof.identity, "new certificate handed over");
                }
                true
            }
            Err(failure) => {
                tracing::warn!(reason = %failure.message, "no new certificate; the last one stays in force");
                false
            }
        }
    }
}

/// Half the lifetime, the usual moment to renew.
fn renew_after() -> Duration {
    LEAF_LIFETIME / 2
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn two_sidecars_give_a_service_the_same_address() {
        // A name that resolves to one address here and to another there would break what the applications cached.
        let all: Vec<String> = (0..500).map(|n| format!("shop/service-{n}.shop.svc.cluster.local")).collect();
        let one = virtual_addresses(&all);
        let same = virtual_addresses(&all);
        assert_eq!(one, same);
        let distinct: std::collections::HashSet<_> = one.values().flatten().collect();
        assert_eq!(distinct.len(), 500);
        assert!(one.values().flatten().all(|address| address.to_string().starts_with("240.240.")));
    }
}
