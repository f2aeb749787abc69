//! What a box is to be.

mod check;
mod parts;
mod ports;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(super) use check::{MIN_HEALTH_TIME, bad_name, is_name};
pub use parts::{HealthChanges, HealthCheck, Network, NetworkPolicy, SecurityOptions, Volume};

use boxlite_contract::spec::{NetworkSpec, RestartPolicy};
use boxlite_net_policy::PublishedPort;
use boxlite_rootfs_builder::PullPolicy;

/// A box to be made.
///
/// ```
/// use boxlite_runtime::BoxOptions;
///
/// let options = BoxOptions::new("oci:alpine").cpus(2).memory_mib(512).env("LANG", "C.UTF-8");
/// assert_eq!(options.memory_mib, 512);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct BoxOptions {
    /// The image: `oci:DIR[:tag]`, `docker-archive:FILE`, `rootfs:DIR`, an imported name, or one of a
    /// registry.
    pub image: String,
    /// Whether the image is asked for at its registry.
    pub pull: PullPolicy,
    /// The box's name, which is its host name too; default: made up.
    pub name: Option<String>,
    /// Number of vCPUs, 1 to 64; default 1.
    pub cpus: u8,
    /// Memory in MiB, 128 to 65536; default 2048.
    pub memory_mib: u64,
    /// Whether the box may run virtual machines of its own, where the host's KVM allows that, and count
    /// what its processor does. Default: no, as both let a box do more to its host (see the security
    /// model).
    pub nested: bool,
    /// Size of the disk in GiB, 1 to 1024; default: as the image's disk was made, 10.
    pub disk_size_gb: Option<u64>,
    /// Environment variables of every command, over those of the image.
    pub env: Vec<(String, String)>,
    /// The working directory; default: the image's.
    pub working_dir: Option<String>,
    /// The user, as `name`, `uid`, `name:group` or `uid:gid`; default: the image's.
    pub user: Option<String>,
    /// In place of the image's entry point; empty: none.
    pub entrypoint: Option<Vec<String>>,
    /// In place of the image's arguments to its entry point.
    pub cmd: Option<Vec<String>>,
    /// Whether the box has a main command (entry point and arguments, its own or the image's) and
    /// ends with it, as a container does. Otherwise it runs until it is stopped. Default: no;
    /// [`cmd`](Self::cmd) and [`entrypoint`](Self::entrypoint) set it.
    pub main_command: bool,
    /// Whether the main command has a standard input that attached ones can write to.
    pub interactive: bool,
    /// Whether the main command has a terminal.
    pub tty: bool,
    /// Whether an init is process 1 of the box in place of the main command, and reaps what is orphaned; default: no,
    /// as images that bring an init of their own need it.
    pub init: bool,
    /// The signal (`SIGTERM`, `TERM` or a number) that asks the main command to end; default: the
    /// image's, else SIGTERM.
    pub stop_signal: Option<String>,
    /// Folders of the host in the box.
    pub volumes: Vec<Volume>,
    /// Ports of the host that lead into the box.
    #[serde(with = "ports")]
    pub ports: Vec<PublishedPort>,
    /// What the box reaches; default: everything but the host's loopback, link-local addresses and
    /// metadata services.
    pub network: NetworkPolicy,
    /// Whether the box is removed when it ends.
    pub auto_remove: bool,
    /// Whether the box goes on when the process that started it ends.
    pub detach: bool,
    /// Whatever you like to attach; `list` can filter by it.
    pub labels: BTreeMap<String, String>,
    /// What is done when the main command ends, or the machine fails.
    pub restart: RestartPolicy,
    /// How the box is asked whether it is well; default: as the image says, where the box has a main
    /// command.
    pub health: Option<HealthCheck>,
    /// What is changed of the health check, whichever the box has; an error where it has none.
    #[serde(skip_serializing_if = "HealthChanges::is_empty")]
    pub health_changes: HealthChanges,
    /// Whether the image's health check is left out.
    pub no_health_check: bool,
    /// What the box's process may do.
    pub security: SecurityOptions,
    /// How long the box may take to boot; default 2 minutes, for hosts that emulate.
    pub ready_timeout: Duration,
    /// Whether the guest's console goes to `boxes/<id>/console.log`; slows the boot down.
    pub console: bool,
}

impl Default for BoxOptions {
    fn default() -> Self {
        Self {
            image: String::new(),
            pull: PullPolicy::default(),
            name: None,
            cpus: 1,
            memory_mib: 2048,
            nested: false,
            disk_size_gb: None,
            env: Vec::new(),
            working_dir: None,
            user: None,
            entrypoint: None,
            cmd: None,
            main_command: false,
            interactive: false,
            tty: false,
            init: false,
            stop_signal: None,
            volumes: Vec::new(),
            ports: Vec::new(),
            network: NetworkPolicy::default(),
            auto_remove: false,
            detach: false,
            labels: BTreeMap::new(),
            restart: RestartPolicy::No,
            health: None,
            health_changes: HealthChanges::default(),
            no_health_check: false,
            security: SecurityOptions::default(),
            ready_timeout: Duration::from_secs(120),
            console: false,
        }
    }
}

