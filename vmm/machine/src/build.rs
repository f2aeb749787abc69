//! Builds a running VM from a LaunchSpec: memory, devices at their addresses, boot files, vCPUs.

use std::fs::File;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use boxlite_contract::metrics::{DiskMetrics, VmExitCounts};
use boxlite_contract::spec::{LaunchSpec, MEMORY_MIB, VCPUS};
use boxlite_devices::virtio::block::{BlockCounters, BlockCounts};
use boxlite_devices::virtio::vsock::VsockHandle;
use boxlite_devices::virtio::{MMIO_LEN, MmioTransport};
use boxlite_devices::{GuestMemory, LogBudget};
use boxlite_hv::{BootState, Perms, Vm, VmConfig};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::board::{Board, Files, RunningLoop};
use super::cmdline::cmdline;
use super::console::Console;
use super::memory;
use super::network::BoxNetwork;
use super::threads::Threads;
use super::vcpu::{self, Counters, Gate, Shared};
use super::vm_event::{EventSink, VmEvent, VmStop};
use crate::arch::{self, BootFiles, Hardware, layout};

/// Timeout for vCPUs to leave the guest when the VM is paused. A kick takes microseconds, but the access that a
/// vCPU is in may wait for a disk.
const PAUSE_LIMIT: Duration = Duration::from_secs(5);

/// What the hypervisor creates the VM of this spec with.
pub(super) fn config(spec: &LaunchSpec) -> Result<VmConfig> {
    ensure!(VCPUS.contains(&spec.vcpus), "{} vCPUs: a box has 1 to 64", spec.vcpus);
    ensure!(
        MEMORY_MIB.contains(&spec.memory_mib),
        "{} MiB of memory: a box has 128 MiB to 64 GiB",
        spec.memory_mib
    );
    let devices_end = layout::MMIO_START + layout::DEVICE_IRQS.len() as u64 * MMIO_LEN;
    let address_end = layout::memory_ranges(spec.memory_mib << 20)
        .into_iter()
        .map(|(start, len)| start.raw_value() + len)
        .fold(devices_end, u64::max);
    Ok(VmConfig { vcpus: spec.vcpus.into(), nested: spec.nested, address_end })
}

/// A running VM.
pub(super) struct RunningVm<V: Vm> {
    shared: Arc<Shared<V>>,
    vcpus: Vec<JoinHandle<()>>,
    devices: Vec<Arc<Mutex<MmioTransport>>>,
    workers: Vec<JoinHandle<()>>,
    disks: Vec<Arc<BlockCounters>>,
    event_loop: RunningLoop,
    vsock: VsockHandle,
    console: Console,
    /// Mapped into the VM: dropped after it.
    memory: Arc<GuestMemory>,
}

impl<V: Vm> RunningVm<V> {
    /// Builds the VM, which was created with the [`config`] of the spec, and starts its vCPUs.
    pub(super) fn start(
        vm: V,
        spec: &LaunchSpec,
        files: &[File],
        network: Option<&BoxNetwork>,
        threads: &Threads,
        events: EventSink,
    ) -> Result<Self> {
        let threads = &threads.reporting({
            let events = events.clone();
            move |why| events(VmEvent::Stop(VmStop::Failed(why)))
        });
        let vm = Arc::new(vm);
        let memory = memory::allocate(spec.memory_mib << 20)
            .with_context(|| format!("cannot get {} MiB of guest memory", spec.memory_mib))?;
        let memory = Arc::new(memory);
        map(&*vm, &memory)?;

        let files = Files(files);
        let console = Console::new(spec.console.map(|n| files.get(n)).transpose()?);
        let mut board = Board::new(vm.clone(), memory.clone(), threads.clone())?;
        for (n, disk) in spec.disks.iter().enumerate() {
            board.add_disk(n, disk, &files, &events)?;
        }
        let vsock = board.add_vsock(&events)?;
        if let Some(network) = network {
            board.add(Box::new(network.device()?))?;
        }
        board.add_rng()?;
        board.add_legacy(&console, &events)?;

        let hardware = Hardware { vcpus: spec.vcpus, devices: &board.windows };
        let cmdline = cmdline(spec, network, &hardware);
        let boot_files =
            BootFiles { kernel: &spec.kernel, initramfs: &spec.initramfs, cmdline: &cmdline };
        let boot = arch::load(&memory, &hardware, &boot_files)?;

        let Board { buses, devices, workers, disks, event_loop, .. } = board;
        let shared = Arc::new(Shared {
            vm,
            buses,
            gate: Gate::new(spec.vcpus.into()),
            events,
            log: LogBudget::default(),
            counters: (0..spec.vcpus).map(|_| Counters::default()).collect(),
        });
        let vcpus = (0..u32::from(spec.vcpus))
            .map(|id| {
                let boot = if id == 0 { boot } else { BootState::Parked };
                vcpu::spawn(threads, shared.clone(), id, boot)
            })
            .collect::<std::io::Result<_>>()
            // The vCPUs that were started wait for the others.
            .inspect_err(|_| shared.gate.end())
            .context("cannot start a vCPU's thread")?;
        Ok(Self { shared, vcpus, devices, workers, disks, event_loop, vsock, console, memory })
    }

