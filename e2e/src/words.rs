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
    let style = Style::read(&style)?;
    let mut found = vec![];
    for part in PARTS {
        style.look(&repository, Path::new(part), &mut found)?;
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

/// What is looked for, and where not.
struct Style {
    words: Vec<Word>,
    no_prose: Regex,
    no_prose_in_code: Regex,
}

impl Style {
    /// The table below `| write | not |`.
    fn read(text: &str) -> Result<Self> {
        let rows = text.lines().map(str::trim);
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
        Ok(Self {
            words,
            no_prose: Regex::new(NO_PROSE)?,
            no_prose_in_code: Regex::new(NO_PROSE_IN_CODE)?,
        })
    }

    /// Looks at this file, or at all documents and programs below this folder.
    fn look(&self, root: &Path, part: &Path, found: &mut Vec<String>) -> Result<()> {
        let path = root.join(part);
        if path.is_dir() && !path.ends_with("tests") {
            let mut entries = fs::read_dir(&path)?.collect::<Result<Vec<_>, _>>()?;
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                self.look(root, &part.join(entry.file_name()), found)?;
            }
            return Ok(());
        }
        let is = |kind: &str| path.extension().is_some_and(|extension| extension == kind);
        let is_prose = is("md") || path.ends_with(CRD);
        let is_program = is("rs") && !path.ends_with("tests.rs");
        if !is_prose && !is_program {
            return Ok(());
        }
        let read = || -> Result<_> {
            let text = fs::read_to_string(&path)?;
            if is_prose {
                Ok(self.in_prose(&text))
            } else {
                self.in_program(&text)
            }
        };
        let all = read().with_context(|| format!("cannot read {}", part.display()))?;
        found.extend(all.iter().map(|one| format!("{}:{one}", part.display())));
        Ok(())
    }

    /// Each such word of a document, as "line: *this*, not *that*".
    fn in_prose(&self, text: &str) -> Vec<String> {
        // Lines keep their numbers.
        let emptied = |found: &regex::Captures<'_>| "\n".repeat(found[0].matches('\n').count());
        let prose = self.no_prose.replace_all(text, emptied);
        let lines = (1..).zip(prose.lines());
        lines
            .flat_map(|(number, line)| self.on(number, line))
            .collect()
    }

    /// Each such word of what a program says.
    fn in_program(&self, text: &str) -> Result<Vec<String>> {
        let tokens = text.parse().map_err(|error| anyhow!("{error}"))?;
        let mut said = vec![];
        sentences(tokens, &mut said);
        let found = said.iter().flat_map(|(line, text)| {
            let prose = self.no_prose_in_code.replace_all(text, "");
            self.on(*line, &prose)
        });
        Ok(found.collect())
    }

    /// Those of one line.
    fn on(&self, number: usize, line: &str) -> Vec<String> {
        let found = self.words.iter().filter_map(|Word { pattern, write }| {
            let not = pattern.find(line)?;
            Some(format!("{number}: *{write}*, not *{}*", not.as_str()))
        });
        found.collect()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "text\n\n  | write | not |\n  |---|---|\n  | reported | told |\n  | CRD | definition |\n\n| a | b |\n";

    #[test]
    fn a_word_that_has_a_better_one_is_found_in_prose_alone() {
        let style = Style::read(TABLE).unwrap();
        assert_eq!(style.words.len(), 2);
        let text = "It was Told.\n```text\ntold\n```\n[what](a-told-b.md) `told` untold\nDefinitions\nA CRD.\n";
        assert_eq!(
            style.in_prose(text),
            ["1: *reported*, not *Told*", "6: *CRD*, not *Definitions*"]
        );
    }

    #[test]
    fn of_a_program_its_sentences_are_read_and_neither_its_comments_nor_its_tests() {
        // Given words in comments, in texts that are no sentence, in what is put into one, and in tests
        let text = "//! told so\n/// told so\nfn f() { say(\"it was told\", \"told\"); \n say(\"{told} and `told` me\") }\n\
            #[cfg(test)]\nmod tests { fn g() { say(\"was told\") } }\nconst A: &str = \"a told b\";";
        let found = Style::read(TABLE).unwrap().in_program(text).unwrap();
        // Then those of the other sentences alone are found
        assert_eq!(
            found,
            ["3: *reported*, not *told*", "7: *reported*, not *told*"]
        );
    }
}
