//! `boxlite-vmm ls`: lists boxes.

// The doc comments are help texts, where brackets mark optional parts.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

use std::str::FromStr;

use anyhow::Result;
use boxlite_runtime::{BoxInfo, BoxState, HealthStatus};
use clap::Args;
use serde_json::{Value, json};

use crate::global::Global;
use crate::human;
use crate::out::{self, Format};
use crate::table::{Table, cut, plain};

pub(crate) const HELP: &str = "\
Examples:
  boxlite-vmm ls                                 list live boxes
  boxlite-vmm ls -a --filter label=project=demo --filter status=failed
  boxlite-vmm rm -f $(boxlite-vmm ls -aq)        remove all boxes
  boxlite-vmm ls -a --format json | jq .name

Filters are KEY=VALUE: name and image (substring), id (prefix), label (KEY or KEY=VALUE), status
(configured, starting, running, paused, stopping, stopped, failed; or docker's created, exited, dead),
health (starting, healthy, unhealthy, none), exited (an exit code). A box is listed if it
matches all keys, and for each key at least one of its values (for label, all).";

/// Width of a command in a table.
const COMMAND: usize = 24;

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Include boxes that do not run
    #[arg(long, short)]
    all: bool,
    /// Print IDs only
    #[arg(long, short)]
    quiet: bool,
    /// List only boxes that match (may be repeated)
    #[arg(long, short, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// List the newest N boxes, running or not
    #[arg(long, short = 'n', value_name = "N")]
    last: Option<usize>,
    /// List the newest box, running or not
    #[arg(long, short, conflicts_with = "last")]
    latest: bool,
    /// Do not shorten IDs and commands
    #[arg(long)]
    no_trunc: bool,
    /// Output format: for people or for programs
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

pub(crate) async fn list(global: &Global, args: &List) -> Result<u8> {
    let boxes = args.choose(global.runtime().await?.list().await?);
    let text: String = if args.quiet {
        boxes.iter().map(|info| human::id(&info.id, args.no_trunc) + "\n").collect()
    } else if args.format == Format::Json {
        boxes
            .iter()
            .map(|info| as_json(info).map(|json| json.to_string() + "\n"))
            .collect::<Result<_>>()?
    } else {
        table(&boxes, args.no_trunc).text()
    };
    out::print(text)?;
    Ok(0)
}

impl List {
    /// The requested boxes, newest first.
    fn choose(&self, mut boxes: Vec<BoxInfo>) -> Vec<BoxInfo> {
        boxes.sort_by_key(|info| std::cmp::Reverse(info.created));
        let last = if self.latest { Some(1) } else { self.last };
        // As in docker, a filter by state includes boxes that do not run.
        let by_state = |filter: &Filter| matches!(filter.key, Key::Status | Key::Exited);
        let all = self.all || last.is_some() || self.filter.iter().any(by_state);
        boxes.retain(|info| (all || info.state.is_live()) && fits(&self.filter, info));
        boxes.truncate(last.unwrap_or(usize::MAX));
        boxes
    }
}

fn table(boxes: &[BoxInfo], whole: bool) -> Table {
    let mut table =
        Table::new(["BOX ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAME"]);
    for info in boxes {
        let command = plain(&command(info)).into_owned();
        table.row([
            human::id(&info.id, whole),
            plain(&info.image).into_owned(),
            if whole { command } else { cut(&command, COMMAND) },
            human::ago(info.created),
            out::in_color_of(&info.state, status(info)),
            info.ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            info.name.clone(),
        ]);
    }
    table
}

/// A main command as it would be typed; empty for a box without.
fn command(info: &BoxInfo) -> String {
    let words = info.command.iter().flatten().map(|word| {
        let quoted =
            word.is_empty() || word.contains(|c: char| c.is_whitespace() || "'\"$\\".contains(c));
        if quoted { format!("'{}'", word.replace('\'', "'\\''")) } else { word.clone() }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// `Up 2 hours (healthy)`, `Exited (0) 5 minutes ago`.
pub(crate) fn status(info: &BoxInfo) -> String {
    let up = || info.started.map_or_else(String::new, |time| format!(" {}", human::since(time)));
    let ago = || info.finished.map_or_else(String::new, |time| format!(" {}", human::ago(time)));
    match (&info.state, info.exit_code) {
        (BoxState::Configured, _) => "Created".into(),
        (BoxState::Starting, _) if info.restarts > 0 => format!("Restarting ({})", info.restarts),
        (BoxState::Starting, _) => "Starting".into(),
        (BoxState::Running, _) => match &info.health {
            Some(health) => format!("Up{} ({})", up(), health_name(health.status)),
            None => format!("Up{}", up()),
        },
        (BoxState::Paused, _) => format!("Up{} (paused)", up()),
        (BoxState::Stopping, _) => "Stopping".into(),
        (BoxState::Stopped, Some(code)) => format!("Exited ({code}){}", ago()),
        (BoxState::Stopped, None) => format!("Stopped{}", ago()),
        (BoxState::Failed(_), Some(code)) => format!("Failed ({code}){}", ago()),
        (BoxState::Failed(_), None) => format!("Failed{}", ago()),
        (other, _) => other.to_string(),
    }
}

fn health_name(status: HealthStatus) -> &'static str {
    match status {
        HealthStatus::Starting => "health: starting",
        HealthStatus::Healthy => "healthy",
        _ => "unhealthy",
    }
}

/// A box for programs, with times in RFC 3339.
pub(crate) fn as_json(info: &BoxInfo) -> Result<Value> {
    let mut value = serde_json::to_value(info)?;
    let times =
        [("created", Some(info.created)), ("started", info.started), ("finished", info.finished)];
    if let Some(object) = value.as_object_mut() {
        for (name, time) in times {
            object.insert(name.into(), json!(time.map(|time| human::rfc3339(time, 3))));
        }
        object.insert("status".into(), json!(status(info)));
    }
    Ok(value)
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Filter {
    key: Key,
    value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Id,
    Name,
    Image,
    Label,
    Status,
    Health,
    Exited,
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("a filter is KEY=VALUE")?;
        let key = match key {
            "id" => Key::Id,
            "name" => Key::Name,
            "image" | "ancestor" => Key::Image,
            "label" => Key::Label,
            "status" => Key::Status,
            "health" => Key::Health,
            "exited" => Key::Exited,
            _ => {
                return Err(
                    "the filter keys are id, name, image, label, status, health, exited".into()
                );
            }
        };
        let known: &[&str] = match key {
            Key::Status => &[
                "configured",
                "created",
                "starting",
                "restarting",
                "running",
                "paused",
                "stopping",
                "stopped",
                "exited",
                "failed",
                "dead",
            ],
            Key::Health => &["starting", "healthy", "unhealthy", "none"],
            _ => &[],
        };
        if !known.is_empty() && !known.contains(&value) {
            return Err(format!("must be one of {}", known.join(", ")));
        }
        if key == Key::Exited && value.parse::<u8>().is_err() {
            return Err("an exit code is a number from 0 to 255".into());
        }
        Ok(Self { key, value: value.to_owned() })
    }
}

impl Filter {
    fn fits(&self, info: &BoxInfo) -> bool {
        let value = self.value.as_str();
        match self.key {
            Key::Id => info.id.starts_with(value),
            Key::Name => info.name.contains(value),
            Key::Image => info.image.contains(value),
            Key::Label => match value.split_once('=') {
                Some((key, value)) => info.labels.get(key).is_some_and(|label| label == value),
                None => info.labels.contains_key(value),
            },
            Key::Status => {
                let state = match value {
                    "created" => "configured",
                    "exited" => "stopped",
                    "dead" => "failed",
                    "restarting" => "starting",
                    value => value,
                };
                info.state.name() == state && (value != "restarting" || info.restarts > 0)
            }
            Key::Health => match &info.health {
                None => value == "none",
                Some(health) => match health.status {
                    HealthStatus::Starting => value == "starting",
                    HealthStatus::Healthy => value == "healthy",
                    _ => value == "unhealthy",
                },
            },
            Key::Exited => {
                !info.state.is_live()
                    && info.exit_code.is_some_and(|code| value.parse() == Ok(code))
            }
        }
    }
}

/// A box matches if it matches every key, and for each key at least one value; for labels, all values.
fn fits(filters: &[Filter], info: &BoxInfo) -> bool {
    filters.iter().all(|filter| match filter.key {
        Key::Label => filter.fits(info),
        key => filters.iter().any(|other| other.key == key && other.fits(info)),
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    /// A box as its runtime tells of it.
    fn info(name: &str, state: Value, age: u64) -> BoxInfo {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let ms = (now - Duration::from_secs(age)).as_millis() as u64;
        let mut value = json!({
            "id": format!("{name:0<32}"), "name": name, "image": "alpine", "command": ["sh", "-c", "a b"],
            "exit_code": null, "created": ms, "started": ms, "finished": ms, "pid": null,
            "main_pid": null, "restarts": 0, "health": null, "boot": [], "cpus": 1, "memory_mib": 128,
            "auto_remove": false, "labels": { "a": "b" },
        });
        let parts = state.as_object().unwrap().clone();
        value.as_object_mut().unwrap().extend(parts);
        serde_json::from_value(value).unwrap()
    }

    fn boxes() -> Vec<BoxInfo> {
        let port = json!({ "protocol": "tcp", "host": "127.0.0.1:8080", "guest": 80 });
        vec![
            info("one", json!({ "state": "configured" }), 7200),
            info("two", json!({ "state": "running", "ports": [port] }), 600),
            info("three", json!({ "state": "stopped", "exit_code": 3 }), 1200),
            info("four", json!({ "state": "failed", "reason": { "kind": "process-died" } }), 10),
        ]
    }

    fn chosen(args: &[&str]) -> Vec<String> {
        use clap::Parser;
        #[derive(Parser)]
        struct Cli {
            #[command(flatten)]
            list: List,
        }
        let cli = Cli::parse_from([&["ls"], args].concat());
        cli.list.choose(boxes()).into_iter().map(|info| info.name).collect()
    }

    #[test]
    fn filters_choose_the_listed_boxes() {
        assert_eq!(chosen(&[]), ["two"]);
        assert_eq!(chosen(&["-a"]), ["four", "two", "three", "one"]);
        assert_eq!(chosen(&["-n", "2"]), ["four", "two"]);
        assert_eq!(chosen(&["-l"]), ["four"]);
        assert_eq!(chosen(&["-a", "-f", "name=o"]), ["four", "two", "one"]);
        assert_eq!(chosen(&["-f", "status=exited"]), ["three"]);
        assert_eq!(chosen(&["-f", "status=failed", "-f", "status=created"]), ["four", "one"]);
        assert_eq!(chosen(&["-f", "status=failed", "-f", "name=one"]), [""; 0]);
        assert_eq!(chosen(&["-f", "exited=3"]), ["three"]);
        assert_eq!(chosen(&["-a", "-f", "id=two0"]), ["two"]);
        assert_eq!(chosen(&["-f", "label=a=b", "-f", "label=a"]), ["two"]);
        assert_eq!(chosen(&["-f", "label=a=b", "-f", "label=c"]), [""; 0]);
        assert_eq!(chosen(&["-f", "health=none"]), ["two"]);
    }

    #[test]
    fn mistakes_in_filters_are_named() {
        for bad in ["", "x", "size=3", "status=up", "health=ill", "exited=300"] {
            assert!(bad.parse::<Filter>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_status_is_in_dockers_words() {
        let said: Vec<_> = boxes().iter().map(status).collect();
        assert_eq!(
            said,
            ["Created", "Up 10 minutes", "Exited (3) 20 minutes ago", "Failed 10 seconds ago"]
        );
        let health = json!({ "status": "healthy", "failures": 0, "last": "" });
        let healthy = info("x", json!({ "state": "running", "health": health }), 7200);
        assert_eq!(status(&healthy), "Up 2 hours (healthy)");
        assert_eq!(status(&info("x", json!({ "state": "paused" }), 600)), "Up 10 minutes (paused)");
    }

    #[test]
    fn the_table_has_a_line_for_each_box() {
        let text = table(&boxes()[..2], false).text();
        let text = console::strip_ansi_codes(&text);
        assert_eq!(
            text,
            "BOX ID         IMAGE    COMMAND       CREATED          STATUS          PORTS                    NAME\n\
             one000000000   alpine   sh -c 'a b'   2 hours ago      Created                                  one\n\
             two000000000   alpine   sh -c 'a b'   10 minutes ago   Up 10 minutes   127.0.0.1:8080->80/tcp   two\n"
        );
    }

    #[test]
    fn programs_get_times_that_they_can_read() {
        let value = as_json(&boxes()[3]).unwrap();
        assert_eq!(
            (&value["state"], &value["reason"]["kind"]),
            (&json!("failed"), &json!("process-died"))
        );
        let created = value["created"].as_str().unwrap();
        assert!(created.parse::<jiff::Timestamp>().is_ok(), "{created}");
        assert_eq!(value["memory_mib"], 128);
    }
}
