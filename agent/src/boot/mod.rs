//! Boots the guest: from the start of PID 1 until the agent serves the host.
//!
//! The steps run once, in order: mounts, host name and `/etc`, network. A step that the guest cannot run
//! without is fatal, and the host receives the error. May use every module, because it connects them.

mod disk;
mod etc;
mod hostname;
pub(crate) mod mounts;
mod net;

use std::os::fd::OwnedFd;

use boxlite_proto::boot::{BadParams, BootParams, Role};
use boxlite_proto::message::Stage;
use rustix::io;

use self::mounts::MountError;
use crate::exec::init;
use crate::host::transport::{Transport, TransportError};
use crate::server::{Server, shutdown};
use crate::{log, sys};

/// Limit on the agent's open files, and hard limit of the processes that it starts.
const MAX_FILES: u64 = 1 << 20;

/// Why the guest cannot boot.
#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("cannot read the kernel command line: {0}")]
    CommandLine(#[source] std::io::Error),
    #[error(transparent)]
    Params(#[from] BadParams),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Network(#[from] net::NetworkError),
    #[error("cannot serve the host: {0}")]
    Serve(#[source] io::Errno),
}

/// Boots the guest, serves the host until shutdown, and resets the VM. Returns only if the reset fails;
/// the kernel panics when PID 1 exits.
pub fn run() -> i32 {
    if init::is_this_process() {
        init::run();
    }
    if rustix::process::getpid().as_raw_nonzero().get() != 1 {
        eprintln!("boxlite-agent is the init of a boxlite guest; it does nothing elsewhere");
        return 2;
    }
    if let Err(e) = boot_and_serve() {
        log::error(format_args!("{e}"));
    }
    shutdown::reset();
    1
}

fn boot_and_serve() -> Result<(), BootError> {
    rustix::process::umask(rustix::fs::Mode::empty());
    mounts::early()?;
    open_stdio();
    log::init();
    let mut transport = Transport::find()?;
    transport.reached(Stage::Agent);
    let result = boot(&mut transport);
    let mut server = match result {
        Ok(server) => server,
        Err(e) => {
            transport.fatal(e.to_string());
            return Err(e);
        }
    };
    transport.reached(Stage::Ready);
    let report = hand_over(transport, &mut server).map_err(BootError::Serve)?;
    let result = server.run().map_err(BootError::Serve);
    drop(report);
    result
}

/// Gives the transport to the server. Returns the descriptor of the boot report, which must stay open.
fn hand_over(transport: Transport, server: &mut Server) -> io::Result<Option<OwnedFd>> {
    match transport {
        Transport::Vsock { listener, report } => {
            server.listen(listener)?;
            Ok(report)
        }
        Transport::Serial { port, events } => {
            server.connect_serial(port, events)?;
            Ok(None)
        }
    }
}

fn boot(transport: &mut Transport) -> Result<Server, BootError> {
    let cmdline = std::fs::read("/proc/cmdline").map_err(BootError::CommandLine)?;
    let params = BootParams::parse(&String::from_utf8_lossy(&cmdline))?;
    match params.role {
        Role::Box => {
            mounts::box_root()?;
            transport.reached(Stage::Root);
            net::loopback_up();
            let hostname = params.hostname.as_deref().unwrap_or("localhost");
            hostname::set(hostname);
            etc::write_names(hostname, params.network.as_ref());
            etc::link_mtab();
            mounts::make_volumes(&params.volumes);
            if let Some(network) = &params.network {
                net::box_network(network)?;
                etc::write_resolv_conf(network, &params.search);
            }
            apply_settings(1024);
            // The VM is the box's own: ports below 1024 need no privilege.
            write_setting("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
        }
        Role::Builder => {
            mounts::builder_disk()?;
            transport.reached(Stage::Root);
            apply_settings(MAX_FILES);
        }
        Role::SoftHost => {
            mounts::soft_host_root(params.home.as_deref())?;
            transport.reached(Stage::Root);
            mounts::open_kvm_to_all();
            if sys::cpu::FIRST_RUNS_NO_GUEST {
                keep_off_first_cpu();
            }
            // The memory of boxes is shared memory, and each of their page faults passes through two
            // emulated machines. Huge pages make them fewer.
            write_setting("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "advise");
            net::loopback_up();
            net::qemu_user_network();
            if let Some(hostname) = &params.hostname {
                hostname::set(hostname);
            }
            apply_settings(MAX_FILES);
        }
    }
    protect_from_oom_killer();
    Server::new(params.role).map_err(BootError::Serve)
}

/// Keeps this process and its children off the first CPU.
///
/// No nested VM may run there. In QEMU's TCG for x86, every CPU that restores floating-point registers also
/// clears a flag of the *first* CPU (`cpu_clear_ignne`), in a word that the first CPU's thread writes at
/// the same time, without a lock. If that happens while the first CPU enters or leaves a guest, the
/// update of its state is lost: host code continues in the guest's address space, or is interrupted with
/// the guest's segment bases, and the kernel crashes.
fn keep_off_first_cpu() {
    use rustix::thread::{sched_getaffinity, sched_setaffinity};
    let narrow = || {
        let mut cpus = sched_getaffinity(None)?;
        cpus.unset(0);
        // With one CPU there is no choice.
        if cpus.count() == 0 { Ok(()) } else { sched_setaffinity(None, &cpus) }
    };
    if let Err(e) = narrow() {
        log::warn(format_args!("cannot keep off the first CPU: {e}"));
    }
}

/// Opens `/dev/null` as standard input, output and error. A kernel without a console starts PID 1 with no
/// open files, and the next files opened would take these numbers.
fn open_stdio() {
    use rustix::fs::{Mode, OFlags, open};
    use std::os::fd::{AsRawFd, IntoRawFd};
    while let Ok(fd) = open("/dev/null", OFlags::RDWR, Mode::empty()) {
        if fd.as_raw_fd() > 2 {
            break;
        }
        // Stays open.
        let _ = fd.into_raw_fd();
    }
}

/// Sets the limits that commands inherit, and lets every user of the guest ping.
fn apply_settings(open_files: u64) {
    if let Err(e) = sys::process::limit_open_files(open_files, MAX_FILES) {
        log::warn(format_args!("cannot set the limit on open files: {e}"));
    }
    write_setting("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
}

fn protect_from_oom_killer() {
    write_setting("/proc/self/oom_score_adj", "-1000");
}

fn write_setting(path: &str, value: &str) {
    if let Err(e) = std::fs::write(path, value) {
        log::warn(format_args!("cannot set {path} to {value:?}: {e}"));
    }
}
