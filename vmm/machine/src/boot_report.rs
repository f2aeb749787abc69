//! What the agent tells the host while it boots, on a vsock connection that it opens.

use std::os::unix::net::UnixStream;

use boxlite_contract::boot::BootStage;
use boxlite_proto::frame::{Frame, Kind};
use boxlite_proto::message::{Event, Stage};

use super::threads::Threads;

/// The longest message of a guest that is passed on, in bytes.
const MAX_MESSAGE: usize = 4096;

/// What the agent said.
#[derive(Debug)]
pub(super) enum Report {
    /// It reached a stage.
    Stage(BootStage),
    /// It gave up.
    Fatal(String),
}

/// Takes the connection and calls `report` for what arrives, on a thread of its own. A stage is
/// reported once, in order, whatever the guest repeats.
pub(super) fn listen(
    threads: &Threads,
    stream: UnixStream,
    mut report: impl FnMut(Report) + Send + 'static,
) -> std::io::Result<()> {
    threads.spawn("boot-report", move || {
        let mut stream = std::io::BufReader::new(stream);
        let mut reached = BootStage::Kernel;
        // A malformed frame ends the report, not the box: the deadline speaks then.
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
