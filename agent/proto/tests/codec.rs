//! All messages survive encoding and decoding, hostile bytes never panic, and no memory is allocated for a length
//! that is only claimed.

use std::io::{self, Read};

use boxlite_proto::frame::{
    Channel, Frame, FrameError, HEADER_LEN, Header, Kind, MAX_BODY, MAX_DATA,
};
use boxlite_proto::guest::{
    CopyIn, CopyOut, ExecCounts, FileKind, FileStat, GuestMetrics, MAX_PROCESSES, Owner, Process,
    Stat,
};
use boxlite_proto::message::{
    Connect, Control, Event, Exec, ExitStatus, Failure, FailureKind, Hello, Request, Response,
    ServerExec, Stage, TerminalSize,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn size() -> impl Strategy<Value = TerminalSize> {
    any::<(u16, u16)>().prop_map(|(rows, columns)| TerminalSize { rows, columns })
}

fn exec() -> impl Strategy<Value = Exec> {
    let strings = || vec(vec(any::<u8>(), 0..20), 0..5);
    (strings(), strings(), any::<Vec<u8>>(), ".*", option::of(size()), any::<bool>()).prop_map(
        |(argv, env, working_dir, user, terminal, stdin)| Exec {
            argv,
            env,
            working_dir,
            user,
            terminal,
            stdin,
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        Just(Request::Ping),
        exec().prop_map(Request::Exec),
        Just(Request::UnpackLayer),
        Just(Request::Sync),
        any::<u32>().prop_map(|grace_ms| Request::Shutdown { grace_ms }),
        exec().prop_map(Request::ExecDetached),
        Just(Request::Metrics),
        Just(Request::Processes),
        Just(Request::ExecCounts),
        any::<(Vec<u8>, bool)>().prop_map(|(path, follow)| Request::Stat(Stat { path, follow })),
        any::<(Vec<u8>, bool, Option<(u32, u32)>)>().prop_map(|(path, create, owner)| {
            let owner = owner.map(|(uid, gid)| Owner { uid, gid });
            Request::CopyIn(CopyIn { path, create, owner })
        }),
        any::<(Vec<u8>, bool)>()
            .prop_map(|(path, follow)| Request::CopyOut(CopyOut { path, follow })),
        any::<Vec<u8>>().prop_map(|name| Request::Connect(Connect { name })),
        (exec(), any::<Vec<u8>>())
            .prop_map(|(exec, socket)| Request::ExecServer(ServerExec { exec, socket })),
    ]
}

fn response() -> impl Strategy<Value = Response> {
    let kind = prop::sample::select(vec![
        FailureKind::NotFound,
        FailureKind::NotExecutable,
        FailureKind::UnknownUser,
        FailureKind::WorkingDir,
        FailureKind::BadLayer,
        FailureKind::DiskFull,
        FailureKind::Unsupported,
        FailureKind::Other,
        FailureKind::BadArchive,
        FailureKind::NoSuchPath,
        FailureKind::NotADirectory,
    ]);
    prop_oneof![
        any::<u32>().prop_map(|pid| Response::Started { pid }),
        any::<u8>().prop_map(|code| Response::Exited(ExitStatus::Code(code))),
        any::<i32>().prop_map(|signal| Response::Exited(ExitStatus::Signal(signal))),
        (kind, ".*").prop_map(|(kind, message)| Response::Failed(Failure { kind, message })),
        any::<(u64, u64)>().prop_map(|(entries, bytes)| Response::Unpacked { entries, bytes }),
        Just(Response::Done),
        any::<u32>().prop_map(|pid| Response::Detached { pid }),
        any::<u8>().prop_map(|code| Response::ExitedOutOfMemory(ExitStatus::Code(code))),
        metrics().prop_map(Response::Metrics),
        vec(process(), 0..20).prop_map(Response::Processes),
        file_stat().prop_map(Response::Stat),
        any::<[u64; 5]>().prop_map(|[started, refused, running, failed, out_of_memory]| {
            Response::ExecCounts(ExecCounts { started, refused, running, failed, out_of_memory })
        }),
    ]
}

fn metrics() -> impl Strategy<Value = GuestMetrics> {
    any::<([u64; 10], [u32; 5], [u64; 5])>().prop_map(|(a, b, c)| GuestMetrics {
        memory_total: a[0],
        memory_used: a[1],
        memory_available: a[2],
        swap_total: a[3],
        swap_used: a[4],
        disk_size: a[5],
        disk_used: a[6],
        disk_free: a[7],
        files_total: a[8],
        files_free: a[9],
        uptime_us: c[0],
        load_x100: [b[0], b[1], b[2]],
        processes: b[3],
        cpus: b[4],
        cpu_user_us: c[1],
        cpu_system_us: c[2],
        cpu_idle_us: c[3],
        oom_kills: c[4],
    })
}

fn process() -> impl Strategy<Value = Process> {
    let numbers = any::<([u32; 4], [u64; 3], u8)>();
    (numbers, any::<Vec<u8>>(), any::<Vec<u8>>()).prop_map(|((a, b, state), name, command)| {
        Process {
            pid: a[0],
            ppid: a[1],
            uid: a[2],
            state,
            threads: a[3],
            started_us: b[0],
            cpu_us: b[1],
            rss: b[2],
            name,
            command,
        }
    })
}

fn file_stat() -> impl Strategy<Value = FileStat> {
    let kind = prop::sample::select(vec![
        FileKind::File,
        FileKind::Directory,
        FileKind::Symlink,
        FileKind::Character,
        FileKind::Block,
        FileKind::Fifo,
        FileKind::Socket,
        FileKind::Other,
    ]);
    (kind, any::<(u64, [u32; 4], i64)>(), any::<Vec<u8>>()).prop_map(
        |(kind, (size, [mode, uid, gid, mtime_ns], mtime), link_target)| FileStat {
            kind,
            size,
            mode,
            uid,
            gid,
            mtime,
            mtime_ns,
            link_target,
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        prop::sample::select(vec![Stage::Agent, Stage::Root, Stage::Ready]).prop_map(Event::Stage),
        ".*".prop_map(|message| Event::Fatal { message }),
    ]
}

fn control() -> impl Strategy<Value = Control> {
    prop_oneof![
        any::<i32>().prop_map(Control::Signal),
        size().prop_map(Control::Resize),
        Just(Control::Kill),
    ]
}

fn channel() -> impl Strategy<Value = Channel> {
    prop::sample::select(vec![Channel::Stdin, Channel::Stdout, Channel::Stderr])
}

/// A reader that returns a few bytes at a time, with interruptions.
struct Dribble<'a>(&'a [u8], usize);

impl Read for Dribble<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.1 += 1;
        if self.1.is_multiple_of(3) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let n = buf.len().min(self.0.len()).min(self.1 % 7 + 1);
        buf[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        Ok(n)
    }
}

proptest! {
    #[test]
    fn messages_survive(
        stream: u32,
        hello in any::<(u16, u64, u64)>(),
        request in request(),
        response in response(),
        control in control(),
        event in event(),
    ) {
        let (version, generation, unix_time_ns) = hello;
        let hello = Hello { version, generation, unix_time_ns };
        let frames = [
            hello.frame(stream),
            request.frame(stream),
            response.frame(stream),
            control.frame(stream),
            event.frame(stream),
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::to_bytes).collect();
        let mut from = Dribble(&bytes, 0);
        let mut next = || Frame::read(&mut from).unwrap();
        let read: Vec<_> = std::iter::from_fn(&mut next).collect();
        prop_assert_eq!(&read[..], &frames[..]);
        prop_assert_eq!(read[0].decode::<Hello>().unwrap(), hello);
        prop_assert_eq!(read[1].decode::<Request>().unwrap(), request);
        prop_assert_eq!(read[2].decode::<Response>().unwrap(), response);
        prop_assert_eq!(read[3].decode::<Control>().unwrap(), control);
        prop_assert_eq!(read[4].decode::<Event>().unwrap(), event);
    }

    #[test]
    fn data_credit_and_ends_survive(stream: u32, channel in channel(), data: Vec<u8>, bytes: u32) {
        let read = |frame: &Frame| Frame::read(&mut &frame.to_bytes()[..]).unwrap().unwrap();
        let frame = read(&Frame::data(stream, channel, data.clone()));
        prop_assert_eq!((frame.data_channel(), &frame.body[..]), (Some(channel), &data[..]));
        let credit = read(&Frame::credit(stream, channel, bytes));
        prop_assert_eq!(credit.granted_credit().unwrap(), (channel, bytes));
        prop_assert_eq!(read(&Frame::end(stream, channel)).ended_channel().unwrap(), channel);
    }

    #[test]
    fn any_header_is_read_or_refused(bytes: [u8; HEADER_LEN]) {
        match Header::decode(&bytes) {
            Ok(header) => {
                prop_assert!(header.len <= header.kind.max_body());
                prop_assert_eq!(header.encode(), bytes);
            }
            Err(FrameError::UnknownKind(kind)) => prop_assert_eq!(Kind::from_u8(kind), None),
            Err(FrameError::TooLong { len, max, .. }) => prop_assert!(len > max),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn hostile_bytes_never_panic(
        bytes in vec(any::<u8>(), 0..200),
        kind in prop::sample::select(vec![1_u8, 2, 3, 4, 5, 8, 9, 10, 11, 12]),
    ) {
        // As a stream, and as the body of each kind.
        let _ = Frame::read(&mut &bytes[..]);
        let frame = Frame { stream: 1, kind: Kind::from_u8(kind).unwrap(), body: bytes.into() };
        let _ = frame.decode::<Hello>();
        let _ = frame.decode::<Request>();
        let _ = frame.decode::<Response>();
        let _ = frame.decode::<Control>();
        let _ = frame.decode::<Event>();
        let _ = (frame.ended_channel(), frame.granted_credit(), frame.data_channel());
    }

    #[test]
    fn a_truncated_frame_is_an_error(request in request(), cut: prop::sample::Index) {
        let bytes = request.frame(3).to_bytes();
        let cut = cut.index(bytes.len());
        let result = Frame::read(&mut &bytes[..cut]);
        match cut {
            0 => prop_assert!(matches!(result, Ok(None))),
            _ => prop_assert!(matches!(result, Err(FrameError::Io(_)))),
        }
    }
}

#[test]
fn a_claimed_length_is_checked_before_anything_is_allocated() {
    for (kind, max) in [(Kind::Stdin, MAX_DATA), (Kind::Request, MAX_BODY), (Kind::Credit, 5)] {
        for (len, fits) in [(max, true), (max + 1, false), (u32::MAX as usize, false)] {
            let header = Header { len, stream: 1, kind }.encode();
            assert_eq!(Header::decode(&header).is_ok(), fits, "{kind:?} {len}");
        }
    }
    // A vector inside a message that claims four billion elements.
    let body = [1, 0xff, 0xff, 0xff, 0xff, 0x0f];
    let frame = Frame { stream: 1, kind: Kind::Request, body: body.to_vec().into() };
    assert!(matches!(frame.decode::<Request>(), Err(FrameError::Malformed(Kind::Request))));
}

#[test]
fn processes_above_the_limit_are_refused() {
    let read = |count| {
        let response = Response::Processes(vec![Process::default(); count]);
        response.frame(1).decode::<Response>()
    };
    assert!(read(MAX_PROCESSES).is_ok());
    let too_many = read(MAX_PROCESSES + 1);
    assert!(matches!(too_many, Err(FrameError::Malformed(Kind::Response))), "{too_many:?}");
}

#[test]
fn the_longest_list_of_processes_fits_into_a_frame() {
    use boxlite_proto::guest::{MAX_COMMAND, MAX_NAME};
    let process = Process {
        pid: u32::MAX,
        ppid: u32::MAX,
        uid: u32::MAX,
        state: u8::MAX,
        threads: u32::MAX,
        started_us: u64::MAX,
        cpu_us: u64::MAX,
        rss: u64::MAX,
        name: vec![b'n'; MAX_NAME],
        command: vec![b'c'; MAX_COMMAND],
    };
    let frame = Response::Processes(vec![process; MAX_PROCESSES]).frame(1);
    assert!(frame.body.len() <= MAX_BODY, "{}", frame.body.len());
}
