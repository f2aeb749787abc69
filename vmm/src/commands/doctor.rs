//! `boxlite-vmm doctor`: checks whether this machine can run boxes, and says how to fix any problem.

mod mac;

use std::path::{Path, PathBuf};

use anyhow::Result;
use boxlite_runtime::mac::Facts;
use boxlite_runtime::nested::{self, InnerLauncher, detect::Virtualization};
use boxlite_runtime::{Arch, Error, Home};
use clap::Args;
use rustix::fs::{Access, access, statvfs};
use serde::Serialize;

use crate::exit::FAILED;
use crate::global::Global;
use crate::human;
use crate::out::{self, Format};
use crate::table::plain;
use crate::words;

/// Free space below which `doctor` prints a note.
const LITTLE_ROOM: u64 = 2 << 30;

/// Free space below which boxes cannot run.
const NO_ROOM: u64 = 64 << 20;

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Output format: for people or for programs
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Boxes run, with a limitation.
    Note,
    /// Boxes cannot run.
    Fail,
}

/// The finding of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    message: String,
    /// What to do, best first.
    remedies: Vec<String>,
}

impl Finding {
    fn new(check: &'static str, verdict: Verdict, message: impl Into<String>) -> Self {
        Self { check, verdict, message: message.into(), remedies: Vec::new() }
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedies.push(remedy.into());
        self
    }
}

/// The report for programs.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether boxes can run.
    ok: bool,
    /// The version of this program.
    version: &'static str,
    checks: Vec<Finding>,
}

pub(crate) fn doctor(global: &Global, args: &Doctor) -> Result<u8> {
    let (inner, bad_launcher) = match InnerLauncher::from_env() {
        Ok(inner) => (inner, None),
        Err(e) => {
            let remedy = format!("name another launcher, or unset {}", nested::LAUNCHER_VARIABLE);
            let finding =
                Finding::new("launcher of the software host", Verdict::Fail, e.to_string());
            (None, Some(finding.remedy(remedy)))
        }
    };
    let mut checks = Vec::from_iter(bad_launcher);
    let virtualization = virtualization(inner.as_ref());
    // What macOS lacks for its hypervisor matters as much as that does.
    let lacking = virtualization.verdict;
    checks.extend(Facts::detect().iter().flat_map(|facts| mac::findings(facts, lacking)));
    checks.extend([virtualization, guest_files(inner.as_ref())]);
    checks.extend(home(global));
    checks.push(temp());
    checks.extend(first_box(&checks));
    let ok = checks.iter().all(|finding| finding.verdict != Verdict::Fail);
    let report = Report { ok, version: env!("CARGO_PKG_VERSION"), checks };
    match args.format {
        Format::Json => out::json_pretty(&report)?,
        Format::Table => out::print(text(&report))?,
    }
    Ok(if ok { 0 } else { FAILED })
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.checks {
        let mark = out::mark(match finding.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Note => "note",
            Verdict::Fail => "FAIL",
        });
        let lines: Vec<_> = finding.message.lines().map(plain).collect();
        text += &format!("{mark}  {}: {}\n", finding.check, lines.join("\n      "));
        for remedy in &finding.remedies {
            text += &format!("      -> {}\n", plain(remedy));
        }
    }
    let can = if report.ok { "can run here" } else { "cannot run here yet" };
    text + &format!("\nBoxes {can}.\n")
}

/// Where boxes run.
fn virtualization(inner: Option<&InnerLauncher>) -> Finding {
    if let Some(inner) = inner.filter(|inner| inner.is_foreign()) {
        return judge_foreign(inner, nested::find_qemu(inner.arch));
    }
    let release = rustix::system::uname();
    let is_wsl = is_wsl(&release.release().to_string_lossy());
    let found = Virtualization::detect();
    let software = match nested::has_launcher(inner) {
        true => nested::find_qemu(Arch::HOST).map_or(SoftHost::NoQemu, SoftHost::Qemu),
        false => SoftHost::NoLauncher,
    };
    judge(&found, is_wsl, nested::HostEnvironment::detect().is_nested(), software)
}

