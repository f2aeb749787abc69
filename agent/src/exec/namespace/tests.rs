use super::*;

#[test]
fn the_end_of_a_first_process_is_interpreted() {
    let mut namespace = Namespace::of(rustix::process::getpid(), false).unwrap();
    let signal = ExitStatus::Signal;
    assert_eq!(namespace.end(ExitStatus::Code(3)), End::Process(ExitStatus::Code(3)));
    assert_eq!(namespace.end(signal(libc::SIGKILL)), End::Process(signal(libc::SIGKILL)));
    assert_eq!(namespace.end(signal(libc::SIGSEGV)), End::Process(signal(libc::SIGSEGV)));
    assert_eq!(namespace.end(signal(libc::SIGINT)), End::Reboot);
    assert_eq!(namespace.end(signal(libc::SIGHUP)), End::Reboot);
    namespace.killed_for = Some(libc::SIGINT);
    assert_eq!(namespace.end(signal(libc::SIGKILL)), End::Process(signal(libc::SIGINT)));
    // The process exited by itself meanwhile.
    assert_eq!(namespace.end(ExitStatus::Code(0)), End::Process(ExitStatus::Code(0)));
}
