use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::{MAX_SIZE, create_overlay};

const SIZE: u64 = 10 * 1024 * 1024;

fn image(file: File, format: DiskFormat) -> DiskImage {
    DiskImage { file, format }
}

fn raw(len: u64) -> DiskImage {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    image(file, DiskFormat::Raw)
}

fn overlay(size: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    create_overlay(file.try_clone().unwrap(), size).unwrap();
    file
}

fn open(file: &File) -> Result<Disk, DiskError> {
    Disk::open(DiskOptions::new(image(file.try_clone().unwrap(), DiskFormat::Qcow2), "disk"))
}

/// Overwrites a header field of a qcow2 image.
fn patch(file: &File, offset: u64, bytes: &[u8]) {
    file.write_all_at(bytes, offset).unwrap();
}

#[test]
fn invalid_sizes_are_refused() {
    for len in [0, 1, 511, 513, SIZE + 1] {
        let refused = Disk::open(DiskOptions::new(raw(len), "disk")).unwrap_err();
        assert!(matches!(refused, DiskError::Size { size, .. } if size == len), "{len}");
    }
    for size in [0, 100, MAX_SIZE + 512, u64::MAX] {
        let refused = create_overlay(tempfile::tempfile().unwrap(), size).unwrap_err();
        assert!(matches!(refused, DiskError::Size { .. }), "{size}");
    }
    assert_eq!(Disk::open(DiskOptions::new(raw(512), "disk")).unwrap().size, 512);
}

#[test]
fn creating_an_overlay_replaces_the_content_and_takes_little_space() {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[0xff; 300_000], 0).unwrap();
    create_overlay(file.try_clone().unwrap(), 1 << 40).unwrap();
    assert!(file.metadata().unwrap().len() < 1 << 20);
    let mut disk = open(&file).unwrap();
    assert_eq!(disk.size, 1 << 40);
    disk.write_zeroes(0, 4096, true).unwrap();
    disk.flush().unwrap();
}

#[test]
fn incompatible_layers_are_refused() {
    let qcow2 = |size| image(overlay(size), DiskFormat::Qcow2);
    let spec = |image, backing| DiskOptions { backing, ..DiskOptions::new(image, "disk") };
    let refused = Disk::open(spec(raw(SIZE), vec![raw(SIZE)])).unwrap_err();
    assert!(matches!(refused, DiskError::BackingUnused(_)));
    let refused = Disk::open(spec(qcow2(SIZE), vec![raw(2 * SIZE)])).unwrap_err();
    assert!(matches!(refused, DiskError::SmallerThanBacking { size: SIZE, .. }));
    let refused = Disk::open(spec(qcow2(SIZE), vec![image(raw(SIZE).file, DiskFormat::Qcow2)]));
    assert!(matches!(refused.unwrap_err(), DiskError::Open { layer: 1, .. }));
    assert!(Disk::open(spec(qcow2(SIZE), vec![qcow2(SIZE), raw(512)])).is_ok());
}

#[test]
fn names_in_an_image_are_never_followed() {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    fs::write(&secret, [0x5e; 65536]).unwrap();
    let name = secret.to_str().unwrap().as_bytes();

    // The name of a backing file, at the end of the first cluster.
    let file = overlay(SIZE);
    patch(&file, 15_000, name);
    patch(&file, 8, &15_000u64.to_be_bytes());
    patch(&file, 16, &(name.len() as u32).to_be_bytes());
    assert!(matches!(open(&file).unwrap_err(), DiskError::BackingMissing(_)));
    // A backing image that is given is read instead of the named file.
    let spec = DiskOptions {
        backing: vec![raw(65536)],
        read_only: true,
        ..DiskOptions::new(image(file, DiskFormat::Qcow2), "disk")
    };
    let disk = Disk::open(spec).unwrap();
    let mut bytes = vec![1; 512];
    disk.image.read(&mut bytes[..], 0).unwrap();
    assert_eq!(bytes, [0; 512]);

    // An external data file.
    let file = overlay(SIZE);
    patch(&file, 72, &4u64.to_be_bytes());
    assert!(matches!(open(&file).unwrap_err(), DiskError::DataFile(_)));
}

