//! Outrigger's control plane and command line, as a library.
//!
//! Modules in the order a change travels.

// What users write, checked while it is read.
pub mod api;
// What is wrong with it, in words.
pub mod validate;
// The mesh in our own words: references resolved, conflicts settled.
pub mod model;
// What each proxy must know.
pub mod compile;

pub mod control_plane;
pub mod settings;

pub mod demo; // the whole mesh and a small shop from one command
pub mod cli; //  the command line
