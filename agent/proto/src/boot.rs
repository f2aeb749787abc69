//! Parameters of the agent on the kernel command line: `boxlite.KEY=VALUE`.
//!
//! The command line carries only what the agent needs before the first connection, and no secrets: every process
//! of the guest can read `/proc/cmdline`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::network::{BadNetwork, NetworkParams, search_domains};

/// The role of the guest and its agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// A box: `/dev/vda` becomes the root, the agent serves execs on vsock.
    #[default]
    Box,
    /// The throw-away VM that unpacks layers: `/dev/vda` is the disk to fill.
    Builder,
    /// The nested host: the root is the host's own over 9p under a tmpfs, `/dev/vda` is the box
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
    /// The role of the guest.
    pub role: Role,
    /// The guest's host name.
    pub hostname: Option<String>,
    /// Nested host: where the box home (`/dev/vda`) is mounted; an absolute path.
    pub home: Option<String>,
    /// Box: its network, if it has one.
    pub network: Option<NetworkParams>,
    /// Box: search domains for names that are not fully qualified.
    pub search: Vec<String>,
    /// Box: directories that its image declares as volumes.
    pub volumes: Vec<String>,
}

impl BootParams {
    /// Parses the parameters in a kernel command line. Other words are for the kernel.
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

/// Parameters of a host that is newer than this agent.
#[derive(Debug, thiserror::Error)]
pub enum BadParams {
    /// The agent does not know the role.
    #[error("unknown boxlite.role={0}: the guest's agent is older than the host")]
    UnknownRole(String),
    /// The agent cannot parse the network.
    #[error(transparent)]
    Network(#[from] BadNetwork),
}

/// Percent-encodes bytes that would end a word or confuse the kernel's parser.
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
        fn parameters_survive_the_command_line(
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
