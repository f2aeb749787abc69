//! The repository's source files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// All `.rs` files below `root`, relative to it and in order, without build output and hidden
/// folders.
pub(super) fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let listing = || format!("cannot list {}", folder.display());
        for entry in fs::read_dir(&folder).with_context(listing)? {
            let entry = entry.with_context(listing)?;
            let (path, name) = (entry.path(), entry.file_name());
            let kind = entry.file_type().with_context(listing)?;
            if kind.is_dir() && name != "target" && !name.as_encoded_bytes().starts_with(b".") {
                folders.push(path);
            } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "rs")
            {
                files.push(path.strip_prefix(root)?.to_owned());
            }
        }
    }
    files.sort();
    Ok(files)
}
