//! The rules that hold for a branch, whatever ruleset they come from.

use serde_json::{Value, json};

use crate::{
    answer::Answer,
    call::Call,
    rest::repos,
    state::{Repository, World},
};

/// `GET …/rules/branches/{branch}`
pub fn of_branch(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let repository = repos::named(world, call)?;
    let branch = call.parameter("branch");
    let mut all = Vec::new();
    for (id, ruleset) in &repository.rulesets {
        if !applies(repository, ruleset, branch) {
            continue;
        }
        for rule in ruleset
            .get("rules")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let mut rule = rule.clone();
            rule["ruleset_source_type"] = json!("Repository");
            rule["ruleset_source"] = json!(repository.full_name);
            rule["ruleset_id"] = json!(id);
            all.push(rule);
        }
    }
    Ok(Answer::page(None, call.page(all)))
}

fn applies(repository: &Repository, ruleset: &Value, branch: &str) -> bool {
    let text = |name: &str| ruleset.get(name).and_then(Value::as_str);
    if text("enforcement") != Some("active") || text("target") != Some("branch") {
        return false;
    }
    let named = |list: &str| {
        ruleset
            .pointer(&format!("/conditions/ref_name/{list}"))
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .any(|pattern| match pattern {
                "~ALL" => true,
                "~DEFAULT_BRANCH" => branch == repository.default_branch,
                pattern => fnmatch(pattern, &format!("refs/heads/{branch}")),
            })
    };
    named("include") && !named("exclude")
}

/// `*` stands for anything within a part of the path, `**/` for any number of parts.
fn fnmatch(pattern: &str, text: &str) -> bool {
    let mut expression = String::from("^");
    let mut rest = pattern;
    while let Some(next) = rest.chars().next() {
        if let Some(tail) = rest.strip_prefix("**/") {
            expression.push_str("(.*/)?");
            rest = tail;
            continue;
        }
        match next {
            '*' => expression.push_str("[^/]*"),
            '?' => expression.push_str("[^/]"),
            other => expression.push_str(&regex::escape(&other.to_string())),
        }
        rest = &rest[next.len_utf8()..];
    }
    expression.push('$');
    regex::Regex::new(&expression).is_ok_and(|expression| expression.is_match(text))
}

#[cfg(test)]
mod tests {
    use super::fnmatch;

    #[test]
    fn patterns_of_references() {
        assert!(fnmatch("refs/heads/main", "refs/heads/main"));
        assert!(fnmatch("refs/heads/release/*", "refs/heads/release/1"));
        assert!(!fnmatch("refs/heads/*", "refs/heads/release/1"));
        assert!(fnmatch("refs/heads/**/x", "refs/heads/a/b/x"));
        assert!(!fnmatch("refs/heads/main", "refs/heads/mainly"));
    }
}
