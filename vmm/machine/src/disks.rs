//! Syncs the disks of a box that has ended, before its status says that they are synced.

use std::fs::File;
use std::sync::mpsc::channel;
use std::time::Duration;

use boxlite_contract::spec::DiskSpec;
use boxlite_contract::status::{BoxEnd, EndCause};
use boxlite_durable as durable;

use super::threads::Threads;

/// Timeout for the sync. A disk that is not synced in time is recovered at the next start.
const LIMIT: Duration = Duration::from_secs(5);

/// Syncs all disks that outlive the VM, on a thread that may hang. Without it, a loss of power could keep the status
/// and lose the last writes to the disks. Returns whether all disks are synced; those of a box that did not shut
/// down in order are not.
pub(super) fn sync(ended: &BoxEnd, disks: &[DiskSpec], files: &[File], threads: &Threads) -> bool {
    if !matches!(
        ended.cause,
        EndCause::Main | EndCause::Guest | EndCause::Stopped | EndCause::Orphaned
    ) {
        return false;
    }
    let stay = disks.iter().filter(|disk| !disk.ephemeral);
    let files = stay.map(|disk| files.get(disk.file)?.try_clone().ok());
    let Some(files) = files.collect::<Option<Vec<_>>>() else { return false };
    let (done, synced) = channel();
    let sync = move || {
        let all = files.iter().try_for_each(durable::sync_file);
        // The waiter may have timed out.
        let _ = done.send(all);
    };
    match threads.spawn("sync", sync).map(|_| synced.recv_timeout(LIMIT)) {
        Ok(Ok(Ok(()))) => true,
        problem => {
            tracing::warn!(?problem, "the box's disk is not synced; its next start recovers it");
            false
        }
    }
}
