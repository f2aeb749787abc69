//! The guest's `/init`.
//!
//! There is no Rust `main`: before it, the standard library makes sure that the first three file
//! descriptors are open, and aborts if `/dev/null` is not there to open. A kernel without a console
//! starts init with none open, from an initramfs that has no `/dev/null` yet.

#![no_main]

/// The C entry point.
// SAFETY: no other symbol named `main` is linked into this binary.
#[unsafe(no_mangle)]
pub extern "C" fn main() -> i32 {
    boxlite_agent::run()
}
