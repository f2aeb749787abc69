//! The options of a new box.

mod check;
mod parts;
mod ports;
mod start;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(super) use check::{MIN_HEALTH_TIME, bad_name, is_name};
pub use parts::{HealthChanges, HealthCheck, NetworkMode, NetworkPolicy, SecurityOptions, Volume};
pub use start::StartOptions;

use boxlite_contract::spec::{NetworkSpec, RestartPolicy};
use boxlite_net_policy::PublishedPort;
use boxlite_rootfs_builder::{ImagePlatform, PullPolicy};

/// Options of a box to create. [`validate`](Self::validate) checks them in advance.
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
    /// The image: `oci:DIR[:tag]`, `docker-archive:FILE`, `rootfs:DIR`, or a name, stored or in a registry.
    pub image: String,
    /// When to ask the registry for the image.
    pub pull: PullPolicy,
    /// The platform of the image; default: that of the machine that runs the box, which can run no other architecture.
    pub platform: Option<ImagePlatform>,
    /// The box's name, which is also its host name; 32 hexadecimal digits, the form of an ID, are no name. Default:
    /// generated.
    pub name: Option<String>,
    /// Number of vCPUs, 1 to 64; default 1.
    pub cpus: u8,
    /// Memory in MiB, 128 to 65536; default 2048.
    pub memory_mib: u64,
    /// Whether the box may run VMs itself, if the host's KVM allows that, and use performance counters. Default: no,
    /// because both enlarge the host's attack surface (see the security model).
    pub nested: bool,
    /// Size of the disk in GiB, 1 to 1024; default: that of the image's disk, 10.
    // An earlier name, in `config.json` of boxes from before the rename.
    #[serde(alias = "disk_size_gb")]
    pub disk_size_gib: Option<u64>,
    /// Environment variables of every command; they override those of the image.
    pub env: Vec<(String, String)>,
    /// The working directory; default: the image's.
    pub working_dir: Option<String>,
    /// The user, as `name`, `uid`, `name:group` or `uid:gid`; default: the image's.
    pub user: Option<String>,
    /// Replaces the image's entry point; an empty list: no entry point.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's arguments to its entry point.
    pub cmd: Option<Vec<String>>,
    /// Whether the box runs a main command (entry point and arguments, given here or by the image) and stops when the
    /// command exits, as a container does. Otherwise it runs until it is stopped. Default: no;
    /// [`cmd`](Self::cmd) and [`entrypoint`](Self::entrypoint) set it.
    pub main_command: bool,
    /// Whether the main command has a standard input, which attached callers can write to.
    pub interactive: bool,
    /// Whether the main command has a terminal.
    pub tty: bool,
    /// Whether process 1 of the box is an init, which reaps orphans, instead of the main command; default: no, because
    /// an image's own init must be process 1.
    pub init: bool,
    /// The signal (`SIGTERM`, `TERM` or a number) that asks the main command to exit; default: the
    /// image's, else SIGTERM.
    pub stop_signal: Option<String>,
    /// Host folders that are shared with the box.
    pub volumes: Vec<Volume>,
    /// Ports of the box that are published on the host.
    #[serde(with = "ports")]
    pub ports: Vec<PublishedPort>,
    /// Destinations that the box may reach; default: all but the host's loopback and own addresses, link-local
    /// addresses and metadata services.
    pub network: NetworkPolicy,
    /// Whether the box is removed when it stops.
    pub auto_remove: bool,
    /// Whether the box keeps running when the process that started it exits.
    pub detach: bool,
    /// Labels of your choice, kept with the box.
    pub labels: BTreeMap<String, String>,
    /// When to restart the box after its main command has exited or its VM has failed.
    pub restart: RestartPolicy,
    /// The health check; default: the image's, if the box has a main command.
    pub health: Option<HealthCheck>,
    /// Changes to the health check, the box's own or the image's. It is an error if there is none.
    #[serde(skip_serializing_if = "HealthChanges::is_empty")]
    pub health_changes: HealthChanges,
    /// Whether to ignore the image's health check.
    pub no_health_check: bool,
    /// Restrictions of the box's process.
    pub security: SecurityOptions,
    /// Timeout for the boot; default 2 minutes, which is enough in the software host.
    pub ready_timeout: Duration,
    /// Whether the guest's console is written to `boxes/<id>/console.log`; slows down the boot.
    pub console: bool,
}

