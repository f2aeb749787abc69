//! Remedies of errors, as data: the program that shows an error words its remedy. `Display` has an embedder's words.

use std::fmt;

use boxlite_rootfs_builder::Remedy as ImageRemedy;
use serde::{Deserialize, Serialize};

/// What to do about an [`Error`](crate::Error) or a [`Problem`](crate::Problem). `Display` names the library's API; a
/// program with commands of its own words the remedy with [`Error::worded`](crate::Error::worded).
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
    StopBoxOrForce {
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
    /// Give a longer prefix of the ID.
    MoreOfId,
    /// Free space on the home's disk, or choose another home.
    FreeRoom,
    /// Free space on the host's disk, then start the box again.
    FreeRoomAndStart,
    /// Give the box more memory.
    MoreMemory,
    /// Read the guest's console, or raise the timeout.
    LookAtConsole,
    /// Give a command.
    GiveCommand,
    /// Copy the files into the box.
    CopyFiles,
    /// Save the image with its name, or import it under one.
    NameOnImport,
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
    /// Remove the home's database if it is damaged.
    RemakeDatabase,
    /// Report a bug.
    Report,
    /// A remedy in words, outside of the library.
    Other {
        /// The words.
        words: String,
    },
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StartBox { .. } => "start it first (BoxHandle::start)",
            Self::ResumeBox { .. } => "resume it first (BoxHandle::resume)",
            Self::StopBoxOrForce { .. } => {
                "stop it first, or remove it by force (BoxHandle::remove(true))"
            }
            Self::StartAgain => "start it again",
            Self::RemoveOrRename { .. } => "choose another name, or remove it (Runtime::remove)",
            Self::ListBoxes => "Runtime::list has them",
            Self::MoreOfId => "give more of the ID",
            Self::FreeRoom => "free some room there, or choose another home (RuntimeOptions::home)",
            Self::FreeRoomAndStart => "free some room, then start it again",
            Self::MoreMemory => "give it more (BoxOptions::memory_mib)",
            Self::LookAtConsole => {
                "set BoxOptions::console and look into console.log in the box's folder, or give it \
                 more time (BoxOptions::ready_timeout)"
            }
            Self::GiveCommand => "give one",
            Self::CopyFiles => "copy files with BoxHandle::copy_into",
            Self::NameOnImport => "save it with its name, or import it under one (Images::import)",
            Self::SetHome => "set BOXLITE_HOME or HOME, or RuntimeOptions::home",
            Self::SetLauncher => "set BOXLITE_VMM to its path",
            Self::BuildGuestFiles => {
                "build them with 'cargo xtask guest', or set BOXLITE_GUEST_DIR to their folder"
            }
            Self::RebuildGuestFiles => "build the guest files again with 'cargo xtask guest'",
            Self::UseNewerRelease => "use that release, or another home",
            Self::RemakeDatabase => {
                "if it is damaged, remove it: it is made anew from the boxes' folders"
            }
            Self::Report => "please report it",
            Self::Other { words } => words,
        })
    }
}

impl From<ImageRemedy> for Remedy {
    fn from(remedy: ImageRemedy) -> Self {
        match remedy {
            ImageRemedy::NameOnImport => Self::NameOnImport,
            // Its words fit every caller.
            other => Self::Other { words: other.to_string() },
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
            Self::ResumeBox { .. } => Self::StopBoxOrForce { name: name() },
            Self::StopBoxOrForce { .. } => Self::StartAgain,
            Self::StartAgain => Self::RemoveOrRename { name: name() },
            Self::RemoveOrRename { .. } => Self::ListBoxes,
            Self::ListBoxes => Self::MoreOfId,
            Self::MoreOfId => Self::FreeRoom,
            Self::FreeRoom => Self::FreeRoomAndStart,
            Self::FreeRoomAndStart => Self::MoreMemory,
            Self::MoreMemory => Self::LookAtConsole,
            Self::LookAtConsole => Self::GiveCommand,
            Self::GiveCommand => Self::CopyFiles,
            Self::CopyFiles => Self::NameOnImport,
            Self::NameOnImport => Self::SetHome,
            Self::SetHome => Self::SetLauncher,
            Self::SetLauncher => Self::BuildGuestFiles,
            Self::BuildGuestFiles => Self::RebuildGuestFiles,
            Self::RebuildGuestFiles => Self::UseNewerRelease,
            Self::UseNewerRelease => Self::RemakeDatabase,
            Self::RemakeDatabase => Self::Report,
            Self::Report => Self::Other { words: "try later".into() },
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
    fn every_remedy_survives_json() {
        for remedy in Remedy::one_of_each() {
            let json = serde_json::to_string(&remedy).unwrap();
            assert_eq!(serde_json::from_str::<Remedy>(&json).unwrap(), remedy);
        }
    }
}
