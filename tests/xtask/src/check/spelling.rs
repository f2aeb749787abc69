//! Spelling, by `typos` as typos.toml says. Where it is not installed the check is left out.

use std::process::Command;

use anyhow::Result;

use crate::check::report::{Outcome, passes};
use crate::{apt, build};

/// No file has a word that `typos` knows to be misspelt.
pub(super) fn check() -> Result<Outcome> {
    match apt::find("typos") {
        Some(typos) => passes(Command::new(typos).current_dir(build::root())),
        None => Ok(Outcome::skipped("typos is not installed: cargo install typos-cli")),
    }
}
