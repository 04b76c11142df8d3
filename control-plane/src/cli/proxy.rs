//! `proxy`: one sidecar, joined to a control plane or from files.

use std::path::PathBuf;

use clap::Args;
use outrigger_proxy::{
    arguments::SidecarArguments,
    settings::Settings,
    sidecar::{self, Source},
    telemetry::log::{self, LogFormat},
};

use super::{
    certificates::Origin,
    outcome::{Exit, Failure, Outcome},
    output::{print, to_yaml},
    static_mesh,
};

/// `outrigger proxy`.
#[derive(Args, Clone, Debug)]
pub struct ProxyArgs {
    /// Run from these documents instead of a control plane: file or directory; repeatable
    #[arg(long = "static", value_name = "FILE", requires = "as_workload", conflicts_with_all = ["control_plane", "token_file", "root_file"], help_heading = "Static mode")]
    pub documents: Vec<PathBuf>,
    /// Which workload of the documents this sidecar stands beside
    #[arg(long = "as", id = "as_workload", value_name = "NAMESPACE/WORKLOAD", value_parser = workload, requires = "documents", help_heading = "Static mode")]
    pub as_workload: Option<(String, String)>,
    /// Folder with tls.crt, tls.key and ca.crt
    #[arg(long, value_name = "DIR", requires = "documents", help_heading = "Static mode")]
    pub cert_dir: Option<PathBuf>,
    /// Folder of an authority, made when missing; sidecars given the same folder trust each other
    #[arg(long, value_name = "DIR", requires = "documents", conflicts_with = "cert_dir", help_heading = "Static mode")]
    pub dev_ca: Option<PathBuf>,
    /// How the process log is written
    #[arg(long, value_enum, default_value = "text", help_heading = "Running")]
    pub log_format: LogFormat,
    #[command(flatten)]
    pub sidecar: SidecarArguments,
}

fn workload(text: &str) -> Result<(String, String), String> {
    let Some((namespace, workload)) = text.split_once('/') else {
        return Err(format!("\"{text}\" is not NAMESPACE/WORKLOAD (for example shop/reviews-v1)"));
    };
    Ok((outrigger_proxy::arguments::name(namespace)?, outrigger_proxy::arguments::name(workload)?))
}

/// Reads a YAML settings file as a tree.
fn read_config(text: &str) -> Result<serde_json::Value, String> {
    serde_saphyr::from_str(text).map_err(|error| {
        let text = error.to_string();
        text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
    })
}

/// Runs `outrigger proxy`.
pub fn proxy(args: ProxyArgs) -> Outcome {
    let mut settings = args.sidecar.settings(read_config)?;
    let joined = args.documents.is_empty();
    if let Some((namespace, workload)) = &args.as_workload {
        name_static(&args.sidecar, &mut settings, namespace, workload)?;
    }
    if args.sidecar.print_settings {
        print(&to_yaml(&settings)?)?;
        return Ok(Exit::Ok);
    }
    let log = log::start(args.log_format, &args.sidecar.log_level).map_err(Failure::usage)?;
    let source = if joined {
        args.sidecar.check_joined(&settings)?;
        Source::ControlPlane
    } else {
        let origin = match (args.cert_dir, args.dev_ca) {
            (Some(folder), _) => Origin::Files(folder),
            (None, Some(folder)) => Origin::Shared(folder),
            (None, None) => Origin::Own,
        };
        settings.control_plane = None;
        static_mesh::source(args.documents, origin, &mut settings)?
    };
    let ended = sidecar::run(settings, source, Some(log.clone())).map_err(Failure::failed);
    log.flush();
    ended.map(|()| Exit::Ok)
}

/// `--as` is the name; a second, different one is a mistake.
fn name_static(
    flags: &SidecarArguments,
    settings: &mut Settings,
    namespace: &str,
    workload: &str,
) -> Result<(), Failure> {
    let differs = |given: &Option<String>, said: &str| given.as_ref().is_some_and(|given| given != said);
    if differs(&flags.workload, workload) || differs(&flags.namespace, namespace) {
        return Err(Failure::usage(format_args!(
            "--as {namespace}/{workload} and --namespace/--workload name different workloads (hint: --as alone is enough)"
        )));
    }
    let node = &mut settings.node;
    // Local services named without a namespace were completed with the default one.
    if node.namespace != namespace {
        let old = format!(".{}", node.namespace);
        for local in &mut settings.listeners.local {
            if let Some(service) = local.host.strip_suffix(&old)
                && !service.contains('.')
                && flags.local.iter().any(|flag| flag.host == service)
            {
                local.host = format!("{service}.{namespace}");
            }
        }
    }
    namespace.clone_into(&mut node.namespace);
    workload.clone_into(&mut node.workload);
    Ok(())
}
