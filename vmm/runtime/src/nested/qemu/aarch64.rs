//! The emulated aarch64 machine: a CPU with EL2 on the board `virt`, which describes itself to the kernel by a device
//! tree.

use super::Emulation;

/// The emulation.
pub(super) const EMULATION: Emulation = Emulation {
    program: "qemu-system-aarch64",
    install: "`apt-get install qemu-system-arm`, `dnf install qemu-system-aarch64-core` or \
              `pacman -S qemu-system-aarch64`",
    board: &[
        // The kernel has no driver for PCI, and no other device uses the ITS.
        "-M",
        "virt,virtualization=on,gic-version=3,its=off",
        // The architecture's algorithm of pointer authentication, QARMA5, takes most of the time under TCG.
        "-cpu",
        "max,pauth-impdef=on",
    ],
    idle_cpus: 0,
    cmdline,
};

/// The kernel's words. It resets and stops the machine through PSCI, which the device tree describes, and computes the
/// delay loop from the frequency of its counter.
fn cmdline(_tsc_khz: Option<u64>) -> String {
    "console=ttyAMA0 random.trust_cpu=on".to_owned()
}
