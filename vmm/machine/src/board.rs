//! The devices of a VM that is being built, at their addresses and interrupt lines.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use boxlite_contract::spec::DiskSpec;
use boxlite_devices::virtio::block::{BlockCounters, BlockDevice};
use boxlite_devices::virtio::rng::RngDevice;
use boxlite_devices::virtio::vsock::{GUEST_CID, Vsock, VsockHandle};
use boxlite_devices::virtio::{MMIO_LEN, MMIO_QUEUE_NOTIFY, MmioTransport, VirtioDevice};
use boxlite_devices::{EventLoop, GuestMemory, LoopHandle};
use boxlite_disk::{Disk, DiskFormat, DiskImage, DiskOptions};
use boxlite_hv::{Doorbell, Vm};
use boxlite_proto::BOOT_REPORT_PORT;

use super::boot_report;
use super::console::Console;
use super::threads::Threads;
use super::vm_event::{EventSink, VmEvent, VmStop};
use crate::arch::{self, Buses, Window, Wiring, layout};

/// The files that came with the spec.
pub(super) struct Files<'a>(pub(super) &'a [File]);

impl Files<'_> {
    pub(super) fn get(&self, n: usize) -> Result<File> {
        let file = self.0.get(n).ok_or_else(|| anyhow!("the launcher did not send file {n}"))?;
        Ok(file.try_clone()?)
    }
}

/// Stops the device event loop's thread when dropped.
pub(super) struct RunningLoop(LoopHandle);

impl Drop for RunningLoop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// The devices of a VM that is being built.
pub(super) struct Board<V> {
    threads: Threads,
    vm: Arc<V>,
    memory: Arc<GuestMemory>,
    pub(super) buses: Buses,
    /// The virtio devices.
    pub(super) devices: Vec<Arc<Mutex<MmioTransport>>>,
    /// Where the virtio devices are.
    pub(super) windows: Vec<Window>,
    /// The threads of the disks.
    pub(super) workers: Vec<JoinHandle<()>>,
    pub(super) disks: Vec<Arc<BlockCounters>>,
    pub(super) event_loop: RunningLoop,
}

impl<V: Vm> Board<V> {
    /// A board without devices, whose event loop runs.
    pub(super) fn new(vm: Arc<V>, memory: Arc<GuestMemory>, threads: Threads) -> Result<Self> {
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
            buses: Buses::default(),
            devices: Vec::new(),
            windows: Vec::new(),
            workers: Vec::new(),
            disks: Vec::new(),
            event_loop: handle,
        })
    }

    /// Adds a virtio device at the next free address and interrupt line.
    pub(super) fn add(&mut self, device: Box<dyn VirtioDevice>) -> Result<()> {
        let n = self.windows.len();
        let irq = *layout::DEVICE_IRQS.get(n).ok_or_else(|| anyhow!("too many devices"))?;
        let start = layout::MMIO_START + n as u64 * MMIO_LEN;
        let interrupt = self.vm.irq(irq)?;
        let doorbell = match self.vm.doorbell(start + MMIO_QUEUE_NOTIFY) {
            Some(doorbell) => doorbell,
            None => Doorbell::new()?,
        };
        let transport = MmioTransport::new(device, self.memory.clone(), interrupt, doorbell)?;
        let transport = Arc::new(Mutex::new(transport));
        self.buses.mmio.insert(start..start + MMIO_LEN, transport.clone())?;
        self.devices.push(transport);
        self.windows.push(Window { start, irq });
        Ok(())
    }

    /// Adds the virtio-blk device of disk `n`.
    pub(super) fn add_disk(
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

    /// Adds the virtio-vsock device, by which the agent reports its boot, once.
    pub(super) fn add_vsock(&mut self, events: &EventSink) -> Result<VsockHandle> {
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

    /// Adds the source of random numbers.
    pub(super) fn add_rng(&mut self) -> Result<()> {
        self.add(Box::new(RngDevice::new(self.event_loop.0.clone())))
    }

    /// Adds the devices that are no virtio devices.
    pub(super) fn add_legacy(&mut self, console: &Console, events: &EventSink) -> Result<()> {
        let events = events.clone();
        let wiring = Wiring {
            irq: &|line| self.vm.irq(line),
            console: Box::new(console.clone()),
            reset: Box::new(move || events(VmEvent::Stop(VmStop::Guest))),
        };
        arch::legacy::add(&mut self.buses, wiring)
    }
}
