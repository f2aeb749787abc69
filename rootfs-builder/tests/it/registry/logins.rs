//! Basic and token logins, docker's configuration, credential helpers, and trust.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use boxlite_rootfs_builder::{LoginStore, RegistryConfig};
use serde_json::json;

use super::proxy::{Fault, Proxy};
use super::*;

const CREDS: &str = "--dest-creds=me:open sesame";

/// A registry with the user `me` and the password `open sesame`, and a reference in it.
fn guarded(fixture: &Fixture) -> Option<(Registry, String)> {
    let users = Command::new("htpasswd").args(["-Bbn", "-C4", "me", "open sesame"]).output();
    let Ok(users) = users else {
        eprintln!("SKIPPED: htpasswd is not installed");
        return None;
    };
    let file = fixture.path("htpasswd");
    fs::write(&file, users.stdout).unwrap();
    let registry = Registry::start(&Setup { htpasswd: Some(&file), ..Setup::default() })?;
    let (reference, _) = two_layers(fixture, "oci", 1, 1000);
    registry.push_as(&reference, "x:v", &[CREDS]);
    let text = format!("{}/x:v", registry.address);
    Some((registry, text))
}

fn docker_config(fixture: &Fixture, json: &serde_json::Value) -> PathBuf {
    fs::create_dir_all(fixture.path("docker")).unwrap();
    let file = fixture.path("docker/config.json");
    fs::write(&file, json.to_string()).unwrap();
    file
}

#[test]
fn a_protected_registry_requires_and_accepts_a_login() {
    let fixture = Fixture::new();
    let Some((registry, text)) = guarded(&fixture) else { return };
    let address = &registry.address;
    let (first, message) = problem(pull(&fixture, &text));
    assert!(matches!(first, RegistryProblem::LoginNeeded { .. }), "{message}");
    assert!(message.contains(&format!("log in to {address}")), "{message}");

    let options = options(&fixture);
    let error = options.login(address, "me", "wrong").unwrap_err().to_string();
    assert!(error.contains("refuses the login of \"me\"") && !error.contains("wrong"), "{error}");
    assert!(!fixture.path("docker/config.json").exists());
    let stored = options.login(&format!("https://{address}/"), "me", "open sesame").unwrap();
    assert_eq!(stored, LoginStore::File(fixture.path("docker/config.json")));
    pull(&fixture, &text).unwrap();

    // Docker's own tools read the stored login.
    run(Command::new("skopeo")
        .args(["inspect", "--tls-verify=false", "--authfile"])
        .arg(fixture.path("docker/config.json"))
        .arg(format!("docker://{text}")));
    assert!(options.logout(address).unwrap());
    assert!(!options.logout(address).unwrap());
    let (second, message) = problem(pull(&fixture, &text));
    assert!(matches!(second, RegistryProblem::LoginNeeded { .. }), "{message}");

    let auth = STANDARD.encode("me:stale");
    docker_config(&fixture, &json!({ "auths": { (address): { "auth": auth } } }));
    let (third, message) = problem(pull(&fixture, &text));
    assert!(matches!(third, RegistryProblem::LoginRefused { .. }), "{message}");
    assert!(message.contains("docker/config.json") && !message.contains("stale"), "{message}");
}

/// A credential helper in the folder `bin`, which keeps its logins in files beside it.
fn install_helper(fixture: &Fixture) -> PathBuf {
    let bin = fixture.path("bin");
    fs::create_dir_all(&bin).unwrap();
    let helper = bin.join("docker-credential-boxlite-test");
    let script = r#"#!/bin/sh
dir=$(dirname "$0")
input=$(cat)
file=$dir/$(printf %s "${input}" | sed 's/.*"ServerURL":"\([^"]*\)".*/\1/; s/[^a-zA-Z0-9.]/_/g').login
case $1 in
store) printf %s "$input" > "$file" ;;
get) cat "$file" 2>/dev/null || { echo "credentials not found in native keychain"; exit 1; } ;;
erase) rm "$file" ;;
esac
"#;
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    bin
}

