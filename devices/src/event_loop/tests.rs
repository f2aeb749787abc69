use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use boxlite_hv::Doorbell;

use super::*;

/// Reports every ring of its doorbell.
struct Ringer {
    doorbell: Doorbell,
    rings: Sender<u32>,
    token: u32,
}

impl Handler for Ringer {
    fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
        watch.add(&self.doorbell, self.token, Interest::Read)
    }

    fn ready(&mut self, event: Event, _watch: &mut Watch<'_>) {
        assert!(event.readable && !event.writable);
        assert!(self.doorbell.clear().unwrap());
        self.rings.send(event.token).unwrap();
    }
}

/// A handler whose start fails.
struct Broken(Sender<u32>);

impl Handler for Broken {
    fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
        let file = tempfile::tempfile()?;
        // Regular files cannot be polled.
        watch.add(&file, 0, Interest::Read)
    }

    fn ready(&mut self, _event: Event, _watch: &mut Watch<'_>) {}
}

impl Drop for Broken {
    fn drop(&mut self) {
        let _ = self.0.send(0);
    }
}

/// Generous limit for something that is expected to happen.
const SOON: Duration = Duration::from_secs(10);

#[test]
fn handlers_are_added_and_removed_while_the_loop_runs() {
    let mut event_loop = EventLoop::new().unwrap();
    let (rings, rung) = channel();
    let early = Doorbell::new().unwrap();
    event_loop
        .add(Ringer { doorbell: early.try_clone().unwrap(), rings: rings.clone(), token: 1 })
        .unwrap();
    let handle = event_loop.handle();
    let thread = thread::spawn(move || event_loop.run());

    let late = Doorbell::new().unwrap();
    let registration =
        handle.add(Ringer { doorbell: late.try_clone().unwrap(), rings, token: 2 }).unwrap();
    early.ring().unwrap();
    assert_eq!(rung.recv_timeout(SOON), Ok(1));
    late.ring().unwrap();
    assert_eq!(rung.recv_timeout(SOON), Ok(2));

    let back = registration.remove().unwrap();
    assert_eq!(back.token, 2);
    late.ring().unwrap();
    early.ring().unwrap();
    // The removed handler's doorbell was rung first, and was not served.
    assert_eq!(rung.recv_timeout(SOON), Ok(1));

    // The same handler can be added again, with its doorbell still rung.
    let registration = handle.add(back).unwrap();
    assert_eq!(rung.recv_timeout(SOON), Ok(2));

    handle.stop();
    thread.join().unwrap().unwrap();
    assert_eq!(registration.remove().err().unwrap().kind(), io::ErrorKind::BrokenPipe);
    assert!(rung.recv_timeout(SOON).is_err(), "a stopped loop has dropped its handlers");
}

#[test]
fn a_handler_that_does_not_start_is_dropped() {
    let event_loop = EventLoop::new().unwrap();
    let handle = event_loop.handle();
    let thread = thread::spawn(move || event_loop.run());
    let (dropped, was_dropped) = channel();
    assert!(handle.add(Broken(dropped)).is_err());
    assert_eq!(was_dropped.recv_timeout(SOON), Ok(0));
    handle.stop();
    thread.join().unwrap().unwrap();
    assert!(handle.add(Broken(channel().0)).is_err());
}

/// Adds a handler to its own loop.
struct Reentrant {
    doorbell: Doorbell,
    handle: LoopHandle,
    answers: Sender<io::ErrorKind>,
}

impl Handler for Reentrant {
    fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
        watch.add(&self.doorbell, 0, Interest::Read)
    }

    fn ready(&mut self, _event: Event, watch: &mut Watch<'_>) {
        let answer = self.handle.add(Broken(channel().0)).err().unwrap();
        self.answers.send(answer.kind()).unwrap();
        watch.remove(&self.doorbell).unwrap();
    }
}

#[test]
fn a_loop_that_would_wait_for_itself_is_a_deadlock_error() {
    let mut event_loop = EventLoop::new().unwrap();
    let handle = event_loop.handle();
    let doorbell = Doorbell::new().unwrap();
    doorbell.ring().unwrap();
    let (answers, answered) = channel();
    event_loop.add(Reentrant { doorbell, handle: handle.clone(), answers }).unwrap();
    let thread = thread::spawn(move || event_loop.run());
    assert_eq!(answered.recv_timeout(SOON), Ok(io::ErrorKind::Deadlock));
    handle.stop();
    thread.join().unwrap().unwrap();
}

#[test]
fn a_paused_descriptor_does_not_spin() {
    /// Pauses one end of a socket pair, whose other end is closed.
    struct Paused(std::os::unix::net::UnixStream, Sender<Event>);
    impl Handler for Paused {
        fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
            watch.add(&self.0, 7, Interest::Pause)
        }
        fn ready(&mut self, event: Event, _watch: &mut Watch<'_>) {
            self.1.send(event).unwrap();
        }
    }
    let mut event_loop = EventLoop::new().unwrap();
    let handle = event_loop.handle();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let (events, seen) = channel();
    event_loop.add(Paused(ours, events)).unwrap();
    drop(theirs);
    let thread = thread::spawn(move || event_loop.run());
    let event = seen.recv_timeout(SOON).unwrap();
    assert!(event.hang_up && event.token == 7);
    assert!(seen.recv_timeout(Duration::from_millis(50)).is_err());
    handle.stop();
    thread.join().unwrap().unwrap();
}
