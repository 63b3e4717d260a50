//! The required checks: which names, on which branches, and how they go again.
//!
//! What is to be added is in the status before it is added. A crash in between leaves a name on record that may or may
//! not be at GitHub; the next look tells, and either adds it or knows that it is ours to take away.

use std::collections::{BTreeMap, BTreeSet};

use cudarunner_crds::{
    BranchChecks, ChecksMode, CudaRunnerSpec, CudaRunnerStatus, ProvenCheck, RequiredChecks,
    RequiredChecksStatus, VerificationState, VerificationStatus,
};
use jiff::{SignedDuration, Timestamp};

use super::{Access, Action, Notice, Observed, Plan, verify};
use crate::model::checks::{Branch, CheckFacts, Elsewhere, Word};
use crate::model::github::{Check, Protection, Repository, Ruleset};
use crate::model::pool::{self, Pool};
use crate::model::url::GitHubUrl;
use crate::reason::Reason;

mod reported;

pub(super) use reported::required;

/// How soon it is looked again whether GitHub accepts another pool.
const UNPROVEN: SignedDuration = SignedDuration::from_secs(5);
/// Refusals after which a pool that has gone on leaves behind what cannot be taken away.
const TRIES: usize = 3;
/// How soon GitHub is read again after a change of ours.
const SOON: SignedDuration = SignedDuration::from_millis(300);

impl Word {
    /// The word of a pool by what came of its own last attempts; `None` where it counts for nothing: whoever names a
    /// repository without having access to it must have no say in its checks.
    #[must_use]
    pub fn of(access: &Access, checks: &CheckFacts) -> Option<Self> {
        match access {
            Access::Granted if checks.trouble.is_some() => None,
            Access::Granted if checks.read.is_some() => Some(Self::Proven),
            Access::Granted | Access::Unchecked => Some(Self::Unproven),
            Access::Refused { .. } => None,
        }
    }
}

/// The server of a record. One that does not name it is from a time when it was where the pool's runners registered.
#[must_use]
pub fn origin_of(
    record: &RequiredChecksStatus,
    registered_at: Option<&str>,
    current: &str,
) -> String {
    let registered = || {
        GitHubUrl::parse(registered_at?, true)
            .ok()
            .map(|url| url.origin())
    };
    let recorded = record.origin.clone().or_else(registered);
    recorded.unwrap_or_else(|| current.to_owned())
}

/// What a pool requires, and goes on requiring: contexts on record that its spec still asks for.
#[must_use]
pub fn required_by(spec: &CudaRunnerSpec, status: &CudaRunnerStatus, word: Word) -> Vec<Elsewhere> {
    let (Some(record), Some(asked)) = (&status.required_checks, &spec.required_checks) else {
        return vec![];
    };
    let Ok(url) = GitHubUrl::parse(&spec.github.url, true) else {
        return vec![];
    };
    let origin = origin_of(record, status.registered_at.as_deref(), &url.origin());
    // Where it registers no more, its credentials prove nothing; where it has gone on from, it is about to take its own away.
    let here = pool::repository(spec.verify.as_ref(), &url);
    if origin != url.origin() || here.is_none_or(|here| here.full_name() != record.repository) {
        return vec![];
    }
    let goes_on = |branch: &&BranchChecks| {
        asked.mode == ChecksMode::BranchProtection
            && asked.branches.iter().any(|b| b.name == branch.name)
    };
    let proven = |context: &&String| record.checks.iter().any(|c| &c.context == *context);
    let branches = record.branches.iter().filter(goes_on);
    branches
        .flat_map(|branch| {
            let contexts = branch.contexts.iter().filter(proven);
            contexts.map(|context| Elsewhere {
                origin: origin.clone(),
                word,
                repository: record.repository.clone(),
                branch: branch.name.clone(),
                context: context.clone(),
            })
        })
        .collect()
}

/// Name of the pool's own ruleset: nobody else's can have it.
#[must_use]
pub fn ruleset_name(pool: &Pool) -> String {
    format!(
        "cudarunner {}/{} {}",
        pool.key.namespace, pool.key.name, pool.uid
    )
}

