//! Outrigger's control plane: from what users write to what each proxy must know.

// What users write, checked while it is read.
pub mod api;
// What is wrong with it, in words.
pub mod validate;
// The mesh in our own words: references resolved, conflicts settled.
pub mod model;
// What each proxy must know.
pub mod compile;
