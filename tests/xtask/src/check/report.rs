//! What came of each check, and the count that ends the run.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::ui::seconds;

/// How many tests passed, failed and were left out in one check; a check without tests of its own
/// counts as one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) skipped: u64,
    /// Why it was left out, or how it failed.
    pub(super) reason: Option<String>,
}

impl Outcome {
    /// One check that passed.
    pub(super) fn passed() -> Self {
        Self { passed: 1, ..Self::default() }
    }

    /// One check that was left out.
    pub(super) fn skipped(reason: &str) -> Self {
        Self { skipped: 1, reason: Some(reason.to_owned()), ..Self::default() }
    }

    /// Counts another outcome, and keeps its reason if this one has none.
    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.reason = self.reason.take().or(other.reason);
    }

    fn failed(reason: String) -> Self {
        Self { failed: 1, reason: Some(reason), ..Self::default() }
    }
}

/// The checks so far.
#[derive(Default)]
pub(super) struct Report {
    only: Vec<String>,
    checks: Vec<(String, Duration, Outcome)>,
}

impl Report {
    /// A report of the checks with these names, or of all if there are none.
    pub(super) fn of(only: &[String]) -> Self {
        Self { only: only.to_owned(), ..Self::default() }
    }

    /// Runs a check, unless others were asked for, and keeps what came of it.
    pub(super) fn run(&mut self, name: &str, check: impl FnOnce() -> Result<Outcome>) {
        if !self.only.is_empty() && !self.only.iter().any(|wanted| wanted == name) {
            return;
        }
        println!("--- {name}");
        let started = Instant::now();
        let outcome = check().unwrap_or_else(|error| {
            eprintln!("{error:#}");
            Outcome::failed(format!("{error:#}").lines().next().unwrap_or_default().to_owned())
        });
        let time = started.elapsed();
        println!("--- {}\n", Self::line(name, time, &outcome));
        self.checks.push((name.to_owned(), time, outcome));
    }

    /// Prints the summary; its last line is the count. A name in `of` that no check has is an
    /// error.
    pub(super) fn finish(self) -> Result<ExitCode> {
        let ran = |wanted: &String| self.checks.iter().any(|(name, ..)| name == wanted);
        if let Some(unknown) = self.only.iter().find(|wanted| !ran(wanted)) {
            bail!("no check is called {unknown:?}; the summary of all checks has their names");
        }
        let mut total = Outcome::default();
        println!("Summary");
        for (name, time, outcome) in self.checks {
            println!("  {}", Self::line(&name, time, &outcome));
            total.add(outcome);
        }
        println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
        Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn line(name: &str, time: Duration, outcome: &Outcome) -> String {
        let mark = match outcome {
            Outcome { failed: 1.., .. } => "✗",
            Outcome { passed: 0, .. } => "-",
            _ => "✓",
        };
        let mut line = format!("{mark} {name:<19} {:>12}", seconds(time));
        if outcome.passed + outcome.failed + outcome.skipped > 1 {
            line += &format!(
                "  {} passed, {} failed, {} skipped",
                outcome.passed, outcome.failed, outcome.skipped
            );
        }
        if let Some(reason) = &outcome.reason {
            line += &format!("  ({reason})");
        }
        line
    }
}

/// Runs a program that either passes or fails, its output shown as it comes.
pub(super) fn passes(command: &mut Command) -> Result<Outcome> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if status.success() { Ok(Outcome::passed()) } else { bail!("failed ({status})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn only_what_was_asked_for_is_run() {
        let mut report = Report::of(&["b".to_owned()]);
        report.run("a", || bail!("not asked for"));
        report.run("b", || Ok(Outcome::passed()));
        assert_eq!(report.checks.len(), 1);
        assert!(report.finish().is_ok());
        assert!(Report::of(&["c".to_owned()]).finish().unwrap_err().to_string().contains("\"c\""));
    }

    #[test]
    fn one_failure_fails_the_run_and_keeps_none_from_running() {
        let mut report = Report::default();
        report.run("a", || bail!("broken"));
        report.run("b", || passes(&mut shell("true")));
        report.run("c", || passes(&mut shell("exit 1")));
        assert_eq!(report.checks.iter().map(|(_, _, o)| o.failed).collect::<Vec<_>>(), [1, 0, 1]);
        assert_eq!(format!("{:?}", report.finish().unwrap()), format!("{:?}", ExitCode::FAILURE));
    }
}
