//! Tests of registry problems: messages, and which are transient.

use super::*;

#[test]
fn only_transient_problems_are_retried() {
    let status = |status| RegistryProblem::Status { status, message: String::new() };
    assert!(status(503).is_transient() && !status(400).is_transient());
    assert!(RegistryProblem::Stalled { after: Duration::ZERO }.is_transient());
    assert!(!RegistryProblem::Tls { reason: String::new() }.is_transient());
    assert!(!RegistryProblem::RateLimited { retry_after: None }.is_transient());
}

#[test]
fn messages_say_what_to_do() {
    let limited = RegistryProblem::RateLimited { retry_after: Some(Duration::from_secs(90)) };
    assert!(limited.to_string().contains("in 90 seconds"));
    let tags = vec!["1".to_owned(), "2".to_owned()];
    let unknown = RegistryProblem::UnknownReference {
        repository: "x".into(),
        reference: "tag \"3\"".into(),
        tags,
    };
    assert_eq!(
        unknown.to_string(),
        "its repository \"x\" has no tag \"3\"; it has, among others: 1, 2"
    );
}
