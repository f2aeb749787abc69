//! Tests of messages and remedies.

use std::time::Duration;

use super::*;

#[test]
fn a_full_disk_is_found_below_other_errors() {
    let full = io::Error::from(io::ErrorKind::StorageFull);
    let error = Error::Build {
        image: "x".into(),
        source: Box::new(Error::Io { action: "write", path: "/x".into(), source: full }),
    };
    assert!(chain_is_disk_full(&error));
    assert!(!chain_is_disk_full(&io::Error::from(io::ErrorKind::NotFound)));
}

/// One error for each kind of message.
fn examples() -> Vec<Error> {
    let text = || "x".to_owned();
    let digest = || Digest::sha256(b"");
    let io = |kind| Error::io("read", "/x".as_ref())(io::Error::from(kind));
    let registry = |problem| Error::registry("x", "reg.lan", problem);
    vec![
        Error::InvalidReference { text: text(), reason: text() },
        Error::NotStored { name: text() },
        Error::RegistryConfig { file: "/x".into(), reason: text() },
        Error::CredentialHelper { program: text(), reason: text() },
        io(io::ErrorKind::NotFound),
        io(io::ErrorKind::PermissionDenied),
        io(io::ErrorKind::ReadOnlyFilesystem),
        Error::DiskFull { folder: "/x".into(), wanted: 1, available: 0 },
        Error::Missing { what: text(), remedy: Remedy::NameOnImport },
        Error::Unsupported { what: text(), remedy: Remedy::LogIn { registry: text() } },
        Error::corrupt("x", "y"),
        Error::DigestMismatch { what: text(), expected: digest(), actual: digest() },
        Error::WrongPlatform { what: text(), found: Vec::new(), host: "linux/amd64".into() },
        Error::UnsupportedPlatform {
            platform: "linux/arm64".parse().unwrap(),
            host: "linux/amd64".into(),
        },
        Error::Changed { path: "/x".into() },
        Error::InUse { name: text() },
        Error::NotFound { text: text() },
        registry(RegistryProblem::Unreachable { reason: text() }),
        registry(RegistryProblem::Tls { reason: text() }),
        registry(RegistryProblem::Stalled { after: Duration::ZERO }),
        registry(RegistryProblem::LoginNeeded { registry: text() }),
        registry(RegistryProblem::LoginRefused {
            registry: text(),
            user: text(),
            source_name: text(),
        }),
        registry(RegistryProblem::Unencrypted { host: text() }),
        registry(RegistryProblem::Forbidden { user: text(), message: text() }),
        registry(RegistryProblem::UnknownRepository { repository: text() }),
        registry(RegistryProblem::UnknownReference {
            repository: text(),
            reference: text(),
            tags: Vec::new(),
        }),
        registry(RegistryProblem::LostBlob { what: text() }),
        registry(RegistryProblem::RateLimited { retry_after: None }),
        registry(RegistryProblem::RateLimited { retry_after: Some(Duration::ZERO) }),
        registry(RegistryProblem::Status { status: 500, message: text() }),
        registry(RegistryProblem::Protocol { reason: text() }),
    ]
}

#[test]
fn messages_end_with_the_remedy_or_the_callers_words_for_it() {
    for error in examples() {
        let remedy = error.remedy().unwrap_or_else(|| panic!("{error}: no remedy")).to_string();
        let message = error.to_string();
        let problem = message.strip_suffix(&remedy).unwrap_or_else(|| panic!("{message}"));
        assert!(problem.ends_with("; ") || problem.ends_with(": "), "{message}");
        assert_eq!(error.to_string_with(|_| Some("run me".into())), format!("{problem}run me"));
        assert_eq!(error.to_string_with(|_| None), message);
        // Callers have flags and commands, this crate has none. (skopeo's are none of ours.)
        assert!(!remedy.contains("--") || remedy.contains("skopeo"), "{remedy}");
    }
    for error in [Error::Cancelled, Error::TooLarge { what: "x".into(), limit: 1 }] {
        assert_eq!(error.remedy(), None);
        assert_eq!(error.to_string_with(|_| panic!("no remedy to word")), error.to_string());
    }
}
