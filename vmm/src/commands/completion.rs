//! `boxlite-vmm completion`: prints completion scripts for shells.

use anyhow::Result;
use clap::{Args, Command};
use clap_complete::Shell;

use crate::out;

pub(crate) const HELP: &str = "\
Examples:
  boxlite-vmm completion bash > ~/.local/share/bash-completion/completions/boxlite-vmm
  boxlite-vmm completion zsh > \"${fpath[1]}/_boxlite-vmm\"
  boxlite-vmm completion fish > ~/.config/fish/completions/boxlite-vmm.fish";

#[derive(Debug, Args)]
pub(crate) struct Completion {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints a script for the `whole` command line.
pub(crate) fn completion(args: &Completion, whole: &Command) -> Result<u8> {
    out::print(script(args.shell, whole))?;
    Ok(0)
}

fn script(shell: Shell, whole: &Command) -> Vec<u8> {
    let mut script = Vec::new();
    // Without the hidden commands.
    let shown = whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let mut command =
        Command::new("boxlite-vmm").args(whole.get_arguments().cloned()).subcommands(shown);
    clap_complete::generate(shell, &mut command, "boxlite-vmm", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, ValueEnum};

    use super::*;
    use crate::args::Cli;

    #[test]
    fn every_shells_script_knows_the_commands() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(script(*shell, &Cli::command())).unwrap();
            for word in ["boxlite-vmm", "restart", "inspect", "detach-keys"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
            assert!(!script.contains("softhost-keeper"), "{shell}");
        }
    }
}
