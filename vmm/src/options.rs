//! The options of a new box, which `run` and `create` share.

// The doc comments are help texts, where brackets mark optional parts.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use boxlite_runtime::{
    BoxOptions, HealthChanges, HealthCheck, ImagePlatform, NetworkMode, NetworkPolicy,
    PublishedPort, PullPolicy, RestartPolicy, Volume,
};
use clap::Args;

use crate::global::Global;
use crate::{out, parse, size};

const MACHINE: &str = "Machine";
const COMMAND: &str = "Command";
const LIFETIME: &str = "Lifetime";
const SURROUNDINGS: &str = "Files and network";

#[derive(Debug, Args)]
pub(crate) struct BoxArgs {
    /// Name of the box, also its host name [default: generated]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Attach a label (may be repeated)
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = parse::label)]
    label: Vec<(String, String)>,
    /// When to ask the registry for the image: missing, always or never
    #[arg(long, value_name = "WHEN", default_value = "missing", value_parser = parse::pull)]
    pull: PullPolicy,
    /// Platform of the image, OS/ARCHITECTURE[/VARIANT] [default: that of the machine that runs the box]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<ImagePlatform>,
    /// Show no progress bars
    #[arg(long, short)]
    pub(crate) quiet: bool,

    /// Number of vCPUs, 1 to 64
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = MACHINE)]
    cpus: u8,
    /// Memory, 128M to 64G; a plain number is MiB
    #[arg(long, short, default_value = "2048M", value_name = "SIZE", value_parser = size::mib, help_heading = MACHINE)]
    memory: u64,
    /// Let the box run VMs itself and use the CPU's performance counters
    #[arg(long, help_heading = MACHINE)]
    nested: bool,
    /// Size of the disk, 1G to 1T in whole GiB; a plain number is GiB [default: 10G]
    #[arg(long, value_name = "SIZE", value_parser = size::disk_gib, help_heading = MACHINE)]
    disk_size: Option<u64>,
    /// Fail if the box has not booted within this time
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = size::duration, help_heading = MACHINE)]
    ready_timeout: Duration,

    /// Forward standard input
    #[arg(long, short, help_heading = COMMAND)]
    pub(crate) interactive: bool,
    /// Allocate a terminal
    #[arg(long, short, help_heading = COMMAND)]
    pub(crate) tty: bool,
    #[command(flatten)]
    env: EnvArgs,
    /// Working directory [default: the image's]
    #[arg(long, short, value_name = "DIR", help_heading = COMMAND)]
    workdir: Option<String>,
    /// User: a name or uid, optionally with :group or :gid [default: the image's]
    #[arg(long, short, value_name = "USER", help_heading = COMMAND)]
    user: Option<String>,
    /// Replace the image's entry point; "" for none
    #[arg(long, value_name = "PROGRAM", help_heading = COMMAND)]
    entrypoint: Option<String>,
    /// Run an init as process 1 instead of the command, to reap orphaned processes
    #[arg(long, overrides_with = "no_init", help_heading = COMMAND)]
    init: bool,
    /// Run the command as process 1 [default]
    #[arg(long, overrides_with = "init", help_heading = COMMAND)]
    no_init: bool,
    /// Signal that `stop` sends to the command [default: the image's, else SIGTERM]
    #[arg(long, value_name = "SIGNAL", help_heading = COMMAND)]
    stop_signal: Option<String>,

    /// Remove the box when it stops
    #[arg(long, help_heading = LIFETIME)]
    pub(crate) rm: bool,
    /// Restart the box when its command exits or the box fails: no, always, on-failure[:TIMES]
    #[arg(long, value_name = "POLICY", default_value = "no", value_parser = parse::restart, help_heading = LIFETIME)]
    pub(crate) restart: RestartPolicy,
    #[command(flatten)]
    health: HealthArgs,

    /// Share a folder of this machine with the box (may be repeated)
    #[arg(long, short, value_name = "HOST:BOX[:ro]", value_parser = parse::volume, help_heading = SURROUNDINGS)]
    volume: Vec<Volume>,
    /// Publish a port of the box on the host; without HOST or with 0, on a free port, which `ls` and `port` show
    /// (may be repeated)
    #[arg(long, short, value_name = "[ADDRESS:]HOST:BOX[/udp]", value_parser = parse::published, help_heading = SURROUNDINGS)]
    publish: Vec<PublishedPort>,
    /// Network of the box: nat (reaches what this machine reaches, but not this machine) or none [default: nat]
    #[arg(long, value_name = "MODE", value_parser = parse::network, help_heading = SURROUNDINGS)]
    network: Option<NetworkMode>,
    /// Let the box reach only this (may be repeated): a name, *.name, an address or a network, optionally with
    /// tcp:, udp: or icmp: before it and :port after it; `host` allows this machine and restricts nothing else
    #[arg(long, value_name = "RULE", help_heading = SURROUNDINGS)]
    allow: Vec<String>,
    /// Keep the box from reaching this, even if --allow permits it (may be repeated); for a name, also the
    /// addresses it resolved to
    #[arg(long, value_name = "RULE", help_heading = SURROUNDINGS)]
    deny: Vec<String>,
    /// Bytes per second that the box may receive: 500K, 10M
    #[arg(long, value_name = "BYTES", value_parser = size::rate, help_heading = SURROUNDINGS)]
    limit_down: Option<u64>,
    /// Bytes per second that the box may send
    #[arg(long, value_name = "BYTES", value_parser = size::rate, help_heading = SURROUNDINGS)]
    limit_up: Option<u64>,

    /// The image: a name, optionally with registry and tag (alpine:3.20), oci:DIR[:tag],
    /// docker-archive:FILE or rootfs:DIR; then the command and its arguments [default: the image's]
    // One list, so that a flag right after the image belongs to the command.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_names = ["IMAGE", "COMMAND"]
    )]
    image_and_command: Vec<OsString>,
}

