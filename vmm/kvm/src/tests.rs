//! The conformance suite on KVM.

use std::path::Path;

use boxlite_hv::Vcpu;
use boxlite_hv::conformance::Backend;

use super::*;

struct OnKvm;

impl Backend for OnKvm {
    type Vm = KvmVm;

    fn vm(config: &VmConfig) -> std::result::Result<KvmVm, String> {
        match std::fs::File::options().read(true).write(true).open("/dev/kvm") {
            Err(e) => Err(format!("/dev/kvm: {e}")),
            Ok(_) => Ok(KvmVm::new(config).expect("a VM on /dev/kvm")),
        }
    }

    fn loses_signs() -> Option<&'static str> {
        // `vcpu_data_host_to_guest` truncates what `kvm_handle_mmio_return` has extended. No driver of Linux does such
        // reads of a device.
        cfg!(target_arch = "aarch64").then_some("this kernel's KVM loses the sign of MMIO reads")
    }
}

boxlite_hv::conformance_tests!(OnKvm);

#[test]
fn missing_device_is_named() {
    let config = VmConfig { vcpus: 1, nested: false, address_end: 1 << 20 };
    let error = KvmVm::open(Path::new("/nonexistent/kvm"), &config).unwrap_err();
    assert!(matches!(error, Error::Call { call: "open /dev/kvm", .. }), "{error}");
}

#[test]
fn states_survive_their_serialized_form() {
    let config = VmConfig { vcpus: 1, nested: false, address_end: 1 << 20 };
    let Ok(vm) = OnKvm::vm(&config) else { return eprintln!("SKIPPED: no /dev/kvm") };
    let mut vcpu = vm.bind_vcpu(0, &BootState::Parked).unwrap();
    let state = postcard::to_stdvec(&(vm.save().unwrap(), vcpu.save().unwrap())).unwrap();
    let (of_vm, of_vcpu): (VmState, VcpuState) = postcard::from_bytes(&state).unwrap();
    vm.restore(&of_vm).unwrap();
    vcpu.restore(&of_vcpu).unwrap();
}

#[test]
fn a_vcpu_is_bound_once() {
    let config = VmConfig { vcpus: 1, nested: false, address_end: 1 << 20 };
    let Ok(vm) = OnKvm::vm(&config) else { return eprintln!("SKIPPED: no /dev/kvm") };
    let vcpu = vm.bind_vcpu(0, &BootState::Parked).unwrap();
    assert!(vm.bind_vcpu(0, &BootState::Parked).is_err());
    assert!(vm.irq(u32::MAX).is_err());
    drop(vcpu);
}
