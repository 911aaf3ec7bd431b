//! Words put together on the host: literals, secrets, and what earlier steps printed.

use jiji_model::name::SecretName;
use jiji_model::plan::{Action, OutputKind, Step, Word};
use jiji_model::secret::Secret;

use super::{ActionError, Executor};
use crate::engine::run::Value;

impl Executor<'_> {
    /// A text of several words. Secrets are put in.
    pub(super) fn text(&self, words: &[Word]) -> Result<String, ActionError> {
        let texts = words.iter().map(|word| match word {
            Word::Lit(text) => Ok(text.clone()),
            Word::Secret(name) => Ok(self.secret(name)?.reveal().to_owned()),
            Word::Output { step, kind } => self.output(step, *kind),
        });
        texts.collect()
    }

    /// Arguments. Secrets are refused: every user of the host can read arguments.
    pub(super) fn argv(&self, words: &[Word]) -> Result<Vec<String>, ActionError> {
        let words = words.iter().map(|word| match word {
            Word::Lit(text) => Ok(text.clone()),
            Word::Secret(name) => Err(ActionError::SecretArgument { name: name.to_string() }),
            Word::Output { step, kind } => self.output(step, *kind),
        });
        words.collect()
    }

    /// The value of an environment variable.
    pub(super) fn value(&self, word: &Word) -> Result<Value, ActionError> {
        match word {
            Word::Lit(text) => Ok(Value::Clear(text.clone())),
            Word::Secret(name) => Ok(Value::Secret(self.secret(name)?.clone())),
            Word::Output { step, kind } => self.output(step, *kind).map(Value::Clear),
        }
    }

    fn secret(&self, name: &SecretName) -> Result<&Secret, ActionError> {
        self.secrets.get(name).ok_or_else(|| ActionError::NoSecret { name: name.to_string() })
    }

    fn output(&self, step: &str, kind: OutputKind) -> Result<String, ActionError> {
        let output = self.transaction.output(step).ok_or_else(|| ActionError::NoOutput { step: step.to_owned() })?;
        if kind.accepts(output) {
            Ok(output.to_owned())
        } else {
            Err(ActionError::WrongOutput { step: step.to_owned(), kind })
        }
    }
}

/// Whether a step of these, or its undo, uses what step `id` printed.
pub(super) fn uses_output(steps: &[Step], id: &str) -> bool {
    let is_it = |word: &Word| matches!(word, Word::Output { step, .. } if step == id);
    steps.iter().flat_map(|step| std::iter::once(&step.action).chain(&step.undo)).any(|action| match action {
        Action::ContainerRun(spec) => spec.env.values().any(is_it),
        Action::ContainerExec { argv, .. } => argv.iter().any(is_it),
        Action::File { content, .. } => content.iter().any(is_it),
        Action::Run { argv, stdin } => argv.iter().chain(stdin).any(is_it),
        _ => false,
    })
}
