//! The box runtime: what an application embeds.
//!
//! ```no_run
//! # async fn example() -> Result<(), boxlite_vmm::runtime::Error> {
//! use boxlite_vmm::runtime::{BoxOptions, Runtime, RuntimeOptions};
//!
//! let runtime = Runtime::open(RuntimeOptions::default())?;
//! let sandbox = runtime.create(BoxOptions::new("oci:alpine")).await?;
//! let output = sandbox.exec(["uname", "-a"]).output().await?;
//! println!("{}", String::from_utf8_lossy(&output.stdout));
//! sandbox.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Everything is async on tokio and cancel safe: dropping a future or a handle ends what it began.
//! A box lives in a `boxlite-vmm machine` process of its own, which ends with its creator, however
//! that ends.

mod disk_builder;
mod error;
mod exec;
mod handle;
mod home;
mod machine_process;
mod options;

use std::path::PathBuf;
use std::sync::Arc;

use boxlite_kernel::GuestFiles;
use boxlite_rootfs_builder::{BaseDisk, Image, ImageReference, ImageStore, Progress, Silent};

pub use crate::client::{ExecOutput, ExecStdin};
pub use boxlite_proto::message::{ExitStatus, TerminalSize};
pub use error::{Error, Result};
pub use exec::{Command, Execution, Output};
pub use handle::BoxHandle;
pub use home::Home;
pub use options::{BoxOptions, Problem};

use disk_builder::MicroVmBuilder;

/// How a [`Runtime`] finds its things. `default()` takes them from the environment.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RuntimeOptions {
    /// The folder of boxes and images; default `$BOXLITE_HOME`, else `~/.boxlite`.
    pub home: Option<PathBuf>,
    /// The `boxlite-vmm` executable that becomes the boxes' processes; default `$BOXLITE_VMM`, else
    /// this executable if it is that, else the one beside it or in `PATH`.
    pub launcher: Option<PathBuf>,
}

impl RuntimeOptions {
    /// Keeps boxes and images in `home`.
    pub fn home(mut self, home: impl Into<PathBuf>) -> Self {
        self.home = Some(home.into());
        self
    }

    /// Starts boxes with this `boxlite-vmm` executable.
    pub fn launcher(mut self, launcher: impl Into<PathBuf>) -> Self {
        self.launcher = Some(launcher.into());
        self
    }
}

/// Makes boxes. Cheap to clone; several processes may use one home at a time.
#[derive(Clone, Debug)]
pub struct Runtime(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    home: Home,
    images: ImageStore,
    guest: GuestFiles,
    launcher: PathBuf,
}

impl Runtime {
    /// Opens the home, which is made if it does not exist, and clears away what killed processes
    /// left in it.
    pub fn open(options: RuntimeOptions) -> Result<Self> {
        let home = Home::open(options.home)?;
        let images = ImageStore::open(home.images())?;
        let guest = GuestFiles::locate()?;
        let launcher = machine_process::find_launcher(options.launcher)?;
        Ok(Self(Arc::new(Shared { home, images, guest, launcher })))
    }

    /// The images of this home.
    pub fn images(&self) -> &ImageStore {
        &self.0.images
    }

    /// Copies an image into the home under a name of its own, and makes its disk.
    pub async fn import(
        &self,
        source: ImageReference,
        name: String,
        progress: impl Progress + 'static,
    ) -> Result<Image> {
        let shared = self.0.clone();
        blocking(move || {
            let builder = MicroVmBuilder::new(&shared.guest, &shared.launcher);
            Ok(shared.images.import(&source, &name, &builder, &progress)?)
        })
        .await
    }

    /// Makes a box and boots it. Returns once it serves commands.
    pub async fn create(&self, options: BoxOptions) -> Result<BoxHandle> {
        self.create_with_progress(options, Silent).await
    }

    /// As [`create`](Self::create), and tells how the image's disk gets on if it must be made first.
    pub async fn create_with_progress(
        &self,
        options: BoxOptions,
        progress: impl Progress + 'static,
    ) -> Result<BoxHandle> {
        options.validate()?;
        let (image, disk) = self.base_disk(&options, progress).await?;
        BoxHandle::start(&self.0, options, image, disk).await
    }

    async fn base_disk(
        &self,
        options: &BoxOptions,
        progress: impl Progress + 'static,
    ) -> Result<(Image, BaseDisk)> {
        let (shared, reference) = (self.0.clone(), options.image.parse()?);
        blocking(move || {
            let image = shared.images.resolve(&reference, &progress)?;
            let builder = MicroVmBuilder::new(&shared.guest, &shared.launcher);
            let disk = shared.images.disk(&image, &builder, &progress)?;
            Ok((image, disk))
        })
        .await
    }
}

/// Runs what blocks off the async threads.
async fn blocking<T: Send + 'static>(f: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(f).await {
        Ok(result) => result,
        Err(e) => Err(Error::Internal(e.to_string())),
    }
}
