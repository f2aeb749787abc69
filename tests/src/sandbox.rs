//! Boxes that outlive the command that made them and are removed at the end of a test.

use std::ffi::OsStr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::invocation::Invocation;
use crate::launcher::{BUSYBOX, Launcher};

/// Timeout for an expected state of a box. Test machines are busy.
const DEADLINE: Duration = Duration::from_secs(120);

/// The time between two `inspect`s of a box.
const PAUSE: Duration = Duration::from_millis(300);

/// A box. It is removed with this value, in any state.
#[derive(Debug)]
pub struct Sandbox<'a> {
    launcher: &'a Launcher,
    name: String,
    id: String,
}

impl<'a> Sandbox<'a> {
    /// Makes and starts a detached box of busybox with this script as its main command.
    #[track_caller]
    pub fn run(launcher: &'a Launcher, name: &str, options: &[&str], script: &str) -> Self {
        let tail = [&*launcher.image(BUSYBOX), "sh", "-c", script].map(str::to_owned);
        Self::make(launcher, "run", name, [options, &["-d"]].concat(), &tail)
    }

    /// Makes a box of busybox with this script as its main command.
    #[track_caller]
    pub fn create(launcher: &'a Launcher, name: &str, options: &[&str], script: &str) -> Self {
        let tail = [&*launcher.image(BUSYBOX), "sh", "-c", script].map(str::to_owned);
        Self::make(launcher, "create", name, options.to_vec(), &tail)
    }

    /// Makes and starts a box of busybox that runs until it is stopped.
    #[track_caller]
    pub fn idle(launcher: &'a Launcher, name: &str, options: &[&str]) -> Self {
        let image = [launcher.image(BUSYBOX)];
        let made = Self::make(launcher, "create", name, [options, &["--idle"]].concat(), &image);
        made.on(["start"]).output().success();
        made
    }

    #[track_caller]
    fn make(
        launcher: &'a Launcher,
        verb: &str,
        name: &str,
        options: Vec<&str>,
        tail: &[String],
    ) -> Self {
        let name = unique(name);
        let made = launcher.command([verb, "--name", &name]).args(small(&options));
        let made = made.args(options).args(tail).output();
        // Before the result is checked, so that a failed attempt is removed, too.
        let mut sandbox = Self::named(launcher, name);
        sandbox.id = made.success();
        sandbox
    }

    /// A box that another command makes; it is removed with this value. Its ID is not known.
    pub fn named(launcher: &'a Launcher, name: String) -> Self {
        Self { launcher, name, id: String::new() }
    }

    /// Its name, which no other run of the tests uses.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its ID, as the launcher printed it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The launcher with these arguments and the box's name.
    pub fn on<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Invocation {
        self.launcher.command(args).args([&self.name])
    }

    /// `exec` with these options: a shell script in the box.
    pub fn exec<S: AsRef<OsStr>>(
        &self,
        options: impl IntoIterator<Item = S>,
        script: &str,
    ) -> Invocation {
        self.launcher.command(["exec"]).args(options).args([&self.name, "sh", "-c", script])
    }

    /// What a shell script in the box prints.
    #[track_caller]
    pub fn shell(&self, script: &str) -> String {
        self.exec([] as [&str; 0], script).output().success()
    }

    /// What `inspect` prints about the box.
    #[track_caller]
    pub fn inspect(&self) -> Value {
        let text = self.on(["inspect"]).output().success();
        let mut all: Value = serde_json::from_str(&text).expect("inspect prints JSON");
        all[0].take()
    }

    /// Its state, as in `inspect`.
    #[track_caller]
    pub fn state(&self) -> String {
        self.inspect()["state"].as_str().expect("a box has a state").to_owned()
    }

    /// Waits until the box is as expected, and returns what `inspect` prints then.
    #[track_caller]
    pub fn wait_until(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let info = self.inspect();
            if is(&info) {
                return info;
            }
            assert!(Instant::now() < deadline, "{} is not {what}, but {info:#}", self.name);
            thread::sleep(PAUSE);
        }
    }
}

impl Drop for Sandbox<'_> {
    fn drop(&mut self) {
        // The box may have removed itself, and the test may be failing already.
        let _ = self.on(["rm", "-f"]).quiet();
    }
}

/// A name that no other run of the tests uses, because runs may share a home.
pub fn unique(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

/// Little memory, because many emulated boxes run at once.
fn small(options: &[&str]) -> &'static [&'static str] {
    if options.contains(&"--memory") { &[] } else { &["--memory", "192M"] }
}
