//! Creating, renaming and removing boxes.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boxlite_contract::events::EventKind;
use boxlite_contract::status::now_ms;
use boxlite_disk::create_overlay;
use boxlite_durable::{self as durable, Durability};
use boxlite_rootfs_builder::Progress;

use super::{Local, default_name, entry};
use crate::config::BoxConfig;
use crate::local::home::{BASE, BoxFolder, CONFIG, DISK, Leftovers};
use crate::options::{BoxOptions, bad_name, is_name};
use crate::state::BoxInfo;
use crate::{BoxOption, Error, ErrorKind, Problem, Remedy, Result, blocking};

/// Timeout for the end of a killed box.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);

/// Time between two checks of a box that is about to stop.
const PAUSE: Duration = Duration::from_millis(10);

impl Local {
    /// Creates a box. Blocks, for long if the image's disk must be built first.
    pub(super) fn create(&self, options: BoxOptions, progress: &dyn Progress) -> Result<BoxConfig> {
        options.validate()?;
        let image = options.image.parse().map_err(Error::image)?;
        let platform = options.platform.as_ref();
        let found = self.images.resolve_with(&image, options.pull, platform, progress);
        let image = found.map_err(Error::image)?;
        let id = new_id()?;
        let mut config = BoxConfig {
            name: options.name.clone().unwrap_or_else(|| default_name(&id)),
            id,
            created_ms: now_ms(),
            options,
            image_digest: image.digest().to_string(),
            image: image.config().clone(),
        };
        // Before a disk is built, which takes long.
        config.check_sizes()?;
        config.check_health()?;
        let disk = self.images.disk(&image, &self.disk_builder(), progress);
        let disk = disk.map_err(Error::image)?;
        config.created_ms = now_ms();
        self.settle(&config, disk.path(), disk.len())?;
        let (name, image) = (config.name.clone(), config.options.image.clone());
        self.note(&config.id, EventKind::Created { name, image });
        Ok(config)
    }

    /// Creates a box's row and folder, over the disk `base` of `size` bytes.
    pub(super) fn settle(&self, config: &BoxConfig, base: &Path, size: u64) -> Result<()> {
        let guard = self.home.lock_boxes()?;
        // A box of this name may have removed itself, which the database does not know.
        if let Ok(namesake) = self.store.find(&config.name)
            && namesake.name == config.name
            && !self.home.folder(&namesake.id).path().exists()
        {
            self.store.remove(&namesake.id)?;
        }
        self.store.add(&entry(config))?;
        let made = self.make_folder(config, base, size);
        if made.is_err() {
            let _ = self.store.remove(&config.id);
            let left = self.home.leftovers();
            drop(guard);
            // Other leftovers are deleted later.
            let _ = left.map(Leftovers::delete);
        }
        made
    }

    fn make_folder(&self, config: &BoxConfig, base: &Path, size: u64) -> Result<()> {
        let folder = self.home.new_folder(&config.id)?;
        // A link, as the image may be removed before the box.
        let link = folder.file(BASE);
        fs::hard_link(base, &link).map_err(Error::home("cannot be created", link))?;
        let durability = durability(config);
        if config.options.auto_remove {
            self.made().insert(config.id.clone(), folder.lock_as_maker()?);
        } else {
            let failed = || Error::home("cannot be written", folder.file(DISK));
            let disk = folder.create(DISK)?;
            make_overlay(disk.try_clone().map_err(failed())?, &folder, config, size)?;
            durable::sync_file(&disk).map_err(failed())?;
        }
        folder.write_json(CONFIG, config, durability)?;
        self.home.settle(folder, &config.id, durability)?;
        Ok(())
    }