/// What the spec asks for.
#[must_use]
pub fn asked_of(pool: &Pool) -> Option<&RequiredChecks> {
    pool.spec.as_ref().ok()?.required_checks.as_ref()
}

/// The branches that matter: those of the spec, and those on record.
#[must_use]
pub fn branches(pool: &Pool) -> BTreeSet<String> {
    let asked = asked_of(pool).filter(|_| pool.deleting.is_none());
    let asked = asked.into_iter().flat_map(|asked| &asked.branches);
    let recorded = record(pool).into_iter().flat_map(|record| &record.branches);
    asked
        .map(|branch| branch.name.clone())
        .chain(recorded.map(|branch| branch.name.clone()))
        .collect()
}

/// The repository that is to be looked at: the one on record until nothing is left there, then the spec's.
#[must_use]
pub fn repository(pool: &Pool) -> Option<Repository> {
    if let Some(record) = record(pool).filter(|r| holds(r)) {
        return Repository::new(&record.repository);
    }
    asked_of(pool)?;
    pool.spec.as_ref().ok()?.repository.clone()
}

/// Server and name of that repository: of another one nothing that was read holds.
#[must_use]
pub fn place(pool: &Pool) -> Option<(String, String)> {
    let spec = pool.spec.as_ref().ok().map(|spec| spec.url.origin());
    let origin = spec.or_else(|| record(pool)?.origin.clone());
    let repository = repository(pool)?.full_name().to_owned();
    Some((origin.unwrap_or_default(), repository))
}

/// The record of what is at the server where the pool registers. What is at another one cannot be reached from here, and
/// must not be mistaken for what a namesake of the repository requires.
#[must_use]
pub fn record(pool: &Pool) -> Option<&RequiredChecksStatus> {
    let record = pool.status.required_checks.as_ref()?;
    let Ok(spec) = &pool.spec else {
        return Some(record);
    };
    let here = spec.url.origin();
    (origin_of(record, pool.status.registered_at.as_deref(), &here) == here).then_some(record)
}

/// Whether anything may be at GitHub for the sake of the pool.
fn holds(record: &RequiredChecksStatus) -> bool {
    !record.branches.is_empty() || record.ruleset.is_some()
}

/// Whether the pool has gone on from what is on record: its spec names another repository, or no checks.
#[must_use]
pub fn has_gone_on(pool: &Pool) -> bool {
    let record = record(pool).filter(|record| holds(record));
    let (Some(record), Ok(spec)) = (record, &pool.spec) else {
        return false;
    };
    let here = spec.repository.as_ref().map(Repository::full_name);
    let is_here = spec.required_checks.is_some() && here == Some(&record.repository);
    pool.deleting.is_none() && !is_here
}

/// The verification, where it is green: one of another repository proves nothing here.
#[must_use]
pub fn green(pool: &Pool) -> Option<&VerificationStatus> {
    let spec = pool.spec.as_ref().ok();
    let is_here = |v: &VerificationStatus| spec.is_none_or(|spec| verify::is_here(v, spec));
    pool.status
        .verification
        .as_ref()
        .filter(|v| v.state == VerificationState::Succeeded && is_here(v))
}

/// Whether GitHub has to be asked at all.
#[must_use]
pub fn is_concerned(pool: &Pool) -> bool {
    let record = record(pool);
    record.is_some_and(holds)
        || asked_of(pool).is_some()
            && pool.deleting.is_none()
            && (record.is_some() || green(pool).is_some())
}

/// Names that were green and that no pull request is known to have reported.
#[must_use]
pub fn unseen(record: Option<&RequiredChecksStatus>) -> bool {
    record.is_none_or(|record| record.checks.iter().any(|check| !check.seen))
}

