//! The runtime of a home in this process.
//!
//! The folders are the truth: a box is live while its process holds the lock in its folder, and its state is what that
//! process recorded last. The database is an index of names.
//!
//! Invariant: a box is created or removed by one rename under the boxes' lock, so that a killed process leaves either a
//! complete box or a leftover whose name marks it as such.

mod boxes;
mod cancel;
mod control;
mod disk_builder;
mod events;
mod home;
mod images;
mod launch;
mod logs;
mod machine_process;
mod reaped;
mod store;
mod streams;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use boxlite_contract::events::{Event, EventKind};
use boxlite_contract::status::{Status, now_ms};
use boxlite_durable::Durability;
use boxlite_kernel::GuestFiles;
use boxlite_rootfs_builder::{ImageStore, Progress, RegistryOptions};

pub(super) use machine_process::{MachineProcess, find_launcher};

pub use home::Home;

use home::{BoxFolder, CONFIG, DISK};
use store::{Entry, Store};
use watch::Watcher;

use crate::call::{BoxCall, Call, Reply};
use crate::config::BoxConfig;
use crate::state::{BoxInfo, end_code, judge, time};
use crate::{Error, ErrorKind, Result, RuntimeOptions, blocking};

/// A home's runtime.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) home: Home,
    store: Store,
    pub(super) images: ImageStore,
    pub(super) guest: GuestFiles,
    pub(super) launcher: PathBuf,
    /// Whether boxes' processes log more.
    pub(super) debug: bool,
    watcher: Arc<Watcher>,
    /// The creator's locks of boxes that remove themselves, and that this process has created but not started.
    made: Mutex<HashMap<String, File>>,
    /// The reading ends of boxes' packets that [`Channel::Packets`](crate::call::Channel::Packets) has not
    /// taken.
    packets: Mutex<HashMap<String, UnixStream>>,
    /// Boxes that stop with this process, by ID. Dropping one stops it.
    dependents: Mutex<HashMap<String, Dependent>>,
}

/// A box that stops with this process.
#[derive(Clone, Debug)]
struct Dependent {
    machine: Arc<MachineProcess>,
    /// The box at its start: a box that removes itself leaves nothing else.
    info: BoxInfo,
}

impl Local {
    /// Opens the home that the options name.
    pub(super) async fn open_with(options: RuntimeOptions) -> Result<Arc<Self>> {
        blocking(move || {
            let home = Home::open(options.home)?;
            let guest = GuestFiles::locate()?;
            let launcher = find_launcher(options.launcher)?;
            let local = Self::open(home, guest, launcher)?;
            Ok(Arc::new(Self { debug: options.debug, ..local }))
        })
        .await
    }

    /// Opens the home, and repairs what killed processes left.
    fn open(home: Home, guest: GuestFiles, launcher: PathBuf) -> Result<Self> {
        let registries = RegistryOptions::load(&home.registries()).map_err(Error::image)?;
        let images =
            ImageStore::open(home.images()).map_err(Error::image)?.with_registries(registries);
        let store = Store::open(&home.database())?;
        let local = Self {
            home,
            store,
            images,
            guest,
            launcher,
            debug: false,
            watcher: Arc::default(),
            made: Mutex::default(),
            packets: Mutex::default(),
            dependents: Mutex::default(),
        };
        local.reconcile()?;
        Ok(local)
    }

    /// Makes the database agree with the folders. A row without a folder is a box that was never completed or was
    /// removed. A folder without a row, or with another name, is a box whose database was lost or lost its last changes.
    fn reconcile(&self) -> Result<()> {
        let guard = self.home.lock_boxes()?;
        for id in self.home.ids()?.iter().filter(|id| self.is_left_over(&self.home.folder(id))) {
            self.home.retire(id, Durability::Process)?;
        }
        let left = self.home.leftovers()?;
        let ids = self.home.ids()?;
        let (known, stale): (Vec<_>, Vec<_>) =
            self.store.list()?.into_iter().partition(|entry| ids.contains(&entry.id));
        stale.iter().try_for_each(|entry| self.store.remove(&entry.id))?;
        let (mut renamed, mut unknown) = (Vec::new(), Vec::new());
        for id in &ids {
            let row = known.iter().find(|entry| entry.id == *id);
            match (self.home.folder(id).read_json::<BoxConfig>(CONFIG), row) {
                (Ok(config), None) => unknown.push(config),
                (Ok(config), Some(row)) if config.name != row.name => renamed.push(config),
                (Err(e), None) => {
                    tracing::warn!("{}; the folder is not touched", e.message());
                }
                (_, Some(_)) => {}
            }
        }
        self.restore_names(&renamed)?;
        unknown.into_iter().try_for_each(|config| self.adopt(config))?;
        drop(guard);
        left.delete();
        Ok(())
    }

