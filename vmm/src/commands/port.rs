//! `boxlite-vmm port`: lists the published ports of a box.

// The doc comments are help texts, where brackets mark optional parts.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

use anyhow::{Result, bail};
use boxlite_runtime::Transport;
use clap::Args;

use crate::global::Global;
use crate::out::{self, Format};
use crate::parse;

pub(crate) const HELP: &str = "\
Examples:
  boxlite-vmm run -d --name web -p 0:80 nginx     publish port 80 on a free port
  boxlite-vmm port web                            80/tcp -> 127.0.0.1:38651
  boxlite-vmm port web 80                         127.0.0.1:38651";

#[derive(Debug, Args)]
pub(crate) struct Ports {
    /// Output format: for people or for programs
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
    /// Name or ID
    #[arg(value_name = "BOX")]
    name: String,
    /// Show this port of the box only
    #[arg(value_name = "PORT[/udp]", value_parser = parse::port)]
    port: Option<(u16, Transport)>,
}

pub(crate) async fn port(global: &Global, args: &Ports) -> Result<u8> {
    let info = global.runtime().await?.get(&args.name).await?.info().await?;
    let wanted = |guest, protocol| args.port.is_none_or(|port| port == (guest, protocol));
    let ports = info.ports.iter().filter(|port| wanted(port.guest, port.protocol));
    let ports: Vec<_> = ports.collect();
    if let (Some((guest, protocol)), true) = (args.port, ports.is_empty()) {
        let why = if info.state.is_live() { "it is not published" } else { "the box does not run" };
        bail!("port {guest}/{protocol} of {}: {why}", info.name);
    }
    for port in ports {
        match (args.format, args.port) {
            (Format::Json, _) => out::json_line(port)?,
            (Format::Table, Some(_)) => out::line(port.host)?,
            (Format::Table, None) => {
                out::line(format_args!("{}/{} -> {}", port.guest, port.protocol, port.host))?;
            }
        }
    }
    Ok(0)
}
