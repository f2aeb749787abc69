//! Bars for people who wait. Nothing is drawn where stderr is no terminal.

use std::io::IsTerminal;
use std::time::Duration;

use boxlite_rootfs_builder::{Event, LayerProgress, Progress};
use indicatif::{ProgressBar, ProgressStyle};

/// A bar for the making of an image's disk.
#[derive(Debug)]
pub(super) struct ImageBar(ProgressBar);

impl ImageBar {
    pub(super) fn new() -> Self {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::no_length()
        } else {
            ProgressBar::hidden()
        };
        bar.set_style(style("{spinner} {msg}"));
        Self(bar)
    }

    fn bytes(&self, message: String, done: u64, total: Option<u64>) {
        match total {
            Some(total) => {
                self.0.set_style(style("{spinner} {msg} {wide_bar} {bytes}/{total_bytes} {eta}"));
                self.0.set_length(total);
            }
            None => self.0.set_style(style("{spinner} {msg} {bytes}")),
        }
        self.0.set_message(message);
        self.0.set_position(done);
    }
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
                self.bytes(format!("expanding {}", file.display()), done, Some(total));
            }
            Event::Scanning { dir, done } => {
                self.bytes(format!("reading {}", dir.display()), done, None);
            }
            Event::Waiting { .. } => {
                self.0.set_style(style("{spinner} {msg}"));
                self.0.set_message("waiting for another process that makes the same disk");
                self.0.enable_steady_tick(Duration::from_millis(120));
            }
            Event::Copying(progress) => {
                self.bytes(layer("copying", &progress), progress.done, progress.total);
            }
            Event::Unpacking(progress) => {
                self.bytes(layer("unpacking", &progress), progress.done, progress.total);
            }
            Event::Syncing => {
                self.0.set_style(style("{spinner} {msg}"));
                self.0.set_message("writing the disk out");
                self.0.enable_steady_tick(Duration::from_millis(120));
            }
            Event::Warning(text) => self.0.suspend(|| eprintln!("boxlite-vmm: warning: {text}")),
            _ => {}
        }
    }
}

impl Drop for ImageBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
