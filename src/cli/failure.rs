//! How an error is shown: what failed, its causes, the evidence, and the next command to type.

use std::error::Error;

use super::exit::Exit;
use crate::report::SettledSummary;

/// An error that is ready to be shown.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What failed, as a fragment that fits after "failed to".
    pub message: String,
    /// Causes, outermost first.
    pub causes: Vec<String>,
    /// Evidence: source lines, probe timelines, logs. Shown as it stands.
    pub detail: String,
    /// What to do, one line each, none twice.
    pub hints: Vec<String>,
    /// What was settled before it failed.
    pub settled: Vec<SettledSummary>,
    /// Steps that failed on hosts, as fields.
    pub steps: Vec<serde_json::Value>,
}

impl Failure {
    /// From an error whose text is a fragment that fits after "failed to".
    pub fn new(exit: Exit, error: &(dyn Error + 'static)) -> Self {
        let mut causes = Vec::new();
        let mut source = error.source();
        while let Some(error) = source {
            causes.push(error.to_string());
            source = error.source();
        }
        Self { exit, message: error.to_string(), causes, ..Self::text(exit, "") }
    }

    /// From a text.
    pub fn text(exit: Exit, message: impl Into<String>) -> Self {
        let (causes, hints, settled, steps) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { exit, message: message.into(), causes, detail: String::new(), hints, settled, steps }
    }

    /// The same with one more hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        if !self.hints.contains(&hint) {
            self.hints.push(hint);
        }
        self
    }

    /// The same with this evidence after what there is.
    #[must_use]
    pub fn detail(mut self, detail: impl AsRef<str>) -> Self {
        if !self.detail.is_empty() {
            self.detail.push('\n');
        }
        self.detail.push_str(detail.as_ref().trim_end());
        self
    }

    /// What failed and why, in one line.
    pub fn line(&self) -> String {
        self.causes.iter().fold(self.message.clone(), |line, cause| format!("{line}: {cause}"))
    }

    /// The whole as a person reads it.
    pub fn render(&self, color: bool) -> String {
        let paint = |code: &str, text: &str| if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() };
        let mut out = format!("{}: failed to {}", paint("1;31", "error"), self.line());
        if !self.detail.is_empty() {
            out.push('\n');
            out.push_str(&self.detail);
        }
        for hint in &self.hints {
            out.push_str(&format!("\n{}: {hint}", paint("1;36", "hint")));
        }
        out
    }

    /// The whole as fields, for `--json`.
    pub fn data(&self) -> serde_json::Value {
        serde_json::json!({
            "exit": self.exit.code(),
            "message": self.message,
            "causes": self.causes,
            "detail": self.detail,
            "hints": self.hints,
            "steps": self.steps,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_what_failed_its_causes_the_evidence_and_a_way_out() {
        let cause = std::io::Error::other("disk is full");
        #[derive(Debug, thiserror::Error)]
        #[error("write blob")]
        struct Write(#[source] std::io::Error);
        let failure = Failure::new(Exit::Internal, &Write(cause)).detail("line\n").hint("free some space");
        assert_eq!(failure.render(false), "error: failed to write blob: disk is full\nline\nhint: free some space");
    }
}
