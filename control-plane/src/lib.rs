//! Outrigger's control plane and command line, as a library.
//!
//! Modules in the order a change travels.

// What users write, checked while it is read.
pub mod api;
// What is wrong with it, in words.
pub mod validate;
// Objects with their history; tokens, addresses and registrations.
pub mod store;
// Workloads that joined through their sidecars.
pub mod registry;
// The mesh in our own words: references resolved, conflicts settled.
pub mod model;
// What each proxy must know.
pub mod compile;
// From a change to the next catalogue of resources.
pub mod pipeline;
// Who gets what: streams, subscriptions, acks and refusals.
pub mod discovery;

// The path of a certificate.
pub mod authority;
// Connections in: TLS, limits, and who is calling.
pub mod listener;
// What the command line asks.
pub mod admin;
// Metrics, readiness and version.
pub mod monitoring;
pub mod telemetry;
// How it is started, and what then runs.
pub mod control_plane;
pub mod settings;

// The command line.
pub mod cli;
// The whole mesh and a small shop from one command.
pub mod demo;
