//! Downloads of blobs into a file that outlives the process: the next attempt resumes where this
//! one ended.
//!
//! `blobs/<algorithm>/<hex>.partial` belongs to the holder of its exclusive lock. It is renamed
//! once it is complete and its digest matches.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::draft::is_at;
use super::folders::Folders;
use crate::error::{Error, RegistryProblem, Result};
use crate::format::{Digest, Hasher};
use crate::progress::{Event, Progress};
use crate::registry::{Session, backoff};
use crate::sys::{self, Lock};
use boxlite_durable as durable;

/// Suffix of partial blobs.
pub(super) const PARTIAL_SUFFIX: &str = ".partial";

/// Interval of checks whether another process has finished.
const WAIT: Duration = Duration::from_millis(100);
/// Maximum of consecutive broken connections with less than [`WORTHWHILE`] bytes between them.
const MAX_BREAKS: u32 = 5;
/// Bytes that make a connection count as progress.
const WORTHWHILE: u64 = 1 << 20;

/// The download of a blob.
pub(super) struct Fetch<'a> {
    pub(super) folders: &'a Folders,
    pub(super) session: &'a Session,
    /// Name of the blob in messages.
    pub(super) what: String,
    pub(super) digest: &'a Digest,
    pub(super) size: u64,
    pub(super) progress: &'a dyn Progress,
    /// Receives the number of bytes present.
    pub(super) report: &'a dyn Fn(u64),
}

/// Path of a partial blob.
pub(super) fn path_of(blob: &Path) -> PathBuf {
    let mut path = blob.as_os_str().to_owned();
    path.push(PARTIAL_SUFFIX);
    path.into()
}

/// Whether a blob of that length exists.
pub(super) fn is_stored(blob: &Path, size: u64) -> bool {
    blob.symlink_metadata().is_ok_and(|file| file.is_file() && file.len() == size)
}

/// Whether a blob exists with that length and digest.
pub(super) async fn is_sound(blob: &Path, digest: &Digest, size: u64) -> bool {
    let mut hasher = Hasher::new(digest.algorithm());
    let Ok(mut file) = sys::open_regular(blob) else { return false };
    is_stored(blob, size)
        && hash(&mut file, &mut hasher).await.is_ok_and(|len| len == size)
        && hasher.finish() == *digest
}

/// Hashes a file to its end; returns its length. Yields to other tasks.
async fn hash(file: &mut File, hasher: &mut Hasher) -> std::io::Result<u64> {
    let mut buffer = vec![0; 1 << 20];
    let mut len = 0;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(len);
        }
        hasher.update(buffer.get(..count).unwrap_or_default());
        len += count as u64;
        tokio::task::yield_now().await;
    }
}

