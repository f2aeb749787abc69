//! What boxes leave where they run: processes and files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use boxlite_tests::Launcher;
use rustix::process::Pid;

/// How long a machine may take to go once its launcher is gone.
const MOMENT: Duration = Duration::from_secs(20);

/// The processes of boxes of this home.
pub(crate) fn machines(launcher: &Launcher) -> Vec<Pid> {
    let home = format!("BOXLITE_HOME={}", launcher.home().display());
    let is_machine = |process: &Path| {
        let words = |file: &str| fs::read(process.join(file)).unwrap_or_default();
        let has =
            |file: &str, word: &str| words(file).split(|b| *b == 0).any(|w| w == word.as_bytes());
        has("cmdline", "machine") && has("environ", &home)
    };
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
    processes
        .filter(|process| is_machine(process))
        .filter_map(|process| Pid::from_raw(process.file_name()?.to_str()?.parse().ok()?))
        .collect()
}

/// All files of the home, but for those of the software host that it may lie in.
pub(crate) fn files(launcher: &Launcher) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    let mut folders = vec![launcher.home().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
            // The database's own, which stay while nobody opens it anew.
            let name = entry.file_name();
            if name != "boxlite.db-wal" && name != "boxlite.db-shm" {
                files.insert(entry.path());
            }
        }
    }
    files
}

/// Fails the test if something is not done in a moment.
#[track_caller]
pub(crate) fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + MOMENT;
    while !done() {
        assert!(Instant::now() < deadline, "{what}, still after {MOMENT:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Fails the test if a process of a box is there for longer than a moment.
#[track_caller]
pub(crate) fn no_machine(launcher: &Launcher) {
    wait_until("a machine's process is left over", || machines(launcher).is_empty());
}

/// What a process has of whoever started it.
#[derive(Debug)]
pub(crate) struct Inheritance {
    /// The working directory.
    pub(crate) cwd: PathBuf,
    /// The process that leads its session.
    pub(crate) session: i32,
    /// What its descriptors lead to, by number.
    pub(crate) files: Vec<(i32, PathBuf)>,
}

/// Looks at a process.
pub(crate) fn inheritance(pid: Pid) -> Inheritance {
    let process = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let stat = fs::read_to_string(process.join("stat")).unwrap();
    // Behind the name, which may hold anything: state, parent, group, session.
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
    /// Whether a descriptor leads there.
    pub(crate) fn holds(&self, path: &Path) -> bool {
        self.files.iter().any(|(_, target)| target == path)
    }
}
