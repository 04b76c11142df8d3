//! Outrigger's control plane and command line.

pub mod demo; // the whole mesh and a small shop from one command
