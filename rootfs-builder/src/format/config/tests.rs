//! Tests of config blobs as Docker and others write them.

use super::*;

#[test]
fn configs_of_docker_are_parsed() {
    let diff_id = Digest::sha256(b"layer");
    let json = format!(
        r#"{{"architecture":"amd64","os":"linux","created":"2024-01-02T03:04:05Z","id":null,
            "config":{{"Hostname":"","ExposedPorts":null,"Env":["A=1","B=ü"],"Cmd":null,
              "Entrypoint":["/init","-x"],"WorkingDir":"/srv","User":"nobody:nogroup","Labels":{{"a":"b","c":null}},
              "StopSignal":"SIGINT","OnBuild":null,"Healthcheck":{{"Test":["x"]}},
              "Volumes":{{"/var/lib/data":{{}},"/a b":null}}}},
            "rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}},"history":null}}"#
    );
    let blob = ConfigBlob::parse(json.as_bytes()).unwrap();
    let config = blob.config;
    assert_eq!(blob.diff_ids, [diff_id]);
    assert_eq!(config.env, ["A=1", "B=ü"]);
    assert_eq!(config.entrypoint, ["/init", "-x"]);
    assert!(config.cmd.is_empty());
    assert_eq!((&*config.working_dir, &*config.user), ("/srv", "nobody:nogroup"));
    assert_eq!(config.stop_signal, "SIGINT");
    assert_eq!(config.labels["a"], "b");
    assert_eq!(config.labels["c"], "");
    assert_eq!((&*config.architecture, &*config.os), ("amd64", "linux"));
    assert_eq!(config.volumes, ["/a b", "/var/lib/data"]);
    assert_eq!(config.health, None);
}

#[test]
fn health_checks_in_every_form() {
    let health = |json: &str| {
        let json = format!(r#"{{"config":{json}}}"#);
        ConfigBlob::parse(json.as_bytes()).unwrap().config.health
    };
    let line = health(
        r#"{"Healthcheck":{"Test":["CMD-SHELL","curl -f http://x || exit 1"],
                "Interval":5000000000,"Timeout":1000000,"StartPeriod":0,"Retries":7}}"#,
    )
    .unwrap();
    assert_eq!(line.command, ["/bin/sh", "-c", "curl -f http://x || exit 1"]);
    assert_eq!((line.interval, line.retries), (Duration::from_secs(5), 7));
    assert_eq!((line.timeout, line.start_period), (Duration::from_millis(1), Duration::ZERO));
    let shell = r#"{"Shell":["/bin/bash","-lc"],"Healthcheck":{"Test":["CMD-SHELL","x"]}}"#;
    assert_eq!(health(shell).unwrap().command, ["/bin/bash", "-lc", "x"]);
    let words =
        health(r#"{"Healthcheck":{"Test":["CMD","/check","-q"],"Interval":-1,"Retries":-1}}"#);
    let expected = vec!["/check".to_owned(), "-q".to_owned()];
    assert_eq!(words, Some(ImageHealth { command: expected, ..ImageHealth::default() }));
    for none in [
        "null",
        "{}",
        r#"{"Healthcheck":null}"#,
        r#"{"Healthcheck":{"Test":null}}"#,
        r#"{"Healthcheck":{"Test":[]}}"#,
        r#"{"Healthcheck":{"Test":["NONE"]}}"#,
        r#"{"Healthcheck":{"Test":["CMD"]}}"#,
        r#"{"Healthcheck":{"Test":["CMD-SHELL"]}}"#,
    ] {
        assert_eq!(health(none), None, "{none}");
    }
}

#[test]
fn nearly_empty_configs_are_valid() {
    assert_eq!(ConfigBlob::parse(b"{}").unwrap().config, ImageConfig::default());
    let blob = ConfigBlob::parse(br#"{"config":{"Cmd":"/bin/sh","Entrypoint":[]},"rootfs":null}"#);
    assert_eq!(blob.unwrap().config.cmd, ["/bin/sh"]);
    assert!(ConfigBlob::parse(br#"{"config":{"Env":[1]}}"#).is_err());
    assert!(ConfigBlob::parse(br#"{"rootfs":{"diff_ids":["sha256:../x"]}}"#).is_err());
}