/// Environment variables.
#[derive(Debug, Default, Args)]
pub(crate) struct EnvArgs {
    /// Set an environment variable; without =VALUE, use this process's value (may be repeated)
    #[arg(long, short, value_name = "NAME[=VALUE]", help_heading = COMMAND)]
    env: Vec<String>,
    /// Read environment variables from a file, one per line
    #[arg(long, value_name = "FILE", help_heading = COMMAND)]
    env_file: Vec<PathBuf>,
}

/// The health check of the box.
#[derive(Debug, Args)]
struct HealthArgs {
    /// Health check: a shell command that fails if the box is unhealthy [default: the image's]
    #[arg(long = "health-cmd", value_name = "COMMAND", help_heading = LIFETIME)]
    cmd: Option<String>,
    /// Time between checks [default: the image's, else 30s]
    #[arg(long = "health-interval", value_name = "DURATION", value_parser = size::duration, help_heading = LIFETIME)]
    interval: Option<Duration>,
    /// Timeout of a check, which then counts as failed [default: the image's, else 30s]
    #[arg(id = "health_timeout", long = "health-timeout", value_name = "DURATION", value_parser = size::duration, help_heading = LIFETIME)]
    timeout: Option<Duration>,
    /// Consecutive failures after which the box is unhealthy [default: the image's, else 3]
    #[arg(long = "health-retries", value_name = "N", help_heading = LIFETIME)]
    retries: Option<u32>,
    /// Time after the start during which failures do not count [default: the image's, else 0s]
    #[arg(long = "health-start-period", value_name = "DURATION", value_parser = size::duration, help_heading = LIFETIME)]
    start_period: Option<Duration>,
    /// Ignore the image's health check
    #[arg(id = "no_healthcheck", long = "no-healthcheck", conflicts_with_all = ["cmd", "interval", "health_timeout", "retries", "start_period", "stop"], help_heading = LIFETIME)]
    none: bool,
    /// Stop an unhealthy box as failed, so that --restart may restart it
    #[arg(long = "health-stop", help_heading = LIFETIME)]
    stop: bool,
}

/// Warns of rules for names that the box can bypass.
pub(crate) fn warn_of_bypassable_denials(network: &NetworkPolicy) {
    for rule in network.bypassable_denials() {
        out::note(format_args!(
            "boxlite-vmm: warning: --deny {rule} applies only to what the box's own resolver answers; the box \
             can still connect to an address that it knows or gets from another resolver; to prevent that, \
             list what it may reach with --allow"
        ));
    }
}

impl BoxArgs {
    /// The options of a box with this main command.
    pub(crate) fn options(&self, global: &Global) -> Result<BoxOptions> {
        let mut options = BoxOptions::new(self.image().map_err(anyhow::Error::msg)?)
            .pull(self.pull)
            .cpus(self.cpus)
            .memory_mib(self.memory)
            .nested(self.nested)
            .main_command(true)
            .interactive(self.interactive)
            .tty(self.tty)
            .init(self.init && !self.no_init)
            .auto_remove(self.rm)
            .restart(self.restart)
            .ready_timeout(self.ready_timeout)
            .console(global.debug);
        options.platform = self.platform.clone();
        options.name = self.name.clone();
        options.disk_size_gib = self.disk_size;
        options.env = self.env.variables()?;
        options.working_dir = self.workdir.clone();
        options.user = self.user.clone();
        options.entrypoint = self
            .entrypoint
            .as_ref()
            .map(|program| if program.is_empty() { vec![] } else { vec![program.clone()] });
        let command: Vec<String> = self.command().map(utf8).collect::<Result<_>>()?;
        options.cmd = (!command.is_empty()).then_some(command);
        options.stop_signal = self.stop_signal.clone();
        options.labels = self.label.iter().cloned().collect();
        options.health = self.health.check();
        options.health_changes = self.health.changes_of_image();
        options.no_health_check = self.health.none;
        options.volumes = self.volume.clone();
        for volume in &mut options.volumes {
            // The box may be started from another working directory.
            volume.host = std::path::absolute(&volume.host)?;
        }
        options.ports = self.publish.clone();
        options.network.mode = self.network.unwrap_or_default();
        options.network.allow = self.allow.clone();
        options.network.deny = self.deny.clone();
        options.network.limit_down = self.limit_down;
        options.network.limit_up = self.limit_up;
        Ok(options)
    }

