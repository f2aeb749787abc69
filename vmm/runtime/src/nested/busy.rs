//! Detects live boxes in a nested host without launchers.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use boxlite_proto::message::ExitStatus;
use tokio::net::UnixStream;

use super::launcher::NestedCommand;
use super::router::Router;
use super::{AWAIT_SUBCOMMAND, Options, this_program};
use crate::client::{self, AgentClient};

/// Pauses between failed attempts: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// The end of an executable's path in /proc if its file was removed or replaced.
const DELETED: &str = " (deleted)";

/// Waits until no box is live there for certain. While that is unknown, boxes may be live.
pub(super) async fn until_no_box_lives(router: &Arc<Router>, options: &Options) {
    until_answered(PAUSES, async || ask(router, options).await).await;
}

/// Retries until the answer is success.
async fn until_answered(
    (mut pause, longest): (Duration, Duration),
    ask: impl AsyncFn() -> client::Result<ExitStatus>,
) {
    loop {
        match ask().await {
            Ok(ExitStatus::Code(0)) => return,
            Ok(status) => {
                tracing::warn!(?status, "cannot tell whether boxes are live; asking again")
            }
            Err(error) => {
                tracing::warn!(%error, "cannot tell whether boxes are live; asking again");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

async fn ask(router: &Arc<Router>, options: &Options) -> client::Result<ExitStatus> {
    let pair = UnixStream::pair().map_err(|e| client::Error::from(client::Loss::Write(e)))?;
    let (ours, theirs) = pair;
    let router = Arc::clone(router);
    let serving = async { router.serve(theirs).await };
    let asking = async {
        let agent = AgentClient::connect(ours, 0).await?;
        let program = match &options.inner {
            Some(inner) => inner.path.clone(),
            None => by_name(&this_program()),
        };
        let argv: [OsString; 4] =
            [program.into(), "--home".into(), options.home.clone().into(), AWAIT_SUBCOMMAND.into()];
        let command = NestedCommand {
            argv: argv.into(),
            env: options.environment(),
            working_dir: PathBuf::from("/"),
        };
        let mut running = agent.exec(command.exec()).await?;
        running.wait().await
    };
    tokio::select! {
        answer = asking => answer,
        () = serving => Err(client::Loss::Closed.into()),
    }
}

/// A program's path, which is the same in the nested host. If another release has replaced the program, it can
/// answer as well.
fn by_name(program: &Path) -> PathBuf {
    if let Ok(path) = std::fs::canonicalize(program) {
        return path;
    }
    let link = std::fs::read_link(program).ok();
    let replaced = link.as_ref().and_then(|link| link.to_str()?.strip_suffix(DELETED));
    replaced.map_or_else(|| program.to_owned(), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn while_it_is_unknown_boxes_may_be_live() {
        let lost = || Err(client::Error::from(client::Loss::Closed));
        let answers =
            RefCell::new(vec![lost(), Ok(ExitStatus::Code(1)), Ok(ExitStatus::Signal(9)), lost()]);
        let asked = RefCell::new(0);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(until_answered((Duration::ZERO, Duration::ZERO), async || {
            *asked.borrow_mut() += 1;
            answers.borrow_mut().pop().unwrap_or(Ok(ExitStatus::Code(0)))
        }));
        assert_eq!(*asked.borrow(), 5, "failed questions were taken for an answer");
    }

    #[test]
    fn a_replaced_program_is_found_by_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let (program, link) = (dir.join("program"), dir.join("exe"));
        std::fs::write(&program, "").unwrap();
        std::os::unix::fs::symlink(&program, &link).unwrap();
        assert_eq!(by_name(&link), program);
        std::fs::remove_file(&link).unwrap();
        let deleted = format!("{}{DELETED}", program.display());
        std::os::unix::fs::symlink(deleted, &link).unwrap();
        assert_eq!(by_name(&link), program);
    }
}
