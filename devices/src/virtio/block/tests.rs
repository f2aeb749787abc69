//! The device with well-behaved and hostile drivers.

use std::fs::File;
use std::sync::Mutex;
use std::thread::{self, JoinHandle};

use boxlite_disk::{DiskError, DiskFormat, DiskImage, DiskOptions, create_overlay};
use proptest::prelude::*;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_queue::desc::split::Descriptor;

use super::*;
use crate::BusDevice;
use crate::virtio::testing::{
    Buffer, DATA, DRIVER_OK, Driver, MEMORY_END, SEAM, SIZE, any_write, driver, wait_until,
};

const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;

/// In sectors: several clusters of any usual size, and a partial one.
const CAPACITY: u64 = 3 * 128 + 11;
const HEADER: u64 = DATA - 0x100;
const STATUS: u64 = DATA - 0x10;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;

/// A driver of a disk, whose worker runs until this is dropped.
struct TestDisk {
    driver: Option<Driver>,
    worker: Option<JoinHandle<()>>,
    counters: Arc<BlockCounters>,
}

impl TestDisk {
    fn open(spec: DiskOptions) -> Self {
        Self::open_with(spec, None)
    }

    fn open_with(spec: DiskOptions, host_full: Option<HostFull>) -> Self {
        let (device, worker) = BlockDevice::new(Disk::open(spec).unwrap(), host_full);
        let worker = thread::spawn(move || worker.run());
        let counters = device.counters();
        Self { driver: Some(driver(device)), worker: Some(worker), counters }
    }

    fn started(spec: DiskOptions) -> Self {
        let mut disk = Self::open(spec);
        disk.start(EVENT_IDX | FLUSH, 1);
        disk
    }

    /// Sends a request with `data` as its buffers. Returns its status.
    fn send(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> u8 {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.put(HEADER, &header);
        self.put(STATUS, &[0xff]);
        let mut chain = vec![(HEADER, 16, false)];
        chain.extend_from_slice(data);
        chain.push((STATUS, 1, true));
        self.request(&chain);
        self.get(STATUS, 1)[0]
    }

    fn write_sectors(&mut self, sector: u64, bytes: &[u8]) -> u8 {
        self.put(DATA, bytes);
        self.send(VIRTIO_BLK_T_OUT, sector, &[(DATA, bytes.len() as u32, false)])
    }

    fn read_sectors(&mut self, sector: u64, sectors: u64) -> Vec<u8> {
        let len = sectors * SECTOR;
        assert_eq!(self.send(VIRTIO_BLK_T_IN, sector, &[(DATA, len as u32, true)]), OK);
        self.get(DATA, len as usize)
    }

    fn clear(&mut self, kind: u32, segments: &[(u64, u32, u32)]) -> u8 {
        let bytes: Vec<u8> = segments
            .iter()
            .flat_map(|(sector, sectors, flags)| {
                let tail = [sectors.to_le_bytes(), flags.to_le_bytes()].concat();
                [sector.to_le_bytes().to_vec(), tail].concat()
            })
            .collect();
        self.put(DATA, &bytes);
        self.send(kind, 0, &[(DATA, bytes.len() as u32, false)])
    }
}

impl std::ops::Deref for TestDisk {
    type Target = Driver;
    fn deref(&self) -> &Driver {
        self.driver.as_ref().unwrap()
    }
}

impl std::ops::DerefMut for TestDisk {
    fn deref_mut(&mut self) -> &mut Driver {
        self.driver.as_mut().unwrap()
    }
}

impl Drop for TestDisk {
    fn drop(&mut self) {
        self.driver = None;
        let ended = self.worker.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking());
    }
}

/// A file of `sectors` sectors, each filled with its number.
fn numbered(sectors: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    let bytes: Vec<u8> =
        (0..sectors).flat_map(|sector| [sector as u8 | 0x80; SECTOR as usize]).collect();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
    file
}

fn raw(file: File) -> DiskImage {
    DiskImage { file, format: DiskFormat::Raw }
}

fn raw_spec() -> DiskOptions {
    DiskOptions::new(raw(numbered(CAPACITY)), "disk")
}

fn overlay(sectors: u64) -> DiskImage {
    let file = tempfile::tempfile().unwrap();
    create_overlay(file.try_clone().unwrap(), sectors * SECTOR).unwrap();
    DiskImage { file, format: DiskFormat::Qcow2 }
}

