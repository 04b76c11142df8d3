//! Traffic of applications that do not know about us: redirect rules, the proof that they work, names as DNS.
//!
//! `outrigger-proxy intercept` and `outrigger intercept` run [`run`] once, in an init container or a unit's start; the
//! proxy itself only serves [`dns`].

pub mod dns;

use std::process::ExitCode;

/// Arguments of `intercept`.
#[derive(Clone, Debug, clap::Args)]
pub struct InterceptArgs {}

/// Does what the arguments say; prints data on standard output and messages on standard error.
pub fn run(args: InterceptArgs) -> ExitCode {
    let _ = args;
    ExitCode::FAILURE
}