impl Fetch<'_> {
    /// Downloads what is missing. Of several at once, in one or many processes, one downloads and
    /// the others wait.
    pub(super) async fn run(&self) -> Result<()> {
        let target = self.folders.blob(self.digest);
        let folder = target.parent().unwrap_or(&target);
        durable::create_dir_all(folder, 0o700).map_err(Error::write(folder, 1))?;
        let Some(mut partial) = self.begin(&target).await? else { return Ok(()) };
        let mut is_fresh = partial.done == 0;
        let (mut breaks, mut last_break) = (0, partial.done);
        loop {
            (self.report)(partial.done);
            if partial.done == self.size {
                let actual = partial.hasher.clone().finish();
                if actual == *self.digest {
                    return partial.publish(&target);
                }
                partial.restart()?;
                if is_fresh {
                    let (what, expected) = (self.what.clone(), self.digest.clone());
                    return Err(self.failed(RegistryProblem::WrongDigest {
                        what,
                        expected,
                        actual,
                    }));
                }
                // The remains of an earlier attempt may have been damaged.
                is_fresh = true;
                last_break = 0;
            }
            let Err(problem) = self.fetch_rest(&mut partial).await? else { continue };
            breaks =
                if partial.done.saturating_sub(last_break) >= WORTHWHILE { 1 } else { breaks + 1 };
            last_break = partial.done;
            if !problem.is_transient() || breaks >= MAX_BREAKS {
                return Err(self.failed(problem));
            }
            tokio::time::sleep(backoff(breaks)).await;
        }
    }

    /// Locks the partial blob; none if another download has completed the blob.
    async fn begin(&self, target: &Path) -> Result<Option<Partial>> {
        let path = path_of(target);
        let mut has_reported = false;
        loop {
            if is_stored(target, self.size) {
                return Ok(None);
            }
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(&path).map_err(Error::write(&path, 1))?;
            if sys::try_lock(&file, Lock::Exclusive).map_err(Error::io("lock", &path))? {
                // Else its owner renamed it, or it was collected as garbage.
                if !is_at(&file, &path)? {
                    continue;
                }
                if !is_stored(target, self.size) {
                    return self.resume(file, path).await.map(Some);
                }
                // Its owner finished before this file was created.
                fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                return Ok(None);
            }
            if !has_reported {
                self.progress.report(Event::Waiting { file: target });
                has_reported = true;
            }
            tokio::time::sleep(WAIT).await;
        }
    }

    /// Hashes the remains of an earlier attempt.
    async fn resume(&self, mut file: File, path: PathBuf) -> Result<Partial> {
        let mut hasher = Hasher::new(self.digest.algorithm());
        let len = file.metadata().map_err(Error::io("read", &path))?.len();
        if len > self.size {
            let mut partial = Partial { file, path, hasher, done: len };
            partial.restart()?;
            return Ok(partial);
        }
        let done = hash(&mut file, &mut hasher).await.map_err(Error::io("read", &path))?;
        Ok(Partial { file, path, hasher, done })
    }

    /// One request for the rest. The inner result is the registry's.
    async fn fetch_rest(&self, partial: &mut Partial) -> Result<Result<(), RegistryProblem>> {
        let blob = self.session.blob(&self.what, self.digest, partial.done).await;
        // The session has done the retries already.
        let mut blob = blob.map_err(|problem| self.failed(problem))?;
        if blob.start != partial.done {
            partial.restart()?;
        }
        loop {
            let chunk = match blob.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) if partial.done == self.size => return Ok(Ok(())),
                Ok(None) => {
                    let reason = format!("it ended after {} bytes", partial.done);
                    return Ok(Err(RegistryProblem::Unreachable { reason }));
                }
                Err(problem) => return Ok(Err(problem)),
            };
            let chunk = chunk.as_ref();
            if partial.done.saturating_add(chunk.len() as u64) > self.size {
                let (what, expected) = (self.what.clone(), self.size);
                return Err(self.failed(RegistryProblem::WrongLength { what, expected }));
            }
            partial.append(chunk)?;
            (self.report)(partial.done);
        }
    }

    fn failed(&self, problem: RegistryProblem) -> Error {
        Error::registry(&self.what, self.session.registry(), problem)
    }
}

/// A locked file with the first bytes of a blob.
struct Partial {
    file: File,
    path: PathBuf,
    hasher: Hasher,
    done: u64,
}

impl Partial {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::write(&self.path, bytes.len() as u64))?;
        self.hasher.update(bytes);
        self.done += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(Error::io("empty", &self.path))?;
        self.hasher = self.hasher.fresh();
        self.done = 0;
        Ok(())
    }

    /// Renames the complete blob. The lock is released afterwards, so that waiters find the blob.
    fn publish(self, target: &Path) -> Result<()> {
        durable::sync_file(&self.file).map_err(Error::write(&self.path, self.done))?;
        durable::rename(&self.path, target).map_err(Error::write(target, 1))?;
        // Not earlier: a read-only partial could not be resumed.
        let protected = self.file.set_permissions(Permissions::from_mode(0o400));
        protected.map_err(Error::io("protect", target))
    }
}
