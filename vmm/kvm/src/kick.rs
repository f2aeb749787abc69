//! Making a vCPU leave KVM_RUN from another thread.
//!
//! `immediate_exit` in the shared `kvm_run` page makes the next KVM_RUN return at once; a signal
//! makes the current one return. Both together leave no window in which a kick is lost.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use boxlite_hv::{Error, Result};
use kvm_bindings::kvm_run;

/// The vCPUs that can be kicked.
#[derive(Debug)]
pub(super) struct Kicks(Mutex<BTreeMap<u32, Target>>);

#[derive(Debug)]
struct Target {
    thread: libc::pthread_t,
    immediate_exit: *const AtomicU8,
}

// SAFETY: the pointer is to an atomic in a mapping that lives until `Kicks::forget`, and the thread
// ends only after it.
unsafe impl Send for Target {}

impl Kicks {
    pub(super) fn new() -> Result<Self> {
        static INSTALLED: Mutex<bool> = Mutex::new(false);
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        if !*installed {
            install_handler()?;
            *installed = true;
        }
        Ok(Self(Mutex::default()))
    }

    fn targets(&self) -> MutexGuard<'_, BTreeMap<u32, Target>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a vCPU that the calling thread is about to run, with its shared page at `run`.
    pub(super) fn register(&self, id: u32, run: *mut kvm_run) {
        // SAFETY: `run` is the vCPU's mapped page; no reference is made.
        let immediate_exit = unsafe { &raw mut (*run).immediate_exit }.cast::<AtomicU8>();
        // SAFETY: no requirements.
        let thread = unsafe { libc::pthread_self() };
        self.targets().insert(id, Target { thread, immediate_exit });
    }

    /// Removes a vCPU, on its thread, before its file is closed.
    pub(super) fn forget(&self, id: u32) {
        self.targets().remove(&id);
    }

    pub(super) fn kick(&self, id: u32) -> Result<()> {
        let targets = self.targets();
        let Some(target) = targets.get(&id) else { return Ok(()) };
        // SAFETY: registered targets are alive, and `forget` waits for the lock held here.
        unsafe { (*target.immediate_exit).store(1, Ordering::SeqCst) };
        // SAFETY: as above: the thread has not ended. The signal has a handler.
        match unsafe { libc::pthread_kill(target.thread, kick_signal()) } {
            0 => Ok(()),
            errno => Err(Error::Call {
                call: "pthread_kill",
                source: std::io::Error::from_raw_os_error(errno),
            }),
        }
    }
}

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Without a handler the signal would end the process; without SA_RESTART it ends the system call.
fn install_handler() -> Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: all-zero is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
    // SAFETY: `action` is initialized and its handler does nothing that a handler may not.
    match unsafe { libc::sigaction(kick_signal(), &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error("sigaction")),
    }
}