/// Whether the kernel is that of the Windows Subsystem for Linux, by its release.
fn is_wsl(release: &str) -> bool {
    release.to_ascii_lowercase().contains("microsoft")
}

/// What the software host has of what it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
enum SoftHost {
    Qemu(PathBuf),
    NoQemu,
    /// Nor is QEMU looked for.
    NoLauncher,
}

fn judge(found: &Virtualization, is_wsl: bool, inside: bool, software: SoftHost) -> Finding {
    const CHECK: &str = "virtualization";
    if *found == Virtualization::Hardware {
        let message = if inside { "in the software host".into() } else { found.to_string() };
        return Finding::new(CHECK, Verdict::Ok, message);
    }
    let (verdict, how) = match &software {
        SoftHost::Qemu(qemu) => (
            Verdict::Note,
            format!("; boxes run in the software host, which is slower ({})", qemu.display()),
        ),
        SoftHost::NoQemu => {
            (Verdict::Fail, "; without QEMU, boxes cannot run in the software host either".into())
        }
        SoftHost::NoLauncher => (Verdict::Fail, String::new()),
    };
    let wsl = if is_wsl { " (in WSL)" } else { "" };
    let mut finding = Finding::new(CHECK, verdict, format!("{found}{wsl}{how}"));
    // In WSL, too, /dev/kvm may exist without permission for this user.
    let is_closed = *found == Virtualization::NoPermission;
    if is_wsl && !is_closed {
        finding = finding.remedy(
            "WSL needs version 2 on Windows 11, and nestedVirtualization=true under [wsl2] in \
             %UserProfile%\\.wslconfig; then run `wsl --shutdown` in Windows and start WSL again",
        );
    } else if let Some(remedy) = found.remedy() {
        finding = finding.remedy(remedy);
    }
    match software {
        SoftHost::Qemu(_) | SoftHost::NoLauncher => finding,
        SoftHost::NoQemu => finding.remedy(format!(
            "or let boxes run in the software host: {}",
            nested::Error::NoQemu(Arch::HOST)
        )),
    }
}

/// Boxes of another architecture than this machine's, which run in the software host only.
fn judge_foreign(inner: &InnerLauncher, qemu: Option<PathBuf>) -> Finding {
    const CHECK: &str = "virtualization";
    match qemu {
        Some(qemu) => {
            let how = format!("{inner}: boxes run in the software host ({})", qemu.display());
            Finding::new(CHECK, Verdict::Note, how)
        }
        None => {
            let how = format!("{inner}: without QEMU for {}, boxes cannot run", inner.arch);
            let remedy = nested::Error::NoQemu(inner.arch).to_string();
            Finding::new(CHECK, Verdict::Fail, how).remedy(remedy)
        }
    }
}

fn guest_files(inner: Option<&InnerLauncher>) -> Finding {
    const CHECK: &str = "guest files";
    let found = nested::locate_guest_files(inner)
        .and_then(|files| files.verify().map(|()| files).map_err(Error::from));
    match found {
        Ok(files) => {
            let message = format!(
                "Linux {} for {}, agent {}, in {}",
                files.manifest.kernel_release,
                files.manifest.arch,
                files.manifest.agent_version,
                files.dir.display()
            );
            Finding::new(CHECK, Verdict::Ok, message)
        }
        Err(e) => failure(CHECK, &e),
    }
}

/// An error of the library, with its remedy in the command line's words.
fn failure(check: &'static str, error: &Error) -> Finding {
    let finding = Finding::new(check, Verdict::Fail, error.message());
    error.remedy().iter().fold(finding, |finding, remedy| finding.remedy(words::remedy(remedy)))
}

fn home(global: &Global) -> Vec<Finding> {
    const CHECK: &str = "home";
    let home = match Home::open(global.home.clone()) {
        Ok(home) => home,
        Err(e) => {
            return vec![
                Finding::new(CHECK, Verdict::Fail, words::error(&e))
                    .remedy("choose another folder: --home DIR, or BOXLITE_HOME=DIR"),
            ];
        }
    };
    let another = "or choose another folder: --home DIR, or BOXLITE_HOME=DIR";
    let remedies = ["free some: boxlite-vmm prune, boxlite-vmm image prune --all", another];
    vec![room(CHECK, home.path(), &remedies)]
}

