//! Builds a running VM from a LaunchSpec: memory, devices at their addresses, boot files, vCPUs.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use boxlite_contract::metrics::{DiskMetrics, VmExitCounts};
use boxlite_contract::nested::NO_CMPXCHG16B;
use boxlite_contract::spec::{DiskSpec, LaunchSpec, MEMORY_MIB, VCPUS};
use boxlite_devices::legacy::{I8042, Serial};
use boxlite_devices::virtio::block::{BlockCounters, BlockCounts, BlockDevice};
use boxlite_devices::virtio::rng::RngDevice;
use boxlite_devices::virtio::vsock::{GUEST_CID, Vsock, VsockHandle};
use boxlite_devices::virtio::{MMIO_QUEUE_NOTIFY, MmioTransport, VirtioDevice};
use boxlite_devices::{Bus, EventLoop, GuestMemory, LogBudget, LoopHandle};
use boxlite_disk::{Disk, DiskFormat, DiskImage, DiskOptions};
use boxlite_hv::{BootState, Doorbell, Perms, Vm, VmConfig};
use boxlite_proto::BOOT_REPORT_PORT;
use boxlite_proto::boot::BootParams;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::boot_report;
use super::console::Console;
use super::memory;
use super::network::BoxNetwork;
use super::threads::Threads;
use super::vcpu::{self, Counters, Gate, Shared};
use super::vm_event::{EventSink, VmEvent, VmStop};
use crate::arch::{self, BootFiles, layout};

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
    let memory_end = layout::memory_ranges(spec.memory_mib << 20)
        .into_iter()
        .map(|(start, len)| start.raw_value() + len)
        .fold(0, u64::max);
    Ok(VmConfig { vcpus: spec.vcpus.into(), nested: spec.nested, address_end: memory_end })
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
        board.add(Box::new(RngDevice::new(board.event_loop.0.clone())))?;
        board.add_legacy(&console, &events)?;

        let cmdline = cmdline(spec, network, board.devices.len())?;
        let boot_files =
            BootFiles { kernel: &spec.kernel, initramfs: &spec.initramfs, cmdline: &cmdline };
        let boot = arch::load(&memory, spec.vcpus, &boot_files)?;

        let Board { mmio, pio, devices, workers, disks, event_loop, .. } = board;
        let shared = Arc::new(Shared {
            vm,
            mmio: Arc::new(mmio),
            pio: Arc::new(pio),
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

/// The kernel command line.
fn cmdline(spec: &LaunchSpec, network: Option<&BoxNetwork>, devices: usize) -> Result<String> {
    // The console prints everything only if it goes to a file, because output is slow, but always a panic, which it
    // would not at level 0.
    let verbosity = if spec.console.is_some() { "loglevel=7" } else { "quiet loglevel=1" };
    let mut boot = spec.boot.clone();
    let volumes = std::mem::take(&mut boot.volumes);
    if let Some(network) = network {
        (boot.network, boot.search) = (Some(network.params()), network.search());
    }
    // No dummy interface by default: programs in the box can create one.
    let mut cmdline =
        format!("console=ttyS0 {verbosity} reboot=k panic=-1 dummy.numdummies=0 {boot}");
    if spec.host.is_nested() {
        cmdline.push(' ');
        cmdline.push_str(NO_CMPXCHG16B);
    }
    for (n, irq) in (0..devices as u64).zip(layout::DEVICE_IRQS) {
        let at = layout::MMIO_START + n * layout::MMIO_SIZE;
        cmdline.push_str(&format!(" virtio_mmio.device=4K@{at:#x}:{irq}"));
    }
    push_volumes(&mut cmdline, &volumes);
    Ok(cmdline)
}

/// Adds the image's volumes, as many as there is room for: a guest without some of these directories can still boot.
fn push_volumes(cmdline: &mut String, volumes: &[String]) {
    for (n, path) in volumes.iter().enumerate() {
        let word = BootParams::volume(path);
        if cmdline.len() + 1 + word.len() >= layout::CMDLINE_MAX {
            let left = volumes.len() - n;
            tracing::warn!(
                "{left} of the image's volumes are not created: the kernel command line is full"
            );
            return;
        }
        cmdline.push(' ');
        cmdline.push_str(&word);
    }
}

/// The files that came with the spec.
struct Files<'a>(&'a [File]);

impl Files<'_> {
    fn get(&self, n: usize) -> Result<File> {
        let file = self.0.get(n).ok_or_else(|| anyhow!("the launcher did not send file {n}"))?;
        Ok(file.try_clone()?)
    }
}

/// Stops the device event loop's thread when dropped.
struct RunningLoop(LoopHandle);

impl Drop for RunningLoop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// The devices of a VM that is being built.
struct Board<V> {
    threads: Threads,
    vm: Arc<V>,
    memory: Arc<GuestMemory>,
    mmio: Bus,
    pio: Bus,
    devices: Vec<Arc<Mutex<MmioTransport>>>,
    workers: Vec<JoinHandle<()>>,
    disks: Vec<Arc<BlockCounters>>,
    event_loop: RunningLoop,
}

