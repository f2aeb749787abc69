//! The keeper: the process that owns a home's nested host and serves its launchers.
//!
//! It starts QEMU, greets launchers as soon as the agent answers, and stops QEMU after an idle time. QEMU is killed when
//! the keeper exits, and the lock is released only when both have exited.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use boxlite_kernel::Arch;
use rustix::io::fcntl_dupfd_cloexec;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::busy::until_no_box_lives;
use super::folder::{HostFolder, last_lines};
use super::ports::Ports;
use super::qemu::{self, Link, Qemu};
use super::router::Router;
use super::sys::TscClock;
use super::{Error, Options};
use crate::client::{Loss, greet};

/// The variable for the time that the nested host stays up for the next launcher, in seconds, as a decimal number.
pub const IDLE_VARIABLE: &str = "BOXLITE_SOFTHOST_IDLE";

const DEFAULT_IDLE: Duration = Duration::from_secs(3);

/// Timeout for the boot: many times its duration on a slow machine.
const BOOT: Duration = Duration::from_secs(180);

/// Time between SIGTERM and SIGKILL for commands, when the nested host stops.
const GRACE: Duration = Duration::from_secs(2);

/// Timeout for stopping, after which QEMU is killed.
const STOP: Duration = Duration::from_secs(15);

/// Timeout for QEMU to exit after its guest has stopped.
const END: Duration = Duration::from_secs(2);

/// Timeout for telling launchers that the nested host has stopped.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// Lines of logs in an error message.
const LINES: usize = 15;

/// Number of last lines of the console that are searched for a panic.
const CRASH_LINES: usize = 60;

/// Runs the keeper until its nested host has stopped. If a launcher started it, standard input is the lock.
///
/// Must be called on the process's main thread: QEMU is killed when the thread that started it exits.
///
/// # Errors
/// The nested host does not start, or fails.
pub fn main(options: &Options) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Error::Runtime)?.block_on(keep(options))
}

async fn keep(options: &Options) -> Result<(), Error> {
    let clock = TscClock::start();
    let folder = HostFolder::open(&options.home)?;
    let lock = match inherited_lock(&folder) {
        Some(lock) => lock,
        None => folder.lock()?.ok_or(Error::Busy)?,
    };
    // From here on, launchers wait for this keeper.
    let listener = folder.listen()?;
    folder.prepare_image(options.arch, &options.template)?;
    // QEMU has an open file for each one of the guest.
    let for_qemu = lock.try_clone().map_err(Error::Qemu)?;
    let (qemu, link) = Qemu::start(options, &folder, for_qemu, &clock)?;
    tracing::info!("QEMU runs");
    let options = options.clone();
    let ports = Arc::new(Ports::default());
    tokio::spawn(serve_ports(folder.listen_for_ports()?, Arc::clone(&ports)));
    let (router, launchers) = (Arc::default(), JoinSet::new());
    let keeper = Keeper { folder, qemu, options, router, ports, launchers };
    let result = keeper.run(listener, link).await;
    drop(lock);
    result
}

/// The lock that the launcher passed as standard input.
fn inherited_lock(folder: &HostFolder) -> Option<File> {
    let stdin = fcntl_dupfd_cloexec(std::io::stdin(), 3).ok().map(File::from);
    stdin.filter(|file| folder.is_our_lock(file))
}

/// Time that the nested host stays up for the next launcher.
fn idle_time() -> Duration {
    let seconds = std::env::var(IDLE_VARIABLE).ok().and_then(|value| value.parse::<f64>().ok());
    seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()).unwrap_or(DEFAULT_IDLE)
}

/// Why the keeper stops.
enum KeeperStop {
    /// The idle time has passed.
    Idle,
    /// SIGTERM or SIGINT.
    Asked,
    /// The link to the agent has ended.
    Link(String),
    /// QEMU has exited.
    Qemu,
}

struct Keeper {
    folder: HostFolder,
    qemu: Qemu,
    options: Options,
    router: Arc<Router>,
    ports: Arc<Ports>,
    launchers: JoinSet<()>,
}

impl Keeper {
    async fn run(mut self, listener: UnixListener, link: Link) -> Result<(), Error> {
        let (router, ports) = (Arc::clone(&self.router), Arc::clone(&self.ports));
        let link = carry(&router, &ports, link);
        tokio::pin!(link);
        let end = tokio::select! {
            // First, so that no launcher is accepted after the nested host has stopped.
            biased;
            why = &mut link => KeeperStop::Link(why),
            end = self.serve(&listener) => end?,
        };
        // A new launcher waits for the lock, or loses its connection and retries.
        self.folder.stop_listening();
        drop(listener);
        match end {
            KeeperStop::Idle | KeeperStop::Asked => {
                self.router.stop_guest(GRACE);
                let stopped = async {
                    // Frames must be carried for the request to reach the guest.
                    tokio::select! {
                        _ = &mut link => self.qemu.wait().await,
                        status = self.qemu.wait() => status,
                    }
                };
                let clean = timeout(STOP, stopped).await.is_ok();
                if !clean {
                    self.qemu.kill().await.map_err(Error::Qemu)?;
                }
                tracing::info!(clean, "the software host was stopped");
                self.farewell("the software host was stopped".to_owned()).await;
                Ok(())
            }
            KeeperStop::Link(why) => Err(self.failed(Some(why)).await),
            KeeperStop::Qemu => Err(self.failed(None).await),
        }
    }

