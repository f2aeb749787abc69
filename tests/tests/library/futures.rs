//! Values and futures of the library are `Send`.

use std::time::Duration;

use boxlite_runtime::{
    Attached, BoxHandle, BoxInfo, BoxOptions, Command, Error, EventQuery, Events, Execution,
    Images, LogQuery, Logs, Runtime, RuntimeOptions,
};

fn is_send<T: Send>(_: T) {}
fn is_shared<T: Send + Sync + 'static>() {}

#[test]
fn values_and_futures_are_send() {
    is_shared::<Runtime>();
    is_shared::<BoxHandle>();
    is_shared::<BoxOptions>();
    is_shared::<BoxInfo>();
    is_shared::<Command>();
    is_shared::<Execution>();
    is_shared::<Attached>();
    is_shared::<Images>();
    is_shared::<Error>();
    fn sent<T: Send + 'static>() {}
    sent::<Events>();
    sent::<Logs>();
    // The test is that these compile.
    let _ = |runtime: &Runtime, options: BoxOptions| {
        is_send(Runtime::open(RuntimeOptions::default()));
        is_send(runtime.create(options.clone()));
        is_send(runtime.get_or_create(options));
        is_send(runtime.get("x"));
        is_send(runtime.list());
        is_send(runtime.remove("x", true));
        is_send(runtime.prune());
        is_send(runtime.metrics());
        is_send(runtime.events(EventQuery::default().follow(true)));
        is_send(runtime.shutdown(Duration::ZERO));
    };
    let _ = |sandbox: &BoxHandle, events: &mut Events, logs: &mut Logs| {
        is_send(sandbox.start());
        is_send(sandbox.start_attached(None));
        is_send(sandbox.stop(Duration::ZERO));
        is_send(sandbox.restart(Duration::ZERO));
        is_send(sandbox.kill());
        is_send(sandbox.pause());
        is_send(sandbox.resume());
        is_send(sandbox.wait());
        is_send(sandbox.info());
        is_send(sandbox.remove(true));
        is_send(sandbox.machine_metrics());
        is_send(sandbox.guest_metrics());
        is_send(sandbox.processes());
        is_send(sandbox.attach());
        is_send(sandbox.logs(LogQuery::default()));
        is_send(sandbox.exec(["x"]).spawn());
        is_send(sandbox.exec(["x"]).output());
        is_send(sandbox.exec(["x"]).status());
        is_send(events.next());
        is_send(logs.next());
    };
    let _ = |execution: &Execution| is_send(execution.wait());
}
