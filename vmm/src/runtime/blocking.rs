//! The one place where the runtime leaves the async threads for what blocks: files, locks, SQLite,
//! sockets of boxes' processes.

use std::io;

use tokio::task::{JoinHandle, spawn_blocking};

use super::{Error, Result};

/// Runs what blocks off the async threads. Dropping the future does not end the work.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::Internal(e.to_string())),
    }
}

/// The same for plain I/O.
pub(super) async fn blocking_io<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await?
}

/// Starts what blocks, beside something else.
pub(super) fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    spawn_blocking(work)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    fn files(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => files(&path, found),
                false => found.push(path),
            }
        }
    }

    #[test]
    fn nothing_else_of_the_runtime_leaves_the_async_threads() {
        let mut found = Vec::new();
        files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/runtime"), &mut found);
        assert!(found.len() > 30);
        for path in found.iter().filter(|path| !path.ends_with("blocking.rs")) {
            let text = std::fs::read_to_string(path).unwrap();
            let is_test = path.to_string_lossy().contains("tests");
            let code = text.split("#[cfg(test)]").next().filter(|_| !is_test).unwrap_or_default();
            assert!(!code.contains("spawn_blocking"), "{}", path.display());
        }
    }
}
