//! What a person sees while they wait: one line a step, with a bar while it runs and its time when
//! it is done.

use std::fmt::Display;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

/// One step of a command: shown while it runs, and as a line with its time once it is done.
pub(crate) struct Step {
    name: String,
    started: Instant,
    bar: ProgressBar,
}

impl Step {
    /// Starts a step. Where output is no terminal, nothing is shown until it ends.
    pub(crate) fn start(name: &str) -> Self {
        let bar = ProgressBar::new_spinner().with_style(style("{spinner} {prefix:<10} {msg}"));
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { name: name.to_owned(), started: Instant::now(), bar }
    }

    /// Says what the step does just now.
    pub(crate) fn say(&self, what: impl Display) {
        self.bar.set_message(what.to_string());
    }

    /// Leaves a line about something that a person should know.
    pub(crate) fn note(&self, what: impl Display) {
        self.bar.suspend(|| println!("  {:<10} {what}", self.name));
    }

    /// Shows a bar: `done` of about `total`.
    pub(crate) fn count(&self, what: impl Display, done: u64, total: u64) {
        self.bar.set_style(style("{spinner} {prefix:<10} {msg} {bar:30} {percent:>3}% {elapsed}"));
        self.bar.set_length(total.max(done));
        self.bar.set_position(done);
        self.say(what);
    }

    /// Shows how many bytes have come, and of how many where that is known.
    pub(crate) fn bytes(&self, what: impl Display, done: u64, total: Option<u64>) {
        match total {
            Some(total) => {
                self.count(format!("{what} {}", HumanBytes(total)), done.min(total), total);
            }
            None => self.say(format!("{what} {}", HumanBytes(done))),
        }
    }

    /// Ends the step with a line that says what came of it and how long it took.
    pub(crate) fn done(self, result: impl Display) {
        self.bar.finish_and_clear();
        println!("✓ {:<10} {result} ({})", self.name, seconds(self.started.elapsed()));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A duration as a person reads it: `0.4 s`, `4 min 42 s`.
pub(crate) fn seconds(time: Duration) -> String {
    match time.as_secs() {
        whole if whole >= 60 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_readable() {
        assert_eq!(seconds(Duration::from_millis(1449)), "1.4 s");
        assert_eq!(seconds(Duration::from_secs(282)), "4 min 42 s");
    }
}
