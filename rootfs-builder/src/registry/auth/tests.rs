//! Tests of challenges and secrets in headers.

use super::*;
use proptest::prelude::*;

fn challenge(values: &[&str]) -> Option<Challenge> {
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(WWW_AUTHENTICATE, HeaderValue::try_from(*value).unwrap());
    }
    Challenge::of(&headers)
}

#[test]
fn challenges_as_registries_write_them() {
    let bearer = |realm: &str, service: Option<&str>| {
        let service = service.map(str::to_owned);
        Some(Challenge::Bearer { realm: realm.to_owned(), service })
    };
    let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io""#;
    assert_eq!(
        challenge(&[hub]),
        bearer("https://auth.docker.io/token", Some("registry.docker.io"))
    );
    assert_eq!(challenge(&[r#"Basic realm="x, y""#]), Some(Challenge::Basic));
    assert_eq!(challenge(&["basic realm=x", r#"BEARER Realm="r""#]), bearer("r", None));
    assert_eq!(challenge(&[r#"Basic realm="a", Bearer realm="b""#]), bearer("b", None));
    for none in ["Negotiate", "Bearer service=\"x\"", "", "\"", "Bearer"] {
        assert_eq!(challenge(&[none]), None, "{none}");
    }
}

#[test]
fn tokens_are_not_shown_and_cannot_break_out_of_their_header() {
    assert!(!format!("{:?}", bearer("hunter2").unwrap()).contains("hunter2"));
    assert!(bearer("a\r\nHost: evil").is_err());
}

proptest! {
    #[test]
    fn no_challenge_panics(header in "[ -~]{0,60}") {
        let _ = challenge(&[&header]);
    }
}
