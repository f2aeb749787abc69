//! Credential helpers: the programs `docker-credential-<name>` with the actions get, store, erase.
//!
//! (docker-credential-helpers, README "Development")

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;

use super::credentials::Credentials;
use super::problem::printable;
use crate::error::{Error, Result};

/// Timeout of a helper; it may ask its user for a passphrase.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Maximum output of a helper, in bytes.
const MAX_OUTPUT: u64 = 1 << 20;

/// A credential helper.
#[derive(Clone, Debug)]
pub(super) struct Helper {
    name: String,
}

impl Helper {
    /// The helper `name`, from the file `config`.
    pub(super) fn named(name: &str, config: &Path) -> Result<Self> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.chars().all(is_plain) && name.len() <= 100 {
            return Ok(Self { name: name.to_owned() });
        }
        Err(Error::RegistryConfig {
            file: config.to_owned(),
            reason: format!("{:?} is not the name of a credential helper", printable(name)),
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Name of the program.
    pub(super) fn program(&self) -> String {
        format!("docker-credential-{}", self.name)
    }

    /// The login for a registry, if the helper has one.
    pub(super) fn get(&self, registry: &str) -> Result<Option<Credentials>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            username: String,
            secret: String,
        }
        let (success, output) = self.run("get", registry)?;
        if !success {
            // The message that all helpers share.
            let text = output.to_lowercase();
            if text.contains("credentials not found") {
                return Ok(None);
            }
            return Err(self.failed(&output));
        }
        // The output has a secret: the cause must not be shown.
        let answer: Answer = serde_json::from_str(&output)
            .map_err(|_| self.failed("its answer is not what a credential helper says"))?;
        Ok(Credentials::new(answer.username, answer.secret))
    }

    /// Stores a login.
    pub(super) fn store(&self, registry: &str, user: &str, secret: &str) -> Result<()> {
        let login = json!({ "ServerURL": registry, "Username": user, "Secret": secret });
        self.must("store", &login.to_string())
    }

    /// Erases a login.
    pub(super) fn erase(&self, registry: &str) -> Result<()> {
        self.must("erase", registry)
    }

    fn must(&self, action: &str, input: &str) -> Result<()> {
        match self.run(action, input)? {
            (true, _) => Ok(()),
            (false, output) => Err(self.failed(&output)),
        }
    }

    fn failed(&self, reason: &str) -> Error {
        Error::CredentialHelper { program: self.program(), reason: printable(reason) }
    }

    /// Runs the helper with `input` on stdin; returns whether it succeeded, and its output.
    fn run(&self, action: &str, input: &str) -> Result<(bool, String)> {
        let failed = |error: std::io::Error| self.failed(&error.to_string());
        let mut child = Command::new(self.program())
            .arg(action)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let input = input.to_owned();
        // Each pipe has a thread of its own, which ends with the child.
        thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
        let (sender, output) = mpsc::channel();
        thread::spawn(move || {
            let mut output = Vec::new();
            stdout.map(|stdout| stdout.take(MAX_OUTPUT).read_to_end(&mut output));
            sender.send(String::from_utf8_lossy(&output).into_owned())
        });
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                // Bounded: a process left behind may keep the pipe open.
                let output = output.recv_timeout(Duration::from_secs(5)).unwrap_or_default();
                return Ok((status.success(), output));
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                return Err(self.failed("it does not exit"));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}
