//! The conformance suite on Hypervisor.framework. The test executable must be signed with the entitlement
//! com.apple.security.hypervisor; otherwise its tests are reported as skipped.

#![cfg(target_os = "macos")]

use boxlite_hv::conformance::Backend;
use boxlite_hv::{Error, VmConfig};
use boxlite_hvf::HvfVm;

struct OnHvf;

impl Backend for OnHvf {
    type Vm = HvfVm;

    fn vm(config: &VmConfig) -> Result<HvfVm, String> {
        match HvfVm::new(config) {
            Err(missing @ Error::Missing(_)) => Err(missing.to_string()),
            vm => Ok(vm.expect("a VM on Hypervisor.framework")),
        }
    }
}

boxlite_hv::conformance_tests!(OnHvf);
