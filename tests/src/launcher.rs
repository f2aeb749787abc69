//! The launcher under test, its images, and the home that all tests share.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;
use std::{env, fs};

use tempfile::TempDir;

use crate::arch::Programs;
use crate::invocation::Invocation;
use crate::run::{Run, Turn};

/// The name of the small image, in the folder of images.
pub const BUSYBOX: &str = "busybox";
/// The name of the large image: Debian with python3 and its tests, perl and gcc.
pub const DEBIAN: &str = "debian";

const LAUNCHER: &str = "BOXLITE_TEST_LAUNCHER";
const IMAGES: &str = "BOXLITE_TEST_IMAGES";
const GUEST: &str = "BOXLITE_GUEST_DIR";
/// A home to use and to keep for the next run. Without it, the tests make an empty one.
const HOME: &str = "BOXLITE_TEST_HOME";
/// Set by the launcher in the software host.
const INSIDE: &str = "BOXLITE_IN_SOFTHOST";

/// Timeout for making the large image's disk, which takes minutes under emulation.
const IMPORT_DEADLINE: Duration = Duration::from_secs(1200);

/// Whether long tests run at full length (`BOXLITE_TEST_LONG=1`).
pub fn is_long() -> bool {
    env::var_os("BOXLITE_TEST_LONG").is_some_and(|value| value == "1")
}

/// The launcher under test. While a test has it, no [`alone`](Launcher::alone) test runs.
#[derive(Debug)]
pub struct Launcher {
    setup: &'static Setup,
    _turn: Option<Turn>,
}

#[derive(Debug)]
struct Setup {
    program: PathBuf,
    images: PathBuf,
    /// The folder of the tests' files: the home, and images that tests build.
    work: PathBuf,
    home: PathBuf,
    /// None in the software host: the one test that runs there has its turn outside.
    run: Option<Run>,
}

impl Launcher {
    /// The launcher, for a test that runs beside others. None, after printing `SKIPPED`, if there is nothing to test.
    pub fn find() -> Option<Self> {
        let setup = setup()?;
        Some(Self { setup, _turn: setup.run.as_ref().map(Run::beside_others) })
    }

    /// As [`find`](Self::find), for a test that runs while no other does.
    pub fn alone() -> Option<Self> {
        let setup = setup()?;
        Some(Self { setup, _turn: setup.run.as_ref().map(Run::alone) })
    }

    /// As [`alone`](Self::alone), for a test that looks at the processes and files of boxes, and so must run where
    /// boxes run. If that is the software host, this runs the test `name` (`module::function`) again in the software
    /// host, and returns none outside of it.
    #[track_caller]
    pub fn where_boxes_run(name: &str) -> Option<Self> {
        let launcher = Self::alone()?;
        if is_inside() || launcher.has_hardware() {
            return Some(launcher);
        }
        let this = match Programs::find() {
            Some(programs) => programs.this(),
            None => env::current_exe().expect("this test has no executable"),
        };
        let again = launcher
            .softhost([this.as_os_str(), "--exact".as_ref(), name.as_ref(), "--nocapture".as_ref()])
            .deadline(Duration::from_secs(if is_long() { 3600 } else { 900 }))
            .output();
        print!("{}", again.stdout_lossy());
        eprint!("{}", again.stderr);
        assert_eq!(again.code, Some(0), "{name} failed in the software host");
        assert!(again.stdout_lossy().contains("1 passed"), "there is no test {name} to run again");
        None
    }

    /// Whether boxes run without the software host.
    pub fn has_hardware(&self) -> bool {
        static FOUND: OnceLock<bool> = OnceLock::new();
        *FOUND.get_or_init(|| {
            let doctor = self.command(["doctor"]).output();
            doctor.stdout_lossy().lines().any(|line| line.starts_with("ok    virtualization:"))
        })
    }

    /// The launcher's executable.
    pub fn program(&self) -> &Path {
        &self.setup.program
    }

