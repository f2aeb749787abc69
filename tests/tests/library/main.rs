//! End-to-end tests through the library: the runtime as an application embeds it.
#![forbid(unsafe_code)]

mod boxes;
mod execs;
mod futures;
mod many;
mod network;

use std::future::Future;
use std::time::Duration;

use boxlite_runtime::{BoxHandle, BoxOptions, Runtime, RuntimeOptions};
use boxlite_tests::{BUSYBOX, Launcher, unique};

/// Timeout of a test. Test machines are busy.
const DEADLINE: Duration = Duration::from_secs(600);

/// An application that embeds the runtime.
struct Embedder {
    launcher: Launcher,
}

impl Embedder {
    /// None, after printing `SKIPPED`, if there is no launcher to test.
    fn find() -> Option<Self> {
        Launcher::find().map(|launcher| Self { launcher })
    }

    /// Opens a runtime of the home that the tests share.
    async fn open(&self) -> Runtime {
        let options = RuntimeOptions::default();
        let options = options.home(self.launcher.home()).launcher(self.launcher.program());
        Runtime::open(options).await.expect("the home does not open")
    }

    /// Options of a small box of busybox, which removes itself when it ends.
    fn options(&self, name: &str) -> BoxOptions {
        let options = BoxOptions::new(self.launcher.image(BUSYBOX)).name(unique(name));
        options.memory_mib(192).auto_remove(true)
    }

    /// Starts a box, which ends with its runtime and is removed.
    async fn start(&self, runtime: &Runtime, name: &str) -> BoxHandle {
        let sandbox = runtime.create(self.options(name)).await.expect("no box is made");
        sandbox.start().await.expect("the box does not start");
        sandbox
    }

    /// Runs a test, which fails if it takes too long.
    fn run(&self, test: impl Future<Output = ()>) {
        let tokio =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        tokio.expect("no async runtime").block_on(async {
            tokio::time::timeout(DEADLINE, test).await.expect("the test takes too long");
        });
    }
}

/// Runs a shell script, which has to succeed, in a box, and returns its trimmed standard output.
async fn shell(sandbox: &BoxHandle, script: &str) -> String {
    let output = sandbox.exec(["sh", "-c", script]).output().await.expect(script);
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status, boxlite_runtime::ExitStatus::Code(0), "{script}: {stderr}");
    text
}
