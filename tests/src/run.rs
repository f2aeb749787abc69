//! State that the processes of one run of the tests share.
//!
//! nextest runs each test in a process of its own, `cargo test` all tests of a binary in one. Both coordinate by files in
//! the tests' folder, locked by `flock`: the kernel releases the locks of a process that dies.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{env, process};

use rustix::fs::FlockOperation;
use rustix::io::retry_on_intr;

/// Set by nextest, the same for all processes of a run.
const NEXTEST_RUN: &str = "NEXTEST_RUN_ID";

/// One run of the tests.
#[derive(Debug)]
pub(crate) struct Run {
    id: String,
    /// The lock files of the run.
    folder: PathBuf,
}

/// A test's permission to run, beside others or alone. Dropping it lets others run.
#[derive(Debug)]
pub(crate) struct Turn {
    _room: File,
}

impl Run {
    /// The run that this process is part of, with its files in `folder`.
    pub(crate) fn open(folder: PathBuf) -> Self {
        fs::create_dir_all(&folder).expect("cannot make the folder of the run");
        // Without nextest, this process is the whole run. Its ID may be that of a process of an earlier run.
        let id = env::var(NEXTEST_RUN).unwrap_or_else(|_| {
            let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
            format!("{}-{}", process::id(), now.as_nanos())
        });
        Self { id, folder }
    }

    /// Does `work`, unless a process of this run has done it. Waits while another process does it.
    pub(crate) fn once(&self, name: &str, work: impl FnOnce()) {
        let mut done = lock(&self.folder.join(name), FlockOperation::LockExclusive);
        let mut by = String::new();
        done.read_to_string(&mut by).expect("cannot read a file of the run");
        if by == self.id {
            return;
        }
        work();
        let written = done.rewind().and_then(|()| done.set_len(0));
        written
            .and_then(|()| done.write_all(self.id.as_bytes()))
            .expect("cannot write a file of the run");
    }

    /// Waits until no test runs alone.
    pub(crate) fn beside_others(&self) -> Turn {
        self.turn(FlockOperation::LockShared)
    }

    /// Waits until no other test runs.
    pub(crate) fn alone(&self) -> Turn {
        self.turn(FlockOperation::LockExclusive)
    }

    /// Locks `gate`, then `room`. A test that waits to be alone holds the gate, so that later tests queue behind it and
    /// it is not starved.
    fn turn(&self, how: FlockOperation) -> Turn {
        let _gate = lock(&self.folder.join("gate"), how);
        Turn { _room: lock(&self.folder.join("room"), how) }
    }
}

/// Opens the file at `path`, and waits for its lock. Closing it releases the lock.
fn lock(path: &Path, how: FlockOperation) -> File {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
    let file = file.unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()));
    retry_on_intr(|| rustix::fs::flock(&file, how))
        .unwrap_or_else(|error| panic!("cannot lock {}: {error}", path.display()));
    file
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    fn run(folder: &Path, id: &str) -> Run {
        Run { id: id.to_owned(), ..Run::open(folder.to_owned()) }
    }

    #[test]
    fn work_is_done_once_a_run() {
        let folder = tempfile::tempdir().unwrap();
        let times = Cell::new(0);
        let work = || times.set(times.get() + 1);
        for (id, expected) in [("long name", 1), ("long name", 1), ("b", 2), ("b", 2)] {
            run(folder.path(), id).once("work", work);
            assert_eq!(times.get(), expected, "{id}");
        }
        run(folder.path(), "b").once("other work", work);
        assert_eq!(times.get(), 3);
    }

    #[test]
    fn work_that_failed_is_done_again() {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path(), "a");
        let failed = thread::scope(|scope| {
            scope.spawn(|| run.once("work", || panic!("it fails"))).join().is_err()
        });
        let done = Cell::new(false);
        run.once("work", || done.set(true));
        assert!(failed && done.get());
    }

    #[test]
    fn a_test_that_is_alone_is_waited_for_and_waits_for_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path(), "a");
        let (sender, receiver) = channel();
        thread::scope(|scope| {
            let others = [run.beside_others(), run.beside_others()];
            scope.spawn(|| {
                let _turn = run.alone();
                sender.send("alone").unwrap();
            });
            // The test that waits to be alone has closed the gate.
            while is_free(&folder.path().join("gate")) {
                thread::yield_now();
            }
            scope.spawn(|| {
                let _turn = run.beside_others();
                sender.send("late").unwrap();
            });
            assert!(receiver.try_recv().is_err());
            drop(others);
            assert_eq!([receiver.recv().unwrap(), receiver.recv().unwrap()], ["alone", "late"]);
        });
    }

    fn is_free(path: &Path) -> bool {
        let file = File::open(path).unwrap();
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_ok()
    }
}
