//! Starting a box: opens its files, starts its process with them, and waits for the boot.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use boxlite_contract::nested::HostEnvironment;
use boxlite_contract::spec::{BoxSpec, CaptureSpec, DiskFormat, DiskSpec, LaunchSpec, NetworkSpec};
use boxlite_contract::status::{MainEnd, STATUS_FILE, Status};
use boxlite_durable::Durability;
use boxlite_proto::boot::{BootParams, Role};
use boxlite_proto::message::{Failure, FailureKind, TerminalSize};

use super::boxes::make_overlay;
use super::{Dependent, Local, MachineProcess};
use crate::call::{Capture, Start};
use crate::capture::CaptureFile;
use crate::client;
use crate::config::BoxConfig;
use crate::local::home::{
    BASE, BoxFolder, CONSOLE_LOG, CONTROL_SOCKET, DISK, MACHINE_LOG, VSOCK_SOCKET,
};
use crate::options::BoxOptions;
use crate::state::{BoxState, judge};
use crate::{Error, Remedy, Result, blocking};

/// Timeout for another process that is about to start or stop the box, in addition to that of the boot.
const OTHER_PROCESS_TIMEOUT: Duration = Duration::from_secs(30);

/// Number of dependents above which stopped ones are dropped.
const MAX_DEPENDENTS: usize = 256;

/// Time between two attempts to take a lock.
const PAUSE: Duration = Duration::from_millis(50);

/// Why the packets of a box that runs are not recorded.
const ALREADY_RUNS: &str =
    "it runs already, and packets are recorded from a start on; stop it first";

const DEFAULT_SIZE: TerminalSize = TerminalSize { rows: 24, columns: 80 };

impl Local {
    /// Boots a box. Returns once it accepts commands, at once if it runs already.
    pub(super) async fn start(self: &Arc<Self>, id: &str, how: Start) -> Result<()> {
        let (local, query) = (self.clone(), id.to_owned());
        let (entry, config, info) = blocking(move || {
            let entry = local.entry(&query)?;
            let (config, info) = (local.config(&entry)?, local.info(&entry)?);
            Ok((entry, config, info))
        })
        .await?;
        let folder = self.home.folder(&entry.id);
        let timeout = config.options.ready_timeout + OTHER_PROCESS_TIMEOUT;
        let lock = self.lock_to_start(&folder, &config.name);
        let Some(lock) = within(timeout, "the start of the box", lock).await? else {
            return match how.capture {
                Some(_) => Err(Error::refused(&config.name, ALREADY_RUNS)),
                None => Ok(()),
            };
        };
        let (local, detach) = (self.clone(), how.detach || config.options.detach);
        let wait_for_attach = how.wait_for_attach;
        let (name, has_main) = (config.name.clone(), config.options.main_command);
        let id = entry.id.clone();
        let launched = blocking(move || {
            let packets = UntakenPackets { local: local.clone(), id, kept: false };
            Ok((local.launch(&folder, &config, how, lock)?, packets))
        });
        let (machine, packets) = launched.await?;
        machine.ready(Some(&name)).await?;
        tracing::debug!(id = entry.id, name, "the box is ready");
        if has_main && !wait_for_attach {
            self.main_begun(&entry.id, &machine).await?;
        }
        packets.keep();
        if !detach {
            let mut dependents = self.dependents();
            if dependents.len() >= MAX_DEPENDENTS {
                // No caller has asked how these ended.
                dependents.retain(|_, other| other.machine.reported_end().is_none());
            }
            dependents.insert(entry.id, Dependent { machine: Arc::new(machine), info });
        }
        Ok(())
    }

    /// Takes the lock of a box to start. None if the box runs.
    async fn lock_to_start(
        self: &Arc<Self>,
        folder: &BoxFolder,
        name: &str,
    ) -> Result<Option<File>> {
        let mut status = self.watcher.follow(folder.file(STATUS_FILE));
        loop {
            let (local, at) = (self.clone(), folder.clone());
            let looked = blocking(move || match at.lock()? {
                Some(lock) => Ok(Ok(lock)),
                None => {
                    local.look(&at).map(|(is_live, status)| Err(judge(is_live, status.as_ref())))
                }
            });
            match looked.await? {
                Ok(lock) => return Ok(Some(lock)),
                Err(BoxState::Running) => return Ok(None),
                Err(state @ BoxState::Paused) => {
                    let remedy = Remedy::ResumeBox { name: name.to_owned() };
                    return Err(Error::wrong_state(name, &state, remedy));
                }
                // Another process starts the box, the box is stopping, or a process only tested the lock. There is
                // no notification when a lock is released.
                Err(_) => drop(tokio::time::timeout(PAUSE, status.changed()).await),
            }
        }
    }

    /// Waits until the main command runs.
    async fn main_begun(self: &Arc<Self>, id: &str, machine: &MachineProcess) -> Result<()> {
        let folder = self.home.folder(id);
        let mut status = self.watcher.follow(folder.file(STATUS_FILE));
        loop {
            if let (true, Some(Status { main_pid: Some(_), .. })) = self.look_at(&folder).await? {
                return Ok(());
            }
            let ended = tokio::select! {
                ended = machine.said_last() => ended,
                () = status.changed() => continue,
            };
            // The box has stopped: a main command may be that short.
            return match ended.and_then(|ended| ended.main) {
                Some(MainEnd::NotStarted { code, message }) => Err(cannot_start(code, message)),
                _ => Ok(()),
            };
        }
    }

