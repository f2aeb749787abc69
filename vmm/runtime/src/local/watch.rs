//! Waits for files that grow or are replaced, without polling: the system notifies of changes (inotify, kqueue) through
//! one descriptor for all followers of a runtime.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::client::wire::lock;
use crate::sys::{Changes, Watched};

/// Polling interval where the system has no notifications, or too many watches.
const POLL: Duration = Duration::from_millis(100);

/// Polling interval in addition to notifications, which not every file system sends for every change.
const SAFETY_POLL: Duration = Duration::from_secs(10);

/// Watches files for all followers of a runtime.
#[derive(Debug, Default)]
pub(super) struct Watcher(Mutex<Option<Arc<Source>>>);

/// The system's notifications, and the watches that they are for.
#[derive(Debug)]
struct Source {
    changes: Arc<Changes>,
    watches: Arc<Mutex<Watches>>,
    task: JoinHandle<()>,
}

type Watches = HashMap<Watched, Weak<Watch>>;

/// A watched file or folder.
#[derive(Debug)]
struct Watch {
    watched: Watched,
    changed: watch::Sender<()>,
    source: Arc<Source>,
}

impl Watcher {
    /// Follows `file`, which may not exist yet, grow, be replaced or be moved away.
    pub(super) fn follow(self: &Arc<Self>, file: PathBuf) -> Follower {
        Follower { watcher: self.clone(), file, current: None, folder: None }
    }

    fn watch(&self, path: &Path) -> io::Result<Subscription> {
        let source = self.source()?;
        // Under the lock, so that the watch is not removed meanwhile.
        let mut watches = lock(&source.watches);
        let watched = source.changes.watch(path)?;
        let watch = match watches.get(&watched).and_then(Weak::upgrade) {
            Some(watch) => watch,
            None => {
                let source = source.clone();
                let watch = Arc::new(Watch { watched, changed: watch::Sender::default(), source });
                watches.insert(watched, Arc::downgrade(&watch));
                watch
            }
        };
        drop(watches);
        Ok(Subscription { changed: watch.changed.subscribe(), watch })
    }

    /// The source of notifications, created again if its async runtime was shut down.
    fn source(&self) -> io::Result<Arc<Source>> {
        let mut source = lock(&self.0);
        match &*source {
            Some(source) if !source.task.is_finished() => Ok(source.clone()),
            _ => Ok(source.insert(Arc::new(Source::new()?)).clone()),
        }
    }
}

