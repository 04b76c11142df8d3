//! Who gets which request: each way of balancing with a real sidecar before real applications.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod canary;
mod examples;
mod grpc;
mod hashing;
mod locality;
mod simple;
mod stage;
mod warmup;
