//! How a box is started.

use std::path::PathBuf;

use boxlite_proto::message::TerminalSize;

/// How [`BoxHandle::start_with`](crate::BoxHandle::start_with) starts a box. The default is that of
/// [`BoxHandle::start`](crate::BoxHandle::start).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StartOptions {
    /// Whether the main command waits until somebody has attached, so that nothing that it writes is
    /// missed.
    pub wait_for_attach: bool,
    /// The size of the main command's terminal, if it has one.
    pub terminal_size: Option<TerminalSize>,
    /// Whether the box goes on when this process ends, whatever its options say.
    pub detach: bool,
    /// The file of this machine that records the packets of the box's network.
    pub capture: Option<PathBuf>,
}

impl StartOptions {
    /// Lets the main command wait for [`BoxHandle::attach`](crate::BoxHandle::attach). `size` is that of
    /// its terminal, if it has one.
    pub fn wait_for_attach(mut self, size: Option<TerminalSize>) -> Self {
        (self.wait_for_attach, self.terminal_size) = (true, size);
        self
    }

    /// Lets the box go on when this process ends.
    pub fn detach(mut self, yes: bool) -> Self {
        self.detach = yes;
        self
    }

    /// Records the packets of the box's network in `file`, in pcap format, until the box ends, also when
    /// its machine is restarted. An existing file is replaced. The capture stops at 1 GiB. The file is
    /// complete when [`BoxHandle::wait`](crate::BoxHandle::wait) has returned.
    ///
    /// Where boxes run in the software host, the runtime that starts the box writes the file: the capture
    /// ends with that runtime, and [`detach`](Self::detach) is refused.
    pub fn capture(mut self, file: impl Into<PathBuf>) -> Self {
        self.capture = Some(file.into());
        self
    }
}
