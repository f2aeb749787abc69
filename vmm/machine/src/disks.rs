//! The disks of a box that has ended: on stable storage before its status says so.

use std::fs::File;
use std::sync::mpsc::channel;
use std::time::Duration;

use boxlite_contract::spec::DiskSpec;
use boxlite_contract::status::{BoxEnd, EndCause};
use boxlite_durable as durable;

use super::threads::Threads;

/// How long that may take. A disk that takes longer is put right at the next start.
const LIMIT: Duration = Duration::from_secs(5);

/// Syncs the disks that stay, on a thread that may hang. A loss of power could otherwise keep the status and lose what
/// the disks were given last. Returns whether it is done; of a box that did not end in order nothing is waited for.
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
        // Nobody may wait for it any more.
        let _ = done.send(all);
    };
    match threads.spawn("sync", sync).map(|_| synced.recv_timeout(LIMIT)) {
        Ok(Ok(Ok(()))) => true,
        problem => {
            tracing::warn!(?problem, "the box's disk is not synced; its next start puts it right");
            false
        }
    }
}
