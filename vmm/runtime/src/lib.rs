//! The box runtime: what an application embeds.
//!
//! ```no_run
//! # async fn example() -> Result<(), boxlite_runtime::Error> {
//! use boxlite_runtime::{BoxOptions, Runtime, RuntimeOptions};
//!
//! let runtime = Runtime::open(RuntimeOptions::default()).await?;
//! let sandbox = runtime.create(BoxOptions::new("alpine").name("dev")).await?;
//! sandbox.start().await?;
//! let output = sandbox.exec(["uname", "-a"]).output().await?;
//! println!("{}", String::from_utf8_lossy(&output.stdout));
//! sandbox.stop(std::time::Duration::from_secs(10)).await?;
//! // Later, in this process or another one: the disk is as the box left it.
//! runtime.get("dev").await?.start().await?;
//! # Ok(())
//! # }
//! ```
//!
//! All I/O is async on tokio. Futures are `Send`, and cancel safe unless their documentation says otherwise. Each box
//! has a `boxlite-vmm machine` process. Unless the box is detached, that process exits when the [`Runtime`] that
//! started the box is dropped, or when the program that owns the `Runtime` exits or is killed.

#![deny(unsafe_code)]

mod blocking;
mod call;
mod capture;
pub mod client;
mod config;
mod copy;
mod error;
mod events;
mod exec;
mod guest;
mod handle;
mod host;
mod image_info;
mod images;
pub mod launcher;
mod limits;
mod local;
mod logs;
pub mod mac;
mod metrics;
pub mod nested;
mod options;
mod place;
mod problem;
mod remedy;
mod remote;
pub mod signals;
mod sparse;
mod state;
mod stream;
mod sys;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use boxlite_kernel::{Arch, GuestFiles};
pub use boxlite_rootfs_builder::{
    Event as ProgressEvent, ImageConfig, ImagePlatform, ImageReference, InvalidPlatform,
    LayerProgress, LoginStore, Progress, PullPolicy, RegistryOptions, Silent,
};

pub use boxlite_contract::boot::BootStage;
pub use boxlite_contract::events::{Event, EventKind};
pub use boxlite_contract::metrics::{DiskMetrics, MachineMetrics, NetworkMetrics, VmExitCounts};
pub use boxlite_contract::spec::RestartPolicy;
pub use boxlite_contract::status::{Health, HealthStatus};
pub use boxlite_net_policy::{ParseError, PublishedPort, Transport};
pub use boxlite_proto::guest::{ExecCounts, GuestMetrics, Process};
pub use boxlite_proto::message::{ExitStatus, TerminalSize};
pub use client::{Archive, ExecOutput, ExecStdin};
pub use config::BoxConfig;
pub use copy::{Copied, CopyOptions, SkippedEntry};
pub use error::{Error, ErrorKind, Result};
pub use events::{EventQuery, Events};
pub use exec::{Attached, Command, Execution, Exit, Output};
pub use handle::BoxHandle;
pub use image_info::{ImageDetails, ImageInfo, LayerInfo, RemovedImages};
pub use images::Images;
pub use images::saved::SavedImages;
pub use logs::{LogQuery, LogRecord, LogStream, Logs};
pub use metrics::BoxMetrics;
pub use options::{
    BoxOptions, HealthChanges, HealthCheck, NetworkMode, NetworkPolicy, SecurityOptions,
    StartOptions, Volume,
};
pub use place::{Accel, Place};
pub use problem::{BoxOption, Problem};
pub use remedy::Remedy;
pub use state::{BoxInfo, BoxState, FailureReason};

use blocking::{blocking, blocking_io, in_background};
use call::{Call, Reply};
use host::{Host, Serving};
pub use local::Home;
use local::Local;
use remote::Remote;

/// Where a [`Runtime`] keeps its files, and where it runs boxes. [`Runtime::open`] reads the environment for options
/// that are not set.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RuntimeOptions {
    /// The folder of boxes and images. Default: `$BOXLITE_HOME`, else `~/.boxlite`.
    pub home: Option<PathBuf>,
    /// The `boxlite-vmm` executable that runs as the process of each box. Default: `$BOXLITE_VMM`, else this
    /// process's executable if it is `boxlite-vmm`, else the one beside it, in the folder above, or in `PATH`.
    pub launcher: Option<PathBuf>,
    /// Where boxes run.
    pub accel: Accel,
    /// A line for standard error when the software host is started.
    notice: Option<String>,
    /// Whether started processes log more.
    debug: bool,
}

impl RuntimeOptions {
    /// Keeps boxes and images in `home`.
    pub fn home(mut self, home: impl Into<PathBuf>) -> Self {
        self.home = Some(home.into());
        self
    }

    /// Sets where boxes run.
    pub fn accel(mut self, accel: Accel) -> Self {
        self.accel = accel;
        self
    }

    /// Prints this line on standard error when the software host is started.
    pub fn notice(mut self, line: impl Into<String>) -> Self {
        self.notice = Some(line.into());
        self
    }

