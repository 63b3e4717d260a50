//! Words of a text, as a shell has them: of `options:`, and of a step's arguments, which the agent cuts at every space.

/// The words; `None` where a quote is not closed. Nothing is expanded, and a `#` begins no comment.
pub(super) fn words(text: &str) -> Option<Vec<String>> {
    let (mut words, mut word) = (vec![], None::<String>);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '"' => break,
                        '\\' => match chars.next()? {
                            c @ ('"' | '\\' | '$' | '`') => word.push(c),
                            '\n' => {}
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => match chars.next()? {
                '\n' => {}
                c => word.get_or_insert_default().push(c),
            },
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_a_shells() {
        for (text, expected) in [
            ("", &[][..]),
            ("  a  b\tc ", &["a", "b", "c"]),
            (
                "--noprofile --norc -e -o pipefail /__w/_temp/x.sh",
                &[
                    "--noprofile",
                    "--norc",
                    "-e",
                    "-o",
                    "pipefail",
                    "/__w/_temp/x.sh",
                ],
            ),
            (
                "\"/__w/_actions/a b/index.js\"",
                &["/__w/_actions/a b/index.js"],
            ),
            (
                r#"-e A='b c' --health-cmd "redis-cli \"ping\"""#,
                &["-e", "A=b c", "--health-cmd", "redis-cli \"ping\""],
            ),
            (r#"a\ b "c\d" '\e'"#, &["a b", r"c\d", r"\e"]),
            ("'' \"\"", &["", ""]),
            ("a #b", &["a", "#b"]),
            ("$HOME `x` *", &["$HOME", "`x`", "*"]),
        ] {
            assert_eq!(words(text).unwrap(), expected, "{text}");
        }
        for text in ["'a", "\"a", "a\\", "\"a\\"] {
            assert_eq!(words(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_quoted_comes_back(list in proptest::collection::vec("\\PC{0,12}|[ '\"\\\\\n]{0,6}", 0..6)) {
            let quoted: Vec<String> = list
                .iter()
                .map(|word| format!("'{}'", word.replace('\'', r"'\''")))
                .collect();
            prop_assert_eq!(words(&quoted.join(" ")), Some(list));
        }

        #[test]
        fn any_text_has_words_or_none(text in any::<String>()) {
            let _ = words(&text);
        }
    }
}
