//! The LaunchSpec: what a VM process builds and runs. The launcher sends it with open files.

use std::ops::RangeInclusive;
use std::path::PathBuf;

pub use boxlite_disk::DiskFormat;
use boxlite_net_policy::PublishedPort;
use boxlite_proto::boot::BootParams;
use boxlite_proto::message::{Exec, MainExec};
use serde::{Deserialize, Serialize};

use crate::nested::HostEnvironment;

/// The number of vCPUs that a box may have.
pub const VCPUS: RangeInclusive<u8> = 1..=64;

/// The memory that a box may have, in MiB.
pub const MEMORY_MIB: RangeInclusive<u64> = 128..=64 << 10;

/// The largest packet capture of a box's network, in bytes.
pub const MAX_CAPTURE: u64 = 1 << 30;

/// Prefix of a box's ID in the name of a folder that is being removed.
pub const REMOVED_PREFIX: &str = ".gone-";

/// The description of a VM. Its files come with the message as descriptors; a `usize` below is an index into
/// them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// Number of vCPUs, in [`VCPUS`].
    pub vcpus: u8,
    /// Memory in MiB, in [`MEMORY_MIB`].
    pub memory_mib: u64,
    /// Whether the guest sees the processor's virtualization extensions and its performance counters.
    #[serde(default)]
    pub nested: bool,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs with the agent.
    pub initramfs: PathBuf,
    /// Parameters of the agent, for the kernel command line.
    pub boot: BootParams,
    /// The host that the process runs on.
    #[serde(default)]
    pub host: HostEnvironment,
    /// Disks, in the order of `/dev/vda`, `/dev/vdb` …
    pub disks: Vec<DiskSpec>,
    /// The file that the guest's console is written to, with all kernel messages. Without one, the last lines
    /// are kept in memory for the report of a panic.
    pub console: Option<usize>,
    /// The network; without one the guest has its own loopback only.
    #[serde(default)]
    pub network: Option<NetworkSpec>,
    /// The box that runs in the VM; `None` for a VM that unpacks layers.
    pub sandbox: Option<BoxSpec>,
}

/// A box's network.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// The policy's rules with their verdicts, in order.
    pub rules: Vec<String>,
    /// The published ports; host port 0 picks a free one.
    pub ports: Vec<PublishedPort>,
    /// Limit on what the guest receives, in bytes per second.
    pub limit_down: Option<u64>,
    /// Limit on what the guest sends, in bytes per second.
    pub limit_up: Option<u64>,
    /// Where the packets are recorded, in pcap format, [`MAX_CAPTURE`] bytes at most.
    #[serde(default)]
    pub capture: Option<CaptureSpec>,
}

/// Where the packets of a box's network are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CaptureSpec {
    /// A file.
    File(usize),
    /// A stream of [chunks](crate::capture).
    Stream(usize),
}

/// What a box has beyond its VM: a folder, sockets, a main command and policies.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BoxSpec {
    /// The box's ID.
    pub id: String,
    /// The box's folder, for status and logs.
    pub folder: PathBuf,
    /// Whether the folder, with the disk, is removed when the box ends.
    pub remove: bool,
    /// Whether the box keeps running when the process that started it exits.
    pub detached: bool,
    /// The listening control socket; its protocol is that of the launcher's socket.
    pub control: usize,
    /// The listening vsock socket; clients send `CONNECT <port>`.
    pub vsock: usize,
    /// The home's event log, open for appending.
    pub events: usize,
    /// Timeout of a boot, in milliseconds.
    pub ready_timeout_ms: u64,
    /// The main command; the box ends when it exits. Without one the box runs until it is stopped.
    pub main: Option<MainSpec>,
    /// What happens when the main command exits.
    pub restart: RestartPolicy,
    /// The health check.
    pub health: Option<HealthSpec>,
}

/// The main command of a box.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MainSpec {
    /// The command.
    #[serde(with = "packed")]
    pub exec: Exec,
    /// Whether the command starts only when a client has attached, so that the client misses no output.
    pub wait_for_attach: bool,
    /// The signal (Linux number) that asks the command to exit.
    pub stop_signal: i32,
    /// Whether an init runs as process 1, with the command as its child.
    #[serde(default)]
    pub init: bool,
}

impl MainSpec {
    /// The request to the agent.
    pub fn request(&self) -> MainExec {
        MainExec { exec: self.exec.clone(), init: self.init }
    }
}

/// What happens when a box's main command exits or its VM fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RestartPolicy {
    /// The box stops.
    #[default]
    No,
    /// It restarts if it failed, at most this many times in a row (0: no limit).
    OnFailure(u32),
    /// It restarts until the box is stopped.
    Always,
}

impl RestartPolicy {
    /// Whether the policy permits a restart. `in_a_row`: restarts since the last good run.
    pub fn permits(self, failed: bool, in_a_row: u32) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure(most) => failed && (most == 0 || in_a_row < most),
            Self::Always => true,
        }
    }
}

/// A health check.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HealthSpec {
    /// The command; exit code 0 means healthy.
    #[serde(with = "packed")]
    pub exec: Exec,
    /// Pause between two checks, in milliseconds.
    pub interval_ms: u64,
    /// Timeout of a check, in milliseconds.
    pub timeout_ms: u64,
    /// Failures in a row that make the box unhealthy.
    pub retries: u32,
    /// Time after the start in which failures don't count, in milliseconds.
    pub start_period_ms: u64,
    /// Whether an unhealthy box is ended, and restarted if its restart policy permits.
    pub stop: bool,
}

/// A virtio-blk device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskSpec {
    /// The image file.
    pub file: usize,
    /// The image format.
    pub format: DiskFormat,
    /// For qcow2: the raw image that it overlays.
    pub backing: Option<usize>,
    /// Whether the image is removed with the VM. Its data then need not reach the host's disk.
    pub ephemeral: bool,
    /// Whether the last writer of a qcow2 image may have been killed, so that the image needs recovery.
    pub recover: bool,
}

/// Commands as base64: arguments and environment are bytes, and JSON would write each byte as a number.
mod packed {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
    use boxlite_proto::frame::{Frame, Kind};
    use boxlite_proto::message::{Exec, Request};
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(exec: &Exec, to: S) -> Result<S::Ok, S::Error> {
        let frame = Request::Exec(exec.clone()).frame(0);
        to.serialize_str(&BASE64.encode(frame.body))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Exec, D::Error> {
        let text = String::deserialize(from)?;
        let body = BASE64.decode(text).map_err(D::Error::custom)?;
        match (Frame { stream: 0, kind: Kind::Request, body: body.into() }).decode() {
            Ok(Request::Exec(exec)) => Ok(exec),
            Ok(_) => Err(D::Error::custom("not a command")),
            Err(e) => Err(D::Error::custom(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_encoded_compactly() {
        let exec = Exec {
            argv: vec![b"sh".to_vec(), vec![0xff, 0x80]],
            env: vec![[b"A=".to_vec(), vec![b'x'; 100_000]].concat(); 10],
            ..Exec::default()
        };
        let main = MainSpec { exec, wait_for_attach: true, stop_signal: 15, init: true };
        let json = serde_json::to_string(&main).unwrap();
        assert!(json.len() < 1_400_000, "{}", json.len());
        assert_eq!(serde_json::from_str::<MainSpec>(&json).unwrap().exec, main.exec);
        for bad in ["!", "AAAA", ""] {
            let json = format!(r#"{{"exec":"{bad}","wait_for_attach":true,"stop_signal":15}}"#);
            assert!(serde_json::from_str::<MainSpec>(&json).is_err(), "{bad}");
        }
    }
}
