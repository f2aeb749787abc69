//! The `boxlite-vmm` launcher.

use std::process::ExitCode;

fn main() -> ExitCode {
    boxlite_vmm::cli::main()
}
