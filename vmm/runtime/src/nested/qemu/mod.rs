//! QEMU: its executable, its command line, its process.
//!
//! `x86_64` and `aarch64` hold what depends on the architecture of the nested host, which may be another one than this
//! program's: both are compiled everywhere.

mod aarch64;
mod x86_64;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use boxlite_contract::nested::PORTS_SERVICE;
use boxlite_kernel::Arch;
use boxlite_proto::SERIAL_PORT_NAME;
use boxlite_proto::boot::{BootParams, Role};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::folder::HostFolder;
use super::monitor::Monitor;
use super::sys::{self, TscClock};
use super::{Error, Options, PORTS_SUBCOMMAND};
use crate::sys::inherit_only;

/// What depends on the architecture of the nested host.
struct Emulation {
    /// QEMU's program.
    program: &'static str,
    /// Commands that install the program, for a message.
    install: &'static str,
    /// The board and its CPU: arguments of QEMU.
    board: &'static [&'static str],
    /// Number of CPUs that no command and no box may use.
    idle_cpus: usize,
    /// The kernel's own words for the command line, given the frequency of this machine's time stamp counter.
    cmdline: fn(Option<u64>) -> String,
}

impl Emulation {
    const fn of(arch: Arch) -> &'static Self {
        match arch {
            Arch::X86_64 => &x86_64::EMULATION,
            Arch::Aarch64 => &aarch64::EMULATION,
        }
    }
}

/// The name of QEMU's program for an architecture.
pub(super) fn program(arch: Arch) -> &'static str {
    Emulation::of(arch).program
}

/// Commands that install QEMU for an architecture, for a message.
pub(super) fn install(arch: Arch) -> &'static str {
    if sys::HAS_HOMEBREW { "`brew install qemu`" } else { Emulation::of(arch).install }
}

/// The mount tag of the host's root on 9p.
const ROOT_TAG: &str = "root";

/// CPUs of the nested host for commands and boxes: at least two, since a nested guest and its VMM wait for each
/// other, and not more than help.
const CPUS: std::ops::RangeInclusive<usize> = 2..=8;

/// The variable for the memory of the nested host, in MiB.
pub const MEMORY_VARIABLE: &str = "BOXLITE_SOFTHOST_MEMORY";

/// The largest memory of the nested host in MiB, unless the variable sets more. Each GiB adds about 50 ms to the
/// boot: the kernel initializes a descriptor for each page, under emulation.
const MAX_MEMORY: u64 = 8 << 10;

/// The smallest memory with which the nested host is started, in MiB.
const MIN_MEMORY: u64 = 1 << 10;

/// Finds QEMU for an architecture in `PATH`, if it is installed.
pub fn find(arch: Arch) -> Option<PathBuf> {
    let executable = |path: &PathBuf| {
        path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program(arch))).find(executable)
}

/// QEMU's version line, `QEMU emulator version 7.2.22 (Debian …)`; none if QEMU cannot be run.
pub(super) fn version(arch: Arch) -> Option<String> {
    let output = std::process::Command::new(find(arch)?).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.lines().next()?.trim().to_owned()).filter(|line| !line.is_empty())
}

/// A running QEMU.
#[derive(Debug)]
pub(super) struct Qemu {
    child: Child,
}

impl Qemu {
    /// Starts QEMU, which keeps `lock` open. Returns it with the link to the agent. QEMU is killed when this thread
    /// exits.
    pub(super) fn start(
        options: &Options,
        folder: &HostFolder,
        lock: File,
        clock: &TscClock,
    ) -> Result<(Self, Link), Error> {
        let arch = options.arch;
        let program = find(arch).ok_or(Error::NoQemu(arch))?;
        let (agent, agent_end) = pair().map_err(Error::Qemu)?;
        let (monitor, monitor_end) = pair().map_err(Error::Qemu)?;
        let home = options.home.to_str().ok_or_else(|| Error::Home(options.home.clone()))?;
        let machine = Machine {
            emulation: Emulation::of(arch),
            kernel: &options.kernel,
            initramfs: &options.initramfs,
            image: &folder.image(),
            console: &folder.console(),
            agent: agent_end.as_raw_fd(),
            monitor: monitor_end.as_raw_fd(),
            cmdline: cmdline(arch, home, clock),
            network: network(&this_executable()?, home),
            memory: memory(),
            cpus: cpus(),
        };
        let mut command = Command::new(program);
        command.args(machine.args());
        command.stdin(Stdio::from(lock)).kill_on_drop(true);
        let keep = vec![agent_end.as_raw_fd(), monitor_end.as_raw_fd()];
        inherit_only(command.as_std_mut(), keep);
        sys::die_with_us(&mut command);
        let child = command.spawn().map_err(Error::Qemu)?;
        Ok((Self { child }, Link { agent, monitor }))
    }