impl BoxOptions {
    /// The network of the box's machine.
    pub(super) fn network_spec(&self) -> Option<NetworkSpec> {
        let policy = &self.network;
        (policy.mode == Network::Nat).then(|| NetworkSpec {
            rules: policy.rules(),
            ports: self.ports.clone(),
            limit_down: policy.limit_down,
            limit_up: policy.limit_up,
        })
    }

    /// A box of this image, and the defaults for the rest.
    pub fn new(image: impl Into<String>) -> Self {
        Self { image: image.into(), ..Self::default() }
    }

    /// Says when the image is asked for at its registry.
    pub fn pull(mut self, policy: PullPolicy) -> Self {
        self.pull = policy;
        self
    }

    /// Names the box.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the number of vCPUs.
    pub fn cpus(mut self, cpus: u8) -> Self {
        self.cpus = cpus;
        self
    }

    /// Sets the memory in MiB.
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Sets whether the box sees the processor's virtualization extensions and performance counters.
    pub fn nested(mut self, nested: bool) -> Self {
        self.nested = nested;
        self
    }

    /// Sets the size of the disk in GiB.
    pub fn disk_size_gb(mut self, gb: u64) -> Self {
        self.disk_size_gb = Some(gb);
        self
    }

    /// Adds an environment variable.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets the working directory.
    pub fn working_dir(mut self, dir: impl Into<String>) -> Self {
        self.working_dir = Some(dir.into());
        self
    }

    /// Sets the user.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Gives the box a main command with this entry point in place of the image's.
    pub fn entrypoint<S: Into<String>>(mut self, argv: impl IntoIterator<Item = S>) -> Self {
        self.entrypoint = Some(argv.into_iter().map(Into::into).collect());
        self.main_command = true;
        self
    }

    /// Gives the box a main command: the entry point with these arguments.
    pub fn cmd<S: Into<String>>(mut self, argv: impl IntoIterator<Item = S>) -> Self {
        self.cmd = Some(argv.into_iter().map(Into::into).collect());
        self.main_command = true;
        self
    }

    /// Says whether the box has a main command; the image's own, where none is given.
    pub fn main_command(mut self, yes: bool) -> Self {
        self.main_command = yes;
        self
    }

    /// Gives the main command a standard input.
    pub fn interactive(mut self, yes: bool) -> Self {
        self.interactive = yes;
        self
    }

    /// Gives the main command a terminal.
    pub fn tty(mut self, yes: bool) -> Self {
        self.tty = yes;
        self
    }

    /// Runs an init as process 1 in place of the main command.
    pub fn init(mut self, yes: bool) -> Self {
        self.init = yes;
        self
    }

    /// Adds a folder of the host.
    pub fn volume(mut self, volume: Volume) -> Self {
        self.volumes.push(volume);
        self
    }

    /// Publishes a port of the box on the host.
    pub fn port(mut self, port: PublishedPort) -> Self {
        self.ports.push(port);
        self
    }

    /// Says what the box reaches.
    pub fn network(mut self, policy: NetworkPolicy) -> Self {
        self.network = policy;
        self
    }

    /// Removes the box when it ends.
    pub fn auto_remove(mut self, yes: bool) -> Self {
        self.auto_remove = yes;
        self
    }

    /// Lets the box go on when the process that started it ends.
    pub fn detach(mut self, yes: bool) -> Self {
        self.detach = yes;
        self
    }

    /// Attaches a label.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Says what is done when the main command ends, or the machine fails.
    pub fn restart(mut self, policy: RestartPolicy) -> Self {
        self.restart = policy;
        self
    }

    /// Says how the box is asked whether it is well.
    pub fn health(mut self, check: HealthCheck) -> Self {
        self.health = Some(check);
        self
    }

    /// Changes the health check, whichever the box has.
    pub fn health_changes(mut self, changes: HealthChanges) -> Self {
        self.health_changes = changes;
        self
    }

    /// Leaves the image's health check out.
    pub fn no_health_check(mut self, yes: bool) -> Self {
        self.no_health_check = yes;
        self
    }

    /// Sets how long the box may take to boot.
    pub fn ready_timeout(mut self, timeout: Duration) -> Self {
        self.ready_timeout = timeout;
        self
    }

    /// Keeps the guest's console.
    pub fn console(mut self, keep: bool) -> Self {
        self.console = keep;
        self
    }
}
