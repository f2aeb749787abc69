//! Resource use of a box, from both sides: its process on the host, and its guest.

use std::time::Duration;

use boxlite_proto::guest::{ExecCounts, GuestMetrics};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{BootStage, BoxHandle, BoxState, MachineMetrics, Result};

/// Timeout for the guest's answer: a guest that hangs gives none.
const GUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Resource use of a box at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BoxMetrics {
    /// The state of the box.
    #[serde(flatten)]
    pub state: BoxState,
    /// Counters of the box's process, while the box is live: CPU time, memory, exits, disks.
    pub machine: Option<MachineMetrics>,
    /// Memory, disk and load of the guest, if it answers.
    pub guest: Option<GuestMetrics>,
    /// Counts of commands since the boot, if the guest answers.
    pub execs: Option<ExecCounts>,
    /// The stages of the last boot, each with its time in microseconds since the boot began.
    pub boot: Vec<(BootStage, u64)>,
}

impl BoxMetrics {
    /// CPU time used since `earlier`, in percent of one CPU: a box with two vCPUs uses up to 200 and the share of its
    /// devices. `None` if `earlier` is of another run of the box, or no time has passed.
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

    /// CPU time used since the box's process was started, in percent of one CPU.
    pub fn cpu_percent(&self) -> Option<f64> {
        self.machine.as_ref()?.cpu_percent_since(&MachineMetrics::default())
    }
}

impl BoxHandle {
    /// Measures what the box uses now. Parts are `None` if the box is not live or its guest does not answer.
    ///
    /// # Errors
    /// The box does not exist any more.
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
        // The box may be stopping just now: an error is `None`.
        let machine = async { self.machine_metrics().await.ok() };
        let guest = async {
            if !matches!(metrics.state, BoxState::Running | BoxState::Stopping) {
                return (None, None);
            }
            let (guest, execs) = tokio::join!(
                timeout(GUEST_TIMEOUT, self.guest_metrics()),
                timeout(GUEST_TIMEOUT, self.exec_counts()),
            );
            (guest.ok().and_then(Result::ok), execs.ok().and_then(Result::ok))
        };
        let (machine, (guest, execs)) = tokio::join!(machine, guest);
        Ok(BoxMetrics { machine, guest, execs, ..metrics })
    }

    /// Counts the commands of all callers since the boot, by outcome.
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
    fn cpu_time_between_two_measurements() {
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
    fn metrics_survive_json() {
        let metrics = metrics(1, 2);
        let json = serde_json::to_value(&metrics).unwrap();
        assert_eq!(json["state"], "running");
        assert_eq!(serde_json::from_value::<BoxMetrics>(json).unwrap(), metrics);
    }
}
