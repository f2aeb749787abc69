//! Tests of the times of retries.

use super::*;

#[test]
fn waits_grow_up_to_a_bound() {
    let waits: Vec<_> = (1..9).map(|tries| backoff(tries).as_millis()).collect();
    assert_eq!(waits, [250, 500, 1000, 2000, 4000, 4000, 4000, 4000]);
    assert_eq!(backoff(u32::MAX), Duration::from_secs(4));
}

#[test]
fn a_time_to_wait_is_seconds_or_a_date() {
    let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:30 GMT").unwrap();
    let asked = |text: &'static str| {
        let headers = [(RETRY_AFTER, HeaderValue::from_static(text))];
        retry_after(&headers.into_iter().collect(), now)
    };
    assert_eq!(asked(" 120"), Some(Duration::from_secs(120)));
    for date in [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
    ] {
        assert_eq!(asked(date), Some(Duration::from_secs(7)), "{date}");
    }
    for none in ["", "-1", "soon", "Sun, 06 Nov 1994 08:49:00 GMT", "99999999999999999999999"] {
        assert_eq!(asked(none), None, "{none}");
    }
}
