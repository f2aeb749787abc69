//! Many boxes: at once, and one after the other.

use std::time::Duration;

use boxlite_tests::{is_long, unique};
use tokio::task::JoinSet;

use crate::{Embedder, shell};

#[test]
fn boxes_run_side_by_side() {
    let Some(embedder) = Embedder::find() else { return };
    embedder.run(async {
        let runtime = embedder.open().await;
        let count = if is_long() { 8 } else { 4 };
        let mut starts = JoinSet::new();
        for number in 0..count {
            let options = embedder.options(&format!("side-{number}"));
            let runtime = runtime.clone();
            starts.spawn(async move {
                let sandbox = runtime.create(options).await.unwrap();
                sandbox.start().await.unwrap();
                shell(&sandbox, &format!("echo {number} > /number")).await;
                (number, sandbox)
            });
        }
        let boxes = starts.join_all().await;
        assert_eq!(boxes.len(), count);
        // Each has its own disk, its own processes, its own name.
        for (number, sandbox) in &boxes {
            let script = "cat /number; hostname; ps | grep -c '[s]leep' || true";
            let own = format!("{number}\n{}\n0", sandbox.name());
            assert_eq!(shell(sandbox, script).await, own);
            sandbox.exec(["sleep", "1000"]).spawn_detached().await.unwrap();
        }
        runtime.shutdown(Duration::ZERO).await.unwrap();
        let ours = |name: &str| boxes.iter().any(|(_, sandbox)| sandbox.name() == name);
        let left: Vec<_> = runtime.list().await.unwrap();
        assert!(!left.iter().any(|info| ours(&info.name)), "{left:?}");
    });
}

#[test]
fn boxes_come_and_go() {
    let Some(embedder) = Embedder::find() else { return };
    embedder.run(async {
        let runtime = embedder.open().await;
        for number in 0..if is_long() { 50 } else { 5 } {
            let sandbox = embedder.start(&runtime, "next").await;
            // Nothing of the earlier boxes is left.
            let script = "test ! -e /mark && echo mark > /mark && echo new";
            assert_eq!(shell(&sandbox, script).await, "new", "box {number}");
            match number % 3 {
                0 => sandbox.stop(Duration::ZERO).await.unwrap(),
                1 => sandbox.kill().await.unwrap(),
                _ => sandbox.remove(true).await.unwrap(),
            }
        }
        let left = runtime.list().await.unwrap();
        assert!(!left.iter().any(|info| info.name == unique("next")), "{left:?}");
    });
}
