//! Faults of networks and registries: broken connections, refusals, false answers.

use std::time::{Duration, Instant, SystemTime};

use super::proxy::{Fault, Proxy};
use super::*;

/// The offset at which a request continues: the number in its `Range` header.
fn range_of(head: &str) -> Option<u64> {
    let head = head.to_lowercase();
    head.split("range: bytes=").nth(1)?.split('-').next()?.parse().ok()
}

#[test]
fn a_broken_download_resumes_where_it_broke() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (reference, content) = two_layers(&fixture, "oci", 1, 3 << 20);
    registry.push(&reference, "x:v");
    let layer = data_layer(&fixture, "oci");
    let cut = layer.clone();
    let proxy =
        Proxy::start(&registry.address, move |head, nth| match head.contains(&cut) && nth < 3 {
            true => Fault::Cut(700_000),
            false => Fault::None,
        });
    let text = format!("{}/x:v", proxy.address);
    let image = pull(&fixture, &text).unwrap();
    let ranges: Vec<_> = proxy.requests(&layer).iter().map(|head| range_of(head)).collect();
    assert_eq!(ranges, [None, Some(700_000), Some(1_400_000), Some(2_100_000)]);
    assert!(disk_of(&store(&fixture), &image) == content);
}

#[test]
fn a_registry_without_ranges_starts_again() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (reference, content) = two_layers(&fixture, "oci", 1, 1 << 20);
    registry.push(&reference, "x:v");
    let layer = data_layer(&fixture, "oci");
    let cut = layer.clone();
    let proxy = Proxy::start(&registry.address, move |head, nth| match nth {
        0 if head.contains(&cut) => Fault::Cut(700_000),
        _ => Fault::Whole,
    });
    let image = pull(&fixture, &format!("{}/x:v", proxy.address)).unwrap();
    let ranges: Vec<_> = proxy.requests(&layer).iter().map(|head| range_of(head)).collect();
    assert_eq!(ranges, [None, Some(700_000)]);
    assert!(disk_of(&store(&fixture), &image) == content);
}

#[test]
fn a_partial_download_that_the_registry_rejects_is_dropped() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (reference, content) = two_layers(&fixture, "oci", 1, 1 << 20);
    registry.push(&reference, "x:v");
    let layer = data_layer(&fixture, "oci");
    for refusal in [
        "416 Range Not Satisfiable\r\nContent-Length: 0\r\n\r\n",
        "206 Partial Content\r\nContent-Range: bytes 0-1/2\r\nContent-Length: 2\r\n\r\nxx",
    ] {
        let cut = layer.clone();
        let proxy = Proxy::start(&registry.address, move |head, nth| match range_of(head) {
            Some(_) => instead(refusal),
            None if head.contains(&cut) && nth == 0 => Fault::Cut(700_000),
            None => Fault::None,
        });
        let text = format!("{}/x:v", proxy.address);
        let image = pull(&fixture, &text).unwrap();
        let ranges: Vec<_> = proxy.requests(&layer).iter().map(|head| range_of(head)).collect();
        assert_eq!(ranges, [None, Some(700_000), None], "{refusal}");
        assert!(disk_of(&store(&fixture), &image) == content);
        store(&fixture).remove(&text).unwrap();
    }
}

#[test]
fn a_pull_fails_after_repeated_breaks_and_keeps_its_partial_download() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (reference, content) = two_layers(&fixture, "oci", 1, 1 << 20);
    registry.push(&reference, "x:v");
    let layer = data_layer(&fixture, "oci");
    let cut = layer.clone();
    let proxy =
        Proxy::start(&registry.address, move |head, nth| match head.contains(&cut) && nth < 5 {
            true => Fault::Cut(1000),
            false => Fault::None,
        });
    let text = format!("{}/x:v", proxy.address);
    let (problem, message) = problem(pull(&fixture, &text));
    assert!(matches!(problem, RegistryProblem::Unreachable { .. }), "{message}");
    assert!(message.contains(&layer), "{message}");
    // Another process opens the store in between.
    fixture.store();
    let files = fixture.store_files();
    assert!(files.iter().any(|file| file.ends_with(".partial")), "{files:?}");
    let image = pull(&fixture, &text).unwrap();
    assert_eq!(range_of(&proxy.requests(&layer)[5]), Some(5000));
    assert!(disk_of(&store(&fixture), &image) == content);
    assert!(fixture.store_files().iter().all(|file| !file.ends_with(".partial")));
}

