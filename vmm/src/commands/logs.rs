//! `boxlite-vmm logs`: shows the output of a box's main command.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use boxlite_runtime::{LogQuery, LogRecord, LogStream};
use clap::Args;

use crate::global::Global;
use crate::{human, out, parse};

pub(crate) const HELP: &str = "\
Examples:
  boxlite-vmm logs -f web                   all output so far, then new output
  boxlite-vmm logs --tail 20 -t web         the last 20 lines, with timestamps
  boxlite-vmm logs --since 10m web          or 2026-01-31, 2026-01-31T12:00:00Z, or seconds since 1970

The command's standard error is printed on standard error.";

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Wait for new output until the box stops
    #[arg(long, short)]
    follow: bool,
    /// Number of lines to show from the end, or all
    #[arg(long, short = 'n', value_name = "LINES", default_value = "all", value_parser = lines)]
    tail: Lines,
    /// Only output since this time
    #[arg(long, value_name = "TIME", value_parser = parse::time)]
    since: Option<SystemTime>,
    /// Only output until this time
    #[arg(long, value_name = "TIME", value_parser = parse::time)]
    until: Option<SystemTime>,
    /// Start each line with a timestamp
    #[arg(long, short)]
    timestamps: bool,
    /// Name or ID
    #[arg(value_name = "BOX")]
    name: String,
}

/// A number of lines; none: all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lines(Option<u64>);

fn lines(text: &str) -> Result<Lines, String> {
    match text {
        "all" => Ok(Lines(None)),
        number => match number.parse() {
            Ok(number) => Ok(Lines(Some(number))),
            Err(_) => Err("must be a number of lines, or all".into()),
        },
    }
}

pub(crate) async fn logs(global: &Global, args: &Logs) -> Result<u8> {
    let mut query = LogQuery::default().follow(args.follow);
    query.tail = args.tail.0;
    if let Some(since) = args.since {
        query = query.since(since);
    }
    if let Some(until) = args.until {
        query = query.until(until);
    }
    let runtime = global.runtime().await?;
    let mut logs = runtime.get(&args.name).await?.logs(query).await?;
    let mut stamps = args.timestamps.then(Stamps::default);
    let broken = || format!("cannot continue reading the log of {}", args.name);
    while let Some(record) = logs.next().await.with_context(broken)? {
        let bytes = match &mut stamps {
            Some(stamps) => stamps.stamp(&record),
            None => record.bytes,
        };
        match record.stream {
            LogStream::Stdout => out::print(bytes)?,
            LogStream::Stderr => {
                io::stderr().write_all(&bytes).context("cannot write to standard error")?;
            }
        }
    }
    Ok(0)
}

fn time(record: &LogRecord) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_nanos(record.at_ns)).unwrap_or(UNIX_EPOCH)
}

/// Adds timestamps to lines. A record is a piece of a stream: it may have several lines, or start within one.
#[derive(Debug, Default)]
struct Stamps {
    in_line: [bool; 2],
}

impl Stamps {
    fn stamp(&mut self, record: &LogRecord) -> Vec<u8> {
        let [stdout, stderr] = &mut self.in_line;
        let in_line = match record.stream {
            LogStream::Stdout => stdout,
            LogStream::Stderr => stderr,
        };
        let stamp = human::rfc3339(time(record), 9) + " ";
        let mut bytes = Vec::with_capacity(record.bytes.len() + stamp.len());
        for line in record.bytes.split_inclusive(|byte| *byte == b'\n') {
            if !*in_line {
                bytes.extend_from_slice(stamp.as_bytes());
            }
            bytes.extend_from_slice(line);
            *in_line = !line.ends_with(b"\n");
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_the_time_of_its_start() {
        let mut stamps = Stamps::default();
        let mut stamp = |stream, at_ns, bytes: &[u8]| {
            let record = LogRecord::new(at_ns, stream, bytes.to_vec());
            String::from_utf8(stamps.stamp(&record)).unwrap()
        };
        const ONE: &str = "1970-01-01T00:00:01.000000000Z";
        const TWO: &str = "1970-01-01T00:00:02.000000000Z";
        let (one, two) = (1_000_000_000, 2_000_000_000);
        assert_eq!(stamp(LogStream::Stdout, one, b"a\nb"), format!("{ONE} a\n{ONE} b"));
        // The other stream's lines are its own.
        assert_eq!(stamp(LogStream::Stderr, one, b"x\n\n"), format!("{ONE} x\n{ONE} \n"));
        assert_eq!(stamp(LogStream::Stdout, two, b"c\nd\n"), format!("c\n{TWO} d\n"));
        assert_eq!(stamp(LogStream::Stdout, two, b"e"), format!("{TWO} e"));
    }

    #[test]
    fn a_number_of_lines_or_all() {
        assert_eq!(lines("all"), Ok(Lines(None)));
        assert_eq!(lines("0"), Ok(Lines(Some(0))));
        assert!(lines("-1").is_err() && lines("some").is_err());
    }
}
