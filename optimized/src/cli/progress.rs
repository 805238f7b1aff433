//! Progress on standard error: a bar on a terminal, now and then a plain line elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Progress of one task.
pub struct Progress {
    label: String,
    first: u64,
    total: u64,
    bar: Option<ProgressBar>,
    began: Instant,
    spoke: Instant,
}

impl Progress {
    /// `total` units of work.
    pub fn new(label: impl Into<String>, total: u64) -> Self {
        Self::from(label, 0, total)
    }

    /// `total` units of work, `first` of which were done before.
    pub fn from(label: impl Into<String>, first: u64, total: u64) -> Self {
        let label = label.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(
                "{prefix:>24} [{bar:32}] {pos}/{len} {elapsed} left {eta} {msg}",
            )
            .expect("the template is constant and valid")
            .progress_chars("=> ");
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let bar = bar.with_style(style).with_prefix(label.clone()).with_position(first);
            bar.reset_eta();
            bar
        });
        let now = Instant::now();
        Self { label, first, total, bar, began: now, spoke: now }
    }

    /// `done` units are done; `message` says how it goes.
    pub fn at(&mut self, done: u64, message: impl FnOnce() -> String) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(done);
                bar.set_message(message());
            }
            None if self.spoke.elapsed() >= LINE_EVERY => {
                self.spoke = Instant::now();
                let seconds = self.began.elapsed().as_secs_f64();
                let (label, total) = (&self.label, self.total);
                let per_unit = seconds / done.saturating_sub(self.first).max(1) as f64;
                let left = per_unit * total.saturating_sub(done) as f64;
                eprintln!(
                    "{label}: {done}/{total} after {seconds:.0} s, {left:.0} s left, {}",
                    message()
                );
            }
            None => {}
        }
    }

    /// A line that stays above the bar.
    pub fn say(&mut self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Runs something of unknown length: a spinner on a terminal, one plain line elsewhere.
pub fn waiting<T>(label: &str, work: impl FnOnce() -> T) -> T {
    if !std::io::stderr().is_terminal() {
        eprintln!("{label}");
        return work();
    }
    let spinner = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
        .with_message(label.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(120));
    let done = work();
    spinner.finish_and_clear();
    done
}