fn overlay_spec() -> DiskOptions {
    DiskOptions {
        backing: vec![raw(numbered(CAPACITY))],
        ..DiskOptions::new(overlay(CAPACITY), "disk")
    }
}

fn two_overlays_spec() -> DiskOptions {
    let backing = vec![overlay(CAPACITY), raw(numbered(CAPACITY))];
    DiskOptions { backing, ..DiskOptions::new(overlay(CAPACITY), "disk") }
}

#[test]
fn the_configuration_describes_the_disk() {
    let mut disk = TestDisk::open(raw_spec());
    assert_eq!(u64::from_le_bytes(disk.config(0)), CAPACITY);
    assert_eq!(u32::from_le_bytes(disk.config(12)), SEG_MAX);
    assert_eq!(u32::from_le_bytes(disk.config(20)), 512);
    assert_eq!(u16::from_le_bytes(disk.config(34)), 1, "num_queues");
    assert_eq!(u32::from_le_bytes(disk.config(36)), MAX_ZERO_SECTORS);
    assert_eq!(u32::from_le_bytes(disk.config(52)), MAX_ZERO_SEGMENTS);
    assert_eq!(disk.config(56), [1], "write_zeroes_may_unmap");
    assert_eq!(disk.config(60), [0; 8]);
    let features = disk.offered();
    assert!(features & 1 << VIRTIO_BLK_F_DISCARD != 0 && features & 1 << VIRTIO_BLK_F_RO == 0);
}

#[test]
fn identification_is_padded_and_truncated() {
    let mut disk = TestDisk::started(raw_spec());
    assert_eq!(disk.send(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20, true)]), OK);
    assert_eq!(disk.get(DATA, 20), *b"disk\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    let spec = DiskOptions { name: "x".repeat(30), ..raw_spec() };
    let mut disk = TestDisk::started(spec);
    assert_eq!(disk.send(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 64, true)]), OK);
    assert_eq!(disk.get(DATA, 21), [&[b'x'; 20][..], &[0]].concat());
}

#[test]
fn data_survives_a_round_trip_in_every_format() {
    for (name, spec) in
        [("raw", raw_spec()), ("overlay", overlay_spec()), ("two overlays", two_overlays_spec())]
    {
        let mut disk = TestDisk::started(spec);
        assert_eq!(disk.read_sectors(7, 1), [0x87; 512], "{name}");
        assert_eq!(disk.write_sectors(7, &[1; 512]), OK);
        assert_eq!(disk.write_sectors(CAPACITY - 2, &[2; 1024]), OK);
        assert_eq!(disk.read_sectors(6, 3), [[0x86; 512], [1; 512], [0x88; 512]].concat());
        assert_eq!(disk.read_sectors(CAPACITY - 2, 2), [2; 1024]);
        assert_eq!(disk.send(VIRTIO_BLK_T_FLUSH, 0, &[]), OK);
    }
}

#[test]
fn requests_are_counted_by_type() {
    let mut disk = TestDisk::started(overlay_spec());
    assert_eq!(disk.write_sectors(7, &[1; 512]), OK);
    assert_eq!(disk.write_sectors(8, &[1; 1024]), OK);
    disk.read_sectors(0, 3);
    assert_eq!(disk.send(VIRTIO_BLK_T_FLUSH, 0, &[]), OK);
    assert_eq!(disk.send(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20, true)]), OK);
    assert_eq!(disk.write_sectors(CAPACITY, &[1; 512]), IOERR);
    assert_eq!(disk.send(99, 0, &[]), UNSUPP);
    let expected = BlockCounts {
        reads: 1,
        bytes_read: 3 * 512,
        writes: 2,
        bytes_written: 3 * 512,
        flushes: 1,
        errors: 2,
    };
    assert_eq!(disk.counters.get(), expected);
}

#[test]
fn a_request_may_be_split_anywhere() {
    let mut disk = TestDisk::started(overlay_spec());
    let mut header = [0; 16];
    header[..4].copy_from_slice(&VIRTIO_BLK_T_OUT.to_le_bytes());
    header[8] = 5;
    disk.put(HEADER, &header);
    disk.put(SEAM - 100, &[9; 512]);
    // The header is in four pieces, the last of which also has the first data; the data crosses a
    // boundary of memory regions; the status follows an unused byte.
    disk.put(SEAM - 116, &header);
    let chain = [
        (HEADER, 3, false),
        (HEADER + 3, 1, false),
        (HEADER + 4, 8, false),
        (SEAM - 104, 200, false),
        (SEAM + 96, 316, false),
        (STATUS - 1, 2, true),
    ];
    disk.put(STATUS - 1, &[0xee, 0xff]);
    assert_eq!(disk.request(&chain), 1);
    assert_eq!(disk.get(STATUS - 1, 2), [0xee, OK]);
    assert_eq!(disk.read_sectors(5, 1), [9; 512]);
}

