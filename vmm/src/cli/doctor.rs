//! `boxlite-vmm doctor`: what this machine can do, and what to do about what it cannot.

use anyhow::Result;
use boxlite_kernel::GuestFiles;
use indicatif::BinaryBytes;
use rustix::fs::statvfs;

use super::args::Global;
use crate::runtime::Home;
use crate::softhost;
use crate::softhost::detect::Virtualization;

/// Less free room than this is worth a word.
const LITTLE_ROOM: u64 = 2 << 30;

/// How a check went.
enum Finding {
    Good(String),
    /// Boxes run, but not as well as they could.
    Note(String),
    /// Boxes do not run.
    Bad(String),
}

pub(super) fn doctor(global: &Global) -> Result<u8> {
    let checks = [
        ("virtualization", virtualization()),
        ("guest files", guest_files()),
        ("home", home(global)),
    ];
    let mut bad = false;
    for (name, finding) in checks {
        let (mark, text) = match finding {
            Finding::Good(text) => ("ok", text),
            Finding::Note(text) => ("note", text),
            Finding::Bad(text) => {
                bad = true;
                ("FAIL", text)
            }
        };
        println!("{mark:4}  {name}: {text}");
    }
    println!("\n{}", if bad { "Boxes cannot run here yet." } else { "Boxes can run here." });
    Ok(bad.into())
}

fn virtualization() -> Finding {
    let found = Virtualization::detect();
    let remedy = found.remedy().map(|remedy| format!("\n      {remedy}")).unwrap_or_default();
    match (&found, softhost::find_qemu()) {
        (Virtualization::Hardware, _) if softhost::is_inside() => {
            Finding::Good("in the software host".into())
        }
        (Virtualization::Hardware, _) => Finding::Good(found.to_string()),
        (_, Some(qemu)) => Finding::Note(format!(
            "{found}; boxes run in the software host, which is slower ({}){remedy}",
            qemu.display()
        )),
        (_, None) => Finding::Bad(format!(
            "{found}{remedy}\n      or let boxes run in the software host: {}",
            softhost::Error::NoQemu
        )),
    }
}

fn guest_files() -> Finding {
    let found = GuestFiles::locate().and_then(|files| files.verify().map(|()| files));
    match found {
        Ok(files) => Finding::Good(format!(
            "Linux {}, agent {}, in {}",
            files.manifest.kernel_release,
            files.manifest.agent_version,
            files.dir.display()
        )),
        Err(e) => Finding::Bad(e.to_string()),
    }
}

fn home(global: &Global) -> Finding {
    let home = match Home::open(global.home.clone()) {
        Ok(home) => home,
        Err(e) => return Finding::Bad(e.to_string()),
    };
    let path = home.path().display();
    match statvfs(home.path()) {
        Ok(fs) => {
            let free = fs.f_bavail.saturating_mul(fs.f_frsize);
            let text = format!("{path}, {} free", BinaryBytes(free));
            if free < LITTLE_ROOM {
                Finding::Note(format!("{text}: little room; `boxlite-vmm image rm` frees some"))
            } else {
                Finding::Good(text)
            }
        }
        Err(e) => Finding::Bad(format!("{path}: {e}")),
    }
}
