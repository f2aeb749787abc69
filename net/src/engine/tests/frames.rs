//! Arbitrary frames: nothing panics, and memory stays bounded.

use proptest::prelude::*;

use super::guest::Rig;

/// A frame with valid addresses, lengths and checksums up to the network layer, and arbitrary bytes after that.
fn plausible() -> impl Strategy<Value = Vec<u8>> {
    let payload = proptest::collection::vec(any::<u8>(), 0..200);
    let protocol = prop_oneof![Just(1_u8), Just(6), Just(17), Just(44), Just(58), any::<u8>()];
    let ports = prop_oneof![Just(53_u16), Just(67), any::<u16>()];
    let fragment = prop_oneof![3 => Just(0_u16), 1 => any::<u16>()];
    let target = prop_oneof![Just(1_u8), Just(254), Just(255), any::<u8>()];
    (any::<bool>(), protocol, ports, fragment, target, payload).prop_map(
        |(v6, protocol, port, fragment, target, mut payload)| {
            if let Some(field) = payload.get_mut(2..4) {
                field.copy_from_slice(&port.to_be_bytes());
            }
            if protocol == 17 && payload.len() >= 8 {
                let len = payload.len() as u16;
                payload[4..6].copy_from_slice(&len.to_be_bytes());
            }
            let mut frame = vec![2, 0x62, 0x6f, 0x78, 0, 1, 2, 0x62, 0x6f, 0x78, 0, 2];
            if v6 {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend((payload.len() as u16).to_be_bytes());
                frame.extend([protocol, 255]);
                let net = [0xfd, 0xb0, 0x78, 0x6c, 0x69, 0x74, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                frame.extend(net);
                frame.push(2);
                frame.extend(net);
                frame.push(target);
            } else {
                frame.extend([8, 0]);
                let mut header = vec![0x45, 0];
                header.extend((20 + payload.len() as u16).to_be_bytes());
                header.extend([0, 7]);
                header.extend(fragment.to_be_bytes());
                header.extend([64, protocol, 0, 0, 192, 168, 127, 2, 192, 168, 127, target]);
                let sum = !smoltcp::wire::checksum::data(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                frame.extend(header);
            }
            frame.extend(payload);
            frame
        },
    )
}

proptest! {
    // A case takes long, and a failing one can be understood without shrinking.
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 64, ..Default::default() })]

    #[test]
    fn any_frames_are_survived(
        frames in proptest::collection::vec(
            prop_oneof![proptest::collection::vec(any::<u8>(), 0..120), plausible()], 1..80),
    ) {
        let mut rig = Rig::new();
        let count = frames.len() as u64;
        for frame in frames {
            prop_assert!(rig.guest.send(frame));
        }
        rig.settle();
        prop_assert_eq!(rig.counters().frames_from_guest, count);
        prop_assert_eq!(rig.counters().udp_open, 0, "the policy is closed");
        while rig.guest.receive().is_some() {}
        rig.settle();
        rig.pass(std::time::Duration::from_secs(60));
    }
}
