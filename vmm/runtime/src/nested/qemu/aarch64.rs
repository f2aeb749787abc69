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
        // QARMA5, the usual algorithm of pointer authentication, is slow under TCG: for programs that use it, QEMU has
        // one of its own. SVE slows down system calls, and boxes do not see it. No other property is set: QEMU
        // refuses those that its version does not know (`sme` is of 7.1), and the kernel does not use SME.
        "-cpu",
        "max,pauth-impdef=on,sve=off",
    ],
    idle_cpus: 0,
    cmdline,
};

/// The kernel's words. It resets and stops the machine through PSCI, which the device tree describes, and computes the
/// delay loop from the frequency of its counter.
fn cmdline(_tsc_khz: Option<u64>) -> String {
    "console=ttyAMA0 random.trust_cpu=on".to_owned()
}