    /// The home that the tests share; in the software host, the disk mounted there.
    pub fn home(&self) -> &Path {
        &self.setup.home
    }

    /// An empty folder for files of the test.
    pub fn folder(&self) -> TempDir {
        tempfile::Builder::new()
            .prefix("test-")
            .tempdir_in(&self.setup.work)
            .expect("cannot make a folder for the test")
    }

    /// The folder of the OCI layout of an image. A short run of the tests has only the small one.
    #[track_caller]
    pub fn layout(&self, image: &str) -> PathBuf {
        let layout = self.setup.images.join(image);
        let index = layout.join("index.json");
        assert!(index.is_file(), "{IMAGES}: there is no {}", index.display());
        layout
    }

    /// The reference of an image for `run`.
    pub fn image(&self, image: &str) -> String {
        format!("oci:{}", self.layout(image).display())
    }

    /// The reference of Debian for `run`; the first call in a run of the tests makes its disk.
    pub fn debian(&self) -> String {
        let image = self.image(DEBIAN);
        let make = || {
            self.command(["run", &image, "true"]).deadline(IMPORT_DEADLINE).output().success();
        };
        match &self.setup.run {
            Some(run) => run.once("debian", make),
            None => make(),
        }
        image
    }

    /// The launcher with these arguments.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Invocation {
        let mut command = Command::new(&self.setup.program);
        command.args(args).env("BOXLITE_HOME", &self.setup.home).env_remove("RUST_LOG");
        Invocation::new(command)
    }

    /// `softhost` with this command.
    pub fn softhost<S: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = S>) -> Invocation {
        let invocation = self.command(["softhost", "--"]).args(command);
        match Programs::find() {
            // The launcher passes its environment on, for this test to run again.
            Some(programs) => invocation
                .env("PATH", programs.path())
                .env(LAUNCHER, programs.launcher())
                .env(HOME, &self.setup.home),
            None => invocation,
        }
    }

    /// `run` with these options: a shell script in a box of busybox.
    pub fn shell<S: AsRef<OsStr>>(
        &self,
        options: impl IntoIterator<Item = S>,
        script: &str,
    ) -> Invocation {
        self.command(["run"]).args(options).args([&self.image(BUSYBOX), "sh", "-c", script])
    }
}

/// Whether this process runs in the software host.
fn is_inside() -> bool {
    env::var_os(INSIDE).is_some_and(|value| value == "1")
}

fn setup() -> Option<&'static Setup> {
    static SETUP: OnceLock<Option<Setup>> = OnceLock::new();
    SETUP.get_or_init(prepare).as_ref()
}

fn prepare() -> Option<Setup> {
    let path = |name: &str| match env::var_os(name) {
        Some(value) => Some(PathBuf::from(value)),
        None => {
            println!("SKIPPED: {name} is not set; `cargo xtask test` sets it");
            None
        }
    };
    let (program, images, _) = (path(LAUNCHER)?, path(IMAGES)?, path(GUEST)?);
    assert!(program.is_file(), "{LAUNCHER}: there is no {}", program.display());
    let work = work_folder();
    fs::create_dir_all(&work).expect("cannot make the folder of the tests");
    let home = match env::var_os(HOME) {
        Some(home) => PathBuf::from(home),
        None => work.join("home"),
    };
    let run = (!is_inside()).then(|| Run::open(work.join("run")));
    if let Some(run) = run.as_ref().filter(|_| env::var_os(HOME).is_none()) {
        // Left by an earlier run for inspection.
        run.once("home", || drop(fs::remove_dir_all(&home)));
    }
    fs::create_dir_all(&home).expect("cannot make the home of the tests");
    Some(Setup { program, images, work, home, run })
}

/// `target/tmp`, from the path of this executable, `target/PROFILE/deps/NAME`.
fn work_folder() -> PathBuf {
    let this = env::current_exe().expect("this test has no executable");
    this.ancestors().nth(3).unwrap_or(Path::new("/tmp")).join("tmp")
}
