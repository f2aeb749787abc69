//! The parts of the backend that are specific to x86_64.

pub(super) mod cpuid;
pub(super) mod setup;
pub(super) mod state;

use kvm_bindings::{KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON};

/// Describes a KVM_EXIT_INTERNAL_ERROR, for people.
pub(super) fn internal_error(suberror: u32, data: &[u64], count: u32) -> String {
    match suberror {
        KVM_INTERNAL_ERROR_EMULATION => {
            // [0] is flags, [1] the instruction's size in its lowest byte and its bytes after it.
            let bytes: Vec<u8> =
                data.iter().take(count as usize).skip(1).flat_map(|n| n.to_le_bytes()).collect();
            let instruction = match bytes.split_first() {
                Some((&size @ 1..=15, rest)) => {
                    let bytes = rest.iter().take(size.into()).map(|byte| format!(" {byte:02x}"));
                    format!(" (instruction{})", bytes.collect::<String>())
                }
                _ => String::new(),
            };
            format!(
                "KVM cannot emulate the guest's code{instruction}; on a host without hardware \
                 virtualization KVM runs only simple code: use `--accel soft`"
            )
        }
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "an exit that KVM does not handle".into(),
        other => format!("KVM internal error {other}"),
    }
}
