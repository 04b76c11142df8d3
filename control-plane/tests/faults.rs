//! Faults and changes under load, with real processes on loopback: what a mesh must get through without losing anything.
//!
//! Explicit mode, no privileges. One mesh at a time; each test prints its ledger (`--nocapture` shows it).

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use harness::{application, mesh::Plan, scenarios};

#[path = "faults/mod.rs"]
mod harness;

/// Replicas of the service under load.
const REPLICAS: usize = 3;

#[test]
#[ignore = "the other tests start it as the processes beside their sidecars"]
fn application() {
    application::run_if_asked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hot_swaps_lose_nothing() {
    // A change of configuration would reset connections or fail requests.
    scenarios::hot_swap(Plan::explicit(REPLICAS)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_leave_nothing_behind() {
    // A mesh that changes all day would grow until it is killed.
    scenarios::no_growth(Plan::explicit(REPLICAS)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_application_fails_no_idempotent_request() {
    // A crash of one of three replicas would be seen by users.
    scenarios::application_killed(Plan::explicit(REPLICAS)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_replica_fails_no_idempotent_request() {
    // The loss of a machine would be seen by users.
    scenarios::replica_killed(Plan::explicit(REPLICAS)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_request() {
    // Every deployment would cost requests.
    scenarios::rolling_restart(Plan::explicit(REPLICAS), false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_both_at_once_fails_no_idempotent_request() {
    // So would every deployment where application and sidecar are told to stop in the same moment.
    scenarios::rolling_restart(Plan::explicit(REPLICAS), true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_does_not_need_the_control_plane() {
    // The control plane would be a single point of failure for everything.
    scenarios::control_plane_killed(Plan::explicit(REPLICAS), outage()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sidecars_restart_without_the_control_plane() {
    // A crash of one sidecar during an outage of the control plane would take its workload out for as long.
    scenarios::restarts_without_control_plane(Plan::explicit(REPLICAS), outage()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_application_is_avoided() {
    // One process that hangs would take its share of all requests with it.
    scenarios::application_hangs(Plan::explicit(REPLICAS)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_application_is_avoided_without_a_rule() {
    // Whoever wrote no DestinationRule would have no ejection, and that is nearly everybody.
    scenarios::application_hangs_without_a_rule(Plan::explicit(REPLICAS)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_endpoint_gets_less() {
    // One slow replica would make a third of all requests slow.
    scenarios::slow_endpoint(Plan::explicit(REPLICAS)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_updates_change_nothing() {
    // A typing error would become an outage.
    scenarios::invalid_updates(Plan::explicit(REPLICAS)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_sidecar_finishes_what_it_has() {
    // Streams would be cut, and applications could not finish their work, at every deployment.
    scenarios::drain(Plan::explicit(REPLICAS)).await;
}

/// How long the control plane is away; `OUTRIGGER_TEST_OUTAGE_SECONDS`, default 4.
fn outage() -> Duration {
    let seconds = std::env::var("OUTRIGGER_TEST_OUTAGE_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(4))
}
