//! Checks of a box's options. The error lists every problem.

use std::time::Duration;

use boxlite_contract::spec::{MEMORY_MIB, RestartPolicy, VCPUS};
use boxlite_net_policy::{PublishedPort, Rule};

use super::{BoxOptions, HealthCheck, NetworkMode, NetworkPolicy};
use crate::problem::{BoxOption, Problem};
use crate::remedy::Remedy;
use crate::signals;
use crate::{Error, Result};

/// Sizes of a box's disk in GiB.
const DISK_GIB: std::ops::RangeInclusive<u64> = 1..=1024;

/// The lowest limit of a network, in bytes per second, at which packets still arrive.
const MIN_RATE: u64 = 1024;

/// The shortest interval and timeout of a health check.
pub(crate) const MIN_HEALTH_TIME: Duration = Duration::from_millis(1);

/// The longest host name of Linux.
const NAME_MAX: usize = 63;
/// Number of hexadecimal digits of a box's ID.
const ID_LEN: usize = 32;

#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn unless(&mut self, ok: bool, option: BoxOption, message: impl FnOnce() -> String) {
        if !ok {
            self.0.push(Problem::new(option, message()));
        }
    }

    /// Like [`unless`](Self::unless), for a problem of two options.
    fn unless_with(&mut self, ok: bool, option: BoxOption, other: BoxOption, message: &str) {
        if !ok {
            self.0.push(Problem::new(option, message).and(other));
        }
    }
}

impl BoxOptions {
    /// Checks the options.
    ///
    /// # Errors
    /// Some are invalid: [`Error::problems`] lists all of them.
    pub fn validate(&self) -> Result<()> {
        let mut problems = Problems::default();
        self.check_machine(&mut problems);
        self.check_commands(&mut problems);
        self.check_lifetime(&mut problems);
        self.check_surroundings(&mut problems);
        if problems.0.is_empty() { Ok(()) } else { Err(Error::options(problems.0)) }
    }

    fn check_machine(&self, problems: &mut Problems) {
        problems.unless(VCPUS.contains(&self.cpus), BoxOption::Cpus, || {
            format!("{}: a box has 1 to 64", self.cpus)
        });
        problems.unless(MEMORY_MIB.contains(&self.memory_mib), BoxOption::MemoryMib, || {
            format!("{} MiB: a box has 128 MiB to 64 GiB", self.memory_mib)
        });
        if let Some(gib) = self.disk_size_gib {
            problems.unless(DISK_GIB.contains(&gib), BoxOption::DiskSizeGib, || {
                format!("{gib} GiB: a disk has 1 GiB to 1 TiB")
            });
        }
        problems.unless(!self.ready_timeout.is_zero(), BoxOption::ReadyTimeout, || {
            "must be longer than 0 s".into()
        });
        if let Some(name) = &self.name {
            problems.unless(is_name(name), BoxOption::Name, || bad_name(name));
        }
    }

    fn check_commands(&self, problems: &mut Problems) {
        for (name, value) in &self.env {
            let good = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
            problems.unless(good, BoxOption::Env, || {
                format!("{name:?}: a variable's name must not be empty or contain '='")
            });
        }
        if let Some(dir) = &self.working_dir {
            problems.unless(is_absolute(dir), BoxOption::WorkingDir, || {
                format!("{dir:?}: the working directory must be an absolute path")
            });
        }
        if let Some(signal) = &self.stop_signal {
            problems.unless(signals::parse(signal).is_some(), BoxOption::StopSignal, || {
                format!("{signal:?}: a signal is a name, as in SIGTERM, or a number from 1 to 64")
            });
        }
        let words = [&self.entrypoint, &self.cmd].into_iter().flatten().flatten();
        problems.unless(
            words.clone().all(|word| !word.contains('\0')),
            BoxOption::Entrypoint,
            || "a word of a command must not contain a zero byte".into(),
        );
    }

    fn check_lifetime(&self, problems: &mut Problems) {
        problems.unless_with(
            !self.auto_remove || self.restart == RestartPolicy::No,
            BoxOption::Restart,
            BoxOption::AutoRemove,
            "cannot restart a box that is removed when it stops",
        );
        for (key, value) in &self.labels {
            let good = !key.is_empty() && !key.contains(['=', '\0']) && !value.contains('\0');
            problems.unless(good, BoxOption::Labels, || {
                format!("{key:?}: a label's key must not be empty or contain '='")
            });
        }
        self.check_health(problems);
    }

