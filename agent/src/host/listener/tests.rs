use super::*;

#[test]
fn nobody_but_the_host_is_allowed() {
    assert!(is_allowed(Peer::Host));
    // The loopback, this guest itself, a nested VM.
    for cid in [0, 1, 3, u32::MAX] {
        assert!(!is_allowed(Peer::Cid(cid)), "{cid}");
    }
}