/// `qemu-img check`, where it is installed.
fn qemu_img_check(path: &std::path::Path) {
    let Ok(output) = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(path).output()
    else {
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn qemu_img_check_accepts_the_images() {
    let named = tempfile::NamedTempFile::new().unwrap();
    let file = || File::options().read(true).write(true).open(named.path()).unwrap();
    for size in [512, SIZE, 1 << 40] {
        create_overlay(file(), size).unwrap();
        qemu_img_check(named.path());
    }
    create_overlay(file(), SIZE).unwrap();
    let mut disk = Disk::open(DiskOptions::new(image(file(), DiskFormat::Qcow2), "disk")).unwrap();
    disk.image.write(&[1; 200_000][..], 12_345 * 512 % SIZE).unwrap();
    disk.write_zeroes(0, 1 << 20, true).unwrap();
    disk.write_zeroes(SIZE - 70_000 / 512 * 512, 65536, false).unwrap();
    disk.discard(1 << 20, 1 << 20).unwrap();
    disk.flush().unwrap();
    qemu_img_check(named.path());
    drop(disk);
    qemu_img_check(named.path());
}

#[test]
fn an_ephemeral_disk_does_not_sync() {
    let spec = DiskOptions { ephemeral: true, ..DiskOptions::new(raw(SIZE), "disk") };
    let disk = Disk::open(spec).unwrap();
    assert!(disk.sync.is_none());
    disk.flush().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// A damaged image never causes a panic. It fails to open, or its operations may fail.
    #[test]
    fn damaged_images_do_not_panic(
        damage in prop::collection::vec((prop_oneof![0..120u64, 0..20 * 16384u64], any::<u8>()), 1..12),
    ) {
        let file = overlay(SIZE);
        {
            let disk = open(&file).unwrap();
            disk.image.write(&[7; 200_000][..], 65536).unwrap();
        }
        for (offset, byte) in damage {
            patch(&file, offset, &[byte]);
        }
        if let Ok(mut disk) = open(&file) {
            let mut bytes = vec![0; 70_000];
            let end = disk.size.min(SIZE);
            for offset in [0, 65536, end / 2] {
                let len = bytes.len().min((end - offset.min(end)) as usize);
                let memory = VolatileSlice::from(&mut bytes[..len]);
                let _ = disk.read(&[memory], offset);
                let memory = VolatileSlice::from(&mut bytes[..len]);
                let _ = disk.write(&[memory], offset);
            }
            let _ = disk.write_zeroes(0, end / 2, true);
            let _ = disk.flush();
        }
    }
}

#[test]
fn a_truncated_image_is_an_error() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"QFI\xfb\0\0\0\x03").unwrap();
    assert!(matches!(open(&file).unwrap_err(), DiskError::Open { layer: 0, .. }));
}

/// Flushed data survives the kill of its writer, whatever later writers write.
#[test]
fn an_image_whose_writer_was_killed_keeps_flushed_data() {
    // The distance of blocks in bytes, so that each has an L2 table of its own.
    const FAR: u64 = 64 << 20;
    let file = overlay(64 * FAR);
    let block = |n: u64, writer: u8| vec![(n as u8).wrapping_mul(7) ^ writer; 16 * 1024];
    let mut writers = Vec::new();
    for writer in 0..3_u8 {
        let spec = DiskOptions::new(image(file.try_clone().unwrap(), DiskFormat::Qcow2), "disk");
        let disk = Disk::open(DiskOptions { recover: writer > 0, ..spec }).unwrap();
        let mut write = |n: u64| {
            let mut bytes = block(n, writer);
            let slice = VolatileSlice::from(&mut *bytes);
            disk.write(&[slice], n * FAR).unwrap();
        };
        (0..16).for_each(|n| write(u64::from(writer) * 16 + n));
        disk.flush().unwrap();
        writers.push(writer);
        // Not flushed: these blocks may be lost, and must not damage flushed ones.
        (48..64).for_each(&mut write);
        for &writer in &writers {
            for n in 0..16 {
                let n = u64::from(writer) * 16 + n;
                let mut bytes = vec![0; 16 * 1024];
                disk.read(&[VolatileSlice::from(&mut *bytes)], n * FAR).unwrap();
                assert!(bytes == block(n, writer), "block {n} of writer {writer}");
            }
        }
        // A killed process runs no destructors.
        std::mem::forget(disk);
    }
    let path = tempfile::NamedTempFile::new().unwrap();
    fs::write(path.path(), {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    })
    .unwrap();
    recovery::mark_clusters_used(
        &File::options().read(true).write(true).open(path.path()).unwrap(),
    )
    .unwrap();
    let Ok(check) =
        Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(path.path()).output()
    else {
        println!("SKIPPED: there is no qemu-img to check the image with");
        return;
    };
    // 3: leaked clusters, which are harmless.
    assert!(matches!(check.status.code(), Some(0 | 3)), "{check:?}");
}