    fn check_health(&self, problems: &mut Problems) {
        let (own, changes) = (self.health.as_ref(), &self.health_changes);
        problems.unless_with(
            !self.no_health_check || own.is_none(),
            BoxOption::NoHealthCheck,
            BoxOption::Health,
            "excludes a health check of the box's own",
        );
        problems.unless(
            !self.no_health_check || changes.is_empty(),
            BoxOption::NoHealthCheck,
            || "leaves no health check to change".into(),
        );
        let has_command =
            |check: &HealthCheck| check.command.first().is_some_and(|c| !c.is_empty());
        problems.unless(own.is_none_or(has_command), BoxOption::HealthCommand, || {
            "the health check has no command".into()
        });
        let times = [
            (BoxOption::HealthInterval, own.map(|check| check.interval), changes.interval),
            (BoxOption::HealthTimeout, own.map(|check| check.timeout), changes.timeout),
        ];
        for (option, own, changed) in times {
            let good = [own, changed].into_iter().flatten().all(|time| time >= MIN_HEALTH_TIME);
            problems.unless(good, option, || "must be at least 1 ms".into());
        }
        let retries = [own.map(|check| check.retries), changes.retries];
        let good = retries.into_iter().flatten().all(|retries| retries > 0);
        problems.unless(good, BoxOption::HealthRetries, || "0: must be at least 1".into());
    }

    fn check_surroundings(&self, problems: &mut Problems) {
        for volume in &self.volumes {
            let message = format!("{}: this version shares no folders yet", volume.host.display());
            let problem = Problem::new(BoxOption::Volumes, message);
            problems.0.push(problem.instead(Remedy::CopyFiles));
        }
        self.check_network(problems);
    }

    fn check_network(&self, problems: &mut Problems) {
        let NetworkPolicy { mode, allow, deny, limit_down, limit_up } = &self.network;
        let rules = allow.iter().map(|rule| (BoxOption::NetworkAllow, Rule::allow(rule)));
        for (option, rule) in
            rules.chain(deny.iter().map(|rule| (BoxOption::NetworkDeny, Rule::deny(rule))))
        {
            if let Err(e) = rule {
                problems.0.push(Problem::new(option, e.to_string()));
            }
        }
        for (option, limit) in
            [(BoxOption::NetworkLimitDown, limit_down), (BoxOption::NetworkLimitUp, limit_up)]
        {
            problems.unless(limit.is_none_or(|limit| limit >= MIN_RATE), option, || {
                format!("must be at least {MIN_RATE} bytes per second")
            });
        }
        for (n, port) in self.ports.iter().enumerate() {
            problems.unless(port.guest != 0, BoxOption::Ports, || "a box has no port 0".into());
            let same = |other: &PublishedPort| {
                port.host.port() != 0 && (other.host, other.protocol) == (port.host, port.protocol)
            };
            let twice = self.ports.iter().take(n).any(same);
            problems.unless(!twice, BoxOption::Ports, || {
                format!(
                    "{}/{}: a port of the host can be published only once",
                    port.host, port.protocol
                )
            });
        }
        let unused = [
            (BoxOption::Ports, !self.ports.is_empty()),
            (BoxOption::NetworkAllow, !allow.is_empty()),
            (BoxOption::NetworkDeny, !deny.is_empty()),
            (BoxOption::NetworkLimitDown, limit_down.is_some()),
            (BoxOption::NetworkLimitUp, limit_up.is_some()),
        ];
        for (option, given) in unused {
            let ok = *mode == NetworkMode::Nat || !given;
            problems.unless_with(ok, option, BoxOption::NetworkMode, "needs a network");
        }
    }
}

/// Whether a box may have this name.
pub(crate) fn is_name(name: &str) -> bool {
    name.len() <= NAME_MAX
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        && !looks_like_id(name)
}

/// Whether a text has the form of a box's full ID, which as a name could be taken for another box.
fn looks_like_id(text: &str) -> bool {
    text.len() == ID_LEN && text.chars().all(|c| c.is_ascii_hexdigit())
}

/// Why a box cannot have this name.
pub(crate) fn bad_name(name: &str) -> String {
    if looks_like_id(name) {
        return format!(
            "{name:?}: a name cannot be {ID_LEN} hexadecimal digits, which is the form of a box's ID"
        );
    }
    format!(
        "{name:?}: a name has 1 to {NAME_MAX} letters, digits, '.', '_' or '-', and begins with a \
         letter or digit"
    )
}

