//! Tests of the configuration: the real fragments, and what a line may say.

use proptest::prelude::*;

use super::*;

const V6_12: Version = Version(6, 12, 64);
const V6_1: Version = Version(6, 1, 159);

fn parse(text: &str) -> Result<Config, BadFragment> {
    Config::parse(&[("test.config", text)])
}

/// A `.config` as kconfig would write it if it took everything over.
fn obedient(config: &Config, version: Version) -> String {
    config
        .applying_to(version)
        .map(|setting| match setting.value.as_str() {
            "n" => format!("# {} is not set\n", setting.name),
            value => format!("{}={value}\n", setting.name),
        })
        .collect()
}

#[test]
fn the_fragments_are_well_formed_and_cannot_contradict_themselves() {
    for arch in [Arch::X86_64, Arch::Aarch64] {
        let config = Config::for_arch(arch).unwrap();
        for version in [V6_12, V6_1] {
            assert_eq!(config.verify(version, &obedient(&config, version)), []);
        }
    }
}

#[test]
fn every_dropped_setting_is_named() {
    let config = Config::for_arch(Arch::X86_64).unwrap();
    let dot_config = obedient(&config, V6_12)
        .replace("CONFIG_EXT4_FS=y\n", "")
        .replace("CONFIG_NR_CPUS=64\n", "CONFIG_NR_CPUS=8\n")
        .replace("# CONFIG_PCI is not set\n", "CONFIG_PCI=y\n");
    let names: Vec<String> =
        config.verify(V6_12, &dot_config).iter().map(ToString::to_string).collect();
    assert_eq!(
        names,
        [
            "CONFIG_NR_CPUS: asked for 64, got 8",
            "CONFIG_PCI: asked for n, got y",
            "CONFIG_EXT4_FS: asked for y, got n"
        ]
    );
}

#[test]
fn marks_limit_a_setting_to_some_kernels() {
    let config = parse("CONFIG_OLD=y # before 6.9\nCONFIG_NEW=\"a b\" # since 6.9\n").unwrap();
    assert_eq!(config.render(V6_1), "CONFIG_OLD=y\n");
    assert_eq!(config.render(V6_12), "CONFIG_NEW=\"a b\"\n");
    assert_eq!(config.render(Version(6, 9, 0)), "CONFIG_NEW=\"a b\"\n");
    assert_eq!(
        config.verify(V6_1, "CONFIG_OLD=y\n"),
        [],
        "a marked setting is not missed elsewhere"
    );
    assert_eq!(config.verify(V6_12, "CONFIG_OLD=y\n").len(), 1);
}

#[test]
fn bad_lines_are_named_by_file_and_line() {
    for line in [
        "CONFIG_A",
        "CONFIG_A=",
        "A=y",
        "CONFIG_a=y",
        "CONFIG_A=y # until 6.1",
        "CONFIG_A=y # since soon",
        "CONFIG_A=y since 6.1",
        "CONFIG_A=y # since 6.1 or so",
        "CONFIG_A=\"open",
    ] {
        let error = parse(&format!("# comment\n\n{line}\n")).expect_err(line);
        assert_eq!(error.to_string(), format!("test.config:3: not a setting: {line}"));
    }
}

#[test]
fn a_setting_is_given_once_for_a_kernel() {
    assert!(parse("CONFIG_A=y\nCONFIG_A=n\n").is_err());
    assert!(parse("CONFIG_A=y # before 6.9\nCONFIG_A=n\n").is_err());
    assert!(parse("CONFIG_A=y # before 6.9\nCONFIG_A=n # since 6.10\n").is_ok());
}

#[test]
fn comments_do_not_change_a_kernels_identity() {
    let a = parse("# one\nCONFIG_A=y\n").unwrap();
    let b = parse("CONFIG_A=y\n\n# another\n").unwrap();
    assert_eq!(a.identity(), b.identity());
    assert_ne!(a.identity(), parse("CONFIG_A=y # since 6.9\n").unwrap().identity());
}

proptest! {
    #[test]
    fn no_line_panics_and_a_read_line_reads_again_as_itself(line in "(CONFIG_)?[A-Z_]{0,3}=?[ -~é]{0,12}( # (since|before) [0-9.]{0,5})?") {
        if let Some(setting) = parse_line(&line) {
            prop_assert_eq!(parse_line(&setting.to_string()), Some(setting));
        }
    }
}

#[test]
fn only_aarch64_has_pages_of_another_size() {
    let config = |arch| Config::for_arch(arch).unwrap();
    let with = |arch, pages| config(arch).with_pages(arch, pages);
    assert_eq!(with(Arch::X86_64, PageSize::K4), Some(config(Arch::X86_64)));
    assert_eq!(with(Arch::X86_64, PageSize::K16), None);
    assert_eq!(with(Arch::Aarch64, PageSize::K4), Some(config(Arch::Aarch64)));
    let text = with(Arch::Aarch64, PageSize::K16).unwrap().render(Version(6, 12, 0));
    assert!(text.contains("CONFIG_ARM64_16K_PAGES=y") && !text.contains("_4K_PAGES"), "{text}");
    assert_eq!("16k".parse::<PageSize>().unwrap(), PageSize::K16);
    assert!("64k".parse::<PageSize>().is_err());
}
