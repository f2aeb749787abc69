//! Paths and file names in the store; nothing is opened here.

use std::path::PathBuf;

use crate::format::Digest;

/// Paths in the store.
#[derive(Clone, Debug)]
pub(super) struct Folders {
    pub(super) root: PathBuf,
}

impl Folders {
    pub(super) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(super) fn disks(&self) -> PathBuf {
        self.root.join("disks")
    }

    pub(super) fn refs(&self) -> PathBuf {
        self.root.join("refs")
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.root.join(".lock")
    }

    pub(super) fn import_lock(&self) -> PathBuf {
        self.root.join(".import.lock")
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join(digest.blob_path())
    }

    pub(super) fn disk(&self, name: &str) -> PathBuf {
        self.disks().join(name)
    }

    pub(super) fn record(&self, name: &str) -> PathBuf {
        self.refs().join(format!("{}.json", record_stem(name)))
    }
}

/// File name of a record, without its extension.
pub(super) fn record_stem(name: &str) -> String {
    Digest::sha256(name.as_bytes()).hex().to_owned()
}

/// Whether this is the name of a disk (and so no path).
pub(super) fn is_disk_name(name: &str) -> bool {
    name.strip_suffix(".raw").is_some_and(|stem| {
        !stem.is_empty() && stem.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
    })
}
