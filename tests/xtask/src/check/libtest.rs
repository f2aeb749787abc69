//! What libtest prints with `--show-output`: a line for each test, and what each printed.

use std::process::ExitStatus;

use crate::check::junit::SKIPPED;
use crate::check::report::Outcome;

/// What came of a test program with this status and output, and why tests were skipped. Only status and
/// output together say that it passed.
pub(super) fn judge(status: ExitStatus, output: &str) -> (Outcome, Vec<String>) {
    let mut outcome = Outcome::default();
    let mut reasons = Vec::new();
    // Whether a line of the current test's output has been counted.
    let mut counted = false;
    for line in output.lines() {
        counted &= !(line.starts_with("---- ") && line.ends_with(" ----"));
        let result = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "));
        match result.map(|(_, result)| result.split([',', ' ']).next().unwrap_or_default()) {
            Some("ok") => outcome.passed += 1,
            Some("FAILED") => outcome.failed += 1,
            Some("ignored") => outcome.skipped += 1,
            _ => {}
        }
        if let Some(reason) = line.strip_prefix(SKIPPED).filter(|_| !counted) {
            counted = true;
            outcome.passed = outcome.passed.saturating_sub(1);
            outcome.skipped += 1;
            reasons.push(reason.to_owned());
        }
    }
    if !status.success() && outcome.failed == 0 {
        outcome.failed = 1;
        outcome.reason = Some(format!("a test program failed ({status})"));
    }
    (outcome, reasons)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn judged(code: i32, output: &str) -> (u64, u64, u64) {
        let (outcome, _) = judge(ExitStatus::from_raw(code << 8), output);
        (outcome.passed, outcome.failed, outcome.skipped)
    }

    #[test]
    fn tests_are_counted_by_what_they_print() {
        let output = "running 4 tests\ntest a ... ok\ntest b::c ... FAILED\n\
                      test d ... ignored, too slow\ntest e ... ok\n\nsuccesses:\n\n\
                      ---- e stdout ----\nSKIPPED: one\nSKIPPED: two\n\ntest result: FAILED.\n";
        assert_eq!(judged(101, output), (1, 1, 2));
        assert_eq!(judge(ExitStatus::from_raw(0), output).1, ["one"]);
    }

    #[test]
    fn a_program_that_dies_has_failed() {
        assert_eq!(judged(0, "test a ... ok\n"), (1, 0, 0));
        assert_eq!(judged(101, "test a ... ok\ntest b ... "), (1, 1, 0));
        assert_eq!(judged(127, ""), (0, 1, 0));
        assert_eq!(judged(0, "running 0 tests\n"), (0, 0, 0));
    }
}