impl Source {
    fn new() -> io::Result<Self> {
        let changes = Arc::new(Changes::new()?);
        let watches: Arc<Mutex<Watches>> = Arc::default();
        let task = tokio::spawn(notify(changes.clone(), watches.clone()));
        Ok(Self { changes, watches, task })
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Notifies the watches of changes.
async fn notify(changes: Arc<Changes>, watches: Arc<Mutex<Watches>>) {
    while let Ok(reported) = changes.next().await {
        let changed: Vec<Arc<Watch>> = {
            let watches = lock(&watches);
            match reported {
                Some(reported) => {
                    reported.iter().filter_map(|it| watches.get(it)?.upgrade()).collect()
                }
                // The queue of notifications overflowed.
                None => watches.values().filter_map(Weak::upgrade).collect(),
            }
        };
        // Without the lock, which dropping the last reference to a watch takes.
        changed.iter().for_each(|watch| watch.changed.send_replace(()));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watches = lock(&self.source.watches);
        // There may be another watch of the same file by now.
        if watches.get(&self.watched).is_some_and(|now| std::ptr::eq(now.as_ptr(), self)) {
            watches.remove(&self.watched);
            self.source.changes.forget(self.watched);
        }
    }
}

#[derive(Debug)]
struct Subscription {
    changed: watch::Receiver<()>,
    watch: Arc<Watch>,
}

/// Waits for changes of a file.
#[derive(Debug)]
pub(super) struct Follower {
    watcher: Arc<Watcher>,
    file: PathBuf,
    /// The file that has the name now, if there is one.
    current: Option<Subscription>,
    /// Its folder, in which files appear and are replaced.
    folder: Option<Subscription>,
}

impl Follower {
    /// Waits until the file may have changed since the last call. Returns at once on the first call and after the file
    /// was replaced, so that the caller reads once more. Cancel safe.
    pub(super) async fn changed(&mut self) {
        match self.begin() {
            Ok(true) => return,
            Ok(false) => {}
            Err(e) => {
                tracing::debug!("{}: no notifications: {e}", self.file.display());
                return tokio::time::sleep(POLL).await;
            }
        }
        let (current, folder) = (&mut self.current, &mut self.folder);
        let _ = tokio::time::timeout(SAFETY_POLL, async {
            tokio::select! {
                () = changed(current) => {}
                () = changed(folder) => {}
            }
        })
        .await;
    }

    /// Watches the file that has the name now, and its folder. True if it is another file than before.
    fn begin(&mut self) -> io::Result<bool> {
        let mut is_new = false;
        if self.folder.is_none() {
            let folder = self.file.parent().unwrap_or(Path::new("/"));
            self.folder = Some(self.watcher.watch(folder)?);
            is_new = true;
        }
        let current = match self.watcher.watch(&self.file) {
            Ok(current) => Some(current),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        let watch = |it: &Option<Subscription>| it.as_ref().map(|it| Arc::as_ptr(&it.watch));
        if watch(&current) != watch(&self.current) {
            self.current = current;
            is_new = true;
        }
        Ok(is_new)
    }
}

async fn changed(subscription: &mut Option<Subscription>) {
    let is_notified = match subscription {
        Some(subscription) => subscription.changed.changed().await.is_ok(),
        None => false,
    };
    if !is_notified {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::Write;

    use super::*;

    /// Shorter than [`SAFETY_POLL`].
    const SOON: Duration = Duration::from_secs(8);

    async fn is_notified(follower: &mut Follower) -> bool {
        tokio::time::timeout(SOON, follower.changed()).await.is_ok()
    }

    async fn is_quiet(follower: &mut Follower) -> bool {
        tokio::time::timeout(Duration::from_millis(300), follower.changed()).await.is_err()
    }

    #[tokio::test]
    async fn followers_are_notified_of_growth_and_replacement_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log");
        let watcher = Arc::new(Watcher::default());
        let mut followers: Vec<_> = (0..200).map(|_| watcher.follow(file.clone())).collect();
        for follower in &mut followers {
            follower.changed().await;
        }
        let other = OpenOptions::new().create(true).append(true).open(dir.path().join("disk"));
        for follower in &mut followers {
            assert!(is_notified(follower).await, "a file was created");
        }
        assert!(is_quiet(&mut followers[0]).await);
        other.unwrap().write_all(b"what others write").unwrap();
        assert!(is_quiet(&mut followers[0]).await);
        for round in 0..3 {
            fs::rename(&file, dir.path().join("log.old")).ok();
            fs::write(&file, b"new").unwrap();
            for follower in &mut followers {
                assert!(is_notified(follower).await, "round {round}: a new file");
                while !is_quiet_now(follower).await {}
            }
            let mut log = OpenOptions::new().append(true).open(&file).unwrap();
            log.write_all(b"more").unwrap();
            for follower in &mut followers {
                assert!(is_notified(follower).await, "round {round}: it grows");
            }
        }
        drop(followers);
        let source = lock(&watcher.0).clone().unwrap();
        assert!(lock(&source.watches).is_empty(), "a watch is left without a follower");
    }

    /// Whether no notification waits.
    async fn is_quiet_now(follower: &mut Follower) -> bool {
        tokio::time::timeout(Duration::from_millis(1), follower.changed()).await.is_err()
    }
}
