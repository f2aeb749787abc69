use rustix::fs::{CWD, FileType, mknodat};

use super::*;

#[test]
fn missing_files_and_what_links_lead_to_are_made_and_nothing_else_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("full"), "mine, and long\n").unwrap();
    std::os::unix::fs::symlink("run/made/stub", path("dangling")).unwrap();
    std::os::unix::fs::symlink("loop", path("loop")).unwrap();
    mknodat(CWD, path("fifo"), FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
    for name in ["no/such/missing", "full", "dangling", "fifo"] {
        try_update(&path(name), |_| Some(b"ours\n".to_vec())).unwrap();
    }
    assert!(try_update(&path("loop"), |_| None).is_err());
    for name in ["no/such/missing", "full", "dangling", "run/made/stub"] {
        assert_eq!(std::fs::read_to_string(path(name)).unwrap(), "ours\n", "{name}");
    }
    assert!(path("dangling").is_symlink());
}

#[test]
fn what_is_somebody_elses_in_hosts_stays() {
    let text = |old: &str, lines: &str| String::from_utf8(hosts(old.as_bytes(), lines)).unwrap();
    let localhost: String = LOCALHOST.iter().map(|(_, line)| *line).collect();
    let first = text("", "1.1.1.1\ta\n");
    assert_eq!(first, format!("{BEGIN}{localhost}1.1.1.1\ta\n{END}"));
    assert_eq!(text(&first, "1.1.1.1\ta\n"), first);
    let edited = format!("9.9.9.9 mine\n{first}8.8.8.8 too");
    let renamed = text(&edited, "1.1.1.1\tb\n");
    assert_eq!(renamed, edited.replace("\ta\n", "\tb\n"));
    let whole = "127.0.0.1 localhost\n::1\tip6 localhost # it\n";
    assert_eq!(text(&format!("{whole}x y"), "l\n"), format!("{whole}x y\n{BEGIN}l\n{END}"));
    let cut = text(&format!("{whole}{BEGIN}1.1.1.1 a\n"), "l\n");
    assert_eq!(cut, format!("{whole}{BEGIN}l\n{END}1.1.1.1 a\n"));
}

#[test]
fn an_images_hosts_without_localhost_gets_it() {
    let text = |old: &str| String::from_utf8(hosts(old.as_bytes(), "l\n")).unwrap();
    let [(_, v4), (_, v6)] = LOCALHOST;
    for without in ["10.0.0.1 db\n", "# 127.0.0.1 localhost\n", "127.0.0.1 localhost.local\n"] {
        let with = text(without);
        assert_eq!(with, format!("{without}{BEGIN}{v4}{v6}l\n{END}"));
        assert_eq!(text(&with), with);
    }
    let half = "127.0.1.1 me localhost\n";
    assert_eq!(text(half), format!("{half}{BEGIN}{v6}l\n{END}"));
    // What comes behind the marked part counts, too.
    let behind = format!("{BEGIN}{v4}{v6}l\n{END}127.0.0.1 localhost\n::1 localhost\n");
    assert_eq!(text(&behind), format!("{BEGIN}l\n{END}127.0.0.1 localhost\n::1 localhost\n"));
}

#[test]
fn the_host_is_in_hosts_where_there_is_a_network() {
    let network = "10.0.0.2/24,10.0.0.1,10.0.0.254,fd00::2/64,fd00::1".parse().unwrap();
    let lines = hosts_lines("me", Some(&network));
    assert_eq!(lines, "10.0.0.2\tme\n10.0.0.254\thost.boxlite.internal host.docker.internal\n");
    assert_eq!(hosts_lines("me", None), "127.0.1.1\tme\n");
}
