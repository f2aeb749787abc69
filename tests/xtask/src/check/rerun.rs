//! Tests that are run a second time: those that failed because the software host died under them.
//!
//! The software host is a kernel in an emulator of CPUs with virtualization, and that emulator has
//! faults that no change here mends. A test that lost its machine says nothing about what it tests.
//! It is run again, once, and the report says so; a test that failed for any other reason is not.

use std::collections::BTreeSet;

use crate::check::report::Outcome;

/// What the launcher says when the software host died.
const DEATH: &str = "boxlite-vmm: the software host failed: ";

/// Reads what test programs print, and finds the tests that lost the software host.
#[derive(Debug, Default)]
pub(super) struct Deaths {
    /// The failed test whose output is being printed.
    test: Option<String>,
    tests: BTreeSet<String>,
}

impl Deaths {
    /// Reads the next line. Only failed tests have their output printed, each under a heading.
    pub(super) fn read(&mut self, line: &str) {
        if let Some(test) = heading(line) {
            self.test = Some(test.to_owned());
        } else if line.contains(DEATH)
            && let Some(test) = &self.test
        {
            self.tests.insert(test.clone());
        }
    }

    /// The tests to run again.
    pub(super) fn tests(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tests.iter().map(String::as_str)
    }

    /// What came of all tests, when `first` came of the first run and `again` of running
    /// [`tests`](Self::tests) again.
    pub(super) fn outcome(&self, first: Outcome, again: &Outcome) -> Outcome {
        let count = self.tests.len() as u64;
        let passed = again.passed.min(count);
        let tests = if count == 1 { "test was" } else { "tests were" };
        Outcome {
            passed: first.passed + passed,
            // One that did not run is as good as one that failed.
            failed: first.failed.saturating_sub(count) + (count - passed).max(again.failed),
            skipped: first.skipped,
            reason: Some(format!(
                "{count} {tests} run again: the emulator's kernel crashed; {passed} passed then"
            )),
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

    fn read(transcript: &str) -> Deaths {
        let mut deaths = Deaths::default();
        transcript.lines().for_each(|line| deaths.read(line));
        deaths
    }

    fn outcome(passed: u64, failed: u64) -> Outcome {
        Outcome { passed, failed, ..Outcome::default() }
    }

    #[test]
    fn only_tests_that_lost_the_software_host_are_run_again() {
        let deaths = read(
            "\
running 4 tests
test a::good ... ok
test a::lost ... FAILED
test a::wrong ... FAILED
test b::lost ... FAILED

failures:

---- a::lost stdout ----
thread 'a::lost' panicked at tests/e2e/a.rs:1:1:
boxlite-vmm run oci:busybox true
ended with code Some(125), signal None, not with code 0, after 3.1s
stderr: boxlite-vmm: the software host failed: its kernel crashed
the end of its console:
[  292.485468] Kernel panic - not syncing: Fatal exception in interrupt

---- a::wrong stdout ----
thread 'a::wrong' panicked at tests/e2e/a.rs:2:2:
left: 1, right: 2; not that the software host failed: it lives

---- b::lost stdout ----
boxlite-vmm: the software host failed: qemu-system-x86_64 was ended by signal 6


failures:
    a::lost
    a::wrong
    b::lost

test result: FAILED. 1 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3.33s
",
        );
        assert_eq!(deaths.tests().collect::<Vec<_>>(), ["a::lost", "b::lost"]);
    }

    #[test]
    fn nothing_is_run_again_for_words_outside_a_failed_test() {
        let words =
            format!("{DEATH}it says\ntest a ... FAILED\n---- two words stdout ----\n{DEATH}");
        assert_eq!(read(&words).tests().len(), 0);
    }

    #[test]
    fn a_second_failure_counts_and_the_report_is_open_about_the_first() {
        let deaths = read(&format!("---- a stdout ----\n{DEATH}x\n---- b stdout ----\n{DEATH}x"));
        let all_pass = deaths.outcome(outcome(60, 2), &outcome(2, 0));
        assert_eq!((all_pass.passed, all_pass.failed), (62, 0));
        assert!(all_pass.reason.unwrap().starts_with("2 tests were run again"));
        let one_fails = deaths.outcome(outcome(60, 3), &outcome(1, 1));
        assert_eq!((one_fails.passed, one_fails.failed), (61, 2));
        // They did not even compile, or were not found.
        let none_ran = deaths.outcome(outcome(60, 2), &outcome(0, 0));
        assert_eq!((none_ran.passed, none_ran.failed), (60, 2));
    }
}
