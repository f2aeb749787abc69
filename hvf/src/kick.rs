//! Making a vCPU leave the guest from another thread.
//!
//! A kick sets a flag, then calls `hv_vcpus_exit`, then wakes vCPUs that wait outside the guest. The vCPU takes the flag
//! before each entry and after each exit. `hv_vcpus_exit` holds for the next entry if the vCPU is outside, so that
//! there is no window in which a kick is lost; an exit without a flag comes from a kick that was taken before.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use boxlite_hv::Result;

use crate::sys;

/// Whether a vCPU was kicked.
#[derive(Clone, Debug, Default)]
pub(super) struct Kicked(Arc<AtomicBool>);

impl Kicked {
    /// Takes the kick.
    pub(super) fn take(&self) -> bool {
        self.0.swap(false, Ordering::SeqCst)
    }

    /// Whether there is a kick to take.
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// The vCPUs that can be kicked.
#[derive(Debug, Default)]
pub(super) struct Kicks(Mutex<BTreeMap<u32, Target>>);

#[derive(Debug)]
struct Target {
    /// The framework's name of the vCPU.
    vcpu: u64,
    kicked: Kicked,
}

impl Kicks {
    fn targets(&self) -> MutexGuard<'_, BTreeMap<u32, Target>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a vCPU under the framework's name of it.
    pub(super) fn register(&self, id: u32, vcpu: u64) -> Kicked {
        let kicked = Kicked::default();
        self.targets().insert(id, Target { vcpu, kicked: kicked.clone() });
        kicked
    }

    /// Removes a vCPU, on its thread, before it is destroyed.
    pub(super) fn forget(&self, id: u32) {
        self.targets().remove(&id);
    }

    /// Kicks a vCPU in the guest. Registered vCPUs exist, and [`forget`](Self::forget) waits for the lock held here.
    pub(super) fn kick(&self, id: u32) -> Result<()> {
        let targets = self.targets();
        let Some(target) = targets.get(&id) else { return Ok(()) };
        target.kick()
    }

    /// Kicks all vCPUs in the guest but one.
    pub(super) fn kick_others(&self, id: u32) -> Result<()> {
        let targets = self.targets();
        let mut others = targets.iter().filter(|(other, _)| **other != id);
        others.try_for_each(|(_, target)| target.kick())
    }
}

impl Target {
    fn kick(&self) -> Result<()> {
        self.kicked.0.store(true, Ordering::SeqCst);
        sys::exit(self.vcpu)
    }
}
