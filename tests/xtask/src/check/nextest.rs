//! Tests by cargo-nextest, as `.config/nextest.toml` says: each in a process of its own, with a limit
//! on its time, and counted by the report that nextest writes.
//!
//! Where it is not installed `cargo test` runs them, and they count as one. CI installs it once into
//! the cache; without network, `cargo test` has to do there, too.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context, Result};

use crate::build;
use crate::check::junit::Tests;
use crate::check::report::{Outcome, passes};
use crate::check::tool::{Origin, Tool};

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

/// Runs the tests that `cargo test` would run with these arguments, documentation's excepted, in an
/// environment with these variables.
pub(super) fn run(arguments: &[&str], variables: &[(&str, PathBuf)]) -> Result<Outcome> {
    let program = NEXTEST.program().unwrap_or_else(|error| {
        eprintln!("cargo-nextest cannot be installed: {error:#}");
        None
    });
    let Some(program) = program else {
        return run_without(arguments, variables);
    };
    let report = build::root().join(REPORT);
    // A run that does not come to an end writes none.
    remove(&report)?;
    let status = build::at_root(program)
        .args(["nextest", "run", "--profile", PROFILE])
        .args(arguments)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .status()
        .context("cannot run cargo-nextest")?;
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
    Ok(judge(status, &tests))
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

fn run_without(arguments: &[&str], variables: &[(&str, PathBuf)]) -> Result<Outcome> {
    let reason = format!("by cargo test, as one; to count them: {}", NEXTEST.remedy());
    println!("{reason}");
    // `--tests`: those of the documentation are a check of their own.
    let mut cargo = build::cargo();
    cargo.args(["test", "--tests", "--no-fail-fast"]).args(arguments);
    cargo.envs(variables.iter().map(|(name, value)| (name, value)));
    Ok(Outcome { reason: Some(reason), ..passes(&mut cargo)? })
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
