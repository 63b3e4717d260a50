//! A pool's required checks when its repository changes, with a GitHub that has both repositories.

use std::sync::atomic::AtomicU16;

use super::*;
use crate::act::act;
use crate::github::Client as GitHub;
use crate::github::tests::stub::{Reply, Seen, Stub, error, reply};
use crate::observe::checks::look;
use cuda_runner_plan::model::github::Check;
use cuda_runner_plan::model::pool::Pool;
use cuda_runner_plan::{Access, Plan};
use cudarunner_crds::RequiredChecksStatus;

/// Where the pool is first, and where it moves to.
const FIRST: &str = "acme/widgets";
const NEXT: &str = "acme/gadgets";

/// What the branch of each repository requires. Each change in the first one has the status with which it is answered.
struct Repositories {
    stub: Stub,
    required: Arc<Mutex<BTreeMap<&'static str, Vec<String>>>>,
    reads: Arc<AtomicU16>,
    changes: Arc<AtomicU16>,
}

impl Repositories {
    async fn new(first: &[&str], next: &[&str]) -> Self {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let required = BTreeMap::from([(FIRST, names(first)), (NEXT, names(next))]);
        let required = Arc::new(Mutex::new(required));
        let (reads, changes) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicU16::new(200)));
        let (there, read, change) = (
            Arc::clone(&required),
            Arc::clone(&reads),
            Arc::clone(&changes),
        );
        let stub = Stub::start(move |seen, _| {
            let is_first = seen.path.contains(FIRST);
            let status = match seen.method {
                Method::GET => read.load(Ordering::Relaxed),
                _ => change.load(Ordering::Relaxed),
            };
            if is_first && status != 200 {
                return error(status, "Not Found");
            }
            let mut there = there.lock().unwrap();
            let name = if is_first { FIRST } else { NEXT };
            answer(seen, is_first, there.get_mut(name).unwrap())
        });
        Self {
            stub: stub.await,
            required,
            reads,
            changes,
        }
    }

    fn required(&self, name: &str) -> Vec<String> {
        self.required.lock().unwrap()[name].clone()
    }
}

/// The run 7 was green in the first repository, and the run 8 in the next one.
fn answer(seen: &Seen, is_first: bool, there: &mut Vec<String>) -> Reply {
    let sent: Vec<String> =
        serde_json::from_value(seen.body["contexts"].clone()).unwrap_or_default();
    let run = if is_first { "7" } else { "8" };
    match seen.method {
        Method::POST => there.extend(sent),
        Method::DELETE => there.retain(|context| !sent.contains(context)),
        _ if seen.path.ends_with("/required_status_checks") => {
            return reply(200, &json!({"contexts": there}));
        }
        _ if seen.path.contains("/rules/branches/") => return reply(200, &json!([])),
        _ if seen.path.ends_with(&format!("/actions/runs/{run}")) => {
            let at = "2026-01-01T00:00:00Z";
            let run = json!({"id": run.parse::<u64>().unwrap(), "html_url": "", "created_at": at, "check_suite_id": 1});
            return reply(200, &run);
        }
        _ if seen.path.contains("/check-suites/1/") => {
            let runs = [json!({"name": "gpu"}), json!({"name": "build"})];
            return reply(200, &json!({"total_count": 2, "check_runs": runs}));
        }
        _ => return error(404, "Not Found"),
    }
    reply(200, &json!(there))
}

/// A pool that had the check `gpu` required in the first repository, and what is remembered of it.
struct Moved {
    ctx: Arc<Context>,
    client: Arc<GitHub>,
    pool: Pool,
    now: Timestamp,
}

impl Moved {
    /// One whose spec names the next repository now. The verification says where it was, or does not.
    async fn new(github: &Repositories, says_where: bool) -> Self {
        let ctx = context(&Cluster::default()).await;
        let resource = resource(|resource| {
            resource.metadata.generation = Some(2);
            resource.spec.github.url = format!("https://github.com/{NEXT}");
            let asked = json!({"mode": "BranchProtection", "allowUnseen": true, "branches": [{"name": "main"}]});
            resource.spec.required_checks = Some(serde_json::from_value(asked).unwrap());
            let verification = json!({
                "state": "Succeeded", "fingerprint": "", "since": fixture::NOW, "runId": 7,
                "jobs": [{"name": "gpu"}, {"name": "build"}], "repository": says_where.then_some(FIRST),
            });
            let record = json!({
                "repository": FIRST, "origin": "https://github.com", "runId": 7,
                "checks": [{"context": "gpu", "seen": true}],
                "branches": [{"name": "main", "contexts": ["gpu"]}],
            });
            let status = resource.status.as_mut().unwrap();
            status.verification = serde_json::from_value(verification).unwrap();
            status.required_checks = serde_json::from_value(record).unwrap();
        });
        let pool = Pool::read(&resource, false);
        let checks = ["gpu", "build"].map(|name| Check {
            context: name.to_owned(),
            app_id: None,
        });
        ctx.memory.with(&pool, |memory| {
            memory.github.access = Access::Granted;
            memory.checks.facts.proven = Some((7, checks.to_vec()));
            memory.checks.facts.sought = Some(7);
        });
        Self {
            ctx,
            client: github.stub.client(FIRST),
            pool,
            now: Timestamp::now(),
        }
    }

