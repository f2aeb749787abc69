//! Tests of logins in docker's config.json: found, kept, erased.

use super::*;

fn config(json: Value) -> (tempfile::TempDir, DockerConfig) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
    let config = DockerConfig::read(dir.path()).unwrap();
    (dir, config)
}

fn password(user: &str, password: &str) -> Credentials {
    Credentials::Password { user: user.into(), password: password.into() }
}

#[test]
fn logins_are_found_under_every_spelling() {
    let (_dir, config) = config(json!({ "auths": {
        "https://index.docker.io/v1/": { "auth": BASE64.encode("me:pa:ss") },
        "http://reg.lan:5000": { "username": "you", "password": "x" },
        "https://quay.io/v2/": { "auth": "", "identitytoken": "refresh" },
        "empty.lan": {},
        "odd.lan": { "auth": "%%%" },
    }}));
    let login = |registry: &str| config.login(Scope::of(registry)).unwrap().map(|l| l.credentials);
    assert_eq!(login("docker.io"), Some(password("me", "pa:ss")));
    assert_eq!(login("reg.lan:5000"), Some(password("you", "x")));
    assert_eq!(login("quay.io"), Some(Credentials::IdentityToken("refresh".into())));
    for none in ["reg.lan", "empty.lan", "odd.lan", "other"] {
        assert_eq!(login(none), None, "{none}");
    }
}

#[test]
fn the_login_of_the_longest_path_is_taken() {
    let auth = |user: &str| json!({ "auth": BASE64.encode(format!("{user}:x")) });
    let (dir, mut config) = config(json!({ "auths": {
        "https://reg.lan/v1/": auth("old"), "reg.lan": auth("all"),
        "reg.lan/team": auth("team"), "reg.lan/team/app": auth("app"), "reg.lan/none": { "auth": "Og==" },
        "alone.lan/team": auth("team"), "empty.lan": { "auth": "Og==" }, "docker.io/me": auth("me"),
        "zz.lan": { "auth": BASE64.encode("<token>:") },
    }}));
    let user = |config: &DockerConfig, repository: &str| {
        let login = config.login(Scope::of(repository)).unwrap();
        login.map(|login| login.credentials.user().to_owned())
    };
    for (repository, expected) in [
        ("reg.lan/team/app", Some("app")),
        ("reg.lan/team/app/part", Some("app")),
        ("reg.lan/team/other", Some("team")),
        ("reg.lan/teams", Some("all")),
        ("reg.lan/none", Some("all")),
        ("alone.lan/team", Some("team")),
        ("alone.lan/other", None),
        ("alone.lan", None),
        ("empty.lan/x", None),
        ("zz.lan/x", None),
        ("docker.io/me/app", Some("me")),
        ("docker.io/library/app", None),
    ] {
        assert_eq!(user(&config, repository).as_deref(), expected, "{repository}");
    }
    // Logging in and out of one entry does not affect the others.
    config.store(Scope::of("alone.lan"), &password("new", "x")).unwrap();
    assert!(config.erase(Scope::of("reg.lan")).unwrap());
    assert!(config.erase(Scope::of("reg.lan/team/app")).unwrap());
    assert!(!config.erase(Scope::of("reg.lan/team/app")).unwrap());
    let config = DockerConfig::read(dir.path()).unwrap();
    for (repository, expected) in [
        ("alone.lan/team", Some("team")),
        ("alone.lan/x", Some("new")),
        ("reg.lan/team/app", Some("team")),
        ("reg.lan/x", None),
    ] {
        assert_eq!(user(&config, repository).as_deref(), expected, "{repository}");
    }
}

#[test]
fn a_stored_login_is_found_and_nothing_else_changes() {
    let (dir, mut config) = config(json!({
        "auths": { "other.lan": { "auth": "eDp5" }, "https://reg.lan": { "auth": "b2xkOm9sZA==" } },
        "psFormat": "table", "nested": { "unknown": [1, null] },
    }));
    let file = dir.path().join("config.json");
    assert_eq!(
        config.store(Scope::of("reg.lan"), &password("me", "s")).unwrap(),
        LoginStore::File(file.clone())
    );
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let read = || serde_json::from_slice::<Value>(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(
        read(),
        json!({
            "auths": { "other.lan": { "auth": "eDp5" }, "reg.lan": { "auth": BASE64.encode("me:s") } },
            "psFormat": "table", "nested": { "unknown": [1, null] },
        })
    );
    let mut again = DockerConfig::read(dir.path()).unwrap();
    assert_eq!(
        again.login(Scope::of("reg.lan")).unwrap().unwrap().credentials,
        password("me", "s")
    );
    assert!(again.erase(Scope::of("reg.lan")).unwrap());
    assert!(!again.erase(Scope::of("reg.lan")).unwrap());
    assert_eq!(read()["auths"], json!({ "other.lan": { "auth": "eDp5" } }));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_missing_file_is_made_for_its_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("new");
    let mut config = DockerConfig::read(&folder).unwrap();
    assert!(config.login(Scope::of("docker.io")).unwrap().is_none());
    config.store(Scope::of("docker.io"), &password("me", "s")).unwrap();
    let mode = fs::metadata(&folder).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let json: Value =
        serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    assert!(json["auths"].get("https://index.docker.io/v1/").is_some());
}

#[test]
fn a_linked_file_stays_a_link() {
    let (dir, _) = config(json!({}));
    let other = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(dir.path().join("config.json"), other.path().join("config.json"))
        .unwrap();
    let mut config = DockerConfig::read(other.path()).unwrap();
    config.store(Scope::of("x.lan"), &password("me", "s")).unwrap();
    assert!(other.path().join("config.json").is_symlink());
    let read = DockerConfig::read(dir.path()).unwrap();
    assert!(read.login(Scope::of("x.lan")).unwrap().is_some());
}

#[test]
fn a_damaged_file_is_named_and_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), "[1]").unwrap();
    let error = DockerConfig::read(dir.path()).err().unwrap().to_string();
    assert!(error.contains("config.json"), "{error}");
}
