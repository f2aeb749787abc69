//! `-t`: a terminal in the box, and the state of the user's own terminal.

use boxlite_tests::{BUSYBOX, Launcher, Sandbox, Terminal};

#[test]
fn the_command_has_a_terminal_of_our_terminals_size() {
    let Some(launcher) = Launcher::find() else { return };
    let busybox = launcher.image(BUSYBOX);
    let script = "tty; stty size; echo TERM=$TERM; tty <&1; tty <&2; echo done; exit 5";
    let args = ["run", "-it", &busybox, "sh", "-c", script];
    let (code, screen) = Terminal::run(&launcher, 33, 111, &args).finish();
    assert_eq!(code, Some(5), "{screen}");
    assert_eq!(screen.matches("/dev/pts/").count(), 3, "{screen}");
    assert!(screen.contains("\r\n33 111\r\nTERM=xterm\r\n"), "{screen:?}");
}

#[test]
fn a_given_term_variable_is_kept() {
    let Some(launcher) = Launcher::find() else { return };
    let sandbox = Sandbox::idle(&launcher, "term", &[]);
    let show = ["sh", "-c", "echo TERM=$TERM."];
    let args = [&["exec", "-t", "-e", "TERM=vt100", sandbox.name()], &show[..]].concat();
    let (code, screen) = Terminal::run(&launcher, 24, 80, &args).finish();
    assert_eq!(code, Some(0), "{screen}");
    assert!(screen.contains("TERM=vt100."), "{screen:?}");
}

#[test]
fn the_terminal_edits_lines_and_follows_our_size() {
    let Some(launcher) = Launcher::find() else { return };
    let busybox = launcher.image(BUSYBOX);
    let script = "trap 'echo size $(stty size).' WINCH; echo ready; \
                  read line; echo \"<$line>\"; while :; do sleep 0.2; done";
    let mut terminal =
        Terminal::run(&launcher, 24, 80, &["run", "-it", &busybox, "sh", "-c", script]);
    let before = terminal.modes();
    terminal.wait_for("ready\r\n");
    assert_ne!(terminal.modes(), before, "our terminal is not raw while the command runs");
    // The box's terminal edits lines: DEL erases a character, and input is echoed.
    terminal.type_keys("abx\x7fc\r");
    terminal.wait_for("<abc>\r\n");
    terminal.resize(50, 132);
    terminal.wait_for("size 50 132.\r\n");
    // Ctrl-C.
    terminal.type_keys("\x03");
    assert_eq!(terminal.wait(), Some(128 + 2), "{}", terminal.screen());
    assert_eq!(terminal.modes(), before, "our terminal's modes are not restored");
}

#[test]
fn control_keys_signal_the_foreground_job() {
    let Some(launcher) = Launcher::find() else { return };
    let busybox = launcher.image(BUSYBOX);
    let mut terminal = Terminal::run(
        &launcher,
        24,
        80,
        &["run", "-it", "-e", "PS1=prompt> ", &busybox, "sh", "-i"],
    );
    terminal.wait_for("prompt> ");
    // The shell first has to make it the foreground job; the text differs from its echo.
    terminal.type_keys("sh -c 'echo be''gun; exec sleep 1000'\r");
    terminal.wait_for("begun\r\n");
    terminal.type_keys("\x03");
    terminal.wait_for("prompt> ");
    terminal.type_keys("echo code $?\r");
    terminal.wait_for("code 130\r\n");
    // Ctrl-D: the end of the shell's input.
    terminal.type_keys("\x04");
    assert_eq!(terminal.wait(), Some(0), "{}", terminal.screen());
}

#[test]
fn an_editor_works() {
    let Some(launcher) = Launcher::find() else { return };
    let busybox = launcher.image(BUSYBOX);
    let script = "echo one > /tmp/f; vi /tmp/f; echo; cat /tmp/f; echo end";
    let mut terminal =
        Terminal::run(&launcher, 24, 80, &["run", "-it", &busybox, "sh", "-c", script]);
    terminal.wait_for("one");
    terminal.type_keys("otwo\x1b");
    // The escape key has ended the insertion, and is not the beginning of another key's code.
    terminal.wait_for("- /tmp/f [Modified]");
    terminal.type_keys(":wq\r");
    let (code, screen) = terminal.finish();
    assert_eq!(code, Some(0), "{screen}");
    assert!(screen.ends_with("one\r\ntwo\r\nend\r\n"), "{screen:?}");
}

#[test]
fn our_terminal_is_restored_after_an_error() {
    let Some(launcher) = Launcher::find() else { return };
    let busybox = launcher.image(BUSYBOX);
    let mut terminal =
        Terminal::run(&launcher, 24, 80, &["run", "-it", &busybox, "no-such-program"]);
    let before = terminal.modes();
    assert_eq!(terminal.wait(), Some(127), "{}", terminal.screen());
    assert_eq!(terminal.modes(), before);
}
