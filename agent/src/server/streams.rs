//! Passes the events of an open stream to the exec, job or socket that serves it.

use boxlite_proto::frame::Channel;
use boxlite_proto::message::Control;
use boxlite_proto::session::ServerEvent;

use crate::exec::Exec;
use crate::job::Job;
use crate::socket::Socket;

pub(super) fn to_exec(exec: &mut Exec, event: ServerEvent) {
    match event {
        ServerEvent::Input { data, .. } => exec.receive(data),
        ServerEvent::InputEnded { .. } => exec.end_input(),
        ServerEvent::OutputClosed { channel, .. } => exec.close_output(channel),
        ServerEvent::Control { control, .. } => exec.control(control),
        // Output is pumped in every turn.
        ServerEvent::OutputRoom { .. } => {}
        ServerEvent::Hello(_) | ServerEvent::Request { .. } => {}
    }
}

pub(super) fn to_job(job: &mut Job, event: ServerEvent) {
    match event {
        ServerEvent::Input { data, .. } => job.receive(data),
        ServerEvent::InputEnded { .. } => job.end(),
        ServerEvent::OutputClosed { channel: Channel::Stdout, .. } => job.cancel(),
        ServerEvent::Control { control: Control::Kill, .. } => job.cancel(),
        // A job has no process to signal and no terminal to resize.
        _ => {}
    }
}

pub(super) fn to_socket(socket: &mut Socket, event: ServerEvent) {
    match event {
        ServerEvent::Input { data, .. } => socket.receive(data),
        ServerEvent::InputEnded { .. } => socket.end_input(),
        ServerEvent::OutputClosed { channel: Channel::Stdout, .. } => socket.close_output(),
        ServerEvent::Control { control: Control::Kill, .. } => socket.close(),
        // A socket is pumped in every turn.
        _ => {}
    }
}
