//! Boots the guest: from the kernel's start of PID 1 to a served host.
//!
//! The steps run once, in order, and what a box cannot do without is fatal: mounts (and the disk below
//! them), host name and `/etc`, network. May use everything in the crate: it is where the parts are put
//! together.

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

/// Open files that the agent may have, and that a process may raise its limit to.
const MAX_FILES: u64 = 1 << 20;

/// Why a machine cannot be booted.
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

/// Boots the machine and serves the host until the machine is to be reset. Returns only where it
/// cannot be reset; a PID 1 that ends makes the kernel panic.
pub fn run() -> i32 {
    if init::is_wanted() {
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

/// Hands the way to the host to the server. Returns the descriptor of the boot report, which must stay open.
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
            etc::name(hostname, params.network.as_ref());
            etc::link_mtab();
            mounts::make_volumes(&params.volumes);
            if let Some(network) = &params.network {
                net::box_network(network)?;
                etc::resolve_by(network, &params.search);
            }
            settings(1024);
            // A machine of one's own has no ports that only its root may open.
            write_setting("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
        }
        Role::Builder => {
            mounts::builder_disk()?;
            transport.reached(Stage::Root);
            settings(MAX_FILES);
        }
        Role::SoftHost => {
            mounts::soft_host_root(params.home.as_deref())?;
            transport.reached(Stage::Root);
            mounts::open_kvm_to_all();
            keep_off_first_cpu();
            // The boxes' memory is shared memory. A page fault of theirs goes through two emulated
            // machines: have as few as can be.
            write_setting("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "advise");
            net::loopback_up();
            net::qemu_user_network();
            if let Some(hostname) = &params.hostname {
                hostname::set(hostname);
            }
            settings(MAX_FILES);
        }
    }
    protect_from_oom_killer();
    Server::new(params.role).map_err(BootError::Serve)
}

/// Keeps this process, and with it all that it starts, off the first CPU.
///
/// No virtual machine may run there. In QEMU's TCG, every CPU that restores floating-point registers
/// also clears a flag of the *first* CPU (`cpu_clear_ignne`), in a word that the first CPU's thread
/// writes at the same time, without a lock. When that hits the first CPU as it enters or leaves a
/// guest, it loses which of the two it did: host code goes on in the guest's address space, or is
/// interrupted with the guest's segment bases, and the kernel crashes.
fn keep_off_first_cpu() {
    use rustix::thread::{sched_getaffinity, sched_setaffinity};
    let narrow = || {
        let mut cpus = sched_getaffinity(None)?;
        cpus.unset(0);
        // The only one is better than none.
        if cpus.count() == 0 { Ok(()) } else { sched_setaffinity(None, &cpus) }
    };
    if let Err(e) = narrow() {
        log::warn(format_args!("cannot keep off the first CPU: {e}"));
    }
}

/// A kernel without a console starts PID 1 with no files open. Standard input, output and error
/// must be something, or the next files opened would be taken for them.
fn open_stdio() {
    use rustix::fs::{Mode, OFlags, open};
    use std::os::fd::{AsRawFd, IntoRawFd};
    while let Ok(fd) = open("/dev/null", OFlags::RDWR, Mode::empty()) {
        if fd.as_raw_fd() > 2 {
            break;
        }
        // Open for good.
        let _ = fd.into_raw_fd();
    }
}

/// Limits that commands inherit, and the kernel's settings of a machine of one's own.
fn settings(open_files: u64) {
    if let Err(e) = sys::process::limit_open_files(open_files, MAX_FILES) {
        log::warn(format_args!("cannot set the limit on open files: {e}"));
    }
    // Every user may ping.
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
