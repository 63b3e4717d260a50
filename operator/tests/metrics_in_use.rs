//! The chart's alerts and its dashboard ask for metrics, labels and values that the operator has.
#![allow(clippy::unwrap_used, reason = "a test, with its helpers")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use cuda_runner_operator::metrics::catalogue::{ALL, Entry, Kind, PREFIX};
use cuda_runner_plan::condition::kind;
use cudarunner_crds::RunnerPhase;
use gate_report::Class;
use serde_json::{Value, json};

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn chart(file: &str) -> String {
    let folder = repository().join("charts/cuda-runner-operator/files");
    std::fs::read_to_string(folder.join(file)).unwrap()
}

fn rules() -> Vec<Value> {
    let file: Value = serde_saphyr::from_str(&chart("alerts.yaml")).unwrap();
    let groups = file["groups"].as_array().unwrap();
    let rules = groups.iter().flat_map(|g| g["rules"].as_array().unwrap());
    rules.cloned().collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&chart("dashboard.json")).unwrap()
}

/// The expressions of all panels.
fn asked_by_dashboard() -> Vec<String> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array())
        .flatten();
    targets
        .map(|target| target["expr"].as_str().unwrap().to_owned())
        .collect()
}

/// A word of `PromQL`, a string in it, or a sign.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Sign(char),
}

/// Enough of `PromQL` to find names, labels and strings.
fn tokens(expr: &str) -> Vec<Token> {
    let mut tokens = vec![];
    let mut rest = expr.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '"' {
            tokens.push(Token::Text(
                rest.by_ref().take_while(|c| *c != '"').collect(),
            ));
        } else if c.is_ascii_alphabetic() || c == '_' {
            let mut word = String::from(c);
            while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                word.push(c);
            }
            tokens.push(Token::Word(word));
        } else if !c.is_whitespace() {
            tokens.push(Token::Sign(c));
        }
    }
    tokens
}

fn of_sample(name: &str) -> Option<&'static Entry> {
    ALL.iter()
        .find(|entry| entry.samples().iter().any(|sample| sample == name))
}

fn labels_of(entry: &Entry) -> impl Iterator<Item = &'static str> {
    let bounds = (entry.kind == Kind::Histogram).then_some("le");
    entry.labels.iter().copied().chain(bounds)
}

/// Whether a value is one that the label can have; only labels with a list of their own are looked at.
fn is_possible(label: &str, value: &str) -> bool {
    match label {
        "condition" => kind::ALL.contains(&value),
        "phase" => serde_json::from_value::<RunnerPhase>(json!(value)).is_ok(),
        "class" => value.is_empty() || Class::ALL.iter().any(|class| class.as_str() == value),
        _ => true,
    }
}

/// What is wrong with an expression.
fn faults(expr: &str) -> Vec<String> {
    let tokens = tokens(expr);
    let mut faults = vec![];
    let mut known = BTreeSet::new();
    let mut grouped = vec![];
    let mut i = 0;
    while i < tokens.len() {
        let Token::Word(word) = &tokens[i] else {
            i += 1;
            continue;
        };
        let list = |open: char, close: char| {
            let is_open = tokens.get(i + 1) == Some(&Token::Sign(open));
            let end = tokens[i..].iter().position(|t| *t == Token::Sign(close));
            end.filter(|_| is_open)
                .map_or(&[][..], |end| &tokens[i + 2..i + end])
        };
        if word.starts_with(PREFIX) {
            match of_sample(word) {
                None => faults.push(format!("there is no {word}")),
                Some(entry) => {
                    known.extend(labels_of(entry));
                    for matcher in list('{', '}').split(|t| *t == Token::Sign(',')) {
                        let Some(Token::Word(label)) = matcher.first() else {
                            continue;
                        };
                        if !labels_of(entry).any(|l| l == label) {
                            faults.push(format!("{word} has no label {label}"));
                        }
                        if let Some(Token::Text(values)) = matcher.last() {
                            let values = values.split('|');
                            let bad = values.filter(|v| !is_possible(label, v));
                            faults.extend(bad.map(|v| format!("{label} is never {v}")));
                        }
                    }
                }
            }
        } else if [
            "by",
            "without",
            "on",
            "ignoring",
            "group_left",
            "group_right",
        ]
        .contains(&word.as_str())
        {
            grouped.extend(list('(', ')').iter().filter_map(|t| match t {
                Token::Word(label) => Some(label.clone()),
                _ => None,
            }));
        }
        i += 1;
    }
    if known.is_empty() && faults.is_empty() {
        faults.push("it asks for none of our metrics".to_owned());
    }
    let strange = grouped.iter().filter(|l| !known.contains(l.as_str()));
    faults.extend(strange.map(|label| format!("nothing in it has the label {label}")));
    faults
}

