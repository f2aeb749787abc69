//! Properties of the log: records are read back unchanged, through rotations, torn tails and write errors.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;

type Written = (LogStream, Vec<u8>);

fn read(folder: &std::path::Path, query: Query) -> Vec<Record> {
    Reader::open(folder, query).unwrap().map(Result::unwrap).collect()
}

/// The bytes of each stream.
fn streams<'a>(records: impl IntoIterator<Item = (LogStream, &'a [u8])>) -> [Vec<u8>; 2] {
    let mut streams = [Vec::new(), Vec::new()];
    for (stream, bytes) in records {
        streams[stream.index()].extend_from_slice(bytes);
    }
    streams
}

fn of(records: &[Record]) -> [Vec<u8>; 2] {
    streams(records.iter().map(|record| (record.stream, &record.bytes[..])))
}

fn written() -> impl Strategy<Value = Vec<Written>> {
    let stream = prop_oneof![Just(LogStream::Stdout), Just(LogStream::Stderr)];
    let bytes = prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..200),
        proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'x')], 1..20),
    ];
    proptest::collection::vec((stream, bytes), 0..40)
}

proptest! {
    #[test]
    fn what_is_written_is_read(records in written()) {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(folder.path());
        for (n, (stream, bytes)) in records.iter().enumerate() {
            writer.append_at(*stream, bytes, n as u64);
        }
        let read = read(folder.path(), Query::default());
        prop_assert_eq!(read.len(), records.len());
        for (n, (read, (stream, bytes))) in read.iter().zip(&records).enumerate() {
            prop_assert_eq!((read.at_ns, read.stream, &read.bytes), (n as u64, *stream, bytes));
        }
    }

    /// A reader that follows the writer misses nothing; one that opens the log later gets an unbroken tail of it.
    #[test]
    fn followers_survive_rotation(records in written(), limit in 20_u64..600) {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::with_limit(folder.path(), limit);
        let mut reader = Reader::open(folder.path(), Query::default()).unwrap();
        let mut followed = Vec::new();
        for (stream, bytes) in &records {
            writer.append_at(*stream, bytes, 7);
            while let Some(record) = reader.poll().unwrap() {
                followed.push((record.stream, record.bytes));
            }
        }
        prop_assert_eq!(&followed, &records);
        let late: Vec<Written> =
            read(folder.path(), Query::default()).into_iter().map(|r| (r.stream, r.bytes)).collect();
        prop_assert!(records.ends_with(&late));
        prop_assert!(late.is_empty() == records.is_empty());
        let size = |name| fs::metadata(folder.path().join(name)).map_or(0, |file| file.len());
        prop_assert!(size(FILE).max(size(OLD_FILE)) <= limit + 16 + 13 + 200);
    }

    /// After a writer was killed at any point, whole records are kept and new ones follow them.
    #[test]
    fn a_torn_tail_is_cut(records in written(), cut in 0_u64..400, garbage: bool) {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(folder.path());
        for (stream, bytes) in &records {
            writer.append_at(*stream, bytes, 7);
        }
        drop(writer);
        let path = folder.path().join(FILE);
        if let Ok(file) = File::options().write(true).open(&path) {
            let len = file.metadata().unwrap().len();
            file.set_len(len.saturating_sub(cut)).unwrap();
            if garbage {
                // As a crash of the host leaves it: the length is written, the data is not.
                file.set_len(len + 50).unwrap();
            }
        }
        let whole = read(folder.path(), Query::default());
        let mut writer = Writer::open(folder.path());
        writer.append_at(LogStream::Stderr, b"after", 8);
        let after = read(folder.path(), Query::default());
        let (last, before) = after.split_last().unwrap();
        prop_assert_eq!(&last.bytes[..], b"after");
        prop_assert_eq!(before, &whole[..]);
        prop_assert!(whole.len() <= records.len());
    }

    /// A tail is what `tail -n` prints of the lines of both streams.
    #[test]
    fn the_last_lines_are_whole_lines(records in written(), tail in 0_u64..12) {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(folder.path());
        for (stream, bytes) in &records {
            writer.append_at(*stream, bytes, 7);
        }
        let all = streams(records.iter().map(|(stream, bytes)| (*stream, &bytes[..])));
        let last = of(&read(folder.path(), Query { tail: Some(tail), ..Query::default() }));
        let lines = |bytes: &[u8]| bytes.split_inclusive(|b| *b == b'\n').count() as u64;
        let total = lines(&all[0]) + lines(&all[1]);
        prop_assert_eq!(lines(&last[0]) + lines(&last[1]), total.min(tail));
        for (all, last) in all.iter().zip(&last) {
            prop_assert!(all.ends_with(last));
            let before = &all[..all.len() - last.len()];
            prop_assert!(last.is_empty() || before.is_empty() || before.ends_with(b"\n"));
        }
    }

    #[test]
    fn any_file_is_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200), magic: bool) {
        let folder = tempfile::tempdir().unwrap();
        let mut file = if magic { [&MAGIC[..], &1_u64.to_le_bytes()].concat() } else { Vec::new() };
        file.extend(bytes);
        fs::write(folder.path().join(FILE), file).unwrap();
        let before = read(folder.path(), Query::default()).len();
        let mut writer = Writer::open(folder.path());
        writer.append_at(LogStream::Stdout, b"x", 1);
        prop_assert_eq!(read(folder.path(), Query::default()).len(), before + 1);
    }
}

