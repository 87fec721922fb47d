//! Progress bars on stderr, when it is a terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar that is not drawn where nobody looks. It goes away when it is dropped.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Bytes of weights.
    pub(crate) fn of_bytes(what: &'static str) -> Self {
        Self::new(what, "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}")
    }

    /// Requests of a benchmark.
    pub(crate) fn of_requests(what: &'static str) -> Self {
        Self::new(what, "{msg} [{bar:30}] {pos} of {len} requests, {elapsed}")
    }

    /// Tokens of a prompt.
    pub(crate) fn of_tokens(what: &'static str) -> Self {
        Self::new(what, "{msg} [{bar:30}] {pos} of {len} tokens")
    }

    fn new(what: &'static str, template: &str) -> Self {
        let is_visible = std::io::stderr().is_terminal();
        let target = if is_visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        Self { bar: ProgressBar::with_draw_target(None, target).with_style(style).with_message(what) }
    }

    /// A handle that reports from another thread.
    pub(crate) fn reporter(&self) -> impl Fn(u64, u64) + Send + Sync + 'static {
        let bar = self.bar.clone();
        move |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    pub(crate) fn report(&self, done: usize, total: usize) {
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
    }

    /// Takes it off the screen before text is printed.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
