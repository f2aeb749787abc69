use proptest::prelude::*;

use super::*;

const CSUM: u64 = 1 << VIRTIO_NET_F_CSUM;
const TSO: u64 = 1 << VIRTIO_NET_F_HOST_TSO4 | 1 << VIRTIO_NET_F_HOST_TSO6;

fn partial(start: u16, offset: u16) -> Header {
    Header {
        flags: VIRTIO_NET_HDR_F_NEEDS_CSUM as u8,
        csum_start: start.into(),
        csum_offset: offset.into(),
        ..Header::default()
    }
}

#[test]
fn the_layout_matches_the_specification() {
    let header = Header { gso_type: 4, csum_start: 34.into(), ..partial(0, 16) };
    let header = Header { hdr_len: 54.into(), gso_size: 1448.into(), ..header };
    let header = Header { num_buffers: 2.into(), ..header };
    assert_eq!(header.as_bytes(), [1, 4, 54, 0, 0xa8, 5, 34, 0, 16, 0, 2, 0]);
}

#[test]
fn a_checksum_outside_the_frame_is_refused() {
    assert_eq!(partial(34, 16).check(CSUM, 52).unwrap().checksum.unwrap().start, 34);
    for (header, len) in [(partial(34, 16), 51), (partial(u16::MAX, u16::MAX), MAX_FRAME)] {
        assert!(matches!(header.check(CSUM, len), Err(FrameError::Checksum { .. })));
    }
    assert!(matches!(partial(34, 16).check(0, 52), Err(FrameError::Offload { .. })));
}

#[test]
fn segmentation_must_be_negotiated_and_complete() {
    let segment = Header { gso_type: 1, gso_size: 1448.into(), ..partial(34, 16) };
    let gso = segment.check(CSUM | TSO, 3000).unwrap().segmentation.unwrap();
    assert_eq!((gso.v6, gso.segment_size), (false, 1448));
    assert!(segment.check(CSUM, 3000).is_err());
    let ecn = Header { gso_type: 0x81, ..segment };
    assert!(ecn.check(CSUM | TSO, 3000).is_err());
    assert!(ecn.check(CSUM | TSO | 1 << VIRTIO_NET_F_HOST_ECN, 3000).is_ok());
    for wrong in [
        Header { flags: 0, ..segment },
        Header { gso_size: 0.into(), ..segment },
        Header { gso_type: 3, ..segment },
        Header { gso_type: 5, ..segment },
    ] {
        assert!(wrong.check(u64::MAX, 3000).is_err());
    }
}

#[test]
fn the_length_of_a_frame_is_checked() {
    for (len, good) in [
        (0, false),
        (ETHERNET - 1, false),
        (ETHERNET, true),
        (MAX_FRAME, true),
        (MAX_FRAME + 1, false),
    ] {
        assert_eq!(Header::default().check(0, len).is_ok(), good, "{len}");
        let to_guest = Header::to_guest(&Offload::default(), OffloadFeatures::default(), len);
        assert_eq!(to_guest.is_ok(), good, "{len}");
    }
}

#[test]
fn a_guest_gets_only_offloads_that_it_negotiated() {
    let checksum = Some(PartialChecksum { start: 34, offset: 16 });
    let gso = |v6| Some(Segmentation { v6, header_len: 54, segment_size: 1400 });
    let none = OffloadFeatures::default();
    let tso4 = OffloadFeatures { checksum: true, tso4: true, tso6: false };
    let sent = |checksum, segmentation, features| {
        Header::to_guest(&Offload { checksum, segmentation }, features, 3000).is_ok()
    };
    assert!(sent(None, None, none));
    assert!(!sent(checksum, None, none));
    assert!(sent(checksum, None, tso4) && sent(checksum, gso(false), tso4));
    assert!(!sent(checksum, gso(true), tso4) && !sent(None, gso(false), tso4));
    // A guest without partial checksums cannot take segmentation offload.
    assert_eq!(offload_features(1 << VIRTIO_NET_F_GUEST_TSO4), none);
}

proptest! {
    #[test]
    fn any_header_is_accepted_or_refused(
        bytes: [u8; HEADER_SIZE],
        features: u64,
        len in 0..MAX_FRAME + 10,
    ) {
        let header: Header = zerocopy::transmute!(bytes);
        if let Ok(offload) = header.check(features, len) {
            prop_assert!((ETHERNET..=MAX_FRAME).contains(&len));
            if let Some(PartialChecksum { start, offset }) = offload.checksum {
                prop_assert!(has_feature(features, VIRTIO_NET_F_CSUM));
                prop_assert!(usize::from(start) + usize::from(offset) + 2 <= len);
            }
            if let Some(gso) = offload.segmentation {
                let bit = if gso.v6 { VIRTIO_NET_F_HOST_TSO6 } else { VIRTIO_NET_F_HOST_TSO4 };
                prop_assert!(has_feature(features, bit));
                prop_assert!(gso.segment_size > 0 && offload.checksum.is_some());
            }
        }
    }

    #[test]
    fn both_directions_encode_the_same_offload(
        checksum in prop::option::of((0..1000u16, 0..100u16)),
        gso in prop::option::of((any::<bool>(), any::<u16>(), 1..u16::MAX)),
        len in 2000..MAX_FRAME,
    ) {
        let checksum = checksum.map(|(start, offset)| PartialChecksum { start, offset });
        let segmentation = gso.filter(|_| checksum.is_some()).map(
            |(v6, header_len, segment_size)| Segmentation { v6, header_len, segment_size },
        );
        let offload = Offload { checksum, segmentation };
        let all = OffloadFeatures { checksum: true, tso4: true, tso6: true };
        let header = Header::to_guest(&offload, all, len).unwrap();
        prop_assert_eq!(header.check(CSUM | TSO, len).unwrap(), offload);
    }
}
