//! The kernel command line: the words of every architecture, and the parameters of the agent.

use boxlite_contract::spec::LaunchSpec;
use boxlite_proto::boot::BootParams;

use super::network::BoxNetwork;
use crate::arch::{self, Hardware, layout};

/// The kernel command line of a VM with this hardware.
pub(super) fn cmdline(
    spec: &LaunchSpec,
    network: Option<&BoxNetwork>,
    hardware: &Hardware<'_>,
) -> String {
    // The console prints everything only if it goes to a file, because output is slow, but always a panic, which it
    // would not at level 0.
    let verbosity = if spec.console.is_some() { "loglevel=7" } else { "quiet loglevel=1" };
    let mut boot = spec.boot.clone();
    let volumes = std::mem::take(&mut boot.volumes);
    if let Some(network) = network {
        (boot.network, boot.search) = (Some(network.params()), network.search());
    }
    let board = arch::cmdline(spec.host, hardware);
    // No dummy interface by default: programs in the box can create one.
    let mut cmdline = format!("{board} {verbosity} panic=-1 dummy.numdummies=0 {boot}");
    push_volumes(&mut cmdline, &volumes);
    cmdline
}

/// Adds the image's volumes, as many as there is room for: a guest without some of these directories can still boot.
fn push_volumes(cmdline: &mut String, volumes: &[String]) {
    for (n, path) in volumes.iter().enumerate() {
        let word = BootParams::volume(path);
        if cmdline.len() + 1 + word.len() >= layout::CMDLINE_MAX {
            let left = volumes.len() - n;
            tracing::warn!(
                "{left} of the image's volumes are not created: the kernel command line is full"
            );
            return;
        }
        cmdline.push(' ');
        cmdline.push_str(&word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_that_do_not_fit_are_left_out() {
        let mut cmdline = String::from("quiet");
        let volumes: Vec<String> = (0..1000).map(|n| format!("/volume/{n}")).collect();
        push_volumes(&mut cmdline, &volumes);
        assert!(cmdline.starts_with("quiet boxlite.volume=/volume/0 boxlite.volume=/volume/1 "));
        let room = (layout::CMDLINE_MAX - 40)..layout::CMDLINE_MAX;
        assert!(room.contains(&cmdline.len()), "{}", cmdline.len());
    }
}
