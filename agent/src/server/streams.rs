//! What the host sends on an open stream, for what serves it.

use boxlite_proto::frame::{Channel, Frame, Kind};
use boxlite_proto::message::Control;

use crate::connection::Broken;
use crate::exec::Exec;
use crate::job::Job;

pub(super) fn to_exec(exec: &mut Exec, frame: &Frame) -> Result<(), Broken> {
    let broken_credit = |_| Broken::Protocol("flow control");
    match frame.kind {
        Kind::Stdin => exec.receive(&frame.body).map_err(broken_credit),
        Kind::End => {
            exec.end(frame.ended_channel()?);
            Ok(())
        }
        Kind::Credit => {
            let (channel, bytes) = frame.granted_credit()?;
            exec.grant(channel, bytes).map_err(broken_credit)
        }
        _ => {
            exec.control(frame.decode::<Control>()?);
            Ok(())
        }
    }
}

pub(super) fn to_job(job: &mut Job, frame: Frame) -> Result<(), Broken> {
    let broken_credit = |_| Broken::Protocol("flow control");
    match frame.kind {
        Kind::Stdin => return job.receive(frame.body.into()).map_err(broken_credit),
        Kind::End => match frame.ended_channel()? {
            Channel::Stdin => job.end(),
            Channel::Stdout => job.cancel(),
            Channel::Stderr => {}
        },
        Kind::Credit => {
            let (channel, bytes) = frame.granted_credit()?;
            if channel == Channel::Stdout {
                return job.grant(bytes).map_err(broken_credit);
            }
        }
        // It has no process to get a signal and no terminal to be resized.
        _ if frame.decode::<Control>()? == Control::Kill => job.cancel(),
        _ => {}
    }
    Ok(())
}