fn temp() -> Finding {
    let remedies = ["free some there, or choose another folder: TMPDIR=DIR"];
    room("temporary files", &std::env::temp_dir(), &remedies)
}

/// How long the first box takes on this machine, if that was measured.
fn first_box(checks: &[Finding]) -> Option<Finding> {
    let verdict = |check| checks.iter().find(|it| it.check == check).map(|it| it.verdict);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let hardware = match verdict("virtualization")? {
        Verdict::Ok => true,
        Verdict::Note => false,
        Verdict::Fail => return None,
    };
    Some(judge_first_box(verdict("guest files") == Some(Verdict::Ok), hardware, cores))
}

/// The times are those of a machine with two cores and without hardware virtualization.
fn judge_first_box(guest_files: bool, hardware: bool, cores: usize) -> Finding {
    const CHECK: &str = "first box";
    if !guest_files {
        let message = format!(
            "guest files are built first: on two cores, from a fresh clone to the first box took \
             13 min 42 s, 8 min 21 s of them for the kernel, which is built once (here: {cores} cores)"
        );
        return Finding::new(CHECK, Verdict::Note, message);
    }
    let once = "fetching a larger image and unpacking it into its disk is done once for each image";
    let message = match hardware {
        true => once.to_owned(),
        false => format!(
            "12 s with a small image in a new home, on two cores (here: {cores}): the software host \
             starts, and its QEMU emulates every instruction; {once}"
        ),
    };
    Finding::new(CHECK, Verdict::Ok, message)
}

/// Checks that a folder is writable, and its free space.
fn room(check: &'static str, path: &Path, remedies: &[&str]) -> Finding {
    let shown = path.display();
    if let Err(e) = access(path, Access::WRITE_OK | Access::EXEC_OK) {
        let e = std::io::Error::from(e);
        let finding = Finding::new(check, Verdict::Fail, format!("{shown} cannot be used: {e}"));
        return remedies.iter().skip(1).fold(finding, |finding, remedy| finding.remedy(*remedy));
    }
    let free = match statvfs(path) {
        Ok(fs) => fs.f_bavail.saturating_mul(fs.f_frsize),
        Err(e) => return Finding::new(check, Verdict::Fail, format!("{shown}: {e}")),
    };
    judge_room(check, &shown.to_string(), free, remedies)
}

fn judge_room(check: &'static str, path: &str, free: u64, remedies: &[&str]) -> Finding {
    let (verdict, how) = match free {
        ..NO_ROOM => (Verdict::Fail, ": the disk is full"),
        NO_ROOM..LITTLE_ROOM => (Verdict::Note, ": little room"),
        _ => (Verdict::Ok, ""),
    };
    let finding = Finding::new(check, verdict, format!("{path}, {} free{how}", human::bytes(free)));
    match verdict {
        Verdict::Ok => finding,
        _ => remedies.iter().fold(finding, |finding, remedy| finding.remedy(*remedy)),
    }
}

#[cfg(test)]
mod tests {
    use boxlite_runtime::mac::Problem;

    use super::*;

