//! The house rules that a program can check: which package may depend on which, what may not be
//! compiled for one, and where code may depend on the platform.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::build;
use crate::check::platform;
use crate::check::report::Outcome;
use crate::cross::Target;

/// The packages of this workspace, and those of them that each may use. An agent that linked the
/// machine, or a device that knew its hypervisor, would not compile less well: only this says no.
const MAY_USE: &[(&str, &[&str])] = &[
    ("boxlite-proto", &[]),
    ("boxlite-agent", &["boxlite-proto"]),
    ("boxlite-durable", &[]),
    ("boxlite-hv", &[]),
    ("boxlite-hvf", &["boxlite-hv"]),
    ("boxlite-hvf-double", &[]),
    (
        "boxlite-devices",
        &["boxlite-devices-testing", "boxlite-disk", "boxlite-hv", "boxlite-net-frame"],
    ),
    ("boxlite-devices-testing", &["boxlite-hv"]),
    ("boxlite-disk", &[]),
    ("boxlite-net", &["boxlite-net-frame", "boxlite-net-interfaces", "boxlite-net-policy"]),
    ("boxlite-net-frame", &[]),
    ("boxlite-net-interfaces", &[]),
    ("boxlite-net-policy", &[]),
    ("boxlite-kernel", &[]),
    ("boxlite-kernel-builder", &["boxlite-kernel"]),
    ("boxlite-rootfs-builder", &["boxlite-durable"]),
    ("boxlite-kvm", &["boxlite-hv"]),
    (
        "boxlite-contract",
        &["boxlite-disk", "boxlite-durable", "boxlite-net-policy", "boxlite-proto"],
    ),
    (
        "boxlite-machine",
        &[
            "boxlite-contract",
            "boxlite-devices",
            "boxlite-disk",
            "boxlite-durable",
            "boxlite-hv",
            "boxlite-hvf",
            "boxlite-hvf-double",
            "boxlite-kvm",
            "boxlite-net",
            "boxlite-proto",
        ],
    ),
    (
        "boxlite-runtime",
        &[
            "boxlite-contract",
            "boxlite-disk",
            "boxlite-durable",
            "boxlite-kernel",
            "boxlite-net-interfaces",
            "boxlite-net-policy",
            "boxlite-proto",
            "boxlite-rootfs-builder",
        ],
    ),
    ("boxlite-vmm", &["boxlite-machine", "boxlite-runtime"]),
    ("boxlite-benches", &["boxlite-net", "boxlite-runtime"]),
    ("boxlite-tests", &["boxlite-runtime"]),
    ("boxlite-xtask", &["boxlite-kernel", "boxlite-kernel-builder"]),
];
/// What tests of a package use besides.
const TESTS_MAY_USE: &[(&str, &[&str])] = &[
    ("boxlite-hvf-double", &["boxlite-hv", "boxlite-hvf"]),
    ("boxlite-machine", &["boxlite-devices-testing", "boxlite-runtime"]),
];
/// Crates that would break a boundary if they were compiled for a package, however far down: devices are
/// the same under every hypervisor, an embedder has no VMM and no command line in its process, and a
/// box's process has no async runtime, no TLS and no database.
const MAY_NOT_COMPILE: &[(&str, &[&str])] = &[
    ("boxlite-devices", &["kvm-ioctls", "kvm-bindings", "applevisor", "applevisor-sys"]),
    ("boxlite-net", &["kvm-ioctls", "kvm-bindings", "applevisor", "applevisor-sys", "tokio"]),
    ("boxlite-net-policy", &["smoltcp", "mio", "rustix", "libc", "tokio"]),
    (
        "boxlite-runtime",
        &[
            "applevisor",
            "applevisor-sys",
            "boxlite-devices",
            "boxlite-hv",
            "boxlite-hvf",
            "boxlite-kvm",
            "boxlite-machine",
            "boxlite-net",
            "clap",
            "indicatif",
            "kvm-bindings",
            "kvm-ioctls",
            "smoltcp",
            "virtio-queue",
        ],
    ),
    // A feature for tests compiles it.
    ("boxlite-vmm", &["boxlite-hvf-double"]),
    (
        "boxlite-machine",
        &["boxlite-rootfs-builder", "boxlite-runtime", "reqwest", "rusqlite", "rustls", "tokio"],
    ),
];