#[test]
fn an_interrupted_pull_is_kept_for_days_or_until_pruned() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (reference, _) = two_layers(&fixture, "oci", 1, 1 << 20);
    registry.push(&reference, "x:v");
    let layer = data_layer(&fixture, "oci");
    let proxy = Proxy::start(&registry.address, move |head, _| match head.contains(&layer) {
        true => Fault::Cut(1000),
        false => Fault::None,
    });
    let text = format!("{}/x:v", proxy.address);
    pull(&fixture, &text).unwrap_err();
    // The other layer, the partial one, and the journal that names them.
    assert_eq!(fixture.store_files().len(), 3, "{:?}", fixture.store_files());
    let pruned = store(&fixture).prune(false, &|_| false).unwrap();
    assert!(pruned.removed.is_empty() && pruned.freed > 0);
    assert_eq!(fixture.store_files(), [""; 0]);

    pull(&fixture, &text).unwrap_err();
    let journal = fixture.store_files().into_iter().find(|file| file.ends_with(".pull")).unwrap();
    let age = |days: u64| {
        let file = std::fs::File::options().read(true).open(fixture.path("store").join(&journal));
        let time = std::time::SystemTime::now() - Duration::from_secs(days * 24 * 3600);
        file.unwrap().set_modified(time).unwrap();
        fixture.store();
        fixture.store_files().len()
    };
    assert_eq!(age(2), 3);
    // A process that another test is starting holds the locks for a moment.
    fixture.until("it is swept away", || age(4) == 0);
}

#[test]
fn a_damaged_partial_download_is_detected_and_fetched_again() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (reference, content) = two_layers(&fixture, "oci", 1, 1 << 20);
    registry.push(&reference, "x:v");
    let layer = data_layer(&fixture, "oci");
    let folder = fixture.path("store/blobs/sha256");
    let text = format!("{}/x:v", registry.address);
    store(&fixture);
    std::fs::create_dir_all(&folder).unwrap();
    let partial = folder.join(layer.strip_prefix("sha256:").unwrap().to_owned() + ".partial");
    // Garbage that is shorter than the layer, as long, and longer.
    let len = std::fs::metadata(registry.blob_file(&layer)).unwrap().len() as usize;
    for garbage in [1000, len, len + 5] {
        // The store is opened first: without a journal, it would remove the file.
        let store = store(&fixture);
        std::fs::write(&partial, vec![7; garbage]).unwrap();
        let image = store.pull(&name(&text), &Silent).unwrap();
        assert!(disk_of(&store, &image) == content);
        store.remove(&text).unwrap();
    }
}

#[test]
fn wrong_content_is_refused() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (reference, _) = two_layers(&fixture, "oci", 1, 100_000);
    registry.push(&reference, "x:v");
    let digest = fixture.resolve(&reference).unwrap().digest().to_string();
    let layer = data_layer(&fixture, "oci");
    for (part, reference) in [
        (layer.as_str(), "x:v".to_owned()),
        ("/manifests/", "x:v".to_owned()),
        ("/manifests/", format!("x@{digest}")),
    ] {
        let bad = part.to_owned();
        let proxy = Proxy::start(&registry.address, move |head, _| match head.contains(&bad) {
            true => Fault::Flip(50),
            false => Fault::None,
        });
        let result = pull(&fixture, &format!("{}/{reference}", proxy.address));
        let (problem, message) = problem(result);
        assert!(matches!(problem, RegistryProblem::WrongDigest { .. }), "{message}");
        assert!(message.contains("expected sha256:"), "{message}");
    }
    assert!(store(&fixture).list().unwrap().images.is_empty());
}

