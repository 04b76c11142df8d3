//! Outrigger's control plane and command line, as a library.
//!
//! Modules in the order a change travels.

pub mod control_plane;
pub mod settings;
