//! Copies of files between host and box, by the rules of `docker cp`.
//!
//! ```text
//!  host file or tree ──pack──▶ pipe ──▶ agent: unpacks below a directory of the box
//!  host folder ◀──unpack── pipe ◀────── agent: packs a file or a tree
//!                 destination: where the entries go
//! ```
//!
//! A blocking thread reads or writes the host's files. The pipes are bounded, and so is memory, however slow one end
//! is. When one end stops, the other stops, too.

mod below;
mod decompress;
mod destination;
mod pack;
mod pipe;
#[cfg(test)]
mod tests;
mod unpack;

use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use boxlite_proto::archive::name::shown;
use boxlite_proto::guest::{CopyIn, CopyOut, FileKind, FileStat, Owner, Stat};
use boxlite_proto::message::FailureKind;
use boxlite_rootfs_builder::Compression;
use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

use self::destination::{Destination, Found, Spelling, destination};
use self::pack::{Packing, Source};
use self::unpack::{Ownership, Problem, Target, UnpackError, unpack};
use super::handle::BoxHandle;
use super::{Error, Result, blocking};
use crate::client::{self, AgentClient, Archive};

/// Limit of symlinks in one path, as in the kernel. A longer chain is taken for a loop.
const MAX_SYMLINKS: usize = 40;

/// Limit of skipped entries that a result names.
const MAX_SKIPPED: usize = 100;

/// Options of a copy.
///
/// ```
/// use boxlite_runtime::CopyOptions;
///
/// let options = CopyOptions::default().follow_links(true).owner(1000, 1000);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopyOptions {
    /// Whether to follow the source if it is a symlink. Symlinks below it are never followed.
    pub follow_links: bool,
    /// Whether files keep their numeric owners and file capabilities. Otherwise root owns them in the box, and the
    /// caller on the host. On the host, only root can keep owners, and capabilities are never kept.
    pub keep_ownership: bool,
    /// The owner of the files in the box: user and group ID.
    pub owner: Option<(u32, u32)>,
}

impl CopyOptions {
    /// Sets whether to follow the source if it is a symlink.
    pub fn follow_links(mut self, yes: bool) -> Self {
        self.follow_links = yes;
        self
    }

    /// Sets whether files keep their owners.
    pub fn keep_ownership(mut self, yes: bool) -> Self {
        self.keep_ownership = yes;
        self
    }

    /// Sets the owner of the files in the box.
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = Some((uid, gid));
        self
    }
}

/// The result of a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Copied {
    /// Number of files, directories and links.
    pub entries: u64,
    /// Bytes of file content, without holes.
    pub bytes: u64,
    /// Entries that were skipped or copied in part, at most the first hundred.
    pub skipped: Vec<SkippedEntry>,
    /// Number of such entries.
    pub skipped_count: u64,
}

/// An entry that was skipped or copied in part.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SkippedEntry {
    /// The entry's name in the tar, quoted and escaped.
    pub name: String,
    /// The reason.
    pub reason: String,
}

impl Copied {
    fn skip(&mut self, name: String, reason: &str) {
        self.skipped_count += 1;
        if self.skipped.len() < MAX_SKIPPED {
            self.skipped.push(SkippedEntry { name, reason: reason.to_owned() });
        }
    }
}

impl From<client::Unpacked> for Copied {
    fn from(client::Unpacked { entries, bytes }: client::Unpacked) -> Self {
        Self { entries, bytes, ..Self::default() }
    }
}

impl BoxHandle {
    /// Copies a file or a directory of the host into the box, with modes, times, links, holes and `user.*` attributes.
    /// The box's root owns the copies. The rules are those of `docker cp`:
    ///
    /// - If `to` is a directory, the source goes into it under its own name; if `from` ends in `/.`, the content of the
    ///   source goes into it instead.
    /// - Otherwise `to` is the new name, in a directory that exists. A file there is replaced.
    /// - A path that ends in a slash must be a directory. Relative paths in the box start at its root.
    /// - Directories are merged. Nothing else ever replaces a directory, and a source that is a directory replaces
    ///   nothing else.
    ///
    /// ```no_run
    /// # async fn example(sandbox: boxlite_runtime::BoxHandle) -> boxlite_runtime::Result<()> {
    /// sandbox.copy_into("data/input.csv", "/tmp").await?;
    /// sandbox.exec(["sort", "-o", "/tmp/sorted.csv", "/tmp/input.csv"]).status().await?;
    /// let copied = sandbox.copy_out("/tmp/sorted.csv", "data/").await?;
    /// println!("{} bytes", copied.bytes);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Dropping the future stops the copy on both sides, possibly within a file; files copied so far stay.
    ///
    /// # Errors
    /// The source cannot be read, the rules refuse the copy ([`ErrorKind::Invalid`](crate::ErrorKind::Invalid)), or the
    /// box cannot write it.
    pub async fn copy_into(&self, from: impl AsRef<Path>, to: impl AsRef<[u8]>) -> Result<Copied> {
        self.copy_into_with(from, to, CopyOptions::default()).await
    }

