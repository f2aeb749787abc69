//! Commands on several boxes. A failure of one box is reported and does not affect the others.

use anyhow::Result;
use boxlite_runtime::Runtime;

use crate::exit::{FAILED, report};
use crate::global::Global;
use crate::out;

/// Calls `act` on all boxes concurrently and prints its results in the order of `targets`. Returns exit code 1 if it
/// failed for one.
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