/// Decides on the required checks. With the pool they go, too.
pub(super) fn plan(pool: &Pool, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    if record(pool).is_none()
        && let Some(left) = left(pool)
    {
        let begin = "the pool registers at another server now";
        plan.notices.push(left_behind(begin, &left, ""));
        plan.status.required_checks = None;
    }
    if !is_concerned(pool) {
        plan.status.required_checks = None;
        return;
    }
    let facts = &observed.checks;
    if give_up(pool, facts, plan) {
        return;
    }
    if let Some(at) = facts.next_look {
        plan.wake_at(at, now);
    }
    let Some(repository) = repository(pool) else {
        return;
    };
    let here = repository.full_name();
    let mut record = record(pool)
        .cloned()
        .filter(|record| record.repository == here)
        .unwrap_or_else(|| RequiredChecksStatus {
            repository: here.to_owned(),
            ..RequiredChecksStatus::default()
        });
    let spec = pool.spec.as_ref().ok();
    if let Some(spec) = spec {
        record.origin = Some(spec.url.origin());
    }
    let is_here = spec.is_some_and(|spec| spec.repository.as_ref() == Some(&repository));
    let asked = asked_of(pool).filter(|_| is_here && pool.deleting.is_none());
    prove(&mut record, green(pool), facts);
    if facts.read.is_some() && facts.trouble.is_none() {
        let view = Decision {
            asked,
            facts,
            repository: &repository,
            origin: record.origin.clone(),
            elsewhere: &observed.required_elsewhere,
        };
        let before = plan.actions.len();
        view.contexts(&mut record, plan);
        view.ruleset(pool, &mut record, plan);
        let written = pool.status.required_checks.as_ref() == Some(&record);
        if plan.actions.len() > before || !written {
            plan.wake_in(SOON);
        }
    }
    announce(pool, &record, plan);
    let over = asked.is_none() && !holds(&record);
    plan.status.required_checks = (!over).then_some(record);
}

/// Leaves behind what cannot be taken away: it holds the pool up no longer. An Event names it.
fn give_up(pool: &Pool, facts: &CheckFacts, plan: &mut Plan) -> bool {
    let left = left(pool).filter(|_| facts.refusals >= TRIES && has_gone_on(pool));
    let Some(left) = left else {
        return false;
    };
    let begin = "the pool does not ask for these checks any more";
    let why = facts.trouble.as_ref().map(|(_, why)| format!(": {why}"));
    let why = format!(" They could not be taken away{}", why.unwrap_or_default());
    plan.news.push(left_behind(begin, &left, &why));
    plan.status.required_checks = None;
    plan.wake_in(SignedDuration::ZERO);
    true
}

/// The Event that names what a pool has left where it has gone on from.
fn left_behind(begin: &str, left: &str, why: &str) -> Notice {
    Notice {
        warning: true,
        reason: Reason::ChecksLeftBehind.into(),
        note: format!(
            "{begin} and has left {left} behind; remove that there by hand where it is not wanted.{why}"
        ),
        about: None,
    }
}

/// An Event for each branch that does not require anything for the pool's sake any more.
fn announce(pool: &Pool, record: &RequiredChecksStatus, plan: &mut Plan) {
    let before = self::record(pool).into_iter().flat_map(|r| &r.branches);
    for branch in before {
        let now = record.branches.iter().find(|b| b.name == branch.name);
        let is_gone = |c: &&String| now.is_none_or(|now| !now.contexts.contains(c));
        let gone: Vec<&str> = branch
            .contexts
            .iter()
            .filter(is_gone)
            .map(String::as_str)
            .collect();
        if !gone.is_empty() {
            // Reported when the record is written: a reconcile before that would tell it again.
            plan.news.push(Notice {
                warning: false,
                reason: Reason::ChecksRemoved.into(),
                note: format!(
                    "{} of {} does not require {} for this pool any more",
                    branch.name,
                    record.repository,
                    gone.join(", ")
                ),
                about: None,
            });
        }
    }
}

/// Takes the names from the green run itself, and notes which of them pull requests report.
fn prove(
    record: &mut RequiredChecksStatus,
    green: Option<&VerificationStatus>,
    facts: &CheckFacts,
) {
    if let (Some(green), Some((run, reported))) = (green, &facts.proven)
        && green.run_id == Some(*run)
        && record.run_id != Some(*run)
    {
        let named = green.jobs.iter().filter_map(|job| {
            let check = reported.iter().find(|check| check.context == job.name)?;
            Some(ProvenCheck {
                context: check.context.clone(),
                app_id: check.app_id,
                seen: record
                    .checks
                    .iter()
                    .any(|c| c.seen && c.context == job.name),
            })
        });
        record.checks = named.collect();
        record.run_id = Some(*run);
    }
    for check in &mut record.checks {
        check.seen |= facts.reported.contains(&check.context);
    }
}

