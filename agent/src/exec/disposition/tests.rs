use super::*;

const STATUS: &str = "Name:\tx\nSigQ:\t0/1\nShdPnd:\t0000000000000000\n\
    SigBlk:\t0000000000010000\nSigIgn:\t0000000000001000\nSigCgt:\t0000000000004002\n";

#[test]
fn a_mask_has_a_bit_for_each_signal() {
    let of = |signal| disposition_in(STATUS, signal);
    assert_eq!((of(2), of(15)), (Disposition::Own, Disposition::Own), "caught");
    assert_eq!(of(13), Disposition::Own, "ignored");
    assert_eq!(of(17), Disposition::Own, "blocked");
    assert_eq!([1, 3, 64].map(of), [Disposition::Default; 3]);
    let unreadable = "SigBlk:\t0\nSigIgn:\tx\nSigCgt:\t0\n";
    assert_eq!(["", unreadable].map(|text| disposition_in(text, 1)), [Disposition::Own; 2]);
    let realtime = STATUS.replace("SigCgt:\t0", "SigCgt:\t8");
    assert_eq!(disposition_in(&realtime, 64), Disposition::Own);
    assert_eq!(disposition_in(&realtime, 63), Disposition::Default);
}

#[test]
fn a_library_that_blocks_all_signals_is_told_from_a_program() {
    let of = |blocked, signal| disposition_in(&STATUS.replace("0000000000010000", blocked), signal);
    // In a fork of glibc or musl: all but SIGKILL and SIGSTOP.
    assert_eq!(of("fffffffffffbfeff", 15), Disposition::Own, "caught all the same");
    assert_eq!(of("fffffffffffbfeff", 1), Disposition::Held);
    // After `sigfillset` and `sigprocmask` of a program, for a signalfd.
    assert_eq!(of("fffffffe7ffbfeff", 1), Disposition::Own);
    assert_eq!(of("fffffffc7ffbfeff", 1), Disposition::Own);
}

#[test]
fn a_moment_in_which_all_signals_are_blocked_is_waited_for() {
    use Disposition::{Default, Held, Own};
    let settles = |checks: &[Disposition]| {
        let mut checks = checks.iter().copied();
        let settled = is_default(|| checks.next().unwrap(), Duration::from_secs(3600));
        (settled, checks.len())
    };
    assert_eq!(settles(&[Default, Default]), (true, 0));
    assert_eq!(settles(&[Held, Held, Held, Default, Default]), (true, 0));
    assert_eq!(settles(&[Default, Held, Default, Default]), (true, 0));
    assert_eq!(settles(&[Own, Default]), (false, 1));
    assert_eq!(settles(&[Default, Own, Default]), (false, 1));
    assert_eq!(settles(&[Held, Own, Default]), (false, 1));
    assert!(!is_default(|| Held, Duration::ZERO), "not for ever");
}

/// A process of the first kind: the mask of the calls that the C library makes is kept over `exec`.
#[test]
fn the_disposition_of_a_process_is_read() {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new("sleep");
    // SAFETY: the call is async-signal-safe, and its pointer is to eight bytes.
    unsafe {
        command.arg("1000").pre_exec(|| {
            let all = u64::MAX;
            let (set, none) = (&raw const all, std::ptr::null_mut::<u64>());
            match libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, set, none, 8) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let mut child = command.spawn().unwrap();
    let pid = Pid::from_child(&child);
    assert_eq!(disposition(pid, libc::SIGTERM), Disposition::Held);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn only_some_signals_end_a_process_by_default() {
    for signal in [1, 2, 3, 10, 12, 14, 15, 34, 64] {
        assert!(ends_by_default(signal), "{signal}");
    }
    for signal in [0, 9, 17, 18, 19, 20, 21, 22, 23, 28, 65, -1, i32::MIN] {
        assert!(!ends_by_default(signal), "{signal}");
    }
}

#[test]
fn a_process_that_waits_for_signals_is_known_by_its_system_call() {
    let call = |number: i64| format!("{number} 0x7ffd 0x0 0x0 0x8 0x0 0x0 0x7ffc 0x7f\n");
    assert!(waits_for_signals(&call(libc::SYS_rt_sigtimedwait)));
    assert!(waits_for_signals(&call(421)));
    assert!(!waits_for_signals(&call(libc::SYS_ppoll)));
    assert!(!waits_for_signals("running\n") && !waits_for_signals(""));
}
