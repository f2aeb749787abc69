//! Problems of a box's options, as data.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::remedy::Remedy;

/// A problem of [`BoxOptions`](crate::BoxOptions). `Display` names the fields; a program with other names for them,
/// such as flags, composes its own text from the parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Problem {
    /// The option.
    pub option: BoxOption,
    /// What is wrong, and which values are valid. It names no option.
    pub message: String,
    /// The second option that the message is about, if there is one.
    pub other: Option<BoxOption>,
    /// What to do instead, if the runtime knows.
    pub remedy: Option<Remedy>,
}

impl Problem {
    pub(crate) fn new(option: BoxOption, message: impl Into<String>) -> Self {
        Self { option, message: message.into(), other: None, remedy: None }
    }

    pub(crate) fn and(self, other: BoxOption) -> Self {
        Self { other: Some(other), ..self }
    }

    pub(crate) fn instead(self, remedy: Remedy) -> Self {
        Self { remedy: Some(remedy), ..self }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.option, self.message)?;
        if let Some(other) = self.other {
            write!(f, " ({other})")?;
        }
        match &self.remedy {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

/// An option of [`BoxOptions`](crate::BoxOptions). `Display` shows the path of its field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
#[allow(missing_docs, reason = "each has the name of its field")]
pub enum BoxOption {
    Name,
    Cpus,
    MemoryMib,
    DiskSizeGib,
    ReadyTimeout,
    Env,
    WorkingDir,
    User,
    Entrypoint,
    StopSignal,
    AutoRemove,
    Restart,
    Labels,
    Health,
    HealthCommand,
    HealthInterval,
    HealthTimeout,
    HealthRetries,
    NoHealthCheck,
    Volumes,
    Ports,
    NetworkMode,
    NetworkAllow,
    NetworkDeny,
    NetworkLimitDown,
    NetworkLimitUp,
}

impl BoxOption {
    /// All options.
    pub const ALL: [Self; 26] = [
        Self::Name,
        Self::Cpus,
        Self::MemoryMib,
        Self::DiskSizeGib,
        Self::ReadyTimeout,
        Self::Env,
        Self::WorkingDir,
        Self::User,
        Self::Entrypoint,
        Self::StopSignal,
        Self::AutoRemove,
        Self::Restart,
        Self::Labels,
        Self::Health,
        Self::HealthCommand,
        Self::HealthInterval,
        Self::HealthTimeout,
        Self::HealthRetries,
        Self::NoHealthCheck,
        Self::Volumes,
        Self::Ports,
        Self::NetworkMode,
        Self::NetworkAllow,
        Self::NetworkDeny,
        Self::NetworkLimitDown,
        Self::NetworkLimitUp,
    ];

    /// The path of the option's field.
    pub fn field(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Cpus => "cpus",
            Self::MemoryMib => "memory_mib",
            Self::DiskSizeGib => "disk_size_gib",
            Self::ReadyTimeout => "ready_timeout",
            Self::Env => "env",
            Self::WorkingDir => "working_dir",
            Self::User => "user",
            Self::Entrypoint => "entrypoint",
            Self::StopSignal => "stop_signal",
            Self::AutoRemove => "auto_remove",
            Self::Restart => "restart",
            Self::Labels => "labels",
            Self::Health => "health",
            Self::HealthCommand => "health.command",
            Self::HealthInterval => "health.interval",
            Self::HealthTimeout => "health.timeout",
            Self::HealthRetries => "health.retries",
            Self::NoHealthCheck => "no_health_check",
            Self::Volumes => "volumes",
            Self::Ports => "ports",
            Self::NetworkMode => "network.mode",
            Self::NetworkAllow => "network.allow",
            Self::NetworkDeny => "network.deny",
            Self::NetworkLimitDown => "network.limit_down",
            Self::NetworkLimitUp => "network.limit_up",
        }
    }
}

impl fmt::Display for BoxOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.field())
    }
}