fn is_absolute(path: &str) -> bool {
    path.starts_with('/') && !path.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_id_is_not_a_name() {
        for id in ["0123456789abcdef0123456789abcdef", "0123456789ABCDEF0123456789ABCDEF"] {
            assert!(!is_name(id), "{id}");
            assert!(bad_name(id).contains("the form of a box's ID"), "{}", bad_name(id));
            assert!(is_name(&id[1..]) && is_name(&format!("{id}0")));
        }
        assert!(is_name("0123456789abcdef0123456789abcdeg"));
    }

    #[test]
    fn the_error_lists_every_problem() {
        let mut health = HealthCheck::new([""]);
        health.retries = 0;
        let mut options = BoxOptions::new("x")
            .cpus(0)
            .memory_mib(64)
            .disk_size_gib(0)
            .name("-x y")
            .env("A=B", "c")
            .working_dir("relative")
            .label("", "x")
            .auto_remove(true)
            .restart(RestartPolicy::Always)
            .health(health);
        options.stop_signal = Some("SIGNOTHING".into());
        options.no_health_check = true;
        let error = options.validate().unwrap_err();
        let options: Vec<_> = error.problems().iter().map(|problem| problem.option).collect();
        let expected = [
            BoxOption::Cpus,
            BoxOption::MemoryMib,
            BoxOption::DiskSizeGib,
            BoxOption::Name,
            BoxOption::Env,
            BoxOption::WorkingDir,
            BoxOption::StopSignal,
            BoxOption::Restart,
            BoxOption::Labels,
            BoxOption::NoHealthCheck,
            BoxOption::HealthCommand,
            BoxOption::HealthRetries,
        ];
        assert_eq!(options, expected);
        // An embedder reads the names of fields, not of flags.
        let text = error.to_string();
        assert_eq!(text.lines().count(), expected.len());
        for (line, option) in text.lines().zip(expected) {
            assert!(!line.contains("--") && line.starts_with(option.field()), "{line}");
        }
        assert!(text.contains("removed when it stops (auto_remove)"), "{text}");
    }

    #[test]
    fn every_option_is_a_field() {
        let options = BoxOptions::new("x").health(HealthCheck::shell("true"));
        let options = serde_json::to_value(options).unwrap();
        for option in BoxOption::ALL {
            let path = format!("/{}", option.field().replace('.', "/"));
            assert!(options.pointer(&path).is_some(), "{option}");
        }
    }

    #[test]
    fn a_network_is_checked_as_a_whole() {
        let mut options =
            BoxOptions::new("x").port(PublishedPort::tcp(80, 0)).port(PublishedPort::udp(53, 53));
        options = options
            .port(PublishedPort::udp(53, 54))
            .port(PublishedPort::udp(53, 54).on([127, 0, 0, 2]));
        options = options.port(PublishedPort::tcp(0, 1)).port(PublishedPort::tcp(0, 2));
        options.network = NetworkPolicy::default().allow("tcp:x:y").deny("10.0.0.0/33").deny("any");
        options.network.limit_up = Some(1);
        let named = |options: &BoxOptions| match options.validate() {
            Err(error) => {
                let problems = error.problems().iter();
                problems.map(|problem| problem.option.field()).collect::<Vec<_>>().join(" ")
            }
            Ok(()) => String::new(),
        };
        assert_eq!(named(&options), "network.allow network.deny network.limit_up ports ports");
        let mut none = BoxOptions::new("x").port(PublishedPort::tcp(1, 1));
        none.network = NetworkPolicy::none().allow("any");
        assert_eq!(named(&none), "ports network.allow");
        assert_eq!(named(&BoxOptions::new("x").network(NetworkPolicy::none())), "");
    }

    #[test]
    fn denials_are_matched_first_and_any_last() {
        let policy = NetworkPolicy::default().allow("10.0.0.0/8").deny("any").deny("tcp:10.0.0.5");
        assert_eq!(policy.rules(), ["deny tcp:10.0.0.5/32", "allow 10.0.0.0/8", "deny any"]);
    }

    #[test]
    fn the_limits_themselves_are_allowed() {
        for (cpus, mib, gib) in [(1, 128, 1), (64, 65536, 1024)] {
            let options = BoxOptions::new("x").cpus(cpus).memory_mib(mib).disk_size_gib(gib);
            options.name("a-b.c_1").working_dir("/").validate().unwrap();
        }
    }

    #[test]
    fn options_survive_json_and_missing_ones_get_defaults() {
        let options = BoxOptions::new("x").cmd(["a"]).health(HealthCheck::shell("true"));
        let text = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<BoxOptions>(&text).unwrap(), options);
        let old: BoxOptions = serde_json::from_str(r#"{"image":"x"}"#).unwrap();
        assert_eq!(old, BoxOptions::new("x"));
        let renamed: BoxOptions = serde_json::from_str(r#"{"disk_size_gb":20}"#).unwrap();
        assert_eq!(renamed.disk_size_gib, Some(20));
    }
}
