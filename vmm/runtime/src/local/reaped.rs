//! Child processes that are awaited without a thread for each, and always reaped.

use std::io;
use std::process::{Child, ExitStatus};
use std::sync::{Mutex, PoisonError};

use crate::in_background;
use crate::sys::ProcessEnd;

/// Children whose wait was dropped because the async runtime was shut down. They are reaped when the next child is
/// started or dropped.
static UNREAPED: Mutex<Vec<Child>> = Mutex::new(Vec::new());

/// A child process.
#[derive(Debug)]
pub(super) struct Reaped(Option<Child>);

impl Reaped {
    pub(super) fn new(child: Child) -> Self {
        reap_unreaped();
        Self(Some(child))
    }

    /// Waits for the child to exit, once. Cancel safe where the system notifies of it.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        let Some(child) = &mut self.0 else { return Err(io::ErrorKind::NotFound.into()) };
        // A child keeps its ID until it is reaped.
        match ProcessEnd::watch(child.id()) {
            Ok(end) => end.ended().await?,
            Err(_) => {
                let Some(mut child) = self.0.take() else { unreachable!("it was there") };
                return in_background(move || child.wait()).await?;
            }
        }
        let status = child.wait();
        self.0 = None;
        status
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        if let Some(child) = self.0.take() {
            UNREAPED.lock().unwrap_or_else(PoisonError::into_inner).push(child);
            reap_unreaped();
        }
    }
}

fn reap_unreaped() {
    let mut left = UNREAPED.lock().unwrap_or_else(PoisonError::into_inner);
    left.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    #[tokio::test]
    async fn children_are_reaped_whether_they_are_waited_for_or_not() {
        let mut child = Reaped::new(Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap());
        assert_eq!(child.wait().await.unwrap().code(), Some(3));
        assert!(child.wait().await.is_err());
        let forgotten = Command::new("sleep").arg("0.2").spawn().unwrap();
        let id = forgotten.id();
        drop(Reaped::new(forgotten));
        let deadline = Instant::now() + Duration::from_secs(120);
        while std::path::Path::new(&format!("/proc/{id}")).exists() {
            assert!(Instant::now() < deadline, "a zombie is left");
            reap_unreaped();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
