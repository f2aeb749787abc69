//! What is written down of a box when it is made: `config.json`.

use boxlite_proto::message::{Exec, TerminalSize};
use boxlite_rootfs_builder::ImageConfig;
use serde::{Deserialize, Serialize};

use super::options::BoxOptions;
use super::{Error, Result, signals};
use crate::machine::{HealthSpec, MainSpec};

/// SIGTERM.
const TERM: i32 = 15;

/// What a command's terminal is where nobody says so.
pub(super) const DEFAULT_TERM: &str = "xterm";

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
        let mut env = Environment(Vec::new());
        for variable in &image.env {
            if let Some((name, value)) = variable.split_once('=') {
                env.set(name.as_bytes(), value.as_bytes());
            }
        }
        for (name, value) in &options.env {
            env.set(name.as_bytes(), value.as_bytes());
        }
        Exec {
            argv,
            env: env.0,
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
        let signal = self.options.stop_signal.as_ref().unwrap_or(&self.image.stop_signal);
        // An image may name what is none.
        let stop_signal = signals::parse(signal).unwrap_or(TERM);
        Ok(MainSpec { exec, wait_for_attach, stop_signal })
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
    pub(super) fn set(&mut self, name: &[u8], value: &[u8]) {
        let prefix = [name, b"="].concat();
        self.0.retain(|variable| !variable.starts_with(&prefix));
        self.0.push([&prefix, value].concat());
    }

    /// What a command's terminal is, unless somebody has said so.
    pub(super) fn set_terminal_type(&mut self, kind: &str) {
        if !self.0.iter().any(|variable| variable.starts_with(b"TERM=")) {
            self.set(b"TERM", kind.as_bytes());
        }
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
    fn a_terminal_is_what_was_asked_for() {
        let mut env = Environment(vec![b"TERMINFO=/x".to_vec()]);
        env.set_terminal_type("xterm");
        assert_eq!(env.0.last().unwrap(), b"TERM=xterm");
        env.set(b"TERM", b"vt100");
        env.set_terminal_type("xterm");
        assert_eq!(env.0, [&b"TERMINFO=/x"[..], b"TERM=vt100"]);
    }
}
