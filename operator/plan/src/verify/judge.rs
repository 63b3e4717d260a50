//! What a run proves: each job picked up here, in time, and successful; and where not, the likely cause.

use jiff::{SignedDuration, Timestamp};

use super::{LOG, Verification, VerifiedJob, VerifiedJobStatus, named};
use crate::model::github::{RunJob, has_label};
use crate::model::time::Shift as _;
use crate::queue;
use crate::reason::Reason;

/// What a run has shown so far.
pub(super) struct Judged {
    pub(super) jobs: Vec<VerifiedJobStatus>,
    pub(super) verdict: Verdict,
    /// A job waits longer than it may.
    pub(super) overdue: bool,
}

/// What follows.
pub(super) enum Verdict {
    /// It goes on; with a reason and a sentence where something holds it up.
    Open(Option<(Reason, String)>),
    Failed(Reason, String),
    Succeeded,
}

/// Judges the run as it was last read.
pub(super) fn judge(verification: &Verification<'_>) -> Judged {
    let facts = &verification.case.observed.verification;
    let run_over = facts.is_gone || facts.run.as_ref().is_some_and(|r| r.status == "completed");
    let mut judged = Judged {
        jobs: vec![],
        verdict: Verdict::Succeeded,
        overdue: false,
    };
    if facts.is_gone {
        judged.verdict = Verdict::Failed(Reason::RunGone, "The run was deleted on GitHub".into());
        return judged;
    }
    let mut open = false;
    let mut hold = None;
    let mut failed: Option<(Reason, String)> = None;
    for wanted in &verification.verify.jobs {
        let found = named(&wanted.name, &facts.jobs);
        if found.is_empty() {
            if run_over {
                failed = failed.or_else(|| Some(verification.unknown(wanted)));
            } else {
                open = true;
                hold = hold.or_else(|| verification.held());
            }
        }
        for job in found {
            let (status, state) = verification.job(wanted, job);
            judged.jobs.push(status);
            match state {
                State::Good => {}
                State::Bad(reason, message) => failed = failed.or(Some((reason, message))),
                State::Open => open = true,
                State::Held => {
                    open = true;
                    hold = hold.or_else(|| verification.held());
                }
                State::Late(message) => {
                    open = true;
                    judged.overdue = true;
                    hold = Some((Reason::JobNotPickedUp, message));
                }
            }
        }
    }
    judged.verdict = match (failed, open) {
        // The rest of the run is waited for: two at a time would be in each other's way.
        (_, true) => Verdict::Open(hold),
        (Some((reason, message)), false) => Verdict::Failed(reason, message),
        (None, false) => Verdict::Succeeded,
    };
    judged
}

enum State {
    Good,
    Bad(Reason, String),
    Open,
    Held,
    Late(String),
}

