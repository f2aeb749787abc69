//! `boxlite-vmm events`: shows events of boxes.

// The doc comments are help texts, where brackets mark optional parts.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use boxlite_runtime::{Event, EventKind, EventQuery, HealthStatus, Runtime};
use clap::Args;

use crate::global::Global;
use crate::out::{self, Format};
use crate::table::plain;
use crate::{human, parse};

pub(crate) const HELP: &str = "\
Examples:
  boxlite-vmm events                              show events from now on
  boxlite-vmm events --since 1h                   show the events of the last hour
  boxlite-vmm events --since 1h --follow --box db --format json

Without --since, or with --follow, it waits for new events until it is interrupted.";

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Only events since this time
    #[arg(long, value_name = "TIME", value_parser = parse::time)]
    since: Option<SystemTime>,
    /// Only events until this time
    #[arg(long, value_name = "TIME", value_parser = parse::time, conflicts_with = "follow")]
    until: Option<SystemTime>,
    /// Wait for new events
    #[arg(long, short)]
    follow: bool,
    /// Only events of this box (name or ID)
    #[arg(long = "box", value_name = "BOX")]
    sandbox: Option<String>,
    /// Output format: for people or for programs
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

pub(crate) async fn events(global: &Global, args: &Events) -> Result<u8> {
    let runtime = global.runtime().await?;
    let mut query = EventQuery::default();
    query = query.follow(args.follow || args.since.is_none() && args.until.is_none());
    if let Some(since) = args.since {
        query = query.since(since);
    } else if args.until.is_some() {
        query = query.since(UNIX_EPOCH);
    }
    if let Some(name) = &args.sandbox {
        query.id = Some(runtime.get(name).await?.id().to_owned());
    }
    let mut events = runtime.events(query).await?;
    let mut names = names(&runtime).await?;
    while let Some(event) = events.next().await.context("cannot continue reading the events")? {
        if args.until.is_some_and(|until| time(&event) > until) {
            break;
        }
        if let EventKind::Created { name, .. } | EventKind::Renamed { name } = &event.kind {
            names.insert(event.id.clone(), name.clone());
        }
        match args.format {
            Format::Json => out::json_line(&event)?,
            Format::Table => out::line(line(&event, names.get(&event.id)))?,
        }
    }
    Ok(0)
}

/// The current names of boxes.
async fn names(runtime: &Runtime) -> Result<HashMap<String, String>> {
    let boxes = runtime.list().await?.into_iter();
    Ok(boxes.map(|info| (info.id, info.name)).collect())
}

fn time(event: &Event) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(event.at_ms)).unwrap_or(UNIX_EPOCH)
}

/// An event as a line of text.
fn line(event: &Event, name: Option<&String>) -> String {
    let id = human::id(&event.id, false);
    let sandbox = match name {
        Some(name) => format!("{id} {name}"),
        None => id,
    };
    let text = format!("{} {sandbox} {}", human::rfc3339(time(event), 3), what(&event.kind));
    plain(&text).into_owned()
}

fn what(kind: &EventKind) -> String {
    match kind {
        EventKind::Created { image, .. } => format!("created from {image}"),
        EventKind::Renamed { name } => format!("renamed to {name}"),
        EventKind::Starting => "starting".into(),
        EventKind::Running => "running".into(),
        EventKind::Paused => "paused".into(),
        EventKind::Resumed => "resumed".into(),
        EventKind::Stopping => "stopping".into(),
        EventKind::Restarted { restarts } => format!("restarted ({restarts})"),
        EventKind::Health { status } => match status {
            HealthStatus::Starting => "health: starting".into(),
            HealthStatus::Healthy => "health: healthy".into(),
            _ => "health: unhealthy".into(),
        },
        EventKind::Stopped { code: Some(code) } => format!("stopped (exit code {code})"),
        EventKind::Stopped { code: None } => "stopped".into(),
        EventKind::Failed { reason } => format!("failed: {reason}"),
        EventKind::ExecStarted { pid, program } => format!("exec started: {program} ({pid})"),
        EventKind::ExecEnded { pid, status } => {
            format!("exec ended: {pid} (exit code {})", status.shell_code())
        }
        EventKind::Denied { what, why } => format!("network denied {what}: {why}"),
        EventKind::Removed => "removed".into(),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let event = |json: &str| -> Event {
            let json = format!(r#"{{"at_ms":1500,"id":"0123456789abcdef","event":{json}}}"#);
            serde_json::from_str(&json).unwrap()
        };
        assert_eq!(
            line(&event(r#""running""#), Some(&"db".to_owned())),
            "1970-01-01T00:00:01.500Z 0123456789ab db running"
        );
        // What guests say cannot be more than a line.
        let program = event(r#""exec-started","pid":7,"program":"a\nb""#);
        assert_eq!(
            line(&program, None),
            r"1970-01-01T00:00:01.500Z 0123456789ab exec started: a\nb (7)"
        );
        assert!(line(&event(r#""stopped","code":3"#), None).ends_with("stopped (exit code 3)"));
    }
}
