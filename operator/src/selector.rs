//! Label selectors as `--selector` of kubectl takes them: `shard=a`, `shard in (a,b),!canary`.

use std::collections::BTreeMap;
use std::fmt;

use cudarunner_crds::CudaRunner;
use kube::ResourceExt as _;
use kube::core::{Expression, Selector, SelectorExt as _};

use crate::lease::{NAMESPACES, SELECTOR};

/// The longest text: what the API server takes as part of an address, with room to spare.
const LONGEST: usize = 2048;

/// Which labels are selected. See
/// <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors>.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PoolSelector(Selector);

impl PoolSelector {
    /// Whether it takes in these labels.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.matches(labels)
    }
}

impl fmt::Display for PoolSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for PoolSelector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > LONGEST {
            return Err(format!("it has more than {LONGEST} characters"));
        }
        let requirements = requirements(text)?;
        let expressions: Vec<Expression> = requirements
            .into_iter()
            .map(expression)
            .collect::<Result<_, _>>()?;
        if expressions.is_empty() {
            return Err("it is empty, which selects every pool: leave it out for that".to_owned());
        }
        Ok(Self(expressions.into_iter().collect()))
    }
}

/// Whether a pool is among those that an operator serves, as the annotations of its Lease say. A selector that cannot be read
/// selects all: it is no proof that nobody acts.
#[must_use]
pub fn is_selected(lease: &BTreeMap<String, String>, pool: &CudaRunner) -> bool {
    let namespace = pool.metadata.namespace.as_deref().unwrap_or_default();
    selects(lease, namespace, pool.labels())
}

/// The same of a pool with these labels in this namespace.
#[must_use]
pub fn selects(
    lease: &BTreeMap<String, String>,
    namespace: &str,
    labels: &BTreeMap<String, String>,
) -> bool {
    let selector = lease.get(SELECTOR);
    let selector = selector.and_then(|text| text.parse::<PoolSelector>().ok());
    let namespaces = lease.get(NAMESPACES);
    selector.is_none_or(|selector| selector.matches(labels))
        && namespaces.is_none_or(|all| all.split(',').any(|one| one == namespace))
}

/// The parts between commas, without those in parentheses.
fn requirements(text: &str) -> Result<Vec<&str>, String> {
    let (mut parts, mut rest, mut depth) = (vec![], text, 0_u32);
    let mut from = 0;
    while let Some(found) = rest[from..].find(['(', ')', ',']) {
        let at = from + found;
        match (&rest[at..=at], depth) {
            ("(", 0) => depth = 1,
            (")", 1) => depth = 0,
            (",", 0) => {
                parts.push(rest[..at].trim());
                rest = &rest[at + 1..];
                from = 0;
                continue;
            }
            (",", _) => {}
            (one, _) => return Err(format!("{one:?} is not in its place")),
        }
        from = at + 1;
    }
    if depth > 0 {
        return Err("a parenthesis is not closed".to_owned());
    }
    if !(parts.is_empty() && rest.trim().is_empty()) {
        parts.push(rest.trim());
    }
    Ok(parts)
}

fn expression(part: &str) -> Result<Expression, String> {
    if let Some(list) = part.strip_suffix(')') {
        let (head, values) = list
            .split_once('(')
            .ok_or_else(|| format!("{part:?} has no opening parenthesis"))?;
        let values = values.split(',').map(|v| value(v.trim()));
        let values = values.collect::<Result<_, _>>()?;
        let mut words = head.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(name), Some("in"), None) => Ok(Expression::In(key(name)?, values)),
            (Some(name), Some("notin"), None) => Ok(Expression::NotIn(key(name)?, values)),
            _ => Err(format!(
                "write {part:?} as `KEY in (VALUE,…)` or `KEY notin (VALUE,…)`"
            )),
        };
    }
    if let Some(name) = part.strip_prefix('!') {
        return Ok(Expression::DoesNotExist(key(name.trim())?));
    }
    if let Some((name, of)) = part.split_once("!=") {
        return Ok(Expression::NotEqual(key(name.trim())?, value(of.trim())?));
    }
    if let Some((name, of)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(Expression::Equal(key(name.trim())?, value(of.trim())?));
    }
    Ok(Expression::Exists(key(part)?))
}