#[test]
fn streams_and_times_are_chosen() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(folder.path());
    for (at, stream, text) in [
        (1, LogStream::Stdout, "a\n"),
        (2, LogStream::Stderr, "b\n"),
        (3, LogStream::Stdout, "c\n"),
    ] {
        writer.append_at(stream, text.as_bytes(), at);
    }
    let text = |query| of(&read(folder.path(), query)).concat();
    assert_eq!(text(Query { since_ns: Some(2), ..Query::default() }), b"c\nb\n");
    assert_eq!(text(Query { stream: Some(LogStream::Stdout), ..Query::default() }), b"a\nc\n");
    let last = Query { stream: Some(LogStream::Stdout), tail: Some(1), ..Query::default() };
    assert_eq!(text(last), b"c\n");
    assert_eq!(text(Query { until_ns: Some(2), ..Query::default() }), b"a\nb\n");
    // Lines after `until_ns` don't count for the tail.
    assert_eq!(text(Query { until_ns: Some(2), tail: Some(1), ..Query::default() }), b"b\n");
}

#[test]
fn existing_output_ends_where_the_log_ended_when_it_was_opened() {
    let folder = tempfile::tempdir().unwrap();
    let empty = Reader::open(folder.path(), Query { existing: true, ..Query::default() }).unwrap();
    let mut writer = Writer::open(folder.path());
    let line = |n: usize| format!("{n}\n").into_bytes();
    (0..4).for_each(|n| writer.append_at(LogStream::Stdout, &line(n), 1));
    let open = |tail, existing| {
        Reader::open(folder.path(), Query { tail, existing, ..Query::default() }).unwrap()
    };
    let mut readers = [open(None, true), open(Some(2), true), open(Some(0), true)];
    let follower = open(Some(1), false);
    // Enough to rotate the files.
    let long = vec![b'x'; 1 << 20];
    (0..12).for_each(|_| writer.append_at(LogStream::Stdout, &long, 1));
    let text = |reader: &mut Reader| of(&reader.map(Result::unwrap).collect::<Vec<_>>()).concat();
    let [all, last, none] = readers.each_mut().map(text);
    assert_eq!((&all[..], &last[..], &none[..]), (&b"0\n1\n2\n3\n"[..], &b"2\n3\n"[..], &b""[..]));
    assert_eq!({ empty }.count(), 0);
    assert!({ follower }.map(|record| record.unwrap().bytes.len()).sum::<usize>() > 12 << 20);
    // A writer that never rests does not keep the reader of a tail.
    for reader in &mut readers {
        writer.append_at(LogStream::Stdout, b"later\n", 1);
        assert!(reader.next().is_none());
    }
}