    /// Like [`copy_into`](Self::copy_into), with options.
    pub async fn copy_into_with(
        &self,
        from: impl AsRef<Path>,
        to: impl AsRef<[u8]>,
        options: CopyOptions,
    ) -> Result<Copied> {
        let from = from.as_ref().to_owned();
        let to = not_empty(to.as_ref())?;
        let source = blocking(move || Source::find(&from, options.follow_links)).await?;
        let agent = self.agent().await?;
        let (to, found) = self.destination(&agent, to).await?;
        let what = destination::Source { is_dir: source.is_dir, name: source.name.as_deref() };
        let Destination { dir, name } = destination(what, &to, found).map_err(refused(&to))?;
        if let (Found::Directory, Some(name)) = (found, &name) {
            let path = [&dir[..], b"/", name].concat();
            let there = self.look(&agent, &path, false).await?;
            if there.is_some_and(|there| (there.kind == FileKind::Directory) != source.is_dir) {
                return Err(refused(&path)(in_the_way(source.is_dir)));
            }
        }
        let (mut writer, tar) = pipe::from_thread();
        let packing = Packing { name, archive: options.keep_ownership };
        let packed = super::in_background(move || {
            let copied = pack::pack(&source, &packing, &mut writer)?;
            writer.end();
            Ok(copied)
        });
        let owner = match options.owner {
            None if options.keep_ownership => None,
            owner => Some(owner.unwrap_or_default()),
        };
        let request = CopyIn { path: dir, create: false, owner: owner.map(as_owner) };
        let unpacked = agent.copy_in(request, tar).await;
        let packed = packed.await.unwrap_or_else(|e| Err(Error::internal(e)));
        match (unpacked, packed) {
            (Ok(_), packed) => packed,
            // The host's side failed, and its error is the cause.
            (Err(client::Error::Source(_)), Err(error)) => Err(error),
            (Err(error), _) => Err(self.explain(error).await),
        }
    }

    /// Copies a file or a directory of the box to the host. The calling user owns the copies. The rules are those of
    /// [`copy_into`](Self::copy_into), in the other direction.
    ///
    /// The box is not trusted: nothing is written but what was asked for, where it belongs; through no symlink,
    /// without devices, named pipes, setuid, setgid and sticky bits. Symlinks are copied as they are: look
    /// where they point before following them. Each file gets its name when it is whole.
    ///
    /// Dropping the future ends the copy on both sides; files that are whole stay. A blocking thread, which may outlive
    /// the future, removes the unfinished file (`.boxlite-copy-<hex>`).
    ///
    /// # Errors
    /// The copy cannot be written on the host, the rules refuse it ([`ErrorKind::Invalid`](crate::ErrorKind::Invalid)),
    /// the box cannot read it, or the box sends a malformed archive ([`ErrorKind::Guest`](crate::ErrorKind::Guest)).
    pub async fn copy_out(&self, from: impl AsRef<[u8]>, to: impl AsRef<Path>) -> Result<Copied> {
        self.copy_out_with(from, to, CopyOptions::default()).await
    }

