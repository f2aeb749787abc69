//! Metrics of the guest, from `/proc` (kernel documentation, "The /proc Filesystem").

use boxlite_proto::guest::GuestMetrics;
use boxlite_proto::message::{Failure, FailureKind};
use rustix::fs::statvfs;

use super::{line, number, ticks, words};

/// Reads all metrics.
pub(crate) fn metrics() -> Result<GuestMetrics, Failure> {
    let disk = statvfs("/").map_err(|e| Failure {
        kind: FailureKind::Other,
        message: format!("cannot measure the root file system: {e}"),
    })?;
    let read = |path| std::fs::read(path).unwrap_or_default();
    let mut metrics = GuestMetrics {
        disk_size: disk.f_blocks.saturating_mul(disk.f_frsize),
        disk_used: disk.f_blocks.saturating_sub(disk.f_bfree).saturating_mul(disk.f_frsize),
        disk_free: disk.f_bavail.saturating_mul(disk.f_frsize),
        files_total: disk.f_files,
        files_free: disk.f_ffree,
        processes: count_processes(),
        ..GuestMetrics::default()
    };
    set_memory(&mut metrics, &read("/proc/meminfo"));
    set_cpus(&mut metrics, &read("/proc/stat"));
    set_load(&mut metrics, &read("/proc/loadavg"));
    metrics.uptime_us = uptime(&read("/proc/uptime"));
    metrics.oom_kills = number(line(&read("/proc/vmstat"), "oom_kill "));
    Ok(metrics)
}

fn set_memory(metrics: &mut GuestMetrics, meminfo: &[u8]) {
    let bytes = |name| {
        let kib: u64 = number(line(meminfo, name).and_then(|rest| words(rest).next()));
        kib.saturating_mul(1024)
    };
    metrics.memory_total = bytes("MemTotal:");
    metrics.memory_available = bytes("MemAvailable:");
    metrics.memory_used = metrics.memory_total.saturating_sub(metrics.memory_available);
    metrics.swap_total = bytes("SwapTotal:");
    metrics.swap_used = metrics.swap_total.saturating_sub(bytes("SwapFree:"));
}

fn set_cpus(metrics: &mut GuestMetrics, stat: &[u8]) {
    // user, nice, system, idle, iowait, irq, softirq, steal; guest times are in user and nice already.
    let mut times = [0_u64; 8];
    let fields = words(line(stat, "cpu ").unwrap_or_default());
    for (time, field) in times.iter_mut().zip(fields) {
        *time = ticks(number(Some(field)));
    }
    let [user, nice, system, idle, iowait, irq, softirq, _steal] = times;
    let sum = |times: &[u64]| times.iter().fold(0, |sum: u64, time| sum.saturating_add(*time));
    metrics.cpu_user_us = sum(&[user, nice]);
    metrics.cpu_system_us = sum(&[system, irq, softirq]);
    metrics.cpu_idle_us = sum(&[idle, iowait]);
    let cpus = stat.split(|b| *b == b'\n').filter(|line| {
        line.strip_prefix(b"cpu").and_then(<[u8]>::first).is_some_and(u8::is_ascii_digit)
    });
    metrics.cpus = u32::try_from(cpus.count()).unwrap_or(u32::MAX);
}

fn set_load(metrics: &mut GuestMetrics, loadavg: &[u8]) {
    for (load, field) in metrics.load_x100.iter_mut().zip(words(loadavg)) {
        *load = number::<u64>(Some(&hundredths(field))).try_into().unwrap_or(u32::MAX);
    }
}

/// The digits of a number with two decimal places, without the point.
fn hundredths(field: &[u8]) -> Vec<u8> {
    field.iter().copied().filter(|b| *b != b'.').collect()
}

fn uptime(uptime: &[u8]) -> u64 {
    let seconds = words(uptime).next().unwrap_or_default();
    number::<u64>(Some(&hundredths(seconds))).saturating_mul(10_000)
}

fn count_processes() -> u32 {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter(|entry| {
        use std::os::unix::ffi::OsStrExt;
        entry.file_name().as_bytes().first().is_some_and(u8::is_ascii_digit)
    });
    u32::try_from(processes.count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