/// A part of the test below, in a process whose `PATH` has the helper.
#[test]
#[ignore = "a part of another test, run in a process of its own"]
fn with_a_helper() {
    let Ok(text) = std::env::var("CHILD_IMAGE") else { return };
    let dir = PathBuf::from(std::env::var("CHILD_DIR").unwrap());
    let mut options = RegistryOptions::default();
    options.docker_config = Some(dir.join("docker"));
    let store = ImageStore::open(dir.join("store")).unwrap().with_registries(options.clone());
    let address = name(&text).registry().to_owned();
    assert!(store.pull(&name(&text), &Silent).is_err());
    let stored = options.login(&address, "me", "open sesame").unwrap();
    assert_eq!(stored, LoginStore::Helper("boxlite-test".into()));
    store.pull(&name(&text), &Silent).unwrap();
    let config = fs::read_to_string(dir.join("docker/config.json")).unwrap();
    assert!(config.contains(&address) && !config.contains("\"auth\""), "{config}");
    assert!(options.logout(&address).unwrap());
    assert!(store.pull(&name(&text), &Silent).is_err());
}

#[test]
fn credential_helpers_store_logins() {
    let fixture = Fixture::new();
    let Some((registry, text)) = guarded(&fixture) else { return };
    let bin = install_helper(&fixture);
    let path = std::env::var("PATH").unwrap();
    for config in [
        json!({ "credsStore": "boxlite-test" }),
        json!({ "credHelpers": { (&registry.address): "boxlite-test" }, "credsStore": "missing" }),
    ] {
        docker_config(&fixture, &config);
        run(Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "registry::logins::with_a_helper", "--ignored"])
            .env("CHILD_IMAGE", &text)
            .env("CHILD_DIR", fixture.dir.path())
            .env("PATH", format!("{}:{path}", bin.display())));
    }
    let left = fs::read_dir(&bin).unwrap().count();
    assert_eq!(left, 1, "logins were left behind");
}

#[test]
fn a_broken_helper_does_not_block_public_images() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (reference, _) = two_layers(&fixture, "oci", 1, 1000);
    registry.push(&reference, "x:v");
    docker_config(&fixture, &json!({ "credsStore": "boxlite-is-not-installed" }));
    let notes = Notes::default();
    let text = format!("{}/x:v", registry.address);
    store(&fixture).pull(&name(&text), &notes).unwrap();
    assert!(notes.has("docker-credential-boxlite-is-not-installed"));
    let error = options(&fixture).login(&registry.address, "me", "x").unwrap_err();
    assert!(matches!(error, Error::CredentialHelper { .. }), "{error}");
}

#[test]
fn logins_are_not_sent_to_other_hosts() {
    let fixture = Fixture::new();
    let Some((registry, _)) = guarded(&fixture) else { return };
    let other = Proxy::start(&registry.address, |_, _| Fault::None);
    let target = other.address.clone();
    let proxy = Proxy::start(&registry.address, move |head, _| match head.contains("/blobs/") {
        true => {
            let path = head.split(' ').nth(1).unwrap();
            Fault::Instead(format!(
                "HTTP/1.1 307 Go\r\nLocation: http://{target}{path}\r\nContent-Length: 0\r\n\r\n"
            ))
        }
        false => Fault::None,
    });
    let auth = STANDARD.encode("me:open sesame");
    docker_config(&fixture, &json!({ "auths": { (&proxy.address): { "auth": auth } } }));
    pull(&fixture, &format!("{}/x:v", proxy.address)).unwrap_err();
    assert!(proxy.requests("/manifests/")[0].to_lowercase().contains("authorization: basic"));
    let asked = other.requests("/blobs/");
    assert!(!asked.is_empty());
    assert!(asked.iter().all(|head| !head.to_lowercase().contains("authorization")), "{asked:?}");
}

