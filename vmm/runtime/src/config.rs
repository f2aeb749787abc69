//! The configuration of a box, written to `config.json` when it is created; and its commands.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use boxlite_contract::spec::{HealthSpec, MainSpec};
use boxlite_proto::message::{Exec, TerminalSize};
use boxlite_rootfs_builder::ImageConfig;
use serde::{Deserialize, Serialize};

use super::options::{BoxOptions, HealthCheck, MIN_HEALTH_TIME};
use super::problem::{BoxOption, Problem};
use super::{Error, Result, limits, signals};

/// SIGTERM.
const TERM: i32 = 15;

/// `TERM` of a command with a terminal, if neither the caller nor the box sets it.
pub(super) const DEFAULT_TERM: &str = "xterm";

/// The configuration of a box. Written by this release, read by this and later ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BoxConfig {
    /// The box's ID: 32 hexadecimal digits.
    pub id: String,
    /// The box's name.
    pub name: String,
    /// Time of creation: milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// The options that the box was created with.
    pub options: BoxOptions,
    /// The digest of the image.
    pub image_digest: String,
    /// The configuration in the image: its commands, environment, user and health check.
    pub image: ImageConfig,
}

impl BoxConfig {
    /// The words of the main command: the entry point and its arguments. The image's arguments are used only with the
    /// image's entry point.
    ///
    /// # Errors
    /// Neither the options nor the image have a command.
    pub fn main_argv(&self) -> Result<Vec<String>> {
        let Self { options, image, .. } = self;
        let (mut argv, defaults) = match &options.entrypoint {
            // The image's arguments are for its own entry point.
            Some(entrypoint) => (entrypoint.clone(), Vec::new()),
            None => (image.entrypoint.clone(), image.cmd.clone()),
        };
        // As in docker, one empty word removes the entry point of a base image.
        if argv == [""] {
            argv.clear();
        }
        argv.extend(options.cmd.clone().filter(|cmd| !cmd.is_empty()).unwrap_or(defaults));
        if argv.is_empty() {
            return Err(Error::no_command(&options.image));
        }
        Ok(argv)
    }

    /// A command with the environment, user and working directory of the box.
    pub(super) fn exec(&self, argv: Vec<Vec<u8>>) -> Exec {
        let Self { options, image, .. } = self;
        let host = [("HOSTNAME", self.name.as_str())].into_iter();
        let of_image = image.env.iter().filter_map(|variable| variable.split_once('='));
        let of_box = options.env.iter().map(|(name, value)| (&**name, &**value));
        Exec {
            argv,
            env: Environment::of(host.chain(of_image).chain(of_box)).0,
            working_dir: options.working_dir.as_ref().unwrap_or(&image.working_dir).clone().into(),
            user: options.user.as_ref().unwrap_or(&image.user).clone(),
            terminal: None,
            stdin: false,
        }
    }

    /// The main command, on a terminal of this size if it has one.
    pub(super) fn main(&self, size: TerminalSize, wait_for_attach: bool) -> Result<MainSpec> {
        let argv = self.main_argv()?.into_iter().map(String::into_bytes).collect();
        let mut exec = self.exec(argv);
        exec.stdin = self.options.interactive;
        if self.options.tty {
            exec.terminal = Some(size);
            let mut env = Environment(std::mem::take(&mut exec.env));
            env.set_terminal_type(DEFAULT_TERM);
            exec.env = env.0;
        }
        let (stop_signal, init) = (self.stop_signal(), self.options.init);
        Ok(MainSpec { exec, wait_for_attach, stop_signal, init })
    }

    fn stop_signal(&self) -> i32 {
        let signal = self.options.stop_signal.as_ref().unwrap_or(&self.image.stop_signal);
        if signal.is_empty() {
            return TERM;
        }
        signals::parse(signal).unwrap_or_else(|| {
            let (name, image) = (&self.name, &self.options.image);
            tracing::warn!(
                "{name}: the stop signal {signal:?} of {image} is unknown; SIGTERM is used"
            );
            TERM
        })
    }

