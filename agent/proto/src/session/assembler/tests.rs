use super::*;
use crate::frame::{Channel, Kind, MAX_BODY};

fn feed(input: &mut Assembler, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let space = input.space();
        let count = space.len().min(bytes.len());
        space[..count].copy_from_slice(&bytes[..count]);
        input.filled(count);
        bytes = &bytes[count..];
    }
}

#[test]
fn a_kept_body_does_not_keep_a_large_frame_beside_it() {
    let large = Frame { stream: 0, kind: Kind::Event, body: vec![0; MAX_BODY].into() };
    let small = Frame::data(1, Channel::Stdout, vec![7; SHARED_BODY]);
    let mut bytes = large.to_bytes();
    bytes.extend_from_slice(&small.to_bytes());
    let mut input = Assembler::default();
    feed(&mut input, &bytes);
    assert_eq!(input.next_frame().unwrap().unwrap().body.len(), MAX_BODY);
    let kept = input.next_frame().unwrap().unwrap().body;
    assert!(kept.len() >= SHARED_BODY && input.next_frame().unwrap().is_none());
    drop(input);
    // All of the memory that it keeps.
    let mut kept = kept.try_into_mut().unwrap();
    assert!(!kept.try_reclaim(4 * READ), "a body of 16 KiB keeps more than a few reads");
}

#[test]
fn release_frees_the_memory_of_earlier_frames() {
    let mut input = Assembler::default();
    feed(&mut input, &Frame::data(1, Channel::Stdout, vec![7; SHARED_BODY]).to_bytes());
    input.next_frame().unwrap().unwrap();
    input.release();
    assert_eq!(input.buffer.capacity(), 0);
}
