//! Whether boxes live in the software host, though no launcher is there.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use boxlite_proto::message::ExitStatus;
use tokio::net::UnixStream;

use super::launcher::Command;
use super::router::Router;
use super::{AWAIT_SUBCOMMAND, Options, this_program};
use crate::client::{self, AgentClient};

/// Waits until no box lives there.
pub(super) async fn until_no_box_lives(router: &Arc<Router>, options: &Options) {
    match ask(router, options).await {
        Ok(ExitStatus::Code(0)) => {}
        Ok(status) => tracing::warn!(?status, "whether boxes live cannot be told"),
        Err(error) => tracing::warn!(%error, "whether boxes live cannot be told"),
    }
}

async fn ask(router: &Arc<Router>, options: &Options) -> client::Result<ExitStatus> {
    let pair = UnixStream::pair().map_err(|e| client::Error::from(client::Loss::Write(e)))?;
    let (ours, theirs) = pair;
    let router = Arc::clone(router);
    let serving = async { router.serve(theirs).await };
    let asking = async {
        let agent = AgentClient::connect(ours, 0).await?;
        let argv: [OsString; 4] = [
            std::fs::canonicalize(this_program()).unwrap_or_else(|_| this_program()).into(),
            "--home".into(),
            options.home.clone().into(),
            AWAIT_SUBCOMMAND.into(),
        ];
        let command = Command {
            argv: argv.into(),
            env: std::env::vars_os().collect(),
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
