//! Tests on another architecture than this machine's, in its software host: the conformance of the
//! hypervisor backends, and boxes. On aarch64 also those of the backend of macOS, over a double of its framework.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use boxlite_kernel::Arch;
use boxlite_kernel_builder::PageSize;

use crate::check::nextest::{Elsewhere, Run};
use crate::check::report::Outcome;
use crate::check::suites::E2E_PACKAGE;
use crate::image::{self, Kind, busybox};
use crate::softhost::{self, Prepared};
use crate::{build, ui};

/// How the reason of a test begins that is skipped for a fault of KVM.
const FAULT_OF_KVM: &str = "this kernel's KVM ";

/// How the reason of the one test begins that is skipped on Hypervisor.framework.
const NO_DOORBELLS: &str = "this hypervisor has no doorbells";

/// The end-to-end tests of the short form: a box boots, runs commands, carries bytes, has a network.
const SHORT: [&str; 4] = [
    "machine::a_box_has_the_vcpus_and_memory_of_its_options",
    "execs::exec_honours_its_options",
    "data::bytes_go_through_unchanged",
    "network::published_ports_are_open_while_the_box_runs",
];

/// What runs besides on the double of Hypervisor.framework: a box is paused, stopped and started again.
const ON_DOUBLE: [&str; 2] =
    ["boxes::a_box_goes_through_its_whole_life_cycle", "boxes::a_paused_box_does_not_run"];

/// How many of the end-to-end tests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// A few, which need the small image only.
    Short,
    /// As few, and those for the double.
    Double,
    /// All of them.
    All,
}

/// The backends' tests, run by the software host's kernel, which has virtualization.
pub(super) fn conformance(arch: Arch, pages: PageSize) -> Result<Outcome> {
    let Prepared { launcher, mut variables } = softhost::prepare(arch, pages)?;
    variables.push(("BOXLITE_HOME", softhost::home(arch, pages)));
    let launcher = launcher.to_str().context("the path of the launcher is not UTF-8")?;
    let runner = [launcher, "softhost", "--"].map(str::to_owned).to_vec();
    let run = |arguments: &[&str], excuse| {
        let elsewhere = Some(Elsewhere { arch, runner: runner.clone() });
        Run { arguments, variables: &variables, elsewhere }.outcome_unless_skipped(excuse)
    };
    let mut outcome = run(&["--package", "boxlite-kvm", "--lib"], FAULT_OF_KVM)?;
    if arch == Arch::Aarch64 {
        outcome.add(run(&["--package", "boxlite-hvf-double"], NO_DOORBELLS)?);
    }
    Ok(outcome)
}

/// End-to-end tests with boxes of the architecture, started by this machine's launcher.
pub(super) fn boxes(arch: Arch, pages: PageSize, extent: Extent) -> Result<Outcome> {
    boxes_of(arch, extent, softhost::prepare(arch, pages)?)
}

/// End-to-end tests with boxes on the backend of macOS, over the double of its framework.
pub(super) fn boxes_on_double(pages: PageSize) -> Result<Outcome> {
    let arch = Arch::Aarch64;
    let mut prepared = softhost::prepare(arch, pages)?;
    prepared.variables.retain(|(name, _)| *name != softhost::LAUNCHER);
    prepared.variables.push((softhost::LAUNCHER, build::launcher_on_double()?));
    boxes_of(arch, Extent::Double, prepared)
}

fn boxes_of(arch: Arch, extent: Extent, prepared: Prepared) -> Result<Outcome> {
    let Prepared { launcher, mut variables } = prepared;
    let images = build::target_dir().join(format!("images-{arch}"));
    image::make_at(Kind::Busybox, arch, &images.join("busybox"))?;
    let mut arguments = vec!["--package", E2E_PACKAGE];
    match extent {
        Extent::Short => arguments.extend(["--test", "e2e", "--"].into_iter().chain(SHORT)),
        Extent::Double => {
            arguments.extend(["--test", "e2e", "--"].into_iter().chain(SHORT).chain(ON_DOUBLE));
        }
        Extent::All => {
            image::make_at(Kind::Debian, arch, &images.join("debian"))?;
            variables.push(("BOXLITE_TEST_PROGRAMS", programs(arch)?));
        }
    }
    variables.extend([
        ("BOXLITE_TEST_ARCH", PathBuf::from(arch.name())),
        ("BOXLITE_TEST_LAUNCHER", launcher),
        ("BOXLITE_TEST_IMAGES", images),
    ]);
    let (arguments, variables) = (&arguments, &variables);
    Run { arguments, variables, ..Run::default() }.outcome()
}

/// A folder with programs of the architecture: commands in `bin`, and the end-to-end tests, some of
/// which run again in the software host.
fn programs(arch: Arch) -> Result<PathBuf> {
    let step = ui::Step::start("programs");
    step.say("compiling the tests");
    let folder = build::target_dir().join(format!("cross/programs-{arch}"));
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let bin = folder.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
    let program = busybox::program(arch, tempfile::tempdir()?.path())?;
    write_program(&bin.join("busybox"), &program)?;
    let applets = busybox::applets(&program).context("busybox lists no applets")?;
    for applet in applets.into_iter().filter(|applet| *applet != "busybox") {
        symlink("busybox", bin.join(applet))?;
    }
    for (name, test) in build::test_programs(E2E_PACKAGE, arch)? {
        fs::copy(&test, folder.join(&name))
            .with_context(|| format!("cannot copy {}", test.display()))?;
    }
    step.done(folder.display());
    Ok(folder)
}

fn write_program(path: &Path, contents: &[u8]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    build::write(path, contents)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tests_of_the_short_form_exist() {
        // A filter that matches nothing is no error.
        for name in SHORT.into_iter().chain(ON_DOUBLE) {
            let (module, test) = name.split_once("::").unwrap();
            let file = build::root().join(format!("tests/tests/e2e/{module}.rs"));
            let source = fs::read_to_string(&file).unwrap();
            assert!(source.contains(&format!("\nfn {test}()")), "{} has no {test}", file.display());
        }
    }
}
