//! Tests by cargo-nextest, as `.config/nextest.toml` says: each in a process of its own, with a limit
//! on its time, and counted by the report that nextest writes.
//!
//! Where it is not installed `cargo test` runs them, and they count as one. CI installs it once into
//! the cache; without network, `cargo test` has to do there, too.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, bail};
use boxlite_kernel::Arch;

use crate::build;
use crate::check::junit::Tests;
use crate::check::report::{Outcome, passes};
use crate::check::tool::{Origin, Tool};
use crate::cross::{Target, Toolchain};

/// In CI it is built once: its own speed does not matter.
const NEXTEST: Tool = Tool {
    name: "cargo-nextest",
    version: "0.9.143",
    oldest: [0, 9, 143],
    folder: "tools/cargo-nextest-0.9.143",
    origin: Origin::Crates {
        arguments: &["--no-default-features", "--features", "default-no-update"],
        variables: &[
            ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
            ("CARGO_PROFILE_RELEASE_LTO", "false"),
            ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
        ],
    },
};

/// The profile in `.config/nextest.toml`.
const PROFILE: &str = "ci";
/// Where that profile has its report, in the repository.
const REPORT: &str = "target/nextest/ci/junit.xml";

/// The tests to run.
#[derive(Default)]
pub(super) struct Run<'a> {
    /// Which, in arguments that `cargo test` understands, too. Those of the documentation are never run.
    pub(super) arguments: &'a [&'a str],
    /// Their environment.
    pub(super) variables: &'a [(&'static str, PathBuf)],
    /// Where they run, if it is not this machine.
    pub(super) elsewhere: Option<Elsewhere>,
}

/// Another machine, of another architecture perhaps.
pub(super) struct Elsewhere {
    pub(super) arch: Arch,
    /// The command that runs there what is appended to it.
    pub(super) runner: Vec<String>,
}

impl Run<'_> {
    /// Runs the tests, and prints which were skipped.
    pub(super) fn outcome(&self) -> Result<Outcome> {
        match find() {
            Some(program) => Ok(self.run(&program)?.0),
            None => self.run_without(),
        }
    }

    /// Runs the tests on a machine that has what they need: one that is skipped is an error, unless for a reason that
    /// begins with `excuse`. Only nextest says what was skipped.
    pub(super) fn outcome_unless_skipped(&self, excuse: &str) -> Result<Outcome> {
        let Some(program) = find() else {
            return Ok(Outcome::skipped(&NEXTEST.remedy()));
        };
        let (outcome, tests) = self.run(&program)?;
        match tests.skipped.iter().find(|(_, reason)| !reason.starts_with(excuse)) {
            Some((test, reason)) => bail!("{test} was skipped: {reason}"),
            None => Ok(outcome),
        }
    }

    fn run(&self, program: &Path) -> Result<(Outcome, Tests)> {
        let report = build::root().join(REPORT);
        // A run that does not come to an end writes none.
        remove(&report)?;
        let mut nextest = build::at_root(program);
        nextest.args(["nextest", "run", "--profile", PROFILE]);
        if let Some(elsewhere) = &self.elsewhere {
            elsewhere.configure(&mut nextest)?;
        }
        nextest.args(self.arguments).envs(self.environment());
        let status = nextest.status().context("cannot run cargo-nextest")?;
        let tests = match fs::read_to_string(&report) {
            Ok(xml) => Tests::read(&xml)?,
            Err(error) if error.kind() == ErrorKind::NotFound => Tests::default(),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", report.display()));
            }
        };
        for (test, reason) in &tests.skipped {
            println!("skipped {test}: {reason}");
        }
        Ok((judge(status, &tests), tests))
    }

    fn run_without(&self) -> Result<Outcome> {
        let reason = format!("by cargo test, as one; to count them: {}", NEXTEST.remedy());
        println!("{reason}");
        // `--tests`: those of the documentation are a check of their own.
        let mut cargo = build::cargo();
        cargo.args(["test", "--tests", "--no-fail-fast"]);
        cargo.args(self.arguments).envs(self.environment());
        Ok(Outcome { reason: Some(reason), ..passes(&mut cargo)? })
    }

    fn environment(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.variables.iter().map(|(name, value)| (*name, value.as_path()))
    }
}

impl Elsewhere {
    /// Makes nextest compile the tests for that machine, and run them there.
    fn configure(&self, nextest: &mut Command) -> Result<()> {
        let target = Target::Linux(self.arch);
        Toolchain::find(target)?.configure(nextest, &[]);
        // A list of strings is the same in JSON and TOML.
        let runner = serde_json::to_string(&self.runner)?;
        nextest.args(["--config", &format!("target.{}.runner={runner}", target.triple())]);
        nextest.args(["--cargo-profile", build::CROSS_PROFILE]);
        Ok(())
    }
}

/// Finds or installs cargo-nextest.
fn find() -> Option<PathBuf> {
    NEXTEST.program().unwrap_or_else(|error| {
        eprintln!("cargo-nextest cannot be installed: {error:#}");
        None
    })
}

/// What came of a run with this status and report. Only both together say that it passed.
fn judge(status: ExitStatus, tests: &Tests) -> Outcome {
    let mut outcome = tests.outcome();
    if !status.success() && outcome.failed == 0 {
        // It did not compile, was interrupted, or found no test: no test says so.
        outcome.failed = 1;
        outcome.reason = Some(format!("cargo nextest failed ({status})"));
    } else if status.success() && outcome.passed + outcome.skipped == 0 {
        outcome.failed = 1;
        outcome.reason = Some("cargo nextest reported no test".to_owned());
    }
    outcome
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn judged(code: i32, xml: &str) -> (u64, u64) {
        let outcome = judge(ExitStatus::from_raw(code << 8), &Tests::read(xml).unwrap());
        (outcome.passed, outcome.failed)
    }

    #[test]
    fn a_run_passes_if_status_and_report_say_so() {
        let good = "<testsuites><testsuite name='a'><testcase name='b'/></testsuite></testsuites>";
        let bad = good.replace("/></", "><failure type='test failure'/></testcase></");
        assert_eq!(judged(0, good), (1, 0));
        assert_eq!(judged(100, &bad), (0, 1));
        assert_eq!(judged(101, good), (1, 1), "a program died after its tests");
        assert_eq!(judged(0, &bad), (0, 1));
        assert_eq!(judged(101, "<testsuites/>"), (0, 1), "it did not compile");
        assert_eq!(judged(0, "<testsuites/>"), (0, 1), "no test ran");
    }

    #[test]
    fn the_configuration_has_the_profile_and_names_the_oldest_release() {
        let text = fs::read_to_string(build::root().join(".config/nextest.toml")).unwrap();
        let [major, minor, patch] = NEXTEST.oldest;
        for line in [
            format!("nextest-version = \"{major}.{minor}.{patch}\""),
            format!("[profile.{PROFILE}.junit]"),
        ] {
            assert!(text.lines().any(|it| it == line), "{line}");
        }
    }
}
