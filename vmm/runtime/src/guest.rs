//! What a box's guest tells of itself.

use boxlite_proto::guest::{GuestMetrics, Process};

use super::{BoxHandle, Result};
use crate::client;

impl BoxHandle {
    /// How the guest is doing: memory, disk, load, as its kernel counts.
    pub async fn guest_metrics(&self) -> Result<GuestMetrics> {
        let answer = self.agent().await?.metrics().await;
        self.explained(answer).await
    }

    /// What runs in the box, by process ID; at most
    /// [`MAX_PROCESSES`](boxlite_proto::guest::MAX_PROCESSES).
    pub async fn processes(&self) -> Result<Vec<Process>> {
        let answer = self.agent().await?.processes().await;
        self.explained(answer).await
    }

    /// What the agent answered, or what ended the box if that is why it did not.
    pub(super) async fn explained<T>(&self, answer: client::Result<T>) -> Result<T> {
        match answer {
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.explain(error).await),
        }
    }
}
