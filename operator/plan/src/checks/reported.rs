//! What the condition `ChecksRequired` says.

use cudarunner_crds::{ChecksMode, RequiredChecks, RequiredChecksStatus};

use super::{Branch, CheckFacts, green};
use crate::Observed;
use crate::condition::{ConditionState, condition_state};
use crate::model::github::{Protection, Repository};
use crate::model::pool::{Pool, Spec};
use crate::reason::Reason;

/// What the condition `ChecksRequired` says.
pub(crate) fn required(
    pool: &Pool,
    record: Option<&RequiredChecksStatus>,
    observed: &Observed,
) -> ConditionState {
    let Ok(spec) = &pool.spec else {
        return condition_state(
            "Unknown",
            Reason::NotStarted,
            "The spec cannot be carried out",
        );
    };
    let facts = &observed.checks;
    if let Some((reason, message)) = &facts.trouble {
        return condition_state("False", *reason, message.clone());
    }
    let Some(asked) = &spec.required_checks else {
        let (reason, message) = match record {
            Some(_) => (
                Reason::Removing,
                "What was required for this pool is being removed",
            ),
            None => (Reason::NotAsked, "spec.requiredChecks is not set"),
        };
        return condition_state("Unknown", reason, message);
    };
    if let Some(missing) = record.and_then(|record| not_reported(pool, record)) {
        return condition_state("False", Reason::CheckNotReported, missing);
    }
    let Some(record) = record.filter(|record| !record.checks.is_empty()) else {
        return condition_state(
            "Unknown",
            Reason::WaitsForVerification,
            "Checks are required when the verification was green",
        );
    };
    if facts.read.is_none() {
        return condition_state(
            "Unknown",
            Reason::Reading,
            "GitHub is asked what is required",
        );
    }
    let unseen: Vec<&str> = record
        .checks
        .iter()
        .filter(|check| !check.seen && !asked.allow_unseen)
        .map(|check| check.context.as_str())
        .collect();
    if !unseen.is_empty() {
        return condition_state(
            "False",
            Reason::NotSeenOnPullRequest,
            not_seen(&unseen, facts),
        );
    }
    judge(spec, asked, record, facts)
}

/// The job of the green run whose check the run has not reported.
fn not_reported(pool: &Pool, record: &RequiredChecksStatus) -> Option<String> {
    let green = green(pool).filter(|green| record.run_id == green.run_id)?;
    let is_missing = |name: &str| record.checks.iter().all(|c| c.context != name);
    let missing = green.jobs.iter().find(|job| is_missing(&job.name))?;
    Some(format!(
        "The green run has reported no check named {}: {}",
        missing.name,
        green.url.as_deref().unwrap_or_default()
    ))
}

fn not_seen(unseen: &[&str], facts: &CheckFacts) -> String {
    let skipped = unseen.iter().copied();
    let skipped: Vec<&str> = skipped
        .filter(|name| facts.skipped.contains(*name))
        .collect();
    if !skipped.is_empty() {
        return format!(
            "Pull requests skip {}: GitHub counts a skipped check as passed, so to require it would prove nothing. Look at the `if` of the job and of those that it needs, and let it run on pull requests, or set spec.requiredChecks.allowUnseen",
            skipped.join(", ")
        );
    }
    let filtered = facts.triggers.as_ref().is_some_and(|t| t.is_filtered);
    let why = if filtered {
        "its trigger pull_request has filters for paths or branches; "
    } else {
        ""
    };
    format!(
        "No recent pull request has reported {}: {why}a required check that never reports blocks every pull request permanently. Open a pull request that runs the workflow, or set spec.requiredChecks.allowUnseen",
        unseen.join(", ")
    )
}

/// Branch by branch: required, not changed as asked, or in the way.
fn judge(
    spec: &Spec,
    asked: &RequiredChecks,
    record: &RequiredChecksStatus,
    facts: &CheckFacts,
) -> ConditionState {
    let names: Vec<&str> = record.checks.iter().map(|c| c.context.as_str()).collect();
    let own = facts.ruleset.as_ref().map(|(id, _)| *id);
    let (mut done, mut skipped, mut open) = (vec![], vec![], vec![]);
    for wanted in &asked.branches {
        let name = &wanted.name;
        let Some(branch) = facts.branches.get(name) else {
            open.push(name.as_str());
            continue;
        };
        let is_free = match asked.mode {
            ChecksMode::BranchProtection => branch.protection == Protection::Unprotected,
            ChecksMode::Ruleset => !branch.is_protected(own),
        };
        if wanted.if_protected && is_free {
            skipped.push(name.as_str());
            continue;
        }
        if let Some((reason, message)) = branch.obstacle(name, asked.mode, spec) {
            return condition_state("False", reason, message);
        }
        if facts.requires(branch, name, &names, asked.mode) {
            done.push(name.as_str());
        } else {
            open.push(name.as_str());
        }
    }
    if !open.is_empty() {
        let message = format!(
            "{} are being required on {}",
            names.join(", "),
            open.join(", ")
        );
        return condition_state("Unknown", Reason::Adding, message);
    }
    let parts = in_place(&names, &done, &skipped, facts);
    condition_state("True", Reason::Required, parts.join(". "))
}

