//! Who gets what: connected proxies, what they asked for, what they hold, what they refused.
//!
//! Knows names, versions and bytes; not what they mean. `catalogue` is the newest set of resources, published by the pipeline;
//! `subscription` decides what a proxy is owed, `session` in which order and when, `service` moves it over the wire,
//! `sessions` lists who is connected.

pub mod catalogue;
pub mod features;
pub mod service;
pub mod session;
pub mod sessions;
pub mod subscription;

pub use catalogue::Catalogue;
pub use session::Session;
pub use sessions::Sessions;