    /// Starts the process of a box whose lock is held. Blocks for a short time.
    fn launch(
        &self,
        folder: &BoxFolder,
        config: &BoxConfig,
        how: Start,
        lock: File,
    ) -> Result<MachineProcess> {
        let options = &config.options;
        let mut files = Files::default();
        let base = folder.open(BASE, false)?;
        let disk = self.open_disk(folder, config, &base)?;
        let disk = DiskSpec {
            file: files.add(disk),
            format: DiskFormat::Qcow2,
            backing: Some(files.add(base)),
            ephemeral: options.auto_remove,
            recover: self.was_cut_off(folder)?,
        };
        let capture = how.capture.map(|capture| self.open_capture(&config.id, capture, &mut files));
        let capture = capture.transpose()?;
        let console = options.console.then(|| folder.create(CONSOLE_LOG)).transpose()?;
        let sandbox = BoxSpec {
            id: config.id.clone(),
            folder: folder.path().to_owned(),
            remove: options.auto_remove,
            detached: how.detach || options.detach,
            control: files.add(folder.listen(CONTROL_SOCKET)?),
            vsock: files.add(folder.listen(VSOCK_SOCKET)?),
            events: files.add(self.home.open_events()?),
            ready_timeout_ms: options.ready_timeout.as_millis().try_into().unwrap_or(u64::MAX),
            main: match options.main_command {
                true => Some(config.main(how.size.unwrap_or(DEFAULT_SIZE), how.wait_for_attach)?),
                false => None,
            },
            restart: options.restart,
            health: config.health(),
        };
        let boot = BootParams {
            role: Role::Box,
            hostname: Some(config.name.clone()),
            volumes: config.image.volumes.clone(),
            ..Default::default()
        };
        let spec = LaunchSpec {
            vcpus: options.cpus,
            memory_mib: options.memory_mib,
            nested: options.nested,
            kernel: self.guest.kernel.clone(),
            initramfs: self.guest.initramfs.clone(),
            boot,
            host: HostEnvironment::detect(),
            disks: vec![disk],
            console: console.map(|console| files.add(console)),
            network: options.network_spec().map(|network| NetworkSpec { capture, ..network }),
            sandbox: Some(sandbox),
        };
        // From here on, only the box's process holds the lock.
        files.add(lock);
        let log = folder.create_log(MACHINE_LOG)?;
        Self::begin_status(folder, options)?;
        self.made().remove(&config.id);
        MachineProcess::start(&self.launcher, self.debug, spec, &files.0, Some(log))
    }

    /// Opens the file or stream to which the box's process writes packets.
    fn open_capture(&self, id: &str, capture: Capture, files: &mut Files) -> Result<CaptureSpec> {
        match capture {
            Capture::File(path) => {
                let file = CaptureFile::open(path)?;
                file.truncate()?;
                Ok(CaptureSpec::File(files.add(file)))
            }
            Capture::Channel => {
                let (ours, theirs) = UnixStream::pair().map_err(Error::internal)?;
                self.packets().insert(id.to_owned(), ours);
                Ok(CaptureSpec::Stream(files.add(theirs)))
            }
        }
    }

    /// Removes the status of the previous run. Even after a power failure, no status may claim that a disk to which the
    /// guest is about to write is clean.
    pub(super) fn begin_status(folder: &BoxFolder, options: &BoxOptions) -> Result<()> {
        Status::starting()
            .write(folder.path(), Durability::power_if(!options.auto_remove))
            .map_err(Error::home("cannot be written", folder.file(STATUS_FILE)))
    }

    /// Whether the disk may be as a killed process or a power failure left it.
    fn was_cut_off(&self, folder: &BoxFolder) -> Result<bool> {
        let (_, status) = self.look(folder)?;
        Ok(status.is_some_and(|status| status.was_cut_off()))
    }

    /// Opens the box's disk. The disk of a box that removes itself has no name, so that nothing is left of it however
    /// the box ends.
    fn open_disk(&self, folder: &BoxFolder, config: &BoxConfig, base: &File) -> Result<File> {
        if !config.options.auto_remove {
            return folder.open(DISK, true);
        }
        let failed = || Error::home("the box's disk cannot be created", folder.path());
        let file = tempfile::tempfile_in(folder.path()).map_err(failed())?;
        let size = base.metadata().map_err(failed())?.len();
        make_overlay(file.try_clone().map_err(failed())?, folder, config, size)?;
        Ok(file)
    }
}

/// Closes the reading end of a box's packets when dropped: a start that failed or was cancelled has no reader, and the
/// box's process would wait for one. A cancelled launch goes on, so the guard belongs to the launch.
struct UntakenPackets {
    local: Arc<Local>,
    id: String,
    kept: bool,
}

impl UntakenPackets {
    /// Leaves the packets to the caller of the start.
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for UntakenPackets {
    fn drop(&mut self) {
        if !self.kept {
            self.local.packets().remove(&self.id);
        }
    }
}

/// The failure that the agent reports for any other command.
fn cannot_start(code: u8, message: String) -> Error {
    let kind = match code {
        127 => FailureKind::NotFound,
        126 => FailureKind::NotExecutable,
        _ => FailureKind::Other,
    };
    Error::guest(client::Error::Failed(Failure { kind, message }))
}

/// The files of a spec, in order.
#[derive(Default)]
struct Files(Vec<OwnedFd>);

impl Files {
    fn add(&mut self, file: impl Into<OwnedFd>) -> usize {
        self.0.push(file.into());
        self.0.len() - 1
    }
}

/// Awaits `future` with a timeout.
pub(super) async fn within<T>(
    timeout: Duration,
    what: &str,
    future: impl Future<Output = Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(timeout, future).await {
        Ok(result) => result,
        Err(_) => Err(Error::timed_out(what, timeout)),
    }
}
