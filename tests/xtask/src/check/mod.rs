//! `cargo xtask test`: every check that CI makes, each with its time, and a count at the end.
//!
//! A check that fails does not keep the others from running.

mod cross;
mod deny;
mod foreign;
mod house;
mod junit;
mod lengths;
mod nextest;
mod platform;
mod report;
mod sources;
mod spelling;
mod suites;
mod tool;

use std::process::ExitCode;

use anyhow::{Result, bail};
use boxlite_kernel::Arch;
use boxlite_kernel_builder::PageSize;

use crate::check::foreign::Extent;
use crate::check::report::{Outcome, Report};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only runs the tests in the software host of this architecture, all of them: x86_64 or aarch64, whichever this
    /// machine is not
    #[arg(long, value_name = "ARCH")]
    arch: Option<Arch>,
    /// With --arch aarch64: the size of the pages of the software host's kernel: 4k, or 16k, of which the short form of
    /// the end-to-end tests runs
    #[arg(long, value_name = "SIZE", default_value_t = PageSize::default(), requires = "arch")]
    pages: PageSize,
    /// Leaves out the end-to-end tests, which need a kernel and minutes
    #[arg(long)]
    no_e2e: bool,
    /// Runs only this check, named as in the summary; may be given several times
    #[arg(long, value_name = "CHECK")]
    only: Vec<String>,
}

/// Runs the checks; fails if one of them does.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut report = Report::of(&options.only);
    if let Some(arch) = options.arch {
        if arch == Arch::HOST {
            bail!("--arch {arch}: this machine is {arch}, and its tests are those without --arch");
        }
        let extent = if options.pages == PageSize::K4 { Extent::All } else { Extent::Short };
        foreign_tests(&mut report, arch, options.pages, extent);
        return report.finish();
    }
    report.run("format", suites::format);
    report.run("house rules", house::check);
    report.run("lengths", lengths::check);
    report.run("spelling", spelling::check);
    report.run("clippy", suites::clippy);
    cross_checks(&mut report);
    report.run("licences", deny::policy);
    report.run("advisories", deny::advisories);
    report.run("documentation", suites::documentation);
    report.run("unit tests", suites::unit);
    report.run("doc tests", suites::doc_tests);
    if options.no_e2e {
        report.run("end to end", || Ok(Outcome::skipped("asked to leave it out")));
    } else {
        report.run("end to end", suites::e2e);
        foreign_tests(&mut report, cross::OTHER_ARCH, PageSize::default(), Extent::Short);
    }
    report.finish()
}

/// Runs clippy for other targets; fails if it complains.
pub(crate) fn check_cross() -> Result<ExitCode> {
    let mut report = Report::of(&[]);
    cross_checks(&mut report);
    report.finish()
}

fn cross_checks(report: &mut Report) {
    report.run(&format!("clippy {}", cross::OTHER_ARCH), cross::linux);
    report.run("clippy macos", cross::darwin);
}

/// The tests in the software host of another architecture.
fn foreign_tests(report: &mut Report, arch: Arch, pages: PageSize, extent: Extent) {
    report.run(&format!("conformance {arch}"), || foreign::conformance(arch, pages));
    report.run(&format!("end to end {arch}"), || foreign::boxes(arch, pages, extent));
    if arch == Arch::Aarch64 && extent == Extent::All {
        report.run("end to end hvf double", || foreign::boxes_on_double(pages));
    }
}
