//! Tests that are run a second time: those that failed, alone and one after the other.
//!
//! The tests have real kernels, servers and networks as their peers, on machines that are busy with
//! other things, and some in an emulator that has faults of its own. What fails once and passes at
//! its second try is reported as flaky, by name, so that it is seen and mended; what fails twice
//! fails the run.

use std::collections::BTreeSet;

use crate::check::report::Outcome;

/// More than so many failures are not by chance: nothing is run again.
const MANY: usize = 8;

/// Reads what test programs print, and keeps the names of the tests that failed and that passed.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    failed: BTreeSet<String>,
    passed: BTreeSet<String>,
}

impl Transcript {
    /// Reads the next line.
    pub(super) fn read(&mut self, line: &str) {
        if let Some(test) = heading(line) {
            self.failed.insert(test.to_owned());
        } else if let Some(test) =
            line.strip_prefix("test ").and_then(|l| l.strip_suffix(" ... ok"))
        {
            self.passed.insert(test.to_owned());
        }
    }

    /// The tests to run again after a run with this `outcome`.
    pub(super) fn suspects(&self, outcome: &Outcome) -> Vec<&str> {
        // A test program that died, or did not compile, names no test.
        let all_named = outcome.failed == self.failed.len() as u64;
        let suspects = all_named && self.failed.len() <= MANY;
        self.failed.iter().map(String::as_str).filter(|_| suspects).collect()
    }

    /// What came of all tests, when `first` came of this run, and those that failed were run
    /// `again`.
    pub(super) fn outcome(&self, first: Outcome, again: &Self) -> Outcome {
        let passed = |test: &&String| again.passed.contains(*test) && !again.failed.contains(*test);
        let flaky: Vec<&str> = self.failed.iter().filter(passed).map(String::as_str).collect();
        if flaky.is_empty() {
            return first;
        }
        let count = flaky.len() as u64;
        Outcome {
            passed: first.passed + count,
            failed: first.failed.saturating_sub(count),
            skipped: first.skipped,
            reason: Some(format!("{count} flaky, passed at the second try: {}", flaky.join(", "))),
        }
    }
}

/// The test in the heading that is printed above the output of one that failed.
fn heading(line: &str) -> Option<&str> {
    let test = line.strip_prefix("---- ")?.strip_suffix(" stdout ----")?;
    (!test.is_empty() && !test.contains(' ')).then_some(test)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(transcript: &str) -> Transcript {
        let mut all = Transcript::default();
        transcript.lines().for_each(|line| all.read(line));
        all
    }

    fn outcome(passed: u64, failed: u64) -> Outcome {
        Outcome { passed, failed, ..Outcome::default() }
    }

    const FIRST: &str = "\
running 3 tests
test a::good ... ok
test a::lost ... FAILED
test b::wrong ... FAILED

failures:

---- a::lost stdout ----
thread 'a::lost' panicked at tests/e2e/a.rs:1:1:
boxlite-vmm run oci:busybox true
---- two words stdout ----

---- b::wrong stdout ----
left: 1, right: 2


failures:
    a::lost
    b::wrong

test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3.33s
";

    #[test]
    fn what_failed_is_run_again() {
        assert_eq!(read(FIRST).suspects(&outcome(1, 2)), ["a::lost", "b::wrong"]);
    }

    #[test]
    fn what_has_no_name_or_is_too_much_is_not_run_again() {
        assert!(read(FIRST).suspects(&outcome(1, 3)).is_empty(), "a program died");
        let many: String = (0..=MANY).map(|n| format!("---- t{n} stdout ----\n")).collect();
        assert!(read(&many).suspects(&outcome(1, MANY as u64 + 1)).is_empty());
    }

    #[test]
    fn a_second_failure_counts_and_the_report_names_what_was_flaky() {
        let first = read(FIRST);
        let both = first.outcome(outcome(1, 2), &read("test a::lost ... ok\ntest b::wrong ... ok"));
        assert_eq!((both.passed, both.failed), (3, 0));
        assert_eq!(
            both.reason.as_deref(),
            Some("2 flaky, passed at the second try: a::lost, b::wrong")
        );
        let again = "test a::lost ... ok\ntest b::wrong ... FAILED\n---- b::wrong stdout ----";
        let one = first.outcome(outcome(1, 2), &read(again));
        assert_eq!((one.passed, one.failed), (2, 1));
        // They did not even compile, or were not found.
        assert_eq!(first.outcome(outcome(1, 2), &read("")), outcome(1, 2));
    }
}
