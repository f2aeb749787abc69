//! Builds an image's disk inside a throw-away micro-VM: a hostile layer can only reach its own disk, and the guest's
//! ext4 driver writes owners, links, devices and attributes correctly.

use std::error::Error as StdError;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use boxlite_contract::nested::HostEnvironment;
use boxlite_contract::spec::{DiskFormat, DiskSpec, LaunchSpec};
use boxlite_kernel::GuestFiles;
use boxlite_proto::boot::{BootParams, Role};
use boxlite_rootfs_builder::{DiskBuilder, LayerStreams};
use tokio::io::{AsyncRead, ReadBuf};

use super::MachineProcess;
use crate::state::FailureReason;
use crate::{Error, Result};

/// The size of an image's disk, which is the default size of a box's. It uses no space on the host until it is
/// written.
const DISK_SIZE: u64 = 10 << 30;

/// Version of the way in which the agent unpacks layers. A change rebuilds all disks.
const FORMAT: u32 = 2;

/// Memory of the VM in MiB: enough for unpacking, with the rest for the page cache.
const MEMORY_MIB: u64 = 1024;

const READY_TIMEOUT: Duration = Duration::from_secs(120);
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(300);

/// Builds disks in throw-away VMs.
#[derive(Debug)]
pub(super) struct MicroVmBuilder {
    guest: GuestFiles,
    launcher: PathBuf,
    debug: bool,
}

impl MicroVmBuilder {
    /// A builder whose VM processes log more if `debug`.
    pub(super) fn new(guest: &GuestFiles, launcher: &Path, debug: bool) -> Self {
        Self { guest: guest.clone(), launcher: launcher.to_owned(), debug }
    }

    /// Creates a disk with the empty file system that every image's disk starts from.
    fn make_template(&self, disk: &Path) -> Result<File> {
        let failed = |action| Error::home(action, disk);
        let template = &self.guest.template;
        let packed = File::open(template).map_err(Error::home("cannot be read", template))?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .open(disk)
            .map_err(failed("cannot be opened"))?;
        let mut unpacked =
            zstd::Decoder::new(packed).map_err(Error::home("cannot be unpacked", template))?;
        crate::sparse::copy(&mut unpacked, &mut file).map_err(failed("cannot be written"))?;
        file.set_len(DISK_SIZE).map_err(failed("cannot be sized"))?;
        Ok(file)
    }

    async fn unpack(&self, disk: &File, layers: &mut dyn LayerStreams) -> Result<()> {
        let boot = BootParams { role: Role::Builder, ..Default::default() };
        let spec = LaunchSpec {
            vcpus: 1,
            memory_mib: MEMORY_MIB,
            nested: false,
            kernel: self.guest.kernel.clone(),
            initramfs: self.guest.initramfs.clone(),
            boot,
            host: HostEnvironment::detect(),
            // The image store makes the finished disk durable.
            disks: vec![DiskSpec {
                file: 0,
                format: DiskFormat::Raw,
                backing: None,
                ephemeral: true,
                recover: false,
            }],
            console: None,
            network: None,
            sandbox: None,
        };
        let failed = Error::home("cannot be opened", &self.launcher);
        let disk = disk.try_clone().map_err(failed)?.into();
        let machine = MachineProcess::start(&self.launcher, self.debug, spec, &[disk], None)?;
        tokio::time::timeout(READY_TIMEOUT, machine.ready(None))
            .await
            .map_err(|_| failure("it was not ready in time"))??;
        let agent = machine.connect().await?;
        let explain = async |e| match e {
            crate::client::Error::Lost(_) => {
                machine.end_reason().await.unwrap_or_else(|| Error::guest(e))
            }
            e => Error::guest(e),
        };
        while let Some(layer) = layers.next_layer().map_err(Error::image)? {
            let number = layer.index + 1;
            match agent.unpack_layer(Blocking(layer)).await {
                Ok(unpacked) => tracing::debug!(
                    layer = number,
                    entries = unpacked.entries,
                    bytes = unpacked.bytes,
                    "unpacked"
                ),
                Err(e) => return Err(explain(e).await),
            }
        }
        if let Err(e) = agent.shutdown(Duration::ZERO).await {
            return Err(explain(e).await);
        }
        tokio::time::timeout(SHUTDOWN_TIMEOUT, machine.ended())
            .await
            .map_err(|_| failure("it did not shut down in time"))?
    }
}

impl DiskBuilder for MicroVmBuilder {
    fn key(&self) -> String {
        let template = self.guest.manifest.file(boxlite_kernel::TEMPLATE_FILE);
        let template = template.map_or("", |file| &file.sha256);
        format!("{FORMAT}-{DISK_SIZE}-{template}")
    }

    fn build(
        &self,
        disk: &Path,
        layers: &mut dyn LayerStreams,
    ) -> Result<(), Box<dyn StdError + Send + Sync>> {
        let file = self.make_template(disk)?;
        // An async runtime of its own: this call blocks, and so does reading a layer.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(self.unpack(&file, layers))?)
    }
}

fn failure(what: &str) -> Error {
    Error::failed(None, &FailureReason::Machine(what.into()))
}

/// A blocking reader, read on a thread that may block.
struct Blocking<R>(R);

impl<R: Read + Unpin> AsyncRead for Blocking<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = self.0.read(buf.initialize_unfilled())?;
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}