    /// Waits for QEMU to exit. Cancel safe.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Kills QEMU and waits for it to exit.
    pub(super) async fn kill(&mut self) -> io::Result<ExitStatus> {
        self.child.start_kill()?;
        self.child.wait().await
    }
}

/// The link to the agent.
#[derive(Debug)]
pub(super) struct Link {
    agent: UnixStream,
    monitor: UnixStream,
}

impl Link {
    /// Waits until the agent has opened its port, so that data does not become stale in the port before the agent reads
    /// it, above all the time.
    pub(super) async fn open(self) -> io::Result<(UnixStream, Monitor)> {
        let mut monitor = Monitor::new(self.monitor);
        monitor.port_opened().await?;
        Ok((self.agent, monitor))
    }
}

/// A socket pair: our end, and a child's.
fn pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs.into()))
}

/// How QEMU exited, as a message.
pub(super) fn describe(arch: Arch, status: ExitStatus) -> String {
    const KILL: i32 = 9;
    let program = program(arch);
    match (status.signal(), status.code()) {
        (Some(KILL), _) => format!(
            "{program} was killed, perhaps because the machine ran out of memory (see dmesg)"
        ),
        (Some(signal), _) => format!("{program} was killed by signal {signal}"),
        (None, Some(0)) => "its kernel stopped".to_owned(),
        (None, code) => format!("{program} exited with code {}", code.unwrap_or(-1)),
    }
}

/// The variable parts of QEMU's command line.
struct Machine<'a> {
    emulation: &'static Emulation,
    kernel: &'a Path,
    initramfs: &'a Path,
    image: &'a Path,
    console: &'a Path,
    /// The descriptor of the socket to the agent.
    agent: i32,
    /// The descriptor of the monitor's socket.
    monitor: i32,
    cmdline: String,
    network: String,
    /// In MiB.
    memory: u64,
    /// For commands and boxes.
    cpus: usize,
}

impl Machine<'_> {
    fn args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = Vec::new();
        let mut add = |words: &[&str]| args.extend(words.iter().map(OsString::from));
        let cpus = self.cpus + self.emulation.idle_cpus;
        add(self.emulation.board);
        add(&["-accel", "tcg,thread=multi"]);
        add(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        add(&["-smp", &cpus.to_string(), "-m", &self.memory.to_string()]);
        add(&["-global", "virtio-mmio.force-legacy=false"]);
        add(&["-append", &self.cmdline]);
        add(&["-serial", "chardev:console"]);
        add(&["-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"]);
        add(&["-device", &format!("virtio-9p-device,fsdev=root,mount_tag={ROOT_TAG}")]);
        add(&["-chardev", &format!("socket,id=monitor,fd={}", self.monitor)]);
        add(&["-mon", "chardev=monitor,mode=control"]);
        add(&["-chardev", &format!("socket,id=agent,fd={}", self.agent)]);
        add(&["-device", "virtio-serial-device,max_ports=2"]);
        // QEMU reports the state only of a port with an ID.
        add(&["-device", &format!("virtserialport,id=port,chardev=agent,name={SERIAL_PORT_NAME}")]);
        add(&["-device", "virtio-blk-device,drive=home"]);
        add(&["-netdev", &self.network, "-device", "virtio-net-device,netdev=net"]);
        add(&["-device", "virtio-rng-device"]);
        // Returns memory that the nested host has freed to the real host.
        add(&["-device", "virtio-balloon-device,free-page-reporting=on"]);
        args.extend(["-kernel".into(), self.kernel.into()]);
        args.extend(["-initrd".into(), self.initramfs.into()]);
        args.extend(["-chardev".into(), with_path("file,id=console,path=", self.console)]);
        // A full disk is an I/O error in the guest and does not pause the VM. Flushes are honoured, so that synced data
        // survives a crash of QEMU.
        args.extend([
            "-drive".into(),
            with_path(
                "if=none,id=home,format=raw,cache=writeback,discard=unmap,werror=report,\
                 rerror=report,file=",
                self.image,
            ),
        ]);
        args
    }
}

/// An option that ends in a path. In QEMU's syntax, two commas stand for one within a value.
fn with_path(option: &str, path: &Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut bytes = option.as_bytes().to_vec();
    for byte in OsStr::as_bytes(path.as_os_str()) {
        bytes.extend(std::iter::repeat_n(*byte, if *byte == b',' { 2 } else { 1 }));
    }
    OsString::from_vec(bytes)
}

/// The path of an executable for QEMU's children, for which `/proc/self/exe` is another program.
fn this_executable() -> Result<String, Error> {
    let path = std::env::current_exe().map_err(Error::Qemu)?;
    path.into_os_string().into_string().map_err(|path| Error::Home(path.into()))
}

