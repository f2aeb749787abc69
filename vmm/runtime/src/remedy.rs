//! Remedies of errors, as data: the program that shows an error words its remedy. `Display` has an embedder's words.

use std::fmt;

use boxlite_rootfs_builder::Remedy as ImageRemedy;
use serde::{Deserialize, Serialize};

use crate::nested::LAUNCHER_VARIABLE;

/// What to do about an [`Error`](crate::Error) or a [`Problem`](crate::Problem). `Display` names the library's API; a
/// program with commands of its own words the remedy with [`Error::to_string_with`](crate::Error::to_string_with).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Remedy {
    /// Start the box first.
    StartBox {
        /// Its name.
        name: String,
    },
    /// Resume the box first.
    ResumeBox {
        /// Its name.
        name: String,
    },
    /// Stop the box first, or remove it by force.
    StopOrForceRemove {
        /// Its name.
        name: String,
    },
    /// Start the box again.
    StartAgain,
    /// Choose another name, or remove the box that has this one.
    RemoveOrRename {
        /// The name.
        name: String,
    },
    /// List the boxes.
    ListBoxes,
    /// Use a longer prefix of the ID.
    UseLongerPrefix,
    /// Free space on the home's disk, or choose another home.
    FreeDiskSpace,
    /// Free space on the host's disk, then start the box again.
    FreeDiskSpaceAndStart,
    /// Give the box more memory.
    AddMemory,
    /// Read the guest's console, or raise the timeout.
    ReadConsole,
    /// Give a command.
    GiveCommand,
    /// Copy the files into the box.
    CopyFiles,
    /// Save the image with its name, or import it under one.
    NameOnImport,
    /// Run boxes of this architecture: in the software host, or on this machine if it has that architecture and its
    /// software host has another.
    SetSoftHostLauncher {
        /// The architecture, in OCI's name.
        architecture: String,
    },
    /// Set the home folder.
    SetHome,
    /// Set the path of the `boxlite-vmm` executable.
    SetLauncher,
    /// Build the guest files, or set their folder.
    BuildGuestFiles,
    /// Build the guest files again.
    RebuildGuestFiles,
    /// Use the release that wrote the home, or another home.
    UseNewerRelease,
    /// Remove the home's database if it is damaged; it is rebuilt from the boxes' folders.
    RemoveDatabase,
    /// Start the box again, and record its packets in another file.
    RecordElsewhere,
    /// Record fewer packets.
    RecordLess,
    /// Report a bug.
    ReportBug,
    /// Another remedy, as text. It names no item of the library.
    Other {
        /// The text.
        text: String,
    },
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StartBox { .. } => "start it first (BoxHandle::start)",
            Self::ResumeBox { .. } => "resume it first (BoxHandle::resume)",
            Self::StopOrForceRemove { .. } => {
                "stop it first, or remove it by force (BoxHandle::remove(true))"
            }
            Self::StartAgain => "start it again",
            Self::RemoveOrRename { .. } => "choose another name, or remove it (Runtime::remove)",
            Self::ListBoxes => "list them with Runtime::list",
            Self::UseLongerPrefix => "use a longer prefix of the ID",
            Self::FreeDiskSpace => {
                "free some space there, or choose another home (RuntimeOptions::home)"
            }
            Self::FreeDiskSpaceAndStart => "free some space, then start it again",
            Self::AddMemory => "give it more (BoxOptions::memory_mib)",
            Self::ReadConsole => {
                "set BoxOptions::console and read console.log in the box's folder, or give it \
                 more time (BoxOptions::ready_timeout)"
            }
            Self::GiveCommand => "give one",
            Self::CopyFiles => "copy files with BoxHandle::copy_into",
            Self::NameOnImport => "save it with its name, or import it under one (Images::import)",
            Self::SetSoftHostLauncher { architecture } => {
                return write!(
                    f,
                    "to run {architecture} boxes, set {LAUNCHER_VARIABLE} to a boxlite-vmm for {architecture}, \
                     or unset it if this machine is {architecture} itself, and use a home for {architecture} \
                     boxes (see docs/aarch64.md)"
                );
            }
            Self::SetHome => "set BOXLITE_HOME or HOME, or RuntimeOptions::home",
            Self::SetLauncher => "set BOXLITE_VMM to its path",
            Self::BuildGuestFiles => {
                "build them with 'cargo xtask guest', or set BOXLITE_GUEST_DIR to their folder"
            }
            Self::RebuildGuestFiles => "build the guest files again with 'cargo xtask guest'",
            Self::UseNewerRelease => "use that release, or another home",
            Self::RemoveDatabase => {
                "if it is damaged, remove it: it is rebuilt from the boxes' folders"
            }
            Self::RecordElsewhere => {
                "to keep this part, record in another file (StartOptions::capture) when you start the \
                 box again"
            }
            Self::RecordLess => "record a shorter time, or run tcpdump in the box with a filter",
            Self::ReportBug => "please report it",
            Self::Other { text } => text,
        })
    }
}