    /// Gives boxes the names in their folders.
    fn restore_names(&self, configs: &[BoxConfig]) -> Result<()> {
        // First out of the way: one box may have the former name of another.
        for config in configs {
            self.store.rename(&config.id, &format!("\0{}", config.id))?;
        }
        for config in configs {
            match self.store.rename(&config.id, &config.name) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                    self.store.rename(&config.id, &default_name(&config.id))?;
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// Whether a box should have removed itself and could not: it has run and is dead, or it never ran and the process
    /// that created it, with which it was to stop, has exited. A power failure may leave such a box without its config;
    /// its folder has no disk then, so that no data is lost.
    fn is_left_over(&self, folder: &BoxFolder) -> bool {
        if folder.is_in_the_making() {
            return false;
        }
        let options = match folder.read_json(CONFIG) {
            Ok(BoxConfig { options, .. }) => options,
            Err(e) => {
                let no_disk = matches!(folder.file(DISK).try_exists(), Ok(false));
                return is_missing_or_malformed(&e) && no_disk && !folder.is_live();
            }
        };
        if !options.auto_remove {
            return false;
        }
        let (is_live, status) = match self.look(folder) {
            Ok(seen) => seen,
            Err(e) => {
                tracing::warn!("{}; the box is not touched", e.message());
                return false;
            }
        };
        let has_run = status.is_some();
        !is_live && (has_run || !options.detach)
    }

    /// Adds a box to the database that has only a folder.
    fn adopt(&self, mut config: BoxConfig) -> Result<()> {
        match self.store.add(&entry(&config)) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                config.name = default_name(&config.id);
                self.store.add(&entry(&config))
            }
            result => result,
        }
    }

    /// Serves a call.
    pub(super) async fn call(
        self: &Arc<Self>,
        call: Call,
        progress: Arc<dyn Progress>,
    ) -> Result<Reply> {
        let local = self.clone();
        let (progress, _cancel) = cancel::on_drop(progress);
        match call {
            Call::Create(options) => {
                let config = blocking(move || local.create(*options, &progress)).await?;
                Ok(Reply::Config(Box::new(config)))
            }
            Call::Find(query) => {
                let config = blocking(move || local.config(&local.store.find(&query)?)).await?;
                Ok(Reply::Config(Box::new(config)))
            }
            Call::List => blocking(move || local.list()).await.map(Reply::Infos),
            Call::Prune => blocking(move || local.prune()).await.map(Reply::Infos),
            Call::Shutdown { grace_ms } => {
                self.stop_dependents(grace_ms).await.map(|()| Reply::Done)
            }
            Call::Images(call) => blocking(move || local.call_images(call, &progress)).await,
            Call::Box { id, call } => self.call_box(id, call).await,
        }
    }

    async fn call_box(self: &Arc<Self>, id: String, call: BoxCall) -> Result<Reply> {
        let local = self.clone();
        match call {
            BoxCall::Info => return Ok(Reply::Info(Box::new(self.info_of(&id).await?))),
            BoxCall::Wait => return Ok(Reply::Info(Box::new(self.wait(&id).await?))),
            BoxCall::Metrics => return self.metrics(&id).await.map(Reply::Metrics),
            BoxCall::Expect => blocking(move || local.expect_serving(&id)).await?,
            BoxCall::Start(how) => self.start(&id, how).await?,
            BoxCall::Stop { grace_ms } => self.stop(&id, grace_ms).await?,
            BoxCall::Signal(signal) => self.signal(&id, signal).await?,
            BoxCall::Kill => self.kill(&id).await?,
            BoxCall::Pause => self.pause(&id).await?,
            BoxCall::Resume => self.resume(&id).await?,
            BoxCall::Outlive => self.outlive(&id).await?,
            BoxCall::Remove { force } => self.remove(&id, force).await?,
            BoxCall::Rename(name) => blocking(move || local.rename(&id, &name)).await?,
            BoxCall::Note(kind) => {
                blocking(move || {
                    local.note(&id, kind);
                    Ok(())
                })
                .await?;
            }
        }
        Ok(Reply::Done)
    }

    fn entry(&self, id: &str) -> Result<Entry> {
        self.store.find(id)
    }

    /// The config of a box, with its current name.
    fn config(&self, entry: &Entry) -> Result<BoxConfig> {
        let folder = self.home.folder(&entry.id);
        let mut config: BoxConfig = match folder.read_json(CONFIG) {
            Ok(config) => config,
            // The box removed itself meanwhile.
            Err(_) if !folder.path().exists() => return Err(self.missing(entry)),
            Err(e) => return Err(e),
        };
        config.name.clone_from(&entry.name);
        Ok(config)
    }

