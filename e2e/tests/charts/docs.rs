//! The tables of values in the charts' READMEs, written from `values.yaml`. `UPDATE_DOCS=1` writes them anew.

use std::fmt::Write as _;

use serde_json::Value;

use super::{folder, parsed};

const BEGIN: &str = "<!-- generated from values.yaml: begin -->\n";
const END: &str = "<!-- generated: end -->\n";

#[test]
fn readmes_list_the_values() {
    for chart in ["cuda-runner", "cuda-runner-operator"] {
        let path = folder(chart).join("README.md");
        let text = std::fs::read_to_string(&path).unwrap();
        let (head, rest) = text.split_once(BEGIN).unwrap();
        let (_, tail) = rest.split_once(END).unwrap();
        let now = format!("{head}{BEGIN}{}{END}{tail}", table(chart));
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, now).unwrap();
            continue;
        }
        assert!(
            text == now,
            "{} is stale: UPDATE_DOCS=1 cargo test -p e2e --test charts readmes",
            path.display()
        );
    }
}

fn table(chart: &str) -> String {
    let text = std::fs::read_to_string(folder(chart).join("values.yaml")).unwrap();
    let values = parsed(chart, "values.yaml");
    let explained = comments(&text);
    for leaf in leaves("", &values) {
        let known =
            |(path, _): &(String, String)| leaf == *path || leaf.starts_with(&format!("{path}/"));
        assert!(
            explained.iter().any(known),
            "{chart}: {leaf} has no comment"
        );
    }
    let mut table = String::from("\n| value | default | meaning |\n|---|---|---|\n");
    for (path, meaning) in explained {
        let name = path[1..].replace('/', ".");
        let default = match values.pointer(&path).unwrap() {
            Value::String(text) if !text.is_empty() => text.clone(),
            other => other.to_string(),
        };
        writeln!(
            table,
            "| `{name}` | `{default}` | {} |",
            meaning.replace('|', "\\|")
        )
        .unwrap();
    }
    table.push('\n');
    table
}

/// The comment above each value, with the value's path, in the order of the file. A comment that a blank line follows
/// belongs to no value.
fn comments(yaml: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    let mut parents: Vec<(usize, &str)> = Vec::new();
    for line in yaml.lines() {
        let content = line.trim_start();
        let indent = line.len() - content.len();
        if let Some(words) = content.strip_prefix('#') {
            comment.push(words.trim());
            continue;
        }
        if let Some((name, _)) = content.split_once(':') {
            parents.retain(|(outer, _)| *outer < indent);
            parents.push((indent, name));
            if !comment.is_empty() {
                let path = parents
                    .iter()
                    .fold(String::new(), |path, (_, name)| path + "/" + name);
                found.push((path, comment.join(" ")));
            }
        }
        comment.clear();
    }
    found
}

fn leaves(path: &str, value: &Value) -> Vec<String> {
    match value.as_object() {
        Some(parts) if !parts.is_empty() => parts
            .iter()
            .flat_map(|(name, part)| leaves(&format!("{path}/{name}"), part))
            .collect(),
        _ => vec![path.to_owned()],
    }
}

#[test]
fn a_comment_belongs_to_the_value_below_it() {
    let yaml = "# Of the file.\n\na:\n  # One\n  # two.\n  b: 1\n  c: 2\n# Three.\nd: {}\n";
    let found = comments(yaml);
    let expected = [("/a/b", "One two."), ("/d", "Three.")];
    assert_eq!(
        found,
        expected.map(|(path, text)| (path.to_owned(), text.to_owned()))
    );
}
