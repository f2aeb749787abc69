//! The image config: what to run and how.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::digest::Digest;

/// The part of an image config that a box honours; absent fields are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Environment, `NAME=value` each.
    pub env: Vec<String>,
    /// The program and its first arguments; [`cmd`](Self::cmd) follows it.
    pub entrypoint: Vec<String>,
    /// The default arguments, or the program where there is no entrypoint.
    pub cmd: Vec<String>,
    /// Working directory of the command; empty means `/`.
    pub working_dir: String,
    /// `name`, `uid`, `name:group` or `uid:gid`; empty means root.
    pub user: String,
    /// Signal that asks the command to exit: a name or a number; empty means SIGTERM.
    pub stop_signal: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Processor architecture: `amd64`, `arm64`, …
    pub architecture: String,
    /// Variant of the architecture: `v8`; that of the image's entry in an index if the entry names one. Empty if neither
    /// does.
    #[serde(default)]
    pub variant: String,
    /// Operating system: `linux`.
    pub os: String,
    /// Creation time, RFC 3339.
    pub created: String,
    /// Mount points of volumes.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// Health check, if the image has one.
    #[serde(default)]
    pub health: Option<ImageHealth>,
}

/// Health check of an image. Zero durations and zero retries mean the runtime's defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageHealth {
    /// The command; exit code 0 means healthy.
    pub command: Vec<String>,
    /// Time between two checks.
    pub interval: Duration,
    /// Timeout of one check.
    pub timeout: Duration,
    /// Time after the start in which failures do not count.
    pub start_period: Duration,
    /// Consecutive failures that make a container unhealthy.
    pub retries: u32,
}

/// Parsed config blob.
#[derive(Debug, Default)]
pub(crate) struct ConfigBlob {
    pub(crate) config: ImageConfig,
    pub(crate) diff_ids: Vec<Digest>,
}

impl ConfigBlob {
    /// Parses `application/vnd.oci.image.config.v1+json` or Docker's equivalent. Docker writes
    /// `null` for empty fields.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        let raw: RawImage = serde_json::from_slice(json)?;
        let run = raw.config;
        Ok(Self {
            config: ImageConfig {
                env: run.env,
                entrypoint: run.entrypoint.0,
                cmd: run.cmd.0,
                working_dir: run.working_dir,
                user: run.user,
                stop_signal: run.stop_signal,
                labels: run.labels.into_iter().map(|(k, v)| (k, v.unwrap_or_default())).collect(),
                architecture: raw.architecture,
                variant: raw.variant,
                os: raw.os,
                created: raw.created,
                volumes: run.volumes.into_keys().filter(|path| !path.is_empty()).collect(),
                health: run.healthcheck.check(run.shell.0),
            },
            diff_ids: raw.rootfs.diff_ids,
        })
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawImage {
    #[serde(deserialize_with = "or_default")]
    architecture: String,
    #[serde(deserialize_with = "or_default")]
    variant: String,
    #[serde(deserialize_with = "or_default")]
    os: String,
    #[serde(deserialize_with = "or_default")]
    created: String,
    #[serde(deserialize_with = "or_default")]
    config: RawConfig,
    #[serde(deserialize_with = "or_default")]
    rootfs: RawRootfs,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawRootfs {
    #[serde(deserialize_with = "or_default")]
    diff_ids: Vec<Digest>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RawConfig {
    #[serde(deserialize_with = "or_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    entrypoint: Words,
    #[serde(deserialize_with = "or_default")]
    cmd: Words,
    #[serde(deserialize_with = "or_default")]
    working_dir: String,
    #[serde(deserialize_with = "or_default")]
    user: String,
    #[serde(deserialize_with = "or_default")]
    stop_signal: String,
    #[serde(deserialize_with = "or_default")]
    labels: BTreeMap<String, Option<String>>,
    #[serde(deserialize_with = "or_default")]
    volumes: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(deserialize_with = "or_default")]
    healthcheck: RawHealth,
    #[serde(deserialize_with = "or_default")]
    shell: Words,
}

/// Durations are in nanoseconds.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RawHealth {
    #[serde(deserialize_with = "or_default")]
    test: Words,
    #[serde(deserialize_with = "or_default")]
    interval: i64,
    #[serde(deserialize_with = "or_default")]
    timeout: i64,
    #[serde(deserialize_with = "or_default")]
    start_period: i64,
    #[serde(deserialize_with = "or_default")]
    retries: i64,
}

impl RawHealth {
    /// Interprets the test: `NONE`; `CMD` and words; `CMD-SHELL` and a line for the shell.
    fn check(self, shell: Vec<String>) -> Option<ImageHealth> {
        let time = |ns: i64| Duration::from_nanos(ns.try_into().unwrap_or(0));
        let (kind, words) = self.test.0.split_first()?;
        let command = match (&**kind, words) {
            ("CMD", [_, ..]) => words.to_vec(),
            ("CMD-SHELL", [line, ..]) => {
                let default = || vec!["/bin/sh".to_owned(), "-c".to_owned()];
                let mut command = if shell.is_empty() { default() } else { shell };
                command.push(line.clone());
                command
            }
            _ => return None,
        };
        Some(ImageHealth {
            command,
            interval: time(self.interval),
            timeout: time(self.timeout),
            start_period: time(self.start_period),
            retries: self.retries.clamp(0, u32::MAX.into()).try_into().unwrap_or(0),
        })
    }
}

/// A list of strings; old images have a bare string for a list of one.
#[derive(Default)]
struct Words(Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Many(Vec<String>),
            One(String),
        }
        Ok(Self(match Either::deserialize(deserializer)? {
            Either::Many(words) => words,
            Either::One(word) => vec![word],
        }))
    }
}

/// Deserializes `null` as the default value.
pub(crate) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests;
