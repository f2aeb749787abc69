//! Blocking work off the async threads: files, locks, SQLite, sockets of boxes' processes.
//!
//! Invariant: no other module of the runtime calls `spawn_blocking` (a test checks it).

use std::io;

use tokio::task::{JoinHandle, spawn_blocking};

use super::{Error, Result};

/// Runs blocking work on a blocking thread. Dropping the future does not cancel the work.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::internal(e)),
    }
}

/// Like [`blocking`], for plain I/O.
pub(super) async fn blocking_io<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await?
}

/// Starts blocking work in the background.
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

    /// Whether a file of the runtime holds tests alone.
    fn is_test(path: &Path) -> bool {
        path.iter().any(|part| Path::new(part).file_stem().is_some_and(|stem| stem == "tests"))
    }

    /// The text without the modules in it that hold tests; rustfmt ends them by a brace in the first column.
    fn without_tests(text: &str) -> String {
        let mut code = String::new();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let is_module = |next: &&str| next.contains("mod ") && next.ends_with('{');
            match line == "#[cfg(test)]" && lines.peek().is_some_and(is_module) {
                true => drop(lines.by_ref().find(|line| *line == "}")),
                false => code.extend([line, "\n"]),
            }
        }
        code
    }

    #[test]
    fn only_modules_of_tests_are_left_out() {
        let text =
            "#[cfg(test)]\nmod more;\na\n#[cfg(test)]\nmod tests {\n    fn b() {\n    }\n}\nc\n";
        assert_eq!(without_tests(text), "#[cfg(test)]\nmod more;\na\nc\n");
        assert!(is_test(Path::new("copy/tests/a.rs")) && is_test(Path::new("client/tests.rs")));
        assert!(!is_test(Path::new("local/mod.rs")) && !is_test(Path::new("contests.rs")));
    }

    #[test]
    fn nothing_else_of_the_runtime_leaves_the_async_threads() {
        let runtime = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut found = Vec::new();
        files(&runtime, &mut found);
        found.retain(|path| !is_test(path.strip_prefix(&runtime).unwrap()));
        assert!(found.len() > 30);
        for path in found.iter().filter(|path| !path.ends_with("blocking.rs")) {
            let code = without_tests(&std::fs::read_to_string(path).unwrap());
            assert!(!code.contains("spawn_blocking"), "{}", path.display());
        }
    }
}