#[test]
fn writes_reach_the_file_and_not_the_base() {
    let (base, top) = (numbered(CAPACITY), overlay(CAPACITY));
    let again = || DiskOptions {
        backing: vec![raw(base.try_clone().unwrap())],
        ..DiskOptions::new(
            DiskImage { file: top.file.try_clone().unwrap(), format: DiskFormat::Qcow2 },
            "disk",
        )
    };
    let mut disk = TestDisk::started(again());
    assert_eq!(disk.write_sectors(3, &[7; 512]), OK);
    drop(disk);
    let mut disk = TestDisk::started(again());
    assert_eq!(disk.read_sectors(2, 3), [[0x82; 512], [7; 512], [0x84; 512]].concat());
    let mut disk = TestDisk::started(DiskOptions::new(raw(base), "base"));
    assert_eq!(disk.read_sectors(3, 1), [0x83; 512]);
}

#[test]
fn an_overlay_larger_than_its_base_ends_in_zeros() {
    let spec = DiskOptions {
        backing: vec![raw(numbered(130))],
        ..DiskOptions::new(overlay(CAPACITY), "disk")
    };
    let mut disk = TestDisk::started(spec);
    assert_eq!(disk.read_sectors(129, 2), [[0x80 | 129; 512], [0; 512]].concat());
    assert_eq!(disk.write_sectors(131, &[5; 512]), OK);
    assert_eq!(disk.read_sectors(128, 4)[512..], [[0x81; 512], [0; 512], [5; 512]].concat());
}

#[test]
fn discard_and_write_zeroes_clear_their_ranges_only() {
    for spec in [raw_spec(), overlay_spec(), two_overlays_spec()] {
        let mut disk = TestDisk::started(spec);
        assert_eq!(disk.clear(VIRTIO_BLK_T_WRITE_ZEROES, &[(1, 2, 0), (200, 150, 1)]), OK);
        assert_eq!(disk.read_sectors(0, 4)[..512], [0x80; 512]);
        assert_eq!(disk.read_sectors(1, 2), [0; 1024]);
        assert_eq!(disk.read_sectors(3, 1), [0x83; 512]);
        assert_eq!(disk.read_sectors(199, 1), [0x80 | 199; 512]);
        assert_eq!(disk.read_sectors(200, 150), [0; 150 * 512]);
        assert_eq!(disk.read_sectors(350, 1), [350u64 as u8 | 0x80; 512]);
        assert_eq!(disk.clear(VIRTIO_BLK_T_DISCARD, &[(128, 128, 0)]), OK);
        assert_eq!(disk.read_sectors(127, 1), [0xff; 512]);
        assert_eq!(disk.clear(VIRTIO_BLK_T_WRITE_ZEROES, &[(0, CAPACITY as u32, 1)]), OK);
        for sector in [0, 127, 255, CAPACITY - 1] {
            assert_eq!(disk.read_sectors(sector, 1), [0; 512], "sector {sector}");
        }
    }
}

#[test]
fn clearing_is_all_or_nothing() {
    let mut disk = TestDisk::started(raw_spec());
    let end = CAPACITY as u32;
    for (kind, segments, status) in [
        (VIRTIO_BLK_T_DISCARD, vec![(0, 1, 1)], UNSUPP),
        (VIRTIO_BLK_T_WRITE_ZEROES, vec![(0, 1, 2)], UNSUPP),
        (VIRTIO_BLK_T_WRITE_ZEROES, vec![(0, 1, 0), (0, end + 1, 0)], IOERR),
        (VIRTIO_BLK_T_WRITE_ZEROES, vec![(0, 1, 0), (u64::MAX, 2, 0)], IOERR),
        (VIRTIO_BLK_T_WRITE_ZEROES, vec![(0, 1, 0), (0, u32::MAX, 0)], IOERR),
        (VIRTIO_BLK_T_DISCARD, vec![(0, 1, 0); MAX_ZERO_SEGMENTS as usize + 1], IOERR),
        (VIRTIO_BLK_T_DISCARD, vec![], IOERR),
    ] {
        assert_eq!(disk.clear(kind, &segments), status, "{segments:?}");
    }
    assert_eq!(disk.send(VIRTIO_BLK_T_DISCARD, 0, &[(DATA, 15, false)]), IOERR);
    assert_eq!(disk.read_sectors(0, 1), [0x80; 512]);
}

