//! `boxlite-vmm stats` and `top`: show the resource use of boxes and the processes in a box.

// The doc comments are help texts, where brackets mark optional parts.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use anyhow::Result;
use boxlite_runtime::{BoxHandle, BoxInfo, GuestMetrics, MachineMetrics, Process, Runtime};
use clap::Args;
use console::Term;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::global::Global;
use crate::human;
use crate::out::{self, Format};
use crate::table::{Table, cut, plain};

/// Time between two measurements.
const INTERVAL: Duration = Duration::from_secs(1);

/// Timeout for a box's answer. A box that is paused or busy is shown without numbers.
const PATIENCE: Duration = Duration::from_secs(2);

/// Shown for an unknown number.
const UNKNOWN: &str = "--";

#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Include boxes that do not run
    #[arg(long, short)]
    all: bool,
    /// Print once and exit
    #[arg(long)]
    no_stream: bool,
    /// Do not shorten IDs
    #[arg(long)]
    no_trunc: bool,
    /// Output format: for people or for programs
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
    /// Names or IDs [default: all live boxes]
    #[arg(value_name = "BOX")]
    boxes: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Include kernel threads
    #[arg(long, short)]
    all: bool,
    /// Output format: for people or for programs
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
    /// Name or ID
    #[arg(value_name = "BOX")]
    name: String,
}

pub(crate) async fn stats(global: &Global, args: &Stats) -> Result<u8> {
    let mut sampler = Sampler {
        runtime: global.runtime().await?,
        names: args.boxes.clone(),
        all: args.all,
        seen: HashMap::new(),
    };
    let live = io::stdout().is_terminal() && !args.no_stream && args.format == Format::Table;
    let mut screen = live.then(Screen::new);
    // CPU time counts from the measurement before.
    sampler.look().await?;
    loop {
        sleep(INTERVAL).await;
        let samples = sampler.look().await?;
        match args.format {
            Format::Json => {
                for sample in &samples {
                    out::json_line(&sample.json())?;
                }
            }
            Format::Table => {
                let table = table(&samples, args.no_trunc);
                match &mut screen {
                    Some(screen) => screen.draw(&table.lines()).map_err(out::Unwritten::text)?,
                    None => out::print(table.text())?,
                }
            }
        }
        if args.no_stream {
            return Ok(0);
        }
    }
}

/// Measures boxes repeatedly.
struct Sampler {
    runtime: Runtime,
    names: Vec<String>,
    all: bool,
    seen: HashMap<String, Seen>,
}

/// A box that was measured before.
struct Seen {
    sandbox: BoxHandle,
    /// Time of the measurement, and the CPU time used by then in microseconds.
    cpu: Option<(Instant, u64)>,
}

/// Resource use of a box.
#[derive(Debug)]
struct Sample {
    info: BoxInfo,
    /// Percent of one CPU: a box with two vCPUs can use 200.
    cpu_percent: Option<f64>,
    machine: Option<MachineMetrics>,
    guest: Option<GuestMetrics>,
}

impl Sampler {
    async fn look(&mut self) -> Result<Vec<Sample>> {
        let infos = self.boxes().await?;
        self.seen.retain(|id, _| infos.iter().any(|info| info.id == *id));
        let mut looks = JoinSet::new();
        for (n, info) in infos.iter().enumerate().filter(|(_, info)| info.state.is_live()) {
            if !self.seen.contains_key(&info.id) {
                // A box that has just been removed is shown without numbers.
                let Ok(sandbox) = self.runtime.get(&info.id).await else { continue };
                self.seen.insert(info.id.clone(), Seen { sandbox, cpu: None });
            }
            if let Some(seen) = self.seen.get(&info.id) {
                let sandbox = seen.sandbox.clone();
                looks.spawn(async move { (n, measure(&sandbox).await) });
            }
        }
        let mut samples: Vec<_> = infos.into_iter().map(Sample::new).collect();
        while let Some(look) = looks.join_next().await {
            let (n, (machine, guest)) = look?;
            let Some(sample) = samples.get_mut(n) else { continue };
            if let (Some(machine), Some(seen)) = (&machine, self.seen.get_mut(&sample.info.id)) {
                let now = (Instant::now(), machine.cpu_micros);
                let before = seen.cpu.replace(now);
                sample.cpu_percent = before.and_then(|before| percent(before, now));
            }
            (sample.machine, sample.guest) = (machine, guest);
        }
        Ok(samples)
    }

