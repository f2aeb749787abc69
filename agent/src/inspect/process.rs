//! Processes, from `/proc/PID`.

use std::collections::BTreeMap;
use std::io::Read;

use boxlite_proto::guest::{MAX_COMMAND, MAX_NAME, MAX_PROCESSES, Process};
use boxlite_proto::message::{Failure, FailureKind};

use super::{line, number, ticks, words};

/// Limit on the bytes that are read of a file: more than the longest `/proc/PID/stat`.
const MAX_STAT: usize = 4096;

/// Lists the processes by ID, the first [`MAX_PROCESSES`] at most. If the box's commands run in the namespace
/// of a main command (`in_namespace`), lists only processes in that namespace, with their IDs there.
pub(crate) fn processes(in_namespace: bool) -> Result<Vec<Process>, Failure> {
    let entries = std::fs::read_dir("/proc").map_err(|e| Failure {
        kind: FailureKind::Other,
        message: format!("cannot list /proc: {e}"),
    })?;
    let mut pids: Vec<u32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    // A process that has exited meanwhile is skipped.
    let all = pids.into_iter().filter_map(read);
    Ok(match in_namespace {
        false => all.map(|(process, _)| process).take(MAX_PROCESSES).collect(),
        true => in_inner_namespace(all),
    })
}

/// Keeps the processes of an inner namespace, with their IDs there. Each process comes with its IDs in all of
/// its namespaces, from the outermost.
fn in_inner_namespace(all: impl Iterator<Item = (Process, Vec<u32>)>) -> Vec<Process> {
    let inner = |(process, ids): (Process, Vec<u32>)| Some((process, *ids.get(1)?));
    let mut processes: Vec<_> = all.filter_map(inner).collect();
    let ids: BTreeMap<u32, u32> = processes.iter().map(|(p, inner)| (p.pid, *inner)).collect();
    for (process, inner) in &mut processes {
        process.pid = *inner;
        // A parent outside of the namespace is 0, as in the kernel.
        process.ppid = ids.get(&process.ppid).copied().unwrap_or(0);
    }
    let mut processes: Vec<_> = processes.into_iter().map(|(process, _)| process).collect();
    processes.sort_by_key(|process| process.pid);
    processes.truncate(MAX_PROCESSES);
    processes
}

/// Reads a process, and its IDs in all of its namespaces, from the outermost.
fn read(pid: u32) -> Option<(Process, Vec<u32>)> {
    let stat = start_of(pid, "stat", MAX_STAT)?;
    let mut process = parse(&stat, page_size())?;
    let status = start_of(pid, "status", MAX_STAT).unwrap_or_default();
    // The fields are the real, effective, saved and file system user.
    process.uid = number(line(&status, "Uid:").and_then(|uids| words(uids).nth(1)));
    process.command = start_of(pid, "cmdline", MAX_COMMAND).unwrap_or_default();
    let ids = words(line(&status, "NSpid:").unwrap_or_default());
    Some((process, ids.map(|id| number(Some(id))).collect()))
}

fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

/// The first bytes of a file in `/proc/PID`.
fn start_of(pid: u32, file: &str, max: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(format!("/proc/{pid}/{file}")).ok()?;
    file.take(max as u64).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// `PID (NAME) STATE PPID …`; the name may contain anything, parentheses and newlines included.
fn parse(stat: &[u8], page_size: u64) -> Option<Process> {
    let open = stat.iter().position(|b| *b == b'(')?;
    let close = stat.iter().rposition(|b| *b == b')').filter(|close| *close > open)?;
    let mut name = stat.get(open + 1..close)?.to_vec();
    name.truncate(MAX_NAME);
    let fields: Vec<_> = words(stat.get(close + 1..)?).collect();
    // Numbered as in proc_pid_stat(5).
    let field = |n: usize| fields.get(n - 3).copied();
    let sum = number::<u64>(field(14)).saturating_add(number(field(15)));
    Some(Process {
        pid: number(stat.get(..open)),
        state: *field(3)?.first()?,
        ppid: number(field(4)),
        threads: number(field(20)),
        cpu_us: ticks(sum),
        started_us: ticks(number(field(22))),
        rss: number::<u64>(field(24)).saturating_mul(page_size),
        name,
        ..Process::default()
    })
}

#[cfg(test)]
mod tests;