    /// The box's vsock, to attach clients.
    pub(super) fn vsock(&self) -> &VsockHandle {
        &self.vsock
    }

    /// The guest's console.
    pub(super) fn console(&self) -> &Console {
        &self.console
    }

    /// Pauses the vCPUs; devices complete the requests that they have. Returns whether all vCPUs have paused.
    pub(super) fn pause(&self) -> bool {
        self.shared.gate.close();
        self.kick();
        self.shared.gate.all_wait(PAUSE_LIMIT)
    }

    /// Resumes the vCPUs.
    pub(super) fn resume(&self) {
        self.shared.gate.open();
    }

    /// vCPU exits so far.
    pub(super) fn exits(&self) -> VmExitCounts {
        self.shared.counters.iter().map(Counters::get).sum()
    }

    /// The disks' counters, in the order of their devices.
    pub(super) fn disks(&self) -> Vec<DiskMetrics> {
        self.disks.iter().map(|disk| disk_metrics(disk.get())).collect()
    }

    fn kick(&self) {
        for id in 0..self.vcpus.len() as u32 {
            if let Err(e) = self.shared.vm.kick(id) {
                tracing::warn!("vCPU {id} does not stop: {e}");
            }
        }
    }

    /// Stops the vCPUs, then the devices, after which all data that the guest flushed is on its disks.
    pub(super) fn stop(self) {
        self.shared.gate.end();
        self.kick();
        for vcpu in self.vcpus {
            let _ = vcpu.join();
        }
        for device in &self.devices {
            device.lock().unwrap_or_else(|e| e.into_inner()).reset();
        }
        // The workers end with their devices, which the bus holds as well.
        drop(self.devices);
        drop(self.shared);
        for worker in self.workers {
            let _ = worker.join();
        }
        drop(self.event_loop);
        drop(self.memory);
    }
}

/// Maps all of guest memory into the VM.
#[allow(unsafe_code)]
fn map<V: Vm>(vm: &V, memory: &GuestMemory) -> Result<()> {
    for region in memory.iter() {
        let (gpa, len) = (region.start_addr().raw_value(), region.len() as usize);
        // SAFETY: the region stays mapped as long as `RunningVm::memory`, which outlives the VM and
        // its vCPU threads (joined in `stop`; otherwise the process ends with all of them). Devices
        // access it by volatile reads and writes.
        unsafe { vm.map(gpa, region.as_ptr(), len, Perms::ReadWriteExecute) }?;
    }
    Ok(())
}

fn disk_metrics(counts: BlockCounts) -> DiskMetrics {
    let mut metrics = DiskMetrics::default();
    metrics.reads = counts.reads;
    metrics.bytes_read = counts.bytes_read;
    metrics.writes = counts.writes;
    metrics.bytes_written = counts.bytes_written;
    metrics.flushes = counts.flushes;
    metrics.errors = counts.errors;
    metrics
}
