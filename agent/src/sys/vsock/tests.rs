use super::*;

#[test]
fn only_the_host_is_the_host() {
    assert_eq!(Peer::at(&address(2, 1024)), Peer::Host);
    // The hypervisor's, the loopback, guests, "any".
    for cid in [0, 1, 3, 1 << 31, u32::MAX] {
        assert_eq!(Peer::at(&address(cid, 1024)), Peer::Cid(cid));
    }
    let mut unix = address(2, 1024);
    unix.svm_family = libc::AF_UNIX as libc::sa_family_t;
    assert_eq!(Peer::at(&unix), Peer::OtherFamily);
}
