//! Parsers of arguments, in docker's syntax.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boxlite_runtime::{
    NetworkMode, ParseError, PublishedPort, PullPolicy, RestartPolicy, Transport, Volume, signals,
};
use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

use crate::size;

/// `key=value`, or `key` alone.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    match key {
        "" => Err("a label is key=value, as in project=demo".into()),
        key => Ok((key.to_owned(), value.to_owned())),
    }
}

/// `no`, `always`, `on-failure[:N]`. Docker's `unless-stopped` is `always`, which never restarts a stopped box.
pub(crate) fn restart(text: &str) -> Result<RestartPolicy, String> {
    Ok(match text.split_once(':') {
        None if text == "no" => RestartPolicy::No,
        None if matches!(text, "always" | "unless-stopped") => RestartPolicy::Always,
        None if text == "on-failure" => RestartPolicy::OnFailure(0),
        Some(("on-failure", times)) => match times.parse() {
            Ok(times) => RestartPolicy::OnFailure(times),
            Err(_) => return Err(format!("{times:?} is not a number of restarts")),
        },
        _ => return Err("must be no, always, on-failure or on-failure:TIMES".into()),
    })
}

/// `missing`, `always`, `never`.
pub(crate) fn pull(text: &str) -> Result<PullPolicy, String> {
    Ok(match text {
        "missing" => PullPolicy::Missing,
        "always" => PullPolicy::Always,
        "never" => PullPolicy::Never,
        _ => return Err("must be missing, always or never".into()),
    })
}

/// `none`, `nat`. Docker's `bridge` and `default` are `nat`.
pub(crate) fn network(text: &str) -> Result<NetworkMode, String> {
    Ok(match text {
        "none" => NetworkMode::None,
        "nat" | "bridge" | "default" => NetworkMode::Nat,
        _ => return Err("must be none or nat".into()),
    })
}

/// `[ADDRESS:][HOST:]GUEST[/tcp|/udp]`; an IPv6 address is in brackets.
pub(crate) fn published(text: &str) -> Result<PublishedPort, String> {
    text.parse().map_err(|e: ParseError| format!("{}; {}", e.problem, e.expected))
}

/// `PORT[/tcp|/udp]` of a box.
pub(crate) fn port(text: &str) -> Result<(u16, Transport), String> {
    let (port, protocol) = match text.split_once('/') {
        None => (text, Transport::Tcp),
        Some((port, "tcp")) => (port, Transport::Tcp),
        Some((port, "udp")) => (port, Transport::Udp),
        Some(_) => return Err("a protocol is tcp or udp".into()),
    };
    let port = port.parse().map_err(|_| format!("{port:?} is not a port from 1 to 65535"))?;
    Ok((port, protocol))
}

/// `HOST:GUEST[:ro|:rw]`.
pub(crate) fn volume(text: &str) -> Result<Volume, String> {
    const FORM: &str = "a volume is HOST-FOLDER:FOLDER-IN-THE-BOX[:ro], as in ./src:/src";
    let (rest, read_only) = match text.strip_suffix(":ro") {
        Some(rest) => (rest, true),
        None => (text.strip_suffix(":rw").unwrap_or(text), false),
    };
    match rest.split_once(':') {
        Some((host, guest)) if !host.is_empty() && guest.starts_with('/') => {
            let mut volume = Volume::new(host, guest);
            volume.read_only = read_only;
            Ok(volume)
        }
        _ => Err(FORM.into()),
    }
}

/// A signal's name or number. Returns its Linux number.
pub(crate) fn signal(text: &str) -> Result<i32, String> {
    signals::parse(text)
        .ok_or_else(|| "a signal is a name, as in SIGTERM or TERM, or a number from 1 to 64".into())
}

/// A time: `10m` ago; `2026-01-31T12:00:00Z`; the same without a zone or a time of day, in local time; or seconds
/// since 1970.
pub(crate) fn time(text: &str) -> Result<SystemTime, String> {
    time_before(text, SystemTime::now(), &TimeZone::system())
}

