//! What the host tells the agent on the kernel command line: `boxlite.KEY=VALUE`.
//!
//! Only what is needed before the first connection; nothing secret, because every process of the
//! guest can read `/proc/cmdline`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::network::{BadNetwork, NetworkParams, search_domains};

/// What the agent is there for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// A box: `/dev/vda` becomes the root, the agent serves execs on vsock.
    #[default]
    Box,
    /// The throw-away machine that unpacks layers: `/dev/vda` is a disk to be filled.
    Builder,
    /// The software host: the root is the host's own over 9p under a tmpfs, `/dev/vda` is the box
    /// home, and the agent serves on virtio-serial.
    SoftHost,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Box => "box",
            Self::Builder => "builder",
            Self::SoftHost => "softhost",
        }
    }
}

/// The boot parameters of the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BootParams {
    /// What the agent is there for.
    pub role: Role,
    /// The guest's host name.
    pub hostname: Option<String>,
    /// Software host: where the box home (`/dev/vda`) is mounted; an absolute path.
    pub home: Option<String>,
    /// Box: its network, if it has one.
    pub network: Option<NetworkParams>,
    /// Box: where names that are not whole are looked for.
    pub search: Vec<String>,
    /// Box: directories that its image wants to be there.
    pub volumes: Vec<String>,
}

impl BootParams {
    /// Reads the parameters out of a kernel command line. Other words are the kernel's.
    pub fn parse(cmdline: &str) -> Result<Self, BadParams> {
        let mut params = Self::default();
        for word in cmdline.split_ascii_whitespace() {
            let Some((key, value)) =
                word.strip_prefix("boxlite.").and_then(|word| word.split_once('='))
            else {
                continue;
            };
            match key {
                "role" => {
                    params.role = [Role::Box, Role::Builder, Role::SoftHost]
                        .into_iter()
                        .find(|role| role.name() == value)
                        .ok_or_else(|| BadParams::UnknownRole(value.to_owned()))?;
                }
                "hostname" => params.hostname = Some(unescape(value)),
                "home" => params.home = Some(unescape(value)),
                "net" => params.network = Some(value.parse()?),
                "search" => params.search = search_domains(value.split(',')),
                "volume" => params.volumes.push(unescape(value)),
                _ => {}
            }
        }
        Ok(params)
    }

    /// The word for one of [`volumes`](Self::volumes).
    pub fn volume(path: &str) -> String {
        format!("boxlite.volume={}", escape(path))
    }
}

impl fmt::Display for BootParams {
    /// The words for the kernel command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "boxlite.role={}", self.role.name())?;
        if let Some(hostname) = &self.hostname {
            write!(f, " boxlite.hostname={}", escape(hostname))?;
        }
        if let Some(home) = &self.home {
            write!(f, " boxlite.home={}", escape(home))?;
        }
        if let Some(network) = &self.network {
            write!(f, " boxlite.net={network}")?;
        }
        if !self.search.is_empty() {
            write!(f, " boxlite.search={}", self.search.join(","))?;
        }
        for path in &self.volumes {
            write!(f, " {}", Self::volume(path))?;
        }
        Ok(())
    }
}

/// A host that is newer than this agent.
#[derive(Debug, thiserror::Error)]
pub enum BadParams {
    /// The agent is there for something that it does not know.
    #[error("unknown boxlite.role={0}: the guest's agent is older than the host")]
    UnknownRole(String),
    /// The network is something that it does not know.
    #[error(transparent)]
    Network(#[from] BadNetwork),
}

/// Percent-encodes what would end a word or confuse the kernel's parser.
fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'!'..=b'~' if !matches!(byte, b'%' | b'"') => escaped.push(byte.into()),
            _ => escaped.push_str(&format!("%{byte:02x}")),
        }
    }
    escaped
}

fn unescape(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let code = (byte == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &tail[2..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_the_host_writes_the_agent_reads(
            role in prop_oneof![Just(Role::Box), Just(Role::Builder), Just(Role::SoftHost)],
            hostname in proptest::option::of(".*"),
            home in proptest::option::of(".*"),
            network in proptest::option::of(any::<(u32, u32, u32, u128, u128)>()),
            search in proptest::collection::vec("[a-z0-9._-]{1,30}", 0..6),
            volumes in proptest::collection::vec(".*", 0..3),
        ) {
            let network = network.map(|(a, b, c, d, e)| NetworkParams {
                address: (a.into(), 24),
                gateway: b.into(),
                host: c.into(),
                address6: (d.into(), 64),
                gateway6: e.into(),
            });
            let params = BootParams { role, hostname, home, network, search, volumes };
            let cmdline = format!("console=ttyS0 {params} quiet");
            prop_assert_eq!(BootParams::parse(&cmdline).unwrap(), params);
        }

        #[test]
        fn any_command_line_parses_or_names_the_role(cmdline in ".*") {
            let _ = BootParams::parse(&cmdline);
        }
    }
}
