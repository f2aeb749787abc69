//! Commands that take several boxes: what fails for one is said, and the others are gone on with.

use anyhow::Result;
use boxlite_runtime::Runtime;

use crate::exit::{FAILED, report};
use crate::global::Global;
use crate::out;

/// Does something with each box at once. Of those that it succeeds for, what it returns is printed, in the
/// order in which they were named. Exit code 1 if it failed for one.
pub(crate) async fn each<F>(
    global: &Global,
    targets: Vec<String>,
    act: impl Fn(Runtime, String) -> F,
) -> Result<u8>
where
    F: Future<Output = Result<String>> + Send + 'static,
{
    let runtime = global.runtime().await?;
    let acts: Vec<_> =
        targets.into_iter().map(|target| tokio::spawn(act(runtime.clone(), target))).collect();
    let mut code = 0;
    for act in acts {
        match act.await? {
            Ok(text) => out::line(text)?,
            Err(error) => {
                report(&error);
                code = FAILED;
            }
        }
    }
    Ok(code)
}
