//! What runs, out of `/proc/PID`.

use std::io::Read;

use boxlite_proto::guest::{MAX_COMMAND, MAX_NAME, MAX_PROCESSES, Process};
use boxlite_proto::message::{Failure, FailureKind};

use super::{line, number, ticks, words};

/// More than the longest `/proc/PID/stat`.
const MAX_STAT: usize = 4096;

/// The processes by ID; of more than [`MAX_PROCESSES`], the first.
pub(crate) fn processes() -> Result<Vec<Process>, Failure> {
    let entries = std::fs::read_dir("/proc").map_err(|e| Failure {
        kind: FailureKind::Other,
        message: format!("cannot list /proc: {e}"),
    })?;
    let mut pids: Vec<u32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    // One that has ended meanwhile is none.
    Ok(pids.into_iter().filter_map(read).take(MAX_PROCESSES).collect())
}

fn read(pid: u32) -> Option<Process> {
    let stat = start_of(pid, "stat", MAX_STAT)?;
    let mut process = parse(&stat, page_size())?;
    let status = start_of(pid, "status", MAX_STAT).unwrap_or_default();
    // Real, effective, saved, file system.
    process.uid = number(line(&status, "Uid:").and_then(|uids| words(uids).nth(1)));
    process.command = start_of(pid, "cmdline", MAX_COMMAND).unwrap_or_default();
    Some(process)
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_is_understood_whatever_the_name() {
        let stat = b"1234 (a) b (\n) S 1 1234 1234 0 -1 4194560 5 6 7 8 30 12 9 9 20 0 3 0 9876 \
            1000000 250 18446744073709551615 1 1";
        let want = Process {
            pid: 1234,
            ppid: 1,
            uid: 0,
            state: b'S',
            threads: 3,
            started_us: 98_760_000,
            cpu_us: 420_000,
            rss: 250 << 12,
            name: b"a) b (\n".to_vec(),
            command: Vec::new(),
        };
        assert_eq!(parse(stat, 4096), Some(want));
        assert_eq!(parse(b"", 4096), None);
        assert_eq!(parse(b")(", 4096), None);
        assert_eq!(parse(b"7 (short)", 4096), None);
    }

    #[test]
    fn this_process_is_among_them() {
        let all = processes().unwrap();
        let own = all.iter().find(|process| process.pid == std::process::id()).unwrap();
        assert!(own.rss > 0 && own.threads > 1 && own.started_us > 0, "{own:?}");
        assert!(own.command.contains(&0) && own.command.len() <= MAX_COMMAND);
        assert_eq!(own.uid, rustix::process::geteuid().as_raw());
        assert!(all.is_sorted_by_key(|process| process.pid));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes: Vec<u8>, text in "[0-9 ]{0,200}") {
            let _ = parse(&bytes, 4096);
            let _ = parse(format!("1 (x) R {text}").as_bytes(), u64::MAX);
        }
    }
}
