//! What is written down of a box when it is made: `config.json`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use boxlite_proto::message::{Exec, TerminalSize};
use boxlite_rootfs_builder::ImageConfig;
use serde::{Deserialize, Serialize};

use super::options::BoxOptions;
use super::{Error, Result, limits, signals};
use crate::machine::{HealthSpec, MainSpec};

/// SIGTERM.
const TERM: i32 = 15;

/// A box as it was made. Written by this release, read by this and later ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BoxConfig {
    /// Its ID: 32 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was made: milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// What was asked for.
    pub options: BoxOptions,
    /// The digest of the image.
    pub image_digest: String,
    /// What the image says of commands.
    pub image: ImageConfig,
}

impl BoxConfig {
    /// The main command's words: the entry point, and the arguments of its own or, for its own entry
    /// point, the image's.
    pub fn main_argv(&self) -> Result<Vec<String>> {
        let Self { options, image, .. } = self;
        let (mut argv, defaults) = match &options.entrypoint {
            // The image's arguments are for its own entry point.
            Some(entrypoint) => (entrypoint.clone(), Vec::new()),
            None => (image.entrypoint.clone(), image.cmd.clone()),
        };
        argv.extend(options.cmd.clone().filter(|cmd| !cmd.is_empty()).unwrap_or(defaults));
        if argv.is_empty() {
            return Err(Error::NoCommand { image: options.image.clone() });
        }
        Ok(argv)
    }

    /// A command with the environment, user and working directory of the box.
    pub(super) fn exec(&self, argv: Vec<Vec<u8>>) -> Exec {
        let Self { options, image, .. } = self;
        let of_image = image.env.iter().filter_map(|variable| variable.split_once('='));
        let of_box = options.env.iter().map(|(name, value)| (&**name, &**value));
        Exec {
            argv,
            env: Environment::of(of_image.chain(of_box)).0,
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
            if !env.has(b"TERM") {
                env.set(b"TERM", b"xterm");
            }
            exec.env = env.0;
        }
        let signal = self.options.stop_signal.as_ref().unwrap_or(&self.image.stop_signal);
        // An image may name what is none.
        let stop_signal = signals::parse(signal).unwrap_or(TERM);
        Ok(MainSpec { exec, wait_for_attach, stop_signal })
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
        if problems.is_empty() { Ok(()) } else { Err(Error::Options(problems)) }
    }

    /// The health checks.
    pub(super) fn health(&self) -> Option<HealthSpec> {
        let health = self.options.health.as_ref()?;
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

/// `NAME=value` lines, each name once.
pub(super) struct Environment(pub(super) Vec<Vec<u8>>);

impl Environment {
    /// The last value counts.
    fn of<'a>(variables: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let (mut lines, mut places) = (Vec::new(), HashMap::new());
        for (name, value) in variables {
            let line = [name, "=", value].concat().into_bytes();
            match places.entry(name) {
                Entry::Occupied(place) => lines[*place.get()] = line,
                Entry::Vacant(place) => {
                    place.insert(lines.len());
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

    fn has(&self, name: &[u8]) -> bool {
        let prefix = [name, b"="].concat();
        self.0.iter().any(|variable| variable.starts_with(&prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(matches!(config(none).main_argv(), Err(Error::NoCommand { .. })));
    }

    #[test]
    fn the_main_command_has_the_boxs_surroundings() {
        let options = BoxOptions::new("x").env("A", "2").user("nobody").tty(true);
        let size = TerminalSize { rows: 24, columns: 80 };
        let main = config(options).main(size, true).unwrap();
        assert_eq!(main.stop_signal, 3);
        assert_eq!(main.exec.user, "nobody");
        assert_eq!(main.exec.terminal, Some(size));
        let env: Vec<_> = main.exec.env.iter().map(|v| String::from_utf8_lossy(v)).collect();
        assert_eq!(env, ["PATH=/bin", "A=2", "TERM=xterm"]);
    }

    #[test]
    fn what_linux_cannot_run_is_refused_before_a_box_is_made_for_it() {
        let env = |value: usize, count: usize| {
            (0..count).fold(BoxOptions::new("x"), |options, n| {
                options.env(format!("V{n}"), "x".repeat(value))
            })
        };
        config(env(100_000, 10)).check_sizes().unwrap();
        config(env(20, 20_000)).check_sizes().unwrap();
        let refused = |options| matches!(config(options).check_sizes(), Err(Error::Options(_)));
        assert!(refused(env(140_000, 1)) && refused(env(100_000, 25)));
        assert!(refused(BoxOptions::new("x").cmd(["x".repeat(140_000)])));
        // Whatever a box without a main command runs has its environment.
        assert!(refused(env(140_000, 1).main_command(false)));
    }
}
