//! The framework's interrupt controller: where it is, its lines and its state.

use std::io;
use std::sync::Weak;

use applevisor::gic::GicConfig;
use boxlite_hv::{Interrupt, Result, gic};

use crate::Instance;
use crate::layout::{self, GicLimits};
use crate::sys::{self, failed};

/// The private interrupt of the virtual timer, as a bit of GICR_ISPENDR0. The device tree says so, too.
pub(super) const TIMER: u32 = 1 << 27;

/// What the framework says of its interrupt controller.
fn limits() -> Result<GicLimits> {
    let size = |call, value: applevisor::error::Result<usize>| {
        value.map(|size| size as u64).map_err(failed(call))
    };
    let (first_spi, spis) =
        GicConfig::get_spi_interrupt_range().map_err(failed("hv_gic_get_spi_interrupt_range"))?;
    Ok(GicLimits {
        distributor_size: size("hv_gic_get_distributor_size", GicConfig::get_distributor_size())?,
        distributor_alignment: size(
            "hv_gic_get_distributor_base_alignment",
            GicConfig::get_distributor_base_alignment(),
        )?,
        redistributors_size: size(
            "hv_gic_get_redistributor_region_size",
            GicConfig::get_redistributor_region_size(),
        )?,
        redistributor_size: size(
            "hv_gic_get_redistributor_size",
            GicConfig::get_redistributor_size(),
        )?,
        redistributors_alignment: size(
            "hv_gic_get_redistributor_base_alignment",
            GicConfig::get_redistributor_base_alignment(),
        )?,
        first_spi,
        spis,
    })
}

/// The configuration of the interrupt controller of a VM.
pub(super) fn config(vcpus: u32) -> Result<GicConfig> {
    limits()?.check(vcpus)?;
    let mut config = GicConfig::new();
    config
        .set_distributor_base(gic::DISTRIBUTOR)
        .map_err(failed("hv_gic_config_set_distributor_base"))?;
    config
        .set_redistributor_base(gic::REDISTRIBUTORS)
        .map_err(failed("hv_gic_config_set_redistributor_base"))?;
    Ok(config)
}

/// The interrupt line `line`. It keeps no VM alive: another one may follow in this process.
pub(super) fn line(instance: Weak<Instance>, line: u32) -> Result<Interrupt> {
    let intid = layout::spi(line)?;
    Ok(Interrupt::new(move || match instance.upgrade() {
        Some(_instance) => sys::set_spi(intid).map_err(io::Error::other),
        None => Ok(()),
    }))
}
