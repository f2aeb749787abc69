use super::*;

const STATUS: &str = "Name:\tx\nSigQ:\t0/1\nShdPnd:\t0000000000000000\n\
    SigBlk:\t0000000000010000\nSigIgn:\t0000000000001000\nSigCgt:\t0000000000004002\n";

#[test]
fn a_mask_has_a_bit_for_each_signal() {
    let default = |signal| is_default_in(STATUS, signal);
    assert!(!default(2) && !default(15), "caught");
    assert!(!default(13), "ignored");
    assert!(!default(17), "blocked");
    assert!(default(1) && default(3) && default(64));
    assert!(!is_default_in("", 1) && !is_default_in("SigBlk:\t0\nSigIgn:\tx\n", 1));
    let realtime = STATUS.replace("SigCgt:\t0", "SigCgt:\t8");
    assert!(!is_default_in(&realtime, 64) && is_default_in(&realtime, 63));
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
