//! The documents' words: none of those that `STYLE.md` has a better one for.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use regex::Regex;

use crate::paths;

/// Where the words are, in a table of those to write and those not to.
const STYLE: &str = "STYLE.md";
/// Where documents are.
const PARTS: [&str; 5] = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs",
    "charts",
];
/// What is no prose: blocks of code, code in a line, where a link leads.
const NO_PROSE: &str = r"(?s)```.*?```|`[^`\n]*`|\]\([^)]*\)";

/// Looks at every document; an error lists what to write in place of which word, and where.
pub(crate) fn check() -> Result<()> {
    let repository = paths::repository();
    let style = fs::read_to_string(repository.join(STYLE))
        .with_context(|| format!("cannot read {STYLE}"))?;
    let words = words(&style)?;
    let mut found = vec![];
    for part in PARTS {
        look(&repository, Path::new(part), &words, &mut found)?;
    }
    ensure!(
        found.is_empty(),
        "words that {STYLE} has others for:\n{}",
        found.join("\n")
    );
    Ok(())
}

/// A word, and what is written in place of it.
struct Word {
    pattern: Regex,
    write: String,
}

/// The table below `| write | not |`.
fn words(style: &str) -> Result<Vec<Word>> {
    let rows = style.lines().map(str::trim);
    let rows = rows.skip_while(|line| *line != "| write | not |").skip(2);
    let words = rows
        .map_while(|row| {
            row.strip_prefix("| ")?
                .strip_suffix(" |")?
                .split_once(" | ")
        })
        .map(|(write, not)| {
            Ok(Word {
                pattern: Regex::new(&format!(r"(?i)\b{}s?\b", regex::escape(not)))?,
                write: write.to_owned(),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    ensure!(!words.is_empty(), "{STYLE} has no table of words");
    Ok(words)
}

/// Looks at this file, or at all documents below this folder.
fn look(root: &Path, part: &Path, words: &[Word], found: &mut Vec<String>) -> Result<()> {
    let path = root.join(part);
    if path.is_dir() {
        let mut entries = fs::read_dir(&path)?.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            look(root, &part.join(entry.file_name()), words, found)?;
        }
    } else if path.extension().is_some_and(|extension| extension == "md") {
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", part.display()))?;
        let all = found_in(&text, words)?;
        found.extend(all.iter().map(|one| format!("{}:{one}", part.display())));
    }
    Ok(())
}

/// Each such word of a text, as "line: *this*, not *that*".
fn found_in(text: &str, words: &[Word]) -> Result<Vec<String>> {
    // Lines keep their numbers.
    let emptied = |found: &regex::Captures<'_>| "\n".repeat(found[0].matches('\n').count());
    let prose = Regex::new(NO_PROSE)?.replace_all(text, emptied);
    let mut found = vec![];
    for (number, line) in (1..).zip(prose.lines()) {
        for Word { pattern, write } in words {
            if let Some(not) = pattern.find(line) {
                found.push(format!("{number}: *{write}*, not *{}*", not.as_str()));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "text\n\n  | write | not |\n  |---|---|\n  | reported | told |\n  | CRD | definition |\n\n| a | b |\n";

    #[test]
    fn a_word_that_has_a_better_one_is_found_in_prose_alone() {
        let words = words(TABLE).unwrap();
        assert_eq!(words.len(), 2);
        let text = "It was Told.\n```text\ntold\n```\n[what](a-told-b.md) `told` untold\nDefinitions\nA CRD.\n";
        assert_eq!(
            found_in(text, &words).unwrap(),
            ["1: *reported*, not *Told*", "6: *CRD*, not *Definitions*"]
        );
    }
}
