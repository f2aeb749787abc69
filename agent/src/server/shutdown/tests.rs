use super::*;

#[test]
fn disks_are_unmounted_innermost_first() {
    let table = MountTable::from_bytes(
        b"\
21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
22 21 0:4 / /proc rw - proc proc rw
23 21 0:22 / /dev/shm rw - tmpfs tmpfs rw
24 21 0:30 / /mnt/a\\040b rw shared:3 master:1 - ext4 /dev/vdb rw
25 24 0:31 / /mnt/a\\040b/c rw - overlay overlay rw
garbage
26 21 0:5 / /x",
    );
    assert_eq!(mounts_to_unmount(&table), [&b"/mnt/a b/c"[..], b"/mnt/a b", b"/dev/shm"]);
}
