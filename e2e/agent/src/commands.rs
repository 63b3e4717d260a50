//! Workflow commands: lines of a step that speak to the agent.

use std::collections::BTreeMap;

use crate::control::Log;

/// The commands that are known; a line with another one is plain text.
const KNOWN: [&str; 16] = [
    "add-mask",
    "add-matcher",
    "add-path",
    "debug",
    "echo",
    "endgroup",
    "error",
    "group",
    "notice",
    "remove-matcher",
    "save-state",
    "set-env",
    "set-output",
    "stop-commands",
    "warning",
    "internal-set-repo-path",
];

/// What the commands of one step did.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    /// Outputs that were set on the old way.
    pub(crate) outputs: Vec<(String, String)>,
    /// State that was saved on the old way.
    pub(crate) state: Vec<(String, String)>,
    /// A command failed, and the step with it.
    pub(crate) failed: bool,
    /// No commands until this text comes as one.
    paused: Option<String>,
}

/// A line that is a command.
#[derive(Debug, PartialEq, Eq)]
struct Command<'a> {
    name: &'a str,
    properties: BTreeMap<&'a str, String>,
    data: String,
}

impl Commands {
    /// Takes a line of a step: does what it says, or prints it.
    pub(crate) fn line(&mut self, line: &str, log: &Log) {
        if let Some(token) = &self.paused {
            if parse(line).is_some_and(|command| command.name.eq_ignore_ascii_case(token)) {
                self.paused = None;
            }
            return log.line(line);
        }
        let known = |command: &Command<'_>| KNOWN.contains(&command.name.to_lowercase().as_str());
        match parse(line).filter(known) {
            Some(command) => self.run(line, &command, log),
            None => log.line(line),
        }
    }

    fn run(&mut self, line: &str, command: &Command<'_>, log: &Log) {
        let data = command.data.as_str();
        let name = command.name.to_lowercase();
        let named = || {
            command
                .properties
                .get("name")
                .cloned()
                .filter(|name| !name.is_empty())
        };
        match name.as_str() {
            "add-mask" if data.trim().is_empty() => {
                log.line(
                    "##[warning]Can't add secret mask for empty string in ##[add-mask] command.",
                );
            }
            "add-mask" => log.mask(data),
            "error" | "warning" | "notice" => {
                let title = command.properties.get("title").map_or("", String::as_str);
                log.annotate(&name, title, data);
                log.line(&format!("##[{name}]{data}"));
            }
            "group" => log.line(&format!("##[{name}]{data}")),
            "endgroup" => log.line("##[endgroup]"),
            "stop-commands" => {
                self.paused = Some(data.to_owned());
                log.line(line);
            }
            // Shown only where the server asks for it.
            "debug" => {}
            "set-env" | "add-path" => self.refuse(line, &disabled(&name), log),
            "set-output" | "save-state" => {
                let Some(key) = named() else {
                    let missing =
                        format!("Required field 'name' is missing in ##[{name}] command.");
                    return self.refuse(line, &missing, log);
                };
                log.line(&format!("##[warning]{}", deprecated(&name)));
                let pairs = if name == "set-output" {
                    &mut self.outputs
                } else {
                    &mut self.state
                };
                pairs.push((key, command.data.clone()));
            }
            _ => log.line(line),
        }
    }

    fn refuse(&mut self, line: &str, why: &str, log: &Log) {
        log.error(&format!("Unable to process command '{line}' successfully."));
        log.error(why);
        self.failed = true;
    }
}

fn disabled(command: &str) -> String {
    format!(
        "The `{command}` command is disabled. Please upgrade to using Environment Files or opt into unsecure command \
         execution by setting the `ACTIONS_ALLOW_UNSECURE_COMMANDS` environment variable to `true`. For more information \
         see: https://github.blog/changelog/2020-10-01-github-actions-deprecating-set-env-and-add-path-commands/"
    )
}

fn deprecated(command: &str) -> String {
    format!(
        "The `{command}` command is deprecated and will be disabled soon. Please upgrade to using Environment Files. For \
         more information see: https://github.blog/changelog/2022-10-11-github-actions-deprecating-save-state-and-set-output-commands/"
    )
}

