//! The binary `outrigger`: control plane, command line and sidecar in one.

use std::process::ExitCode;

fn main() -> ExitCode {
    outrigger_control_plane::cli::main()
}
