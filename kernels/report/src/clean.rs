//! Text from outside, made harmless for logs, Events, statuses, metrics and terminals.

use serde_json::Value;

/// Ends a text that was cut.
const ELLIPSIS: char = '…';

/// Whether nobody sees a character, or it changes how others are shown: controls of terminals, what turns the direction
/// of text, separators of lines, and what has no width. Joiners go as well; a name that must stay what it is, is not for
/// here.
#[must_use]
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// One line of at most `max` characters without hidden ones: what ends a line or moves along it becomes a space.
#[must_use]
pub fn clean(text: &str, max: usize) -> String {
    let visible = text.chars().filter_map(|c| match c {
        '\t' | '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}' => Some(' '),
        c if is_hidden(c) => None,
        c => Some(c),
    });
    let mut line = String::new();
    for (number, c) in visible.enumerate() {
        if number == max {
            line.pop();
            if max > 0 {
                line.push(ELLIPSIS);
            }
            break;
        }
        line.push(c);
    }
    line
}

/// Cleans every text of a JSON value, names of fields too.
pub fn clean_all(value: &mut Value, max: usize) {
    match value {
        Value::String(text) => *text = clean(text, max),
        Value::Array(items) => items.iter_mut().for_each(|item| clean_all(item, max)),
        Value::Object(fields) => {
            let old = std::mem::take(fields);
            fields.extend(old.into_iter().map(|(name, mut field)| {
                clean_all(&mut field, max);
                (clean(&name, max), field)
            }));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_forges_lines_or_moves_a_cursor_is_gone() {
        for (text, cleaned) in [
            ("plain, größer 你好 🚀", "plain, größer 你好 🚀"),
            ("a\u{1b}[2J\u{1b}]0;x\u{7}b", "a[2J]0;xb"),
            ("ok\nerror: forged", "ok error: forged"),
            ("a\r\nb\tc", "a  b c"),
            ("a\u{9b}31mb\u{7f}c\u{0}", "a31mbc"),
            ("ab\u{202e}dc\u{2066}e\u{2069}", "abdce"),
            ("a\u{200b}b\u{feff}c\u{ad}d\u{e0041}", "abcd"),
            ("a\u{2028}b\u{2029}c\u{85}d", "a b c d"),
        ] {
            assert_eq!(clean(text, 100), cleaned);
        }
        assert_eq!(clean("abcdef", 6), "abcdef");
        assert_eq!(clean("abcdefg", 6), "abcde…");
        assert_eq!(clean("abc", 0), "");
    }

    proptest! {
        #[test]
        fn nothing_hidden_is_left_and_no_more_than_was_allowed(
            text in proptest::collection::vec(any::<char>(), 0..200),
            marks in "[\\u{0}-\\u{20}\\u{7f}-\\u{9f}\\u{200b}-\\u{206f}]{0,20}",
            max in 0..120_usize,
        ) {
            let text = text.into_iter().collect::<String>() + &marks;
            let line = clean(&text, max);
            prop_assert!(!line.chars().any(is_hidden), "{line:?}");
            prop_assert!(line.chars().count() <= max);
            prop_assert_eq!(clean(&line, max), line);
        }
    }
}
