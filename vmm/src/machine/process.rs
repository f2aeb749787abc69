//! `boxlite-vmm machine`: the process of one box. Standard input is the socket to its launcher.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use boxlite_devices::virtio::vsock::VsockHandle;

use super::boot_report::Report;
use super::build::{Machine, Signals, Stop};
use super::control::{self, BootStage, FromMachine, ToMachine};
use super::spec::LaunchSpec;
use super::status::{End, Ended, now_ms};
use crate::backend;

/// Runs the machine that the launcher at standard input asks for, until it ends or the launcher
/// does.
pub fn main() -> Result<()> {
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    let launcher = UnixStream::from(stdin);
    launcher.peer_addr().context(
        "`boxlite-vmm machine` is started by the box runtime, with its socket as standard input",
    )?;
    let Some((ToMachine::Launch(spec), files)) = control::receive(&launcher)? else {
        bail!("the launcher sent no LaunchSpec");
    };
    let started = Instant::now();
    let events = Events { launcher: Arc::new(Mutex::new(launcher.try_clone()?)), started };
    let (stop, stopped) = mpsc::channel();
    let fatal = Arc::new(Mutex::new(None));

    let signals = Signals { stop: stop.clone(), report: report(&events, &fatal) };
    // All of them, to the end of the process: the lock of the box's folder is among them.
    let files: Vec<File> = files.into_iter().map(File::from).collect();
    let machine = match start(&spec, files, signals) {
        Ok(machine) => machine,
        Err(e) => {
            events.ended(End::Failed(format!("{e:#}")));
            return Ok(());
        }
    };
    events.stage(BootStage::Kernel);

    let vsock = machine.vsock().clone();
    let folder = spec.sandbox.map(|sandbox| sandbox.folder);
    thread::Builder::new().name("launcher".into()).spawn(move || {
        serve(&launcher, &vsock, &stop);
        // The launcher is gone, and so is the box: at once, whatever the machine is doing.
        if let Some(folder) = folder {
            let _ = std::fs::remove_dir_all(folder);
        }
        std::process::exit(0)
    })?;

    let why = stopped.recv().unwrap_or(Stop::Guest);
    let console = machine.console().clone();
    machine.stop();
    let fatal = fatal.lock().unwrap_or_else(PoisonError::into_inner).take();
    events.ended(match (why, fatal, console.panic()) {
        (Stop::Launcher, ..) => End::Stopped,
        (_, Some(message), _) => End::Agent(message),
        (_, None, Some(lines)) => End::Panic(lines),
        (Stop::Failed(message), ..) => End::Failed(message),
        (Stop::Guest, ..) => End::Guest,
    });
    Ok(())
}

fn start(
    spec: &LaunchSpec,
    files: Vec<File>,
    signals: Signals,
) -> Result<Machine<backend::Machine>> {
    Machine::start(backend::open(spec.vcpus)?, spec, files, signals)
}

/// Takes what the launcher says, to the end of the connection.
fn serve(launcher: &UnixStream, vsock: &VsockHandle, stop: &mpsc::Sender<Stop>) {
    loop {
        match control::receive(launcher) {
            Ok(Some((ToMachine::Client, files))) => {
                for file in files {
                    if let Err(e) = vsock.attach(UnixStream::from(file)) {
                        tracing::warn!("a vsock client is refused: {e}");
                    }
                }
            }
            Ok(Some((ToMachine::Kill, _))) => {
                let _ = stop.send(Stop::Launcher);
            }
            Ok(Some((message, _))) => tracing::warn!(?message, "ignored"),
            Ok(None) | Err(_) => return,
        }
    }
}

/// Passes on what the agent says of its boot.
fn report(
    events: &Events,
    fatal: &Arc<Mutex<Option<String>>>,
) -> Box<dyn Fn(Report) + Send + Sync> {
    let (events, fatal) = (events.clone(), fatal.clone());
    Box::new(move |said| match said {
        Report::Stage(stage) => events.stage(stage),
        // The agent resets the machine after this, which ends it.
        Report::Fatal(message) => {
            *fatal.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
        }
    })
}

/// The way to the launcher.
#[derive(Clone)]
struct Events {
    launcher: Arc<Mutex<UnixStream>>,
    started: Instant,
}

impl Events {
    fn stage(&self, stage: BootStage) {
        let micros = self.started.elapsed().as_micros() as u64;
        self.send(&FromMachine::Stage { stage, micros });
    }

    fn ended(&self, end: End) {
        self.send(&FromMachine::Ended(Ended { end, at_ms: now_ms(), main: None }));
    }

    fn send(&self, message: &FromMachine) {
        let launcher = self.launcher.lock().unwrap_or_else(PoisonError::into_inner);
        // A launcher that is gone is seen by `serve`.
        let _ = control::send(&launcher, message, &[]);
    }
}
