//! End-to-end tests: the launcher, a real kernel and real images, by subject.
//!
//! Each test boots its boxes itself. Where there is no hardware virtualization they run in the software host.
#![forbid(unsafe_code)]

mod boxes;
mod command;
mod copies;
mod data;
mod distribution;
mod ends;
mod errors;
mod execs;
mod faults;
mod hostile;
mod images;
mod lifecycle;
mod machine;
mod main_process;
mod network;
mod programs;
mod registry;
mod signals;
mod streams;
mod terminal;
mod traces;

/// `len` bytes of test data: the same in every run, without repetition.
fn noise(len: usize) -> Vec<u8> {
    // xorshift64*: the bytes need not be random.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
