//! Who a command runs as: `name`, `uid`, `name:group` or `uid:gid`, looked up in the box's own
//! `/etc/passwd` and `/etc/group`.
//!
//! The rules are those of container engines: what is a number is never a name; a number needs no entry
//! (its group is then 0, its home `/`); supplementary groups are those that list the user, unless
//! the group is given. Lines that are not entries are skipped.

use std::io::Read;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::process::{Gid, Uid};

/// More than this of a passwd or group file is not looked at.
const MAX_FILE: u64 = 8 << 20;

/// The kernel's limit on supplementary groups.
const MAX_GROUPS: usize = 65536;

/// A resolved user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: Vec<u8>,
}

impl Identity {
    pub(crate) fn uid(&self) -> Uid {
        Uid::from_raw(self.uid)
    }

    pub(crate) fn gid(&self) -> Gid {
        Gid::from_raw(self.gid)
    }
}

/// No such user or group in the box.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnknownUser {
    #[error("no user {0:?} in the box's /etc/passwd; give a user that exists there, or a number")]
    User(String),
    #[error("no group {0:?} in the box's /etc/group; give a group that exists there, or a number")]
    Group(String),
}

/// Looks `spec` up in the files of the box.
pub(crate) fn resolve(spec: &str) -> Result<Identity, UnknownUser> {
    resolve_in(spec, &read_table("/etc/passwd"), &read_table("/etc/group"))
}

/// A missing, strange or unreadable file is an empty one: an image without users is no error.
fn read_table(path: &str) -> Vec<u8> {
    let mut table = Vec::new();
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    if let Ok(fd) = rustix::fs::open(path, flags, Mode::empty())
        && let Ok(stat) = rustix::fs::fstat(&fd)
        && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
    {
        let _ = std::fs::File::from(fd).take(MAX_FILE).read_to_end(&mut table);
    }
    table
}

fn resolve_in(spec: &str, passwd: &[u8], group: &[u8]) -> Result<Identity, UnknownUser> {
    let (user, wanted_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };

    let uid = number(user.as_bytes());
    let is_meant = |entry: &PasswdEntry<'_>| match uid {
        // Whoever looks for root by its number must not miss a user who is called 0.
        Some(uid) => entry.uid == uid,
        None => entry.name == user.as_bytes(),
    };
    let entry = entries(passwd).find_map(|entry| PasswdEntry::parse(entry, is_meant));
    let mut identity = match (&entry, uid) {
        (Some(entry), _) => Identity {
            uid: entry.uid,
            gid: entry.gid,
            groups: Vec::new(),
            home: entry.home.to_vec(),
        },
        (None, Some(uid)) => Identity { uid, gid: 0, groups: Vec::new(), home: Vec::new() },
        (None, None) => return Err(UnknownUser::User(user.to_owned())),
    };
    if identity.home.is_empty() {
        identity.home = b"/".to_vec();
    }

    if let Some(wanted) = wanted_group {
        let by_name = || {
            let mut groups = entries(group).filter_map(GroupEntry::parse);
            groups.find(|entry| entry.name == wanted.as_bytes()).map(|entry| entry.gid)
        };
        identity.gid = number(wanted.as_bytes())
            .or_else(by_name)
            .ok_or_else(|| UnknownUser::Group(wanted.to_owned()))?;
    } else if let Some(entry) = entry {
        identity.groups = entries(group)
            .filter_map(GroupEntry::parse)
            .filter(|group| group.members.split(|b| *b == b',').any(|member| member == entry.name))
            .map(|group| group.gid)
            .take(MAX_GROUPS)
            .collect();
    }
    Ok(identity)
}

/// `name:password:uid:gid:comment:home:shell`
struct PasswdEntry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

impl<'a> PasswdEntry<'a> {
    fn parse(line: &'a [u8], wanted: impl Fn(&Self) -> bool) -> Option<Self> {
        let mut fields = line.split(|b| *b == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = number(fields.nth(1)?)?;
        let gid = number(fields.next()?)?;
        let home = fields.nth(1).unwrap_or_default();
        Some(Self { name, uid, gid, home }).filter(wanted)
    }
}

/// `name:password:gid:member,member`
struct GroupEntry<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl<'a> GroupEntry<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|b| *b == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = number(fields.nth(1)?)?;
        let members = fields.next().unwrap_or_default();
        Some(Self { name, gid, members })
    }
}

fn entries(table: &[u8]) -> impl Iterator<Item = &[u8]> {
    table
        .split(|b| *b == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"))
}

/// A decimal ID; the largest one means "none" to the kernel.
fn number(digits: &[u8]) -> Option<u32> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|id| *id != u32::MAX)
}

#[cfg(test)]
mod tests {
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
            // The user is called so; the number is another's, and nobody's.
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
    fn what_is_not_there_is_named() {
        assert_eq!(look_up("bob"), Err(UnknownUser::User("bob".into())));
        assert_eq!(look_up("also"), Err(UnknownUser::User("also".into())));
        assert_eq!(look_up("-1"), Err(UnknownUser::User("-1".into())));
        assert_eq!(look_up("4294967295"), Err(UnknownUser::User("4294967295".into())));
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
}
