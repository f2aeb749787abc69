//! Commands: many at once, slow readers, timeouts.

use std::time::{Duration, Instant};

use boxlite_runtime::{BoxHandle, ErrorKind, EventKind, EventQuery, ExitStatus, TerminalSize};
use boxlite_tests::is_long;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::{Embedder, shell};

/// Commands that run at once.
const MANY: usize = 32;

/// Bytes of each of their streams.
const EACH: usize = 128 << 10;

/// Commands that run, one after the other, while another one makes no progress.
const IDLE: u32 = 10;

/// The input of a command: different for each number, and not UTF-8.
fn noise(number: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ ((number as u64 + 1) << 32);
    let mut bytes = Vec::with_capacity(EACH + 8);
    while bytes.len() < EACH {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(EACH);
    bytes
}

/// Sends bytes through a command that writes them to both of its outputs.
async fn round_trip(sandbox: BoxHandle, number: usize) {
    let script = "tee /dev/stderr; exit $0";
    let command = sandbox.exec(["sh", "-c", script, &(number + 1).to_string()]);
    let mut command = command.stdin(true).spawn().await.unwrap();
    let (mut stdin, mut stdout, mut stderr) =
        (command.stdin().unwrap(), command.stdout().unwrap(), command.stderr().unwrap());
    let sent = noise(number);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let write = async {
        // In pieces of odd sizes, so that the commands interleave.
        for piece in sent.chunks(4093 + number) {
            stdin.write_all(piece).await.unwrap();
        }
        stdin.shutdown().await.unwrap();
    };
    let (_, read, also_read) =
        tokio::join!(write, stdout.read_to_end(&mut out), stderr.read_to_end(&mut err));
    read.and(also_read).unwrap();
    let status = command.wait().await.unwrap();
    assert_eq!(status, ExitStatus::Code(number as u8 + 1));
    assert!(out == sent, "command {number}: {} of {} bytes", out.len(), sent.len());
    assert!(err == sent, "command {number}: {} of {} bytes of stderr", err.len(), sent.len());
}

#[test]
fn many_commands_at_once_lose_nothing() {
    let Some(embedder) = Embedder::find() else { return };
    embedder.run(async {
        let runtime = embedder.open().await;
        let sandbox = embedder.start(&runtime, "many").await;
        let mut commands = JoinSet::new();
        for number in 0..MANY {
            commands.spawn(round_trip(sandbox.clone(), number));
        }
        while let Some(done) = commands.join_next().await {
            done.unwrap();
        }
        // All of them have exited in the box, too.
        assert_eq!(shell(&sandbox, "ps | grep -c '[t]ee /dev' || true").await, "0");
        runtime.shutdown(Duration::ZERO).await.unwrap();
    });
}

#[test]
fn a_slow_reader_stops_only_its_own_writer() {
    let Some(embedder) = Embedder::find() else { return };
    embedder.run(async {
        let runtime = embedder.open().await;
        let sandbox = embedder.start(&runtime, "slow").await;
        shell(&sandbox, "seq 1 1000 | sha256sum").await;
        let before = sandbox.machine_metrics().await.unwrap().rss;
        // Far more than all windows, pipes and buffers on the way can hold.
        let script = "i=0; while [ $i -lt 96 ]; do head -c 262144 /dev/zero; i=$((i + 1)); \
                      echo $i > /tmp/next; mv /tmp/next /tmp/progress; done";
        let mut command = sandbox.exec(["sh", "-c", script]).spawn().await.unwrap();
        let mut stdout = command.stdout().unwrap();
        // The pieces that are written, and whether the writer sleeps, as it does when the pipe is full.
        let progress = async || {
            let script = "cat /tmp/progress 2> /dev/null || echo 0
                cat /proc/[0-9]*/stat 2> /dev/null | grep -c '(head) S ' || true";
            let text = shell(&sandbox, script).await;
            let (pieces, asleep) = text.split_once('\n').unwrap();
            (pieces.parse::<u32>().unwrap(), asleep == "1")
        };
        // Other commands run while this one makes no progress.
        let (mut last, mut idle) = (0, 0);
        let deadline = Instant::now() + Duration::from_secs(240);
        while idle < IDLE {
            let (pieces, asleep) = progress().await;
            idle = if asleep && pieces == last { idle + 1 } else { 0 };
            last = pieces;
            assert!(last < 90, "{last} of 96 pieces were written without a reader");
            assert!(Instant::now() < deadline, "the writer goes on without a reader: {last}");
        }
        let stuck = sandbox.machine_metrics().await.unwrap().rss;
        let grown = stuck.saturating_sub(before) >> 20;
        assert!(grown < 24, "the box's process has grown by {grown} MiB");
        let (mut total, mut chunk) = (0, vec![0; 64 << 10]);
        loop {
            match stdout.read(&mut chunk).await.unwrap() {
                0 => break,
                n => total += n,
            }
        }
        assert_eq!(total, 96 << 18);
        assert_eq!(command.wait().await.unwrap(), ExitStatus::Code(0));
        runtime.shutdown(Duration::ZERO).await.unwrap();
    });
}

#[test]
fn commands_honour_options_timeouts_kills_and_signals() {
    let Some(embedder) = Embedder::find() else { return };
    embedder.run(async {
        let runtime = embedder.open().await;
        let sandbox = embedder.start(&runtime, "asked").await;
        let script = "echo $A; pwd; id -u; echo err >&2; exit 7";
        let command = sandbox.exec(["sh", "-c", script]).env("A", "b c").working_dir("/new/dir");
        let output = command.user("nobody").output().await.unwrap();
        assert_eq!(output.stdout, b"b c\n/new/dir\n65534\n");
        assert_eq!((output.stderr.as_slice(), output.status), (&b"err\n"[..], ExitStatus::Code(7)));
        let status = sandbox.exec(["sh", "-c", "kill -9 $$"]).status().await.unwrap();
        assert_eq!(status, ExitStatus::Signal(9));

        // A timeout kills the command and its children, and the end is an event.
        let mut query = EventQuery::default().follow(true);
        query.id = Some(sandbox.id().to_owned());
        let mut events = runtime.events(query).await.unwrap();
        let tree = "sleep 88888 & sleep 88888";
        let begun = Instant::now();
        let late = sandbox.exec(["sh", "-c", tree]).timeout(Duration::from_secs(1)).output().await;
        assert_eq!(late.unwrap_err().kind(), ErrorKind::CommandTimeout);
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        let command = sandbox.exec(["sh", "-c", tree]).timeout(Duration::from_secs(1));
        let command = command.spawn().await.unwrap();
        assert_eq!(command.wait().await.unwrap_err().kind(), ErrorKind::CommandTimeout);
        let mut ends = 0;
        while ends < 2 {
            if let EventKind::ExecEnded { status, .. } = events.next().await.unwrap().unwrap().kind
            {
                assert_eq!(status, ExitStatus::Signal(9));
                ends += 1;
            }
        }
        // So do `kill` and drop.
        let command = sandbox.exec(["sh", "-c", tree]).spawn().await.unwrap();
        command.kill();
        assert_eq!(command.wait().await.unwrap(), ExitStatus::Signal(9));
        drop(sandbox.exec(["sh", "-c", tree]).spawn().await.unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        while shell(&sandbox, "ps | grep -c '[s]leep 88888' || true").await != "0" {
            assert!(Instant::now() < deadline, "commands are left over");
        }
        // A detached command runs on.
        let pid = sandbox.exec(["sleep", "99999"]).spawn_detached().await.unwrap();
        let line = shell(&sandbox, &format!("tr '\\0' ' ' < /proc/{pid}/cmdline")).await;
        assert_eq!(line, "sleep 99999");

        // Signals and terminals.
        let script = "trap 'echo size $(stty size)' WINCH; trap 'exit 33' USR1; echo ready; \
                      while :; do sleep 0.1; done";
        let command = sandbox.exec(["sh", "-c", script]);
        let size = |rows, columns| TerminalSize { rows, columns };
        let mut command = command.terminal(size(20, 70)).spawn().await.unwrap();
        let mut screen = command.stdout().unwrap();
        let (mut text, mut chunk) = (String::new(), [0; 256]);
        let mut until = async |wanted: &str| {
            while !text.contains(wanted) {
                let read = screen.read(&mut chunk).await.unwrap();
                assert!(read > 0, "no {wanted:?} in {text:?}");
                text.push_str(&String::from_utf8_lossy(&chunk[..read]));
            }
        };
        until("ready").await;
        command.resize(size(40, 90));
        until("size 40 90").await;
        command.signal(10);
        assert_eq!(command.wait().await.unwrap(), ExitStatus::Code(33));
        runtime.shutdown(Duration::ZERO).await.unwrap();
    });
}

/// Waiters of one box.
const WAITERS: usize = 100;

#[test]
fn hundreds_of_commands_and_waiters_at_once() {
    let Some(embedder) = Embedder::find() else { return };
    // Many commands take long under emulation.
    let count = if is_long() { 500 } else { 150 };
    embedder.run(async {
        let runtime = embedder.open().await;
        let options = embedder.options("crowd").memory_mib(512);
        let sandbox = runtime.create(options).await.unwrap();
        sandbox.start().await.unwrap();
        let mut waiters = JoinSet::new();
        for _ in 0..WAITERS {
            let handle = runtime.get(sandbox.name()).await.unwrap();
            waiters.spawn(async move { handle.wait().await });
        }
        // Each has a handle of its own.
        let mut commands = JoinSet::new();
        for number in 0..count {
            let handle = runtime.get(sandbox.name()).await.unwrap();
            let script = format!("read line; echo $line {number}");
            let command = handle.exec(["sh", "-c", &script]).stdin(true);
            commands.spawn(async move { (number, command.spawn().await) });
        }
        let commands = commands.join_all().await;
        // All run before the first exits.
        for (number, command) in commands {
            let mut command = command.unwrap_or_else(|e| panic!("command {number}: {e}"));
            let (mut stdin, mut stdout) = (command.stdin().unwrap(), command.stdout().unwrap());
            stdin.write_all(b"number\n").await.unwrap();
            let mut line = String::new();
            stdout.read_to_string(&mut line).await.unwrap();
            assert_eq!(line, format!("number {number}\n"));
            assert_eq!(command.wait().await.unwrap(), ExitStatus::Code(0), "command {number}");
        }
        sandbox.stop(Duration::from_secs(10)).await.unwrap();
        for waited in waiters.join_all().await {
            assert!(!waited.unwrap().state.is_live());
        }
    });
}
