use proptest::prelude::*;

use super::*;

const PASSWD: &[u8] = b"\
root:x:0:0:root:/root:/bin/sh
# a comment
garbage
also:garbage:x:y:::
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin

  web:x:1000:1000:Web,,,:/home/web:/bin/bash\r
1234:x:77:78::/odd:/bin/sh
0:x:79:79::/not-root:/bin/sh
homeless:x:5:5
\xff\xfe:x:6:6:bytes:/bytes:
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin";
const GROUP: &[u8] = b"\
root:x:0:
:x:9:web
wheel:x:10:root,web
audio:x:29:web
web:x:1000:
short:x:44
big:x:99999999999:web
docker:x:998:webmaster,web
29:x:555:";

fn look_up(spec: &str) -> Result<(u32, u32, Vec<u32>, String), UnknownUser> {
    resolve_in(spec, PASSWD, GROUP)
        .map(|i| (i.uid, i.gid, i.groups, String::from_utf8(i.home).unwrap()))
}

#[test]
fn users_and_groups_as_container_engines_resolve_them() {
    let cases: &[(&str, u32, u32, &[u32], &str)] = &[
        ("", 0, 0, &[10], "/root"),
        ("root", 0, 0, &[10], "/root"),
        ("0", 0, 0, &[10], "/root"),
        ("web", 1000, 1000, &[10, 29, 998], "/home/web"),
        ("1000", 1000, 1000, &[10, 29, 998], "/home/web"),
        ("web:", 1000, 1000, &[10, 29, 998], "/home/web"),
        ("web:audio", 1000, 29, &[], "/home/web"),
        ("web:4242", 1000, 4242, &[], "/home/web"),
        (":audio", 0, 29, &[], "/root"),
        ("77", 77, 78, &[], "/odd"),
        // A number is never a user's name: the user named 1234 has another ID.
        ("1234", 1234, 0, &[], "/"),
        ("web:29", 1000, 29, &[], "/home/web"),
        ("homeless", 5, 5, &[], "/"),
        ("4711", 4711, 0, &[], "/"),
        ("4711:12", 4711, 12, &[], "/"),
    ];
    for (spec, uid, gid, groups, home) in cases {
        let want = Ok((*uid, *gid, groups.to_vec(), (*home).to_owned()));
        assert_eq!(look_up(spec), want, "{spec:?}");
    }
}

#[test]
fn unknown_users_and_groups_are_named() {
    assert_eq!(look_up("bob"), Err(UnknownUser::User("bob".into())));
    assert_eq!(look_up("also"), Err(UnknownUser::User("also".into())));
    assert_eq!(look_up("-1"), Err(UnknownUser::User("-1".into())));
    assert_eq!(look_up("web:nogroup"), Err(UnknownUser::Group("nogroup".into())));
    assert_eq!(look_up("web:big"), Err(UnknownUser::Group("big".into())));
    assert_eq!(resolve_in("web", b"", b""), Err(UnknownUser::User("web".into())));
}

proptest! {
    #[test]
    fn garbage_never_panics(spec in ".*", passwd: Vec<u8>, group: Vec<u8>) {
        let _ = resolve_in(&spec, &passwd, &group);
    }

    #[test]
    fn any_entry_is_found(name in "[a-z_][a-z0-9_-]{0,30}", uid in 0..u32::MAX, gid in 0..u32::MAX) {
        let passwd = format!("junk\n{name}:x:{uid}:{gid}::/h:/bin/sh\n");
        let found = resolve_in(&name, passwd.as_bytes(), b"").unwrap();
        prop_assert_eq!((found.uid, found.gid), (uid, gid));
    }
}

#[test]
fn a_number_that_is_no_id_is_out_of_range() {
    for number in ["4294967295", "4294967296", "99999999999999999999"] {
        assert_eq!(look_up(number), Err(UnknownUser::UserRange(number.into())));
        assert_eq!(look_up(&format!("web:{number}")), Err(UnknownUser::GroupRange(number.into())));
    }
    assert_eq!(look_up("4294967294").unwrap().0, 4_294_967_294);
    let message = look_up("4294967295").unwrap_err().to_string();
    assert_eq!(message, "user 4294967295 is out of range: a number is 0 to 4294967294");
}
