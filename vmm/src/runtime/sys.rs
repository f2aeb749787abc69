//! What each operating system has of its own to wait for things without looking again and again.

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::os::fd::OwnedFd;

    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    use tokio::io::Interest;
    use tokio::io::unix::AsyncFd;

    /// The end of a process, whoever its parent is (`pidfd_open(2)`).
    #[derive(Debug)]
    pub(crate) struct ProcessEnd(AsyncFd<OwnedFd>);

    impl ProcessEnd {
        /// Watches the process that has this ID now. Must be called inside a tokio runtime.
        ///
        /// # Errors
        /// `NotFound` where there is none.
        pub(crate) fn watch(pid: u32) -> io::Result<Self> {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(no_process)?;
            let fd = match pidfd_open(pid, PidfdFlags::empty()) {
                Err(rustix::io::Errno::SRCH) => return Err(no_process()),
                opened => opened?,
            };
            readable(fd).map(Self)
        }

        /// Waits for it. Cancel safe.
        pub(crate) async fn ended(&self) -> io::Result<()> {
            self.0.readable().await.map(drop)
        }
    }

    /// Lets the async runtime tell when there is something to read.
    #[allow(unsafe_code)]
    fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
        // SAFETY: the descriptor is open and stays so, since nothing but the AsyncFd owns it, and an
        // OwnedFd always gives the same one.
        let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        registered.map_err(io::Error::from)
    }

    fn no_process() -> io::Error {
        io::ErrorKind::NotFound.into()
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use std::io;

    /// The end of a process, which only its parent hears of.
    #[derive(Debug)]
    pub(crate) struct ProcessEnd(std::convert::Infallible);

    impl ProcessEnd {
        pub(crate) fn watch(_: u32) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(crate) async fn ended(&self) -> io::Result<()> {
            match self.0 {}
        }
    }
}

#[cfg(target_os = "linux")]
pub(crate) use linux::ProcessEnd;
#[cfg(not(target_os = "linux"))]
pub(crate) use other::ProcessEnd;
