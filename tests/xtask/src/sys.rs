//! What differs between operating systems.

/// Whether an executable needs an entitlement to create VMs.
pub(crate) const NEEDS_ENTITLEMENT: bool = cfg!(target_os = "macos");
