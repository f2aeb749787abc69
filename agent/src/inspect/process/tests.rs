use proptest::prelude::*;

use super::*;

#[test]
fn a_stat_line_is_parsed_whatever_the_name() {
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
fn this_process_is_listed() {
    let all = processes(false).unwrap();
    let own = all.iter().find(|process| process.pid == std::process::id()).unwrap();
    assert!(own.rss > 0 && own.threads > 1 && own.started_us > 0, "{own:?}");
    assert!(own.command.contains(&0) && own.command.len() <= MAX_COMMAND);
    assert_eq!(own.uid, rustix::process::geteuid().as_raw());
    assert!(all.is_sorted_by_key(|process| process.pid));
}

#[test]
fn processes_of_a_namespace_have_their_ids_there() {
    let process = |pid, ppid| Process { pid, ppid, ..Process::default() };
    let all = [
        (process(1, 0), vec![1]),
        (process(50, 1), vec![50, 1]),
        (process(60, 50), vec![60, 9]),
        // In a container in the box.
        (process(61, 60), vec![61, 4, 1]),
        (process(62, 1), vec![62, 2]),
        (process(63, 2), vec![]),
    ];
    let ids: Vec<_> = in_inner_namespace(all.into_iter()).iter().map(|p| (p.pid, p.ppid)).collect();
    assert_eq!(ids, [(1, 0), (2, 0), (4, 9), (9, 1)]);
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes: Vec<u8>, text in "[0-9 ]{0,200}") {
        let _ = parse(&bytes, 4096);
        let _ = parse(format!("1 (x) R {text}").as_bytes(), u64::MAX);
    }
}
