//! Metrics and processes of a guest, as its agent reports them.

use boxlite_proto::guest::{GuestMetrics, Process};

use super::{BoxHandle, Result};
use crate::client;

impl BoxHandle {
    /// Reads the guest's memory, disk and load, as its kernel counts them.
    pub async fn guest_metrics(&self) -> Result<GuestMetrics> {
        let answer = self.agent().await?.metrics().await;
        self.explained(answer).await
    }

    /// Lists the processes in the box by process ID, at most
    /// [`MAX_PROCESSES`](boxlite_proto::guest::MAX_PROCESSES).
    pub async fn processes(&self) -> Result<Vec<Process>> {
        let answer = self.agent().await?.processes().await;
        self.explained(answer).await
    }

    /// Turns an agent's answer into the runtime's result, with [`explain`](Self::explain) for errors.
    pub(super) async fn explained<T>(&self, answer: client::Result<T>) -> Result<T> {
        match answer {
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.explain(error).await),
        }
    }
}