impl Verification<'_> {
    fn job(&self, wanted: &VerifiedJob, job: &RunJob) -> (VerifiedJobStatus, State) {
        let taken = job.runner_name.as_deref().filter(|name| !name.is_empty());
        let started = taken.and(job.started_at);
        let passed = self.case.observed.verification.sums.get(&job.id);
        let status = VerifiedJobStatus {
            name: job.name.clone(),
            url: job.html_url.clone(),
            runner: taken.map(str::to_owned),
            queued_seconds: started
                .zip(job.created_at)
                .map(|(at, queued)| at.duration_since(queued).as_secs().max(0)),
            pickup_seconds: started.map(|at| self.waited(job, at).as_secs().max(0)),
            conclusion: job.conclusion.clone(),
            passed: wanted
                .tests
                .as_ref()
                .and(passed)
                .and_then(|sum| i64::try_from(sum.passed).ok()),
        };
        let state = self.state(wanted, job, taken, started);
        (status, state)
    }

    fn state(
        &self,
        wanted: &VerifiedJob,
        job: &RunJob,
        taken: Option<&str>,
        started: Option<Timestamp>,
    ) -> State {
        let limit = SignedDuration::from_secs(i64::from(self.verify.pickup_seconds));
        match job.status.as_str() {
            "completed" => {}
            "queued" if self.others_at_work(job) => return State::Open,
            "queued" if self.waited(job, self.case.now) > limit => {
                return State::Late(format!(
                    "No runner of this pool has picked up the job {} within {} seconds: {}",
                    job.name,
                    self.verify.pickup_seconds,
                    self.cause(job)
                ));
            }
            "pending" | "waiting" => return State::Held,
            _ => return State::Open,
        }
        let conclusion = job.conclusion.as_deref().unwrap_or("unknown");
        if conclusion != "success" {
            let advice = match conclusion {
                "skipped" => "; a condition (if:) of the workflow left it out",
                "cancelled" => {
                    "; a person, a newer run of its concurrency group, or a day without a runner ended it"
                }
                _ => "; its log says why",
            };
            return State::Bad(
                Reason::JobFailed,
                format!("The job {} ended with {conclusion}{advice}", job.name),
            );
        }
        let Some(runner) = taken.filter(|name| is_ours(name, &self.case.pool.key.name)) else {
            return State::Bad(
                Reason::ForeignRunner,
                format!(
                    "The job {} ran on {}, which is not of this pool: other runners have the labels [{}], too; give this pool a label of its own",
                    job.name,
                    taken.unwrap_or("a runner of GitHub's"),
                    job.labels.join(", ")
                ),
            );
        };
        if let Some(at) = started
            && self.waited(job, at) > limit
        {
            return State::Bad(
                Reason::JobNotPickedUp,
                format!(
                    "{runner} picked up the job {} after {} seconds, {} are allowed; more replicas, or a larger spec.verify.pickupSeconds",
                    job.name,
                    self.waited(job, at).as_secs(),
                    self.verify.pickup_seconds
                ),
            );
        }
        self.tests(wanted, job)
    }

    fn tests(&self, wanted: &VerifiedJob, job: &RunJob) -> State {
        let Some(expected) = &wanted.tests else {
            return State::Good;
        };
        match self.case.observed.verification.sums.get(&job.id) {
            None if job
                .completed_at
                .is_some_and(|at| self.case.now < at.after(LOG)) =>
            {
                State::Open
            }
            None => State::Bad(
                Reason::LogNotReadable,
                format!(
                    "The log of the job {} cannot be read, so its tests cannot be counted{}",
                    job.name,
                    self.case
                        .observed
                        .verification
                        .trouble
                        .as_ref()
                        .map(|t| format!(": {t}"))
                        .unwrap_or_default()
                ),
            ),
            Some(sum) if i64::try_from(sum.passed).ok() == Some(i64::from(expected.passed)) => {
                State::Good
            }
            Some(sum) => State::Bad(
                Reason::TestsMissing,
                format!(
                    "The log of the job {} reports {} of {} passed tests, in {} lines `test result:`",
                    job.name, sum.passed, expected.passed, sum.results
                ),
            ),
        }
    }

    /// How long a job has waited at `until` while a runner could have been free for it: from when it was queued, was
    /// let go by its concurrency group, or another job of the run gave its runner back.
    fn waited(&self, job: &RunJob, until: Timestamp) -> SignedDuration {
        let given_back = self
            .siblings(job)
            .filter_map(|other| other.completed_at)
            .filter(|at| *at <= until);
        let from = given_back
            .chain(job.created_at)
            .chain(self.case.observed.verification.held_until)
            .max();
        from.map_or(SignedDuration::ZERO, |from| until.duration_since(from))
    }

    /// Whether other jobs of the run keep all runners of the pool busy.
    fn others_at_work(&self, job: &RunJob) -> bool {
        let at_work = self
            .siblings(job)
            .filter(|other| other.status == "in_progress")
            .count();
        at_work > 0 && at_work >= self.case.spec.size.max
    }

    fn siblings(&self, job: &RunJob) -> impl Iterator<Item = &RunJob> {
        let own = job.id;
        let name = &self.case.pool.key.name;
        self.case
            .observed
            .verification
            .jobs
            .iter()
            .filter(move |other| {
                let runner = other.runner_name.as_deref();
                other.id != own && runner.is_some_and(|runner| is_ours(runner, name))
            })
    }

    /// The likely cause of a job that waits.
    fn cause(&self, job: &RunJob) -> String {
        let missing: Vec<&str> = job
            .labels
            .iter()
            .filter(|wanted| !has_label(&self.case.spec.labels, wanted))
            .map(String::as_str)
            .collect();
        if !missing.is_empty() {
            return format!(
                "it asks for [{}], and the pool {} lacks {}; add that to spec.labels, or change the job's runs-on",
                job.labels.join(", "),
                self.case.pool.key.name,
                missing.join(", ")
            );
        }
        let queue = self.case.observed.queue.as_ref();
        if let Some(repository) = queue.and_then(|queue| queue.shut_out.as_ref()) {
            return queue::shut_out(self.case.spec, repository);
        }
        let online = self.case.observed.runners.iter().filter(|r| r.is_online());
        let idle = online
            .clone()
            .any(|r| r.phase == cudarunner_crds::RunnerPhase::Idle);
        if online.count() == 0 {
            return match self.case.health.current() {
                Some(failure) => format!("no runner is online: {}", failure.message),
                None => "no runner is online; see the condition RunnersOnline".to_owned(),
            };
        }
        if !idle {
            return "all runners are busy with other jobs; more replicas would help".to_owned();
        }
        match &self.case.spec.runner_group {
            Some(group) => format!(
                "runners are idle and have its labels; is the runner group {group} visible to the repository, and does it admit the workflow?"
            ),
            None if !self.case.spec.url.is_repository() => {
                "runners are idle and have its labels; is the default runner group visible to the repository? Public repositories must be allowed for it".to_owned()
            }
            None => "runners are idle and have its labels; does the page of the run name an approval or a limit that holds it?".to_owned(),
        }
    }

    /// What holds the run back as a whole.
    fn held(&self) -> Option<(Reason, String)> {
        let facts = &self.case.observed.verification;
        let status = facts.run.as_ref().map_or("", |run| run.status.as_str());
        let any = |word: &str| status == word || facts.jobs.iter().any(|job| job.status == word);
        if any("pending") {
            return Some((
                Reason::HeldByConcurrencyGroup,
                "The workflow's concurrency group holds the run until another run of the same ref is over; more runners do not help".to_owned(),
            ));
        }
        any("waiting").then(|| {
            (
                Reason::WaitsForApproval,
                "A protection rule of the workflow's environment holds a job; approve it on the page of the run".to_owned(),
            )
        })
    }

    fn unknown(&self, wanted: &VerifiedJob) -> (Reason, String) {
        let jobs = &self.case.observed.verification.jobs;
        let names: Vec<&str> = jobs.iter().take(20).map(|job| job.name.as_str()).collect();
        (
            Reason::JobNotFound,
            format!(
                "{} has no job {}; it has {}",
                self.verify.workflow,
                wanted.name,
                names.join(", ")
            ),
        )
    }
}

/// Whether a runner's name is one that the pool gives: its own, a hyphen, and a suffix without one.
fn is_ours(runner: &str, pool: &str) -> bool {
    let suffix = runner.strip_prefix(pool).and_then(|r| r.strip_prefix('-'));
    suffix.is_some_and(|s| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric()))
}
