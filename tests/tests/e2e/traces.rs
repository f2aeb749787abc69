//! Processes and files of boxes, as seen where boxes run.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use boxlite_tests::Launcher;
use rustix::process::Pid;

/// Timeout for the end of a box's process after its launcher has exited.
const END_LIMIT: Duration = Duration::from_secs(20);

/// The processes of boxes of this home.
pub(crate) fn box_processes(launcher: &Launcher) -> Vec<Pid> {
    let home = format!("BOXLITE_HOME={}", launcher.home().display());
    let is_box_process = |process: &Path| {
        let words = |file: &str| fs::read(process.join(file)).unwrap_or_default();
        let has =
            |file: &str, word: &str| words(file).split(|b| *b == 0).any(|w| w == word.as_bytes());
        has("cmdline", "machine") && has("environ", &home)
    };
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
    processes
        .filter(|process| is_box_process(process))
        .filter_map(|process| Pid::from_raw(process.file_name()?.to_str()?.parse().ok()?))
        .collect()
}

/// All files of the home.
pub(crate) fn files(launcher: &Launcher) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    let mut folders = vec![launcher.home().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
            // SQLite's files, which stay until the database is opened again.
            let name = entry.file_name();
            if name != "boxlite.db-wal" && name != "boxlite.db-shm" {
                files.insert(entry.path());
            }
        }
    }
    files
}

/// Waits until `done`, and fails the test after [`END_LIMIT`].
#[track_caller]
pub(crate) fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + END_LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "{what}, still after {END_LIMIT:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until no process of a box is left, and fails the test after [`END_LIMIT`].
#[track_caller]
pub(crate) fn wait_until_none_runs(launcher: &Launcher) {
    wait_until("a box's process is left over", || box_processes(launcher).is_empty());
}

/// What a process may have inherited.
#[derive(Debug)]
pub(crate) struct Inheritance {
    /// The working directory.
    pub(crate) cwd: PathBuf,
    /// The process that leads its session.
    pub(crate) session: i32,
    /// The targets of its descriptors, by number.
    pub(crate) files: Vec<(i32, PathBuf)>,
}

/// Reads what a process may have inherited from `/proc`.
pub(crate) fn inheritance(pid: Pid) -> Inheritance {
    let process = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let stat = fs::read_to_string(process.join("stat")).unwrap();
    // After the name, which may contain anything: state, parent, group, session.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let session = fields.split(' ').nth(3).unwrap().parse().unwrap();
    let files = fs::read_dir(process.join("fd")).unwrap().flatten();
    let target = |path: PathBuf| {
        let number = path.file_name()?.to_str()?.parse().ok()?;
        Some((number, fs::read_link(path).ok()?))
    };
    let files = files.filter_map(|entry| target(entry.path())).collect();
    Inheritance { cwd: fs::read_link(process.join("cwd")).unwrap(), session, files }
}

impl Inheritance {
    /// Whether a descriptor refers to `path`.
    pub(crate) fn holds(&self, path: &Path) -> bool {
        self.files.iter().any(|(_, target)| target == path)
    }
}
