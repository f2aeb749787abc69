//! The agent's boot report, which arrives on a vsock connection that the agent opens.

use std::os::unix::net::UnixStream;

use boxlite_contract::boot::BootStage;
use boxlite_proto::frame::{Frame, Kind};
use boxlite_proto::message::{Event, Stage};

use super::threads::Threads;

/// The longest message from the guest, in bytes; a longer one is truncated.
const MAX_MESSAGE: usize = 4096;

/// A report of the agent.
#[derive(Debug)]
pub(super) enum Report {
    /// The boot reached a stage.
    Stage(BootStage),
    /// The agent gave up, and why.
    Fatal(String),
}

/// Reads the connection on a thread of its own, and calls `report` for each report. Stages are reported once and in
/// order, whatever the guest sends.
pub(super) fn listen(
    threads: &Threads,
    stream: UnixStream,
    mut report: impl FnMut(Report) + Send + 'static,
) -> std::io::Result<()> {
    threads.spawn("boot-report", move || {
        let mut stream = std::io::BufReader::new(stream);
        let mut reached = BootStage::Kernel;
        // A malformed frame ends the report, not the box: the boot then times out.
        while let Ok(Some(frame)) = Frame::read(&mut stream) {
            if frame.kind != Kind::Event {
                continue;
            }
            match frame.decode() {
                Ok(Event::Stage(stage)) => {
                    let stage = match stage {
                        Stage::Agent => BootStage::Agent,
                        Stage::Root => BootStage::Root,
                        Stage::Ready => BootStage::Ready,
                        _ => continue,
                    };
                    if stage > reached {
                        reached = stage;
                        report(Report::Stage(stage));
                    }
                }
                Ok(Event::Fatal { mut message }) => {
                    let end = (0..=MAX_MESSAGE.min(message.len()))
                        .rfind(|at| message.is_char_boundary(*at))
                        .unwrap_or(0);
                    message.truncate(end);
                    return report(Report::Fatal(message));
                }
                _ => return,
            }
        }
    })?;
    Ok(())
}
