//! For boxes in the nested host: requests to the keeper, which runs on the real host.
//!
//! The keeper makes the real host listen on published ports, and knows the real host's own addresses, which are
//! closed to boxes. A box without ports boots while the addresses are requested. Until they are known, its network
//! opens flows to the host's loopback only; if they stay unknown, the box fails.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use boxlite_contract::nested::{
    MAX_PORTS_LINE, PORTS_SERVICE, PORTS_TIMEOUT, PortsAnswer, PortsRequest,
};
use boxlite_net::{Handle, PublishedPort};

use crate::threads::Threads;

/// The first pause between two requests; it doubles each time.
const PAUSE: Duration = Duration::from_millis(100);

/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Timeout for all requests together. A busy keeper on an emulated host is slow.
const LIMIT: Duration = Duration::from_secs(120);

/// Published ports of the real host, which listens on them until this value is dropped.
#[derive(Debug)]
pub(super) struct PortLease {
    _connection: TcpStream,
    /// The ports, with their real numbers where the request had 0.
    pub(super) ports: Vec<PublishedPort>,
    /// The current addresses of the real host's interfaces.
    pub(super) own: Vec<IpAddr>,
}

impl PortLease {
    /// Makes the real host listen on these ports and forward each to the port of the nested host that is its
    /// `guest`.
    ///
    /// # Errors
    /// Which port cannot be opened, and why.
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

/// Requests the real host's own addresses on a thread of its own, and closes them to the box once they are known.
pub(super) fn close_own_addresses(handle: Handle, threads: &Threads) -> Result<()> {
    let watch = threads.clone();
    let work = move || {
        let ask = || PortLease::take(Vec::new()).map(|lease| lease.own);
        match learn(ask, std::thread::sleep, Instant::now) {
            // Fails only if the network has stopped, which then has no flows.
            Ok(own) => drop(handle.close_own(own)),
            Err(e) => watch.failed(format!(
                "the box's network stays closed: cannot get the host's own addresses: {e}"
            )),
        }
    };
    threads
        .spawn("addresses", work)
        .map(drop)
        .context("cannot start the thread that requests the host's addresses")
}

/// Repeats the request until there is an answer, for [`LIMIT`] at most.
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
        tracing::debug!("requesting the host's own addresses again: {error}");
        sleep(pause);
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// The answer when the first `failures` requests fail, the number of requests, and the time that they took.
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
    fn a_request_to_a_busy_keeper_is_repeated() {
        let (learnt, asked, slept) = learn_after(0);
        assert_eq!((learnt.unwrap().len(), asked, slept), (1, 1, Duration::ZERO));
        let (learnt, asked, slept) = learn_after(3);
        assert_eq!((learnt.unwrap().len(), asked, slept), (1, 4, PAUSE * 7));
        learn_after(20).0.unwrap();
    }

    #[test]
    fn a_keeper_that_never_answers_is_an_error() {
        let (learnt, asked, slept) = learn_after(u32::MAX);
        assert_eq!(learnt.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert!(asked < 40 && slept <= LIMIT && slept > LIMIT - MAX_PAUSE, "{asked} {slept:?}");
    }
}
