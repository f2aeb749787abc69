//! Options for starting a box.

use std::path::PathBuf;

use boxlite_proto::message::TerminalSize;

/// Options of [`BoxHandle::start_with`](crate::BoxHandle::start_with). The default is that of
/// [`BoxHandle::start`](crate::BoxHandle::start).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StartOptions {
    /// Whether the main command waits until a caller has attached, so that no output is missed.
    pub wait_for_attach: bool,
    /// The size of the main command's terminal, if it has one.
    pub terminal_size: Option<TerminalSize>,
    /// Whether the box keeps running when this process exits, even if its options do not say so.
    pub detach: bool,
    /// The file on this machine in which the packets of the box's network are recorded.
    pub capture: Option<PathBuf>,
}

impl StartOptions {
    /// Makes the main command wait for [`BoxHandle::attach`](crate::BoxHandle::attach). `size` is the size of
    /// its terminal, if it has one.
    pub fn wait_for_attach(mut self, size: Option<TerminalSize>) -> Self {
        (self.wait_for_attach, self.terminal_size) = (true, size);
        self
    }

    /// Sets whether the box keeps running when this process exits, even if its options do not say so.
    pub fn detach(mut self, yes: bool) -> Self {
        self.detach = yes;
        self
    }

    /// Records the packets of the box's network in `file`, in pcap format, until the box stops, including
    /// restarts of its VM. An existing file is replaced. The capture stops at 1 GiB. The file is
    /// complete when [`BoxHandle::wait`](crate::BoxHandle::wait) has returned, unless
    /// [`BoxHandle::capture_error`](crate::BoxHandle::capture_error) says otherwise.
    ///
    /// If boxes run in the software host, the runtime that starts the box writes the file: the capture
    /// ends with that runtime, and [`detach`](Self::detach) is refused.
    pub fn capture(mut self, file: impl Into<PathBuf>) -> Self {
        self.capture = Some(file.into());
        self
    }
}
