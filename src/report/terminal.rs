//! Progress for people, on standard error: one line per event that has a text, host first, and on a terminal a line that moves with what
//! is going on now.

use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiji_model::event::{Record, Sink, seconds};

use super::{Report, Summary};

/// Shows events to a person.
pub struct Terminal {
    bar: ProgressBar,
    color: bool,
    quiet: bool,
    verbose: bool,
    started: Instant,
}

/// Events that say that something goes on and whose end is an event too: they move the last line and leave no line of their own.
const MOVING: [&str; 4] = ["apply.sending", "apply.step-started", "apply.probed", "build.output"];

impl Terminal {
    /// Shows on standard error; `moving` where that is a terminal.
    pub fn new(moving: bool, color: bool, quiet: bool, verbose: bool) -> Self {
        let bar = if moving && !quiet {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(12));
            let style = ProgressStyle::with_template("{spinner} {msg}").expect("the template is fixed");
            bar.set_style(style.tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ "));
            bar.enable_steady_tick(std::time::Duration::from_millis(90));
            bar
        } else {
            ProgressBar::hidden()
        };
        Self { bar, color, quiet, verbose, started: Instant::now() }
    }

    fn line(&self, text: &str) {
        self.bar.suspend(|| {
            use std::io::Write;
            // A terminal that went away must not stop a transaction half-way.
            let _ = writeln!(std::io::stderr(), "{text}");
        });
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// One event as a line: seconds since the start, host, text.
    fn format(&self, record: &Record) -> String {
        let at = seconds(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX));
        let place = record.host.as_ref().map_or_else(String::new, ToString::to_string);
        format!(
            "{} {} {}",
            self.paint("2", &format!("{at:>6}")),
            self.paint("36", &format!("{place:<10}")),
            record.text
        )
    }
}

impl Sink for Terminal {
    fn emit(&self, record: Record) {
        if self.quiet || record.text.is_empty() {
            return;
        }
        let moving = MOVING.contains(&record.event.as_str());
        if !moving || (self.verbose && record.event != "apply.sending") {
            self.line(&self.format(&record));
        }
        self.bar.set_message(match &record.host {
            Some(host) => format!("{host}: {}", record.text),
            None => record.text,
        });
    }
}

impl Report for Terminal {
    fn summary(&self, summary: &Summary) {
        self.bar.finish_and_clear();
        if !summary.text.is_empty() && !self.quiet {
            let code = if summary.exit == 0 { "1" } else { "1;31" };
            self.line(&self.paint(code, &summary.text));
        }
    }
}
