//! The guest's `/init`.
//!
//! It has a C `main` and no Rust one. Before a Rust `main`, the standard library opens `/dev/null` for
//! each of the first three file descriptors that is closed, and aborts if it cannot. A kernel without a
//! console starts init with all three closed, from an initramfs that has no `/dev/null` yet.

#![no_main]

/// The C entry point.
// SAFETY: no other symbol named `main` is linked into this binary.
#[unsafe(no_mangle)]
pub extern "C" fn main() -> i32 {
    boxlite_agent::run()
}
