use std::error::Error as _;
use std::io;
use std::path::Path;
use std::time::Duration;

use boxlite_kernel::{Arch, LocateError};
use boxlite_rootfs_builder::{Error as ImageError, Remedy as ImageRemedy};

use super::*;
use crate::problem::BoxOption;
use crate::state::{BoxState, FailureReason};

fn image(remedy: ImageRemedy) -> Error {
    Error::image(ImageError::Missing { what: "x".into(), remedy })
}

fn full() -> io::Error {
    io::Error::from(io::ErrorKind::StorageFull)
}

fn not_ready() -> FailureReason {
    FailureReason::NotReady { timeout_ms: 1, stage: None }
}

/// Errors with a remedy.
fn remedied() -> Vec<Error> {
    vec![
        Error::no_home(),
        Error::no_launcher("at /x"),
        Error::from(LocateError::NotFound {
            arch: Arch::X86_64,
            searched: vec!["/a".into(), "/b".into()],
        }),
        Error::from(LocateError::BadManifest { path: "/x".into(), problem: "bad".into() }),
        Error::newer_home(Path::new("/x"), 2, 1),
        Error::store(Path::new("/x"), "read")(rusqlite::Error::InvalidQuery),
        Error::name_in_use("web"),
        Error::no_such_box("x"),
        Error::ambiguous("x", &["xa".into(), "xb".into()]),
        Error::no_command("alpine"),
        Error::wrong_state("web", &BoxState::Configured, Remedy::StartBox { name: "web".into() }),
        Error::failed(None, &not_ready()),
        Error::failed(Some("web"), &FailureReason::OutOfMemory),
        Error::home("cannot be written", "/x")(full()),
        Error::copy("/x")(full()),
        Error::internal("x"),
        image(ImageRemedy::NameOnImport),
        image(ImageRemedy::PullOrImport),
    ]
}

#[test]
fn messages_are_without_the_remedy_and_texts_end_with_it() {
    for error in remedied() {
        let remedy = error.remedy().unwrap().to_string();
        let text = error.to_string();
        assert!(text.starts_with(error.message()) && text.ends_with(&remedy), "{text}");
        assert!(!error.message().contains(&remedy) && !error.message().contains("::"), "{text}");
        let joint = &text[error.message().len()..text.len() - remedy.len()];
        assert!([": ", "; ", ", so ", "\n"].contains(&joint), "{text}");
        let mine = error.to_string_with(|_| "do it".into());
        assert_eq!(mine, format!("{}{joint}do it", error.message()));
    }
    let late = Error::timed_out("it", Duration::ZERO);
    assert_eq!((late.remedy(), late.to_string()), (None, late.message().to_owned()));
}

#[test]
fn an_error_from_the_software_host_is_the_same_but_for_its_source() {
    let problem = crate::Problem::new(BoxOption::Cpus, "0");
    for error in remedied().into_iter().chain([Error::options(vec![problem])]) {
        let json = serde_json::to_string(&error).unwrap();
        let far: Error = serde_json::from_str(&json).unwrap();
        assert_eq!((far.kind(), far.box_name()), (error.kind(), error.box_name()));
        assert_eq!((far.message(), far.remedy()), (error.message(), error.remedy()));
        assert_eq!((far.problems(), far.to_string()), (error.problems(), error.to_string()));
        assert!(far.source().is_none());
    }
}

#[test]
fn the_cause_of_an_error_is_its_source_and_in_its_text_once() {
    let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
    let error = Error::home("cannot be read", "/x")(denied());
    let behind = error.source().unwrap().downcast_ref::<io::Error>().unwrap();
    assert_eq!(behind.kind(), io::ErrorKind::PermissionDenied);
    assert_eq!(error.to_string(), format!("/x: cannot be read: {}", denied()));
    let missing = LocateError::Io { path: "/k".into(), source: denied() };
    assert_eq!(Error::from(missing).message(), format!("cannot read guest file /k: {}", denied()));
}

#[test]
fn the_vm_that_builds_a_disk_keeps_its_remedy() {
    let ours = Error::failed(None, &FailureReason::OutOfMemory);
    let error =
        Error::image(ImageError::Build { image: "x".into(), source: Box::new(ours.clone()) });
    assert_eq!((error.kind(), error.remedy()), (ErrorKind::Image, ours.remedy()));
    assert_eq!(error.message(), format!("cannot build the disk of x: {}", ours.message()));
    assert_eq!(error.to_string(), format!("cannot build the disk of x: {ours}"));
}

#[test]
fn a_full_disk_and_a_missing_file_have_different_kinds() {
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    assert_eq!(Error::copy("/x")(missing()).kind(), ErrorKind::NotFound);
    assert_eq!(Error::home("cannot be read", "/x")(missing()).kind(), ErrorKind::Storage);
    assert_eq!(Error::home("cannot be read", "/x")(full()).kind(), ErrorKind::DiskFull);
    let port = FailureReason::Port("x".into());
    assert_eq!(Error::failed(Some("web"), &port).kind(), ErrorKind::Port);
}

#[test]
fn a_refusal_differs_from_a_state_with_a_remedy() {
    let start = Remedy::StartBox { name: "web".into() };
    assert!(Error::refused("web", "no").is_refusal());
    assert!(!Error::wrong_state("web", &BoxState::Stopped, start).is_refusal());
}
