//! A wire between a TAP device and the network that loses, reorders, repeats and delays frames:
//! like `tc netem`, which not every kernel has.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use boxlite_net::link::{MAX_FRAME, memory};
use boxlite_net::sys::TapLink;
use boxlite_net::{Link, Offload, OffloadFeatures};

/// The faults of a wire.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// Percentage of lost frames.
    pub(crate) lost: u32,
    /// Percentage of repeated frames.
    pub(crate) repeated: u32,
    /// Percentage of reordered frames, which are delayed.
    pub(crate) reordered: u32,
    /// The delay of every frame.
    pub(crate) delay: Duration,
    /// The additional delay of reordered frames.
    pub(crate) jitter: Duration,
}

/// A running wire.
pub(crate) struct Wire {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Frames in one direction.
struct Direction {
    faults: Faults,
    random: u32,
    frames: Vec<(Instant, Vec<u8>)>,
}

impl Wire {
    /// Puts a wire behind `tap`, and returns the end that the network gets.
    pub(crate) fn new(mut tap: TapLink, faults: Faults) -> (Self, memory::MemoryLink) {
        let (link, guest) = memory::pair(OffloadFeatures::default()).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; MAX_FRAME];
            let mut up = Direction { faults, random: 17, frames: Vec::new() };
            let mut down = Direction { faults, random: 23, frames: Vec::new() };
            while !stopped.load(Ordering::Relaxed) {
                let now = Instant::now();
                while let Some(received) = tap.receive(&mut buffer).unwrap() {
                    up.enter(&buffer[..received.len], now);
                }
                while let Some((frame, _)) = guest.receive() {
                    down.enter(&frame, now);
                }
                for frame in up.leave(now) {
                    guest.send(frame);
                }
                for frame in down.leave(now) {
                    tap.send(&[IoSlice::new(&frame)], Offload::default()).unwrap();
                }
                thread::sleep(Duration::from_micros(200));
            }
        });
        (Self { stop, thread: Some(thread) }, link)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().is_none_or(|thread| thread.join().is_ok());
        assert!(ended || thread::panicking(), "the wire broke");
    }
}

impl Direction {
    /// True with this probability, in percent.
    fn happens(&mut self, percent: u32) -> bool {
        self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.random >> 8) % 100 < percent
    }

    fn enter(&mut self, frame: &[u8], now: Instant) {
        if self.happens(self.faults.lost) {
            return;
        }
        let copies = if self.happens(self.faults.repeated) { 2 } else { 1 };
        for _ in 0..copies {
            let late = self.happens(self.faults.reordered);
            let delay = self.faults.delay + if late { self.faults.jitter } else { Duration::ZERO };
            self.frames.push((now + delay, frame.to_vec()));
        }
    }

    fn leave(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let due = self.frames.extract_if(.., |(at, _)| *at <= now);
        let mut due: Vec<_> = due.collect();
        due.sort_by_key(|(at, _)| *at);
        due.into_iter().map(|(_, frame)| frame).collect()
    }
}
