//! Tests of credentials in debug output.

use super::*;

#[test]
fn secrets_are_not_shown() {
    let password = Credentials::Password { user: "me".into(), password: "hunter2".into() };
    let shown = format!("{password:?} {:?}", Credentials::IdentityToken("hunter2".into()));
    assert!(!shown.contains("hunter2") && shown.contains("me"), "{shown}");
}