/// Crates that have no business on macOS, however far down in the launcher: each is for Linux, or for another CPU than
/// Apple's. `vmm-sys-util` is not among them: `virtio-queue` depends on it, and it compiles for macOS.
const LINUX_ONLY: &[&str] = &[
    "boxlite-agent",
    "boxlite-kvm",
    "event-manager",
    "inotify",
    "inotify-sys",
    "io-uring",
    "kvm-bindings",
    "kvm-ioctls",
    "landlock",
    "linux-loader",
    "linux-raw-sys",
    "procfs",
    "seccompiler",
    "userfaultfd",
];

/// Every dependency between packages, and every condition on the platform, is one that ARCHITECTURE.md
/// allows.
pub(super) fn check() -> Result<Outcome> {
    let metadata =
        build::output(build::cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_slice(&metadata)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let mut broken = violations(packages);
    for (package, banned) in MAY_NOT_COMPILE {
        broken.extend(compiled(package, &tree(package, None)?, banned));
    }
    let darwin = tree("boxlite-vmm", Some(Target::Darwin))?;
    let on_macos = compiled("boxlite-vmm", &darwin, LINUX_ONLY);
    broken.extend(on_macos.into_iter().map(|line| format!("macOS: {line}")));
    broken.extend(platform::violations(&build::root())?);
    if !broken.is_empty() {
        bail!("{}", broken.join("\n"));
    }
    Ok(Outcome::passed())
}

/// All crates that a package is built of, here or for another target: one a line, its name first.
fn tree(package: &str, target: Option<Target>) -> Result<String> {
    let mut cargo = build::cargo();
    cargo.args(["tree", "--edges=normal", "--prefix=none", "--format={p}", "--package", package]);
    if let Some(target) = target {
        cargo.args(["--target", target.triple()]);
    }
    Ok(String::from_utf8(build::output(&mut cargo)?)?)
}

/// One line for each dependency that is not allowed.
fn violations(packages: &[Value]) -> Vec<String> {
    let mut broken = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(mut allowed) = uses(MAY_USE, name).map(<[_]>::to_vec) else {
            broken.push(format!("{name}: say in tests/xtask/src/check/house.rs what it may use"));
            continue;
        };
        allowed.push(name);
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let used = dependency["name"].as_str().unwrap_or_default();
            let of_tests = dependency["kind"] == "dev"
                && uses(TESTS_MAY_USE, name).is_some_and(|allowed| allowed.contains(&used));
            let ours = uses(MAY_USE, used).is_some();
            if ours && !of_tests && !allowed.contains(&used) {
                broken.push(format!("{name} may not depend on {used}"));
            }
        }
    }
    broken
}

/// One line for each of the `banned` that `cargo tree` lists for a package.
fn compiled(package: &str, tree: &str, banned: &[&str]) -> Vec<String> {
    let names = tree.lines().filter_map(|line| line.split_whitespace().next());
    let mut found: Vec<&str> = names.filter(|name| banned.contains(name)).collect();
    found.sort_unstable();
    found.dedup();
    let line = |name| {
        format!(
            "{package} may not compile {name} (cargo tree -p {package} -e normal -i {name} says why)"
        )
    };
    found.into_iter().map(line).collect()
}

fn uses<'a>(table: &[(&str, &'a [&'a str])], name: &str) -> Option<&'a [&'a str]> {
    table.iter().find(|(known, _)| *known == name).map(|(_, used)| *used)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_forbidden_arrow_is_named() {
        let package = |name: &str, uses: &[&str]| {
            let uses: Vec<Value> = uses.iter().map(|name| json!({ "name": name })).collect();
            json!({ "name": name, "dependencies": uses })
        };
        let mut machine = package("boxlite-machine", &["boxlite-runtime", "boxlite-runtime"]);
        machine["dependencies"][1]["kind"] = "dev".into();
        let packages = [
            package("boxlite-agent", &["boxlite-proto", "libc"]),
            package("boxlite-devices", &["boxlite-net", "vm-memory"]),
            package("boxlite-new", &[]),
            machine,
        ];
        assert_eq!(
            violations(&packages),
            [
                "boxlite-devices may not depend on boxlite-net",
                "boxlite-new: say in tests/xtask/src/check/house.rs what it may use",
                "boxlite-machine may not depend on boxlite-runtime",
            ]
        );
    }

    #[test]
    fn a_crate_far_down_is_found() {
        let tree = "boxlite-runtime v0.1.0 (/x)\nclap_complete v4.0.0\nlibc v0.2.0\nclap v4.0.0\nclap v4.0.0 (*)\n";
        let found = compiled("boxlite-runtime", tree, &["clap", "smoltcp"]);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("boxlite-runtime may not compile clap ("));
    }
}
