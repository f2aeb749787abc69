//! Bytes of a hostile peer: frames and the messages in them.
//!
//! `cargo fuzz run --fuzz-dir tests/fuzz frame`

#![no_main]

use boxlite_proto::frame::Frame;
use boxlite_proto::message::{Control, Event, Hello, Request, Response};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Ok(Some(frame)) = Frame::read(&mut rest) {
        // What was read is written as the same bytes.
        let again = Frame::read(&mut &frame.to_bytes()[..]).expect("our own bytes");
        assert_eq!(again.as_ref(), Some(&frame));
        let _ = frame.decode::<Hello>();
        let _ = frame.decode::<Request>();
        let _ = frame.decode::<Response>();
        let _ = frame.decode::<Control>();
        let _ = frame.decode::<Event>();
        let _ = frame.ended_channel();
        let _ = frame.granted_credit();
    }
});
