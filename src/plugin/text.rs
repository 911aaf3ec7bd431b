//! Text of plugins on its way to people: no control characters, no end.

/// Most characters of one sentence of a plugin.
const SENTENCE: usize = 600;

/// A sentence without control characters and line breaks, cut where it does not end.
pub(super) fn sentence(text: &str) -> String {
    let clean: String = without_sequences(text)
        .chars()
        .map(|c| if c == '\n' || c == '\t' { ' ' } else { c })
        .filter(|c| !c.is_control() && !reorders(*c))
        .take(SENTENCE + 1)
        .collect();
    if clean.chars().count() > SENTENCE {
        return clean.chars().take(SENTENCE).chain(['…']).collect();
    }
    clean.trim().to_owned()
}

/// Characters that change the direction of what follows: a line could be made to read otherwise than it is.
fn reorders(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Terminal sequences go whole, so that no `[31m` is left of them.
fn without_sequences(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' && chars.peek() == Some(&'[') {
            chars.next();
            // Parameters and intermediates, then one final byte (ECMA-48, 5.4).
            while chars.next_if(|c| ('\u{20}'..='\u{3f}').contains(c)).is_some() {}
            chars.next_if(|c| ('\u{40}'..='\u{7e}').contains(c));
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_plugins_text_moves_the_cursor_or_turns_the_line() {
        assert_eq!(sentence("\u{1b}[31mred\u{1b}[0m\r\nand\u{7} \u{202e}more"), "red and more");
        assert_eq!(sentence("\u{1b}]0;title\u{7}x"), "]0;titlex");
        assert_eq!(sentence(&"ä".repeat(5_000)).chars().count(), SENTENCE + 1);
    }
}
