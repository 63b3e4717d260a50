//! The words of documents, of the CRD, and of what the programs say: none of those that `STYLE.md` has a better one for.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, anyhow, ensure};
use proc_macro2::{TokenStream, TokenTree};
use regex::Regex;

use crate::paths;

/// Where the words are, in a table of those to write and those not to.
const STYLE: &str = "STYLE.md";
/// Where documents and programs are.
const PARTS: [&str; 11] = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs",
    "charts",
    "crds/src",
    "kernels/report/src",
    "kernels/src",
    "operator/plan/src",
    "operator/src",
];
/// The CRD as it is installed.
const CRD: &str = "files/cudarunners.yaml";
/// What is no prose: blocks of code, code in a line, where a link leads; and what a program puts into its sentences.
const NO_PROSE: &str = r"(?s)```.*?```|`[^`\n]*`|\]\([^)]*\)";
const NO_PROSE_IN_CODE: &str = r"`[^`]*`|\{[^}]*\}";

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
    if path.is_dir() && !path.ends_with("tests") {
        let mut entries = fs::read_dir(&path)?.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            look(root, &part.join(entry.file_name()), words, found)?;
        }
        return Ok(());
    }
    let is = |kind: &str| path.extension().is_some_and(|extension| extension == kind);
    let is_prose = is("md") || path.ends_with(CRD);
    let is_program = is("rs") && !path.ends_with("tests.rs");
    if !is_prose && !is_program {
        return Ok(());
    }
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", part.display()))?;
    let all = if is_prose {
        found_in(&text, words)
    } else {
        found_in_program(&text, words)
    };
    let all = all.with_context(|| format!("cannot read {}", part.display()))?;
    found.extend(all.iter().map(|one| format!("{}:{one}", part.display())));
    Ok(())
}

/// Each such word of what a program says.
fn found_in_program(text: &str, words: &[Word]) -> Result<Vec<String>> {
    let tokens = text.parse().map_err(|error| anyhow!("{error}"))?;
    let mut said = vec![];
    sentences(tokens, &mut said);
    let no_prose = Regex::new(NO_PROSE_IN_CODE)?;
    let of =
        |(line, text): &(usize, String)| found_on(*line, &no_prose.replace_all(text, ""), words);
    Ok(said.iter().flat_map(of).collect())
}

/// What a program says, with its lines: its texts of several words. Not comments, and not what its tests say.
fn sentences(tokens: TokenStream, found: &mut Vec<(usize, String)>) {
    let (mut is_attribute, mut is_test) = (false, false);
    for token in tokens {
        let was_attribute = is_attribute;
        is_attribute = match &token {
            TokenTree::Punct(one) => one.as_char() == '#' || was_attribute && one.as_char() == '!',
            _ => false,
        };
        match token {
            TokenTree::Group(group) if was_attribute => {
                is_test |= group.stream().to_string().replace(' ', "") == "cfg(test)";
            }
            TokenTree::Group(_) if is_test => is_test = false,
            TokenTree::Group(group) => sentences(group.stream(), found),
            TokenTree::Punct(end) if end.as_char() == ';' => is_test = false,
            TokenTree::Literal(literal) if literal.to_string().contains(' ') => {
                found.push((literal.span().start().line, literal.to_string()));
            }
            _ => {}
        }
    }
}

/// Each such word of a text, as "line: *this*, not *that*".
fn found_in(text: &str, words: &[Word]) -> Result<Vec<String>> {
    // Lines keep their numbers.
    let emptied = |found: &regex::Captures<'_>| "\n".repeat(found[0].matches('\n').count());
    let prose = Regex::new(NO_PROSE)?.replace_all(text, emptied);
    let mut found = vec![];
    for (number, line) in (1..).zip(prose.lines()) {
        found.extend(found_on(number, line, words));
    }
    Ok(found)
}

/// Those of one line.
fn found_on(number: usize, line: &str, words: &[Word]) -> Vec<String> {
    let found = words.iter().filter_map(|Word { pattern, write }| {
        let not = pattern.find(line)?;
        Some(format!("{number}: *{write}*, not *{}*", not.as_str()))
    });
    found.collect()
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

    #[test]
    fn of_a_program_its_sentences_are_read_and_neither_its_comments_nor_its_tests() {
        // Given words in comments, in texts that are no sentence, in what is put into one, and in tests
        let text = "//! told so\n/// told so\nfn f() { say(\"it was told\", \"told\"); \n say(\"{told} and `told` me\") }\n\
            #[cfg(test)]\nmod tests { fn g() { say(\"was told\") } }\nconst A: &str = \"a told b\";";
        let found = found_in_program(text, &words(TABLE).unwrap()).unwrap();
        // Then those of the other sentences alone are found
        assert_eq!(
            found,
            ["3: *reported*, not *told*", "7: *reported*, not *told*"]
        );
    }
}