/// What is required where, what is not changed, and what will be a nuisance.
fn in_place(names: &[&str], done: &[&str], skipped: &[&str], facts: &CheckFacts) -> Vec<String> {
    let mut parts = if done.is_empty() {
        vec!["No branch is protected, and none is to be changed then".to_owned()]
    } else {
        vec![format!(
            "Required on {}: {}",
            done.join(", "),
            names.join(", ")
        )]
    };
    if !skipped.is_empty() {
        parts.push(format!(
            "Not protected, and not changed: {}",
            skipped.join(", ")
        ));
    }
    parts.extend(warnings(names, done, facts));
    parts
}

impl CheckFacts {
    /// Whether all these checks are required on the branch of that name.
    fn requires(&self, branch: &Branch, name: &str, names: &[&str], mode: ChecksMode) -> bool {
        match (&branch.protection, mode) {
            (Protection::Requires(there), ChecksMode::BranchProtection) => {
                names.iter().all(|n| there.iter().any(|t| t == n))
            }
            (_, ChecksMode::Ruleset) => self.ruleset.as_ref().is_some_and(|(_, ruleset)| {
                let there = |name: &&str| ruleset.checks.iter().any(|c| &c.context == name);
                ruleset.branches.contains(name) && names.iter().all(there)
            }),
            _ => false,
        }
    }
}

/// What will make required checks a nuisance, though they are required.
fn warnings(names: &[&str], done: &[&str], facts: &CheckFacts) -> Vec<String> {
    let mut warnings = vec![];
    let is_twice = |name: &&str| facts.elsewhere.contains(*name);
    let twice: Vec<&str> = names.iter().copied().filter(is_twice).collect();
    if !twice.is_empty() {
        warnings.push(format!(
            "Warning: another workflow reports {}, too; either satisfies the requirement",
            twice.join(", ")
        ));
    }
    let Some(triggers) = &facts.triggers else {
        return warnings;
    };
    if triggers.is_filtered {
        warnings.push("Warning: the workflow's trigger pull_request has filters; a pull request that they leave out waits for these checks permanently".to_owned());
    }
    let has_queue = |name: &&str| {
        let rules = facts.branches.get(*name).map(|b| &b.rules);
        rules.into_iter().flatten().any(|r| r.kind == "merge_queue")
    };
    let queued: Vec<&str> = done.iter().copied().filter(has_queue).collect();
    if !triggers.merge_group && !queued.is_empty() {
        warnings.push(format!(
            "Warning: {} has a merge queue, and the workflow has no trigger merge_group: the queue waits for these checks permanently",
            queued.join(", ")
        ));
    }
    warnings
}

impl Branch {
    /// What keeps a check from being required there.
    fn obstacle(&self, name: &str, mode: ChecksMode, spec: &Spec) -> Option<(Reason, String)> {
        let place = spec.repository.as_ref().map_or("", Repository::full_name);
        match (&self.protection, mode) {
            (Protection::NoBranch, _) => Some((
                Reason::BranchNotFound,
                format!("{place} has no branch {name}; correct spec.requiredChecks.branches"),
            )),
            (Protection::NotInPlan(words), _) => Some((
                Reason::NotInPlan,
                format!("GitHub has no branch protection for {place}: {words}"),
            )),
            (Protection::Unprotected, ChecksMode::BranchProtection) => {
                let ruled = if self.rules.is_empty() {
                    ""
                } else {
                    " (only rulesets hold for it)"
                };
                Some((
                    Reason::BranchNotProtected,
                    format!(
                        "{name} of {place} has no branch protection{ruled}, and none is made for you: protect it, set ifProtected to leave it alone, or use the mode Ruleset"
                    ),
                ))
            }
            (Protection::WithoutChecks, ChecksMode::BranchProtection) => Some((
                Reason::StatusChecksNotEnabled,
                format!(
                    "{name} of {place} is protected without required status checks, and that part of a protection can only be switched on by you: tick \"Require status checks to pass before merging\", or use the mode Ruleset"
                ),
            )),
            _ => None,
        }
    }
}
