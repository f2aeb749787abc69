//! The checks that cargo makes, and the end-to-end tests.

use anyhow::Result;
use boxlite_kernel::Arch;
use boxlite_kernel_builder::PageSize;

use crate::check::nextest::Run;
use crate::check::report::{Outcome, passes};
use crate::image::Kind;
use crate::softhost::{self, Prepared};
use crate::{apt, build, image};

/// The package of the end-to-end tests: they need guest files, which the others do not.
pub(super) const E2E_PACKAGE: &str = "boxlite-tests";

/// Every file is formatted as rustfmt.toml says.
pub(super) fn format() -> Result<Outcome> {
    passes(build::cargo().args(["fmt", "--all", "--check"]))
}

/// No lint complains.
pub(super) fn clippy() -> Result<Outcome> {
    passes(build::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

/// The documentation builds without a warning, private items included.
pub(super) fn documentation() -> Result<Outcome> {
    passes(
        build::cargo()
            .args(["doc", "--workspace", "--no-deps", "--document-private-items"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}

/// Programs that tests try the project against, and the packages that have them. Without them, those
/// tests say that they were skipped.
const COUNTERPARTS: [(&str, &str); 15] = [
    ("busybox", "busybox"),
    ("curl", "curl"),
    ("dig", "bind9-dnsutils"),
    ("dnsmasq", "dnsmasq-base"),
    ("docker-registry", "docker-registry"),
    ("dtc", "device-tree-compiler"),
    ("htpasswd", "apache2-utils"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("nginx", "nginx-light"),
    ("openssl", "openssl"),
    ("ping", "iputils-ping"),
    ("python3", "python3"),
    ("skopeo", "skopeo"),
    ("umoci", "umoci"),
];

/// Unit, property and conformance tests: all that need no guest files.
pub(super) fn unit() -> Result<Outcome> {
    if let Err(error) = apt::ensure(&COUNTERPARTS) {
        eprintln!("some tests will be skipped: {error:#}");
    }
    Run { arguments: &["--workspace", "--exclude", E2E_PACKAGE], ..Run::default() }.outcome()
}

/// The examples in the documentation, which nextest cannot run.
pub(super) fn doc_tests() -> Result<Outcome> {
    passes(build::cargo().args(["test", "--workspace", "--doc", "--no-fail-fast"]))
}

/// The end-to-end tests, on the launcher, guest files and images that are built first.
///
/// They find them by `BOXLITE_GUEST_DIR`, `BOXLITE_TEST_LAUNCHER` (the launcher's path) and
/// `BOXLITE_TEST_IMAGES` (a folder with the OCI layouts `busybox` and `debian`).
pub(super) fn e2e() -> Result<Outcome> {
    softhost::ensure_emulator()?;
    let Prepared { launcher, mut variables } = softhost::prepare(Arch::HOST, PageSize::default())?;
    let images = build::target_dir().join("images");
    image::make_at(Kind::Busybox, Arch::HOST, &images.join("busybox"))?;
    image::make_at(Kind::Debian, Arch::HOST, &images.join("debian"))?;
    variables.extend([("BOXLITE_TEST_LAUNCHER", launcher), ("BOXLITE_TEST_IMAGES", images)]);
    let (arguments, variables) = (&["--package", E2E_PACKAGE], &variables);
    Run { arguments, variables, ..Run::default() }.outcome()
}