    /// Checks that Linux can run the commands.
    pub(super) fn check_sizes(&self) -> Result<()> {
        let main = match self.options.main_command {
            true => self.main(TerminalSize { rows: 0, columns: 0 }, false)?.exec,
            false => self.exec(Vec::new()),
        };
        let health = self.health().map(|health| health.exec);
        let problems: Vec<_> =
            [main].iter().chain(&health).filter_map(|exec| limits::check(exec).err()).collect();
        if problems.is_empty() { Ok(()) } else { Err(Error::options(problems)) }
    }

    /// The health check, as a box's process takes it.
    pub(super) fn health(&self) -> Option<HealthSpec> {
        let health = self.health_check()?;
        let ms = |time: std::time::Duration| time.as_millis().try_into().unwrap_or(u64::MAX);
        let argv = health.command.iter().map(|word| word.clone().into_bytes()).collect();
        Some(HealthSpec {
            exec: self.exec(argv),
            interval_ms: ms(health.interval),
            timeout_ms: ms(health.timeout),
            retries: health.retries,
            start_period_ms: ms(health.start_period),
            stop: health.stop,
        })
    }
}

impl BoxConfig {
    /// The box's own check, or its image's, with the box's changes.
    fn health_check(&self) -> Option<HealthCheck> {
        let own = self.options.health.clone();
        let mut check = own.or_else(|| self.health_check_of_image())?;
        self.options.health_changes.apply(&mut check);
        Some(check)
    }

    /// The image's check, which only makes sense with a main command.
    fn health_check_of_image(&self) -> Option<HealthCheck> {
        let Self { options, image, .. } = self;
        let used = options.main_command && !options.no_health_check;
        let health = image.health.as_ref().filter(|_| used)?;
        let or = |time: Duration, default| if time.is_zero() { default } else { time };
        let mut check = HealthCheck::new(health.command.clone());
        check.interval = or(health.interval, check.interval).max(MIN_HEALTH_TIME);
        check.timeout = or(health.timeout, check.timeout).max(MIN_HEALTH_TIME);
        check.start_period = health.start_period;
        if health.retries > 0 {
            check.retries = health.retries;
        }
        Some(check)
    }

    /// Checks that there is a health check if the options change one.
    pub(super) fn check_health(&self) -> Result<()> {
        if self.options.health_changes.is_empty() || self.health_check().is_some() {
            return Ok(());
        }
        let why = match self.options.main_command {
            true => "the image has no health check to change",
            false => "a box without a main command does not have its image's health check",
        };
        let problem = Problem::new(BoxOption::HealthCommand, format!("is needed: {why}"));
        Err(Error::options(vec![problem]))
    }
}

/// Environment variables as `NAME=value` lines, each name once.
pub(super) struct Environment(pub(super) Vec<Vec<u8>>);

