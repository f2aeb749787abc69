//! The image config: what to run and how, as its maker wished.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;

/// The part of an image's config that a box honours. What the image leaves out is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// The program and its first arguments; [`cmd`](Self::cmd) follows it.
    pub entrypoint: Vec<String>,
    /// The default arguments, or the program where there is no entrypoint.
    pub cmd: Vec<String>,
    /// Where the command starts; `/` where empty.
    pub working_dir: String,
    /// `name`, `uid`, `name:group` or `uid:gid`; root where empty.
    pub user: String,
    /// The signal that asks the command to end, `SIGTERM` or a number; SIGTERM where empty.
    pub stop_signal: String,
    /// Whatever the maker attached.
    pub labels: BTreeMap<String, String>,
    /// For which processor: `amd64`, `arm64`, …
    pub architecture: String,
    /// For which operating system: `linux`.
    pub os: String,
    /// When it was made, RFC 3339.
    pub created: String,
}

/// What is read from a config blob.
#[derive(Debug, Default)]
pub(crate) struct ConfigBlob {
    pub(crate) config: ImageConfig,
    pub(crate) diff_ids: Vec<Digest>,
}

impl ConfigBlob {
    /// Parses the JSON of `application/vnd.oci.image.config.v1+json` or Docker's twin of it.
    /// Docker writes `null` for whatever is empty.
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
                os: raw.os,
                created: raw.created,
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
}

/// A list of strings; old images have one bare string for a list of one.
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

/// `null` is the default value.
pub(crate) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_writes() {
        let diff_id = Digest::sha256(b"layer");
        let json = format!(
            r#"{{"architecture":"amd64","os":"linux","created":"2024-01-02T03:04:05Z","id":null,
            "config":{{"Hostname":"","ExposedPorts":null,"Env":["A=1","B=ü"],"Cmd":null,
              "Entrypoint":["/init","-x"],"WorkingDir":"/srv","User":"nobody:nogroup","Labels":{{"a":"b","c":null}},
              "StopSignal":"SIGINT","OnBuild":null,"Healthcheck":{{"Test":["x"]}}}},
            "rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}},"history":null}}"#
        );
        let blob = ConfigBlob::parse(json.as_bytes()).unwrap();
        let config = blob.config;
        assert_eq!(blob.diff_ids, [diff_id]);
        assert_eq!(config.env, ["A=1", "B=ü"]);
        assert_eq!(config.entrypoint, ["/init", "-x"]);
        assert!(config.cmd.is_empty());
        assert_eq!((&*config.working_dir, &*config.user), ("/srv", "nobody:nogroup"));
        assert_eq!(config.stop_signal, "SIGINT");
        assert_eq!(config.labels["a"], "b");
        assert_eq!(config.labels["c"], "");
        assert_eq!((&*config.architecture, &*config.os), ("amd64", "linux"));
    }

    #[test]
    fn nearly_nothing_is_enough() {
        assert_eq!(ConfigBlob::parse(b"{}").unwrap().config, ImageConfig::default());
        let blob =
            ConfigBlob::parse(br#"{"config":{"Cmd":"/bin/sh","Entrypoint":[]},"rootfs":null}"#);
        assert_eq!(blob.unwrap().config.cmd, ["/bin/sh"]);
        assert!(ConfigBlob::parse(br#"{"config":{"Env":[1]}}"#).is_err());
        assert!(ConfigBlob::parse(br#"{"rootfs":{"diff_ids":["sha256:../x"]}}"#).is_err());
    }
}
