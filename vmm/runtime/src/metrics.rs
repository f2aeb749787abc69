//! What a box uses, from both sides: its process on the host, and its guest.

use std::time::Duration;

use boxlite_proto::guest::{ExecCounts, GuestMetrics};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{BootStage, BoxHandle, BoxState, MachineMetrics, Result};

/// How long the guest may take for an answer: one that stands still gives none.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a box uses, at a moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BoxMetrics {
    /// Its state.
    #[serde(flatten)]
    pub state: BoxState,
    /// What its process counts, while it lives: processor time, memory, exits, disks.
    pub machine: Option<MachineMetrics>,
    /// How its guest is doing, if it serves.
    pub guest: Option<GuestMetrics>,
    /// What became of its commands since its boot, if its guest serves.
    pub execs: Option<ExecCounts>,
    /// The stages of its last boot: microseconds after its beginning.
    pub boot: Vec<(BootStage, u64)>,
}

impl BoxMetrics {
    /// Processor time used since an `earlier` look, in percent of one processor: with two, up to 200 and
    /// what the box's devices use. None if it is not the same run of the box, or no time has passed.
    ///
    /// ```no_run
    /// # async fn example(sandbox: boxlite_runtime::BoxHandle) -> boxlite_runtime::Result<()> {
    /// let earlier = sandbox.metrics().await?;
    /// tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    /// if let Some(percent) = sandbox.metrics().await?.cpu_percent_since(&earlier) {
    ///     println!("{percent:.1} %");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn cpu_percent_since(&self, earlier: &Self) -> Option<f64> {
        let (now, then) = (self.machine.as_ref()?, earlier.machine.as_ref()?);
        now.cpu_percent_since(then)
    }

    /// Processor time used since the box's process was started, in percent of one processor.
    pub fn cpu_percent(&self) -> Option<f64> {
        self.machine.as_ref()?.cpu_percent_since(&MachineMetrics::default())
    }
}

impl BoxHandle {
    /// What the box uses now. Of one that does not live, and of a guest that does not answer, what is
    /// known.
    ///
    /// # Errors
    /// When there is no such box any more.
    pub async fn metrics(&self) -> Result<BoxMetrics> {
        let info = self.info().await?;
        let metrics = BoxMetrics {
            machine: None,
            guest: None,
            execs: None,
            boot: info.boot,
            state: info.state,
        };
        if !metrics.state.is_live() {
            return Ok(metrics);
        }
        // It may be ending just now: what is not known is none.
        let machine = async { self.machine_metrics().await.ok() };
        let guest = async {
            if !matches!(metrics.state, BoxState::Running | BoxState::Stopping) {
                return (None, None);
            }
            let (guest, execs) = tokio::join!(
                timeout(PATIENCE, self.guest_metrics()),
                timeout(PATIENCE, self.exec_counts()),
            );
            (guest.ok().and_then(Result::ok), execs.ok().and_then(Result::ok))
        };
        let (machine, (guest, execs)) = tokio::join!(machine, guest);
        Ok(BoxMetrics { machine, guest, execs, ..metrics })
    }

    /// What became of the commands that were asked for since the box's boot, by whomever.
    pub async fn exec_counts(&self) -> Result<ExecCounts> {
        let answer = self.agent().await?.exec_counts().await;
        self.explained(answer).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(cpu_micros: u64, up_micros: u64) -> BoxMetrics {
        let mut machine = MachineMetrics::default();
        (machine.cpu_micros, machine.up_micros) = (cpu_micros, up_micros);
        BoxMetrics {
            state: BoxState::Running,
            machine: Some(machine),
            guest: None,
            execs: None,
            boot: vec![(BootStage::Ready, 1)],
        }
    }

    #[test]
    fn processor_time_between_two_looks() {
        let (earlier, later) = (metrics(1_000_000, 2_000_000), metrics(4_000_000, 4_000_000));
        assert_eq!(later.cpu_percent_since(&earlier), Some(150.0));
        assert_eq!(later.cpu_percent(), Some(100.0));
        // Another run, or no time at all.
        assert_eq!(earlier.cpu_percent_since(&later), None);
        assert_eq!(later.cpu_percent_since(&later), None);
        let stopped = BoxMetrics { machine: None, ..earlier.clone() };
        assert_eq!(later.cpu_percent_since(&stopped), None);
    }

    #[test]
    fn they_can_be_kept() {
        let metrics = metrics(1, 2);
        let json = serde_json::to_value(&metrics).unwrap();
        assert_eq!(json["state"], "running");
        assert_eq!(serde_json::from_value::<BoxMetrics>(json).unwrap(), metrics);
    }
}