impl Environment {
    /// The last value of a name counts.
    fn of<'a>(variables: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let (mut lines, mut indexes) = (Vec::new(), HashMap::new());
        for (name, value) in variables {
            let line = [name, "=", value].concat().into_bytes();
            match indexes.entry(name) {
                Entry::Occupied(index) => lines[*index.get()] = line,
                Entry::Vacant(index) => {
                    index.insert(lines.len());
                    lines.push(line);
                }
            }
        }
        Self(lines)
    }

    pub(super) fn set(&mut self, name: &[u8], value: &[u8]) {
        let prefix = [name, b"="].concat();
        self.0.retain(|variable| !variable.starts_with(&prefix));
        self.0.push([&prefix, value].concat());
    }

    /// Sets `TERM`, unless it is set.
    pub(super) fn set_terminal_type(&mut self, kind: &str) {
        if !self.0.iter().any(|variable| variable.starts_with(b"TERM=")) {
            self.set(b"TERM", kind.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use boxlite_rootfs_builder::ImageHealth;

    use super::*;
    use crate::options::HealthChanges;

    fn config(options: BoxOptions) -> BoxConfig {
        let image = ImageConfig {
            env: vec!["PATH=/bin".into(), "A=1".into()],
            entrypoint: vec!["/entry".into()],
            cmd: vec!["default".into()],
            stop_signal: "SIGQUIT".into(),
            ..ImageConfig::default()
        };
        BoxConfig {
            id: "1".into(),
            name: "a".into(),
            created_ms: 0,
            options,
            image_digest: String::new(),
            image,
        }
    }

    #[test]
    fn entry_point_and_arguments_replace_the_images() {
        let argv = |options| config(options).main_argv().unwrap().join(" ");
        assert_eq!(argv(BoxOptions::new("x")), "/entry default");
        assert_eq!(argv(BoxOptions::new("x").cmd(["a", "b"])), "/entry a b");
        assert_eq!(argv(BoxOptions::new("x").entrypoint(["sh"])), "sh");
        assert_eq!(argv(BoxOptions::new("x").entrypoint(["sh"]).cmd(["-c"])), "sh -c");
        let none = BoxOptions::new("x").entrypoint(Vec::<String>::new());
        assert_eq!(
            config(none).main_argv().unwrap_err().remedy(),
            Some(&crate::Remedy::GiveCommand)
        );
    }

    #[test]
    fn an_entry_point_of_one_empty_word_is_none() {
        let argv = |options| {
            let mut config = config(options);
            config.image.entrypoint = vec![String::new()];
            config.main_argv().unwrap().join(" ")
        };
        assert_eq!(argv(BoxOptions::new("x")), "default");
        assert_eq!(argv(BoxOptions::new("x").cmd(["a", "b"])), "a b");
        assert_eq!(argv(BoxOptions::new("x").entrypoint([""]).cmd(["a"])), "a");
        let none = BoxOptions::new("x").entrypoint([""]);
        assert_eq!(
            config(none).main_argv().unwrap_err().remedy(),
            Some(&crate::Remedy::GiveCommand)
        );
    }

    #[test]
    fn the_images_health_check_is_used_unless_the_box_has_one_or_wants_none() {
        let health = |options: BoxOptions| {
            let mut config = config(options);
            config.image.health = Some(ImageHealth {
                command: vec!["/check".into()],
                interval: Duration::from_secs(5),
                ..ImageHealth::default()
            });
            config.health()
        };
        let main = || BoxOptions::new("x").main_command(true);
        let of_image = health(main()).unwrap();
        assert_eq!(of_image.exec.argv, [b"/check"]);
        assert_eq!((of_image.interval_ms, of_image.timeout_ms), (5_000, 30_000));
        assert_eq!((of_image.retries, of_image.stop), (3, false));
        let own = health(main().health(HealthCheck::new(["/own"]))).unwrap();
        assert_eq!((own.exec.argv, own.interval_ms), (vec![b"/own".to_vec()], 30_000));
        assert!(health(main().no_health_check(true)).is_none());
        // Without a main command, nothing runs that the check could test.
        assert!(health(BoxOptions::new("x")).is_none());
    }

    #[test]
    fn a_box_changes_the_check_that_it_has() {
        let changes = HealthChanges {
            interval: Some(Duration::from_secs(7)),
            retries: Some(9),
            stop: Some(true),
            ..HealthChanges::default()
        };
        let changed = |options: BoxOptions, of_image: Option<ImageHealth>| {
            let mut config = config(options.health_changes(changes.clone()));
            config.image.health = of_image;
            config.check_health().map(|()| config.health().unwrap())
        };
        let image = Some(ImageHealth {
            command: vec!["/check".into()],
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(4),
            ..ImageHealth::default()
        });
        let main = || BoxOptions::new("x").main_command(true);
        let health = changed(main(), image.clone()).unwrap();
        assert_eq!(health.exec.argv, [b"/check"]);
        assert_eq!((health.interval_ms, health.timeout_ms), (7_000, 4_000));
        assert_eq!((health.retries, health.stop), (9, true));
        let own = changed(main().health(HealthCheck::new(["/own"])), None).unwrap();
        assert_eq!((own.interval_ms, own.timeout_ms), (7_000, 30_000));
        let why = |refused: Result<HealthSpec>| match refused {
            Err(error) => error.problems()[0].message.clone(),
            other => panic!("{other:?}"),
        };
        assert!(why(changed(main(), None)).contains("the image has no health check"));
        assert!(why(changed(BoxOptions::new("x"), image)).contains("without a main command"));
        config(main()).check_health().unwrap();
    }

    #[test]
    fn the_stop_signal_is_the_images_in_any_form() {
        let signal = |text: &str| {
            let mut config = config(BoxOptions::new("x"));
            config.image.stop_signal = text.into();
            config.stop_signal()
        };
        assert_eq!((signal("SIGRTMAX-3"), signal("RTMIN+3"), signal("SIGINT")), (61, 37, 2));
        assert_eq!((signal("28"), signal(""), signal("SIGNOTHING")), (28, TERM, TERM));
    }

    #[test]
    fn a_box_of_an_earlier_release_is_read() {
        let mut value = serde_json::to_value(config(BoxOptions::new("x"))).unwrap();
        let image = value["image"].as_object_mut().unwrap();
        assert!(image.remove("volumes").is_some() && image.remove("health").is_some());
        let old: BoxConfig = serde_json::from_value(value).unwrap();
        assert_eq!(old, config(BoxOptions::new("x")));
    }

    #[test]
    fn the_main_command_has_the_environment_user_and_terminal_of_the_box() {
        let options = BoxOptions::new("x").env("A", "2").user("nobody").tty(true);
        let size = TerminalSize { rows: 24, columns: 80 };
        let main = config(options).main(size, true).unwrap();
        assert_eq!(main.stop_signal, 3);
        assert_eq!(main.exec.user, "nobody");
        assert_eq!(main.exec.terminal, Some(size));
        let env: Vec<_> = main.exec.env.iter().map(|v| String::from_utf8_lossy(v)).collect();
        assert_eq!(env, ["HOSTNAME=a", "PATH=/bin", "A=2", "TERM=xterm"]);
        let own = config(BoxOptions::new("x").env("HOSTNAME", "other")).exec(Vec::new()).env;
        assert!(
            own.contains(&b"HOSTNAME=other".to_vec()) && !own.contains(&b"HOSTNAME=a".to_vec())
        );
    }

    #[test]
    fn commands_that_linux_cannot_run_are_refused_before_a_box_is_created() {
        let env = |value: usize, count: usize| {
            (0..count).fold(BoxOptions::new("x"), |options, n| {
                options.env(format!("V{n}"), "x".repeat(value))
            })
        };
        config(env(100_000, 10)).check_sizes().unwrap();
        config(env(20, 20_000)).check_sizes().unwrap();
        let refused = |options| {
            config(options).check_sizes().is_err_and(|error| !error.problems().is_empty())
        };
        assert!(refused(env(140_000, 1)) && refused(env(100_000, 25)));
        assert!(refused(BoxOptions::new("x").cmd(["x".repeat(140_000)])));
        // Each exec in a box without a main command has its environment, too.
        assert!(refused(env(140_000, 1).main_command(false)));
    }

    #[test]
    fn a_set_term_is_kept() {
        let mut env = Environment(vec![b"TERMINFO=/x".to_vec()]);
        env.set_terminal_type("xterm");
        assert_eq!(env.0.last().unwrap(), b"TERM=xterm");
        env.set(b"TERM", b"vt100");
        env.set_terminal_type("xterm");
        assert_eq!(env.0, [&b"TERMINFO=/x"[..], b"TERM=vt100"]);
    }
}