impl Default for BoxOptions {
    fn default() -> Self {
        Self {
            image: String::new(),
            pull: PullPolicy::default(),
            platform: None,
            name: None,
            cpus: 1,
            memory_mib: 2048,
            nested: false,
            disk_size_gib: None,
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
    /// The network of the box, if it has one.
    pub(super) fn network_spec(&self) -> Option<NetworkSpec> {
        let policy = &self.network;
        (policy.mode == NetworkMode::Nat).then(|| NetworkSpec {
            rules: policy.rules(),
            ports: self.ports.clone(),
            limit_down: policy.limit_down,
            limit_up: policy.limit_up,
            capture: None,
        })
    }

    /// Options of a box of this image, with defaults for the rest.
    pub fn new(image: impl Into<String>) -> Self {
        Self { image: image.into(), ..Self::default() }
    }

    /// Sets when to ask the registry for the image.
    pub fn pull(mut self, policy: PullPolicy) -> Self {
        self.pull = policy;
        self
    }

    /// Sets the platform of the image.
    pub fn platform(mut self, platform: ImagePlatform) -> Self {
        self.platform = Some(platform);
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

    /// Sets whether the box sees the CPU's virtualization extensions and performance counters.
    pub fn nested(mut self, nested: bool) -> Self {
        self.nested = nested;
        self
    }

    /// Sets the size of the disk in GiB.
    pub fn disk_size_gib(mut self, gib: u64) -> Self {
        self.disk_size_gib = Some(gib);
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

    /// Gives the box a main command with this entry point, which replaces the image's.
    pub fn entrypoint<S: Into<String>>(mut self, argv: impl IntoIterator<Item = S>) -> Self {
        self.entrypoint = Some(argv.into_iter().map(Into::into).collect());
        self.main_command = true;
        self
    }

    /// Gives the box a main command: the entry point with these arguments, which replace the image's.
    pub fn cmd<S: Into<String>>(mut self, argv: impl IntoIterator<Item = S>) -> Self {
        self.cmd = Some(argv.into_iter().map(Into::into).collect());
        self.main_command = true;
        self
    }

    /// Sets whether the box has a main command: the image's, unless one is given.
    pub fn main_command(mut self, yes: bool) -> Self {
        self.main_command = yes;
        self
    }

    /// Sets whether the main command has a standard input.
    pub fn interactive(mut self, yes: bool) -> Self {
        self.interactive = yes;
        self
    }

    /// Sets whether the main command has a terminal.
    pub fn tty(mut self, yes: bool) -> Self {
        self.tty = yes;
        self
    }

    /// Sets whether an init is process 1 instead of the main command.
    pub fn init(mut self, yes: bool) -> Self {
        self.init = yes;
        self
    }

    /// Shares a host folder with the box.
    pub fn volume(mut self, volume: Volume) -> Self {
        self.volumes.push(volume);
        self
    }

    /// Publishes a port of the box on the host.
    pub fn port(mut self, port: PublishedPort) -> Self {
        self.ports.push(port);
        self
    }

    /// Sets which destinations the box may reach.
    pub fn network(mut self, policy: NetworkPolicy) -> Self {
        self.network = policy;
        self
    }

    /// Sets whether the box is removed when it stops.
    pub fn auto_remove(mut self, yes: bool) -> Self {
        self.auto_remove = yes;
        self
    }

    /// Sets whether the box keeps running when the process that started it exits.
    pub fn detach(mut self, yes: bool) -> Self {
        self.detach = yes;
        self
    }

    /// Adds a label.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Sets when the box is restarted after its main command has exited or its VM has failed.
    pub fn restart(mut self, policy: RestartPolicy) -> Self {
        self.restart = policy;
        self
    }

    /// Sets the health check.
    pub fn health(mut self, check: HealthCheck) -> Self {
        self.health = Some(check);
        self
    }

    /// Changes parts of the health check, the box's own or the image's.
    pub fn health_changes(mut self, changes: HealthChanges) -> Self {
        self.health_changes = changes;
        self
    }

    /// Sets whether to ignore the image's health check.
    pub fn no_health_check(mut self, yes: bool) -> Self {
        self.no_health_check = yes;
        self
    }

    /// Sets the timeout for the boot.
    pub fn ready_timeout(mut self, timeout: Duration) -> Self {
        self.ready_timeout = timeout;
        self
    }

    /// Sets whether the guest's console is kept.
    pub fn console(mut self, keep: bool) -> Self {
        self.console = keep;
        self
    }
}