#[test]
fn a_follower_waits_for_a_log_and_for_whole_records() {
    let folder = tempfile::tempdir().unwrap();
    let mut reader = Reader::open(folder.path(), Query::default()).unwrap();
    assert_eq!(reader.poll().unwrap(), None);
    let mut writer = Writer::open(folder.path());
    writer.append_at(LogStream::Stdout, b"one", 1);
    assert_eq!(reader.poll().unwrap().unwrap().bytes, b"one");
    let file = File::options().write(true).open(folder.path().join(FILE)).unwrap();
    let end = file.metadata().unwrap().len();
    let header = Header { len: 3, stream: LogStream::Stdout, at_ns: 2 }.encode();
    file.write_all_at(&header, end).unwrap();
    file.write_all_at(b"tw", end + 13).unwrap();
    assert_eq!(reader.poll().unwrap(), None);
    file.write_all_at(b"o", end + 15).unwrap();
    assert_eq!(reader.poll().unwrap().unwrap().bytes, b"two");
}

#[test]
fn long_output_is_split_and_complete() {
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..3 * MAX_RECORD + 5).map(|n| (n % 251) as u8).collect();
    Writer::open(folder.path()).append(LogStream::Stdout, &bytes);
    let records = read(folder.path(), Query::default());
    assert_eq!(records.len(), 4);
    assert_eq!(of(&records)[0], bytes);
}

#[test]
fn a_log_that_cannot_be_written_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("box");
    let mut writer = Writer::open(&path);
    writer.append(LogStream::Stdout, b"lost");
    fs::create_dir(&path).unwrap();
    writer.append(LogStream::Stdout, b"kept");
    assert_eq!(of(&read(&path, Query::default()))[0], b"kept");
}

/// Records on a full disk are whole, and the log continues when there is space again.
#[test]
fn a_full_disk_loses_records_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let mount = |program: &str, args: &[&str]| {
        let status = std::process::Command::new(program).args(args).arg(path).status();
        status.is_ok_and(|status| status.success())
    };
    if !mount("mount", &["-t", "tmpfs", "-o", "size=256k", "tmpfs"]) {
        return eprintln!("SKIPPED: this user cannot mount a small disk");
    }
    let filler = path.join("filler");
    fs::write(&filler, [0; 100 << 10]).unwrap();
    let mut writer = Writer::open(path);
    let record = |n: u8| vec![n; 30 << 10];
    for n in 0..10 {
        writer.append_at(LogStream::Stdout, &record(n), n.into());
    }
    let kept = read(path, Query::default());
    fs::remove_file(&filler).unwrap();
    writer.append_at(LogStream::Stdout, &record(99), 99);
    let after = read(path, Query::default());
    drop(writer);
    assert!(mount("umount", &[]));
    assert!((1..10).contains(&kept.len()), "{} records", kept.len());
    for record in &kept {
        assert!(
            record.bytes.len() == 30 << 10
                && record.bytes.iter().all(|b| u64::from(*b) == record.at_ns)
        );
    }
    assert_eq!(after[..kept.len()], kept);
    assert_eq!((after.len(), after[kept.len()].at_ns), (kept.len() + 1, 99));
}

/// As a crash of the host leaves a file: its length and a part of the header are written, the rest is zeros.
#[test]
fn half_a_header_is_no_log() {
    for whole in 0..FILE_HEADER {
        let folder = tempfile::tempdir().unwrap();
        Writer::open(folder.path()).append_at(LogStream::Stdout, b"before", 7);
        let file = File::options().write(true).open(folder.path().join(FILE)).unwrap();
        file.set_len(whole).unwrap();
        file.set_len(100).unwrap();
        let expected = read(folder.path(), Query::default()).len() + 1;
        Writer::open(folder.path()).append_at(LogStream::Stdout, b"after", 8);
        let after = read(folder.path(), Query::default());
        assert_eq!(after.last().map(|record| &record.bytes[..]), Some(&b"after"[..]), "{whole}");
        assert_eq!(after.len(), expected, "{whole}");
    }
}
