//! The device tree: what the guest kernel cannot detect (Devicetree Specification 0.4, and
//! Documentation/devicetree/bindings).

use std::ops::Range;

use boxlite_devices::legacy::{PL031_LEN, SERIAL_LEN};
use boxlite_devices::virtio::MMIO_LEN;
use boxlite_hv::gic;
use vm_fdt::{FdtWriter, FdtWriterResult as Result};

use super::layout::{RTC_START, SERIAL_IRQ, SERIAL_START};
use crate::arch::{Hardware, Window};

const GIC_PHANDLE: u32 = 1;
const CLOCK_PHANDLE: u32 = 2;

// The cells of an interrupt (interrupt-controller/arm,gic-v3.yaml): its kind, its number, its trigger.
const KIND_SPI: u32 = 0;
const KIND_PPI: u32 = 1;
const EDGE_RISING: u32 = 1;
const LEVEL_HIGH: u32 = 4;

/// The timers' interrupts, in the order of the binding: EL1 secure, EL1, virtual, EL2.
const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];

/// The clock of a 16550, which divides it to 115200 baud by 1. Nothing here has a rate.
const SERIAL_HZ: u32 = 1_843_200;
/// The clock that the driver of every PrimeCell device asks for. Nothing here has a rate.
const APB_HZ: u32 = 24_000_000;

/// Random bytes for the guest kernel, before it has a device to get them from.
pub(super) struct Seeds {
    /// For its random number generator.
    pub(super) rng: [u8; 64],
    /// For the place of the kernel, if it can move itself.
    pub(super) kaslr: [u8; 8],
}

impl Seeds {
    /// New ones. `None` if the host has no random numbers: the kernel then waits for the virtio-rng device.
    pub(super) fn random() -> Option<Self> {
        let mut seeds = Self { rng: [0; 64], kaslr: [0; 8] };
        getrandom::fill(&mut seeds.rng).ok()?;
        getrandom::fill(&mut seeds.kaslr).ok()?;
        Some(seeds)
    }
}

/// What the tree describes.
pub(super) struct Tree<'a> {
    pub(super) hardware: &'a Hardware<'a>,
    pub(super) memory: Range<u64>,
    pub(super) cmdline: &'a str,
    pub(super) initramfs: Range<u64>,
    pub(super) seeds: Option<&'a Seeds>,
}

impl Tree<'_> {
    /// The tree in its binary form.
    pub(super) fn blob(&self) -> Result<Vec<u8>> {
        let mut fdt = FdtWriter::new()?;
        node(&mut fdt, "", |fdt| {
            strings(fdt, "compatible", &["linux,dummy-virt"])?;
            fdt.property_u32("#address-cells", 2)?;
            fdt.property_u32("#size-cells", 2)?;
            fdt.property_u32("interrupt-parent", GIC_PHANDLE)?;
            self.chosen(fdt)?;
            self.memory(fdt)?;
            cpus(fdt, self.hardware.vcpus)?;
            psci(fdt)?;
            interrupt_controller(fdt, self.hardware.vcpus)?;
            timer(fdt)?;
            serial(fdt)?;
            clock(fdt)?;
            self.hardware.devices.iter().try_for_each(|device| virtio(fdt, device))
        })?;
        fdt.finish()
    }

    fn chosen(&self, fdt: &mut FdtWriter) -> Result<()> {
        node(fdt, "chosen", |fdt| {
            fdt.property_string("bootargs", self.cmdline)?;
            fdt.property_string("stdout-path", &format!("/{}", serial_name()))?;
            fdt.property_u64("linux,initrd-start", self.initramfs.start)?;
            fdt.property_u64("linux,initrd-end", self.initramfs.end)?;
            if let Some(seeds) = self.seeds {
                fdt.property("rng-seed", &seeds.rng)?;
                fdt.property("kaslr-seed", &seeds.kaslr)?;
            }
            Ok(())
        })
    }

    fn memory(&self, fdt: &mut FdtWriter) -> Result<()> {
        let Range { start, end } = self.memory;
        node(fdt, &format!("memory@{start:x}"), |fdt| {
            fdt.property_string("device_type", "memory")?;
            fdt.property_array_u64("reg", &[start, end - start])
        })
    }
}

/// A node with the properties and nodes that `fill` writes.
fn node(
    fdt: &mut FdtWriter,
    name: &str,
    fill: impl FnOnce(&mut FdtWriter) -> Result<()>,
) -> Result<()> {
    let node = fdt.begin_node(name)?;
    fill(fdt)?;
    fdt.end_node(node)
}

