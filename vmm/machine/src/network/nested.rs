//! In the nested host: what only the keeper of the nested host, on the real host, can do for a box.
//!
//! It has the real host listen on published ports, and knows the real host's own addresses, which are
//! closed to boxes. A box without ports boots while these are asked for; until they are known, its
//! network opens flows to the host's loopback only; where they stay unknown, the box fails.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use boxlite_contract::nested::{
    MAX_PORTS_LINE, PORTS_SERVICE, PORTS_TIMEOUT, PortsAnswer, PortsRequest,
};
use boxlite_net::{Handle, PublishedPort};

use crate::threads::Threads;

/// Between two questions; it doubles with each.
const PAUSE: Duration = Duration::from_millis(100);

/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// When no other question is asked. A busy keeper, and a host that emulates, take their time.
const LIMIT: Duration = Duration::from_secs(120);

/// Published ports that the real host listens on for as long as this value is there.
#[derive(Debug)]
pub(super) struct PortLease {
    _connection: TcpStream,
    /// With the numbers that they have.
    pub(super) ports: Vec<PublishedPort>,
    /// The addresses of the real host's interfaces, as they are now.
    pub(super) own: Vec<IpAddr>,
}

impl PortLease {
    /// Has the real host listen on these ports and pass on who comes to the ports of this machine that
    /// are their `guest`.
    ///
    /// # Errors
    /// Says which port cannot be had and why.
    pub(super) fn take(ports: Vec<PublishedPort>) -> io::Result<Self> {
        let connection = TcpStream::connect_timeout(&PORTS_SERVICE.into(), PORTS_TIMEOUT)?;
        connection.set_read_timeout(Some(PORTS_TIMEOUT))?;
        let mut line = serde_json::to_vec(&PortsRequest(ports))?;
        line.push(b'\n');
        (&connection).write_all(&line)?;
        let mut answer = String::new();
        BufReader::new(&connection).take(MAX_PORTS_LINE).read_line(&mut answer)?;
        if answer.is_empty() {
            return Err(io::Error::other("the software host's keeper does not answer"));
        }
        match serde_json::from_str(&answer)? {
            PortsAnswer::Open { ports, own } => Ok(Self { _connection: connection, ports, own }),
            PortsAnswer::Refused(why) => Err(io::Error::other(why)),
        }
    }
}

/// Closes the real host's own addresses to the box, once they are known: asks on a thread of its own.
pub(super) fn close_own_addresses(handle: Handle, threads: &Threads) -> Result<()> {
    let watch = threads.clone();
    let work = move || {
        let ask = || PortLease::take(Vec::new()).map(|lease| lease.own);
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
