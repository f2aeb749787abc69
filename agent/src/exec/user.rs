//! Resolves the user of a command: `name`, `uid`, `name:group` or `uid:gid`, looked up in the box's
//! `/etc/passwd` and `/etc/group`.
//!
//! The rules are those of container engines. A number is never a name, and needs no entry (its group is
//! then 0, its home `/`). Supplementary groups are those that list the user, unless a group is given. Lines
//! that are not entries are skipped.

use std::io::Read;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::process::{Gid, Uid};

/// Limit on the bytes of a passwd or group file that are read.
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

/// No such user or group in the box, or a number that is no ID.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnknownUser {
    #[error("no user {0:?} in the box's /etc/passwd; give a user that exists there, or a number")]
    User(String),
    #[error("no group {0:?} in the box's /etc/group; give a group that exists there, or a number")]
    Group(String),
    #[error("user {0} is out of range: a number is 0 to 4294967294")]
    UserRange(String),
    #[error("group {0} is out of range: a number is 0 to 4294967294")]
    GroupRange(String),
}

impl UnknownUser {
    fn user(user: &str) -> Self {
        if is_decimal(user.as_bytes()) {
            Self::UserRange(user.into())
        } else {
            Self::User(user.into())
        }
    }

    fn group(group: &str) -> Self {
        if is_decimal(group.as_bytes()) {
            Self::GroupRange(group.into())
        } else {
            Self::Group(group.into())
        }
    }
}

/// Looks `spec` up in the files of the box.
pub(crate) fn resolve(spec: &str) -> Result<Identity, UnknownUser> {
    resolve_in(spec, &read_table("/etc/passwd"), &read_table("/etc/group"))
}

/// Reads a passwd or group file. A missing or unreadable file, and anything but a regular file, counts as
/// empty: an image without users is no error.
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
        // A number is compared with IDs only, so that a user named `0` is not taken for root.
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
        (None, None) => return Err(UnknownUser::user(user)),
    };
    if identity.home.is_empty() {
        identity.home = b"/".to_vec();
    }

    if let Some(wanted) = wanted_group {
        let by_name = || {
            let mut groups = entries(group).filter_map(GroupEntry::parse);
            groups.find(|entry| entry.name == wanted.as_bytes()).map(|entry| entry.gid)
        };
        identity.gid =
            number(wanted.as_bytes()).or_else(by_name).ok_or_else(|| UnknownUser::group(wanted))?;
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

fn is_decimal(text: &[u8]) -> bool {
    text.iter().all(u8::is_ascii_digit)
}

/// Parses a decimal ID. The largest `u32` is none, because it means "no ID" to the kernel.
fn number(digits: &[u8]) -> Option<u32> {
    if !is_decimal(digits) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|id| *id != u32::MAX)
}

#[cfg(test)]
mod tests;
