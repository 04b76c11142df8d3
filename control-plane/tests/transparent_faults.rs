//! The faults of `faults.rs` once more, with a network namespace for each workload, real redirect rules, and clients that
//! know nothing but names.
//!
//! Needs root, iptables or nft, and iproute2; without them the tests say so and pass, unless OUTRIGGER_REQUIRE_NETNS=1.

#![allow(clippy::unwrap_used)]

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use harness::{
    application,
    control::NAMESPACE,
    load::{Door, Front},
    mesh::{API, CONTROL_PLANE, Place, Plan, SERVICE_PORT, authority},
    scenarios,
};
use mesh::host::Host;
use outrigger_control_plane::demo::{
    guardian::Guard,
    network::{self, Network, NetworkHold},
};

#[path = "faults/mod.rs"]
mod harness;
mod mesh;

/// User id of sidecars; the redirect rules let it pass.
const SIDECAR_USER: u32 = 1337;
const ADMIN_PORT: u16 = 15000;
const DISCOVERY_PORT: u16 = 15012;

/// The namespaces and the threads that live in them. Dropped in this order, the guardian last.
struct Ground {
    hosts: Vec<Host>,
    network: Option<NetworkHold>,
    guard: Mutex<Option<Guard>>,
}

impl Ground {
    fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name == name).unwrap()
    }

    /// An address as a host sees it.
    fn door(&self, host: &str, address: SocketAddr) -> Door {
        Door { address, host: Some(self.host(host).runtime()) }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.hosts.clear();
        self.network = None;
        if let Some(guard) = self.guard.get_mut().unwrap().take() {
            guard.done();
        }
    }
}

/// Every workload in a namespace of its own. `None`: not possible on this machine.
fn plan() -> Option<Plan> {
    if let Err(reason) = network::check() {
        let required = std::env::var_os("OUTRIGGER_REQUIRE_NETNS").is_some_and(|value| value == "1");
        assert!(!required, "OUTRIGGER_REQUIRE_NETNS=1, but {reason:#}");
        eprintln!("skipped: {reason:#}");
        return None;
    }
    let mut guard = Guard::start(Path::new(env!("CARGO_BIN_EXE_outrigger"))).unwrap();
    let network = Network::plan().unwrap();
    guard.network(network.prefix());
    let hold = NetworkHold(network.clone());
    let workloads = ["caller", API[0], API[1], API[2], "store"];
    let names: Vec<&'static str> = [CONTROL_PLANE].into_iter().chain(workloads).collect();
    let hosts: Vec<_> = names.iter().map(|name| (*name, NAMESPACE)).collect();
    network.create(&hosts).unwrap();
    let hosts = names.iter().enumerate().map(|(index, name)| Host::enter(&network, index, name)).collect();
    let ground = Ground { hosts, network: Some(hold), guard: Mutex::new(Some(guard)) };

    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let enter = |name: &str| -> Vec<OsString> { network.enter(name).into_iter().map(Into::into).collect() };
    let user = SIDECAR_USER.to_string();
    let places = workloads.into_iter().map(|name| {
        let app = name.split('-').next().unwrap();
        let mut flags = vec!["--transparent".to_owned()];
        let mut flag = |flag: &str, value: String| flags.extend([flag.to_owned(), value]);
        flag("--address", ground.host(name).address.to_string());
        flag("--dns", local(15053).to_string());
        if app != "caller" {
            flag("--port", format!("{SERVICE_PORT}=http"));
        }
        let mut enter_sidecar = enter(name);
        let change_user = ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups", "--"];
        enter_sidecar.extend(change_user.map(OsString::from));
        let rules = ["intercept", "apply", "--dns", "--proxy-uid", &user].map(str::to_owned).to_vec();
        Place {
            name,
            app,
            version: if name == API[2] { "v2" } else { "v1" },
            enter: enter(name),
            enter_sidecar,
            application: (app != "caller").then(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, SERVICE_PORT))),
            flags,
            admin: ground.door(name, local(ADMIN_PORT)),
            before: vec![rules],
        }
    });
    let places = places.collect();
    // The addresses are looked up when the mesh is there.
    let front = |host: &str, service: &str| Front { door: ground.door(host, local(1)), authority: authority(service) };
    Some(Plan {
        places,
        discovery: SocketAddr::new(IpAddr::V4(ground.host(CONTROL_PLANE).address), DISCOVERY_PORT),
        admin: ground.door(CONTROL_PLANE, local(15010)),
        enter_control_plane: enter(CONTROL_PLANE),
        front: front("caller", "api"),
        way_out: front(API[0], "store"),
        look_up: Some(look_up),
        sidecar_user: Some(SIDECAR_USER),
        ground: Some(Arc::new(ground)),
    })
}

/// The virtual addresses, as the workloads' own resolvers find them.
fn look_up(plan: &mut Plan) {
    let ground = Arc::clone(plan.ground.as_ref().unwrap());
    let ground = ground.downcast_ref::<Ground>().unwrap();
    for (front, host, service) in [(&mut plan.front, "caller", "api"), (&mut plan.way_out, API[0], "store")] {
        let address = ground.host(host).address_of(&format!("{service}.{NAMESPACE}.svc.cluster.local."));
        front.door.address = SocketAddr::new(address, SERVICE_PORT);
    }
}

#[test]
#[ignore = "the other tests start it as the processes behind their sidecars"]
fn application() {
    application::run_if_asked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hot_swaps_lose_nothing() {
    // A change of configuration would reset connections or fail requests.
    let Some(plan) = plan() else { return };
    scenarios::hot_swap(plan).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_application_fails_no_idempotent_request() {
    // A crash of one of three replicas would be seen by users.
    let Some(plan) = plan() else { return };
    scenarios::application_killed(plan).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_replica_fails_no_idempotent_request() {
    // The loss of a machine would be seen by users.
    let Some(plan) = plan() else { return };
    scenarios::replica_killed(plan).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_request() {
    // Every deployment would cost requests.
    let Some(plan) = plan() else { return };
    scenarios::rolling_restart(plan, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_both_at_once_fails_no_idempotent_request() {
    // So would every deployment where application and sidecar are told to stop in the same moment.
    let Some(plan) = plan() else { return };
    scenarios::rolling_restart(plan, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sidecars_restart_without_the_control_plane() {
    // A crash of one sidecar during an outage of the control plane would take its workload out for as long.
    let Some(plan) = plan() else { return };
    scenarios::restarts_without_control_plane(plan, outage()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_application_is_avoided() {
    // One process that hangs would take its share of all requests with it.
    let Some(plan) = plan() else { return };
    scenarios::application_hangs(plan).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_sidecar_finishes_what_it_has() {
    // Streams would be cut, and applications could not finish their work, at every deployment.
    let Some(plan) = plan() else { return };
    scenarios::drain(plan).await;
}

/// How long the control plane is away; `OUTRIGGER_TEST_OUTAGE_SECONDS`, default 4.
fn outage() -> Duration {
    let seconds = std::env::var("OUTRIGGER_TEST_OUTAGE_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(4))
}
