//! `boxlite-vmm completion`: scripts for shells.

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::args::Cli;
use super::out;

pub(super) const HELP: &str = "\
Examples:
  boxlite-vmm completion bash > ~/.local/share/bash-completion/completions/boxlite-vmm
  boxlite-vmm completion zsh > \"${fpath[1]}/_boxlite-vmm\"
  boxlite-vmm completion fish > ~/.config/fish/completions/boxlite-vmm.fish";

#[derive(Debug, Args)]
pub(super) struct Completion {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn completion(args: &Completion) -> Result<u8> {
    out::print(script(args.shell))?;
    Ok(0)
}

fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "boxlite-vmm", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_shells_script_knows_the_commands() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(script(*shell)).unwrap();
            for word in ["boxlite-vmm", "restart", "inspect", "detach-keys"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
            assert!(!script.contains("softhost-keeper") || *shell == Shell::Bash, "{shell}");
        }
    }
}