    /// Like [`copy_out`](Self::copy_out), with options.
    pub async fn copy_out_with(
        &self,
        from: impl AsRef<[u8]>,
        to: impl AsRef<Path>,
        options: CopyOptions,
    ) -> Result<Copied> {
        let from = not_empty(from.as_ref())?;
        let to = to.as_ref().to_owned();
        let Spelling { name, is_dir: spelled_dir, parent } = Spelling::of(&from);
        let follow = options.follow_links || spelled_dir;
        let agent = self.agent().await?;
        let stat = Stat { path: from.clone(), follow };
        let stat = self.explained(agent.stat(stat).await).await?;
        let is_dir = match stat.kind {
            FileKind::Directory => true,
            FileKind::File | FileKind::Symlink => false,
            _ => return Err(refused(&from)("it is a device, a pipe or a socket")),
        };
        let asked = name.map(<[u8]>::to_vec);
        // The end of the path decides how the tar names its entries.
        let path = match name {
            Some(name) => [parent, name].concat(),
            None => [&from[..], b"/."].concat(),
        };
        let ownership = match options.keep_ownership && rustix::process::geteuid().is_root() {
            true => Ownership::Tar,
            false => Ownership::Caller,
        };
        let target = blocking(move || target(&to, is_dir, asked, ownership)).await?;
        let archive = self.explained(agent.copy_out(CopyOut { path, follow }).await).await?;
        let (feed, tar) = pipe::to_thread();
        let unpacked = super::in_background(move || unpack(target, tar));
        let fed = pump(archive, feed).await;
        let unpacked = unpacked.await.map_err(Error::internal)?;
        match fed {
            Ok(()) => unpacked.map_err(unpack_error),
            Err(error) => Err(match error.downcast::<client::Error>() {
                Ok(error) => self.explain(error).await,
                Err(error) => Error::internal(error),
            }),
        }
    }

    /// Unpacks a tar, which may be compressed with gzip, bzip2, xz or zstd, into an existing directory of the box. Files
    /// have the owners in the tar, unless [`CopyOptions::owner`] sets one. Existing files are replaced, as by `tar -x`.
    ///
    /// Dropping the future stops that, possibly within an entry; entries unpacked so far stay.
    ///
    /// # Errors
    /// The box cannot unpack the tar, or `tar` cannot be read.
    pub async fn copy_into_tar(
        &self,
        tar: impl AsyncRead + Send + Unpin,
        to: impl AsRef<[u8]>,
        options: CopyOptions,
    ) -> Result<Copied> {
        let path = not_empty(to.as_ref())?;
        let request = CopyIn { path, create: false, owner: options.owner.map(as_owner) };
        let agent = self.agent().await?;
        let unpacked = match decompress::recognize(tar).await {
            Ok((Compression::None, tar)) => agent.copy_in(request, tar).await,
            Ok((_, tar)) => copy_in_decompressed(&agent, request, tar).await,
            Err(error) => Err(client::Error::Source(error.into())),
        };
        Ok(self.explained(unpacked).await?.into())
    }

    /// Reads a file or a directory of the box as a tar, in the PAX format with extended attributes as `SCHILY.xattr.*`
    /// and sparse files in GNU's version 1.0. The names of entries start with the last component of the path, or with
    /// `.` if the path ends in `/.`.
    ///
    /// The tar is not checked: unpack it like any untrusted archive. The box waits while nobody reads; dropping the
    /// archive cancels the copy.
    ///
    /// # Errors
    /// The box cannot read the path; the kind is [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if it does not
    /// exist.
    pub async fn copy_out_tar(
        &self,
        from: impl AsRef<[u8]>,
        options: CopyOptions,
    ) -> Result<Archive> {
        let path = not_empty(from.as_ref())?;
        let request = CopyOut { path, follow: options.follow_links };
        let archive = self.agent().await?.copy_out(request).await;
        self.explained(archive).await
    }

    /// Describes the file at a path of the box; none if there is no file.
    async fn look(
        &self,
        agent: &AgentClient,
        path: &[u8],
        follow: bool,
    ) -> Result<Option<FileStat>> {
        match agent.stat(Stat { path: path.to_vec(), follow }).await {
            Ok(stat) => Ok(Some(stat)),
            Err(e) if e.failure().is_some_and(|f| f.kind == FailureKind::NoSuchPath) => Ok(None),
            Err(e) => Err(self.explain(e).await),
        }
    }

    /// Resolves symlinks at the end of a destination in the box. Returns the path and what it is.
    async fn destination(&self, agent: &AgentClient, to: Vec<u8>) -> Result<(Vec<u8>, Found)> {
        let mut path = to.clone();
        for _ in 0..MAX_SYMLINKS {
            let found = match self.look(agent, &path, false).await? {
                None => Found::Nothing,
                Some(FileStat { kind: FileKind::Directory, .. }) => Found::Directory,
                Some(FileStat { kind: FileKind::File, .. }) => Found::File,
                Some(FileStat { kind: FileKind::Symlink, link_target, .. }) => {
                    path = through(&path, &link_target);
                    continue;
                }
                Some(_) => Found::Special,
            };
            return Ok((path, found));
        }
        Err(refused(&to)("its symlinks form a loop"))
    }
}