#[test]
fn a_registry_that_stops_answering_is_given_up_on() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (reference, content) = two_layers(&fixture, "oci", 1, 1 << 20);
    registry.push(&reference, "x:v");
    let layer = data_layer(&fixture, "oci");
    let proxy =
        Proxy::start(&registry.address, move |head, nth| match head.contains(&layer) && nth == 0 {
            true => Fault::Stall(500_000),
            false => Fault::None,
        });
    let mut options = options(&fixture);
    options.stall_timeout = Duration::from_millis(500);
    let store = fixture.store().with_registries(options);
    let begin = Instant::now();
    let image = store.pull(&name(&format!("{}/x:v", proxy.address)), &Silent).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert!(disk_of(&store, &image) == content);

    let silent = Proxy::start(&registry.address, |_, _| Fault::Stall(0));
    let result = store.pull(&name(&format!("{}/x:v", silent.address)), &Silent);
    let (problem, message) = problem(result);
    assert!(matches!(problem, RegistryProblem::Stalled { .. }), "{message}");
}

fn instead(answer: &str) -> Fault {
    Fault::Instead(format!("HTTP/1.1 {answer}"))
}

#[test]
fn a_short_rate_limit_is_waited_out() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (reference, _) = two_layers(&fixture, "oci", 1, 1000);
    registry.push(&reference, "x:v");
    let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(4));
    for header in [String::new(), format!("Retry-After: {soon}\r\n")] {
        let limit = format!("429 Too Many Requests\r\n{header}Content-Length: 0\r\n\r\n");
        let proxy = Proxy::start(&registry.address, move |head, nth| match nth {
            0 if head.contains("/manifests/") => instead(&limit),
            _ => Fault::None,
        });
        pull(&fixture, &format!("{}/x:v", proxy.address)).unwrap();
        assert_eq!(proxy.requests("/manifests/").len(), 2);
    }
}

#[test]
fn transient_errors_are_retried() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (reference, _) = two_layers(&fixture, "oci", 1, 1000);
    registry.push(&reference, "x:v");
    let proxy = Proxy::start(&registry.address, |head, nth| match nth {
        0 if head.contains("/manifests/") => {
            instead("429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
        }
        0 if head.contains("/blobs/") => {
            instead("503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        }
        1 if head.contains("/blobs/") => instead(""), // not even an answer
        _ => Fault::None,
    });
    let begin = Instant::now();
    pull(&fixture, &format!("{}/x:v", proxy.address)).unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(1));
}

#[test]
fn a_rate_limit_says_how_long() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    for (header, words) in [
        ("Retry-After: 3600\r\n", "in 3600 seconds"),
        ("", "try again later"),
        ("Retry-After: x\r\n", "later"),
    ] {
        let proxy =
            Proxy::start(&registry.address, move |head, _| match head.contains("/manifests/") {
                true => instead(&format!(
                    "429 Too Many Requests\r\n{header}Content-Length: 2\r\n\r\n{{}}"
                )),
                false => Fault::None,
            });
        let (problem, message) = problem(pull(&fixture, &format!("{}/x:v", proxy.address)));
        assert!(matches!(problem, RegistryProblem::RateLimited { .. }), "{message}");
        assert!(message.contains("limits the rate") && message.contains(words), "{message}");
    }
}

#[test]
fn missing_repositories_tags_and_layers_are_named() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (reference, _) = two_layers(&fixture, "oci", 1, 1000);
    registry.push(&reference, "some/thing:v1");
    registry.push(&reference, "some/thing:v2");
    let ask = |text: &str| problem(pull(&fixture, &format!("{}/{text}", registry.address)));
    let (problem, message) = ask("some/think:v1");
    assert!(matches!(problem, RegistryProblem::UnknownRepository { .. }), "{message}");
    assert!(message.contains("\"some/think\"") && message.contains("check the name"), "{message}");
    let (problem, message) = ask("some/thing");
    assert!(matches!(problem, RegistryProblem::UnknownReference { .. }), "{message}");
    assert!(message.contains("tag \"latest\"") && message.contains("v1, v2"), "{message}");
    let digest = boxlite_rootfs_builder::Digest::sha256(b"nothing").to_string();
    let (_, message) = ask(&format!("some/thing@{digest}"));
    assert!(message.contains(&digest), "{message}");

    // A layer that the registry has lost.
    let layer = data_layer(&fixture, "oci");
    std::fs::remove_file(registry.blob_file(&layer)).unwrap();
    let (problem, message) = ask("some/thing:v1");
    assert!(matches!(problem, RegistryProblem::LostBlob { .. }), "{message}");
    assert!(message.contains("layer 2 of 2") && message.contains(&layer), "{message}");
}