    /// Serves launchers until there is a reason to stop.
    async fn serve(&mut self, listener: &UnixListener) -> Result<KeeperStop, Error> {
        let mut terminate = signal(SignalKind::terminate()).map_err(Error::Runtime)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Runtime)?;
        let idle = idle_time();
        let mut idle_since = Instant::now();
        let mut ready = false;
        // There is no launcher, but there may be live boxes.
        let mut looking = false;
        let (router, options) = (Arc::clone(&self.router), self.options.clone());
        let look = async || until_no_box_lives(&router, &options).await;
        let empty = look();
        tokio::pin!(empty);
        loop {
            let idle_until = idle_since.checked_add(idle);
            let idle_over = async {
                match idle_until {
                    Some(time) => sleep_until(time).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((connection, _)) => {
                        let router = Arc::clone(&self.router);
                        self.launchers.spawn(async move { router.serve(connection).await });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a launcher");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
                Some(_) = self.launchers.join_next() => idle_since = Instant::now(),
                _ = self.router.ready(), if !ready => {
                    ready = true;
                    idle_since = Instant::now();
                }
                _ = self.qemu.wait() => return Ok(KeeperStop::Qemu),
                _ = terminate.recv() => return Ok(KeeperStop::Asked),
                _ = interrupt.recv() => return Ok(KeeperStop::Asked),
                () = idle_over, if ready && !looking && self.launchers.is_empty() => {
                    looking = true;
                }
                () = &mut empty, if looking => {
                    looking = false;
                    // Only a launcher can start boxes.
                    if self.launchers.is_empty() && idle_since.elapsed() >= idle {
                        return Ok(KeeperStop::Idle);
                    }
                    empty.set(look());
                }
            }
        }
    }

    /// Handles a failed nested host: collects the cause, and sends it to all launchers.
    async fn failed(&mut self, why: Option<String>) -> Error {
        let arch = self.options.arch;
        let status = match timeout(END, self.qemu.wait()).await {
            Ok(status) => status.ok().map(|status| qemu::describe(arch, status)),
            Err(_) => {
                let _ = self.qemu.kill().await;
                None
            }
        };
        let mut message = "the software host failed".to_owned();
        for part in [why, status].into_iter().flatten() {
            message.push_str(&format!(": {part}"));
        }
        if kernel_crashed(&last_lines(&self.folder.console(), CRASH_LINES)) {
            message.push_str(&crash_advice(arch));
        }
        for (what, path) in [("console", self.folder.console()), ("log", self.folder.log())] {
            let lines = last_lines(&path, LINES);
            if !lines.is_empty() {
                message
                    .push_str(&format!("\nthe end of its {what} ({}):\n{lines}", path.display()));
            }
        }
        self.farewell(message.clone()).await;
        Error::Ended(message)
    }

    /// Sends a last message to the launchers, and waits until they have disconnected.
    async fn farewell(&mut self, message: String) {
        self.router.shut_down(message);
        let disconnected = async { while self.launchers.join_next().await.is_some() {} };
        let _ = timeout(FAREWELL_TIMEOUT, disconnected).await;
    }
}

/// Whether the kernel whose console ends with `lines` has panicked.
fn kernel_crashed(lines: &str) -> bool {
    lines.contains("] Kernel panic - not syncing: ")
}

/// The explanation of a crash.
fn crash_advice(arch: Arch) -> String {
    let emulator = qemu::version(arch).unwrap_or_else(|| qemu::program(arch).to_owned());
    format!(
        ".\nIts kernel crashed; most likely that is a fault of the emulator ({emulator}), not of the \
         command. Boxes that ran in it are gone; the images and all else that was synced to the box \
         home is there, and nothing else on this machine was changed: it is safe to run the command \
         again, unless it began something elsewhere, over a network."
    )
}

/// Serves boxes that request ports of this host, as long as the keeper runs.
async fn serve_ports(listener: UnixListener, ports: Arc<Ports>) {
    loop {
        match listener.accept().await {
            Ok((connection, _)) => {
                let ports = Arc::clone(&ports);
                tokio::spawn(async move { ports.serve(connection).await });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a box that requests ports");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Carries frames once the agent has answered, until the link ends. Returns why it ended.
async fn carry(router: &Router, ports: &Ports, link: Link) -> String {
    let boot = async {
        let (agent, monitor) = link.open().await.map_err(Loss::Write)?;
        tracing::info!("the agent has opened its port");
        ports.set_monitor(monitor).await;
        greet(agent, 0).await
    };
    match timeout(BOOT, boot).await {
        Ok(Ok(frames)) => {
            tracing::info!("the agent answered");
            router.run_link(frames, 0).await
        }
        Ok(Err(loss)) => loss.to_string(),
        Err(_) => format!("its agent did not answer within {} s", BOOT.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_is_distinguished_from_an_end() {
        let panic = "[    9.1] CS:  0010\n[    9.2] Kernel panic - not syncing: Fatal exception\n";
        assert!(kernel_crashed(panic));
        assert!(!kernel_crashed("[    9.2] reboot: Power down\n"));
        assert!(crash_advice(Arch::HOST).contains("safe to run the command again"));
    }
}
