//! In the software host, for a box without ports: closes the real host's own addresses, which only its
//! keeper knows.
//!
//! The box boots meanwhile. Until the addresses are known, its network opens flows to the host's loopback
//! only; where they stay unknown, the box fails.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use boxlite_net::Handle;

use crate::machine::threads::Threads;
use crate::softhost;

/// Between two questions; it doubles with each.
const PAUSE: Duration = Duration::from_millis(100);

/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// When no other question is asked. A busy keeper, and a host that emulates, take their time.
const LIMIT: Duration = Duration::from_secs(120);

/// Asks on a thread of its own.
pub(super) fn close(handle: Handle, threads: &Threads) -> Result<()> {
    let watch = threads.clone();
    let work = move || {
        let ask = || softhost::ports::hold(Vec::new()).map(|held| held.own);
        match learn(ask, std::thread::sleep, Instant::now) {
            // A network that has stopped has no flows.
            Ok(own) => drop(handle.close_own(own)),
            Err(e) => watch.failed(format!(
                "the box's network stays closed: the host's own addresses cannot be learnt: {e}"
            )),
        }
    };
    threads
        .spawn("addresses", work)
        .map(drop)
        .context("cannot start the thread that asks for the host's addresses")
}

/// Asks until there is an answer, for as long as [`LIMIT`].
fn learn(
    mut ask: impl FnMut() -> io::Result<Vec<IpAddr>>,
    mut sleep: impl FnMut(Duration),
    now: impl Fn() -> Instant,
) -> io::Result<Vec<IpAddr>> {
    let start = now();
    let mut pause = PAUSE;
    loop {
        let error = match ask() {
            Ok(own) => return Ok(own),
            Err(e) => e,
        };
        if now().saturating_duration_since(start) + pause > LIMIT {
            return Err(error);
        }
        tracing::debug!("the host's own addresses are asked for again: {error}");
        sleep(pause);
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// The answer when the first `failures` questions have none, how many were asked, and the time that
    /// it took.
    fn learn_after(failures: u32) -> (io::Result<Vec<IpAddr>>, u32, Duration) {
        let (start, slept, asked) = (Instant::now(), Cell::new(Duration::ZERO), Cell::new(0));
        let ask = || {
            asked.set(asked.get() + 1);
            match asked.get() > failures {
                true => Ok(vec![[192, 0, 2, 1].into()]),
                false => Err(io::ErrorKind::ConnectionRefused.into()),
            }
        };
        let learnt = learn(ask, |pause| slept.set(slept.get() + pause), || start + slept.get());
        (learnt, asked.get(), slept.get())
    }

    #[test]
    fn a_keeper_that_is_busy_for_a_while_is_asked_again() {
        let (learnt, asked, slept) = learn_after(0);
        assert_eq!((learnt.unwrap().len(), asked, slept), (1, 1, Duration::ZERO));
        let (learnt, asked, slept) = learn_after(3);
        assert_eq!((learnt.unwrap().len(), asked, slept), (1, 4, PAUSE * 7));
        learn_after(20).0.unwrap();
    }

    #[test]
    fn one_that_never_answers_is_a_failure_in_the_end() {
        let (learnt, asked, slept) = learn_after(u32::MAX);
        assert_eq!(learnt.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert!(asked < 40 && slept <= LIMIT && slept > LIMIT - MAX_PAUSE, "{asked} {slept:?}");
    }
}
