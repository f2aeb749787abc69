use super::*;

#[test]
fn the_end_of_a_first_process_is_interpreted() {
    let mut namespace = Namespace::of(rustix::process::getpid(), false).unwrap();
    let signal = ExitStatus::Signal;
    assert_eq!(namespace.end(ExitStatus::Code(3)), NamespaceEnd::Process(ExitStatus::Code(3)));
    assert_eq!(namespace.end(signal(libc::SIGKILL)), NamespaceEnd::Process(signal(libc::SIGKILL)));
    assert_eq!(namespace.end(signal(libc::SIGSEGV)), NamespaceEnd::Process(signal(libc::SIGSEGV)));
    assert_eq!(namespace.end(signal(libc::SIGINT)), NamespaceEnd::Reboot);
    assert_eq!(namespace.end(signal(libc::SIGHUP)), NamespaceEnd::Reboot);
    namespace.killed_for = Some(libc::SIGINT);
    assert_eq!(namespace.end(signal(libc::SIGKILL)), NamespaceEnd::Process(signal(libc::SIGINT)));
    // The process exited by itself meanwhile.
    assert_eq!(namespace.end(ExitStatus::Code(0)), NamespaceEnd::Process(ExitStatus::Code(0)));
}
