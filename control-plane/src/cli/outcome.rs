//! How a command ends: its exit code and, when it failed, the one message that says why.
//!
//! Every command returns an [`Outcome`]; only `cli::main` turns it into a process exit. Codes follow sysexits where
//! scripts for other meshes already expect them.

use std::{fmt, process::ExitCode};

/// Exit codes of every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Ok = 0,
    /// What was asked for did not happen.
    Failed = 1,
    /// The command line is wrong.
    Usage = 64,
    /// A file, document, token or certificate is wrong.
    BadInput = 65,
    /// `analyze` found problems.
    Findings = 79,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command ended without doing what it was asked.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    pub exit: Exit,
    /// Shown after `error: `; empty when everything was already said.
    pub message: String,
}

/// How a command ends.
pub type Outcome = Result<Exit, Failure>;

impl Failure {
    pub fn failed(message: impl fmt::Display) -> Self {
        Self { exit: Exit::Failed, message: message.to_string() }
    }

    pub fn usage(message: impl fmt::Display) -> Self {
        Self { exit: Exit::Usage, message: message.to_string() }
    }

    pub fn bad_input(message: impl fmt::Display) -> Self {
        Self { exit: Exit::BadInput, message: message.to_string() }
    }

    /// Ends with this code and says nothing more.
    pub const fn silent(exit: Exit) -> Self {
        Self { exit, message: String::new() }
    }
}

impl From<outrigger_proxy::arguments::ArgumentProblem> for Failure {
    fn from(problem: outrigger_proxy::arguments::ArgumentProblem) -> Self {
        use outrigger_proxy::arguments::ArgumentProblem;
        match problem {
            ArgumentProblem::Usage(message) => Self::usage(message),
            ArgumentProblem::Input(message) => Self::bad_input(message),
        }
    }
}