#[test]
fn requests_that_do_not_fit_the_disk_fail() {
    let mut disk = TestDisk::started(raw_spec());
    for (sector, len) in [
        (CAPACITY, 512),
        (CAPACITY - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (0, 511),
        (0, 513),
    ] {
        for kind in [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT] {
            let data = (DATA, len, kind == VIRTIO_BLK_T_IN);
            assert_eq!(disk.send(kind, sector, &[data]), IOERR, "{len} bytes at {sector}");
        }
    }
    assert_eq!(disk.send(VIRTIO_BLK_T_IN, CAPACITY, &[]), OK, "an empty request fits everywhere");
}

#[test]
fn unknown_requests_are_unsupported() {
    let mut disk = TestDisk::started(raw_spec());
    for kind in [2, 3, 5, VIRTIO_BLK_T_SECURE_ERASE, VIRTIO_BLK_T_ZONE_REPORT, u32::MAX] {
        assert_eq!(disk.send(kind, 0, &[(DATA, 512, true)]), UNSUPP);
    }
}

#[test]
fn broken_chains_are_returned_and_the_queue_is_served() {
    let mut disk = TestDisk::started(raw_spec());
    disk.put(HEADER, &[0; 16]);
    for chain in [
        &[(HEADER, 16, false)][..],                    // no status
        &[(HEADER, 16, true), (STATUS, 1, false)],     // status not writable
        &[(MEMORY_END, 16, false), (STATUS, 1, true)], // header not in memory
        &[(HEADER, 16, false), (u64::MAX - 7, 512, true), (STATUS, 1, true)],
        &[(HEADER, 16, false), (DATA, u32::MAX, true), (STATUS, 1, true)],
    ] {
        assert_eq!(disk.request(chain), 0, "{chain:x?}");
    }
    disk.put(STATUS, &[0xff]);
    assert_eq!(disk.request(&[(HEADER, 15, false), (STATUS, 1, true)]), 1);
    assert_eq!(disk.get(STATUS, 1), [IOERR], "half a header");
    assert_eq!(disk.request(&[(STATUS, 1, true)]), 1);

    // A loop of all descriptors.
    for index in 0..SIZE {
        disk.write_descriptor(0, index, Descriptor::new(DATA, 1, 1, (index + 1) % SIZE));
    }
    disk.make_available(0, 0);
    disk.kick(0);
    assert_eq!(disk.wait_used(0), (0, 0));
    assert_eq!(disk.read_sectors(1, 1), [0x81; 512]);
}

#[test]
fn a_broken_ring_needs_a_reset() {
    let mut disk = TestDisk::started(raw_spec());
    disk.set_available_index(0, 0x4000);
    disk.kick(0);
    let failed = DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET;
    wait_until("DEVICE_NEEDS_RESET", || disk.status() == failed);
    disk.start(0, 1);
    assert_eq!(disk.read_sectors(1, 1), [0x81; 512]);
    // A head outside of the descriptor table.
    disk.make_available(0, SIZE);
    disk.kick(0);
    wait_until("DEVICE_NEEDS_RESET", || disk.status() == failed);
}

#[test]
fn a_read_only_disk_does_not_change() {
    let named = tempfile::NamedTempFile::new().unwrap();
    std::io::copy(&mut &[1; 4096][..], &mut named.as_file()).unwrap();
    let spec = || DiskOptions::new(raw(File::open(named.path()).unwrap()), "ro");
    let refused = Disk::open(spec()).unwrap_err();
    assert!(matches!(refused, DiskError::FileReadOnly(name) if name == "ro"));

    let mut disk = TestDisk::open(DiskOptions { read_only: true, ..spec() });
    let features = disk.offered();
    assert!(features & 1 << VIRTIO_BLK_F_RO != 0 && features & 1 << VIRTIO_BLK_F_DISCARD == 0);
    disk.start(FLUSH, 1);
    assert_eq!(disk.write_sectors(0, &[2; 512]), IOERR);
    assert_eq!(disk.clear(VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 1, 0)]), IOERR);
    assert_eq!(disk.send(VIRTIO_BLK_T_FLUSH, 0, &[]), OK);
    assert_eq!(disk.read_sectors(0, 1), [1; 512]);
}

