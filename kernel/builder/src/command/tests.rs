//! Tests of output and failures of other programs.

use super::*;

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

#[test]
fn a_failure_shows_the_end_of_both_streams() {
    let mut seen = 0;
    let error = lines(&mut shell("seq 1 500; echo broken >&2; exit 3"), |_| seen += 1).unwrap_err();
    assert_eq!(seen, 501);
    let text = error.to_string();
    assert!(text.starts_with("sh failed (exit status: 3)"), "{text}");
    assert!(text.ends_with("499\n500\nbroken"), "{text}");
    assert!(!text.contains("\n480\n"), "{text}");
}

#[test]
fn output_is_returned_and_absence_is_an_error() {
    assert_eq!(output(&mut shell("printf hello")).unwrap(), b"hello");
    let error = output(&mut Command::new("/nowhere/boxlite-no-such-program")).unwrap_err();
    assert!(error.to_string().contains("boxlite-no-such-program"), "{error}");
}

#[test]
fn an_endless_line_is_cut() {
    let mut longest = 0;
    lines(&mut shell("head -c 100000 /dev/zero | tr '\\0' x"), |line| {
        longest = longest.max(line.len());
    })
    .unwrap();
    assert_eq!(longest as u64, LINE_LIMIT);
}