    fn image(&self) -> Result<String, String> {
        let image = self.image_and_command.first().and_then(|image| image.to_str());
        match image {
            Some(image) if image.starts_with('-') => {
                Err(format!("unknown option {image}; see `boxlite-vmm run --help`"))
            }
            Some(image) => Ok(image.to_owned()),
            None => Err("the image's name is not UTF-8".into()),
        }
    }

    fn command(&self) -> impl Iterator<Item = &OsString> {
        self.image_and_command.iter().skip(1)
    }
}

fn utf8(word: &OsString) -> Result<String> {
    match word.to_str() {
        Some(word) => Ok(word.to_owned()),
        None => bail!("{word:?} is not UTF-8"),
    }
}

impl EnvArgs {
    /// The variables; those of files come first.
    pub(crate) fn variables(&self) -> Result<Vec<(String, String)>> {
        let mut variables = Vec::new();
        for file in &self.env_file {
            let failed = || format!("--env-file {}", file.display());
            let text = std::fs::read_to_string(file).with_context(failed)?;
            variables.extend(variables_of(&text).with_context(failed)?);
        }
        variables.extend(self.env.iter().filter_map(|text| variable(text)));
        Ok(variables)
    }
}

/// The variables of a file, parsed as docker does: values verbatim, names without whitespace.
fn variables_of(text: &str) -> Result<Vec<(String, String)>> {
    // Some editors start a file with a byte-order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut variables = Vec::new();
    for (line, number) in text.lines().map(str::trim_start).zip(1..) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split('=').next().unwrap_or_default();
        if name.is_empty() {
            bail!("line {number}: there is no name before the '='");
        }
        if name.contains(char::is_whitespace) {
            bail!("line {number}: the name {name:?} contains whitespace; write NAME=VALUE");
        }
        variables.extend(variable(line));
    }
    Ok(variables)
}

/// As in docker, a variable without a value has this process's value, and is left out if this process has none.
fn variable(text: &str) -> Option<(String, String)> {
    match text.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), value.to_owned())),
        None => Some((text.to_owned(), std::env::var(text).ok()?)),
    }
}

impl HealthArgs {
    /// The box's own check.
    fn check(&self) -> Option<HealthCheck> {
        let mut check = HealthCheck::shell(self.cmd.clone()?);
        self.changes().apply(&mut check);
        Some(check)
    }

    /// As in docker, the options change the image's check if the box has no check of its own.
    fn changes_of_image(&self) -> HealthChanges {
        if self.cmd.is_some() { HealthChanges::default() } else { self.changes() }
    }

    fn changes(&self) -> HealthChanges {
        let mut changes = HealthChanges::default();
        changes.interval = self.interval;
        changes.timeout = self.timeout;
        changes.retries = self.retries;
        changes.start_period = self.start_period;
        changes.stop = self.stop.then_some(true);
        changes
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Subcommand};
    use boxlite_runtime::{BoxOption, Transport};

    fn options(args: &[&str]) -> Result<BoxOptions> {
        let cli = Cli::parse_from([&["x", "create"], args].concat());
        let Subcommand::Create(create) = cli.command else { panic!() };
        create.sandbox.options(&cli.global)
    }

