use super::*;

#[test]
fn nobody_but_the_host_may_ask() {
    assert!(may_ask(Peer::Host));
    // The loopback, this machine itself, a machine in it.
    for cid in [0, 1, 3, u32::MAX] {
        assert!(!may_ask(Peer::Cid(cid)), "{cid}");
    }
}
