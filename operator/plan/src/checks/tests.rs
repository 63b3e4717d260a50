use cudarunner_crds::{CheckedBranch, CudaRunner, VerifiedJobStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::condition::kind;
use crate::fixture::{NOW, ago, listing, observed, resource};
use crate::model::github::{BranchRule, Triggers};
use crate::reason::Reason;

const APP: Option<i64> = Some(15368);

mod properties;

fn checks(mode: ChecksMode, branches: &[(&str, bool)]) -> RequiredChecks {
    RequiredChecks {
        mode,
        allow_unseen: false,
        branches: branches
            .iter()
            .map(|(name, if_protected)| CheckedBranch {
                name: (*name).to_owned(),
                if_protected: *if_protected,
            })
            .collect(),
    }
}

fn green_run(names: &[&str]) -> VerificationStatus {
    let job = |name: &&str| VerifiedJobStatus {
        name: (*name).to_owned(),
        ..VerifiedJobStatus::default()
    };
    VerificationStatus {
        state: VerificationState::Succeeded.into(),
        fingerprint: String::new(),
        hardware: vec![],
        asked: None,
        since: Time(ago(60)),
        repository: None,
        origin: None,
        run_id: Some(7),
        url: Some("https://github.com/acme/widgets/actions/runs/7".to_owned()),
        ended: Some(Time(ago(30))),
        reason: None,
        message: None,
        jobs: names.iter().map(job).collect(),
        history: vec![],
    }
}

/// A pool whose verification was green, by the uid that it has.
fn pool(uid: &str, asked: RequiredChecks) -> CudaRunner {
    let mut resource = resource();
    resource.metadata.uid = Some(uid.to_owned());
    resource.spec.required_checks = Some(asked);
    resource.status = Some(cudarunner_crds::CudaRunnerStatus {
        observed_generation: Some(1),
        verification: Some(green_run(&["gpu", "build"])),
        ..Default::default()
    });
    resource
}

fn read(resource: &CudaRunner) -> Pool {
    Pool::read(resource, false)
}

/// GitHub, as far as checks go.
#[derive(Clone, Debug)]
struct World {
    branches: BTreeMap<String, Branch>,
    ruleset: Option<(i64, Ruleset)>,
    reported: BTreeSet<String>,
    skipped: BTreeSet<String>,
}

impl World {
    fn new(branches: &[(&str, Protection)]) -> Self {
        let branch = |protection: &Protection| Branch {
            protection: protection.clone(),
            rules: vec![],
            read: NOW,
        };
        Self {
            branches: branches
                .iter()
                .map(|(name, protection)| ((*name).to_owned(), branch(protection)))
                .collect(),
            ruleset: None,
            reported: ["gpu", "build"].map(str::to_owned).into(),
            skipped: BTreeSet::new(),
        }
    }

    fn observed(&self, pool: &Pool) -> Observed {
        let mut observed = observed(vec![]);
        observed.listing = Some(listing(&[]));
        let known = branches(pool).into_iter().map(|name| {
            let missing = Branch {
                protection: Protection::NoBranch,
                rules: vec![],
                read: NOW,
            };
            let branch = self.branches.get(&name).cloned().unwrap_or(missing);
            (name, branch)
        });
        let check = |name: &str| Check {
            context: name.to_owned(),
            app_id: APP,
        };
        observed.checks = CheckFacts {
            proven: Some((7, vec![check("build"), check("gpu"), check("lint")])),
            reported: self.reported.clone(),
            skipped: self.skipped.clone(),
            branches: known.collect(),
            ruleset: self.ruleset.clone(),
            read: Some(NOW),
            ..CheckFacts::default()
        };
        observed
    }

    fn required(&mut self, branch: &str) -> &mut Vec<String> {
        match &mut self.branches.get_mut(branch).unwrap().protection {
            Protection::Requires(there) => there,
            other => panic!("{branch} is {other:?}"),
        }
    }

    fn carry_out(&mut self, action: &Action) {
        match action {
            Action::RequireChecks(_, branch, contexts) => {
                let there = self.required(branch);
                for context in contexts {
                    if !there.contains(context) {
                        there.push(context.clone());
                    }
                }
            }
            Action::UnrequireChecks(_, branch, contexts) => {
                self.required(branch).retain(|c| !contexts.contains(c));
            }
            Action::CreateRuleset(_, ruleset) => self.ruleset = Some((1, ruleset.clone())),
            Action::UpdateRuleset(_, id, ruleset) => self.ruleset = Some((*id, ruleset.clone())),
            Action::DeleteRuleset(..) => self.ruleset = None,
            _ => {}
        }
    }
}

/// One reconcile: the plan, carried out.
fn reconcile(resource: &mut CudaRunner, world: &mut World) -> Plan {
    let pool = read(resource);
    let plan = crate::plan(&pool, &world.observed(&pool), NOW);
    for action in &plan.actions {
        world.carry_out(action);
    }
    let verification = resource.status.take().unwrap_or_default().verification;
    let mut status = plan.status.clone();
    status.verification = verification;
    resource.status = Some(status);
    plan
}

/// Reconciles until nothing is to be done.
fn settle(resource: &mut CudaRunner, world: &mut World) -> Plan {
    for _ in 0..8 {
        let before = resource.status.clone().unwrap_or_default().required_checks;
        let plan = reconcile(resource, world);
        if plan.actions.iter().all(is_unrelated) && before == plan.status.required_checks {
            return plan;
        }
    }
    panic!("the checks do not come to rest: {world:?}");
}

fn is_unrelated(action: &Action) -> bool {
    !matches!(
        action,
        Action::RequireChecks(..)
            | Action::UnrequireChecks(..)
            | Action::CreateRuleset(..)
            | Action::UpdateRuleset(..)
            | Action::DeleteRuleset(..)
    )
}

fn condition(plan: &Plan) -> (String, String, String) {
    let mut all = plan.status.conditions.iter();
    let found = all.find(|c| c.type_ == kind::CHECKS_REQUIRED);
    let found = found.unwrap().clone();
    (found.status, found.reason, found.message)
}

fn requires(contexts: &[&str]) -> Protection {
    Protection::Requires(contexts.iter().map(|c| (*c).to_owned()).collect())
}

fn delete(resource: &mut CudaRunner) {
    resource.metadata.deletion_timestamp = Some(Time(ago(1)));
}

#[test]
fn what_was_green_is_required_beside_what_the_user_had_and_goes_with_the_pool() {
    let mut world = World::new(&[
        ("main", requires(&["fmt"])),
        ("dev", Protection::Unprotected),
    ]);
    let asked = checks(
        ChecksMode::BranchProtection,
        &[("main", false), ("dev", true)],
    );
    let mut pool = pool("a", asked);
    // The names are on record before they are at GitHub
    let first = reconcile(&mut pool, &mut world);
    assert!(first.actions.iter().all(is_unrelated));
    let record = first.status.required_checks.unwrap();
    assert_eq!(record.branches[0].contexts, ["gpu", "build"]);
    assert_eq!(record.checks[0].app_id, APP);
    let plan = settle(&mut pool, &mut world);
    assert_eq!(world.required("main"), &["fmt", "gpu", "build"]);
    let (status, reason, message) = condition(&plan);
    assert_eq!((&*status, &*reason), ("True", "Required"), "{message}");
    assert_eq!(
        message,
        "Required on main: gpu, build. Not protected, and not changed: dev"
    );
    // Deleted, it keeps its finalizer until they are gone
    delete(&mut pool);
    let going = reconcile(&mut pool, &mut world);
    assert!(!going.actions.contains(&Action::RemoveFinalizer));
    assert_eq!(world.required("main"), &["fmt"]);
    let gone = reconcile(&mut pool, &mut world);
    assert!(gone.actions.contains(&Action::RemoveFinalizer));
    assert!(gone.news.iter().any(|n| n.reason == "ChecksRemoved"));
    assert!(gone.notices.iter().all(|n| n.reason != "ChecksRemoved"));
}

#[test]
fn what_the_user_required_already_stays_theirs() {
    let mut world = World::new(&[("main", requires(&["gpu"]))]);
    let mut pool = pool("a", on_main());
    settle(&mut pool, &mut world);
    assert_eq!(world.required("main"), &["gpu", "build"]);
    delete(&mut pool);
    settle(&mut pool, &mut world);
    assert_eq!(world.required("main"), &["gpu"]);
}

#[test]
fn drift_is_repaired_and_a_spec_without_it_takes_it_back() {
    let mut world = World::new(&[("main", requires(&[]))]);
    let mut pool = pool("a", on_main());
    settle(&mut pool, &mut world);
    world.required("main").retain(|c| c != "gpu");
    settle(&mut pool, &mut world);
    assert!(world.required("main").contains(&"gpu".to_owned()));
    pool.spec.required_checks = None;
    let plan = settle(&mut pool, &mut world);
    assert!(world.required("main").is_empty());
    assert_eq!(plan.status.required_checks, None);
    assert_eq!(condition(&plan).1, "NotAsked");
}

#[test]
fn a_name_that_no_pull_request_has_reported_is_not_required() {
    let mut world = World::new(&[("main", requires(&[]))]);
    world.reported = ["build".to_owned()].into();
    let mut pool = pool("a", on_main());
    let plan = settle(&mut pool, &mut world);
    assert_eq!(world.required("main"), &["build"]);
    let (status, reason, message) = condition(&plan);
    assert_eq!((&*status, &*reason), ("False", "NotSeenOnPullRequest"));
    assert!(message.contains("reported gpu"), "{message}");
    // Reported once, it stays known, though later pull requests do not run it
    world.reported = ["gpu".to_owned()].into();
    settle(&mut pool, &mut world);
    world.reported.clear();
    assert_eq!(condition(&settle(&mut pool, &mut world)).1, "Required");
    // Or it is the user's own risk
    let mut daring = super::tests::pool("b", on_main());
    daring.spec.required_checks.as_mut().unwrap().allow_unseen = true;
    assert_eq!(condition(&settle(&mut daring, &mut world)).1, "Required");
}

#[test]
fn a_job_that_pull_requests_skip_is_not_seen_and_the_condition_says_so() {
    let mut world = World::new(&[("main", requires(&[]))]);
    world.reported = ["build".to_owned()].into();
    world.skipped = ["gpu".to_owned()].into();
    let mut pool = pool("a", on_main());
    let plan = settle(&mut pool, &mut world);
    assert_eq!(world.required("main"), &["build"]);
    let (status, reason, message) = condition(&plan);
    assert_eq!((&*status, &*reason), ("False", "NotSeenOnPullRequest"));
    assert!(message.contains("Pull requests skip gpu"), "{message}");
}

#[test]
fn answers_that_look_alike_are_told_apart() {
    for (protection, reason) in [
        (Protection::Unprotected, "BranchNotProtected"),
        (Protection::WithoutChecks, "StatusChecksNotEnabled"),
        (Protection::NoBranch, "BranchNotFound"),
        (Protection::NotInPlan("Upgrade".into()), "NotInPlan"),
    ] {
        let mut world = World::new(&[("main", protection)]);
        let mut pool = pool("a", on_main());
        let (status, found, message) = condition(&settle(&mut pool, &mut world));
        assert_eq!((&*status, &*found), ("False", reason), "{message}");
    }
}

#[test]
fn what_a_plan_hides_is_not_gone() {
    // Given checks that are required, when the repository's plan does not show them any more
    let mut world = World::new(&[("main", requires(&["fmt"]))]);
    let mut pool = pool("a", on_main());
    settle(&mut pool, &mut world);
    let hidden = Protection::NotInPlan("Upgrade to GitHub Pro".into());
    let shown = std::mem::replace(
        &mut world.branches.get_mut("main").unwrap().protection,
        hidden,
    );
    delete(&mut pool);
    // Then the pool waits, and takes them away where they show again
    let waits = settle(&mut pool, &mut world);
    assert!(!waits.actions.contains(&Action::RemoveFinalizer));
    world.branches.get_mut("main").unwrap().protection = shown;
    settle(&mut pool, &mut world);
    assert_eq!(world.required("main"), &["fmt"]);
}

#[test]
fn a_green_run_that_is_not_found_takes_nothing_away() {
    let mut world = World::new(&[("main", requires(&["fmt"]))]);
    let mut pool = pool("a", on_main());
    settle(&mut pool, &mut world);
    // When the next green run is not shown
    let status = pool.status.as_mut().unwrap();
    status.verification.as_mut().unwrap().run_id = Some(8);
    settle(&mut pool, &mut world);
    assert_eq!(world.required("main"), &["fmt", "gpu", "build"]);
}

#[test]
fn a_run_that_was_green_in_another_repository_proves_nothing() {
    let elsewhere = [
        (Some("acme/gadgets"), None),
        (Some("acme/widgets"), Some("https://ghe.example.com")),
    ];
    for (repository, origin) in elsewhere {
        // Given a verification that was green elsewhere, and a run of the same number here
        let mut world = World::new(&[("main", requires(&[]))]);
        let mut pool = pool("a", on_main());
        let status = pool.status.as_mut().unwrap();
        let verification = status.verification.as_mut().unwrap();
        verification.repository = repository.map(str::to_owned);
        verification.origin = origin.map(str::to_owned);
        // Then nothing is required
        settle(&mut pool, &mut world);
        assert_eq!(world.required("main"), &[""; 0]);
        // Until it was green here
        let status = pool.status.as_mut().unwrap();
        let verification = status.verification.as_mut().unwrap();
        verification.repository = Some("acme/widgets".to_owned());
        verification.origin = Some("https://github.com".to_owned());
        settle(&mut pool, &mut world);
        assert_eq!(world.required("main"), &["gpu", "build"]);
    }
}

#[test]
fn a_ruleset_of_its_own_is_made_kept_and_removed() {
    let mut world = World::new(&[
        ("main", Protection::Unprotected),
        ("dev", Protection::Unprotected),
    ]);
    let asked = checks(ChecksMode::Ruleset, &[("main", false), ("dev", true)]);
    let mut pool = pool("a", asked);
    let first = reconcile(&mut pool, &mut world);
    assert!(first.actions.iter().all(is_unrelated));
    let plan = settle(&mut pool, &mut world);
    assert_eq!(condition(&plan).1, "Required");
    let (_, ruleset) = world.ruleset.clone().unwrap();
    assert_eq!(ruleset.branches, ["main".to_owned()].into());
    assert_eq!(ruleset.checks.len(), 2);
    // Somebody changes it
    world.ruleset.as_mut().unwrap().1.checks.pop_first();
    settle(&mut pool, &mut world);
    assert_eq!(world.ruleset.as_ref().unwrap().1, ruleset);
    // Another mode takes its place
    pool.spec.required_checks.as_mut().unwrap().mode = ChecksMode::BranchProtection;
    world.branches.get_mut("main").unwrap().protection = requires(&[]);
    settle(&mut pool, &mut world);
    assert_eq!(world.ruleset, None);
    assert_eq!(world.required("main"), &["gpu", "build"]);
}

#[test]
fn of_two_pools_with_the_same_checks_the_last_one_out_removes_them() {
    let (mut world, mut pools) = two_pools();
    for number in [0, 0, 1, 1] {
        act(&mut world, &mut pools, number, true, true);
    }
    assert!(recorded(&pools[0], "gpu") && recorded(&pools[1], "gpu"));
    // The first one out leaves them in place, not even for a moment without
    delete(&mut pools[0]);
    let (first, observed) = observed_by(&world, &pools, 0);
    let plan = crate::plan(&first, &observed, NOW);
    assert!(plan.actions.iter().all(is_unrelated), "{:?}", plan.actions);
    assert_eq!(plan.status.required_checks, None);
    act(&mut world, &mut pools, 0, true, true);
    assert_eq!(world.required("main"), &["fmt", "gpu", "build"]);
    delete(&mut pools[1]);
    act(&mut world, &mut pools, 1, true, true);
    assert_eq!(world.required("main"), &["fmt"]);
}

#[test]
fn of_two_pools_that_move_together_each_removes_what_both_required() {
    let (mut world, mut pools) = two_pools();
    for number in [0, 0, 1, 1] {
        act(&mut world, &mut pools, number, true, true);
    }
    // When the specs of both name another repository, by the address or by the workflow's
    pools[0].spec.github.url = "https://github.com/acme/gadgets".to_owned();
    let verify = serde_json::json!({"repository": "acme/gadgets", "workflow": "cuda.yml", "ref": "main", "jobs": [{"name": "gpu"}]});
    pools[1].spec.verify = serde_json::from_value(verify).unwrap();
    // Then neither takes the other for one that stays
    for number in [0, 1] {
        let (pool, observed) = observed_by(&world, &pools, number);
        let plan = crate::plan(&pool, &observed, NOW);
        let removes = |action: &Action| matches!(action, Action::UnrequireChecks(r, ..) if r.full_name() == "acme/widgets");
        assert!(plan.actions.iter().any(removes), "{:?}", plan.actions);
    }
}

#[test]
fn filters_and_merge_queues_and_namesakes_are_warned_of() {
    let mut world = World::new(&[("main", requires(&[]))]);
    let queue = BranchRule {
        kind: "merge_queue".to_owned(),
        ruleset_id: Some(3),
    };
    world.branches.get_mut("main").unwrap().rules.push(queue);
    let mut resource = pool("a", on_main());
    settle(&mut resource, &mut world);
    let pool = read(&resource);
    let mut observed = world.observed(&pool);
    observed.checks.elsewhere = ["build".to_owned()].into();
    observed.checks.triggers = Some(Triggers {
        merge_group: false,
        is_filtered: true,
    });
    let (status, _, message) = condition(&crate::plan(&pool, &observed, NOW));
    assert_eq!(status, "True");
    for words in ["another workflow reports build", "filters", "merge queue"] {
        assert!(message.contains(words), "{words} is missing in: {message}");
    }
}

fn on_main() -> RequiredChecks {
    checks(ChecksMode::BranchProtection, &[("main", false)])
}

/// Two pools that both require the same of a branch on which users require something, too.
fn two_pools() -> (World, [CudaRunner; 2]) {
    let world = World::new(&[("main", requires(&["fmt"]))]);
    (world, [pool("a", on_main()), pool("b", on_main())])
}

fn recorded(pool: &CudaRunner, context: &str) -> bool {
    let status = pool.status.as_ref();
    let record = status.and_then(|s| s.required_checks.as_ref());
    let branches = record.into_iter().flat_map(|r| &r.branches);
    branches.flat_map(|b| &b.contexts).any(|c| c == context)
}

fn observed_by(world: &World, pools: &[CudaRunner], number: usize) -> (Pool, Observed) {
    let pool = read(&pools[number]);
    let mut observed = world.observed(&pool);
    let other = &pools[1 - number];
    if other.metadata.deletion_timestamp.is_none() {
        let status = other.status.clone().unwrap_or_default();
        let theirs = required_by(&other.spec, &status, Word::Proven);
        observed.required_elsewhere = theirs.into_iter().collect();
    }
    (pool, observed)
}

fn act(world: &mut World, pools: &mut [CudaRunner], number: usize, written: bool, acted: bool) {
    let (pool, observed) = observed_by(world, pools, number);
    let plan = crate::plan(&pool, &observed, NOW);
    if acted {
        plan.actions.iter().for_each(|a| world.carry_out(a));
    }
    if written {
        let status = pools[number].status.get_or_insert_default();
        status.required_checks = plan.status.required_checks;
    }
}

#[test]
fn only_a_pool_that_github_accepts_has_a_say_in_our_checks() {
    // Given a context that we have added and that is wanted no more, or one that was there before us
    let gpu = ["gpu".to_owned()];
    let step_with = |recorded: &[String], wanted: &[String], word: Option<Word>| {
        let shared = word.map(|word| ("gpu", word)).into_iter().collect();
        step(recorded, wanted, &gpu, &shared)
    };

    // Then ours goes unless another pool really requires it, and waits while that is not known
    assert_eq!(step_with(&gpu, &[], None).remove, gpu);
    let given_up = step_with(&gpu, &[], Some(Word::Proven));
    assert_eq!(given_up, Step::default());
    let waiting = step_with(&gpu, &[], Some(Word::Unproven));
    assert!(waiting.waits && waiting.remove.is_empty());
    assert_eq!(waiting.record, gpu);

    // And what was there is not taken for ours on the word of a pool that has proven nothing
    for word in [None, Some(Word::Unproven)] {
        assert_eq!(step_with(&[], &gpu, word).record, [""; 0]);
    }
    assert_eq!(step_with(&[], &gpu, Some(Word::Proven)).record, gpu);
}

#[test]
fn a_word_is_worth_what_github_says_of_the_pool() {
    let read = CheckFacts {
        read: Some(NOW),
        ..CheckFacts::default()
    };
    let troubled = CheckFacts {
        trouble: Some((Reason::NotFound, "no".to_owned())),
        ..read.clone()
    };
    let refused = Access::Refused {
        reason: Reason::Unauthorized,
        message: "no".to_owned(),
        transient: true,
    };
    assert_eq!(Word::of(&Access::Granted, &read), Some(Word::Proven));
    assert_eq!(Word::of(&Access::Granted, &troubled), None);
    assert_eq!(
        Word::of(&Access::Granted, &CheckFacts::default()),
        Some(Word::Unproven)
    );
    assert_eq!(Word::of(&Access::Unchecked, &read), Some(Word::Unproven));
    assert_eq!(Word::of(&refused, &read), None);
}

/// A pool with a context on record, at some server.
fn with_record(origin: Option<&str>, registered_at: Option<&str>) -> CudaRunner {
    let mut pool = pool("a", on_main());
    let status = pool.status.as_mut().unwrap();
    status.registered_at = registered_at.map(str::to_owned);
    status.required_checks = Some(RequiredChecksStatus {
        repository: "acme/widgets".to_owned(),
        origin: origin.map(str::to_owned),
        checks: vec![ProvenCheck {
            context: "gpu".to_owned(),
            app_id: APP,
            seen: true,
        }],
        run_id: Some(7),
        branches: vec![BranchChecks {
            name: "main".to_owned(),
            contexts: vec!["gpu".to_owned()],
        }],
        ruleset: None,
    });
    pool
}

#[test]
fn a_record_speaks_of_the_server_where_it_was_made() {
    let (here, there) = ("https://github.com", "https://ghe.example.com");
    let moved = format!("{there}/acme/widgets");
    for (origin, registered_at, speaks) in [
        (Some(here), None, true),
        (Some(there), None, false),
        // From a time when records did not name it
        (None, Some("https://github.com/acme/widgets"), true),
        (None, Some(moved.as_str()), false),
        (None, None, true),
    ] {
        let resource = with_record(origin, registered_at);
        let status = resource.status.clone().unwrap();
        let said = required_by(&resource.spec, &status, Word::Proven);
        assert_eq!(!said.is_empty(), speaks, "{origin:?} {registered_at:?}");
        assert!(said.iter().all(|e| e.origin == here));

        // And a pool that went to another server leaves the namesake of its repository there alone
        let pool = read(&resource);
        let world = World::new(&[("main", requires(&["gpu"]))]);
        let plan = crate::plan(&pool, &world.observed(&pool), NOW);
        let is_told = plan.notices.iter().any(|n| n.reason == "ChecksLeftBehind");
        assert_eq!(is_told, !speaks);
        let record = plan.status.required_checks.unwrap();
        let mut contexts = record.branches.iter().flat_map(|b| &b.contexts);
        assert_eq!(
            contexts.any(|c| c == "gpu"),
            speaks,
            "{origin:?} {registered_at:?}"
        );
        assert_eq!(record.origin.as_deref(), Some(here));
        assert!(plan.actions.iter().all(is_unrelated));
    }
}
