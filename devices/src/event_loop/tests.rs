use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

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
        let doorbell = Doorbell::new()?;
        watch.add(&doorbell, 0, Interest::Read)?;
        // It is watched already.
        let twice = watch.add(&doorbell, 1, Interest::Read);
        watch.remove(&doorbell)?;
        twice
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

#[test]
fn a_descriptor_is_reported_while_it_stays_ready() {
    /// Takes one byte of a stream at a time.
    struct Sip(std::os::unix::net::UnixStream, Sender<u8>);
    impl Handler for Sip {
        fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
            watch.add(&self.0, 0, Interest::Read)
        }
        fn ready(&mut self, event: Event, watch: &mut Watch<'_>) {
            assert!(event.readable);
            let mut byte = [0];
            match io::Read::read(&mut self.0, &mut byte).unwrap() {
                0 => watch.remove(&self.0).unwrap(),
                _ => self.1.send(byte[0]).unwrap(),
            }
        }
    }
    let mut event_loop = EventLoop::new().unwrap();
    let handle = event_loop.handle();
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let (bytes, read) = channel();
    event_loop.add(Sip(ours, bytes)).unwrap();
    io::Write::write_all(&mut theirs, &[1, 2, 3]).unwrap();
    drop(theirs);
    let thread = thread::spawn(move || event_loop.run());
    for byte in [1, 2, 3] {
        assert_eq!(read.recv_timeout(SOON), Ok(byte));
    }
    handle.stop();
    thread.join().unwrap().unwrap();
}

#[test]
fn an_event_of_a_removed_descriptor_is_dropped() {
    /// Two doorbells, of which the first event removes the other.
    struct Pair([Doorbell; 2], Sender<u32>);
    impl Handler for Pair {
        fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
            watch.add(&self.0[0], 0, Interest::Read)?;
            watch.add(&self.0[1], 1, Interest::Read)
        }
        fn ready(&mut self, event: Event, watch: &mut Watch<'_>) {
            self.0[event.token as usize].clear().unwrap();
            watch.remove(&self.0[1 - event.token as usize]).unwrap();
            self.1.send(event.token).unwrap();
        }
    }
    let mut event_loop = EventLoop::new().unwrap();
    let handle = event_loop.handle();
    let bells = [Doorbell::new().unwrap(), Doorbell::new().unwrap()];
    bells.iter().for_each(|bell| bell.ring().unwrap());
    let (events, seen) = channel();
    event_loop.add(Pair(bells, events)).unwrap();
    let thread = thread::spawn(move || event_loop.run());
    seen.recv_timeout(SOON).unwrap();
    // The loop answers after the events that it had taken.
    assert!(handle.add(Broken(channel().0)).is_err());
    assert!(seen.try_recv().is_err());
    handle.stop();
    thread.join().unwrap().unwrap();
}

#[test]
fn an_alarm_rings_once_and_goes_with_its_handler() {
    /// Sets its alarm again until it has rung three times.
    struct Clock(Sender<(u32, Instant)>, u32);
    impl Handler for Clock {
        fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
            watch.set_alarm(Instant::now() + Duration::from_secs(3600), 9);
            watch.set_alarm(Instant::now() + Duration::from_millis(2), self.1);
            Ok(())
        }
        fn ready(&mut self, event: Event, watch: &mut Watch<'_>) {
            assert!(event.readable && event.token == self.1);
            self.0.send((event.token, Instant::now())).unwrap();
            self.1 += 1;
            if self.1 < 3 {
                watch.set_alarm(Instant::now(), self.1);
            }
        }
    }
    let event_loop = EventLoop::new().unwrap();
    let handle = event_loop.handle();
    let thread = thread::spawn(move || event_loop.run());
    let (rings, rung) = channel();
    let start = Instant::now();
    let clock = handle.add(Clock(rings.clone(), 0)).unwrap();
    for expected in 0..3 {
        let (token, at) = rung.recv_timeout(SOON).unwrap();
        assert!(token == expected && at >= start + Duration::from_millis(2));
    }
    let mut clock = clock.remove().unwrap();
    assert!(rung.try_recv().is_err());
    clock.1 = 0;
    // Removed before its alarm rings, which would be in an hour.
    struct Late(Clock);
    impl Handler for Late {
        fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
            watch.set_alarm(Instant::now() + Duration::from_secs(3600), 0);
            Ok(())
        }
        fn ready(&mut self, event: Event, watch: &mut Watch<'_>) {
            self.0.ready(event, watch);
        }
    }
    handle.add(Late(clock)).unwrap().remove().unwrap();
    handle.stop();
    thread.join().unwrap().unwrap();
    assert!(rung.try_recv().is_err());
}
