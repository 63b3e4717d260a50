//! Files through which a step speaks to the agent: `GITHUB_ENV` and the others. The agent reads them on its own side, when
//! the step is over.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::work::Place;

/// The context's name of each, and how its file is called.
const FILES: [(&str, &str); 5] = [
    ("env", "set_env_"),
    ("path", "add_path_"),
    ("output", "set_output_"),
    ("state", "save_state_"),
    ("step_summary", "step_summary_"),
];

/// The most that a summary may be.
const SUMMARY_LIMIT: usize = 1024 * 1024;

/// The files of one step.
#[derive(Debug)]
pub(crate) struct Files(Vec<(&'static str, PathBuf)>);

/// What a step left in them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) env: Vec<(String, String)>,
    pub(crate) path: Vec<String>,
    pub(crate) outputs: Vec<(String, String)>,
    pub(crate) state: Vec<(String, String)>,
    pub(crate) summary: String,
    /// What was wrong with them; each line is an error of the step.
    pub(crate) errors: Vec<String>,
}

impl Files {
    /// Empty ones.
    pub(crate) fn create(place: &Place) -> Result<Self> {
        let suffix = place.name();
        let file = |(context, prefix): (&'static str, &str)| {
            let path = place.file_commands().join(format!("{prefix}{suffix}"));
            fs::write(&path, "").with_context(|| format!("writing {}", path.display()))?;
            Ok((context, path))
        };
        FILES.into_iter().map(file).collect::<Result<_>>().map(Self)
    }

    /// The context's name and the path of each.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &PathBuf)> {
        self.0.iter().map(|(context, path)| (*context, path))
    }

    /// Reads what the step left, and deletes it.
    pub(crate) fn read(&self) -> Left {
        let mut left = Left::default();
        for (context, path) in &self.0 {
            // Who deletes its file has nothing to say.
            let bytes = fs::read(path).unwrap_or_default();
            let _ = fs::remove_file(path);
            let text = String::from_utf8_lossy(&bytes);
            if let Err(error) = left.take(context, &text) {
                left.errors.push(format!(
                    "Unable to process file command '{context}' successfully."
                ));
                left.errors.push(error.to_string());
            }
        }
        left
    }
}

impl Left {
    fn take(&mut self, context: &str, text: &str) -> Result<()> {
        match context {
            "env" => {
                for (name, value) in pairs(text)? {
                    if name.eq_ignore_ascii_case("NODE_OPTIONS") {
                        self.errors.push(
                            "Can't store NODE_OPTIONS output parameter using '$GITHUB_ENV' command."
                                .to_owned(),
                        );
                    } else {
                        self.env.push((name, value));
                    }
                }
            }
            "path" => {
                let lines = text.lines().filter(|line| !line.is_empty());
                self.path.extend(lines.map(str::to_owned));
            }
            "output" => self.outputs = pairs(text)?,
            "state" => self.state = pairs(text)?,
            _ if text.len() > SUMMARY_LIMIT => bail!(
                "$GITHUB_STEP_SUMMARY upload aborted, supports content up to a size of {}k, got {}k.",
                SUMMARY_LIMIT / 1024,
                text.len() / 1024,
            ),
            _ => text.clone_into(&mut self.summary),
        }
        Ok(())
    }
}

/// `NAME=value`, and `NAME<<END` with lines up to `END`.
fn pairs(text: &str) -> Result<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut lines = text.split_inclusive('\n');
    while let Some(line) = lines.next() {
        let line = line.strip_suffix('\n').unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let (equals, here) = (line.find('='), line.find("<<"));
        match (equals, here) {
            (Some(equals), here) if here.is_none_or(|here| equals < here) => {
                pairs.push((line[..equals].to_owned(), line[equals + 1..].to_owned()));
            }
            (_, Some(here)) => {
                let (name, end) = (&line[..here], &line[here + 2..]);
                if name.is_empty() || end.is_empty() {
                    bail!(
                        "Invalid format '{line}'. Name must not be empty and delimiter must not be empty"
                    );
                }
                pairs.push((name.to_owned(), document(&mut lines, end)?));
            }
            _ => bail!("Invalid format '{line}'"),
        }
    }
    Ok(pairs)
}

/// The lines up to one that is the delimiter.
fn document<'a>(lines: &mut impl Iterator<Item = &'a str>, end: &str) -> Result<String> {
    let mut value = String::new();
    for line in lines {
        let bare = line.strip_suffix('\n');
        if bare.unwrap_or(line) == end {
            // The break before the delimiter is not the value's.
            value.pop();
            return Ok(value);
        }
        if bare.is_none() {
            bail!("Invalid value. EOF marker missing new line.");
        }
        value.push_str(line);
    }
    Err(anyhow!(
        "Invalid value. Matching delimiter not found '{end}'"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_a_file() {
        let table: [(&str, &[(&str, &str)]); 8] = [
            ("", &[]),
            (
                "A=1\n\nB=two words=x\n",
                &[("A", "1"), ("B", "two words=x")],
            ),
            ("A=\n", &[("A", "")]),
            (
                "A<<EOF\none\ntwo\nEOF\nB=2",
                &[("A", "one\ntwo"), ("B", "2")],
            ),
            ("A<<EOF\nEOF\n", &[("A", "")]),
            ("A<<EOF\n\n\nEOF\n", &[("A", "\n")]),
            ("A=x<<y\n", &[("A", "x<<y")]),
            ("A<<E=1\nx\nE=1\n", &[("A", "x")]),
        ];
        for (text, expected) in table {
            let expected: Vec<_> = expected
                .iter()
                .map(|&(name, value)| (name.to_owned(), value.to_owned()))
                .collect();
            assert_eq!(pairs(text).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn what_is_no_pair_is_an_error_of_the_step() {
        let table = [
            ("nothing\n", "Invalid format 'nothing'"),
            ("A<<\nx\n", "delimiter must not be empty"),
            ("<<E\nx\nE\n", "Name must not be empty"),
            ("A<<E\nx\n", "delimiter not found 'E'"),
            ("A<<E\nx", "missing new line"),
        ];
        for (text, expected) in table {
            let mut left = Left::default();
            let error = left.take("output", text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn the_options_of_node_are_kept_from_the_environment() {
        let mut left = Left::default();
        left.take("env", "A=1\nnode_options=--require x\n").unwrap();
        assert_eq!(left.env, [("A".to_owned(), "1".to_owned())]);
        assert_eq!(left.errors.len(), 1);
    }
}