    async fn boxes(&self) -> Result<Vec<BoxInfo>> {
        if self.names.is_empty() {
            let mut infos = self.runtime.list().await?;
            infos.retain(|info| self.all || info.state.is_live());
            return Ok(infos);
        }
        let mut infos = Vec::new();
        for name in &self.names {
            infos.push(self.runtime.get(name).await?.info().await?);
        }
        Ok(infos)
    }
}

async fn measure(sandbox: &BoxHandle) -> (Option<MachineMetrics>, Option<GuestMetrics>) {
    let (machine, guest) = tokio::join!(
        timeout(PATIENCE, sandbox.machine_metrics()),
        timeout(PATIENCE, sandbox.guest_metrics()),
    );
    (machine.ok().and_then(Result::ok), guest.ok().and_then(Result::ok))
}

/// CPU use between two measurements, in percent of one CPU. None across a restart.
fn percent(before: (Instant, u64), now: (Instant, u64)) -> Option<f64> {
    let used = now.1.checked_sub(before.1)?;
    let passed = now.0.checked_duration_since(before.0)?.as_micros();
    (passed > 0).then(|| used as f64 * 100.0 / passed as f64)
}

impl Sample {
    fn new(info: BoxInfo) -> Self {
        Self { info, cpu_percent: None, machine: None, guest: None }
    }

    /// Bytes read from and written to disks.
    fn disk(&self) -> Option<(u64, u64)> {
        let disks = &self.machine.as_ref()?.disks;
        let sum = |bytes: fn(&boxlite_runtime::DiskMetrics) -> u64| {
            disks.iter().map(bytes).fold(0, u64::saturating_add)
        };
        Some((sum(|disk| disk.bytes_read), sum(|disk| disk.bytes_written)))
    }

    fn memory_percent(&self) -> Option<f64> {
        let guest = self.guest.as_ref().filter(|guest| guest.memory_total > 0)?;
        Some(guest.memory_used as f64 * 100.0 / guest.memory_total as f64)
    }

    fn row(&self, whole: bool) -> [String; 9] {
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| UNKNOWN.into());
        let percent = |value: Option<f64>| or_unknown(value.map(|value| format!("{value:.2}%")));
        let memory = self.guest.as_ref().map(|guest| {
            let (used, total) = (human::bytes(guest.memory_used), human::bytes(guest.memory_total));
            format!("{used} / {total}")
        });
        let disk = self
            .disk()
            .map(|(read, written)| format!("{} / {}", human::bytes(read), human::bytes(written)));
        let network = self.machine.as_ref().and_then(|machine| machine.network).map(|network| {
            let (down, up) = (network.bytes_received, network.bytes_sent);
            format!("{} / {}", human::bytes(down), human::bytes(up))
        });
        [
            human::id(&self.info.id, whole),
            self.info.name.clone(),
            percent(self.cpu_percent),
            or_unknown(memory),
            percent(self.memory_percent()),
            or_unknown(self.machine.as_ref().map(|machine| human::bytes(machine.rss))),
            or_unknown(network),
            or_unknown(disk),
            or_unknown(self.guest.as_ref().map(|guest| guest.processes.to_string())),
        ]
    }

    fn json(&self) -> Value {
        let guest = self.guest.as_ref();
        json!({
            "id": self.info.id,
            "name": self.info.name,
            "state": self.info.state.name(),
            "cpu_percent": self.cpu_percent,
            "memory_percent": self.memory_percent(),
            "processes": guest.map(|guest| guest.processes),
            "guest": guest,
            "machine": self.machine,
        })
    }
}

fn table(samples: &[Sample], whole: bool) -> Table {
    let mut table = Table::new([
        "BOX ID",
        "NAME",
        "CPU %",
        "MEM USAGE / LIMIT",
        "MEM %",
        "HOST MEM",
        "NET RECEIVED / SENT",
        "DISK READ / WRITTEN",
        "PIDS",
    ]);
    for sample in samples {
        table.row(sample.row(whole));
    }
    table
}

/// Lines at the bottom of the terminal that are redrawn in place.
struct Screen {
    term: Term,
    drawn: usize,
}

impl Screen {
    fn new() -> Self {
        Self { term: Term::buffered_stdout(), drawn: 0 }
    }

    fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        let (rows, columns) = self.term.size();
        // The cursor needs a line, too, and lines that have scrolled away cannot be redrawn.
        let shown = lines.len().min(usize::from(rows).saturating_sub(1));
        if self.drawn > 0 {
            self.term.move_cursor_up(self.drawn)?;
        }
        for line in lines.iter().take(shown) {
            self.term.clear_line()?;
            self.term.write_line(&cut(line, usize::from(columns)))?;
        }
        self.term.clear_to_end_of_screen()?;
        self.drawn = shown;
        self.term.flush()
    }
}

