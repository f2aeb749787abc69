//! The conformance suite on the Hypervisor.framework backend, as it is, over the double.

#![cfg(all(target_os = "linux", target_arch = "aarch64"))]

use boxlite_hv::conformance::Backend;
use boxlite_hv::{Error, VmConfig};
use boxlite_hvf::HvfVm;
use boxlite_hvf_double::oracle::compared;

struct OnDouble;

impl Backend for OnDouble {
    type Vm = HvfVm;

    fn vm(config: &VmConfig) -> Result<HvfVm, String> {
        match HvfVm::new(config) {
            Err(missing @ Error::Missing(_)) => Err(missing.to_string()),
            vm => Ok(vm.expect("a VM on the double")),
        }
    }
}

boxlite_hv::conformance_tests!(OnDouble);

#[test]
fn accesses_are_compared_with_those_of_kvm() {
    let before = compared();
    boxlite_hv::conformance::mmio_exits_carry_every_width::<OnDouble>();
    boxlite_hv::conformance::mmio_reads_are_extended::<OnDouble>();
    if OnDouble::vm(&VmConfig { vcpus: 1, nested: false, address_end: 1 << 32 }).is_ok() {
        let after = compared();
        // The suite has 8 and 18 accesses; the last of each is not completed. Five are of a sign that KVM may lose.
        assert!(after.agreed >= before.agreed + 24, "{before:?}, {after:?}");
        assert!(after.signs_lost <= before.signs_lost + 5, "{before:?}, {after:?}");
    }
}