/// A private certificate authority, and its certificate for 127.0.0.1.
fn certificates(fixture: &Fixture) -> Option<[PathBuf; 3]> {
    if !has_tool("openssl") {
        eprintln!("SKIPPED: openssl is not installed");
        return None;
    }
    let [ca, ca_key, certificate, key, request, extensions] =
        ["ca.pem", "ca.key", "cert.pem", "key.pem", "request", "extensions"]
            .map(|f| fixture.path(f));
    let new_key = ["-newkey", "rsa:2048", "-nodes", "-days", "2"];
    run(Command::new("openssl")
        .args(["req", "-x509", "-subj", "/CN=Our own"])
        .args(new_key)
        .args(["-addext", "basicConstraints=critical,CA:TRUE", "-keyout"])
        .args([&ca_key, Path::new("-out"), &ca]));
    run(Command::new("openssl")
        .args(["req", "-subj", "/CN=registry", "-newkey", "rsa:2048", "-nodes", "-keyout"])
        .args([&key, Path::new("-out"), &request]));
    fs::write(
        &extensions,
        "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth\n",
    )
    .unwrap();
    run(Command::new("openssl")
        .args(["x509", "-req", "-days", "2", "-CAcreateserial", "-in"])
        .args([
            &request,
            Path::new("-CA"),
            &ca,
            Path::new("-CAkey"),
            &ca_key,
            Path::new("-extfile"),
            &extensions,
            Path::new("-out"),
            &certificate,
        ]));
    Some([ca, certificate, key])
}

#[test]
fn private_authorities_are_trusted_for_the_registries_that_name_them() {
    let fixture = Fixture::new();
    let Some([ca, certificate, key]) = certificates(&fixture) else { return };
    let setup = Setup { tls: Some((&certificate, &key)), ..Setup::default() };
    let Some(registry) = Registry::start(&setup) else { return };
    let (reference, _) = two_layers(&fixture, "oci", 1, 1000);
    registry.push(&reference, "x:v");
    let text = format!("{}/x:v", registry.address);
    let with_ca = |file: &Path| {
        let mut options = options(&fixture);
        let mut config = RegistryConfig::default();
        config.ca_file = Some(file.to_owned());
        options.registries.insert(registry.address.clone(), config);
        fixture.store().with_registries(options).pull(&name(&text), &Silent)
    };
    with_ca(&ca).unwrap();
    // Another authority, made by a second call.
    let other = Fixture::new();
    let Some([stranger, ..]) = certificates(&other) else { return };
    let (trouble, message) = problem(with_ca(&stranger));
    assert!(matches!(trouble, RegistryProblem::Tls { .. }), "{message}");
    assert!(message.contains("ca_file") && message.contains("certificate"), "{message}");
    for bad in [fixture.path("oci/index.json"), fixture.path("missing.pem")] {
        let error = with_ca(&bad).unwrap_err();
        assert!(matches!(error, Error::RegistryConfig { .. }), "{error}");
    }
    // Docker's folder of certificates, and a registry on loopback without any.
    let folder = fixture.path("certs.d").join(&registry.address);
    fs::create_dir_all(&folder).unwrap();
    fs::copy(&stranger, folder.join("ca.crt")).unwrap();
    assert!(matches!(problem(pull(&fixture, &text)).0, RegistryProblem::Tls { .. }));
    fs::copy(&ca, folder.join("ca.crt")).unwrap();
    pull(&fixture, &text).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    pull(&fixture, &text).unwrap();
}

#[test]
fn a_registry_without_tls_is_refused_where_tls_is_wanted() {
    let fixture = Fixture::new();
    let (Some(registry), Some([ca, ..])) = (bare(), certificates(&fixture)) else { return };
    let mut options = options(&fixture);
    let mut config = RegistryConfig::default();
    config.ca_file = Some(ca);
    options.registries.insert(registry.address.clone(), config);
    let store = fixture.store().with_registries(options);
    let (trouble, message) =
        problem(store.pull(&name(&format!("{}/x:v", registry.address)), &Silent));
    assert!(matches!(trouble, RegistryProblem::Tls { .. }), "{message}");
    assert!(message.contains("does not speak TLS") && message.contains("insecure"), "{message}");
}

