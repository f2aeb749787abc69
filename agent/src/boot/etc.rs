//! Writes `hostname`, `hosts` and `resolv.conf` in a box's `/etc`.
//!
//! The files are on the box's disk, and nothing is mounted over them, so a user's edits survive a boot.
//! The agent owns only a part of them:
//!
//! - `hostname` is written at each boot.
//! - `hosts` has a marked part of the agent's, with the `localhost` entries that the rest lacks.
//! - `resolv.conf` is the agent's while its first line says so. At the first boot it replaces the image's
//!   file, which describes the machine where the image was built.

use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use boxlite_proto::network::{HOST_NAMES, NetworkParams};
use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;

/// Longer files are left as they are.
const MAX_LEN: u64 = 1 << 20;

const BEGIN: &str = "# boxlite: these lines are written anew at each boot\n";
const END: &str = "# boxlite: end\n";
const RESOLV_CONF_MARK: &str =
    "# boxlite writes this file anew at each boot, unless this line is removed\n";

/// Extended attribute of a box's root directory: the agent has written `resolv.conf` once.
const CONFIGURED: &str = "trusted.boxlite.resolv_conf";

/// Writes `/etc/hostname` and the agent's part of `/etc/hosts`.
pub(crate) fn write_names(hostname: &str, network: Option<&NetworkParams>) {
    // Images contain the host name of the machine where they were built.
    update("/etc/hostname", |_| Some(format!("{hostname}\n").into_bytes()));
    let lines = hosts_lines(hostname, network);
    update("/etc/hosts", |old| Some(hosts(old, &lines)));
}

/// Writes `/etc/resolv.conf`, unless a user took the file over by removing its first line.
pub(crate) fn write_resolv_conf(network: &NetworkParams, search: &[String]) {
    let mut content = format!("{RESOLV_CONF_MARK}nameserver {}\n", network.gateway);
    if !search.is_empty() {
        let _ = writeln!(content, "search {}", search.join(" "));
    }
    let first = is_first_time();
    update("/etc/resolv.conf", |old| {
        let ours =
            first || old.trim_ascii().is_empty() || old.starts_with(RESOLV_CONF_MARK.as_bytes());
        ours.then(|| content.into_bytes())
    });
}

/// Links `/etc/mtab`, where programs look up mounts, if the image has none.
pub(crate) fn link_mtab() {
    match rustix::fs::symlink("/proc/mounts", "/etc/mtab") {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => crate::log::warn(format_args!("cannot link /etc/mtab: {e}")),
    }
}

/// Whether the agent never wrote `resolv.conf` in this box. Marks the box: the next call returns false.
fn is_first_time() -> bool {
    match rustix::fs::setxattr("/", CONFIGURED, b"1", XattrFlags::CREATE) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(e) => {
            crate::log::warn(format_args!("cannot mark the box's disk: {e}"));
            false
        }
    }
}

fn hosts_lines(hostname: &str, network: Option<&NetworkParams>) -> String {
    match network {
        None => format!("127.0.1.1\t{hostname}\n"),
        Some(NetworkParams { address: (own, _), host, .. }) => {
            format!("{own}\t{hostname}\n{host}\t{}\n", HOST_NAMES.join(" "))
        }
    }
}

/// The entries that every `hosts` needs, by the prefix of their address.
const LOCALHOST: [(&str, &str); 2] =
    [("127.", "127.0.0.1\tlocalhost\n"), ("::1", "::1\tlocalhost ip6-localhost ip6-loopback\n")];

/// `old` with the agent's part replaced and the rest unchanged.
fn hosts(old: &[u8], lines: &str) -> Vec<u8> {
    let find = |text: &[u8], what: &str| {
        text.windows(what.len()).position(|window| window == what.as_bytes())
    };
    let begin = find(old, BEGIN);
    let (before, rest) = old.split_at(begin.unwrap_or(old.len()));
    let end = find(rest, END).map_or(rest.len().min(BEGIN.len()), |at| at + END.len());
    let after = rest.get(end..).unwrap_or_default();
    let newline: &[u8] = if before.ends_with(b"\n") || before.is_empty() { b"" } else { b"\n" };
    let rest = [before, newline, after].concat();
    let localhost: String = LOCALHOST
        .iter()
        .filter(|(address, _)| !names_localhost(&rest, address))
        .map(|(_, line)| *line)
        .collect();
    let marked = [BEGIN, &localhost, lines, END].concat();
    [before, newline, marked.as_bytes(), after].concat()
}

/// Whether a line maps `localhost` to an address with this prefix.
fn names_localhost(hosts: &[u8], address: &str) -> bool {
    hosts.split(|byte| *byte == b'\n').any(|line| {
        let line = line.split(|byte| *byte == b'#').next().unwrap_or_default();
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        words.next().is_some_and(|word| word.starts_with(address.as_bytes()))
            && words.any(|name| name.eq_ignore_ascii_case(b"localhost"))
    })
}

fn update(path: &str, edit: impl FnOnce(&[u8]) -> Option<Vec<u8>>) {
    if let Err(e) = try_update(Path::new(path), edit) {
        crate::log::warn(format_args!("cannot write {path}: {e}"));
    }
}

/// Replaces the content of a file with what `edit` returns for it, and creates a missing file. An image may
/// have a FIFO or a device there: the agent neither waits for the one nor writes to the other.
fn try_update(path: &Path, edit: impl FnOnce(&[u8]) -> Option<Vec<u8>>) -> io::Result<()> {
    let mut file = open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_LEN {
        return Ok(());
    }
    let mut old = Vec::new();
    Read::by_ref(&mut file).take(MAX_LEN).read_to_end(&mut old)?;
    if let Some(new) = edit(&old)
        && new != old
    {
        file.write_all_at(&new, 0)?;
        file.set_len(new.len() as u64)?;
    }
    Ok(())
}

/// Opens a file, and creates it if it is missing: where there is a dangling symlink, its target. With
/// systemd, `resolv.conf` is a link into `/run`, which is empty where systemd does not run.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) => {}
        result => return Ok(result?.into()),
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    let target = match std::fs::read_link(path) {
        Ok(target) => folder.join(target),
        Err(_) => path.to_owned(),
    };
    std::fs::create_dir_all(target.parent().unwrap_or(folder))?;
    Ok(rustix::fs::open(path, flags | OFlags::CREATE, Mode::from_raw_mode(0o644))?.into())
}

#[cfg(test)]
mod tests;
