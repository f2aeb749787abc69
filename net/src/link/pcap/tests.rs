//! Captures, read back by an independent parser.

use std::thread;

use pcap_parser::traits::PcapReaderIterator;
use pcap_parser::{LegacyPcapReader, Linktype, PcapBlockOwned, PcapError};

use super::*;
use crate::link::memory::{self, MemoryGuest, MemoryLink};

/// A file in memory that may be full.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<Vec<u8>>>, Option<usize>);

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut file = self.0.lock().unwrap();
        if self.1.is_some_and(|size| file.len() + bytes.len() > size) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        file.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The frames of a file: what was stored, and the length on the link.
pub(crate) fn read(file: &[u8]) -> Vec<(Vec<u8>, usize)> {
    let mut reader = LegacyPcapReader::new(1 << 20, file).unwrap();
    let mut frames = Vec::new();
    let mut last = (0, 0);
    loop {
        match reader.next() {
            Ok((offset, block)) => {
                match block {
                    PcapBlockOwned::LegacyHeader(header) => {
                        assert!(header.is_nanosecond_precision());
                        assert_eq!(header.network, Linktype::ETHERNET);
                    }
                    PcapBlockOwned::Legacy(frame) => {
                        let time = (frame.ts_sec, frame.ts_usec);
                        assert!(time >= last && frame.ts_usec < 1_000_000_000);
                        last = time;
                        frames.push((frame.data.to_vec(), frame.origlen as usize));
                    }
                    PcapBlockOwned::NG(block) => panic!("{block:?}"),
                }
                reader.consume(offset);
            }
            Err(PcapError::Incomplete(_)) => reader.refill().unwrap(),
            Err(PcapError::Eof) => return frames,
            Err(e) => panic!("{e:?}"),
        }
    }
}

fn link(capture: &Capture) -> (CaptureLink<MemoryLink>, MemoryGuest) {
    let (link, guest) = memory::pair(OffloadFeatures::default()).unwrap();
    (CaptureLink::new(link, Some(capture.clone())), guest)
}

fn receive(link: &mut impl Link) -> Option<usize> {
    link.receive(&mut vec![0; MAX_FRAME]).unwrap().map(|received| received.len)
}

fn send(link: &mut impl Link, pieces: &[&[u8]]) -> Sent {
    let pieces: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    link.send(&pieces, Offload::default()).unwrap()
}

#[test]
fn both_directions_and_one_link_after_the_other() {
    let disk = Disk::default();
    let (capture, writer) = capture(disk.clone(), CaptureOptions::default());
    let writer = thread::spawn(|| writer.run());
    let (mut first, guest) = link(&capture);
    guest.send(b"from the guest".to_vec());
    assert_eq!(receive(&mut first), Some(14));
    assert_eq!(receive(&mut first), None);
    assert_eq!(send(&mut first, &[b"to ", b"", b"the guest"]), Sent::Sent);
    // A frame that the guest has no room for is neither sent nor stored.
    while send(&mut first, &[&[7; 60]]) == Sent::Sent {}
    assert!(guest.receive().is_some());
    // The same link, without the capture.
    let mut plain = CaptureLink::new(first.into_inner(), None);
    assert_eq!(send(&mut plain, &[b"not stored"]), Sent::Sent);
    let (mut second, _guest) = link(&capture);
    let large = vec![1; MAX_FRAME];
    assert_eq!(send(&mut second, &[&large]), Sent::Sent);
    drop((capture, second));
    writer.join().unwrap();
    let frames = read(&disk.0.lock().unwrap());
    let whole = |frame: &[u8]| (frame.to_vec(), frame.len());
    assert_eq!(frames.len(), 2 + 1023 + 1);
    assert_eq!(frames[..2], [whole(b"from the guest"), whole(b"to the guest")]);
    assert_eq!((&frames[2], frames.last().unwrap()), (&whole(&[7; 60]), &whole(&large)));
}

#[test]
fn frames_are_cut_and_the_file_has_a_limit() {
    let disk = Disk::default();
    let options = CaptureOptions { snap_len: 5, max_bytes: 24 + 3 * (16 + 5) + 20 };
    let (capture, writer) = capture(disk.clone(), options);
    let (mut link, _guest) = link(&capture);
    let writer = thread::spawn(|| writer.run());
    for n in 0..10 {
        assert_eq!(send(&mut link, &[&[n; 3], &[], &[n + 100; 3]]), Sent::Sent);
    }
    // The capture ends by itself.
    let (_, summary) = writer.join().unwrap();
    assert!(matches!(summary, Summary { end: End::Full, skipped: 0 }), "{summary:?}");
    let file = disk.0.lock().unwrap();
    assert!(file.len() as u64 <= options.max_bytes);
    let frames = read(&file);
    let cut = |n: u8| (vec![n, n, n, n + 100, n + 100], 6);
    assert_eq!(frames, [cut(0), cut(1), cut(2)]);
}

#[test]
fn a_slow_file_costs_frames_of_the_capture_only() {
    let disk = Disk::default();
    let (capture, writer) = capture(disk.clone(), CaptureOptions::default());
    let frame = vec![3; MAX_FRAME];
    let (frames, room) = (1000, MAX_PENDING / (MAX_FRAME + RECORD_HEADER));
    assert!(room < frames);
    let source = &capture.0;
    for _ in 0..frames {
        source.record(&[IoSlice::new(&frame)]);
    }
    assert_eq!(source.shared.lock().skipped as usize, frames - room);
    assert!(source.shared.lock().pending.len() <= MAX_PENDING);
    drop(capture);
    let (_, summary) = writer.run();
    assert!(matches!(summary.end, End::Stopped), "{summary:?}");
    assert_eq!(summary.skipped as usize, frames - room);
    assert_eq!(read(&disk.0.lock().unwrap()).len(), room);
}

#[test]
fn a_stopped_capture_ends_with_the_frames_of_before() {
    let disk = Disk::default();
    let (capture, writer) = capture(disk.clone(), CaptureOptions::default());
    let (mut link, _guest) = link(&capture);
    assert_eq!(send(&mut link, &[b"before"]), Sent::Sent);
    capture.stop();
    assert_eq!(send(&mut link, &[b"after"]), Sent::Sent);
    // Though there are links left.
    writer.run();
    assert_eq!(read(&disk.0.lock().unwrap()), [(b"before".to_vec(), 6)]);
}

#[test]
fn without_a_writer_nothing_is_kept() {
    let full = Disk(Arc::default(), Some(FILE_HEADER + 100));
    let (capture, writer) = capture(full.clone(), CaptureOptions::default());
    let (mut link, _guest) = link(&capture);
    assert_eq!(send(&mut link, &[&[1; 200]]), Sent::Sent);
    let (_, summary) = writer.run();
    assert!(matches!(summary.end, End::WriteFailed(_)), "{summary:?}");
    assert_eq!(send(&mut link, &[&[1; 10]]), Sent::Sent);
    assert_eq!(capture.0.shared.lock().pending.capacity(), 0);
    assert_eq!(full.0.lock().unwrap().len(), FILE_HEADER);
    let none = Disk(Arc::default(), Some(FILE_HEADER - 1));
    let (capture, writer) = super::capture(none.clone(), CaptureOptions::default());
    let (mut link, _guest) = self::link(&capture);
    writer.run();
    assert_eq!(send(&mut link, &[&[1; 10]]), Sent::Sent);
    assert!(none.0.lock().unwrap().is_empty());
}