/// A token server; the registry checks the signatures of its tokens.
struct TokenServer {
    realm: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl TokenServer {
    fn start(certificate: PathBuf, key: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let realm = format!("http://{}/token", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(request) = read_request(&mut BufReader::new(&stream)) else { continue };
                let answer = give_token(&request, &certificate, &key);
                seen.lock().unwrap().push(request);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Self { realm, requests }
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }
}

/// Head and body of a request.
fn read_request(stream: &mut impl BufRead) -> Option<String> {
    let mut request = String::new();
    while stream.read_line(&mut request).ok()? > 2 {}
    let lower = request.to_lowercase();
    let length = lower.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
    let length = length.and_then(|length| length.parse().ok());
    let mut body = String::new();
    stream.take(length.unwrap_or(0)).read_to_string(&mut body).ok()?;
    Some(request + &body)
}

/// Allows `me` to pull and push, and everybody to pull from `public`.
fn give_token(request: &str, certificate: &Path, key: &Path) -> String {
    let login = STANDARD.encode("me:open sesame");
    let is_me = request.contains(&login) || request.contains("refresh_token=my-identity");
    let has_login = request.to_lowercase().contains("authorization: basic")
        || request.contains("refresh_token=");
    let is_wrong = has_login && !is_me;
    if is_wrong || !request.contains("service=test-service") {
        return "HTTP/1.1 401 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned();
    }
    let decoded = request.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
    let scopes = decoded.split("scope=repository:").skip(1);
    let access: Vec<_> = scopes
        .filter_map(|scope| {
            let scope = scope.split(['&', ' ']).next()?;
            let (name, actions) = scope.split_once(':')?;
            let actions: Vec<&str> = actions.split(',').collect();
            let is_allowed = is_me || name == "public";
            is_allowed.then(|| json!({ "type": "repository", "name": name, "actions": actions }))
        })
        .collect();
    let pem = fs::read_to_string(certificate).unwrap();
    let der: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let header = json!({ "typ": "JWT", "alg": "RS256", "x5c": [der] });
    let claims = json!({
        "iss": "test-issuer", "aud": "test-service", "sub": "", "jti": "1",
        "nbf": 0, "iat": 0, "exp": 4_000_000_000u64, "access": access,
    });
    let encode = |json: &serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let signed = format!("{}.{}", encode(&header), encode(&claims));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("signed");
    fs::write(&file, &signed).unwrap();
    let signature = Command::new("openssl")
        .args(["dgst", "-sha256", "-sign"])
        .args([key, &file])
        .output()
        .unwrap()
        .stdout;
    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
    let body = json!({ "token": token, "expires_in": 300 }).to_string();
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

#[test]
fn tokens_are_fetched_and_sent() {
    let fixture = Fixture::new();
    let Some([_, certificate, key]) = certificates(&fixture) else { return };
    let tokens = TokenServer::start(certificate.clone(), key);
    let setup = Setup { token: Some((&tokens.realm, &certificate)), ..Setup::default() };
    let Some(registry) = Registry::start(&setup) else { return };
    let (reference, content) = two_layers(&fixture, "oci", 1, 1000);
    registry.push_as(&reference, "public:v", &[CREDS]);
    registry.push_as(&reference, "secret:v", &[CREDS]);
    tokens.requests();
    let text = |name: &str| format!("{}/{name}:v", registry.address);

    // Anonymous, with one token for all requests.
    let image = pull(&fixture, &text("public")).unwrap();
    assert!(disk_of(&store(&fixture), &image) == content);
    let requests = tokens.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    let (trouble, message) = problem(pull(&fixture, &text("secret")));
    assert!(matches!(trouble, RegistryProblem::LoginNeeded { .. }), "{message}");

    // With a login: the password goes to the token server, a token to the registry.
    let options = options(&fixture);
    assert!(options.login(&registry.address, "me", "wrong").is_err());
    options.login(&registry.address, "me", "open sesame").unwrap();
    pull(&fixture, &text("secret")).unwrap();
    let (trouble, message) = problem(pull(&fixture, &text("nothing")));
    assert!(matches!(trouble, RegistryProblem::UnknownRepository { .. }), "{message}");

    let config = |entry: serde_json::Value| {
        docker_config(&fixture, &json!({ "auths": { (&registry.address): entry } }));
    };
    config(json!({ "identitytoken": "my-identity" }));
    tokens.requests();
    pull(&fixture, &text("secret")).unwrap();
    let request = tokens.requests().remove(0);
    assert!(request.starts_with("POST /token "), "{request}");
    assert!(request.contains("grant_type=refresh_token"), "{request}");
    config(json!({ "identitytoken": "another" }));
    let (trouble, message) = problem(pull(&fixture, &text("secret")));
    assert!(matches!(trouble, RegistryProblem::LoginRefused { .. }), "{message}");
    assert!(!message.contains("another"), "{message}");
}

#[test]
fn no_login_goes_unencrypted_from_a_secure_registry() {
    let fixture = Fixture::new();
    let Some([ca, certificate, key]) = certificates(&fixture) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let realm = format!("http://{}/token", listener.local_addr().unwrap());
    let setup = Setup {
        tls: Some((&certificate, &key)),
        token: Some((&realm, &certificate)),
        ..Setup::default()
    };
    let Some(registry) = Registry::start(&setup) else { return };
    let mut options = options(&fixture);
    let mut config = RegistryConfig::default();
    config.ca_file = Some(ca);
    options.registries.insert(registry.address.clone(), config);
    let error = options.login(&registry.address, "me", "open sesame").unwrap_err().to_string();
    assert!(error.contains("unencrypted"), "{error}");
    assert!(listener.accept().is_err(), "a token was requested");
}

#[test]
fn requests_to_a_failing_token_server_are_retried() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (reference, _) = two_layers(&fixture, "oci", 1, 1000);
    registry.push(&reference, "x:v");
    let tokens = Proxy::start("127.0.0.1:1", |_, nth| {
        let answer = match nth {
            0 => "503 Busy\r\nContent-Length: 0\r\n\r\n",
            1 => "429 Slowly\r\nContent-Length: 0\r\n\r\n",
            _ => "200 OK\r\nContent-Length: 16\r\n\r\n{\"token\":\"good\"}",
        };
        Fault::Instead(format!("HTTP/1.1 {answer}"))
    });
    let realm = format!("http://{}/token", tokens.address);
    let guarded = Proxy::start(&registry.address, move |head, _| {
        match head.to_lowercase().contains("authorization: bearer good") {
            true => Fault::None,
            false => Fault::Instead(format!(
                "HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer realm=\"{realm}\"\r\nContent-Length: 0\r\n\r\n"
            )),
        }
    });
    docker_config(
        &fixture,
        &json!({ "auths": { (&guarded.address): { "identitytoken": "mine" } } }),
    );
    pull(&fixture, &format!("{}/x:v", guarded.address)).unwrap();
    assert_eq!(tokens.requests("POST /token").len(), 3);
}

/// The same server under an address that does not count as loopback.
fn not_loopback(address: &str) -> String {
    address.replace("127.0.0.1", "0.0.0.0")
}

#[test]
fn an_insecure_registry_does_not_make_others_insecure() {
    let fixture = Fixture::new();
    let Some([_, certificate, key]) = certificates(&fixture) else { return };
    let setup = Setup { tls: Some((&certificate, &key)), ..Setup::default() };
    let (Some(stranger), Some(registry)) = (Registry::start(&setup), bare()) else { return };
    let (reference, _) = two_layers(&fixture, "oci", 1, 1000);
    registry.push(&reference, "x:v");
    stranger.push(&reference, "x:v");
    let other = not_loopback(&stranger.address);
    let options_with = |hosts: &[&str]| {
        let mut options = options(&fixture);
        for host in hosts {
            let mut config = RegistryConfig::default();
            config.insecure = true;
            options.registries.insert((*host).to_owned(), config);
        }
        options
    };
    let pull_with = |hosts: &[&str], address: &str| {
        let store = fixture.store().with_registries(options_with(hosts));
        store.pull(&name(&format!("{address}/x:v")), &Silent)
    };
    // Its blobs are on another host, with an untrusted certificate.
    let target = other.clone();
    let redirect = Proxy::start(&registry.address, move |head, _| match head.contains("/blobs/") {
        true => {
            let path = head.split(' ').nth(1).unwrap();
            Fault::Instead(format!(
                "HTTP/1.1 307 Go\r\nLocation: https://{target}{path}\r\nContent-Length: 0\r\n\r\n"
            ))
        }
        false => Fault::None,
    });
    let (trouble, message) = problem(pull_with(&[&redirect.address], &redirect.address));
    assert!(matches!(trouble, RegistryProblem::Tls { .. }), "{message}");
    assert!(message.contains(&other), "{message}");
    pull_with(&[&other], &redirect.address).unwrap();

    // Its token server is on another host, and would get the login.
    let auth = STANDARD.encode("me:open sesame");
    for (scheme, words) in [("https", "certificate"), ("http", "unencrypted")] {
        let realm = format!("{scheme}://{other}/token");
        let guarded = Proxy::start(&registry.address, move |_, _| {
            Fault::Instead(format!(
                "HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer realm=\"{realm}\"\r\nContent-Length: 0\r\n\r\n"
            ))
        });
        docker_config(&fixture, &json!({ "auths": { (&guarded.address): { "auth": auth } } }));
        let (_, message) = problem(pull_with(&[&guarded.address], &guarded.address));
        assert!(message.contains(&*other) || message.contains("0.0.0.0"), "{message}");
        assert!(message.contains(words), "{message}");
        // With that host marked insecure, the request is sent: this one has no tokens.
        let (_, message) = problem(pull_with(&[&guarded.address, &other], &guarded.address));
        let was_asked = message.contains("status 404") || message.contains("refuses the login");
        assert!(was_asked && !message.contains(words), "{message}");
    }
}

#[test]
fn no_login_is_sent_to_a_mirror_without_tls() {
    let fixture = Fixture::new();
    let Some((registry, _)) = guarded(&fixture) else { return };
    let proxy = Proxy::start(&registry.address, |_, _| Fault::None);
    let mirror = not_loopback(&proxy.address);
    let auth = STANDARD.encode("me:open sesame");
    docker_config(&fixture, &json!({ "auths": { (&mirror): { "auth": auth } } }));
    let pull = |is_insecure: bool| {
        let mut options = options(&fixture);
        let mut config = RegistryConfig::default();
        config.mirrors = vec![format!("http://{mirror}")];
        options.registries.insert("registry.invalid".into(), config);
        let mut config = RegistryConfig::default();
        config.insecure = is_insecure;
        options.registries.insert(mirror.clone(), config);
        let notes = Notes::default();
        let store = fixture.store().with_registries(options);
        (store.pull(&name("registry.invalid/x:v"), &notes), notes)
    };
    let (result, notes) = pull(false);
    result.unwrap_err();
    assert!(notes.has("logins are not sent") && notes.has(&mirror), "{:?}", notes.0);
    let sent = |head: &String| head.to_lowercase().contains("authorization");
    assert!(!proxy.heads().is_empty() && !proxy.heads().iter().any(sent), "{:?}", proxy.heads());
    let (result, _) = pull(true);
    result.unwrap();
    assert!(proxy.heads().iter().any(sent));
}

#[test]
fn a_hostile_token_server_is_bounded() {
    let fixture = Fixture::new();
    let Some([_, certificate, _]) = certificates(&fixture) else { return };
    let endless = Proxy::start("127.0.0.1:1", |_, _| {
        Fault::Endless("HTTP/1.1 200 OK\r\n\r\n".into(), vec![b'['; 1 << 16])
    });
    let realm = format!("http://{}/token", endless.address);
    let setup = Setup { token: Some((&realm, &certificate)), ..Setup::default() };
    let Some(registry) = Registry::start(&setup) else { return };
    let (trouble, message) = problem(pull(&fixture, &format!("{}/x:v", registry.address)));
    assert!(matches!(trouble, RegistryProblem::TooLarge { .. }), "{message}");
}
