use super::*;

#[test]
fn keys_generate_signals_by_the_modes_of_the_terminal() {
    let master = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR).unwrap();
    let mut modes = tcgetattr(&master).unwrap();
    let signal = |modes: &Termios, typed: &[u8]| signal_by(modes, typed);
    assert_eq!(signal(&modes, b"a\x03"), Some(libc::SIGINT));
    assert_eq!(signal(&modes, b"\x1c\x03"), Some(libc::SIGQUIT));
    assert_eq!(signal(&modes, b"abc\0\x1a\n"), None);
    assert_eq!(signal(&modes, b"\x16\x03"), None, "a literal Ctrl-C");
    assert_eq!(signal(&modes, b"\x16\x16\x03"), Some(libc::SIGINT));
    modes.special_codes[SpecialCodeIndex::VINTR] = b'x';
    modes.special_codes[SpecialCodeIndex::VQUIT] = 0;
    assert_eq!(signal(&modes, b"\x03\x1c\0"), None);
    assert_eq!(signal(&modes, b"x"), Some(libc::SIGINT));
    modes.local_modes -= LocalModes::ISIG;
    assert_eq!(signal(&modes, b"x"), None);
}
