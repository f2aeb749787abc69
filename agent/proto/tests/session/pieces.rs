//! The events do not depend on how the received bytes are split, nor the sent bytes on how they are written.

use boxlite_proto::frame::{Channel, Frame, Kind, MAX_DATA};
use boxlite_proto::message::{Control, Event, Exec, ExitStatus, Request, Response, Stage};
use boxlite_proto::session::{Assembler, Chunks, Client, Outbox, SHARED_BODY, Server};
use bytes::Buf;
use proptest::collection::vec;
use proptest::prelude::*;

use super::{client_events, hello, server_events};

/// Data of an interesting length.
fn data() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![0..200_usize, 4000..4200_usize, SHARED_BODY - 2..SHARED_BODY + 2];
    (length, any::<u8>())
        .prop_map(|(length, seed)| (0..length).map(|i| (i as u8).wrapping_add(seed)).collect())
}

fn channel() -> impl Strategy<Value = Channel> {
    prop::sample::select(vec![Channel::Stdin, Channel::Stdout, Channel::Stderr])
}

fn from_agent() -> impl Strategy<Value = Frame> {
    let stream = 1..4_u32;
    prop_oneof![
        4 => (stream.clone(), channel(), data())
            .prop_map(|(stream, channel, data)| Frame::data(stream, channel, data)),
        1 => (stream.clone(), channel()).prop_map(|(stream, channel)| Frame::end(stream, channel)),
        1 => stream.clone().prop_map(|stream| Response::Done.frame(stream)),
        1 => stream.prop_map(|stream| Response::Exited(ExitStatus::Code(3)).frame(stream)),
        1 => Just(Event::Stage(Stage::Ready).frame(0)),
    ]
}

fn from_host() -> impl Strategy<Value = Frame> {
    let stream = 1..4_u32;
    prop_oneof![
        4 => (stream.clone(), data())
            .prop_map(|(stream, data)| Frame::data(stream, Channel::Stdin, data)),
        1 => (stream.clone(), channel()).prop_map(|(stream, channel)| Frame::end(stream, channel)),
        1 => stream.clone().prop_map(|stream| Control::Kill.frame(stream)),
        2 => stream.prop_map(|stream| Request::Exec(Exec::default()).frame(stream)),
    ]
}