/// What a decision on checks depends on.
struct Decision<'a> {
    asked: Option<&'a RequiredChecks>,
    facts: &'a CheckFacts,
    repository: &'a Repository,
    origin: Option<String>,
    elsewhere: &'a BTreeSet<Elsewhere>,
}

impl Decision<'_> {
    /// The checks that may be required.
    fn eligible<'a>(&self, record: &'a RequiredChecksStatus) -> Vec<&'a ProvenCheck> {
        let allow_unseen = self.asked.is_some_and(|asked| asked.allow_unseen);
        let checks = record.checks.iter();
        checks.filter(|check| check.seen || allow_unseen).collect()
    }

    /// Whether a branch is to require checks in this way.
    fn applies(&self, branch: &str, mode: ChecksMode) -> bool {
        let asked = self.asked.filter(|asked| asked.mode == mode);
        asked.is_some_and(|asked| asked.branches.iter().any(|b| b.name == branch))
    }

    /// Brings the protection of each branch one step further.
    fn contexts(&self, record: &mut RequiredChecksStatus, plan: &mut Plan) {
        let eligible: Vec<String> = self
            .eligible(record)
            .iter()
            .map(|check| check.context.clone())
            .collect();
        // One that was not looked at stays on record.
        let unread = |b: &BranchChecks| !self.facts.branches.contains_key(&b.name);
        let mut branches: Vec<BranchChecks> = record.branches.clone();
        branches.retain(unread);
        for (name, branch) in &self.facts.branches {
            let recorded = record.branches.iter().find(|b| &b.name == name);
            let there = match &branch.protection {
                Protection::Requires(there) => there,
                // A plan without protection hides what there is.
                Protection::NotInPlan(_) => {
                    branches.extend(recorded.cloned());
                    continue;
                }
                // Nothing of ours can be there.
                Protection::WithoutChecks | Protection::Unprotected | Protection::NoBranch => {
                    continue;
                }
            };
            let recorded = recorded.map(|b| b.contexts.clone()).unwrap_or_default();
            let wanted = if self.applies(name, ChecksMode::BranchProtection) {
                eligible.clone()
            } else {
                vec![]
            };
            let shared = self.shared(name);
            let step = step(&recorded, &wanted, there, &shared);
            if step.waits {
                plan.wake_in(UNPROVEN);
            }
            if !step.add.is_empty() {
                plan.actions.push(Action::RequireChecks(
                    self.repository.clone(),
                    name.clone(),
                    step.add,
                ));
            }
            if !step.remove.is_empty() {
                plan.actions.push(Action::UnrequireChecks(
                    self.repository.clone(),
                    name.clone(),
                    step.remove,
                ));
            }
            if !step.record.is_empty() {
                branches.push(BranchChecks {
                    name: name.clone(),
                    contexts: step.record,
                });
            }
        }
        record.branches = branches;
    }

    /// What other pools require on a branch: the best word for each context.
    fn shared(&self, branch: &str) -> BTreeMap<&str, Word> {
        let mut shared = BTreeMap::new();
        let here = self.elsewhere.iter().filter(|e| {
            Some(&e.origin) == self.origin.as_ref()
                && e.repository == self.repository.full_name()
                && e.branch == branch
        });
        for Elsewhere { context, word, .. } in here {
            let best = shared.entry(context.as_str()).or_insert(*word);
            *best = (*best).min(*word);
        }
        shared
    }

    /// Brings the pool's own ruleset one step further.
    fn ruleset(&self, pool: &Pool, record: &mut RequiredChecksStatus, plan: &mut Plan) {
        let name = ruleset_name(pool);
        let wanted = self.wanted_ruleset(&name, record);
        let repository = self.repository.clone();
        match (wanted, &self.facts.ruleset) {
            (Some(_), None) if record.ruleset.is_none() => record.ruleset = Some(name),
            (Some(wanted), None) => {
                plan.actions.push(Action::CreateRuleset(repository, wanted));
            }
            (Some(wanted), Some((id, there))) => {
                record.ruleset = Some(name);
                if &wanted != there {
                    plan.actions
                        .push(Action::UpdateRuleset(repository, *id, wanted));
                }
            }
            (None, Some((id, _))) => {
                plan.actions.push(Action::DeleteRuleset(repository, *id));
            }
            (None, None) => record.ruleset = None,
        }
    }

    fn wanted_ruleset(&self, name: &str, record: &RequiredChecksStatus) -> Option<Ruleset> {
        let asked = self
            .asked
            .filter(|asked| asked.mode == ChecksMode::Ruleset)?;
        let own = self.facts.ruleset.as_ref().map(|(id, _)| *id);
        let is_included = |name: &str, if_protected: bool| {
            let branch = self.facts.branches.get(name)?;
            let exists = branch.protection != Protection::NoBranch;
            Some(exists && (!if_protected || branch.is_protected(own)))
        };
        let branches: BTreeSet<String> = asked
            .branches
            .iter()
            .filter(|b| is_included(&b.name, b.if_protected) == Some(true))
            .map(|b| b.name.clone())
            .collect();
        let checks: BTreeSet<Check> = self
            .eligible(record)
            .into_iter()
            .map(|check| Check {
                context: check.context.clone(),
                app_id: check.app_id,
            })
            .collect();
        let any = !branches.is_empty() && !checks.is_empty();
        any.then(|| Ruleset {
            name: name.to_owned(),
            branches,
            checks,
        })
    }
}

