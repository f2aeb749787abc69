//! Modules depend on each other as the picture in `lib.rs` shows.

use std::fs;
use std::path::{Path, PathBuf};

/// Each module may use those of the rows before its own.
const ROWS: [&[&str]; 8] = [
    &["format", "sys", "progress"],
    &["error"],
    &["file"],
    &["layer"],
    &["image"],
    &["resolve"],
    &["source", "registry"],
    &["store"],
];

fn row(module: &str) -> usize {
    let row = ROWS.iter().position(|row| row.contains(&module));
    row.unwrap_or_else(|| panic!("{module} is not in the picture"))
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths
        .flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

#[test]
fn modules_use_only_modules_below_them() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut arrows = 0;
    for file in rust_files(&src) {
        let path = file.strip_prefix(&src).unwrap().with_extension("");
        let module = path.iter().next().unwrap().to_str().unwrap().to_owned();
        if module == "lib" {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for used in code.flat_map(|line| line.split("crate::").skip(1)) {
            let used = used.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
            assert!(
                used == module || row(used) < row(&module),
                "{} uses crate::{used}, which is not below it",
                file.display()
            );
            arrows += 1;
        }
    }
    assert!(arrows > 100, "only {arrows} arrows were seen");
}
