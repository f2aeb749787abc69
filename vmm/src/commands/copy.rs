//! `boxlite-vmm cp`: copies files between a box and this machine.

// The doc comments are help texts, where brackets mark optional parts.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Result, bail};
use boxlite_runtime::{BoxHandle, Copied, CopyOptions};
use clap::Args;
use tokio::io::AsyncReadExt;

use crate::global::Global;
use crate::table::plain;
use crate::{human, out};

pub(crate) const HELP: &str = "\
Examples:
  boxlite-vmm cp ./src dev:/work                 copy a file or folder into a box
  boxlite-vmm cp dev:/var/log/app.log .          copy out of a box
  boxlite-vmm cp dev:/etc - | tar tv             write a tar to standard output
  tar c . | boxlite-vmm cp - dev:/work           unpack a tar, compressed or not, in a box
  boxlite-vmm cp ./src/. dev:/work               copy a folder's contents only

Start a local path that contains a colon with / or . (./a:b). As with `cp -r`, a copy goes into the
destination if that is a folder, and otherwise takes its name. Modes, times, links and sparse files are kept,
and owners with -a; without -a, files belong to root in the box, and to you here. A tar's owners are always kept.";

/// Bytes of one read or write.
const CHUNK: usize = 256 << 10;

#[derive(Debug, Args)]
pub(crate) struct Copy {
    /// Keep numeric owner IDs and file capabilities
    #[arg(long, short)]
    archive: bool,
    /// If SOURCE is a symlink, copy its target
    #[arg(long, short = 'L')]
    follow_link: bool,
    /// Do not print how much was copied
    #[arg(long, short)]
    quiet: bool,
    /// BOX:PATH, a local path, or - for a tar on standard input, which may be compressed
    source: Endpoint,
    /// BOX:PATH, a local path, or - for a tar on standard output
    dest: Endpoint,
}

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Endpoint {
    /// A path in a box.
    InBox { name: String, path: String },
    /// A path of this machine.
    Host(PathBuf),
    /// Standard input or output.
    Stdio,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Stdio);
        }
        let is_path = text.starts_with(['/', '.']);
        match text.split_once(':') {
            Some((name, path)) if !is_path => match (name, path) {
                ("", _) => Err("there is no box before the colon, as in BOX:/path".into()),
                (_, "") => Err("there is no path after the colon, as in BOX:/path".into()),
                _ => Ok(Self::InBox { name: name.to_owned(), path: path.to_owned() }),
            },
            _ if text.is_empty() => Err("the path is empty".into()),
            _ => Ok(Self::Host(text.into())),
        }
    }
}

pub(crate) async fn copy(global: &Global, args: &Copy) -> Result<u8> {
    let (sandbox, copied) = match (&args.source, &args.dest) {
        (Endpoint::InBox { .. }, Endpoint::InBox { .. }) => {
            bail!(
                "source and destination are both in boxes: copy to this machine first, or pipe: \
                 cp A:PATH - | cp - B:PATH"
            )
        }
        (Endpoint::InBox { name, path }, dest) => {
            let sandbox = global.runtime().await?.get(name).await?;
            let copied = args.copy_out(&sandbox, path, dest.host()).await?;
            (sandbox, copied)
        }
        (source, Endpoint::InBox { name, path }) => {
            let sandbox = global.runtime().await?.get(name).await?;
            let copied = args.copy_into(&sandbox, source.host(), path).await?;
            (sandbox, copied)
        }
        _ => bail!("neither source nor destination is in a box: one of them must be BOX:PATH"),
    };
    for skipped in &copied.skipped {
        out::note(format_args!(
            "boxlite-vmm: {}: {}: {}",
            sandbox.name(),
            skipped.name,
            plain(&skipped.reason)
        ));
    }
    let more = copied.skipped_count.saturating_sub(copied.skipped.len() as u64);
    if more > 0 {
        out::note(format_args!("boxlite-vmm: {}: and {more} more like these", sandbox.name()));
    }
    if !args.quiet && copied.entries > 0 && io::stderr().is_terminal() {
        let what = if copied.entries == 1 { "entry" } else { "entries" };
        out::note(format_args!("copied {} {what}, {}", copied.entries, human::bytes(copied.bytes)));
    }
    Ok(0)
}

impl Endpoint {
    /// The path of this machine; none for a standard stream.
    fn host(&self) -> Option<&Path> {
        match self {
            Self::Host(path) => Some(path),
            _ => None,
        }
    }
}

impl Copy {
    /// Whether the copy writes files of this machine.
    pub(crate) fn writes_files(&self) -> bool {
        self.dest.host().is_some()
    }

    fn options(&self) -> CopyOptions {
        CopyOptions::default().follow_links(self.follow_link).keep_ownership(self.archive)
    }

    /// Copies from a box to a path of this machine, or as a tar to standard output.
    async fn copy_out(&self, sandbox: &BoxHandle, from: &str, to: Option<&Path>) -> Result<Copied> {
        if let Some(to) = to {
            return Ok(sandbox.copy_out_with(from, to, self.options()).await?);
        }
        if io::stdout().is_terminal() {
            bail!("cannot write a tar to a terminal: redirect standard output");
        }
        let mut tar = sandbox.copy_out_tar(from, self.options()).await?;
        let mut bytes = Vec::with_capacity(CHUNK);
        while tar.read_buf(&mut bytes).await? > 0 {
            out::data(&bytes)?;
            bytes.clear();
        }
        Ok(Copied::default())
    }

    /// Copies a path of this machine, or a tar from standard input, into a box.
    async fn copy_into(
        &self,
        sandbox: &BoxHandle,
        from: Option<&Path>,
        to: &str,
    ) -> Result<Copied> {
        if let Some(from) = from {
            return Ok(sandbox.copy_into_with(from, to, self.options()).await?);
        }
        if io::stdin().is_terminal() {
            bail!("cannot read a tar from a terminal: redirect standard input");
        }
        Ok(sandbox.copy_into_tar(tokio::io::stdin(), to, self.options()).await?)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Subcommand};

    #[test]
    fn only_a_copy_to_a_local_path_writes_files() {
        let writes_files = |source: &str, dest: &str| {
            let cli = Cli::parse_from(["x", "cp", source, dest]);
            let Subcommand::Cp(copy) = cli.command else { panic!() };
            copy.writes_files()
        };
        assert!(writes_files("dev:/etc", "."));
        assert!(!writes_files("dev:/etc", "-") && !writes_files("-", "dev:/etc"));
        assert!(!writes_files("./etc", "dev:/"));
    }

    #[test]
    fn an_endpoint_is_a_path_a_box_or_a_stream() {
        let endpoint = |text: &str| text.parse::<Endpoint>();
        let in_box = |name: &str, path: &str| {
            Ok(Endpoint::InBox { name: name.to_owned(), path: path.to_owned() })
        };
        assert_eq!(endpoint("-"), Ok(Endpoint::Stdio));
        assert_eq!(endpoint("dev:/etc/a:b"), in_box("dev", "/etc/a:b"));
        assert_eq!(endpoint("dev:relative"), in_box("dev", "relative"));
        for path in ["/a:b", "./a:b", "../a", "a", "a/b", "."] {
            assert_eq!(endpoint(path), Ok(Endpoint::Host(path.into())));
        }
        for bad in ["", ":", ":/a", "dev:"] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
    }
}
