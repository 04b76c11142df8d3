//! What the fault tests share: a mesh of real processes, load with a ledger, and the scenarios themselves.
//!
//! `mesh` starts processes and breaks them, `application` is the process behind every sidecar, `load` and `streams` are
//! the clients, `ledger` says what was lost, doubled or mixed up, `scenarios` are the faults. Which addresses and
//! namespaces there are is decided by each test file ([`mesh::Place`]), so that the same scenarios run in every mode.

#![allow(dead_code, clippy::unwrap_used)]

pub mod application;
pub mod control;
pub mod ledger;
pub mod load;
pub mod mesh;
pub mod scenarios;
pub mod streams;