impl From<ImageRemedy> for Remedy {
    fn from(remedy: ImageRemedy) -> Self {
        match remedy {
            ImageRemedy::NameOnImport => Self::NameOnImport,
            ImageRemedy::RunBoxesOf { architecture } => Self::SetSoftHostLauncher { architecture },
            // Its words fit every caller.
            other => Self::Other { text: other.to_string() },
        }
    }
}

impl Remedy {
    /// One of each variant, for tests of the words. A new variant does not compile until it is added.
    #[doc(hidden)]
    pub fn one_of_each() -> Vec<Self> {
        let mut all = Vec::new();
        let mut next = Some(Self::StartBox { name: "web".into() });
        while let Some(remedy) = next {
            next = remedy.successor();
            all.push(remedy);
        }
        all
    }

    fn successor(&self) -> Option<Self> {
        let name = || "web".to_owned();
        Some(match self {
            Self::StartBox { .. } => Self::ResumeBox { name: name() },
            Self::ResumeBox { .. } => Self::StopOrForceRemove { name: name() },
            Self::StopOrForceRemove { .. } => Self::StartAgain,
            Self::StartAgain => Self::RemoveOrRename { name: name() },
            Self::RemoveOrRename { .. } => Self::ListBoxes,
            Self::ListBoxes => Self::UseLongerPrefix,
            Self::UseLongerPrefix => Self::FreeDiskSpace,
            Self::FreeDiskSpace => Self::FreeDiskSpaceAndStart,
            Self::FreeDiskSpaceAndStart => Self::AddMemory,
            Self::AddMemory => Self::ReadConsole,
            Self::ReadConsole => Self::GiveCommand,
            Self::GiveCommand => Self::CopyFiles,
            Self::CopyFiles => Self::NameOnImport,
            Self::NameOnImport => Self::SetSoftHostLauncher { architecture: "arm64".into() },
            Self::SetSoftHostLauncher { .. } => Self::SetHome,
            Self::SetHome => Self::SetLauncher,
            Self::SetLauncher => Self::BuildGuestFiles,
            Self::BuildGuestFiles => Self::RebuildGuestFiles,
            Self::RebuildGuestFiles => Self::UseNewerRelease,
            Self::UseNewerRelease => Self::RemoveDatabase,
            Self::RemoveDatabase => Self::RecordElsewhere,
            Self::RecordElsewhere => Self::RecordLess,
            Self::RecordLess => Self::ReportBug,
            Self::ReportBug => Self::Other { text: "try later".into() },
            Self::Other { .. } => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_no_commands_and_flags() {
        for remedy in Remedy::one_of_each() {
            let words = remedy.to_string();
            assert!(!words.is_empty(), "{remedy:?}");
            let commands = ["--", "`", " web", "cp ", "ls "];
            assert!(!commands.iter().any(|command| words.contains(command)), "{words}");
        }
    }

    #[test]
    fn boxes_of_this_machines_architecture_need_no_launcher() {
        for architecture in ["amd64", "arm64"] {
            let remedy = Remedy::SetSoftHostLauncher { architecture: architecture.into() };
            let words = remedy.to_string();
            let set = format!("set {LAUNCHER_VARIABLE} to a boxlite-vmm for {architecture}");
            let unset = format!("unset it if this machine is {architecture} itself");
            assert!(words.contains(&set) && words.contains(&unset), "{words}");
        }
    }

    #[test]
    fn every_remedy_survives_json() {
        for remedy in Remedy::one_of_each() {
            let json = serde_json::to_string(&remedy).unwrap();
            assert_eq!(serde_json::from_str::<Remedy>(&json).unwrap(), remedy);
        }
    }
}