#[test]
fn a_full_host_is_an_io_error_and_is_reported_once() {
    /// A device whose writes fail with ENOSPC.
    fn full() -> Option<File> {
        File::options().read(true).write(true).open("/dev/full").ok()
    }
    let Some(file) = full() else { return };
    let reports = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&reports);
    // A character device has no size, so the worker has another disk.
    let disk = Disk::open(raw_spec()).unwrap();
    let (_device, mut worker) =
        BlockDevice::new(disk, Some(Box::new(move || *counter.lock().unwrap() += 1)));
    let no_room = std::io::Write::write(&mut &file, &[0]).unwrap_err();
    assert!(request::RequestError::from(no_room).is_host_full());
    for _ in 0..3 {
        let no_room = std::io::Write::write(&mut &file, &[0]).unwrap_err();
        worker.failed(&no_room.into());
    }
    worker.failed(&request::RequestError::ReadOnly);
    assert_eq!(*reports.lock().unwrap(), 1);
}

#[test]
fn the_driver_may_choose_write_through() {
    let mut disk = TestDisk::open(raw_spec());
    disk.start(FLUSH | 1 << VIRTIO_BLK_F_CONFIG_WCE, 1);
    assert_eq!(disk.config(CONFIG_WRITEBACK), [1]);
    let register = u64::from(virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG) + CONFIG_WRITEBACK;
    disk.transport.write(register, &[0]);
    assert_eq!(disk.config(CONFIG_WRITEBACK), [0]);
    assert_eq!(disk.config::<4>(CONFIG_WRITEBACK - 1)[1], 0);
    assert_eq!(disk.write_sectors(0, &[1; 512]), OK);
    // A driver without FLUSH gets write-through.
    disk.start(0, 1);
    assert_eq!(disk.write_sectors(0, &[2; 512]), OK);
    assert_eq!(disk.read_sectors(0, 1), [2; 512]);
}

#[test]
fn a_queue_reset_keeps_the_disk() {
    let mut disk = TestDisk::open(overlay_spec());
    disk.start(1 << VIRTIO_F_RING_RESET, 1);
    assert_eq!(disk.write_sectors(1, &[3; 512]), OK);
    disk.write(virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_SEL, 0);
    disk.write(0xc0, 1);
    disk.make_ready(0);
    assert_eq!(disk.read_sectors(1, 1), [3; 512]);
}

#[test]
fn no_memory_is_written_after_reset() {
    let mut disk = TestDisk::open(overlay_spec());
    for _ in 0..50 {
        disk.start(0, 1);
        disk.put(HEADER, &[0; 16]);
        for head in (0..SIZE - 2).step_by(3) {
            disk.write_chain(
                0,
                head,
                &[(HEADER, 16, false), (DATA, 65536, true), (STATUS, 1, true)],
            );
            disk.make_available(0, head);
        }
        disk.kick(0);
        disk.set_status(0);
        disk.put(DATA, &[0; 65536]);
        thread::yield_now();
        assert_eq!(disk.get(DATA, 65536), [0; 65536]);
    }
}