    /// One reconcile, as far as it is about checks.
    async fn reconcile(&mut self) -> Plan {
        let client = Arc::clone(&self.client);
        let mut observed = fixture::observed(vec![]);
        observed.checks = look(&self.ctx, &self.pool, Some(&*client), self.now).await;
        let mut plan = cuda_runner_plan::plan(&self.pool, &observed, self.now);
        let outcome = act(&self.ctx, &self.pool, Some(client), &mut plan).await;
        assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
        let verification = self.pool.status.verification.take();
        self.pool.status = plan.status.clone();
        self.pool.status.verification = verification;
        plan
    }

    /// Reconciles while some minutes go by; what was told.
    async fn minutes(&mut self) -> Vec<String> {
        let mut told = vec![];
        for _ in 0..30 {
            let plan = self.reconcile().await;
            let all = plan.news.iter().chain(&plan.notices);
            told.extend(all.map(|notice| format!("{}: {}", notice.reason, notice.note)));
            self.now += SignedDuration::from_secs(20);
        }
        told
    }

    /// What is on record as the pool's, and where.
    fn record(&self) -> Option<(&str, Vec<&str>)> {
        let record: &RequiredChecksStatus = self.pool.status.required_checks.as_ref()?;
        let contexts = record.branches.iter().flat_map(|b| &b.contexts);
        let contexts = contexts.map(String::as_str).collect();
        Some((record.repository.as_str(), contexts))
    }
}

#[tokio::test]
async fn a_check_is_required_in_the_next_repository_when_it_was_green_there() {
    for says_where in [true, false] {
        // Given a repository that requires a check of the same name by its users' wish
        let github = Repositories::new(&["gpu"], &["gpu", "fmt"]).await;
        let mut moved = Moved::new(&github, says_where).await;
        // When the pool moves there, then its check goes from the first one, and nothing is required in the next one
        moved.minutes().await;
        assert_eq!(github.required(FIRST), [""; 0]);
        assert_eq!(github.required(NEXT), ["gpu", "fmt"]);
        let recorded = moved.record().map_or(vec![], |(_, contexts)| contexts);
        assert_eq!(recorded, [""; 0]);

        // When it is green there, then what was green is required, and what was there stays the users'
        let verification = moved.pool.status.verification.as_mut().unwrap();
        verification.run_id = Some(8);
        verification.repository = Some(NEXT.to_owned());
        moved.minutes().await;
        assert_eq!(github.required(NEXT), ["gpu", "fmt", "build"]);
        assert_eq!(moved.record(), Some((NEXT, vec!["build"])));
    }
}

#[tokio::test]
async fn checks_that_cannot_be_taken_away_any_more_hold_up_no_other_repository() {
    // Given a first repository that was archived, or is out of reach
    for (reads, changes) in [(200, 403), (404, 404)] {
        let github = Repositories::new(&["gpu"], &["fmt"]).await;
        github.reads.store(reads, Ordering::Relaxed);
        github.changes.store(changes, Ordering::Relaxed);
        // When the pool has gone on to the next one, then an Event names what is left, once
        let mut moved = Moved::new(&github, true).await;
        let told = moved.minutes().await;
        let left = |told: &&String| told.starts_with("ChecksLeftBehind");
        let told: Vec<_> = told.iter().filter(left).collect();
        assert!(
            matches!(told[..], [told] if told.contains(FIRST) && told.contains("gpu")),
            "{told:?}"
        );
        assert_eq!(moved.record(), None);
        // And what is green there is required there
        let verification = moved.pool.status.verification.as_mut().unwrap();
        verification.run_id = Some(8);
        verification.repository = Some(NEXT.to_owned());
        moved.minutes().await;
        assert_eq!(github.required(NEXT), ["fmt", "gpu", "build"]);
        assert_eq!(github.required(FIRST), ["gpu"]);
    }
}

#[tokio::test]
async fn changes_of_several_branches_at_a_time_are_one_try() {
    // Given a record of three branches, and a repository that refuses all changes once, or the credentials for a while
    for (status, rounds) in [(403, 1), (401, 5)] {
        let github = Repositories::new(&["gpu"], &[]).await;
        let mut moved = Moved::new(&github, true).await;
        let record = moved.pool.status.required_checks.as_mut().unwrap();
        let main = record.branches[0].clone();
        for name in ["release-1", "release-2"] {
            let branch = cudarunner_crds::BranchChecks {
                name: name.to_owned(),
                ..main.clone()
            };
            record.branches.push(branch);
        }
        github.changes.store(status, Ordering::Relaxed);
        for _ in 0..rounds {
            moved.reconcile().await;
            moved.now += SignedDuration::from_mins(1);
        }
        // When that is over, then nothing is left behind
        github.changes.store(200, Ordering::Relaxed);
        let told = moved.minutes().await;
        assert!(
            !told.iter().any(|told| told.contains("ChecksLeftBehind")),
            "{told:?}"
        );
        assert_eq!(github.required(FIRST), [""; 0]);
    }
}

#[tokio::test]
async fn checks_that_the_spec_still_asks_for_are_given_up_by_no_refusal() {
    // Given a pool whose spec names the repository on record, which is out of reach for a while
    let github = Repositories::new(&["gpu"], &[]).await;
    github.reads.store(404, Ordering::Relaxed);
    let mut moved = Moved::new(&github, true).await;
    moved.pool.spec_mut().repository = cuda_runner_plan::model::github::Repository::new(FIRST);
    // Then its record stays
    let told = moved.minutes().await;
    assert!(!told.iter().any(|told| told.contains("ChecksLeftBehind")));
    assert_eq!(moved.record(), Some((FIRST, vec!["gpu"])));
}