impl<V: Vm> Board<V> {
    fn new(vm: Arc<V>, memory: Arc<GuestMemory>, threads: Threads) -> Result<Self> {
        let event_loop = EventLoop::new().context("cannot create the device event loop")?;
        let handle = RunningLoop(event_loop.handle());
        let watch = threads.clone();
        threads.spawn("devices", move || {
            if let Err(e) = event_loop.run() {
                watch.failed(format!("the device event loop failed: {e}"));
            }
        })?;
        Ok(Self {
            threads,
            vm,
            memory,
            mmio: Bus::new(),
            pio: Bus::new(),
            devices: Vec::new(),
            workers: Vec::new(),
            disks: Vec::new(),
            event_loop: handle,
        })
    }

    /// Adds a virtio device at the next free address and interrupt line.
    fn add(&mut self, device: Box<dyn VirtioDevice>) -> Result<()> {
        let n = self.devices.len();
        let irq = layout::DEVICE_IRQS.get(n).ok_or_else(|| anyhow!("too many devices"))?;
        let interrupt = self.vm.irq(*irq)?;
        let at = layout::MMIO_START + n as u64 * layout::MMIO_SIZE;
        let doorbell = match self.vm.doorbell(at + MMIO_QUEUE_NOTIFY) {
            Some(doorbell) => doorbell,
            None => Doorbell::new()?,
        };
        let transport = MmioTransport::new(device, self.memory.clone(), interrupt, doorbell)?;
        let transport = Arc::new(Mutex::new(transport));
        self.mmio.insert(at..at + layout::MMIO_SIZE, transport.clone())?;
        self.devices.push(transport);
        Ok(())
    }

    fn add_disk(
        &mut self,
        n: usize,
        disk: &DiskSpec,
        files: &Files<'_>,
        events: &EventSink,
    ) -> Result<()> {
        let name = format!("vd{}", char::from(b'a' + (n % 26) as u8));
        let image =
            |file, format| -> Result<_> { Ok(DiskImage { file: files.get(file)?, format }) };
        let mut options = DiskOptions::new(image(disk.file, disk.format)?, &*name);
        if let Some(backing) = disk.backing {
            options.backing.push(image(backing, DiskFormat::Raw)?);
        }
        options.ephemeral = disk.ephemeral;
        options.recover = disk.recover;
        let full = {
            let (name, events, told) = (name.clone(), events.clone(), AtomicBool::new(false));
            move || {
                // A guest may cause this any number of times.
                if told.swap(true, Ordering::SeqCst) {
                    return;
                }
                tracing::error!("the host has no space left for the box's writes to {name}");
                events(VmEvent::DiskFull(name.clone()));
            }
        };
        let (device, worker) = BlockDevice::new(Disk::open(options)?, Some(Box::new(full)));
        self.disks.push(device.counters());
        self.workers.push(self.threads.spawn(name, move || worker.run())?);
        self.add(Box::new(device))
    }

    fn add_vsock(&mut self, events: &EventSink) -> Result<VsockHandle> {
        // The only host port that a guest can reach, and only once, because each report has a thread.
        let reported = AtomicBool::new(false);
        let (events, threads) = (events.clone(), self.threads.clone());
        let resolve = move |port: u32| -> std::io::Result<UnixStream> {
            if port != BOOT_REPORT_PORT || reported.swap(true, Ordering::SeqCst) {
                return Err(std::io::ErrorKind::ConnectionRefused.into());
            }
            let (ours, guests) = UnixStream::pair()?;
            let events = events.clone();
            boot_report::listen(&threads, ours, move |report| events(VmEvent::Report(report)))?;
            Ok(guests)
        };
        let device = Vsock::new(GUEST_CID, self.event_loop.0.clone(), resolve)?;
        let handle = device.handle();
        self.add(Box::new(device))?;
        Ok(handle)
    }

    /// Adds the serial port and the reset line.
    fn add_legacy(&mut self, console: &Console, events: &EventSink) -> Result<()> {
        let interrupt = self.vm.irq(layout::SERIAL_IRQ)?;
        let serial = Serial::new(interrupt, Box::new(console.clone()));
        let ports = layout::SERIAL_PORT..layout::SERIAL_PORT + layout::SERIAL_PORT_SIZE;
        self.pio.insert(ports, Arc::new(Mutex::new(serial)))?;
        let events = events.clone();
        let i8042 = I8042::new(move || events(VmEvent::Stop(VmStop::Guest)));
        let ports = layout::I8042_PORT..layout::I8042_PORT + layout::I8042_PORT_SIZE;
        self.pio.insert(ports, Arc::new(Mutex::new(i8042)))?;
        Ok(())
    }
}
