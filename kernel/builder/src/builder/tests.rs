//! Tests of the builder on a source tree with a fake makefile.

use super::*;

/// A makefile with the kernel's targets, which builds nothing.
const MAKEFILE: &str = r#"VERSION = 6
PATCHLEVEL = 12
SUBLEVEL = 9
allnoconfig:
	grep -v '$(DROP)' $(KCONFIG_ALLCONFIG) > $(O)/.config
vmlinux:
	test ! -e $(CURDIR)/broken || { echo 'error: no such thing'; exit 1; }
	mkdir -p $(O)/include/config
	echo 6.12.9-boxlite > $(O)/include/config/kernel.release
	echo map > $(O)/System.map
	cp /proc/self/exe $(O)/vmlinux
"#;

struct Fixture {
    dir: tempfile::TempDir,
    cache: Cache,
    builder: Builder,
}

impl Fixture {
    fn new(drop: &str) -> Option<Self> {
        if !Toolchain::missing(Arch::X86_64).is_empty() {
            eprintln!("skipped: this machine cannot build kernels");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("Makefile"), MAKEFILE.replace("$(DROP)", drop)).unwrap();
        let cache = Cache::at(&dir.path().join("cache")).unwrap();
        let mut builder = Builder::new(Arch::X86_64);
        builder.source = Some(tree);
        Some(Self { dir, cache, builder })
    }

    fn build(&self) -> (Result<Kernel, BuildError>, u64) {
        let mut compiled = 0;
        let result = self.builder.build(&self.cache, |event| {
            if let Event::Compiling { steps, .. } = event {
                compiled = steps;
            }
        });
        (result, compiled)
    }

    fn left_over(&self, folder: &str) -> usize {
        self.dir.path().join("cache").join(folder).read_dir().unwrap().count()
    }
}

#[test]
fn a_kernel_is_built_once_and_then_comes_from_the_cache() {
    let Some(fixture) = Fixture::new("no such setting") else { return };
    let (first, compiled) = fixture.build();
    let first = first.unwrap();
    assert!(!first.cached && compiled > 0);
    assert_eq!(first.release, "6.12.9-boxlite");
    assert!(fs::metadata(&first.path).unwrap().len() > 0);
    assert_eq!((fixture.left_over("build"), fixture.left_over("kernels")), (0, 1));

    let (second, compiled) = fixture.build();
    let second = second.unwrap();
    assert!(second.cached && compiled == 0);
    assert_eq!((second.path, second.source), (first.path, first.source));
}

#[test]
fn a_dropped_setting_stops_the_build_and_is_named() {
    let Some(fixture) = Fixture::new("CONFIG_OVERLAY_FS=") else { return };
    let error = fixture.build().0.unwrap_err().to_string();
    assert!(error.contains("Linux 6.12.9 for x86_64 does not take over 1 settings"), "{error}");
    assert!(error.contains("CONFIG_OVERLAY_FS: asked for y, got n"), "{error}");
    assert_eq!(fixture.left_over("kernels"), 0);
}

#[test]
fn a_failed_build_shows_why_and_the_next_one_starts_afresh() {
    let Some(fixture) = Fixture::new("no such setting") else { return };
    let broken = fixture.dir.path().join("tree/broken");
    fs::write(&broken, "").unwrap();
    let error = fixture.build().0.unwrap_err().to_string();
    assert!(error.contains("error: no such thing"), "{error}");
    assert_eq!(fixture.left_over("kernels"), 0, "nothing looks finished");

    fs::remove_file(&broken).unwrap();
    fixture.build().0.unwrap();
}
