//! The report of a test run in JUnit's format, as cargo-nextest writes it: one `testcase` for each
//! test, with what came of its tries and what it printed.

use anyhow::{Context, Result};
use roxmltree::{Document, Node};

use crate::check::report::Outcome;

/// What a test prints before the reason for which it tests nothing on this machine.
pub(super) const SKIPPED: &str = "SKIPPED: ";

/// What came of the tests of a run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tests {
    pub(super) passed: u64,
    pub(super) failed: u64,
    /// The tests that lacked something, and what that was.
    pub(super) skipped: Vec<(String, String)>,
    /// Those among the passed that failed at first.
    pub(super) flaky: Vec<String>,
}

impl Tests {
    /// Reads a report.
    ///
    /// # Errors
    /// It is not a report in XML.
    pub(super) fn read(xml: &str) -> Result<Self> {
        let document = Document::parse(xml).context("the report of the tests is not XML")?;
        let mut tests = Self::default();
        for case in document.descendants().filter(|node| node.has_tag_name("testcase")) {
            tests.count(case);
        }
        Ok(tests)
    }

    fn count(&mut self, case: Node<'_, '_>) {
        let name = || {
            let part = |name| case.attribute(name).unwrap_or("?");
            format!("{} {}", part("classname"), part("name"))
        };
        let has = |tags: [&str; 2]| case.children().any(|it| tags.contains(&it.tag_name().name()));
        if has(["failure", "error"]) {
            self.failed += 1;
        } else if let Some(reason) = skipped(case) {
            self.skipped.push((name(), reason));
        } else {
            self.passed += 1;
            if has(["flakyFailure", "flakyError"]) {
                self.flaky.push(name());
            }
        }
    }

    /// The count, which names the flaky tests.
    pub(super) fn outcome(&self) -> Outcome {
        let count = self.flaky.len();
        let flaky = format!("{count} flaky, failed at first: {}", self.flaky.join(", "));
        Outcome {
            passed: self.passed,
            failed: self.failed,
            skipped: self.skipped.len() as u64,
            reason: (count > 0).then_some(flaky),
        }
    }
}

/// Why a test that passed tested nothing, if it says so.
fn skipped(case: Node<'_, '_>) -> Option<String> {
    let output = case
        .children()
        .filter(|node| node.has_tag_name("system-out") || node.has_tag_name("system-err"));
    output.filter_map(|node| node.text()).flat_map(str::lines).find_map(|line| {
        let (before, reason) = line.split_once(SKIPPED)?;
        // With one thread, libtest has begun the line: `test NAME ... `.
        (before.is_empty() || before.ends_with("... ")).then(|| reason.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="6" failures="1" errors="0" time="0.023">
  <testsuite name="net::tap" tests="5" disabled="0" errors="0" failures="1">
    <testcase name="good" classname="net::tap" time="0.004">
      <system-out>
running 1 test
test good ... ok
</system-out>
      <system-err>it says nothing of SKIPPED: only at the start of a line that counts</system-err>
    </testcase>
    <testcase name="wrong" classname="net::tap">
      <failure type="test failure">SKIPPED: it failed all the same</failure>
      <rerunFailure type="test failure"><system-out>left: 1</system-out></rerunFailure>
      <system-out>SKIPPED: no</system-out>
    </testcase>
    <testcase name="lost" classname="net::tap">
      <flakyFailure type="test failure">it lost &lt;its&gt; kernel
        <system-out>SKIPPED: at the first try</system-out>
      </flakyFailure>
    </testcase>
    <testcase name="poor" classname="net::tap">
      <system-out>
running 1 test
test poor ... SKIPPED: needs root, for &lt;namespaces&gt;
ok
</system-out>
    </testcase>
    <testcase name="poorer" classname="net::tap">
      <system-out></system-out>
      <system-err>a warning
SKIPPED: openssl is not installed
</system-err>
    </testcase>
  </testsuite>
  <testsuite name="@setup" tests="1">
    <testcase name="broken" classname="@setup"><error type="execution failure"/></testcase>
  </testsuite>
</testsuites>"#;

    #[test]
    fn each_test_counts_once() {
        let tests = Tests::read(REPORT).unwrap();
        let pair = |name: &str, reason: &str| (name.to_owned(), reason.to_owned());
        let expected = Tests {
            passed: 2,
            failed: 2,
            skipped: vec![
                pair("net::tap poor", "needs root, for <namespaces>"),
                pair("net::tap poorer", "openssl is not installed"),
            ],
            flaky: vec!["net::tap lost".to_owned()],
        };
        assert_eq!(tests, expected);
        let outcome = tests.outcome();
        assert_eq!((outcome.passed, outcome.failed, outcome.skipped), (2, 2, 2));
        assert_eq!(outcome.reason.as_deref(), Some("1 flaky, failed at first: net::tap lost"));
    }

    #[test]
    fn half_a_report_is_an_error() {
        assert!(Tests::read(&REPORT[..REPORT.len() / 2]).is_err());
        assert!(Tests::read("").is_err());
    }

    #[test]
    fn a_run_without_tests_has_an_empty_report() {
        assert_eq!(Tests::read("<testsuites tests=\"0\"/>").unwrap(), Tests::default());
    }
}