#[test]
fn servers_without_a_registry_and_artifacts_without_an_image_have_their_own_errors() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let answer = |content_type: &str, body: &str| {
        let length = body.len();
        let head = format!("200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {length}");
        instead(&format!("{head}\r\n\r\n{body}"))
    };
    let message = |fault: Fault| {
        let proxy = Proxy::start(&registry.address, move |head, _| {
            if head.contains("/manifests/") { fault.clone() } else { Fault::None }
        });
        pull(&fixture, &format!("{}/x:v", proxy.address)).unwrap_err().to_string()
    };
    let old = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let chart = r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json",
        "digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[]}"#;
    for (fault, words) in [
        (answer("text/html; charset=utf-8", "<html>log in</html>"), "a web page"),
        (answer(old, r#"{"schemaVersion":1,"name":"x"}"#), "old schema 1"),
        (answer("application/json", r#"{"schemaVersion":1}"#), "old schema 1"),
        (answer("application/json", "{"), "damaged"),
        (answer("application/vnd.oci.image.manifest.v1+json", chart), "not a container image"),
        (instead("200 OK\r\nContent-Length: 99999999999\r\n\r\n"), "larger than the limit"),
        (instead("302 Found\r\nContent-Length: 0\r\n\r\n"), "redirects to nowhere"),
        (instead("418 I'm a teapot\r\nContent-Length: 0\r\n\r\n"), "status 418"),
    ] {
        let message = message(fault);
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn answers_and_redirects_are_bounded() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let endless = Fault::Endless("HTTP/1.1 200 OK\r\n\r\n".into(), vec![b' '; 1 << 16]);
    let body = "HTTP/1.1 500 No\r\n\r\n";
    let error = Fault::Endless(body.into(), vec![b'x'; 1 << 16]);
    for (fault, words) in [(endless, "limit of 4194304"), (error, "status 500")] {
        let proxy = Proxy::start(&registry.address, move |head, _| {
            if head.contains("/manifests/") { fault.clone() } else { Fault::None }
        });
        let (_, message) = problem(pull(&fixture, &format!("{}/x:v", proxy.address)));
        assert!(message.contains(words), "{message}");
    }
    let circle = Proxy::start(&registry.address, |head, _| match head.contains("/manifests/") {
        true => instead("307 Go\r\nLocation: /v2/x/manifests/v\r\nContent-Length: 0\r\n\r\n"),
        false => Fault::None,
    });
    let (_, message) = problem(pull(&fixture, &format!("{}/x:v", circle.address)));
    assert!(message.contains("redirects more than 5 times"), "{message}");
    assert_eq!(circle.requests("/manifests/").len(), 6);
}

#[test]
fn a_layer_longer_than_its_manifest_says_is_refused() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (reference, _) = two_layers(&fixture, "oci", 1, 1000);
    registry.push(&reference, "x:v");
    let layer = data_layer(&fixture, "oci");
    let proxy = Proxy::start(&registry.address, move |head, _| match head.contains(&layer) {
        true => Fault::Endless("HTTP/1.1 200 OK\r\n\r\n".into(), vec![b' '; 1 << 16]),
        false => Fault::None,
    });
    let (problem, message) = problem(pull(&fixture, &format!("{}/x:v", proxy.address)));
    assert!(matches!(problem, RegistryProblem::WrongLength { .. }), "{message}");
}
