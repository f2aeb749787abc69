//! Spelling, by `typos` as typos.toml says.
//!
//! Where it is not installed the check is left out. CI installs it once into the cache; without network,
//! the check is left out there, too.

use std::process::Command;

use anyhow::Result;

use crate::build;
use crate::check::report::{Outcome, passes};
use crate::check::tool::{Origin, Tool};

/// Another release knows other words: a newer one may fail where this one passes.
const TYPOS: Tool = Tool {
    name: "typos",
    version: "1.52.0",
    oldest: [1, 52, 0],
    folder: "tools/typos-1.52.0",
    origin: Origin::PyPi,
};

/// No file has a word that `typos` knows to be misspelt.
pub(super) fn check() -> Result<Outcome> {
    match TYPOS.program() {
        Ok(Some(typos)) => passes(Command::new(typos).current_dir(build::root())),
        Ok(None) => Ok(Outcome::skipped(&format!("typos is not installed: {}", TYPOS.remedy()))),
        Err(error) => {
            eprintln!("{error:#}");
            Ok(Outcome::skipped("typos cannot be installed"))
        }
    }
}
