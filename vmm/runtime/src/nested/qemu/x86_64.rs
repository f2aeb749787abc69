//! The emulated x86_64 machine: an AMD CPU with SVM on the board `microvm`.

use boxlite_contract::nested::NO_CMPXCHG16B;

use super::Emulation;

/// The emulation.
pub(super) const EMULATION: Emulation = Emulation {
    program: "qemu-system-x86_64",
    install: "`apt-get install qemu-system-x86`, `dnf install qemu-system-x86-core` or \
              `pacman -S qemu-system-x86`",
    board: &[
        // Minimal firmware, no PCI, no ACPI. The PIT stays, as the kernel has no other timer interrupt until it has
        // set up its own.
        "-M",
        "microvm,x-option-roms=off,acpi=off,isa-serial=on",
        // erms and fsrm advertise fast byte-wise string instructions, which are slow under TCG.
        "-cpu",
        "max,erms=off,fsrm=off",
    ],
    // The first one, on which no guest may run (for the reason, see the agent's `keep_off_first_cpu`). It is mostly
    // idle.
    idle_cpus: 1,
    cmdline,
};

/// Timer ticks of the guest kernel per second (`CONFIG_HZ`).
const TICKS: u64 = 100;

/// The kernel's words. `reboot=t`: a triple fault, which makes QEMU exit because of `-no-reboot`. `no_timer_check`: a
/// timer interrupt may be late under emulation.
fn cmdline(tsc_khz: Option<u64>) -> String {
    let mut words = format!(
        "console=ttyS0 reboot=t no_timer_check 8250.nr_uarts=1 random.trust_cpu=on {NO_CMPXCHG16B}"
    );
    if let Some(khz) = tsc_khz {
        // The guest reads the host's time stamp counter. It cannot measure the frequency reliably under emulation, and
        // would fall back to a clock with the resolution of a tick.
        // lpj is in counter units per kernel tick: the calibration of delay loops on each CPU would take longer than
        // the rest of the boot.
        let per_tick = khz * 1000 / TICKS;
        words.push_str(&format!(" tsc_early_khz={khz} tsc=reliable lpj={per_tick}"));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_knows_the_frequency_of_its_clock() {
        let words = cmdline(Some(2_600_000));
        assert!(words.contains(" tsc_early_khz=2600000 tsc=reliable lpj=26000000"), "{words}");
        assert!(!cmdline(None).contains("tsc"));
    }
}
