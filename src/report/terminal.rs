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
    plain: bool,
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
        Self { bar, color, quiet, verbose, plain: false, started: Instant::now() }
    }

    /// Shows what the steps of builds print too, each line with its stage and step: for logs.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.plain = true;
        self
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
        let place = match (&record.host, &record.service) {
            (Some(host), _) => host.to_string(),
            (None, Some(service)) if self.plain => service.to_string(),
            (None, _) => String::new(),
        };
        format!(
            "{} {} {}{}",
            self.paint("2", &format!("{at:>6}")),
            self.paint("36", &format!("{place:<10}")),
            printed_by(record),
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
        let printed = self.plain && record.event == "build.output";
        if !moving || printed || (self.verbose && record.event != "apply.sending") {
            self.line(&self.format(&record));
        }
        self.bar.set_message(match &record.host {
            Some(host) => format!("{host}: {}", record.text),
            None => record.text,
        });
    }
}

/// Where a line that a step printed comes from: `[STAGE STEP/OF] | `, as the step itself is told. Nothing for other events.
fn printed_by(record: &Record) -> String {
    if record.event != "build.output" {
        return String::new();
    }
    let number = |name: &str| record.data[name].as_u64().unwrap_or_default();
    let stage = record.data["stage"].as_str().filter(|stage| !stage.is_empty());
    let stage = stage.map_or_else(String::new, |stage| format!("{stage} "));
    format!("[{stage}{}/{}] | ", number("step"), number("of"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_step_prints_is_told_apart_by_stage_and_step() {
        let shown = Terminal::new(false, false, false, false).plain();
        let line = |stage: &str, text: &str| {
            let data = serde_json::json!({"stage": stage, "step": 2, "of": 5, "line": 7, "stream": "stdout"});
            let service = jiji_model::name::ServiceName::new("web").expect("a name");
            shown.format(&Record::new("build.output", text).service(&service).with(data))
        };
        let after = |line: String| line.split_once("web").map(|(_, after)| after.trim_start().to_owned());
        assert_eq!(after(line("made", "cc -c a.c")).as_deref(), Some("[made 2/5] | cc -c a.c"));
        assert_eq!(after(line("", "[x]")).as_deref(), Some("[2/5] | [x]"));
        assert_eq!(printed_by(&Record::new("build.step", "[2/5] RUN x")), "", "it says so itself");
    }
}
