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

/// How long a test may take. Machines that test have much else to do.
const DEADLINE: Duration = Duration::from_secs(600);

/// What is embedded, and where.
struct Embedder {
    launcher: Launcher,
}

impl Embedder {
    /// None, and a word about it, if there is nothing to test.
    fn find() -> Option<Self> {
        Launcher::find().map(|launcher| Self { launcher })
    }

    /// A runtime of the home that tests share.
    async fn open(&self) -> Runtime {
        let options = RuntimeOptions::default();
        let options = options.home(self.launcher.home()).launcher(self.launcher.program());
        Runtime::open(options).await.expect("the home does not open")
    }

    /// Options of a small box of busybox, which is removed when it ends.
    fn options(&self, name: &str) -> BoxOptions {
        let options = BoxOptions::new(self.launcher.image(BUSYBOX)).name(unique(name));
        options.memory_mib(192).auto_remove(true)
    }

    /// A box that runs. It ends, and goes, with its runtime.
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

/// Standard output of a shell script in a box that succeeds.
async fn shell(sandbox: &BoxHandle, script: &str) -> String {
    let output = sandbox.exec(["sh", "-c", script]).output().await.expect(script);
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status, boxlite_runtime::ExitStatus::Code(0), "{script}: {stderr}");
    text
}