    #[test]
    fn every_lack_of_virtualization_has_its_remedy() {
        use Virtualization as V;
        let qemu = || SoftHost::Qemu(PathBuf::from("/usr/bin/qemu"));
        let said = |found: &V, is_wsl, software| {
            let finding = judge(found, is_wsl, false, software);
            (finding.verdict, finding.message, finding.remedies.join("\n"))
        };
        let (verdict, _, remedies) = said(&V::Hardware, true, SoftHost::NoQemu);
        assert_eq!((verdict, &*remedies), (Verdict::Ok, ""));

        let (verdict, _, remedies) = said(&V::NoPermission, true, qemu());
        assert_eq!(verdict, Verdict::Note);
        assert!(remedies.contains("usermod -aG kvm"), "{remedies}");

        let (verdict, message, remedies) = said(&V::Missing, true, SoftHost::NoQemu);
        assert_eq!(verdict, Verdict::Fail);
        assert!(message.contains("WSL"), "{message}");
        assert!(remedies.contains("nestedVirtualization=true"), "{remedies}");
        assert!(remedies.contains("apt-get install qemu-system-x86"), "{remedies}");

        let (verdict, message, remedies) = said(&V::Paravirtual, false, qemu());
        assert_eq!(verdict, Verdict::Note);
        assert!(message.contains("slower"), "{message}");
        assert!(remedies.contains("nested virtualization"), "{remedies}");
        assert!(!remedies.contains("WSL"), "{remedies}");

        let unsigned = V::Mac(Problem::NotEntitled("/opt/boxlite-vmm".into()));
        let (verdict, message, remedies) = said(&unsigned, false, SoftHost::NoLauncher);
        assert_eq!(verdict, Verdict::Fail);
        assert!(message.contains("com.apple.security.hypervisor"), "{message}");
        assert_eq!(remedies, "sign it: cargo xtask sign '/opt/boxlite-vmm'");
    }

    #[test]
    fn boxes_of_another_architecture_need_its_qemu() {
        let inner = InnerLauncher { path: "/opt/boxlite-vmm".into(), arch: Arch::Aarch64 };
        let found = judge_foreign(&inner, Some("/usr/bin/qemu-system-aarch64".into()));
        assert_eq!(found.verdict, Verdict::Note);
        assert!(found.message.contains("aarch64: boxes run in the software host"), "{found:?}");
        let missing = judge_foreign(&inner, None);
        assert_eq!(missing.verdict, Verdict::Fail);
        assert!(missing.remedies[0].contains("qemu-system-arm"), "{missing:?}");
    }

    #[test]
    fn the_time_of_the_first_box_has_its_reason() {
        let said = |guest, hardware| judge_first_box(guest, hardware, 8).message;
        for missing in [said(false, true), said(false, false)] {
            assert!(missing.contains("8 min 21 s") && missing.contains("kernel"), "{missing}");
        }
        let software = said(true, false);
        assert!(software.contains("12 s") && software.contains("software host"), "{software}");
        // There is no measurement for hardware virtualization.
        let hardware = said(true, true);
        assert!(!hardware.contains(" s ") && hardware.contains("once"), "{hardware}");
    }

    #[test]
    fn wsl_is_recognized_by_its_kernel() {
        assert!(is_wsl("5.15.153.1-microsoft-standard-WSL2"));
        assert!(is_wsl("4.4.0-19041-Microsoft"));
        assert!(!is_wsl("6.1.0-18-amd64"));
    }

    #[test]
    fn a_full_disk_is_a_failure_and_little_room_is_not() {
        let verdict = |free| judge_room("home", "/x", free, &["free some"]);
        assert_eq!(verdict(0).verdict, Verdict::Fail);
        assert!(verdict(0).message.contains("full"));
        assert_eq!(verdict(1 << 30).verdict, Verdict::Note);
        assert_eq!(verdict(1 << 30).remedies, ["free some"]);
        assert_eq!(verdict(1 << 40).verdict, Verdict::Ok);
        assert!(verdict(1 << 40).remedies.is_empty());
    }

    #[test]
    fn a_folder_that_is_not_there_cannot_be_used() {
        let finding = room("home", Path::new("/no/such/folder"), &["a", "b"]);
        assert_eq!((finding.verdict, &*finding.remedies), (Verdict::Fail, &["b".to_owned()][..]));
        let here = tempfile::tempdir().unwrap();
        assert!(room("home", here.path(), &[]).message.contains(" free"));
    }

    #[test]
    fn people_and_programs_read_the_same() {
        let finding = Finding::new("home", Verdict::Fail, "a\nb").remedy("c");
        let report = Report { ok: false, version: "1", checks: vec![finding] };
        let text = text(&report);
        assert_eq!(
            console::strip_ansi_codes(&text),
            "FAIL  home: a\n      b\n      -> c\n\nBoxes cannot run here yet.\n"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["checks"][0]["verdict"], "fail");
        assert_eq!(json["checks"][0]["remedies"][0], "c");
    }
}
