//! Conditions on the platform (`cfg(target_os)`, `cfg(target_arch)`) stand in leaf modules, so that a
//! port to another system or CPU changes these and no other module.
//!
//! Conditions are found among the tokens of `proc-macro2`, not in strings and comments. Tests may have
//! their own: a test may need what only one system has.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

use crate::check::sources::rust_files;

/// The conditions that count.
const CONDITIONS: [&str; 2] = ["target_os", "target_arch"];

/// Files and folders, besides those named `sys`, whose code may depend on the platform.
const LEAVES: [&str; 11] = [
    "benches/src/bin/network/main.rs",
    "hvf/double",
    "hvf/examples/hvf-probe/main.rs",
    "kernel/src/arch.rs",
    "net/interfaces",
    "rootfs-builder/src/format/platform.rs",
    "vmm/hv/src/conformance",
    "vmm/kvm",
    "vmm/machine/src/arch",
    "vmm/machine/src/backend.rs",
    "vmm/runtime/src/nested/detect.rs",
];

/// One line for each condition outside a leaf, and for each leaf without a condition.
pub(super) fn violations(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for path in rust_files(root)? {
        let source = fs::read_to_string(root.join(&path))
            .with_context(|| format!("cannot read {}", path.display()))?;
        let lines =
            conditions(&source).with_context(|| format!("{} is not Rust", path.display()))?;
        found.extend(lines.into_iter().map(|line| (path.clone(), line)));
    }
    let unused = LEAVES.iter().filter(|leaf| !found.iter().any(|(path, _)| path.starts_with(leaf)));
    let unused = unused.map(|leaf| format!("{leaf} need not be in {} any more", file!()));
    let outside = found.iter().filter(|(path, _)| !may_depend(path)).map(|(path, line)| {
        format!("{}:{line}: move the condition on the platform to a `sys` module", path.display())
    });
    Ok(outside.chain(unused).collect())
}

/// Whether the code in this file may depend on the platform.
fn may_depend(path: &Path) -> bool {
    let is_named = |name: &str| path.with_extension("").iter().any(|part| part == name);
    is_named("sys") || is_named("tests") || LEAVES.iter().any(|leaf| path.starts_with(leaf))
}

/// The lines of all conditions in a file, without those of its tests.
fn conditions(source: &str) -> Result<Vec<usize>> {
    let tokens: TokenStream = source.parse().map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut lines = Vec::new();
    collect(tokens, &mut lines);
    Ok(lines)
}

fn collect(tokens: TokenStream, lines: &mut Vec<usize>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    for (at, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Ident(word) if CONDITIONS.iter().any(|condition| word == condition) => {
                lines.push(word.span().start().line);
            }
            TokenTree::Group(group) if !is_of_tests(&tokens[..at], group) => {
                collect(group.stream(), lines);
            }
            _ => {}
        }
    }
}

/// Whether a group is the body of `mod tests`, or a condition that holds only for tests:
/// `all(test, target_os = "linux")`.
fn is_of_tests(before: &[TokenTree], group: &Group) -> bool {
    let is = |token: &TokenTree, word: &str| matches!(token, TokenTree::Ident(it) if it == word);
    match group.delimiter() {
        Delimiter::Brace => {
            matches!(before, [.., first, second] if is(first, "mod") && is(second, "tests"))
        }
        Delimiter::Parenthesis => group.stream().into_iter().any(|token| is(&token, "test")),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_found_in_attributes_and_macros() {
        let source = "#![cfg(target_os = \"linux\")]\n#[cfg(not(target_arch = \"x86_64\"))]\nfn a() {\n\
                      cfg!(target_os = \"macos\");\n}\n#[cfg(all(not(test), target_os = \"linux\"))]\nfn b() {}\n";
        assert_eq!(conditions(source).unwrap(), [1, 2, 4, 6]);
        let others = "// cfg(target_os)\n#[cfg(unix)]\nconst A: &str = \"target_os\";\n";
        assert!(conditions(others).unwrap().is_empty());
        assert!(conditions("fn a() {").is_err());
    }

    #[test]
    fn tests_may_depend_on_the_platform() {
        let source = "#[cfg(all(test, target_os = \"linux\"))]\nmod tests {\n#[cfg(target_arch = \"x86_64\")]\n\
                      fn a() {}\n}\nmod tested {\n#[cfg(target_os = \"linux\")]\nfn b() {}\n}\n";
        assert_eq!(conditions(source).unwrap(), [7]);
    }

    #[test]
    fn leaves_may_depend_on_the_platform() {
        for path in
            ["net/src/sys.rs", "net/src/sys/mod.rs", "net/tests/tap/main.rs", "vmm/kvm/src/vm.rs"]
        {
            assert!(may_depend(Path::new(path)), "{path}");
        }
        for path in ["net/src/system.rs", "vmm/machine/src/architecture.rs", "vmm/kvmm/src/lib.rs"]
        {
            assert!(!may_depend(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn a_condition_outside_a_leaf_and_an_unused_leaf_are_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("net")).unwrap();
        fs::write(dir.path().join("net/lib.rs"), "#![cfg(target_os = \"linux\")]\n").unwrap();
        let found = violations(dir.path()).unwrap();
        assert_eq!(found.len(), 1 + LEAVES.len());
        assert!(found[0].starts_with("net/lib.rs:1: "), "{found:?}");
        assert!(found[1].starts_with(&format!("{} need not be in ", LEAVES[0])), "{found:?}");
    }
}