fn strings(fdt: &mut FdtWriter, name: &str, values: &[&str]) -> Result<()> {
    fdt.property_string_list(name, values.iter().map(|&value| value.to_owned()).collect())
}

fn cpus(fdt: &mut FdtWriter, vcpus: u8) -> Result<()> {
    node(fdt, "cpus", |fdt| {
        fdt.property_u32("#address-cells", 1)?;
        fdt.property_u32("#size-cells", 0)?;
        (0..u32::from(vcpus)).map(gic::affinity).try_for_each(|affinity| {
            node(fdt, &format!("cpu@{affinity:x}"), |fdt| {
                fdt.property_string("device_type", "cpu")?;
                fdt.property_string("compatible", "arm,armv8")?;
                fdt.property_string("enable-method", "psci")?;
                fdt.property_u32("reg", affinity)
            })
        })
    })
}

fn psci(fdt: &mut FdtWriter) -> Result<()> {
    node(fdt, "psci", |fdt| {
        strings(fdt, "compatible", &["arm,psci-1.0", "arm,psci-0.2"])?;
        fdt.property_string("method", "hvc")
    })
}

fn interrupt_controller(fdt: &mut FdtWriter, vcpus: u8) -> Result<()> {
    let redistributors = u64::from(vcpus) * gic::REDISTRIBUTOR_SIZE;
    node(fdt, &format!("interrupt-controller@{:x}", gic::DISTRIBUTOR), |fdt| {
        fdt.property_string("compatible", "arm,gic-v3")?;
        fdt.property_array_u64(
            "reg",
            &[gic::DISTRIBUTOR, gic::DISTRIBUTOR_SIZE, gic::REDISTRIBUTORS, redistributors],
        )?;
        fdt.property_null("interrupt-controller")?;
        fdt.property_u32("#interrupt-cells", 3)?;
        fdt.property_u32("#address-cells", 0)?;
        fdt.property_phandle(GIC_PHANDLE)
    })
}

fn timer(fdt: &mut FdtWriter) -> Result<()> {
    node(fdt, "timer", |fdt| {
        fdt.property_string("compatible", "arm,armv8-timer")?;
        let interrupts = TIMER_PPIS.map(|ppi| [KIND_PPI, ppi, LEVEL_HIGH]);
        fdt.property_array_u32("interrupts", interrupts.as_flattened())?;
        // A vCPU that waits keeps its timer.
        fdt.property_null("always-on")
    })
}

fn serial_name() -> String {
    format!("serial@{SERIAL_START:x}")
}

fn serial(fdt: &mut FdtWriter) -> Result<()> {
    node(fdt, &serial_name(), |fdt| {
        fdt.property_string("compatible", "ns16550a")?;
        fdt.property_array_u64("reg", &[SERIAL_START, SERIAL_LEN])?;
        fdt.property_u32("reg-shift", 0)?;
        fdt.property_u32("clock-frequency", SERIAL_HZ)?;
        fdt.property_array_u32("interrupts", &[KIND_SPI, SERIAL_IRQ, EDGE_RISING])
    })
}

/// The real-time clock. Linux reads its identification registers, and binds no driver, unless it has the bus clock.
fn clock(fdt: &mut FdtWriter) -> Result<()> {
    node(fdt, "apb-pclk", |fdt| {
        fdt.property_string("compatible", "fixed-clock")?;
        fdt.property_u32("#clock-cells", 0)?;
        fdt.property_u32("clock-frequency", APB_HZ)?;
        fdt.property_phandle(CLOCK_PHANDLE)
    })?;
    node(fdt, &format!("rtc@{RTC_START:x}"), |fdt| {
        strings(fdt, "compatible", &["arm,pl031", "arm,primecell"])?;
        fdt.property_array_u64("reg", &[RTC_START, PL031_LEN])?;
        fdt.property_u32("clocks", CLOCK_PHANDLE)?;
        fdt.property_string("clock-names", "apb_pclk")
    })
}

fn virtio(fdt: &mut FdtWriter, device: &Window) -> Result<()> {
    node(fdt, &format!("virtio@{:x}", device.start), |fdt| {
        fdt.property_string("compatible", "virtio,mmio")?;
        fdt.property_array_u64("reg", &[device.start, MMIO_LEN])?;
        fdt.property_array_u32("interrupts", &[KIND_SPI, device.irq, EDGE_RISING])?;
        fdt.property_null("dma-coherent")
    })
}

#[cfg(test)]
mod tests;