/// Cuts bytes into pieces of these sizes, repeatedly.
fn cut<'a>(bytes: &'a [u8], sizes: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let (mut sizes, mut rest) = (sizes.iter().cycle(), bytes);
    std::iter::from_fn(move || {
        let size = (*sizes.next()?).min(rest.len());
        let (piece, after) = rest.split_at(size);
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Copies a piece into the assembler, or reads it into the assembler's space.
fn feed(input: &mut Assembler, mut piece: &[u8], copy: bool) {
    if copy {
        return input.extend(piece);
    }
    while !piece.is_empty() {
        let read = std::io::Read::read(&mut piece, input.space()).unwrap();
        input.filled(read);
    }
}

fn client_trace(bytes: &[u8], sizes: &[usize], copy: bool) -> String {
    let mut client = Client::new(&hello());
    let requests = [
        Request::Exec(Exec::default()),
        Request::Connect(Default::default()),
        Request::ExecServer(Default::default()),
        Request::CopyOut(Default::default()),
    ];
    for request in requests {
        client.request(&request, |id| id * 10).unwrap();
    }
    let (mut input, mut trace) = (Assembler::default(), String::new());
    for piece in cut(bytes, sizes) {
        feed(&mut input, piece, copy);
        let (events, violation) = client_events(&mut client, &mut input);
        events.iter().for_each(|event| trace += &format!("{event:?}\n"));
        if let Some(violation) = violation {
            return trace + &violation.to_string();
        }
    }
    assert!(input.is_empty());
    trace
}

fn server_trace(bytes: &[u8], sizes: &[usize], copy: bool) -> String {
    let mut server = Server::<()>::default();
    let (mut input, mut trace) = (Assembler::default(), String::new());
    for piece in cut(bytes, sizes) {
        feed(&mut input, piece, copy);
        let (events, violation) = server_events(&mut server, &mut input);
        events.iter().for_each(|event| trace += &format!("{event:?}\n"));
        if let Some(violation) = violation {
            return trace + &violation.to_string();
        }
    }
    trace
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_split_of_the_stream_gives_the_same_events(
        from_agent in vec(from_agent(), 0..30),
        from_host in vec(from_host(), 0..30),
        sizes in vec(prop_oneof![1..20_usize, 1..100_000_usize], 1..20),
        copy: bool,
    ) {
        let agent = [hello().frame(0), Response::Started { pid: 7 }.frame(1)];
        let agent: Vec<u8> =
            agent.iter().chain(&from_agent).flat_map(Frame::to_bytes).collect();
        prop_assert_eq!(
            client_trace(&agent, &sizes, copy),
            client_trace(&agent, &[usize::MAX], !copy)
        );
        let host: Vec<u8> =
            [hello().frame(0)].iter().chain(&from_host).flat_map(Frame::to_bytes).collect();
        prop_assert_eq!(
            server_trace(&host, &sizes, copy),
            server_trace(&host, &[usize::MAX], !copy)
        );
    }

    #[test]
    fn frames_survive_any_split(
        lengths in vec(prop_oneof![0..50_usize, SHARED_BODY - 1..MAX_DATA], 0..12),
        sizes in vec(prop_oneof![1..20_usize, 1..200_000_usize], 1..20),
    ) {
        let frames: Vec<Frame> = lengths
            .iter()
            .enumerate()
            .map(|(i, length)| Frame::data(i as u32, Channel::Stdout, vec![i as u8; *length]))
            .collect();
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::to_bytes).collect();
        let (mut input, mut read) = (Assembler::default(), Vec::new());
        for piece in cut(&bytes, &sizes) {
            feed(&mut input, piece, false);
            while let Some(frame) = input.next_frame().unwrap() {
                read.push(frame);
            }
        }
        prop_assert!(read == frames && input.is_empty());
    }

    #[test]
    fn an_outbox_sends_frames_in_order_however_little_is_taken(
        frames in vec((from_agent(), any::<bool>()), 0..20),
        sizes in vec(prop_oneof![1..20_usize, 1..100_000_usize], 1..20),
    ) {
        let (mut outbox, mut expected, mut sent) = (Outbox::default(), Vec::new(), Vec::new());
        let mut sizes = sizes.into_iter().cycle();
        for (frame, write) in frames {
            expected.extend(frame.to_bytes());
            match (frame.data_channel(), write) {
                (Some(channel), true) => outbox.copy_data(frame.stream, channel, &frame.body),
                _ => outbox.push(frame),
            }
            prop_assert_eq!(outbox.len(), expected.len() - sent.len());
            let mut budget = sizes.next().unwrap();
            let result = outbox.write_with(|slices| {
                let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
                let n = budget.min(all.len());
                budget -= n;
                sent.extend_from_slice(&all[..n]);
                if n > 0 { Ok(n) } else { Err("full") }
            });
            prop_assert!(result.is_ok() == outbox.is_empty());
        }
        sent.extend(super::drain(&mut outbox));
        prop_assert!(sent == expected);
    }

    #[test]
    fn chunks_are_a_queue_of_bytes(
        pieces in vec((data(), any::<bool>(), 0..20_000_usize), 0..20),
    ) {
        let (mut chunks, mut expected, mut got) = (Chunks::default(), Vec::new(), Vec::new());
        for (bytes, share, take) in pieces {
            expected.extend_from_slice(&bytes);
            if share { chunks.push(bytes.into()) } else { chunks.extend(&bytes) }
            if let Some(taken) = chunks.pop(take) {
                prop_assert!(taken.len() <= take);
                got.extend_from_slice(&taken);
            }
            prop_assert_eq!(chunks.len(), expected.len() - got.len());
        }
        got.extend_from_slice(&chunks.copy_to_bytes(chunks.remaining()));
        prop_assert!(got == expected && chunks.is_empty());
    }
}

#[test]
fn a_large_body_is_not_copied() {
    let frame = Frame::data(1, Channel::Stdout, vec![7; MAX_DATA]);
    let mut input = Assembler::default();
    input.extend(&frame.to_bytes());
    let read = input.next_frame().unwrap().unwrap();
    let place = read.body.as_ptr();
    let mut outbox = Outbox::default();
    outbox.push(read);
    let mut chunks = outbox.take();
    chunks.advance(boxlite_proto::frame::HEADER_LEN);
    assert_eq!(chunks.chunk().as_ptr(), place);
}

#[test]
fn a_claimed_length_allocates_nothing() {
    let mut input = Assembler::default();
    let mut bytes = Request::Ping.frame(1).to_bytes();
    bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    input.extend(&bytes[..9]);
    assert!(input.next_frame().is_err());
    let mut input = Assembler::default();
    let header = [0, 0, 0x40, 0, 1, 0, 0, 0, Kind::Request as u8];
    input.extend(&header);
    assert!(input.next_frame().unwrap().is_none());
    assert!(input.space().len() <= 256 << 10, "space for bytes that may never arrive");
}