fn time_before(text: &str, now: SystemTime, zone: &TimeZone) -> Result<SystemTime, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        let since = Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())?;
        return UNIX_EPOCH.checked_add(since).ok_or_else(|| "that is too late".into());
    }
    if let Ok(ago) = size::duration(text) {
        return Ok(now.checked_sub(ago).unwrap_or(UNIX_EPOCH).max(UNIX_EPOCH));
    }
    let local = || text.parse::<DateTime>().or_else(|_| text.parse::<Date>().map(DateTime::from));
    let time = text.parse().or_else(|_| local().and_then(|local| zone.to_timestamp(local)));
    time.and_then(|time: Timestamp| SystemTime::try_from(time)).map_err(|_| {
        "a time is how long ago (10m, 1h30m), a date (2026-01-31), a time (2026-01-31T12:00:00Z) or \
         seconds since 1970"
            .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports() {
        let plain = PublishedPort::tcp;
        assert_eq!(published("8080:80"), Ok(plain(8080, 80)));
        assert_eq!(published("80"), Ok(plain(0, 80)));
        assert_eq!(published("53:53/udp"), Ok(PublishedPort::udp(53, 53)));
        assert_eq!(published("0.0.0.0:8080:80/tcp"), Ok(plain(8080, 80).on([0, 0, 0, 0])));
        let loopback6 = std::net::Ipv6Addr::LOCALHOST;
        assert_eq!(published("[::1]:8080:80"), Ok(plain(8080, 80).on(loopback6)));
        for bad in ["", ":", "x:80", "80:x", "80:", "1:2:3", "80/sctp", "70000:1", "8080:0", "-1:1"]
        {
            assert!(published(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_of_a_box() {
        assert_eq!(port("80"), Ok((80, Transport::Tcp)));
        assert_eq!(port("53/udp"), Ok((53, Transport::Udp)));
        assert!(port("80/sctp").is_err() && port("x").is_err() && port("70000").is_err());
    }

    #[test]
    fn volumes() {
        assert_eq!(volume("./src:/src"), Ok(Volume::new("./src", "/src")));
        assert_eq!(volume("/a:/b:rw"), Ok(Volume::new("/a", "/b")));
        assert!(volume("/a:/b:ro").unwrap().read_only);
        for bad in ["", "/a", ":/b", "/a:b", "/a:", "/a:ro"] {
            assert!(volume(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn policies() {
        assert_eq!(restart("no"), Ok(RestartPolicy::No));
        assert_eq!(restart("on-failure"), Ok(RestartPolicy::OnFailure(0)));
        assert_eq!(restart("on-failure:3"), Ok(RestartPolicy::OnFailure(3)));
        assert_eq!(restart("always"), restart("unless-stopped"));
        for bad in ["", "yes", "on-failure:", "on-failure:x", "always:1"] {
            assert!(restart(bad).is_err(), "{bad}");
        }
        assert_eq!(pull("always"), Ok(PullPolicy::Always));
        assert!(pull("sometimes").is_err());
        assert_eq!(network("none"), Ok(NetworkMode::None));
        assert!(network("host").is_err());
        assert_eq!(label("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(label("a"), Ok(("a".into(), String::new())));
        assert!(label("=b").is_err());
    }

    #[test]
    fn times() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let at = |text| {
            let time = time_before(text, now, &zone).unwrap();
            time.duration_since(UNIX_EPOCH).unwrap().as_millis()
        };
        assert_eq!(at("10m"), 999_400_000);
        assert_eq!(at("1.5"), 1_500);
        assert_eq!(at("1970-01-01T00:00:01Z"), 1_000);
        assert_eq!(at("1970-01-01T03:00:00+02:00"), 3_600_000);
        assert_eq!(at("1970-01-01T03:00:00"), 3_600_000);
        assert_eq!(at("1970-01-02"), 22 * 3_600_000);
        assert_eq!(at("99999999d"), 0);
        for bad in ["", "yesterday", "-5", "1970-13-01", "1e300"] {
            assert!(time_before(bad, now, &zone).is_err(), "{bad}");
        }
    }
}
