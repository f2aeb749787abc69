//! What the host sends on an open stream, for what serves it.

use boxlite_proto::frame::Channel;
use boxlite_proto::message::Control;
use boxlite_proto::session::ServerEvent;

use crate::exec::Exec;
use crate::job::Job;

pub(super) fn to_exec(exec: &mut Exec, event: ServerEvent) {
    match event {
        ServerEvent::Input { data, .. } => exec.receive(data),
        ServerEvent::InputEnded { .. } => exec.end_input(),
        ServerEvent::OutputClosed { channel, .. } => exec.close_output(channel),
        ServerEvent::Control { control, .. } => exec.control(control),
        // It is looked at in every turn.
        ServerEvent::OutputRoom { .. } => {}
        ServerEvent::Hello(_) | ServerEvent::Request { .. } => {}
    }
}

pub(super) fn to_job(job: &mut Job, event: ServerEvent) {
    match event {
        ServerEvent::Input { data, .. } => job.receive(data),
        ServerEvent::InputEnded { .. } => job.end(),
        ServerEvent::OutputClosed { channel: Channel::Stdout, .. } => job.cancel(),
        // It has no process to get a signal and no terminal to be resized.
        ServerEvent::Control { control: Control::Kill, .. } => job.cancel(),
        _ => {}
    }
}