/// Decompresses a tar on its way to the box.
async fn copy_in_decompressed(
    agent: &AgentClient,
    request: CopyIn,
    tar: impl AsyncRead + Send + Unpin,
) -> Result<client::Unpacked, client::Error> {
    let (feed, plain, decoding) = decompress::start();
    let fed = async {
        match pump(tar, feed).await {
            Err(error) => error,
            Ok(()) => std::future::pending().await,
        }
    };
    let unpacked = tokio::select! {
        unpacked = agent.copy_in(request, plain) => unpacked,
        error = fed => return Err(client::Error::Source(error.into())),
    };
    match unpacked {
        // The host's side failed, and the decoder has the cause.
        Err(client::Error::Source(error)) => {
            let why = decoding.await.map_err(io::Error::other).and_then(|decoded| decoded);
            Err(client::Error::Source(why.err().map_or(error, Into::into)))
        }
        unpacked => unpacked,
    }
}

/// The target path of a symlink at `path`.
fn through(path: &[u8], link_target: &[u8]) -> Vec<u8> {
    match link_target.first() {
        Some(b'/') => link_target.to_vec(),
        _ => [Spelling::of(path).parent, link_target].concat(),
    }
}

/// Resolves a destination on the host, and opens its directory.
fn target(to: &Path, is_dir: bool, asked: Option<Vec<u8>>, ownership: Ownership) -> Result<Target> {
    let failed = Error::copy(to);
    let mut path = not_empty(to.as_os_str().as_bytes())?;
    let mut hops = 0;
    let found = loop {
        let here = PathBuf::from(std::ffi::OsString::from_vec(path.clone()));
        let metadata = match here.symlink_metadata() {
            Ok(metadata) => metadata,
            Err(e) if e.kind() == io::ErrorKind::NotFound => break Found::Nothing,
            Err(e) => return Err(failed(e)),
        };
        let kind = metadata.file_type();
        if kind.is_symlink() && hops < MAX_SYMLINKS {
            let link = here.read_link().map_err(&failed)?;
            path = through(&path, link.as_os_str().as_bytes());
            hops += 1;
            continue;
        }
        break match kind {
            kind if kind.is_dir() => Found::Directory,
            kind if kind.is_file() => Found::File,
            kind if kind.is_symlink() => {
                return Err(refused(&path)("its symlinks form a loop"));
            }
            _ => Found::Special,
        };
    };
    let source = destination::Source { is_dir, name: asked.as_deref() };
    let Destination { dir, name } = destination(source, &path, found).map_err(refused(&path))?;
    let dir = match dir.is_empty() {
        true => PathBuf::from("."),
        false => PathBuf::from(std::ffi::OsString::from_vec(dir)),
    };
    let opened = below::open_dir(&dir).map_err(|errno| Error::copy(&dir)(errno.into()))?;
    Ok(Target { dir: opened, path: dir, name, asked, ownership })
}

/// Moves a tar from the box to the thread that unpacks it.
async fn pump(mut archive: impl AsyncRead + Unpin, feed: pipe::Feed) -> io::Result<()> {
    loop {
        let mut chunk = BytesMut::with_capacity(pipe::CHUNK);
        if archive.read_buf(&mut chunk).await? == 0 {
            feed.end().await;
            return Ok(());
        }
        // The thread stopped reading, and returns the reason.
        if !feed.send(chunk.freeze()).await {
            return Ok(());
        }
    }
}

fn unpack_error(error: UnpackError) -> Error {
    let UnpackError { entry, path, problem } = error;
    match problem {
        Problem::Archive(error) => Error::bad_archive(&shown(&entry), error),
        Problem::InTheWay(why) => refused(path.as_os_str().as_bytes())(why),
        Problem::System(errno) => Error::copy(path)(errno.into()),
    }
}

fn in_the_way(is_dir: bool) -> &'static str {
    match is_dir {
        true => "a file that is not a directory has its name",
        false => "a directory has its name",
    }
}

fn refused(path: &[u8]) -> impl FnOnce(&'static str) -> Error {
    let path = String::from_utf8_lossy(path).into_owned();
    move |reason| Error::copy_refused(path, reason)
}

fn not_empty(path: &[u8]) -> Result<Vec<u8>> {
    match path.is_empty() {
        true => Err(refused(b"\"\"")("the path is empty")),
        false => Ok(path.to_vec()),
    }
}

fn as_owner((uid, gid): (u32, u32)) -> Owner {
    Owner { uid, gid }
}
