//! A client of QEMU's monitor (QMP): events and commands, one line of JSON each.

use std::io;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// A connection to the monitor.
#[derive(Debug)]
pub(super) struct Monitor {
    messages: Lines<BufReader<OwnedReadHalf>>,
    commands: OwnedWriteHalf,
    /// The ID of the last command.
    last: u64,
}

/// A message of the monitor: an event or an answer, which have different fields.
#[derive(Debug, Deserialize)]
struct Message {
    event: Option<String>,
    #[serde(default)]
    data: EventData,
    id: Option<u64>,
    #[serde(rename = "return")]
    answer: Option<serde_json::Value>,
    error: Option<Refusal>,
}

#[derive(Debug, Default, Deserialize)]
struct EventData {
    #[serde(default)]
    open: bool,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

impl Monitor {
    pub(super) fn new(connection: UnixStream) -> Self {
        let (messages, commands) = connection.into_split();
        Self { messages: BufReader::new(messages).lines(), commands, last: 0 }
    }

    /// Waits until the guest has opened its virtio-serial port.
    pub(super) async fn port_opened(&mut self) -> io::Result<()> {
        // The monitor greets, and sends events after this command.
        self.commands.write_all(b"{\"execute\": \"qmp_capabilities\"}\n").await?;
        loop {
            let message = self.next().await?;
            if message.event.as_deref() == Some("VSERPORT_CHANGE") && message.data.open {
                return Ok(());
            }
        }
    }

    /// Runs a human monitor command. Returns its output.
    pub(super) async fn run(&mut self, line: &str) -> io::Result<String> {
        self.last += 1;
        let command = serde_json::json!({
            "execute": "human-monitor-command",
            "arguments": {"command-line": line},
            "id": self.last,
        });
        self.commands.write_all(format!("{command}\n").as_bytes()).await?;
        loop {
            // Answers to commands whose callers stopped waiting have other IDs.
            let message = self.next().await?;
            if message.id == Some(self.last) {
                return match (message.answer, message.error) {
                    (_, Some(refusal)) => Err(io::Error::other(refusal.desc)),
                    (Some(serde_json::Value::String(output)), None) => Ok(output),
                    _ => Ok(String::new()),
                };
            }
        }
    }

    async fn next(&mut self) -> io::Result<Message> {
        match self.messages.next_line().await? {
            Some(line) => Ok(serde_json::from_str(&line)?),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}
