//! The tree as `dtc` decodes it. After a change that is meant to be seen, copy what a failed test prints to the file in
//! `tests`.

use std::io::ErrorKind;
use std::process::Command;

use super::*;
use crate::arch::aarch64::layout::{DEVICE_IRQS, MMIO_START};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const MEMORY: u64 = 0x8000_0000;

fn devices(count: u64) -> Vec<Window> {
    let irqs = (0..count).zip(DEVICE_IRQS);
    irqs.map(|(n, irq)| Window { start: MMIO_START + n * MMIO_LEN, irq }).collect()
}

/// A tree with seeds of zeros.
fn blob(vcpus: u8, memory: u64, devices: &[Window]) -> Vec<u8> {
    let end = MEMORY + memory;
    let tree = Tree {
        hardware: &Hardware { vcpus, devices },
        memory: MEMORY..end,
        cmdline: "console=ttyS0 quiet boxlite.role=box",
        initramfs: end - 4 * MIB..end - 2 * MIB - 0x123,
        seeds: Some(&Seeds { rng: [0; 64], kaslr: [0; 8] }),
    };
    tree.blob().unwrap()
}

/// The tree as source. `None`, with a message, if `dtc` is not installed.
fn decode(blob: &[u8]) -> Option<String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, blob).unwrap();
    match Command::new("dtc").args(["-I", "dtb", "-O", "dts"]).arg(file.path()).output() {
        Ok(output) => {
            let warnings = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success() && warnings.is_empty(), "dtc: {warnings}");
            // Newer versions write a list of strings as such.
            Some(String::from_utf8(output.stdout).unwrap().replace(r"\0", r#"", ""#))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {
            println!("SKIPPED: dtc is not installed");
            None
        }
        Err(e) => panic!("dtc: {e}"),
    }
}

fn assert_source(blob: &[u8], expected: &str) {
    if let Some(source) = decode(blob) {
        assert!(source == expected, "the tree has changed:\n{source}");
    }
}

#[test]
fn a_small_box_has_this_tree() {
    assert_source(&blob(1, 128 * MIB, &devices(0)), include_str!("tests/small.dts"));
}

#[test]
fn a_box_with_devices_has_this_tree() {
    assert_source(&blob(8, 4 * GIB, &devices(5)), include_str!("tests/devices.dts"));
}

#[test]
fn the_largest_box_has_all_processors_memory_and_devices() {
    let devices = devices(DEVICE_IRQS.len() as u64);
    let Some(source) = decode(&blob(64, 64 * GIB, &devices)) else { return };
    let count = |text: &str| source.matches(text).count();
    assert_eq!((count("\tcpu@"), count("device_type = \"cpu\"")), (64, 64));
    assert_eq!((count("\tvirtio@"), count("\"virtio,mmio\"")), (64, 64));
    for part in [
        "cpu@f {",
        "cpu@100 {",
        "cpu@30f {",
        "reg = <0x30f>;",
        "memory@80000000 {",
        "reg = <0x00 0x80000000 0x10 0x00>;",
        // The distributor, and 64 redistributors of 128 KiB.
        "reg = <0x00 0x8000000 0x00 0x10000 0x00 0xa000000 0x00 0x800000>;",
        "interrupts = <0x00 0x40 0x01>;",
    ] {
        assert!(source.contains(part), "no {part} in {source}");
    }
}

#[test]
fn seeds_are_random_and_may_be_missing() {
    let (first, second) = (Seeds::random().unwrap(), Seeds::random().unwrap());
    assert!(first.rng != second.rng && first.kaslr != second.kaslr);
    let tree = Tree {
        hardware: &Hardware { vcpus: 1, devices: &[] },
        memory: MEMORY..MEMORY + GIB,
        cmdline: "",
        initramfs: MEMORY..MEMORY,
        seeds: None,
    };
    let blob = tree.blob().unwrap();
    assert!(!blob.windows(4).any(|bytes| bytes == b"seed"));
}