/// QEMU's user network, with the address at which boxes request ports of the host: QEMU starts a program for each
/// connection to it.
fn network(launcher: &str, home: &str) -> String {
    let quote = |word: &str| format!("'{}'", word.replace('\'', "'\\''"));
    let (address, port) = PORTS_SERVICE;
    let command = [launcher, PORTS_SUBCOMMAND, home].map(quote).join(" ").replace(',', ",,");
    format!("user,id=net,guestfwd=tcp:{address}:{port}-cmd:{command}")
}

/// The kernel's command line.
fn cmdline(arch: Arch, home: &str, clock: &TscClock) -> String {
    // Takes time, so only where the kernel needs it.
    let tsc_khz = if arch == Arch::X86_64 { clock.khz() } else { None };
    let params = BootParams {
        role: Role::SoftHost,
        hostname: rustix::system::uname().nodename().to_str().ok().map(str::to_owned),
        home: Some(home.to_owned()),
        ..Default::default()
    };
    // TCG does not speculate, so mitigations are useless. A panic makes QEMU exit, because of -no-reboot; an oops
    // panics, so that no command hangs in a faulty kernel.
    let own = (Emulation::of(arch).cmdline)(tsc_khz);
    format!("quiet panic=-1 oops=panic mitigations=off {own} {params}")
}

/// The memory in MiB: the variable's value, or three quarters of the available memory. The host only allocates pages
/// that the guest touches.
fn memory() -> u64 {
    let asked = std::env::var(MEMORY_VARIABLE).ok().and_then(|value| value.parse::<u64>().ok());
    if let Some(asked) = asked {
        return asked.max(MIN_MEMORY);
    }
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.parse::<u64>().ok())
        .map_or(4 << 10, |kib| kib >> 10);
    (available / 4 * 3).clamp(MIN_MEMORY, MAX_MEMORY)
}

fn cpus() -> usize {
    let cpus = std::thread::available_parallelism().map_or(*CPUS.start(), usize::from);
    cpus.clamp(*CPUS.start(), *CPUS.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_paths_are_doubled() {
        assert_eq!(with_path("file,path=", Path::new("/a,b/c")), "file,path=/a,,b/c");
    }

    #[test]
    fn paths_are_quoted_for_the_shell() {
        let network = network("/opt/x y/boxlite-vmm", "/h,o/it's");
        let words = "'/opt/x y/boxlite-vmm' 'softhost-ports' '/h,,o/it'\\''s'";
        assert_eq!(network, format!("user,id=net,guestfwd=tcp:10.0.2.100:1-cmd:{words}"));
    }

    #[test]
    fn the_command_line_is_read_back_by_the_agent() {
        for arch in [Arch::X86_64, Arch::Aarch64] {
            let line = cmdline(arch, "/home/a b/.boxlite", &TscClock::start());
            let params = BootParams::parse(&line).unwrap();
            assert_eq!(params.role, Role::SoftHost);
            assert_eq!(params.home.as_deref(), Some("/home/a b/.boxlite"));
            assert!(line.contains("console=tty") && line.contains(" panic=-1 "), "{line}");
        }
    }

    #[test]
    fn each_architecture_has_its_board_and_the_same_devices() {
        let args = |arch| {
            let machine = Machine {
                emulation: Emulation::of(arch),
                kernel: Path::new("/kernel"),
                initramfs: Path::new("/initramfs"),
                image: Path::new("/image"),
                console: Path::new("/console"),
                agent: 5,
                monitor: 6,
                cmdline: String::new(),
                network: "user,id=net".to_owned(),
                memory: 1024,
                cpus: 2,
            };
            let args: Vec<_> =
                machine.args().into_iter().map(|a| a.into_string().unwrap()).collect();
            args.join(" ")
        };
        let (x86, arm) = (args(Arch::X86_64), args(Arch::Aarch64));
        assert!(x86.starts_with("-M microvm,") && x86.contains(" -smp 3 "), "{x86}");
        assert!(arm.starts_with("-M virt,virtualization=on,") && arm.contains(" -smp 2 "), "{arm}");
        let devices =
            |args: &str| args.split_once("-nodefaults").unwrap().1.replace("-smp 3", "-smp 2");
        assert_eq!(devices(&x86), devices(&arm));
    }

    #[test]
    fn an_end_is_described() {
        assert!(describe(Arch::Aarch64, ExitStatus::from_raw(9)).contains("memory"));
        assert!(describe(Arch::Aarch64, ExitStatus::from_raw(6)).contains("signal 6"));
        assert!(describe(Arch::Aarch64, ExitStatus::from_raw(1 << 8)).contains("code 1"));
    }

    #[test]
    fn memory_and_cpus_are_in_their_ranges() {
        assert!((MIN_MEMORY..=MAX_MEMORY).contains(&memory()));
        assert!(CPUS.contains(&cpus()));
    }
}
