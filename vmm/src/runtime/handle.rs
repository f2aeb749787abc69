//! A running box.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use boxlite_devices::virtio::block::create_overlay;
use boxlite_proto::boot::{BootParams, Role};
use boxlite_rootfs_builder::{BaseDisk, Image, ImageConfig};

use super::exec::Command;
use super::home::{BoxDir, CONSOLE_LOG};
use super::machine_process::MachineProcess;
use super::{BoxOptions, Error, Result, Shared};
use crate::client::AgentClient;
use crate::machine::{DiskFormat, DiskSpec, LaunchSpec};

/// A running box. Dropping the last clone ends the box and throws its disk away.
#[derive(Clone, Debug)]
pub struct BoxHandle(Arc<Running>);

/// Fields drop in their order: the machine ends before its folder goes.
#[derive(Debug)]
struct Running {
    agent: AgentClient,
    machine: MachineProcess,
    id: String,
    name: String,
    image: ImageConfig,
    options: BoxOptions,
    _folder: BoxDir,
}

impl BoxHandle {
    /// Boots a box on its own overlay of `base`.
    pub(super) async fn start(
        shared: &Shared,
        options: BoxOptions,
        image: Image,
        base: BaseDisk,
    ) -> Result<Self> {
        let id = new_id()?;
        let name = options.name.clone().unwrap_or_else(|| format!("box-{}", &id[..12]));
        let folder = shared.home.create_box(&id, &name, &options.image, options.console)?;
        let overlay = overlay(&folder, &options, &base)?;
        let create = |file: &str| {
            let path = folder.path().join(file);
            std::fs::File::create(&path).map_err(Error::home("cannot be written", path))
        };
        let console = options.console.then(|| create(CONSOLE_LOG)).transpose()?;
        let log = options.console.then(|| create("machine.log")).transpose()?;

        let boot =
            BootParams { role: Role::Box, hostname: Some(name.clone()), ..Default::default() };
        let mut files = vec![overlay.as_fd(), base.file().as_fd(), folder.lock().as_fd()];
        let spec = LaunchSpec {
            vcpus: options.cpus,
            memory_mib: options.memory_mib,
            kernel: shared.guest.kernel.clone(),
            initramfs: shared.guest.initramfs.clone(),
            boot: boot.to_string(),
            disks: vec![DiskSpec {
                file: 0,
                format: DiskFormat::Qcow2,
                backing: Some(1),
                ephemeral: true,
            }],
            sandbox: None,
            console: console.as_ref().map(|_| files.len()),
        };
        files.extend(console.iter().map(|console| console.as_fd()));
        let machine = MachineProcess::start(&shared.launcher, spec, &files, log)?;
        machine.ready(options.ready_timeout).await?;
        let agent = machine.connect().await?;
        let image = image.config().clone();
        Ok(Self(Arc::new(Running { agent, machine, id, name, image, options, _folder: folder })))
    }

    /// The box's ID: 32 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The box's name, which is its host name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// How long the machine took from its start until it served commands.
    pub fn boot_time(&self) -> Duration {
        self.0.machine.boot_time().unwrap_or_default()
    }

    /// A command to run in the box, with the environment, user and working directory of the box.
    /// Without a slash, the program is looked up in the box's `PATH`.
    pub fn exec<S: Into<Vec<u8>>>(&self, argv: impl IntoIterator<Item = S>) -> Command {
        Command::new(self.clone(), argv.into_iter().map(Into::into).collect())
    }

    /// The box's main command: the entry point, then `args` or, if there are none, the image's own
    /// arguments.
    pub fn main_command<S: Into<Vec<u8>>>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Command> {
        let Running { image, options, .. } = &*self.0;
        let bytes = |words: &[String]| words.iter().map(|word| word.clone().into_bytes()).collect();
        let args: Vec<Vec<u8>> = args.into_iter().map(Into::into).collect();
        let (mut argv, defaults): (Vec<Vec<u8>>, Vec<Vec<u8>>) = match &options.entrypoint {
            // The image's arguments are for its own entry point.
            Some(entrypoint) => (bytes(entrypoint), Vec::new()),
            None => (bytes(&image.entrypoint), bytes(&image.cmd)),
        };
        argv.extend(if args.is_empty() { defaults } else { args });
        if argv.is_empty() {
            return Err(Error::NoCommand { image: options.image.clone() });
        }
        Ok(self.exec(argv))
    }

    /// Ends the box at once and throws its disk away; returns when its process is gone.
    pub async fn stop(&self) -> Result<()> {
        self.0.machine.stop().await;
        Ok(())
    }

    pub(super) fn agent(&self) -> &AgentClient {
        &self.0.agent
    }

    pub(super) fn image(&self) -> &ImageConfig {
        &self.0.image
    }

    pub(super) fn options(&self) -> &BoxOptions {
        &self.0.options
    }

    /// An error of the agent connection, or what ended the machine if that is why.
    pub(super) async fn explain(&self, error: crate::client::Error) -> Error {
        match error {
            crate::client::Error::Lost(_) => {
                self.0.machine.end_reason().await.unwrap_or(Error::Guest(error))
            }
            other => Error::Guest(other),
        }
    }
}

/// The box's own disk: a qcow2 overlay that has no name, so that nothing is left of it, whatever
/// ends the box.
fn overlay(folder: &BoxDir, options: &BoxOptions, base: &BaseDisk) -> Result<std::fs::File> {
    let failed = || Error::home("the box's disk cannot be made", folder.path());
    let file = tempfile::tempfile_in(folder.path()).map_err(failed())?;
    let asked = options.disk_size_gb.map_or(0, |gb| gb << 30);
    let overlay = file.try_clone().map_err(failed())?;
    create_overlay(overlay, asked.max(base.len()))
        .map_err(|e| failed()(std::io::Error::other(e)))?;
    Ok(file)
}

/// 128 random bits.
fn new_id() -> Result<String> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::Internal(format!("no random numbers: {e}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
