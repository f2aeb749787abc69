//! `boxlite-vmm login` and `logout`: store and remove logins for registries.

// The doc comments are help texts, where brackets mark optional parts.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

use std::io::{self, IsTerminal, Read};

use anyhow::{Context, Result, bail};
use boxlite_runtime::{LoginStore, RegistryOptions};
use clap::Args;
use console::Term;

use crate::global::Global;
use crate::out;

pub(crate) const HELP: &str = "\
Examples:
  boxlite-vmm login                                          log in to Docker Hub
  boxlite-vmm login ghcr.io -u me --password-stdin < token

The login is checked, then stored with the credential helper that ~/.docker/config.json names, or in that file.";

/// The registry of image names without one.
const DOCKER_HUB: &str = "docker.io";

/// The longest password or token, in bytes.
const MAX_PASSWORD: u64 = 64 << 10;

#[derive(Debug, Args)]
pub(crate) struct Login {
    /// User name [default: asked for]
    #[arg(long, short, value_name = "NAME")]
    username: Option<String>,
    /// Password or token; visible to other users of this machine, so prefer --password-stdin
    #[arg(long, short, value_name = "PASSWORD", conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read password or token from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Registry: host[:port], or host[:port]/path for a part of it [default: Docker Hub]
    #[arg(value_name = "REGISTRY")]
    registry: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Logout {
    /// Registry, or part of it, as for login [default: Docker Hub]
    #[arg(value_name = "REGISTRY")]
    registry: Option<String>,
}

pub(crate) fn login(global: &Global, args: Login) -> Result<u8> {
    let registry = args.registry.as_deref().unwrap_or(DOCKER_HUB);
    if args.password_stdin && args.username.is_none() {
        bail!("--password-stdin needs --username: standard input has the password");
    }
    let user = match args.username {
        Some(user) => user,
        None => ask("--username", "Username: ", Term::read_line)?,
    };
    let password = if args.password_stdin {
        from_stdin()?
    } else if let Some(password) = args.password {
        password
    } else {
        ask("--password-stdin", "Password: ", Term::read_secure_line)?
    };
    if user.is_empty() || password.is_empty() {
        bail!("a login needs a user name and a password or token");
    }
    let kept = registries(global)?.login(registry, &user, &password)?;
    match kept {
        LoginStore::File(file) => {
            out::note(format_args!(
                "boxlite-vmm: the password is stored unencrypted in {}; a credential helper is safer",
                file.display()
            ));
        }
        LoginStore::Helper(helper) => {
            out::note(format_args!("boxlite-vmm: stored by docker-credential-{helper}"));
        }
        _ => {}
    }
    out::line("Login Succeeded")?;
    Ok(0)
}

pub(crate) fn logout(global: &Global, args: &Logout) -> Result<u8> {
    let registry = args.registry.as_deref().unwrap_or(DOCKER_HUB);
    match registries(global)?.logout(registry)? {
        true => out::line(format_args!("Removed the login for {registry}"))?,
        false => out::line(format_args!("There was no login for {registry}"))?,
    }
    Ok(0)
}

fn registries(global: &Global) -> Result<RegistryOptions> {
    Ok(RegistryOptions::load(&global.home()?.registries())?)
}

/// Asks for a value at the terminal.
fn ask(option: &str, prompt: &str, read: fn(&Term) -> io::Result<String>) -> Result<String> {
    let term = Term::stderr();
    if !io::stdin().is_terminal() || !term.is_term() {
        bail!("cannot ask without a terminal: use {option}");
    }
    term.write_str(prompt)?;
    read(&term).context("cannot read from the terminal")
}

fn from_stdin() -> Result<String> {
    let mut text = String::new();
    let read = io::stdin().lock().take(MAX_PASSWORD).read_to_string(&mut text);
    read.context("cannot read the password from standard input")?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
