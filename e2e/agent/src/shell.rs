//! What a `shell:` means: program, arguments, and how the script's file is called.

use anyhow::{Result, bail};

/// A shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shell {
    /// Its program, without a folder.
    pub(crate) program: String,
    /// Its arguments as one text, `{0}` for the script.
    pub(crate) arguments: String,
    /// What the script's file ends with.
    pub(crate) extension: &'static str,
}

/// The shells with a name: arguments and extension.
const BUILT_IN: [(&str, &str, &str); 4] = [
    ("bash", "--noprofile --norc -e -o pipefail {0}", ".sh"),
    ("sh", "-e {0}", ".sh"),
    ("python", "{0}", ".py"),
    ("pwsh", "-command \". '{0}'\"", ".ps1"),
];

impl Shell {
    /// The shell of a step, or of the job's defaults; without either it is `sh`.
    pub(crate) fn of(written: Option<&str>) -> Result<Self> {
        let written = written
            .filter(|written| !written.is_empty())
            .unwrap_or("sh");
        let (program, own) = written.split_once(' ').unwrap_or((written, ""));
        let built_in = BUILT_IN.iter().find(|(name, ..)| *name == program);
        let (default, extension) =
            built_in.map_or(("", ""), |(_, arguments, end)| (*arguments, *end));
        let own = own.trim_start();
        let arguments = if own.is_empty() { default } else { own };
        if !arguments.contains("{0}") {
            bail!(
                "Invalid shell option. Shell must be a valid built-in (bash, sh, cmd, powershell, pwsh) or a format \
                 string containing '{{0}}'"
            );
        }
        Ok(Self {
            program: program.to_owned(),
            arguments: arguments.to_owned(),
            extension,
        })
    }

    /// The arguments for a script, as one text.
    pub(crate) fn command_line(&self, script: &str) -> String {
        self.arguments.replace("{0}", &script.replace('"', "\\\""))
    }
}

/// Cuts a command line as the process library of the real agent does: at spaces outside of double quotes.
pub(crate) fn split(arguments: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut characters = arguments.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' if characters.peek() == Some(&'"') => {
                word.get_or_insert_default().extend(characters.next());
            }
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shells() {
        let table = [
            (None, "sh", "-e /x.sh", ".sh"),
            (Some(""), "sh", "-e /x.sh", ".sh"),
            (
                Some("bash"),
                "bash",
                "--noprofile --norc -e -o pipefail /x.sh",
                ".sh",
            ),
            (Some("python"), "python", "/x.sh", ".py"),
            (Some("bash -l {0}"), "bash", "-l /x.sh", ".sh"),
            (Some("perl {0}"), "perl", "/x.sh", ""),
            (
                Some("env \"A=b c\" sh {0}"),
                "env",
                "\"A=b c\" sh /x.sh",
                "",
            ),
        ];
        for (written, program, arguments, extension) in table {
            let shell = Shell::of(written).unwrap();
            let made = (
                shell.program.as_str(),
                shell.command_line("/x.sh"),
                shell.extension,
            );
            assert_eq!(
                made,
                (program, arguments.to_owned(), extension),
                "{written:?}"
            );
        }
        for refused in ["perl", "perl -x", "fish"] {
            let error = Shell::of(Some(refused)).unwrap_err().to_string();
            assert!(error.contains("'{0}'"), "{error}");
        }
    }

    #[test]
    fn command_lines() {
        let table: [(&str, &[&str]); 5] = [
            ("-e /x.sh", &["-e", "/x.sh"]),
            ("  a   b ", &["a", "b"]),
            ("\"A=b c\" d", &["A=b c", "d"]),
            ("a\"b c\"d \"\"", &["ab cd", ""]),
            ("say \\\"hi\\\"", &["say", "\"hi\""]),
        ];
        for (written, words) in table {
            assert_eq!(split(written), words, "{written}");
        }
    }
}
