//! One view from a fixed set of resources: static mode, where no control plane answers.

use outrigger_proto::kind::Kind;

use super::{decode::Rejected, view::View};

/// The view that these resources make; names that are referred to and not among them count as absent.
///
/// `previous` lets unchanged parts be shared with the view before.
///
/// # Errors
/// Every resource that was refused; then nothing of the new set applies.
pub fn view(
    resources: impl IntoIterator<Item = (Kind, String, Vec<u8>)>,
    generation: u64,
    previous: Option<&View>,
) -> Result<View, Vec<Rejected>> {
    let _ = (resources.into_iter(), generation, previous);
    Err(Vec::new())
}
