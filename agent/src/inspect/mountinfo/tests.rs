use proptest::prelude::*;

use super::*;

const TABLE: &[u8] = b"\
21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
22 21 0:4 / /proc rw shared:1 - proc proc rw
23 21 0:22 / /dev/shm rw - tmpfs tmpfs rw
24 21 0:30 / /mnt/a\\040b rw shared:3 master:1 - ext4 /dev/vdb rw
25 24 0:31 / /mnt/a\\040b/\xff rw - overlay overlay rw
27 24 0:5 / /dev rw shared:3 master:1 - devtmpfs devtmpfs rw
garbage
26 21 x:y / /x rw - proc proc rw
26 21 0:5 / /x";

#[test]
fn lines_are_mounts_or_skipped() {
    let table = MountTable::from_bytes(TABLE);
    let points: Vec<_> = table.mounts().map(|mount| mount.point()).collect();
    let want: [&[u8]; 6] = [b"/", b"/proc", b"/dev/shm", b"/mnt/a b", b"/mnt/a b/\xff", b"/dev"];
    assert_eq!(points, want);
    let kernel: Vec<_> =
        table.mounts().filter(Mount::is_kernel).map(|mount| mount.device).collect();
    assert_eq!(kernel, [(0, 4), (0, 5)].map(|(major, minor)| rustix::fs::makedev(major, minor)));
}

#[test]
fn escapes_are_decoded_and_other_bytes_kept() {
    assert_eq!(unescape(br"/a\040b\134\011\012c"), b"/a b\\\t\nc");
    assert_eq!(unescape(br"\9\x\777\04"), br"\9\x\777\04");
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes: Vec<u8>, text in "[0-9:/ \\\\a-]{0,80}") {
        for table in [bytes, text.into_bytes()] {
            MountTable::from_bytes(&table).mounts().for_each(|mount| drop(mount.point()));
        }
    }
}