pub(crate) async fn top(global: &Global, args: &Top) -> Result<u8> {
    let sandbox = global.runtime().await?.get(&args.name).await?;
    let mut processes = sandbox.processes().await?;
    processes.retain(|process| args.all || !is_kernels(process));
    if args.format == Format::Json {
        for process in &processes {
            out::json_line(&process_json(process))?;
        }
        return Ok(0);
    }
    let mut table =
        Table::new(["PID", "PPID", "UID", "STATE", "THREADS", "TIME", "MEM", "COMMAND"]);
    for process in &processes {
        table.row([
            process.pid.to_string(),
            process.ppid.to_string(),
            process.uid.to_string(),
            plain(&char::from(process.state).to_string()).into_owned(),
            process.threads.to_string(),
            cpu_time(process.cpu_us),
            human::bytes(process.rss),
            plain(&command(process)).into_owned(),
        ]);
    }
    out::print(table.text())?;
    Ok(0)
}

/// Whether a process is a kernel thread: those descend from process 2.
fn is_kernels(process: &Process) -> bool {
    const KTHREADD: u32 = 2;
    // Where a main command is process 1, process 2 may be anything.
    let is_bare = process.command.is_empty() && process.rss == 0 && process.state != b'Z';
    is_bare && (process.pid == KTHREADD || process.ppid == KTHREADD)
}

fn process_json(process: &Process) -> Value {
    json!({
        "pid": process.pid,
        "ppid": process.ppid,
        "uid": process.uid,
        "state": char::from(process.state).to_string(),
        "threads": process.threads,
        "started_us": process.started_us,
        "cpu_us": process.cpu_us,
        "rss": process.rss,
        "name": String::from_utf8_lossy(&process.name),
        "command": command(process),
    })
}

/// The command line of a process; if it has none, its name in brackets.
fn command(process: &Process) -> String {
    let words = process.command.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let line = words.collect::<Vec<_>>().join(" ");
    match line.trim_end() {
        "" => format!("[{}]", String::from_utf8_lossy(&process.name)),
        line => line.to_owned(),
    }
}

/// `1:02.03`: minutes, seconds, hundredths.
fn cpu_time(micros: u64) -> String {
    let hundredths = micros / 10_000;
    format!("{}:{:02}.{:02}", hundredths / 6000, hundredths / 100 % 60, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_between_two_looks() {
        let start = Instant::now();
        let later = start + Duration::from_secs(2);
        assert_eq!(percent((start, 1_000_000), (later, 4_000_000)), Some(150.0));
        // The box was restarted.
        assert_eq!(percent((start, 4_000_000), (later, 1_000_000)), None);
        assert_eq!(percent((start, 0), (start, 0)), None);
    }

    #[test]
    fn times_and_commands_of_processes() {
        assert_eq!(cpu_time(0), "0:00.00");
        assert_eq!(cpu_time(62_039_999), "1:02.03");
        assert_eq!(cpu_time(3_600_000_000), "60:00.00");
        let process = |command: &[u8]| Process {
            name: b"kworker".to_vec(),
            command: command.to_vec(),
            ..Process::default()
        };
        assert_eq!(command(&process(b"sleep\x009\x00")), "sleep 9");
        assert_eq!(command(&process(b"")), "[kworker]");
    }

    #[test]
    fn unknown_numbers_are_marked() {
        let info = json!({
            "id": "0".repeat(32), "name": "x", "image": "i", "command": null, "state": "stopped",
            "exit_code": null, "created": 0, "started": null, "finished": null, "pid": null,
            "main_pid": null, "restarts": 0, "health": null, "boot": [], "cpus": 1,
            "memory_mib": 128, "auto_remove": false, "labels": {},
        });
        let mut sample = Sample::new(serde_json::from_value(info).unwrap());
        assert_eq!(sample.row(false)[2..], [UNKNOWN; 7]);
        sample.guest = Some(GuestMetrics {
            memory_total: 4 << 30,
            memory_used: 1 << 30,
            processes: 7,
            ..GuestMetrics::default()
        });
        let row = sample.row(false);
        assert_eq!((&*row[3], &*row[4], &*row[8]), ("1.00 GiB / 4.00 GiB", "25.00%", "7"));
    }
}
