//! VM processes with real VMs, whose guests are a few instructions each.

use std::fs;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use boxlite_contract::events::Event;
use boxlite_contract::spec::{DiskFormat, DiskSpec, MainSpec, NetworkSpec, RestartPolicy};
use boxlite_contract::status::{BoxEnd, EndCause, Phase, Status};
use boxlite_durable::power_cut::Watch;
use boxlite_proto::message::Exec;

use super::*;
use crate::threads::fault::{self, Fault};

/// Writes to an unassigned port forever.
const CHATTER: &[u8] = &[
    0x66, 0xba, 0x80, 0x00, // mov dx, 0x80
    0xee, // out dx, al
    0xeb, 0xfd, // jmp -3
];
/// Resets the VM.
const RESET: &[u8] = &[
    0xb0, 0xfe, // mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
    0xeb, 0xfe, // jmp $
];
/// Prints the text after the code on the serial port, then resets the VM.
const PRINT: &[u8] = &[
    0x48, 0x8d, 0x35, 0x12, 0, 0, 0, // lea rsi, [rip + 18]
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xac, // lodsb
    0x84, 0xc0, // test al, al
    0x74, 0x03, // jz +3
    0xee, // out dx, al
    0xeb, 0xf8, // jmp -8
    0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe, // as RESET
];

/// An ELF file with this program at 16 MiB.
fn kernel(program: &[u8]) -> Vec<u8> {
    const ENTRY: u64 = 16 << 20;
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version
    for number in [ENTRY, 64, 0] {
        elf.extend(number.to_le_bytes()); // entry, program headers, section headers
    }
    elf.extend([0; 4]);
    for number in [64_u16, 56, 1, 64, 0, 0] {
        elf.extend(number.to_le_bytes());
    }
    elf.extend([1, 0, 0, 0, 7, 0, 0, 0]); // PT_LOAD, rwx
    let len = program.len() as u64;
    for number in [120, ENTRY, ENTRY, len, len, 16] {
        elf.extend(number.to_le_bytes());
    }
    elf.extend(program);
    elf
}

/// A VM process, on a thread of the test.
struct TestBox {
    folder: tempfile::TempDir,
    launcher: Option<UnixStream>,
    inject: Sender<Message>,
    thread: JoinHandle<()>,
}

impl TestBox {
    /// Starts a box; `None` where no VM can be created.
    fn start(program: &[u8], change: impl FnOnce(&mut BoxSpec)) -> Option<Self> {
        Self::start_with(program, |_, spec, _| spec.sandbox.as_mut().map_or((), change))
    }

    /// As `start`; `change` gets the folder, the LaunchSpec and its files.
    fn start_with(
        program: &[u8],
        change: impl FnOnce(&Path, &mut LaunchSpec, &mut Vec<File>),
    ) -> Option<Self> {
        Self::inject(program, Fault::new("nobody", false), change)
    }

    /// As `start_with`, with a fault in one of the threads.
    fn inject(
        program: &[u8],
        fault: Fault,
        change: impl FnOnce(&Path, &mut LaunchSpec, &mut Vec<File>),
    ) -> Option<Self> {
        if let Err(e) = File::options().read(true).write(true).open("/dev/kvm") {
            eprintln!("SKIPPED: /dev/kvm: {e}");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("vmlinux"), kernel(program)).unwrap();
        fs::write(path("initramfs"), [0; 512]).unwrap();
        fs::create_dir(path("box")).unwrap();
        let mut files: Vec<File> = vec![
            OwnedFd::from(UnixListener::bind(path("control.sock")).unwrap()).into(),
            OwnedFd::from(UnixListener::bind(path("vsock.sock")).unwrap()).into(),
            File::options().create(true).append(true).open(path("events.jsonl")).unwrap(),
        ];
        let sandbox = BoxSpec {
            id: "abc".into(),
            folder: path("box"),
            remove: false,
            detached: false,
            control: 0,
            vsock: 1,
            events: 2,
            ready_timeout_ms: 60_000,
            main: None,
            restart: RestartPolicy::No,
            health: None,
        };
        let mut spec = LaunchSpec {
            vcpus: 1,
            memory_mib: 128,
            nested: false,
            kernel: path("vmlinux"),
            initramfs: path("initramfs"),
            boot: Default::default(),
            host: Default::default(),
            disks: Vec::new(),
            console: None,
            network: None,
            sandbox: Some(sandbox),
        };
        change(folder.path(), &mut spec, &mut files);
        let (launcher, theirs) = UnixStream::pair().unwrap();
        launcher.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let (sender, receiver) = channel();
        let thread = thread::spawn(move || {
            if fault.thread == "main" {
                fault::arm_self(fault);
            } else {
                fault::arm(fault);
            }
            let process = Process::new(theirs, spec, files).unwrap();
            sender.send(process.sender.clone()).unwrap();
            process.run();
        });
        let inject = receiver.recv().unwrap();
        Some(Self { folder, launcher: Some(launcher), inject, thread })
    }

