//! What runs, out of `/proc/PID`.

use std::collections::BTreeMap;
use std::io::Read;

use boxlite_proto::guest::{MAX_COMMAND, MAX_NAME, MAX_PROCESSES, Process};
use boxlite_proto::message::{Failure, FailureKind};

use super::{line, number, ticks, words};

/// More than the longest `/proc/PID/stat`.
const MAX_STAT: usize = 4096;

/// The processes by ID; of more than [`MAX_PROCESSES`], the first. Where the box's commands run in the
/// namespace of a main command (`in_namespace`), those are told that are in it, as it numbers them.
pub(crate) fn processes(in_namespace: bool) -> Result<Vec<Process>, Failure> {
    let entries = std::fs::read_dir("/proc").map_err(|e| Failure {
        kind: FailureKind::Other,
        message: format!("cannot list /proc: {e}"),
    })?;
    let mut pids: Vec<u32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    // One that has ended meanwhile is none.
    let all = pids.into_iter().filter_map(read);
    Ok(match in_namespace {
        false => all.map(|(process, _)| process).take(MAX_PROCESSES).collect(),
        true => inside(all),
    })
}

/// Of processes with their IDs in the namespaces that they are in, from the outermost, those of a namespace
/// inside, by their IDs there.
fn inside(all: impl Iterator<Item = (Process, Vec<u32>)>) -> Vec<Process> {
    let inner = |(process, ids): (Process, Vec<u32>)| Some((process, *ids.get(1)?));
    let mut processes: Vec<_> = all.filter_map(inner).collect();
    let ids: BTreeMap<u32, u32> = processes.iter().map(|(p, inner)| (p.pid, *inner)).collect();
    for (process, inner) in &mut processes {
        process.pid = *inner;
        // Whose parent is outside has none, as the kernel has it.
        process.ppid = ids.get(&process.ppid).copied().unwrap_or(0);
    }
    let mut processes: Vec<_> = processes.into_iter().map(|(process, _)| process).collect();
    processes.sort_by_key(|process| process.pid);
    processes.truncate(MAX_PROCESSES);
    processes
}

/// A process, and its IDs from the outermost namespace in.
fn read(pid: u32) -> Option<(Process, Vec<u32>)> {
    let stat = start_of(pid, "stat", MAX_STAT)?;
    let mut process = parse(&stat, page_size())?;
    let status = start_of(pid, "status", MAX_STAT).unwrap_or_default();
    // Real, effective, saved, file system.
    process.uid = number(line(&status, "Uid:").and_then(|uids| words(uids).nth(1)));
    process.command = start_of(pid, "cmdline", MAX_COMMAND).unwrap_or_default();
    let ids = words(line(&status, "NSpid:").unwrap_or_default());
    Some((process, ids.map(|id| number(Some(id))).collect()))
}

fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

/// The first bytes of a file of a process.
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
    // As proc_pid_stat(5) numbers them.
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