/// `::name key=value,key=value::data`.
fn parse(line: &str) -> Option<Command<'_>> {
    let (head, data) = line.trim_start().strip_prefix("::")?.split_once("::")?;
    let (name, properties) = head.split_once(' ').unwrap_or((head, ""));
    let properties = properties.split(',').filter_map(|property| {
        let (key, value) = property.trim_start().split_once('=')?;
        Some((key, unescape(value, &[("%3A", ":"), ("%2C", ",")])))
    });
    Some(Command {
        name,
        properties: properties.collect(),
        data: unescape(data, &[]),
    })
}

fn unescape(text: &str, more: &[(&str, &str)]) -> String {
    let common = [("%0D", "\r"), ("%0A", "\n")];
    let all = common.iter().chain(more).chain(&[("%25", "%")]);
    all.fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// What a step's lines become in the log, without the time.
    fn printed(lines: &[&str]) -> (Vec<String>, Commands) {
        let (sender, log) = mpsc::channel();
        let mut commands = Commands::default();
        let sink = Log::new(sender, std::iter::empty());
        for line in lines {
            commands.line(line, &sink);
        }
        drop(sink);
        let text = |line: String| line.split_once(' ').unwrap().1.trim_end().to_owned();
        (log.into_iter().map(text).collect(), commands)
    }

    #[test]
    fn lines_of_a_step() {
        let table: [(&[&str], &[&str]); 9] = [
            (&["plain :: text"], &["plain :: text"]),
            (
                &["::error file=a.rs,line=3::It%0Abroke"],
                &["##[error]It\nbroke"],
            ),
            (
                &["::warning::w", "::notice::n"],
                &["##[warning]w", "##[notice]n"],
            ),
            (
                &["::group::G", "in", "::endgroup::"],
                &["##[group]G", "in", "##[endgroup]"],
            ),
            (&["::debug::d"], &[]),
            (&["::add-mask::secret", "a secret"], &["a ***"]),
            (&["::not-a-command::x"], &["::not-a-command::x"]),
            (
                &[
                    "::stop-commands::tok",
                    "::error::e",
                    "::tok::",
                    "::warning::w",
                ],
                &[
                    "::stop-commands::tok",
                    "::error::e",
                    "::tok::",
                    "##[warning]w",
                ],
            ),
            (&["  ::error::indented"], &["##[error]indented"]),
        ];
        for (lines, expected) in table {
            let (printed, commands) = printed(lines);
            assert_eq!(printed, expected);
            assert!(!commands.failed);
        }
    }

    #[test]
    fn what_is_said_of_a_job_stands_beside_it_with_its_title() {
        let (sender, _log) = mpsc::channel();
        let sink = Log::new(sender, [&"secret".to_owned()].into_iter());
        let mut commands = Commands::default();
        for line in [
            "::notice title=A%3A B::71 %25%0Amore",
            "::error::a secret",
            "::debug::d",
        ] {
            commands.line(line, &sink);
        }
        assert_eq!(
            sink.annotations(),
            ["notice A: B: 71 %\nmore", "error: a ***"]
        );
    }

    #[test]
    fn the_environment_is_not_changed_by_a_line() {
        for command in ["::set-env name=A::1", "::add-path::/x"] {
            let (printed, commands) = printed(&[command]);
            assert!(commands.failed);
            assert!(
                printed[0].contains("Unable to process command"),
                "{printed:?}"
            );
            assert!(printed[1].contains("command is disabled"), "{printed:?}");
        }
    }

    #[test]
    fn the_old_way_to_set_an_output_still_works_with_a_warning() {
        let (lines, commands) =
            printed(&["::set-output name=a%2Cb::50%25", "::save-state name=s::1"]);
        assert_eq!(commands.outputs, [("a,b".to_owned(), "50%".to_owned())]);
        assert_eq!(commands.state, [("s".to_owned(), "1".to_owned())]);
        assert!(
            lines.iter().all(|line| line.contains("deprecated")),
            "{lines:?}"
        );
        let (_, commands) = printed(&["::set-output::x"]);
        assert!(commands.failed);
    }
}
