//! What a machine is to be: the LaunchSpec, which the launcher hands over with open files.

use std::ops::RangeInclusive;
use std::path::PathBuf;

pub use boxlite_disk::DiskFormat;
use boxlite_net_policy::PublishedPort;
use boxlite_proto::boot::BootParams;
use boxlite_proto::message::{Exec, MainExec};
use serde::{Deserialize, Serialize};

use crate::nested::HostEnvironment;

/// vCPUs that a box may have.
pub const VCPUS: RangeInclusive<u8> = 1..=64;

/// Memory that a box may have, in MiB.
pub const MEMORY_MIB: RangeInclusive<u64> = 128..=64 << 10;

/// The most bytes of the file that records the packets of a box's network.
pub const MAX_CAPTURE: u64 = 1 << 30;

/// What stands before a box's ID in the name of a folder that is being removed.
pub const REMOVED_PREFIX: &str = ".gone-";

/// Everything that a machine is built from. Files come beside it, as descriptors; numbers refer to
/// them in their order.
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
    /// What the agent is told on the kernel command line.
    pub boot: BootParams,
    /// What the process runs on.
    #[serde(default)]
    pub host: HostEnvironment,
    /// Disks, in the order of /dev/vda, /dev/vdb …
    pub disks: Vec<DiskSpec>,
    /// The file that takes the guest's console, which then says all it does. Without one the console
    /// is only kept for the report of a panic.
    pub console: Option<usize>,
    /// The network; none: the guest has its own loopback only.
    #[serde(default)]
    pub network: Option<NetworkSpec>,
    /// The box that the machine is; none for one that unpacks layers.
    pub sandbox: Option<BoxSpec>,
}

/// A box's network.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// The policy: rules with their verdicts, in order.
    pub rules: Vec<String>,
    /// The published ports; host port 0 picks a free one.
    pub ports: Vec<PublishedPort>,
    /// What the guest may receive, in bytes a second.
    pub limit_down: Option<u64>,
    /// What the guest may send, in bytes a second.
    pub limit_up: Option<u64>,
    /// The file or stream that records the packets, in pcap format, [`MAX_CAPTURE`] bytes at most.
    #[serde(default)]
    pub capture: Option<usize>,
}

/// What makes a machine a box: where it is found, what it runs, when it ends.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BoxSpec {
    /// The box's ID.
    pub id: String,
    /// The box's folder: status, logs.
    pub folder: PathBuf,
    /// Whether the folder, with the disk, is removed when the box ends.
    pub remove: bool,
    /// Whether the box goes on without the process that started it.
    pub detached: bool,
    /// The listening control socket, on which messages are as on the launcher's.
    pub control: usize,
    /// The listening vsock socket: clients say `CONNECT <port>`.
    pub vsock: usize,
    /// The home's event log, open for appending.
    pub events: usize,
    /// How long a boot may take, in milliseconds.
    pub ready_timeout_ms: u64,
    /// The main command; the box ends with it. None: the box runs until it is stopped.
    pub main: Option<MainSpec>,
    /// What is done when the main command ends.
    pub restart: RestartPolicy,
    /// How the box is asked whether it is well.
    pub health: Option<HealthSpec>,
}

/// The main command of a box.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MainSpec {
    /// The command.
    #[serde(with = "packed")]
    pub exec: Exec,
    /// It begins only when somebody has attached, so that nothing of it is missed.
    pub wait_for_attach: bool,
    /// The signal (Linux number) that asks it to end.
    pub stop_signal: i32,
    /// Whether an init is process 1 in its place.
    #[serde(default)]
    pub init: bool,
}

impl MainSpec {
    /// What is asked of the agent.
    pub fn request(&self) -> MainExec {
        MainExec { exec: self.exec.clone(), init: self.init }
    }
}

/// What is done when a box's main command ends, or its machine fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RestartPolicy {
    /// The box stops.
    #[default]
    No,
    /// It begins anew if it failed, so many times at most in a row (0: any number).
    OnFailure(u32),
    /// It begins anew, until the box is stopped.
    Always,
}

impl RestartPolicy {
    /// Whether what ended begins anew: `failed` says how it ended, `in_a_row` how often it has begun
    /// anew without a good run in between.
    pub fn permits(self, failed: bool, in_a_row: u32) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure(most) => failed && (most == 0 || in_a_row < most),
            Self::Always => true,
        }
    }
}

/// How a box is asked whether it is well.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HealthSpec {
    /// The command; code 0 means well.
    #[serde(with = "packed")]
    pub exec: Exec,
    /// Milliseconds between two checks.
    pub interval_ms: u64,
    /// Milliseconds after which a check has failed.
    pub timeout_ms: u64,
    /// So many failures in a row make the box unhealthy.
    pub retries: u32,
    /// Failures so many milliseconds after the start do not count.
    pub start_period_ms: u64,
    /// Whether an unhealthy box is ended (and begins anew, if its restart policy says so) rather than only called so.
    pub stop: bool,
}

/// A virtio-blk device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskSpec {
    /// The disk's file.
    pub file: usize,
    /// What is in it.
    pub format: DiskFormat,
    /// For qcow2: the raw disk under it.
    pub backing: Option<usize>,
    /// Whether the disk is thrown away with the machine: nothing then has to reach the host's disk.
    pub ephemeral: bool,
    /// Whether the last writer of a qcow2 disk may have been killed.
    pub recover: bool,
}

/// Commands as text: their arguments and environment are bytes, of which JSON would make a number each.
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
    fn a_command_takes_little_more_than_its_bytes() {
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
