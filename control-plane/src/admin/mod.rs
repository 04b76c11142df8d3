//! What the command line asks of the control plane: the gRPC service on loopback, behind TLS and the admin token.
//!
//! `service` answers the calls; `objects` applies, compares and shows what users wrote; `status` says what became of it;
//! `rollout` waits until proxies have it in effect; `dump` shows what one proxy holds; `token` guards the door.

pub mod dump;
pub mod objects;
pub mod rollout;
pub mod service;
pub mod status;
pub mod token;

pub use service::AdminService;
