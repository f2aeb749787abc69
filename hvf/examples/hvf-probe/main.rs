//! Checks on a Mac what this crate assumes of Hypervisor.framework, prints a table, and says what to change where an
//! assumption is wrong. docs/macos.md says how to build, sign and run it.

#[cfg(target_os = "macos")]
mod checks;
#[cfg(target_os = "macos")]
mod guest;

use std::process::ExitCode;

#[cfg(target_os = "macos")]
fn main() -> ExitCode {
    match checks::run_all() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

#[cfg(not(target_os = "macos"))]
fn main() -> ExitCode {
    eprintln!("hvf-probe: this machine has no Hypervisor.framework: run it on a Mac");
    ExitCode::FAILURE
}
