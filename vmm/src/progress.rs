//! Progress bars and spinners. Nothing is drawn if stderr is not a terminal.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use boxlite_runtime::{LayerProgress, Progress, ProgressEvent as Event};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};

use crate::out;
use crate::table::plain;

/// Time between two frames of a spinner.
const TICK: Duration = Duration::from_millis(120);

/// Time before a spinner appears.
const DELAY: Duration = Duration::from_millis(300);

/// A spinner for work without known progress.
#[derive(Debug)]
pub(crate) struct Spinner;

impl Spinner {
    /// Awaits `work`, and shows `message` if that takes longer than [`DELAY`].
    pub(crate) async fn while_waiting<T>(
        message: &'static str,
        work: impl Future<Output = T>,
    ) -> T {
        tokio::pin!(work);
        if let Ok(done) = tokio::time::timeout(DELAY, &mut work).await {
            return done;
        }
        let spinner = ProgressBar::new_spinner().with_finish(ProgressFinish::AndClear);
        spinner.set_message(message);
        spinner.enable_steady_tick(TICK);
        work.await
    }
}

/// Bars for making an image usable: one for the current step, one for each layer that is being fetched.
#[derive(Debug)]
pub(crate) struct ImageBar {
    bars: MultiProgress,
    work: ProgressBar,
    layers: Mutex<BTreeMap<usize, ProgressBar>>,
}

impl ImageBar {
    /// Draws nothing if `quiet`.
    pub(crate) fn new(quiet: bool) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        let target =
            if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bars = MultiProgress::with_draw_target(target);
        let work = bars.add(ProgressBar::no_length());
        work.set_style(style("{spinner} {msg}"));
        Self { bars, work, layers: Mutex::default() }
    }

    fn spin(&self, message: String) {
        self.work.set_style(style("{spinner} {msg}"));
        self.work.set_message(message);
        self.work.enable_steady_tick(TICK);
    }

    /// Shows one step's progress. The layers have been fetched, and their bars disappear.
    fn bytes(&self, message: String, done: u64, total: Option<u64>) {
        for bar in std::mem::take(&mut *self.layers()).into_values() {
            bar.finish_and_clear();
        }
        self.work.disable_steady_tick();
        show(&self.work, message, done, total);
    }

    fn pulling(&self, progress: LayerProgress) {
        let mut layers = self.layers();
        let bar =
            layers.entry(progress.layer).or_insert_with(|| self.bars.add(ProgressBar::no_length()));
        show(bar, layer("pulling", &progress), progress.done, progress.total);
    }

    fn layers(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, ProgressBar>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn show(bar: &ProgressBar, message: String, done: u64, total: Option<u64>) {
    match total {
        Some(total) => {
            bar.set_style(style("{spinner} {msg} {wide_bar} {bytes}/{total_bytes} {eta}"));
            bar.set_length(total);
        }
        None => bar.set_style(style("{spinner} {msg} {bytes}")),
    }
    bar.set_message(message);
    bar.set_position(done);
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn layer(what: &str, layer: &LayerProgress) -> String {
    format!("{what} layer {} of {}", layer.layer + 1, layer.layers)
}

impl Progress for ImageBar {
    fn report(&self, event: Event<'_>) {
        match event {
            Event::Expanding { file, done, total } => {
                self.bytes(format!("reading {}", file.display()), done, total);
            }
            Event::Scanning { dir, done } => {
                self.bytes(format!("reading {}", dir.display()), done, None);
            }
            Event::Waiting { .. } => {
                self.spin("waiting for another process that prepares the same image".into());
            }
            Event::Asking { registry } => self.spin(format!("asking {}", plain(registry))),
            Event::Pulling(progress) => self.pulling(progress),
            Event::Present(progress) => {
                self.work.set_message(layer("have", &progress));
            }
            Event::Copying(progress) => {
                self.bytes(layer("copying", &progress), progress.done, progress.total);
            }
            Event::Unpacking(progress) => {
                self.bytes(layer("unpacking", &progress), progress.done, progress.total);
            }
            Event::Syncing => self.spin("syncing the disk".into()),
            Event::Warning(text) => {
                self.bars
                    .suspend(|| out::note(format_args!("boxlite-vmm: warning: {}", plain(text))));
            }
            _ => {}
        }
    }
}

impl Drop for ImageBar {
    fn drop(&mut self) {
        for bar in std::mem::take(&mut *self.layers()).into_values() {
            bar.finish_and_clear();
        }
        self.work.finish_and_clear();
    }
}
