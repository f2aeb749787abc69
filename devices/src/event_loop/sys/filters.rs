//! Which kqueue filters a descriptor has, and what their events mean. Pure: no system calls.
//!
//! A kqueue watches each direction by a filter of its own, and says of each whether it has ended (`EV_EOF`). The
//! loop wants what epoll reports: a hang-up, also while nothing else is of interest.
//!
//! - A direction of interest has a level-triggered filter.
//! - Otherwise the read filter is edge-triggered: it reports data too, which is dropped, but at most what the peer's
//!   buffer takes while nobody reads.
//! - Otherwise there is no write filter: each read by the peer would be an event. Once the read direction has ended,
//!   there is an edge-triggered one, for the end of the other: a descriptor whose directions have both ended is
//!   hung up.

use super::Ready;
use crate::event_loop::Interest;

/// How a direction is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Not at all.
    Off,
    /// Once for each change.
    Edge,
    /// As long as it is ready.
    Level,
}

/// A direction of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// To this process.
    Read,
    /// From this process.
    Write,
}

/// The filters of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Filters {
    interest: Interest,
    read_ended: bool,
    write_ended: bool,
}

impl Filters {
    pub(super) const fn new(interest: Interest) -> Self {
        Self { interest, read_ended: false, write_ended: false }
    }

    /// The same descriptor, with another interest.
    pub(super) const fn with(self, interest: Interest) -> Self {
        Self { interest, ..self }
    }

    /// How a direction is to be watched.
    pub(super) const fn mode(self, direction: Direction) -> Mode {
        match direction {
            _ if self.wants(direction) => Mode::Level,
            Direction::Read => Mode::Edge,
            Direction::Write if self.read_ended => Mode::Edge,
            Direction::Write => Mode::Off,
        }
    }

    const fn wants(self, direction: Direction) -> bool {
        match direction {
            Direction::Read => matches!(self.interest, Interest::Read | Interest::ReadWrite),
            Direction::Write => matches!(self.interest, Interest::Write | Interest::ReadWrite),
        }
    }

    /// A direction has ended.
    pub(super) const fn end(&mut self, direction: Direction) {
        match direction {
            Direction::Read => self.read_ended = true,
            Direction::Write => self.write_ended = true,
        }
    }

    /// What an event of a direction's filter means to the loop, if anything.
    pub(super) fn ready(self, key: u64, direction: Direction) -> Option<Ready> {
        let hang_up = self.read_ended && self.write_ended;
        (hang_up || self.wants(direction)).then_some(Ready {
            key,
            readable: hang_up || direction == Direction::Read,
            writable: direction == Direction::Write,
            hang_up,
            error: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Read, Write};

    fn modes(filters: Filters) -> (Mode, Mode) {
        (filters.mode(Read), filters.mode(Write))
    }

    #[test]
    fn a_direction_of_interest_is_level_triggered() {
        for (interest, expected) in [
            (Interest::Read, (Mode::Level, Mode::Off)),
            (Interest::Write, (Mode::Edge, Mode::Level)),
            (Interest::ReadWrite, (Mode::Level, Mode::Level)),
            (Interest::Pause, (Mode::Edge, Mode::Off)),
        ] {
            assert_eq!(modes(Filters::new(interest)), expected, "{interest:?}");
        }
    }

    #[test]
    fn data_is_reported_to_those_who_want_it() {
        let event = Filters::new(Interest::Read).ready(7, Read).unwrap();
        assert!(event.key == 7 && event.readable && !event.writable && !event.hang_up);
        let event = Filters::new(Interest::Write).ready(7, Write).unwrap();
        assert!(!event.readable && event.writable && !event.hang_up);
        assert_eq!(Filters::new(Interest::Write).ready(7, Read), None);
        assert_eq!(Filters::new(Interest::Pause).ready(7, Read), None);
    }

    #[test]
    fn a_hang_up_is_the_end_of_both_directions() {
        let mut paused = Filters::new(Interest::Pause);
        paused.end(Read);
        // The peer may have shut down its writes only.
        assert_eq!(paused.ready(7, Read), None);
        assert_eq!(modes(paused), (Mode::Edge, Mode::Edge));
        paused.end(Write);
        let event = paused.ready(7, Write).unwrap();
        assert!(event.hang_up && event.readable);
        // Nothing of it is level-triggered, so it is reported once.
        assert_eq!(modes(paused), (Mode::Edge, Mode::Edge));
        // The ends are remembered when the interest changes.
        assert!(paused.with(Interest::Read).ready(7, Read).unwrap().hang_up);
    }
}
