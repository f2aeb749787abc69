//! The conformance suite on KVM.

use std::path::Path;

use boxlite_hv::conformance::Backend;

use super::*;

struct OnKvm;

impl Backend for OnKvm {
    type Vm = KvmVm;

    fn vm(vcpus: u32) -> std::result::Result<KvmVm, String> {
        match std::fs::File::options().read(true).write(true).open("/dev/kvm") {
            Err(e) => Err(format!("/dev/kvm: {e}")),
            Ok(_) => Ok(KvmVm::new(vcpus, false).expect("a machine on /dev/kvm")),
        }
    }
}

boxlite_hv::conformance_tests!(OnKvm);

#[test]
fn missing_device_is_named() {
    let error = KvmVm::open(Path::new("/nonexistent/kvm"), 1, false).unwrap_err();
    assert!(matches!(error, Error::Call { call: "open /dev/kvm", .. }), "{error}");
}