    /// Makes started processes log more, and keeps the guest's console.
    pub fn debug(mut self, yes: bool) -> Self {
        self.debug = yes;
        self
    }

    /// Starts boxes with this `boxlite-vmm` executable.
    pub fn launcher(mut self, launcher: impl Into<PathBuf>) -> Self {
        self.launcher = Some(launcher.into());
        self
    }
}

/// Creates boxes and finds them again. Cheap to clone. Several processes may use one home at the same time.
///
/// Boxes that are not detached are stopped when the last clone of the runtime that started them is dropped.
#[derive(Clone, Debug)]
pub struct Runtime {
    host: Host,
}

impl Runtime {
    /// Opens the home, creates it if it does not exist, and removes files that killed processes left in it. If this
    /// machine cannot run boxes, the home is that of the software host, which is started if necessary;
    /// [`Place::choose`] says so in advance.
    pub async fn open(options: RuntimeOptions) -> Result<Self> {
        let serving = match blocking(move || Place::choose(options.accel)).await? {
            Place::Local => Serving::Local(Local::open_with(options).await?),
            Place::SoftHost { .. } => Serving::Remote(Arc::new(Remote::start(options).await?)),
        };
        Ok(Self { host: Host::new(serving) })
    }

    async fn call(&self, call: Call) -> Result<Reply> {
        self.host.call(call, Arc::new(Silent)).await
    }

    /// The images of this home.
    pub fn images(&self) -> Images {
        Images::new(self.host.clone())
    }

    /// Creates a box without starting it.
    pub async fn create(&self, options: BoxOptions) -> Result<BoxHandle> {
        self.create_with_progress(options, Silent).await
    }

    /// Like [`create`](Self::create); reports the progress of fetching the image and building its disk.
    pub async fn create_with_progress(
        &self,
        options: BoxOptions,
        progress: impl Progress + 'static,
    ) -> Result<BoxHandle> {
        let call = Call::Create(Box::new(options));
        let config = self.host.call(call, Arc::new(progress)).await?.config()?;
        Ok(BoxHandle::new(self.host.clone(), config))
    }

    /// Finds a box by its name, its ID, or a unique prefix of its ID.
    pub async fn get(&self, query: &str) -> Result<BoxHandle> {
        let config = self.call(Call::Find(query.to_owned())).await?.config()?;
        Ok(BoxHandle::new(self.host.clone(), config))
    }

    /// Finds the box with the name in `options`, or creates it. An existing box keeps its own options.
    pub async fn get_or_create(&self, options: BoxOptions) -> Result<BoxHandle> {
        let Some(name) = options.name.clone() else { return self.create(options).await };
        loop {
            match self.get(&name).await {
                Ok(sandbox) if sandbox.name() == name => return Ok(sandbox),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
            match self.create(options.clone()).await {
                // Another process was faster.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                result => return result,
            }
        }
    }

    /// Lists all boxes, oldest first.
    pub async fn list(&self) -> Result<Vec<BoxInfo>> {
        self.call(Call::List).await?.infos()
    }

    /// Removes a box and its disk. A live box is removed only with `force`, which kills it.
    pub async fn remove(&self, query: &str, force: bool) -> Result<()> {
        self.get(query).await?.remove(force).await
    }

    /// Removes all boxes that are not live, and files that killed processes left. Returns the removed boxes.
    pub async fn prune(&self) -> Result<Vec<BoxInfo>> {
        self.call(Call::Prune).await?.infos()
    }

    /// Subscribes to the events of boxes, whichever process causes them.
    pub async fn events(&self, query: EventQuery) -> Result<Events> {
        Ok(Events::new(self.host.open(call::Channel::Events { query }).await?))
    }

    /// Counts the boxes by state.
    pub async fn metrics(&self) -> Result<RuntimeMetrics> {
        let mut metrics = RuntimeMetrics::default();
        for info in self.list().await? {
            metrics.total += 1;
            match info.state {
                BoxState::Failed(_) => metrics.failed += 1,
                BoxState::Stopped => metrics.stopped += 1,
                state if state.is_live() => metrics.running += 1,
                _ => {}
            }
        }
        Ok(metrics)
    }

    /// Stops the boxes that this runtime started, except detached ones, each like [`BoxHandle::stop`].
    pub async fn shutdown(&self, grace: Duration) -> Result<()> {
        let grace_ms = grace.as_millis().try_into().unwrap_or(u64::MAX);
        self.call(Call::Shutdown { grace_ms }).await?.done()
    }
}

/// Numbers of boxes in a home.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RuntimeMetrics {
    /// All boxes.
    pub total: usize,
    /// Live boxes: starting, running, paused or stopping.
    pub running: usize,
    /// Boxes that stopped without a failure.
    pub stopped: usize,
    /// Boxes that failed.
    pub failed: usize,
}

/// Compiles the snippets of the guide.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/library.md")]
struct LibraryGuide;