    fn missing(&self, entry: &Entry) -> Error {
        let _ = self.store.remove(&entry.id);
        Error::no_such_box(&entry.name)
    }

    /// The current state of a box.
    fn info(&self, entry: &Entry) -> Result<BoxInfo> {
        let config = self.config(entry)?;
        let (is_live, status) = self.look(&self.home.folder(&entry.id))?;
        let options = &config.options;
        let ended = status.as_ref().and_then(|status| status.ended.as_ref());
        let ended = ended.filter(|_| !is_live);
        let live = status.as_ref().filter(|_| is_live);
        Ok(BoxInfo {
            state: judge(is_live, status.as_ref()),
            command: options.main_command.then(|| config.main_argv().ok()).flatten(),
            exit_code: ended.and_then(|ended| end_code(ended, options.main_command)),
            created: time(config.created_ms),
            started: status.as_ref().map(|status| time(status.started_ms)),
            finished: ended.map(|ended| time(ended.at_ms)),
            pid: live.map(|status| status.pid).filter(|pid| *pid != 0),
            main_pid: live.and_then(|status| status.main_pid),
            restarts: status.as_ref().map_or(0, |status| status.restarts),
            health: live.and_then(|status| status.health.clone()),
            ports: live.map(|status| status.ports.clone()).unwrap_or_default(),
            boot: status.as_ref().map(|status| status.stages.clone()).unwrap_or_default(),
            cpus: options.cpus,
            memory_mib: options.memory_mib,
            auto_remove: options.auto_remove,
            labels: options.labels.clone(),
            image: options.image.clone(),
            id: config.id,
            name: config.name,
        })
    }

    /// Whether a box is live, and its last status. The lock is tested again after the status was read; otherwise a box
    /// that stops meanwhile would look as if its process had died without recording an end.
    fn look(&self, folder: &BoxFolder) -> Result<(bool, Option<Status>)> {
        let read =
            || Status::read(folder.path()).map_err(Error::home("cannot be read", folder.path()));
        if folder.is_live() {
            let status = read()?;
            if folder.is_live() {
                return Ok((true, status));
            }
        }
        Ok((false, read()?))
    }

    /// Like [`look`](Self::look), off the async threads.
    async fn look_at(self: &Arc<Self>, folder: &BoxFolder) -> Result<(bool, Option<Status>)> {
        let (local, folder) = (self.clone(), folder.clone());
        blocking(move || local.look(&folder)).await
    }

    /// The current state of the box with this ID, read off the async threads.
    async fn info_of(self: &Arc<Self>, id: &str) -> Result<BoxInfo> {
        let (local, id) = (self.clone(), id.to_owned());
        blocking(move || local.info(&local.entry(&id)?)).await
    }

    fn list(&self) -> Result<Vec<BoxInfo>> {
        let mut infos = Vec::new();
        for entry in self.store.list()? {
            match self.info(&entry) {
                Ok(info) => infos.push(info),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => tracing::warn!("the box {}: {}", entry.name, e.message()),
            }
        }
        Ok(infos)
    }

    /// Records an event of a box. A failure is only logged.
    fn note(&self, id: &str, kind: EventKind) {
        let event = Event::new(now_ms(), id, kind);
        let written = self.home.open_events().map(|log| event.append(&log));
        if !matches!(written, Ok(Ok(()))) {
            tracing::warn!(?event, "cannot record the event");
        }
    }

    fn made(&self) -> std::sync::MutexGuard<'_, HashMap<String, File>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn packets(&self) -> std::sync::MutexGuard<'_, HashMap<String, UnixStream>> {
        self.packets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dependents(&self) -> std::sync::MutexGuard<'_, HashMap<String, Dependent>> {
        self.dependents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn entry(config: &BoxConfig) -> Entry {
    Entry {
        id: config.id.clone(),
        name: config.name.clone(),
        image: config.options.image.clone(),
        image_digest: config.image_digest.clone(),
        created_ms: config.created_ms,
    }
}

/// The name of a box that was created without one.
fn default_name(id: &str) -> String {
    format!("box-{}", id.get(..12).unwrap_or(id))
}

/// Whether a file of a box is missing or malformed, as a power failure may leave it. Not if it merely cannot be read
/// now, for instance because of too many open files.
fn is_missing_or_malformed(error: &Error) -> bool {
    use std::io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    let system = std::error::Error::source(error).and_then(|e| e.downcast_ref::<std::io::Error>());
    system.is_some_and(|e| matches!(e.kind(), InvalidData | NotFound | UnexpectedEof))
}
