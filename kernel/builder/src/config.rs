//! Kernel configuration: fragments, and the check that they took effect.
//!
//! kconfig silently drops a setting whose dependency is missing or whose name has changed.
//! [`Config::verify`] compares the resulting configuration with the fragments, line by line.
//!
//! A fragment line is `CONFIG_NAME=VALUE`, where `n` means absent. A mark after it limits it to
//! some kernels: `# since 6.12` or `# before 6.12`.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use boxlite_kernel::Arch;

use crate::version::Version;

const COMMON: (&str, &str) = ("common.config", include_str!("../../config/common.config"));
const X86_64: (&str, &str) = ("x86_64.config", include_str!("../../config/x86_64.config"));
const AARCH64: (&str, &str) = ("aarch64.config", include_str!("../../config/aarch64.config"));

/// One line of a fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    name: String,
    value: String,
    /// The first kernel with it.
    since: Option<Version>,
    /// The first kernel without it.
    before: Option<Version>,
}

impl Setting {
    fn applies_to(&self, version: Version) -> bool {
        self.since.is_none_or(|since| version >= since)
            && self.before.is_none_or(|before| version < before)
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)?;
        if let Some(since) = self.since {
            write!(f, " # since {since}")?;
        }
        if let Some(before) = self.before {
            write!(f, " # before {before}")?;
        }
        Ok(())
    }
}

/// Size of a kernel's pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PageSize {
    /// 4 KiB, which boxes have.
    #[default]
    K4,
    /// 16 KiB, as on Apple silicon: for hosts in tests, aarch64 only.
    K16,
}

impl PageSize {
    /// The name: `4k`, `16k`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::K4 => "4k",
            Self::K16 => "16k",
        }
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A size that no kernel here has.
#[derive(Debug, thiserror::Error)]
#[error("no kernel here has pages of {0:?}: use 4k or 16k")]
pub struct UnknownPageSize(String);

impl FromStr for PageSize {
    type Err = UnknownPageSize;

    fn from_str(name: &str) -> Result<Self, UnknownPageSize> {
        [Self::K4, Self::K16]
            .into_iter()
            .find(|size| size.name() == name)
            .ok_or_else(|| UnknownPageSize(name.to_owned()))
    }
}

/// A line that is neither a comment nor a setting, or that repeats a setting.
#[derive(Debug, thiserror::Error)]
#[error("{file}:{line}: {problem}: {text}")]
pub struct BadFragment {
    file: String,
    line: usize,
    problem: &'static str,
    text: String,
}

/// A setting that did not take effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The option, e.g. `CONFIG_EXT4_FS`.
    pub name: String,
    /// The fragment's value.
    pub wanted: String,
    /// The value in `.config`; `n` if absent.
    pub got: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: asked for {}, got {}", self.name, self.wanted, self.got)
    }
}

/// Settings of a guest kernel, for every supported version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config(Vec<Setting>);

impl Config {
    /// The configuration of `arch`: the common fragment and its own.
    pub fn for_arch(arch: Arch) -> Result<Self, BadFragment> {
        let own = match arch {
            Arch::X86_64 => X86_64,
            Arch::Aarch64 => AARCH64,
        };
        Self::parse(&[COMMON, own])
    }

    /// The same for pages of another size; none if `arch` has no such pages.
    pub fn with_pages(mut self, arch: Arch, pages: PageSize) -> Option<Self> {
        match (arch, pages) {
            (_, PageSize::K4) => {}
            (Arch::X86_64, PageSize::K16) => return None,
            (Arch::Aarch64, PageSize::K16) => {
                let size = self.0.iter_mut().find(|it| it.name == "CONFIG_ARM64_4K_PAGES")?;
                size.name = "CONFIG_ARM64_16K_PAGES".to_owned();
            }
        }
        Some(self)
    }

    /// Parses fragments, given as file name and text.
    fn parse(fragments: &[(&str, &str)]) -> Result<Self, BadFragment> {
        let mut settings: Vec<Setting> = Vec::new();
        for (file, text) in fragments {
            for (index, line) in text.lines().enumerate() {
                let line = line.trim();
                if line.is_empty() || line.starts_with('#') {
                    continue;
                }
                let bad = |problem| BadFragment {
                    file: (*file).to_owned(),
                    line: index + 1,
                    problem,
                    text: line.to_owned(),
                };
                let setting = parse_line(line).ok_or_else(|| bad("not a setting"))?;
                if settings.iter().any(|other| overlap(other, &setting)) {
                    return Err(bad("set twice"));
                }
                settings.push(setting);
            }
        }
        Ok(Self(settings))
    }

    /// The settings for `version`, in kconfig's form.
    pub fn render(&self, version: Version) -> String {
        self.applying_to(version)
            .map(|setting| format!("{}={}\n", setting.name, setting.value))
            .collect()
    }

    /// The settings for `version` that a `.config` does not have; empty if all took effect.
    pub fn verify(&self, version: Version, dot_config: &str) -> Vec<Mismatch> {
        let actual: HashMap<&str, &str> = dot_config
            .lines()
            .filter(|line| line.starts_with("CONFIG_"))
            .filter_map(|line| line.split_once('='))
            .collect();
        self.applying_to(version)
            .filter_map(|setting| {
                let got = actual.get(setting.name.as_str()).copied().unwrap_or("n");
                (got != setting.value).then(|| Mismatch {
                    name: setting.name.clone(),
                    wanted: setting.value.clone(),
                    got: got.to_owned(),
                })
            })
            .collect()
    }

    /// Text that identifies the settings; comments do not change it.
    pub(crate) fn identity(&self) -> String {
        self.0.iter().map(|setting| format!("{setting}\n")).collect()
    }

    fn applying_to(&self, version: Version) -> impl Iterator<Item = &Setting> {
        self.0.iter().filter(move |setting| setting.applies_to(version))
    }
}

/// Whether two settings give an option a value for the same kernel.
fn overlap(a: &Setting, b: &Setting) -> bool {
    let apart = |first: &Setting, second: &Setting| match (first.before, second.since) {
        (Some(end), Some(start)) => end <= start,
        _ => false,
    };
    a.name == b.name && !apart(a, b) && !apart(b, a)
}

fn parse_line(line: &str) -> Option<Setting> {
    let (name, rest) = line.split_once('=')?;
    let known = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    if !name.strip_prefix("CONFIG_")?.chars().all(known) {
        return None;
    }
    // A text value ends at its closing quote, any other at a space.
    let end = match rest.strip_prefix('"') {
        Some(text) => text.find('"')? + 2,
        None => rest.find(' ').unwrap_or(rest.len()),
    };
    let (value, mark) = rest.split_at_checked(end)?;
    if value.is_empty() {
        return None;
    }
    let mut setting =
        Setting { name: name.to_owned(), value: value.to_owned(), since: None, before: None };
    let mut words = mark.split_whitespace();
    match (words.next(), words.next(), words.next(), words.next()) {
        (None, ..) => {}
        (Some("#"), Some("since"), Some(version), None) => setting.since = version.parse().ok(),
        (Some("#"), Some("before"), Some(version), None) => setting.before = version.parse().ok(),
        _ => return None,
    }
    let marked = setting.since.is_some() || setting.before.is_some();
    (marked || mark.trim().is_empty()).then_some(setting)
}

#[cfg(test)]
mod tests;