#[test]
fn every_expression_asks_for_what_there_is() {
    let alerts = rules();
    let alerts = alerts
        .iter()
        .map(|r| r["expr"].as_str().unwrap().to_owned());
    let all: Vec<String> = alerts.chain(asked_by_dashboard()).collect();
    assert!(all.len() > 30, "only {} expressions were found", all.len());
    let faulty: BTreeMap<_, _> = all
        .iter()
        .map(|expr| (expr, faults(expr)))
        .filter(|(_, faults)| !faults.is_empty())
        .collect();
    assert!(faulty.is_empty(), "{faulty:#?}");
}

#[test]
fn a_wrong_expression_is_found() {
    for (expr, fault) in [
        ("cudarunner_runnerz", "there is no cudarunner_runnerz"),
        // A counter is asked for by the name of its sample.
        (
            "rate(cudarunner_gate_outcomes[5m])",
            "there is no cudarunner_gate_outcomes",
        ),
        (
            r#"cudarunner_runners{node="a"}"#,
            "cudarunner_runners has no label node",
        ),
        (
            r#"cudarunner_runners{phase=~"Idle|Bussy"}"#,
            "phase is never Bussy",
        ),
        (
            r#"cudarunner_pool_condition{condition="Staled"} == 1"#,
            "condition is never Staled",
        ),
        (
            "sum by (le) (cudarunner_runners)",
            "nothing in it has the label le",
        ),
        ("up == 0", "it asks for none of our metrics"),
    ] {
        assert_eq!(faults(expr), [fault], "{expr}");
    }
}

#[test]
fn alerts_name_labels_that_their_expression_has() {
    for rule in rules() {
        let alert = rule["alert"].as_str().unwrap();
        let expr = rule["expr"].as_str().unwrap();
        for (_, text) in rule["annotations"].as_object().unwrap() {
            let text = text.as_str().unwrap();
            for after in text.split("$labels.").skip(1) {
                let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                let label = Token::Word(after[..end.unwrap()].to_owned());
                assert!(tokens(expr).contains(&label), "{alert}: {text}");
            }
        }
    }
}

#[test]
fn every_alert_is_in_the_guide() {
    let guide = repository().join("docs/guides/monitoring.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let explained: BTreeSet<&str> = guide
        .lines()
        .filter_map(|line| line.strip_prefix("| `CudaRunner")?.split('`').next())
        .collect();
    let rules = rules();
    let alerts = rules.iter().map(|r| r["alert"].as_str().unwrap());
    let alerts: BTreeSet<&str> = alerts
        .map(|a| a.strip_prefix("CudaRunner").unwrap())
        .collect();
    assert_eq!(explained, alerts);
}

#[test]
fn every_metric_is_asked_for() {
    let alerts = rules();
    let alerts = alerts
        .iter()
        .map(|r| r["expr"].as_str().unwrap().to_owned());
    let asked: String = alerts.chain(asked_by_dashboard()).collect();
    let idle: Vec<String> = ALL
        .iter()
        .filter(|entry| !entry.samples().iter().any(|name| asked.contains(name)))
        .map(Entry::name)
        // It is joined to others by hand.
        .filter(|name| name != "cudarunner_pool_info")
        .collect();
    assert_eq!(idle, Vec::<String>::new());
}
