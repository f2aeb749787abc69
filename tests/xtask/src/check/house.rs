//! The house rules that a program can check: which package may depend on which.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::build;
use crate::check::report::Outcome;

/// The packages of this workspace, and those of them that each may use. An agent that linked the
/// machine, or a device that knew its hypervisor, would not compile less well: only this says no.
const MAY_USE: &[(&str, &[&str])] = &[
    ("boxlite-proto", &[]),
    ("boxlite-agent", &["boxlite-proto"]),
    ("boxlite-durable", &[]),
    ("boxlite-hv", &[]),
    ("boxlite-hvf", &["boxlite-hv"]),
    ("boxlite-devices", &["boxlite-disk", "boxlite-hv"]),
    ("boxlite-disk", &[]),
    ("boxlite-net", &["boxlite-net-interfaces", "boxlite-net-policy"]),
    ("boxlite-net-interfaces", &[]),
    ("boxlite-net-policy", &[]),
    ("boxlite-kernel", &[]),
    ("boxlite-kernel-builder", &["boxlite-kernel"]),
    ("boxlite-rootfs-builder", &["boxlite-durable"]),
    (
        "boxlite-vmm",
        &[
            "boxlite-durable",
            "boxlite-hv",
            "boxlite-hvf",
            "boxlite-devices",
            "boxlite-disk",
            "boxlite-net",
            "boxlite-proto",
            "boxlite-kernel",
            "boxlite-rootfs-builder",
        ],
    ),
    ("boxlite-benches", &["boxlite-vmm", "boxlite-net"]),
    ("boxlite-tests", &["boxlite-vmm"]),
    ("boxlite-xtask", &["boxlite-kernel", "boxlite-kernel-builder"]),
];
/// Crates that would break a boundary: devices are the same under every hypervisor, and an embedder that
/// reads rules links no network.
const MAY_NOT_USE: &[(&str, &[&str])] = &[
    ("boxlite-devices", &["kvm-ioctls", "kvm-bindings", "applevisor", "applevisor-sys"]),
    ("boxlite-net", &["kvm-ioctls", "kvm-bindings", "applevisor", "applevisor-sys"]),
    ("boxlite-net-policy", &["smoltcp", "mio", "rustix", "libc", "tokio"]),
];

/// Every dependency between packages is one that ARCHITECTURE.md allows.
pub(super) fn check() -> Result<Outcome> {
    let metadata =
        build::output(build::cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_slice(&metadata)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let broken = violations(packages);
    if !broken.is_empty() {
        bail!("{}", broken.join("\n"));
    }
    Ok(Outcome::passed())
}

/// One line for each dependency that is not allowed.
fn violations(packages: &[Value]) -> Vec<String> {
    let mut broken = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = MAY_USE.iter().find(|(known, _)| *known == name) else {
            broken.push(format!("{name}: say in tests/xtask/src/check/house.rs what it may use"));
            continue;
        };
        let banned = MAY_NOT_USE.iter().find(|(known, _)| *known == name);
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let used = dependency["name"].as_str().unwrap_or_default();
            let ours = MAY_USE.iter().any(|(known, _)| *known == used);
            if ours && used != name && !allowed.contains(&used)
                || banned.is_some_and(|(_, banned)| banned.contains(&used))
            {
                broken.push(format!("{name} may not depend on {used}"));
            }
        }
    }
    broken
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
        let packages = [
            package("boxlite-agent", &["boxlite-proto", "libc"]),
            package("boxlite-devices", &["boxlite-net", "kvm-ioctls", "vm-memory"]),
            package("boxlite-new", &[]),
        ];
        assert_eq!(
            violations(&packages),
            [
                "boxlite-devices may not depend on boxlite-net",
                "boxlite-devices may not depend on kvm-ioctls",
                "boxlite-new: say in tests/xtask/src/check/house.rs what it may use",
            ]
        );
    }
}
