//! `analyze`: what is wrong with files, without a control plane.
//!
//! The same reading, checking and building that the control plane does with them; all files are taken together, so
//! references between them count.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use clap::{Args, ValueEnum};
use outrigger_proto::admin::Problem;
use outrigger_proxy::arguments::name;
use serde_json::json;

use super::{
    files,
    outcome::{Exit, Outcome},
    output::{Report, count, note, print, print_json, print_yaml},
    problems,
};
use crate::{
    api,
    model::{Inputs, Mesh, MeshSettings},
};

/// `outrigger analyze`.
#[derive(Args, Clone, Debug)]
pub struct AnalyzeArgs {
    /// File, directory (read recursively) or - for standard input; repeatable
    #[arg(short = 'f', long = "filename", value_name = "FILE", required_unless_present_any = ["paths", "list_codes"])]
    pub files: Vec<PathBuf>,
    /// The same as -f
    #[arg(value_name = "FILE")]
    pub paths: Vec<PathBuf>,
    /// Namespace of objects that name none
    #[arg(short = 'n', long, default_value = "default", value_parser = name)]
    pub namespace: String,
    /// The least severity that counts as a finding for the exit code
    #[arg(long, value_enum, default_value_t = Threshold::Warning)]
    pub failure_threshold: Threshold,
    /// Leave out problems with this code; repeatable
    #[arg(long, value_name = "CODE", value_delimiter = ',')]
    pub suppress: Vec<String>,
    /// List all codes and their meaning, and exit
    #[arg(long)]
    pub list_codes: bool,
    /// How to print
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Report,
}

/// `--failure-threshold`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Threshold {
    Error,
    Warning,
    Info,
}

impl Threshold {
    fn reached_by(self, severity: &str) -> bool {
        match self {
            Self::Error => severity == "error",
            Self::Warning => matches!(severity, "error" | "warning"),
            Self::Info => true,
        }
    }
}

/// Runs `outrigger analyze`.
pub fn analyze(args: &AnalyzeArgs) -> Outcome {
    if args.list_codes {
        print(&api::reference())?;
        return Ok(Exit::Ok);
    }
    let known = |code: &str| crate::validate::codes::CODES.iter().any(|known| known.code.eq_ignore_ascii_case(code));
    if let Some(unknown) = args.suppress.iter().find(|code| !known(code)) {
        return Err(super::outcome::Failure::usage(format_args!(
            "--suppress {unknown}: no such code (hint: `outrigger analyze --list-codes` lists them)"
        )));
    }
    let paths: Vec<PathBuf> = args.files.iter().chain(&args.paths).cloned().collect();
    let documents = files::read(&paths)?;
    let mut objects = Vec::new();
    let mut found = Vec::new();
    for document in &documents {
        let (read, wrong) = api::parse(&document.file, &document.text, &args.namespace);
        objects.extend(read.into_iter().map(Arc::new));
        found.extend(wrong);
    }
    let settings = MeshSettings::default();
    let inputs = Inputs { objects: &objects, workloads: &[], virtual_addresses: &BTreeMap::new(), settings: &settings };
    found.extend(Mesh::build(inputs).1);
    let problems: Vec<Problem> = found
        .iter()
        .filter(|problem| !args.suppress.iter().any(|code| code.eq_ignore_ascii_case(problem.code)))
        .map(problems::from_local)
        .collect();
    report(args, &problems, objects.len(), documents.len())?;
    let findings = problems.iter().any(|problem| args.failure_threshold.reached_by(&problem.severity));
    Ok(if findings { Exit::Findings } else { Exit::Ok })
}

fn report(
    args: &AnalyzeArgs,
    problems: &[Problem],
    objects: usize,
    files: usize,
) -> Result<(), super::outcome::Failure> {
    let value = || {
        json!({
            "problems": problems.iter().map(problems::to_json).collect::<Vec<_>>(),
            "objects": objects,
            "files": files,
        })
    };
    match args.output {
        Report::Json => print_json(&value()),
        Report::Yaml => print_yaml(&value()),
        Report::Text => {
            for problem in problems {
                print(&problems::render(problem))?;
            }
            let looked_at = format!("{} in {}", count(objects, "object", "objects"), count(files, "file", "files"));
            if problems.is_empty() {
                print(&format!("no problems found ({looked_at})\n"))
            } else {
                note(&format!("{} ({looked_at})", problems::summary(problems)));
                Ok(())
            }
        }
    }
}