impl Branch {
    /// Whether anything beside our own ruleset protects it.
    fn is_protected(&self, own: Option<i64>) -> bool {
        let classic = matches!(
            self.protection,
            Protection::Requires(_) | Protection::WithoutChecks
        );
        classic || self.rules.iter().any(|rule| rule.ruleset_id != own)
    }
}

/// One step of one branch: what to add and to remove now, and what is on record from now on.
#[derive(Debug, Default, PartialEq)]
struct Step {
    record: Vec<String>,
    add: Vec<String>,
    remove: Vec<String>,
    /// Whether another pool has to be asked about first.
    waits: bool,
}

/// From what is on record, wanted and there, and what other pools require there, to the next step.
///
/// A context that is there without being on record is the user's, and never touched; one that another pool has added
/// is shared, and the last one out removes it. The word of a pool that GitHub was not asked for yet only holds things up.
fn step(
    recorded: &[String],
    wanted: &[String],
    there: &[String],
    shared: &BTreeMap<&str, Word>,
) -> Step {
    let mut step = Step::default();
    for context in wanted {
        let is_there = there.contains(context);
        let is_ours = recorded.contains(context);
        if is_ours && !is_there {
            step.add.push(context.clone());
        }
        let is_shared = shared.get(context.as_str()) == Some(&Word::Proven);
        if is_ours || !is_there || is_shared {
            step.record.push(context.clone());
        }
    }
    let left = recorded.iter().filter(|context| !wanted.contains(context));
    for context in left.filter(|context| there.contains(context)) {
        match shared.get(context.as_str()) {
            Some(Word::Proven) => {}
            Some(Word::Unproven) => {
                step.waits = true;
                step.record.push(context.clone());
            }
            None => {
                step.remove.push(context.clone());
                step.record.push(context.clone());
            }
        }
    }
    step
}

/// What may be left of the pool, in words; `None` where nothing is.
pub(super) fn left(pool: &Pool) -> Option<String> {
    let record = pool.status.required_checks.as_ref().filter(|r| holds(r))?;
    let mut parts: Vec<String> = record
        .branches
        .iter()
        .map(|b| {
            format!(
                "the required checks {} on {}",
                b.contexts.join(", "),
                b.name
            )
        })
        .collect();
    parts.extend(
        record
            .ruleset
            .iter()
            .map(|name| format!("the ruleset {name}")),
    );
    Some(format!("{} of {}", parts.join("; "), record.repository))
}

#[cfg(test)]
mod tests;
