//! Tests of endpoints, mirrors, trust and certificates.

use super::*;

fn options(json: &str) -> Result<RegistryOptions> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("registries.json");
    std::fs::write(&file, json).unwrap();
    RegistryOptions::load(&file)
}

fn bases(options: &RegistryOptions, registry: &str) -> Vec<String> {
    let endpoints = options.endpoints(registry).unwrap();
    endpoints.iter().flat_map(|e| e.bases.iter().map(|b| format!("{b}{}", e.prefix))).collect()
}

#[test]
fn plain_http_is_for_loopback_and_insecure_registries() {
    let options = options(r#"{ "old.lan": { "insecure": true } }"#).unwrap();
    assert_eq!(bases(&options, "docker.io"), ["https://registry-1.docker.io/v2/"]);
    assert_eq!(bases(&options, "quay.io"), ["https://quay.io/v2/"]);
    for local in ["localhost:5000", "127.0.0.1:5000", "127.8.8.8", "[::1]:5000", "old.lan"] {
        assert_eq!(
            bases(&options, local),
            [format!("https://{local}/v2/"), format!("http://{local}/v2/")]
        );
    }
    for remote in ["localhost.example.com", "128.0.0.1", "old.lan:5000"] {
        assert_eq!(bases(&options, remote), [format!("https://{remote}/v2/")]);
    }
}

#[test]
fn an_insecure_registry_does_not_make_other_hosts_insecure() {
    let options = options(
            r#"{ "old.lan:5000": { "insecure": true, "ca_file": "/old.pem" }, "tokens.lan": { "insecure": true } }"#,
        )
        .unwrap();
    let trust = |registry: &str, url: &str| {
        let trust = options.trust(&options.origin(registry), &Url::parse(url).unwrap());
        (trust.is_insecure, trust.ca_files.len(), trust.is_local)
    };
    assert_eq!(trust("old.lan:5000", "http://old.lan:5000/v2/"), (true, 1, false));
    assert_eq!(trust("old.lan:5000", "https://tokens.lan/token"), (true, 1, false));
    for other in ["https://old.lan/", "https://old.lan:5001/", "https://tokens.lan:444/"] {
        assert_eq!(trust("old.lan:5000", other), (false, 1, false), "{other}");
    }
    assert_eq!(trust("localhost:5000", "http://127.0.0.1:5001/token"), (true, 0, true));
    assert_eq!(trust("localhost:5000", "https://auth.example.com/token"), (false, 0, false));
    assert_eq!(trust("quay.io", "http://127.0.0.1:5001/token"), (false, 0, true));
    assert_eq!(trust("quay.io", "http://tokens.lan/token"), (true, 0, false));
    assert_eq!(trust("localhost", "http://localhost/v2/"), (true, 0, true));
}

#[test]
fn mirrors_come_first() {
    let options = options(
        r#"{ "docker.io": { "mirrors": ["http://one.lan:5001/", "two.lan/hub", "localhost"] } }"#,
    );
    assert_eq!(
        bases(&options.unwrap(), "docker.io"),
        [
            "http://one.lan:5001/v2/",
            "https://two.lan/v2/hub/",
            "https://localhost/v2/",
            "http://localhost/v2/",
            "https://registry-1.docker.io/v2/"
        ]
    );
}

#[test]
fn mistakes_are_named() {
    for json in ["[]", r#"{ "x": { "miror": [] } }"#, "{"] {
        let error = options(json).unwrap_err().to_string();
        assert!(error.contains("registries.json"), "{error}");
    }
    for mirror in ["ftp://x", "https://", "a b", "x?y", "user@host"] {
        let options = options(&format!(r#"{{ "docker.io": {{ "mirrors": ["{mirror}"] }} }}"#));
        let error = options.unwrap().endpoints("docker.io").unwrap_err().to_string();
        assert!(error.contains("mirrors of docker.io"), "{error}");
    }
    let none = RegistryOptions::load(Path::new("/nonexistent/registries.json")).unwrap();
    assert!(none.registries.is_empty());
}

#[test]
fn certificates_are_found_in_dockers_folders() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("registry.lan:5000");
    std::fs::create_dir(&folder).unwrap();
    for name in ["b.crt", "a.crt", "client.cert", "client.key"] {
        std::fs::write(folder.join(name), "").unwrap();
    }
    let options =
        RegistryOptions { certs_dirs: vec![dir.path().to_owned()], ..RegistryOptions::default() };
    let found = options.origin("registry.lan:5000").ca_files;
    assert_eq!(found, [folder.join("a.crt"), folder.join("b.crt")]);
    assert!(options.origin("registry.lan").ca_files.is_empty());
}
