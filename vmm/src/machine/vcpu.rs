//! A vCPU's thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};

use boxlite_devices::Bus;
use boxlite_hv::{BootState, Exit, Result, Vcpu, Vm};

use super::build::Stop;

/// What the vCPUs of a machine share.
pub(super) struct Shared<V> {
    pub(super) vm: Arc<V>,
    pub(super) mmio: Arc<Bus>,
    pub(super) pio: Arc<Bus>,
    /// Set before the vCPUs are kicked out for good.
    pub(super) stopping: AtomicBool,
    pub(super) stop: Sender<Stop>,
    /// All vCPUs exist before the first one runs: it may start the others at once.
    pub(super) all_bound: Barrier,
}

/// Starts the thread of vCPU `id`.
pub(super) fn spawn<V: Vm>(
    shared: Arc<Shared<V>>,
    id: u32,
    boot: BootState,
) -> std::io::Result<JoinHandle<()>> {
    thread::Builder::new().name(format!("vcpu{id}")).spawn(move || {
        let vcpu = shared.vm.bind_vcpu(id, &boot);
        shared.all_bound.wait();
        let result = vcpu.and_then(|mut vcpu| run(&shared, &mut vcpu));
        if let Err(e) = result {
            // The receiver is gone only when the machine is ending anyway.
            let _ = shared.stop.send(Stop::Failed(e.to_string()));
        }
    })
}

/// Runs until the guest ends itself or the machine is stopped.
fn run<V: Vm>(shared: &Shared<V>, vcpu: &mut V::Vcpu) -> Result<()> {
    while !shared.stopping.load(Ordering::SeqCst) {
        match vcpu.run()? {
            Exit::MmioRead { gpa, data } => shared.mmio.read(gpa, data),
            Exit::MmioWrite { gpa, data } => shared.mmio.write(gpa, data),
            Exit::PioRead { port, data } => shared.pio.read(port.into(), data),
            Exit::PioWrite { port, data } => shared.pio.write(port.into(), data),
            Exit::Shutdown | Exit::Reset => {
                let _ = shared.stop.send(Stop::Guest);
                return Ok(());
            }
            Exit::Kicked => {}
            other => tracing::warn!(exit = ?other, "vCPU exit ignored"),
        }
    }
    Ok(())
}