    /// Reports that the guest serves, in the agent's place.
    fn ready(&self) {
        let stage = VmEvent::Report(Report::Stage(BootStage::Ready));
        self.inject.send(Message::Vm(1, stage)).unwrap();
        self.wait_for(|status| status.phase == Phase::Running);
    }

    fn box_folder(&self) -> PathBuf {
        self.folder.path().join("box")
    }

    fn wait_for(&self, wanted: impl Fn(&Status) -> bool) -> Status {
        for _ in 0..3000 {
            let status = Status::read(&self.box_folder()).unwrap();
            if let Some(status) = status.filter(&wanted) {
                return status;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("the status is {:?}", Status::read(&self.box_folder()));
    }

    fn control(&self) -> UnixStream {
        UnixStream::connect(self.folder.path().join("control.sock")).unwrap()
    }

    /// The last message to the launcher.
    fn ended(&self) -> BoxEnd {
        let launcher = self.launcher.as_ref().unwrap();
        loop {
            match control::receive(launcher).unwrap().unwrap().0 {
                FromMachine::Ended(ended) => return ended,
                FromMachine::Stage { .. } | FromMachine::Done => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn events(folder: &Path) -> Vec<EventKind> {
        let log = fs::read_to_string(folder.join("events.jsonl")).unwrap();
        log.lines().map(|line| serde_json::from_str::<Event>(line).unwrap().kind).collect()
    }
}

fn ask(to: &UnixStream, message: &ToMachine) -> FromMachine {
    control::send(to, message, &[]).unwrap();
    control::receive(to).unwrap().unwrap().0
}

fn pio(to: &UnixStream) -> u64 {
    match ask(to, &ToMachine::Metrics) {
        FromMachine::Metrics(metrics) => {
            assert!(metrics.rss > 0 && metrics.cpu_micros > 0);
            metrics.exits.pio
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn vcpus_pause_and_resume() {
    let Some(test) = TestBox::start(CHATTER, |_| {}) else { return };
    let control = test.control();
    assert!(matches!(ask(&control, &ToMachine::Pause), FromMachine::Refused(_)), "still booting");
    let before = pio(&control);
    while pio(&control) <= before {
        thread::yield_now();
    }
    test.ready();
    assert!(matches!(ask(&control, &ToMachine::Pause), FromMachine::Done));
    assert_eq!(test.wait_for(|_| true).phase, Phase::Paused);
    let paused = pio(&control);
    thread::sleep(Duration::from_millis(50));
    assert_eq!(pio(&control), paused);
    assert!(matches!(ask(&control, &ToMachine::Resume), FromMachine::Done));
    while pio(&control) <= paused {
        thread::yield_now();
    }
    // A paused box can be killed.
    ask(&control, &ToMachine::Pause);
    assert!(matches!(ask(&control, &ToMachine::Kill), FromMachine::Done));
    assert_eq!(test.ended().cause, EndCause::Killed);
    test.thread.join().unwrap();
    let status = Status::read(&test.folder.path().join("box")).unwrap().unwrap();
    assert_eq!((status.phase, status.ended.unwrap().cause), (Phase::Ended, EndCause::Killed));
    use EventKind::{Paused, Resumed, Running, Starting, Stopped};
    let events = TestBox::events(test.folder.path());
    assert_eq!(events, [Starting, Running, Paused, Resumed, Paused, Stopped { code: None }]);
}

#[test]
fn a_boot_timeout_is_reported() {
    let Some(test) = TestBox::start(CHATTER, |spec| spec.ready_timeout_ms = 200) else { return };
    let ended = test.ended();
    let stage = Some(BootStage::Kernel);
    assert_eq!(ended.cause, EndCause::NotReady { timeout_ms: 200, stage });
    test.thread.join().unwrap();
    let events = TestBox::events(test.folder.path());
    assert!(matches!(&events[1], EventKind::Failed { reason } if reason.contains("200 ms")));
}

#[test]
fn a_panic_is_reported_with_its_last_lines() {
    let text = b"so it goes\nKernel panic - not syncing: no root\n\0";
    let Some(test) = TestBox::start(&[PRINT, text].concat(), |_| {}) else { return };
    let EndCause::Panic(lines) = test.ended().cause else { panic!() };
    assert_eq!(lines, ["so it goes", "Kernel panic - not syncing: no root"]);
    test.thread.join().unwrap();
}

#[test]
fn a_vm_that_fails_is_restarted() {
    let text = b"Kernel panic - not syncing: again\n\0";
    let restart = RestartPolicy::OnFailure(2);
    let change = |spec: &mut BoxSpec| spec.restart = restart;
    let Some(test) = TestBox::start(&[PRINT, text].concat(), change) else { return };
    assert!(matches!(test.ended().cause, EndCause::Panic(_)));
    test.thread.join().unwrap();
    let status = Status::read(&test.folder.path().join("box")).unwrap().unwrap();
    assert_eq!(status.restarts, 2);
}

#[test]
fn a_box_ends_with_its_launcher() {
    let Some(mut test) = TestBox::start(CHATTER, |_| {}) else { return };
    test.launcher = None;
    let folder = test.box_folder();
    test.thread.join().unwrap();
    let ended = Status::read(&folder).unwrap().unwrap().ended.unwrap();
    assert_eq!(ended.cause, EndCause::Orphaned);

    let Some(test) = TestBox::start(RESET, |spec| spec.remove = true) else { return };
    assert_eq!(test.ended().cause, EndCause::Guest);
    let folder = test.box_folder();
    test.thread.join().unwrap();
    assert!(!folder.exists());
    // With `remove`, closing this connection would exit the test's process.
    std::mem::forget(test.launcher);
}

#[test]
fn a_detached_box_outlives_its_launcher_and_stops_in_bounded_time() {
    let main =
        MainSpec { exec: Exec::default(), wait_for_attach: false, stop_signal: 15, init: false };
    let change = |spec: &mut BoxSpec| spec.main = Some(main);
    let Some(mut test) = TestBox::start(CHATTER, change) else { return };
    test.ready();
    // Stages may arrive in between.
    let launcher = test.launcher.as_ref().unwrap();
    let mut answer = ask(launcher, &ToMachine::Outlive);
    while matches!(answer, FromMachine::Stage { .. }) {
        answer = control::receive(launcher).unwrap().unwrap().0;
    }
    assert!(matches!(answer, FromMachine::Done));
    test.launcher = None;
    thread::sleep(Duration::from_millis(50));
    assert_eq!(test.wait_for(|_| true).phase, Phase::Running);
    let (started, control) = (Instant::now(), test.control());
    // This guest has no agent to ask.
    assert!(matches!(ask(&control, &ToMachine::Stop { grace_ms: 100 }), FromMachine::Done));
    assert_eq!(test.wait_for(|_| true).phase, Phase::Stopping);
    assert!(matches!(ask(&control, &ToMachine::Pause), FromMachine::Refused(_)));
    let folder = test.box_folder();
    test.thread.join().unwrap();
    assert!(started.elapsed() < Duration::from_secs(12));
    let ended = Status::read(&folder).unwrap().unwrap().ended.unwrap();
    assert_eq!((ended.cause, ended.main), (EndCause::Stopped, None));
}

#[test]
fn malformed_messages_end_only_their_connection() {
    let Some(test) = TestBox::start(CHATTER, |_| {}) else { return };
    for bytes in [&b"\xff\xff\xff\xff"[..], b"\x04\0\0\0nope", b"\x02\0\0\0{}"] {
        let mut control = test.control();
        control.write_all(bytes).unwrap();
        assert!(control::receive::<FromMachine>(&control).unwrap().is_none());
    }
    let control = test.control();
    let launch = ToMachine::Stop { grace_ms: 0 };
    // Unexpected descriptors, or of the wrong kind, do no harm.
    let null = File::open("/dev/null").unwrap();
    let fds: [BorrowedFd<'_>; 1] = [null.as_fd()];
    for message in [ToMachine::Client, ToMachine::Attach, ToMachine::Metrics] {
        control::send(&control, &message, &fds).unwrap();
    }
    assert!(matches!(control::receive(&control).unwrap().unwrap().0, FromMachine::Metrics(_)));
    assert!(matches!(ask(&control, &launch), FromMachine::Done));
    assert_eq!(test.ended().cause, EndCause::Stopped);
    test.thread.join().unwrap();
}

#[test]
fn connections_are_bounded() {
    let Some(test) = TestBox::start(CHATTER, |_| {}) else { return };
    let held: Vec<_> = (0..64).map(|_| test.control()).collect();
    for control in &held {
        assert!(matches!(ask(control, &ToMachine::Metrics), FromMachine::Metrics(_)));
    }
    // Further connections may only end the box.
    let beyond = test.control();
    assert!(matches!(ask(&beyond, &ToMachine::Metrics), FromMachine::Refused(_)));
    // A slot is free once its connection is closed.
    assert!(control::receive::<FromMachine>(&beyond).unwrap().is_none());
    // On a slow host the first slot may be free again before the last is taken.
    let full = (0..3).find_map(|_| {
        let idle: Vec<_> = (0..16).map(|_| test.control()).collect();
        let (answer, _) = control::receive(&test.control()).unwrap()?;
        assert!(matches!(answer, FromMachine::Refused(_)), "{answer:?}");
        Some(idle)
    });
    let idle = full.expect("nobody is refused");
    // A connection without a request does not keep a reserved slot.
    for control in idle {
        control.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        assert!(control::receive::<FromMachine>(&control).unwrap().is_none());
    }
    let answer = ask(&test.control(), &ToMachine::Stop { grace_ms: 0 });
    assert!(matches!(answer, FromMachine::Done), "{answer:?}");
    assert_eq!(test.ended().cause, EndCause::Stopped);
    drop(held);
    test.thread.join().unwrap();
}

/// The states that a loss of power may leave of a box with a disk: for each, whether the status says that the disk is
/// synced, and whether it is.
fn after_power_cut(program: &[u8], end: impl FnOnce(&TestBox)) -> Option<Vec<(bool, bool)>> {
    const WRITTEN: [u8; 1024] = [5; 1024];
    let mut watch = None;
    let test = TestBox::start_with(program, |folder, spec, files| {
        fs::write(folder.join("box/disk"), [0; 1024]).unwrap();
        watch = Some(Watch::begin(folder));
        // Data that the guest wrote and did not flush.
        fs::write(folder.join("box/disk"), WRITTEN).unwrap();
        files.push(File::options().read(true).write(true).open(folder.join("box/disk")).unwrap());
        spec.disks = vec![DiskSpec {
            file: files.len() - 1,
            format: DiskFormat::Raw,
            backing: None,
            ephemeral: false,
            recover: false,
        }];
    })?;
    end(&test);
    test.ended();
    test.thread.join().unwrap();
    let (during, after) = watch.unwrap().end();
    let look = |cut: &boxlite_durable::power_cut::Cut| {
        let folder = cut.path().join("box");
        let status = Status::read(&folder).unwrap();
        let in_order = status.is_some_and(|status| !status.was_cut_off());
        (in_order, fs::read(folder.join("disk")).unwrap() == WRITTEN)
    };
    let looks: Vec<_> = during.iter().chain(&after).map(look).collect();
    assert!(looks.iter().all(|(in_order, is)| *is || !in_order), "{looks:?}");
    Some(after.iter().map(look).collect())
}

#[test]
fn a_status_says_that_a_disk_is_synced_only_if_it_is() {
    let Some(after) = after_power_cut(RESET, |_| {}) else { return };
    assert_eq!(after, [(true, true)], "it ended by itself");
    let leave = |test: &TestBox| {
        test.launcher.as_ref().unwrap().shutdown(std::net::Shutdown::Write).unwrap();
    };
    let Some(after) = after_power_cut(CHATTER, leave) else { return };
    assert_eq!(after, [(true, true)], "it ended with its launcher");
    let kill = |test: &TestBox| drop(ask(&test.control(), &ToMachine::Kill));
    // The disk of a killed box is not synced; the next start recovers it.
    let Some(after) = after_power_cut(CHATTER, kill) else { return };
    assert!(after.iter().all(|(in_order, _)| !in_order), "{after:?}");
}

/// Adds an empty disk to the box.
fn add_disk(_: &Path, spec: &mut LaunchSpec, files: &mut Vec<File>) {
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(1 << 20).unwrap();
    spec.disks.push(DiskSpec {
        file: files.len(),
        format: DiskFormat::Raw,
        backing: None,
        ephemeral: true,
        recover: false,
    });
    files.push(disk);
}

/// Asserts that the box ended because this thread panicked, and that launcher, status and event say so.
fn failed_by(test: TestBox, thread: &str) {
    let EndCause::Failed(why) = test.ended().cause else { panic!() };
    assert!(why.contains(thread) && why.ends_with("panicked: injected by a test"), "{why}");
    let folder = test.box_folder();
    test.thread.join().unwrap();
    let status = Status::read(&folder).unwrap().unwrap();
    assert_eq!(
        (status.phase, status.ended.unwrap().cause),
        (Phase::Ended, EndCause::Failed(why.clone()))
    );
    let events = TestBox::events(test.folder.path());
    assert_eq!(events.last(), Some(&EventKind::Failed { reason: why }));
}

#[test]
fn a_panic_at_a_threads_start_fails_the_box() {
    for name in ["vcpu0", "devices", "vda", "network", "hub", "launcher"] {
        let change = |folder: &Path, spec: &mut LaunchSpec, files: &mut Vec<File>| {
            add_disk(folder, spec, files);
            spec.network = Some(NetworkSpec::default());
        };
        let Some(test) = TestBox::inject(CHATTER, Fault::new(name, true), change) else { return };
        failed_by(test, &format!("thread {name} "));
    }
}

#[test]
fn a_later_panic_of_a_thread_fails_the_box() {
    for name in ["vcpu0", "hub", "main", "control"] {
        let fault = Fault::new(name, false);
        let Some(test) = TestBox::inject(CHATTER, fault.clone(), |_, _, _| {}) else { return };
        test.ready();
        let control = test.control();
        fault.armed.store(true, Ordering::SeqCst);
        // Wakes the threads; one that panics does not answer.
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let _ = control::send(&control, &ToMachine::Attach, &[theirs.as_fd()]);
        let _ = control::send(&control, &ToMachine::Metrics, &[]);
        let _another = test.control();
        failed_by(test, if name == "main" { "the box's process" } else { name });
    }
}

#[test]
fn a_box_whose_disk_hangs_can_be_killed_and_is_recovered_at_its_next_start() {
    let fault = Fault { hangs: true, ..Fault::new("vda", true) };
    let Some(test) = TestBox::inject(CHATTER, fault, add_disk) else { return };
    test.ready();
    assert!(matches!(ask(&test.control(), &ToMachine::Kill), FromMachine::Done));
    assert_eq!(test.ended().cause, EndCause::Killed);
    let folder = test.box_folder();
    test.thread.join().unwrap();
    let status = Status::read(&folder).unwrap().unwrap();
    assert!(status.phase == Phase::Ended && status.was_cut_off(), "{status:?}");
}

#[test]
fn a_stop_is_answered_while_the_vm_is_taken_down() {
    let fault = Fault { hangs: true, ..Fault::new("vda", true) };
    let Some(test) = TestBox::inject(CHATTER, fault, add_disk) else { return };
    // The guest still boots, so the teardown begins at once, and would take a minute.
    for message in
        [ToMachine::Stop { grace_ms: 0 }, ToMachine::Stop { grace_ms: 0 }, ToMachine::Kill]
    {
        let control = test.control();
        control.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
        assert!(matches!(ask(&control, &message), FromMachine::Done));
    }
    assert_eq!(test.ended().cause, EndCause::Stopped);
    let folder = test.box_folder();
    test.thread.join().unwrap();
    let status = Status::read(&folder).unwrap().unwrap();
    assert!(status.phase == Phase::Ended && status.was_cut_off(), "{status:?}");
}

#[test]
fn a_box_whose_folder_hangs_can_be_killed_and_says_how_it_ended() {
    let fault = Fault { hangs: true, ..Fault::new("record", true) };
    let Some(test) = TestBox::inject(CHATTER, fault, |_, _, _| {}) else { return };
    assert!(matches!(ask(&test.control(), &ToMachine::Kill), FromMachine::Done));
    assert_eq!(test.ended().cause, EndCause::Killed);
    test.thread.join().unwrap();
    let events = TestBox::events(test.folder.path());
    assert_eq!(events.last(), Some(&EventKind::Stopped { code: None }), "{events:?}");
}

#[test]
fn a_box_whose_hub_hangs_can_be_killed() {
    let fault = Fault { hangs: true, ..Fault::new("hub", true) };
    let Some(test) = TestBox::inject(CHATTER, fault, |_, _, _| {}) else { return };
    assert!(matches!(ask(&test.control(), &ToMachine::Kill), FromMachine::Done));
    assert_eq!(test.ended().cause, EndCause::Killed);
    test.thread.join().unwrap();
}

#[test]
fn a_locked_event_log_does_not_delay_a_box() {
    let Some(test) = TestBox::start(CHATTER, |_| {}) else { return };
    let log = File::options().append(true).open(test.folder.path().join("events.jsonl")).unwrap();
    rustix::fs::flock(&log, rustix::fs::FlockOperation::LockExclusive).unwrap();
    test.ready();
    let control = test.control();
    for message in [ToMachine::Pause, ToMachine::Resume, ToMachine::Pause, ToMachine::Kill] {
        assert!(matches!(ask(&control, &message), FromMachine::Done));
    }
    assert_eq!(test.ended().cause, EndCause::Killed);
    test.thread.join().unwrap();
    let events = TestBox::events(test.folder.path());
    assert_eq!(events.last(), Some(&EventKind::Stopped { code: None }), "{events:?}");
}