    /// Renames a box.
    pub(super) fn rename(&self, id: &str, name: &str) -> Result<()> {
        if !is_name(name) {
            let problem = Problem::new(BoxOption::Name, bad_name(name));
            return Err(Error::options(vec![problem]));
        }
        let guard = self.home.lock_boxes()?;
        let entry = self.entry(id)?;
        if entry.name == name {
            return Ok(());
        }
        let mut config = self.config(&entry)?;
        config.name = name.to_owned();
        // The database makes names unique. The folder has the name, too, in case the database is lost.
        self.store.rename(&entry.id, name)?;
        let written = self.home.folder(&entry.id).write_json(CONFIG, &config, durability(&config));
        if let Err(e) = written {
            self.store.rename(&entry.id, &entry.name)?;
            return Err(e);
        }
        // Without the lock: the event log may block.
        drop(guard);
        self.note(&entry.id, EventKind::Renamed { name: name.to_owned() });
        Ok(())
    }

    /// Removes a box. A live box is removed only by force, even if another process starts it meanwhile. Does not hold
    /// the boxes' lock while it waits for the box.
    pub(super) async fn remove(self: &Arc<Self>, id: &str, force: bool) -> Result<()> {
        let id = self.removable(id, force).await?;
        let deadline = Instant::now() + KILL_TIMEOUT;
        let removed = async {
            loop {
                if force {
                    self.kill(&id).await?;
                }
                let (local, it) = (self.clone(), id.clone());
                if blocking(move || local.try_remove(&it)).await? {
                    return Ok(());
                }
                if Instant::now() > deadline {
                    let folder = self.home.folder(&id);
                    let what = format!("the end of the box in {}", folder.path().display());
                    return Err(Error::timed_out(&what, KILL_TIMEOUT));
                }
                tokio::time::sleep(PAUSE).await;
                self.removable(&id, force).await?;
            }
        };
        match removed.await {
            // Another process was faster.
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// The ID of a box, if it may be removed now.
    async fn removable(self: &Arc<Self>, id: &str, force: bool) -> Result<String> {
        let (local, query) = (self.clone(), id.to_owned());
        blocking(move || {
            let entry = local.entry(&query)?;
            if !force && local.home.folder(&entry.id).is_live() {
                let state = local.info(&entry)?.state;
                let remedy = Remedy::StopOrForceRemove { name: entry.name.clone() };
                return Err(Error::wrong_state(&entry.name, &state, remedy));
            }
            Ok(entry.id)
        })
        .await
    }

    /// Removes a box, unless it is live. Holds its lock, so that it cannot be started meanwhile.
    pub(super) fn try_remove(&self, id: &str) -> Result<bool> {
        let guard = self.home.lock_boxes()?;
        let folder = self.home.folder(id);
        if folder.path().exists() {
            let Some(_lock) = folder.lock()? else { return Ok(false) };
            let config = folder.read_json::<BoxConfig>(CONFIG);
            let durability = config.as_ref().map_or(Durability::Power, durability);
            self.home.retire(id, durability)?;
        }
        self.store.remove(id)?;
        let left = self.home.leftovers()?;
        drop(guard);
        self.note(id, EventKind::Removed);
        left.delete();
        Ok(true)
    }

    /// Removes all boxes that are not live.
    pub(super) fn prune(&self) -> Result<Vec<BoxInfo>> {
        self.reconcile()?;
        let mut removed = Vec::new();
        for info in self.list()?.into_iter().filter(|info| !info.state.is_live()) {
            // Another process may have started the box meanwhile.
            if self.try_remove(&info.id)? {
                removed.push(info);
            }
        }
        Ok(removed)
    }
}

/// The durability of a box's files. Nothing of a box that removes itself has to survive a power failure: the next
/// opening of the home removes its leftovers.
fn durability(config: &BoxConfig) -> Durability {
    Durability::power_if(!config.options.auto_remove)
}

/// Creates a box's disk: an overlay of its image's.
pub(super) fn make_overlay(
    file: fs::File,
    folder: &BoxFolder,
    config: &BoxConfig,
    base: u64,
) -> Result<()> {
    let asked = config.options.disk_size_gib.map_or(0, |gib| gib << 30);
    create_overlay(file, asked.max(base)).map_err(|e| {
        Error::home("the box's disk cannot be created", folder.path())(std::io::Error::other(e))
    })
}

/// 128 random bits.
fn new_id() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| Error::internal(format!("no random numbers: {e}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