    #[test]
    fn every_option_arrives() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        std::fs::write(&file, "# none\n\n  A=1\nB=x=y\nNOT_SET_ANYWHERE_AT_ALL\n").unwrap();
        let file = file.to_str().unwrap();
        let words = "--name n -l a=b --label c --pull never --platform linux/arm64/v8 --cpus 3 -m 1G --nested --disk-size 20 --rm -it \
                     -e A=2 -w /w -u me --no-init --init --entrypoint e --stop-signal HUP --restart on-failure:2 \
                     --ready-timeout 5s --health-cmd check --health-interval 1s --health-timeout 2s \
                     --health-retries 4 --health-start-period 3s --health-stop --env-file";
        let words: Vec<_> = words.split_whitespace().chain([file, "img", "cmd", "-x"]).collect();
        let got = options(&words).unwrap();
        let mut health = HealthCheck::shell("check");
        health.interval = Duration::from_secs(1);
        health.timeout = Duration::from_secs(2);
        health.retries = 4;
        health.start_period = Duration::from_secs(3);
        health.stop = true;
        let mut expected = BoxOptions::new("img")
            .name("n")
            .label("a", "b")
            .label("c", "")
            .pull(PullPolicy::Never)
            .platform("linux/arm64/v8".parse().unwrap())
            .cpus(3)
            .memory_mib(1024)
            .nested(true)
            .disk_size_gib(20)
            .auto_remove(true)
            .interactive(true)
            .tty(true)
            .init(true)
            .env("A", "1")
            .env("B", "x=y")
            .env("A", "2")
            .working_dir("/w")
            .user("me")
            .entrypoint(["e"])
            .cmd(["cmd", "-x"])
            .restart(RestartPolicy::OnFailure(2))
            .ready_timeout(Duration::from_secs(5))
            .health(health);
        expected.stop_signal = Some("HUP".into());
        assert_eq!(got, expected);
    }

    #[test]
    fn without_a_check_of_its_own_a_box_changes_that_of_its_image() {
        let words = "--health-interval 1s --health-timeout 2s --health-retries 4 --health-start-period 3s \
                     --health-stop img";
        let got = options(&words.split_whitespace().collect::<Vec<_>>()).unwrap();
        assert_eq!(got.health, None);
        let mut check = HealthCheck::new(["/check"]);
        got.health_changes.apply(&mut check);
        let second = Duration::from_secs(1);
        assert_eq!((check.interval, check.timeout), (second, 2 * second));
        assert_eq!((check.start_period, check.retries, check.stop), (3 * second, 4, true));
        got.validate().unwrap();
        assert!(options(&["img"]).unwrap().health_changes.is_empty());
        let bad = options(&["--health-retries", "0", "img"]).unwrap();
        assert!(bad.validate().unwrap_err().to_string().contains("health"));
        let none = ["x", "create", "--no-healthcheck", "--health-retries", "3", "img"];
        assert!(Cli::try_parse_from(none).is_err());
    }

    #[test]
    fn env_files_are_read_as_docker_reads_them() {
        let read = |text: &str| variables_of(text).map_err(|e| e.to_string());
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            read("\u{feff}A=1\r\n\t B= x # y \n#C=1\n\nD=\"q\"\nE=\n"),
            Ok(vec![pair("A", "1"), pair("B", " x # y "), pair("D", "\"q\""), pair("E", "")])
        );
        assert_eq!(read("\u{feff}"), Ok(vec![]));
        // Only at the beginning is it a mark.
        assert_eq!(read("A=\u{feff}"), Ok(vec![pair("A", "\u{feff}")]));
        for bad in ["A=1\nexport B=1", "A=1\nB =1", "A=1\n=1", "A=1\nB C"] {
            assert!(read(bad).unwrap_err().starts_with("line 2: "), "{bad}");
        }
    }

    #[test]
    fn unsupported_options_are_listed_together() {
        let words =
            "-p 80:80/udp -v /a:/b:ro --network none --allow x:y --limit-up 1K --memory 1M img";
        let got = options(&words.split(' ').collect::<Vec<_>>()).unwrap();
        assert_eq!(got.ports[0].protocol, Transport::Udp);
        assert!(got.volumes[0].read_only);
        let error = got.validate().unwrap_err();
        let named: Vec<_> = error.problems().iter().map(|problem| problem.option).collect();
        use BoxOption::{MemoryMib, NetworkAllow, NetworkLimitUp, Ports, Volumes};
        assert_eq!(named, [MemoryMib, Volumes, NetworkAllow, Ports, NetworkAllow, NetworkLimitUp]);
        let words = ["--deny", "x", "--allow", "y:80", "--limit-down", "10M", "img"];
        let got = options(&words).unwrap();
        assert_eq!(got.network.mode, NetworkMode::Nat);
        assert_eq!((got.network.limit_down, got.network.limit_up), (Some(10 << 20), None));
        got.validate().unwrap();
    }

    #[test]
    fn a_flag_after_the_image_is_the_commands_and_an_unknown_one_before_it_an_error() {
        let flagged = options(&["--entrypoint", "id", "oci:d", "-u"]).unwrap();
        assert_eq!(flagged.image, "oci:d");
        assert_eq!((flagged.cmd, flagged.user), (Some(vec!["-u".into()]), None));
        let error = options(&["--memry", "3", "oci:d"]).unwrap_err().to_string();
        assert!(error.contains("--memry"), "{error}");
        assert_eq!(options(&["--entrypoint", "", "x"]).unwrap().entrypoint, Some(vec![]));
        assert!(options(&["--no-healthcheck", "x"]).unwrap().no_health_check);
    }
}
