//! Everything put together.

use std::sync::Arc;

use crate::{config::view::View, identity::Material, settings::Settings};

/// Where configuration and identity come from.
#[derive(Debug)]
pub enum Source {
    /// From `settings.control_plane`.
    ControlPlane,
    /// From the caller, who may replace them.
    Fixed { view: Arc<View>, material: Material, updates: tokio::sync::mpsc::Receiver<Update> },
}

/// What a caller replaces.
#[derive(Debug)]
pub struct Update {
    pub view: Option<Arc<View>>,
    pub material: Option<Material>,
}

/// Why the sidecar ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("this build has no data path")]
    Missing,
}

/// Runs one sidecar until it is told to stop.
///
/// # Errors
/// Why it could not start or go on.
pub fn run(_settings: Settings, _source: Source) -> Result<(), RunError> {
    Err(RunError::Missing)
}
