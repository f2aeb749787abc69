//! Operations without a safe interface: code between fork and exec, and the time stamp counter.
#![allow(unsafe_code)]

use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Pid, getpid, getppid};
use tokio::process::Command;

/// Whether programs are installed with Homebrew.
pub(super) const HAS_HOMEBREW: bool = cfg!(target_os = "macos");

/// Makes the kernel kill the child when this *thread* exits, for whatever reason. On systems other than Linux, the child
/// is only killed by a parent that exits in order.
pub(super) fn die_with_us(command: &mut Command) {
    let us = getpid();
    // SAFETY: prctl and getppid are async-signal-safe, and nothing is allocated.
    unsafe { command.pre_exec(move || ask_to_die_with(us)) };
}

#[cfg(target_os = "linux")]
fn ask_to_die_with(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    // If the parent exited before prctl, the kernel sends no signal.
    match getppid() {
        Some(pid) if pid == parent => Ok(()),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn ask_to_die_with(_: Pid) -> io::Result<()> {
    let _ = getppid;
    Ok(())
}

/// Measures the time stamp counter against the monotonic clock.
pub(super) struct TscClock {
    start: (Instant, u64),
}

impl TscClock {
    /// Starts measuring.
    pub(super) fn start() -> Self {
        Self { start: Self::now() }
    }

    /// The frequency in kHz, measured over at least 20 ms; none if this CPU has no such counter.
    pub(super) fn khz(&self) -> Option<u64> {
        const LONG_ENOUGH: Duration = Duration::from_millis(20);
        std::thread::sleep(LONG_ENOUGH.saturating_sub(self.start.0.elapsed()));
        let (time, ticks) = Self::now();
        let (time, ticks) = (time - self.start.0, ticks.wrapping_sub(self.start.1));
        let khz = u128::from(ticks) * 1_000_000 / time.as_nanos().max(1);
        u64::try_from(khz).ok().filter(|khz| *khz > 0)
    }

    /// Both clocks at the same moment: the fastest of a few readings.
    fn now() -> (Instant, u64) {
        let read = || {
            let before = ticks();
            let time = Instant::now();
            (ticks().wrapping_sub(before), (time, before))
        };
        let readings = std::array::from_fn::<_, 8, _>(|_| read());
        readings.into_iter().min_by_key(|reading| reading.0).map_or_else(|| read().1, |r| r.1)
    }
}

#[cfg(target_arch = "x86_64")]
fn ticks() -> u64 {
    // SAFETY: every x86_64 CPU has the instruction.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> u64 {
    0
}