#[test]
fn many_requests_need_few_interrupts() {
    let mut disk = TestDisk::started(raw_spec());
    disk.put(HEADER, &[0; 16]);
    let before = disk.raised();
    for head in (0..SIZE - 2).step_by(3) {
        disk.write_chain(0, head, &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
        disk.make_available(0, head);
    }
    disk.kick(0);
    for _ in (0..SIZE - 2).step_by(3) {
        assert_eq!(disk.wait_used(0).1, 513);
    }
    wait_until("an interrupt", || disk.raised() > before);
    thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(disk.raised(), before + 1, "one interrupt for the whole ring");
}

#[test]
fn activation_fails_without_a_worker() {
    let (device, worker) = BlockDevice::new(Disk::open(raw_spec()).unwrap(), None);
    drop(worker);
    let mut driver = driver(device);
    driver.negotiate(0);
    driver.make_ready(0);
    assert_eq!(driver.set_status(DRIVER_OK), DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET);
}

/// An operation on a disk and on a vector that models it.
#[derive(Clone, Debug)]
enum Operation {
    Write { sector: u64, sectors: u64, fill: u8 },
    Zero { sector: u64, sectors: u64, unmap: bool },
    Read { sector: u64, sectors: u64 },
    Flush,
    Reset,
}

fn operation() -> impl Strategy<Value = Operation> {
    let range =
        || (0..CAPACITY).prop_flat_map(|sector| (Just(sector), 1..=(CAPACITY - sector).min(300)));
    prop_oneof![
        4 => (range(), any::<u8>())
            .prop_map(|((sector, sectors), fill)| Operation::Write { sector, sectors, fill }),
        2 => (range(), any::<bool>())
            .prop_map(|((sector, sectors), unmap)| Operation::Zero { sector, sectors, unmap }),
        4 => range().prop_map(|(sector, sectors)| Operation::Read { sector, sectors }),
        1 => Just(Operation::Flush),
        1 => Just(Operation::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_disk_behaves_like_a_vector(
        which in 0..3usize,
        operations in prop::collection::vec(operation(), 1..40),
    ) {
        let spec = [raw_spec, overlay_spec, two_overlays_spec][which]();
        let mut disk = TestDisk::started(spec);
        let mut model: Vec<u8> =
            (0..CAPACITY).flat_map(|sector| [sector as u8 | 0x80; SECTOR as usize]).collect();
        let bytes = |sector: u64, sectors: u64| {
            (sector * SECTOR) as usize..((sector + sectors) * SECTOR) as usize
        };
        for operation in operations {
            match operation {
                Operation::Write { sector, sectors, fill } => {
                    let data: Vec<u8> =
                        (0..sectors * SECTOR).map(|i| fill.wrapping_add((i / 7) as u8)).collect();
                    prop_assert_eq!(disk.write_sectors(sector, &data), OK);
                    model[bytes(sector, sectors)].copy_from_slice(&data);
                }
                Operation::Zero { sector, sectors, unmap } => {
                    let segment = (sector, sectors as u32, unmap.into());
                    prop_assert_eq!(disk.clear(VIRTIO_BLK_T_WRITE_ZEROES, &[segment]), OK);
                    model[bytes(sector, sectors)].fill(0);
                }
                Operation::Read { sector, sectors } => {
                    let read = disk.read_sectors(sector, sectors);
                    prop_assert!(read == model[bytes(sector, sectors)], "{sectors} at {sector}");
                }
                Operation::Flush => prop_assert_eq!(disk.send(VIRTIO_BLK_T_FLUSH, 0, &[]), OK),
                Operation::Reset => disk.start(EVENT_IDX | FLUSH, 1),
            }
        }
        prop_assert!(disk.read_sectors(0, CAPACITY) == model);
    }

    /// Any descriptors and any register writes; then a well-behaved driver works.
    #[test]
    fn any_driver_is_survived(
        descriptors in prop::collection::vec(
            (
                prop_oneof![Just(HEADER), DATA..DATA + 4096, any::<u64>()],
                prop_oneof![Just(16u32), Just(1), Just(512), any::<u32>()],
                any::<u16>(),
                0..SIZE + 2,
            ),
            SIZE as usize,
        ),
        header in (0u32..20, prop_oneof![0..CAPACITY + 2, any::<u64>()]),
        heads in prop::collection::vec(0..SIZE, 1..SIZE as usize),
        writes in prop::collection::vec(any_write(), 0..60),
    ) {
        let spec = DiskOptions { ephemeral: true, ..overlay_spec() };
        let mut disk = TestDisk::started(spec);
        disk.put(HEADER, &[&header.0.to_le_bytes()[..], &[0; 4], &header.1.to_le_bytes()].concat());
        for (index, (address, len, flags, next)) in (0..).zip(descriptors) {
            // Lengths beyond the end of memory are refused before anything is read.
            disk.write_descriptor(0, index, Descriptor::new(address, len, flags & 7, next));
        }
        for head in heads {
            disk.make_available(0, head);
        }
        disk.kick(0);
        for (offset, data) in writes {
            disk.transport.write(offset, &data);
        }
        disk.start(EVENT_IDX | FLUSH, 1);
        prop_assert_eq!(disk.write_sectors(0, &[1; 512]), OK);
        prop_assert_eq!(disk.read_sectors(0, 1), [1; 512]);
    }
}