/// A label's key: a name, with a DNS name and a slash before it or not.
fn key(text: &str) -> Result<String, String> {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let is_dns = |prefix: &str| {
        let is_part = |part: &str| {
            is_word(part, |c| {
                c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
            })
        };
        prefix.len() <= 253 && prefix.split('.').all(is_part)
    };
    let is_key = is_label(name) && prefix.is_none_or(is_dns);
    let wrong = || format!("{text:?} is no label's key");
    is_key.then(|| text.to_owned()).ok_or_else(wrong)
}

/// A label's value, which may be empty.
fn value(text: &str) -> Result<String, String> {
    let is_value = text.is_empty() || is_label(text);
    let wrong = || format!("{text:?} is no label's value");
    is_value.then(|| text.to_owned()).ok_or_else(wrong)
}

/// At most 63 characters, the first and the last of them a letter or a digit.
fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_word(text, |c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn is_word(text: &str, allowed: impl Fn(char) -> bool) -> bool {
    let is_end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    is_end(text.chars().next()) && is_end(text.chars().next_back()) && text.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_read_as_kubectl_reads_it() {
        let labels = |text: &str| -> BTreeMap<String, String> {
            let pairs = text.split_whitespace().filter_map(|l| l.split_once('='));
            pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
        };
        // The text, how it is sent, labels that it takes in, and labels that it does not
        for (text, sent, yes, no) in [
            ("shard=a", "shard=a", "shard=a x=1", "shard=b"),
            ("shard == a", "shard=a", "shard=a", ""),
            ("shard!=a", "shard!=a", "", "shard=a"),
            ("shard in (a, b)", "shard in (a,b)", "shard=b", "shard=c"),
            ("shard notin (a,b)", "shard notin (a,b)", "", "shard=a"),
            ("shard", "shard", "shard=", "x=1"),
            ("!shard", "!shard", "x=1", "shard=a"),
            (
                "acme.example/team in (ml,hpc) , !canary,tier!=low",
                "acme.example/team in (hpc,ml),!canary,tier!=low",
                "acme.example/team=ml",
                "acme.example/team=ml canary=yes",
            ),
            ("shard=", "shard=", "shard=", "shard=a"),
        ] {
            let selector: PoolSelector = text.parse().unwrap();
            assert_eq!(selector.to_string(), sent, "{text}");
            assert!(selector.matches(&labels(yes)), "{text} takes in {yes}");
            assert!(!selector.matches(&labels(no)), "{text} takes in {no}");
            assert_eq!(selector.to_string().parse(), Ok(selector), "{text}");
        }
    }

    #[test]
    fn a_lease_says_which_pools_its_operator_serves() {
        let labels = BTreeMap::from([("shard".to_owned(), "a".to_owned())]);
        for (selector, namespaces, is_one) in [
            (None, None, true),
            (Some("shard=a"), None, true),
            (Some("shard=b"), None, false),
            (Some("shard in"), None, true),
            (None, Some("ci,ml"), true),
            (None, Some("ml"), false),
            (Some("shard=a"), Some("ml"), false),
        ] {
            let said = [(SELECTOR, selector), (NAMESPACES, namespaces)];
            let said = said
                .into_iter()
                .filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned())));
            let lease: BTreeMap<String, String> = said.collect();
            assert_eq!(selects(&lease, "ci", &labels), is_one, "{lease:?}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for text in [
            "",
            " ",
            ",",
            "a=b,",
            "shard in a,b",
            "shard in (a,b",
            "shard in a,b)",
            "shard within (a)",
            "shard in ((a))",
            "in (a)",
            "shard = a b",
            "shard=-a",
            "Acme.example/team=a",
            "/team=a",
            "a/b/c=d",
            "=a",
            "!",
            "shard>1",
            "shärd=a",
        ] {
            assert!(text.parse::<PoolSelector>().is_err(), "{text:?}");
        }
        assert!("a".repeat(64).parse::<PoolSelector>().is_err());
        assert!("a,".repeat(2000).parse::<PoolSelector>().is_err());
    }
}
