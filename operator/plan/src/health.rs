//! Failures: what they mean for the next attempt.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use cudarunner_crds::{FailureClass, FailureStatus, JobStatus, MAX_LAST_FAILURES, RunnerPhase};
use gate_report::{Class, Finding, time::of_a_try};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::quarantine::Quarantine;
use super::{Access, Case, Observed, architecture, hung, lasting, version};
use crate::model::backoff;
use crate::model::key::PoolKey;
use crate::model::pool::{Pool, Spec};
use crate::model::runner::{End, Failure, Runner, unconfirmed};
use crate::model::time::Shift as _;
use crate::reason::{Reason, Stored};

/// Reasons with which the kubelet reports an image that it cannot use. See
/// <https://kubernetes.io/docs/concepts/containers/images/#imagepullbackoff>.
const IMAGE_TROUBLE: [Reason; 6] = [
    Reason::ImagePullBackOff,
    Reason::ErrImageNeverPull,
    Reason::InvalidImageName,
    Reason::ImageInspectError,
    Reason::RegistryUnavailable,
    Reason::SignatureValidationFailed,
];
/// How long a start may take while nothing is wrong with it: CUDA images are tens of gigabytes.
const START: SignedDuration = SignedDuration::from_mins(20);
/// How long a container is waited for whose image cannot be pulled, or that cannot be made, from when that was first seen.
const FIXED: SignedDuration = SignedDuration::from_mins(5);
/// How long a running agent may take until it is online. One that finds another in its place tries for four minutes, and
/// then says so.
const ONLINE: SignedDuration = SignedDuration::from_mins(5);
/// The least pause after any failure, whatever is known of it: no loop goes faster.
const FLOOR: SignedDuration = SignedDuration::from_secs(2);
/// The longest pause.
const LONGEST: SignedDuration = SignedDuration::from_mins(10);
/// The longest pause where the failure's node is quarantined, so that the next attempt meets another one.
const BEHIND: SignedDuration = SignedDuration::from_mins(1);
/// After so many agents in a row that ended at once with the same code, their image or template is to blame.
const IN_A_ROW: usize = 3;
/// What a person hears of a fault that nobody has judged yet.
const UNJUDGED: &str = " Nobody is blamed for it and no node is quarantined; the pool tries again, less often each time.";
/// What the gate may take beside its two attempts at the test: registration and its own start.
const GATE_MARGIN: SignedDuration = SignedDuration::from_secs(120);
/// As many devices as the largest machines have: how many a claim gives, nobody but its driver knows.
const MOST_CLAIMED: u32 = 16;

/// What the failures so far mean.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Failures in a row since a runner was last online.
    pub consecutive: i32,
    /// The last failures, newest first.
    pub last_failures: Vec<FailureStatus>,
    /// Those of lately with a node, newest first, for as many as are needed to judge each node.
    pub remembered: Vec<FailureStatus>,
    /// Those that the status does not have yet.
    pub new: Vec<FailureStatus>,
    /// The same, in a class and a reason each.
    pub failed: Vec<(Class, Reason)>,
    /// Uids of those among the new ones whose pods were there yet.
    pub late: BTreeSet<String>,
    /// No runner is created before.
    pub not_before: Option<Timestamp>,
    /// Runners that have overrun the deadline of their phase.
    pub overdue: Vec<String>,
    /// The quarantined nodes.
    pub quarantine: Quarantine,
    /// Nodes that failed lately in a way that may pass: new pods go elsewhere while there is room.
    pub suspects: BTreeSet<String>,
}

impl Health {
    /// The failure that the pool suffers from now.
    #[must_use]
    pub fn current(&self) -> Option<&FailureStatus> {
        (self.consecutive > 0)
            .then(|| self.last_failures.first())
            .flatten()
    }

    /// The runners whose failures are told with the status for the first time.
    pub(crate) fn unrecorded(&self) -> impl Iterator<Item = String> {
        self.new.iter().map(|failure| failure.runner.clone())
    }

    /// The failure that a person has to fix, if that is what the pool suffers from.
    #[must_use]
    pub fn stalled(&self) -> Option<&FailureStatus> {
        self.current()
            .filter(|failure| needs_a_person(&failure.class) && !self.is_behind(failure))
    }

    /// Whether a failure's node or device is quarantined, so that the next attempt meets another one.
    #[must_use]
    pub fn is_behind(&self, failure: &FailureStatus) -> bool {
        let node = failure.node.as_deref();
        node.is_some_and(|node| self.quarantine.is_avoided(node))
            || self.quarantine.is_tainted(failure)
    }

    /// When the next attempt may be made.
    fn next_attempt(&self, pool: &Pool, now: Timestamp) -> Option<Timestamp> {
        // A time of another machine may be ahead of ours.
        let after = |failure: &FailureStatus, pause| failure.at.0.min(now).after(pause);
        let floor = self.last_failures.first().map(|last| after(last, FLOOR));
        let pause = self.current().map(|last| {
            let (first, longest) = if self.is_behind(last) {
                (FLOOR, BEHIND)
            } else {
                (first_pause(&last.class), LONGEST)
            };
            let pause = backoff::exponential(first, longest, self.consecutive, &pool.uid);
            after(last, pause)
        });
        floor.max(pause)
    }
}

/// Whether a class of failure goes away only when somebody changes something.
pub(crate) fn needs_a_person(class: &FailureClass) -> bool {
    class.is_one_of(&[Class::Config, Class::Unsupported, Class::Refused])
}

/// Whether the failure of a runner is in the status. A persistent runner's name may have failed before.
#[must_use]
pub fn is_known(known: &[FailureStatus], runner: &Runner) -> bool {
    let mut of_name = known.iter().filter(|f| f.runner == runner.name);
    of_name.any(|f| f.at.0 >= runner.created)
}

/// The same, of what another process has told: older failures than a full list has have left the list.
#[must_use]
pub fn is_listed(known: &[FailureStatus], runner: &Runner) -> bool {
    let has_left = |end: &End| match end {
        End::Failed(failure) => has_left(known, failure),
        End::JobDone(_) => false,
    };
    is_known(known, runner) || runner.end.as_ref().is_some_and(has_left)
}

fn has_left(known: &[FailureStatus], failure: &Failure) -> bool {
    // Kubernetes tells whole seconds: of those of the same one nobody knows, and twice is better than never.
    let oldest = known.get(MAX_LAST_FAILURES - 1);
    oldest.is_some_and(|oldest| failure.at < oldest.at.0)
}

/// Whether nobody has told this failure.
fn is_new(known: &[FailureStatus], runner: &Runner, failure: &Failure, is_over: bool) -> bool {
    let is_told = match runner.told {
        Some(told) => told.end || told.late && !is_over,
        None => has_left(known, failure),
    };
    let mut of_name = known.iter().filter(|f| f.runner == runner.name);
    !is_told && !is_known(known, runner) && !of_name.any(|f| f.at.0 == failure.at)
}

/// What is found of runners that have failed.
#[derive(Default)]
struct Found {
    new: Vec<FailureStatus>,
    failed: Vec<(Class, Reason)>,
    late: BTreeSet<String>,
    overdue: Vec<String>,
    /// When the pods of the new ones were created, by their names.
    made: BTreeMap<String, Timestamp>,
}

/// Reads the failures out of the pods.
fn found(pool: &Pool, observed: &Observed, now: Timestamp) -> Found {
    let mut found = Found::default();
    let mut hung = hung::overdue(pool, observed, now);
    let vanished = observed.vanished.iter().map(|runner| (runner, true));
    let runners = observed.runners.iter().map(|runner| (runner, false));
    for (runner, has_vanished) in runners.chain(vanished) {
        let failure = failure_of(pool, observed, runner, has_vanished, now);
        let hangs = || hung.remove(&runner.name).map(|hung| (hung, true));
        let Some((mut failure, is_late)) = failure.or_else(hangs) else {
            continue;
        };
        // It is known again by its time: of a runner that was made before, whatever the clocks say.
        failure.at = failure.at.max(runner.created);
        if is_late {
            found.overdue.push(runner.name.clone());
        }
        let is_over = has_vanished || runner.end.is_some();
        if is_new(&pool.status.last_failures, runner, &failure, is_over) {
            if !is_over {
                found.late.insert(runner.uid.clone());
            }
            let failure = version::believed(pool, runner, failure, observed, now);
            let failure = warming(runner, failure, observed, now);
            let failure = with_github(runner, failure, observed);
            let failure = left_behind(pool, runner, failure, observed);
            found.failed.push((failure.class, failure.reason));
            found.made.insert(runner.name.clone(), runner.created);
            found.new.push(noted(runner, failure));
        }
    }
    let order = |a: &FailureStatus, b: &FailureStatus| {
        b.at.0.cmp(&a.at.0).then_with(|| a.runner.cmp(&b.runner))
    };
    found.new.sort_by(order);
    found
}

/// Reads the failures out of the pods and of the status.
#[must_use]
pub fn assess(pool: &Pool, observed: &Observed, now: Timestamp) -> Health {
    let known = &pool.status.last_failures;
    let Found {
        mut new,
        failed,
        late,
        overdue,
        made,
    } = found(pool, observed, now);

    let consecutive = consecutive(pool, observed, &new, new.first().or(known.first()));
    blame_image(&mut new, known, consecutive);
    let of_nodes = lasting::Known {
        pool,
        observed,
        made: &made,
    };
    let earlier = lasting::earlier(known, &observed.failures);
    lasting::blame_nodes(&mut new, &earlier, of_nodes);
    let all = new.iter().chain(&earlier);
    let suspects = lasting::suspects(all.clone(), of_nodes, now);
    let remembered = lasting::remembered(all, of_nodes, now);
    let mut last_failures: Vec<FailureStatus> = new.iter().chain(known).cloned().collect();
    last_failures.truncate(MAX_LAST_FAILURES);

    let mut health = Health {
        consecutive,
        last_failures,
        remembered,
        new,
        failed,
        late,
        not_before: None,
        overdue,
        quarantine: Quarantine::default(),
        suspects,
    };
    if let Ok(spec) = &pool.spec {
        let case = Case {
            pool,
            spec,
            observed,
            health: &health,
            now,
        };
        health.quarantine = Quarantine::assess(case);
    }
    health.not_before = health.next_attempt(pool, now);
    health
}

/// Why a runner failed, if it did; and whether it is still there, beyond its time.
fn failure_of(
    pool: &Pool,
    observed: &Observed,
    runner: &Runner,
    has_vanished: bool,
    now: Timestamp,
) -> Option<(Failure, bool)> {
    match &runner.end {
        // A pod that was asked to go and had no job has done as it was told.
        Some(End::Failed(failure))
            if runner.phase == RunnerPhase::Terminating && !failure.is_unasked() =>
        {
            None
        }
        Some(End::Failed(failure)) => Some((failure.clone(), false)),
        Some(End::JobDone(_)) => None,
        None if let Some(lost) = unconfirmed(runner, observed, now) => Some((lost, false)),
        None if has_vanished => Failure::deleted(runner, now).map(|deleted| (deleted, false)),
        None => {
            let spec = pool.spec.as_ref().ok()?;
            overrun(runner, spec, now).map(|late| (late, true))
        }
    }
}

/// What GitHub's own list adds: a job that failed before its first step leaves no word in the pod; and a gate that waited
/// in vain has not been kept from the registrar where it is GitHub that does not answer.
fn with_github(runner: &Runner, failure: Failure, observed: &Observed) -> Failure {
    let mut entries = observed.listing.iter().flat_map(|l| &l.entries);
    let was_busy = entries.any(|entry| entry.busy && entry.name == runner.name);
    let tells_no_job = [
        Reason::EndedWithoutJob,
        Reason::AgentEnded,
        Reason::AgentEndedAtOnce,
        Reason::PodRejected,
    ]
    .contains(&failure.reason);
    if was_busy && tells_no_job {
        return Failure {
            reason: Reason::JobCutShort,
            message: format!(
                "GitHub showed the runner busy: it had a job, which ended before its first step or in the middle; look for it at GitHub. {}",
                failure.message
            ),
            ..failure
        };
    }
    if failure.reason == Reason::RegistrarUnreachable
        && let Access::Refused { message, .. } = &observed.access
    {
        return Failure {
            message: format!(
                "The gate waited in vain for a registration, because GitHub does not give any now: {message}"
            ),
            ..failure
        };
    }
    failure
}

/// Whether this is of an agent that did not start, or ended as soon as it did.
#[must_use]
pub fn hardly_started(failure: &FailureStatus) -> bool {
    let started_hardly = [Reason::AgentEndedAtOnce, Reason::ContainerNotStarted];
    Stored::parse(&failure.reason).is_one_of(&started_hardly)
}

/// Agents that do not start, or end as soon as they do, again and again in the same way: nobody but a person ends that.
fn blame_image(new: &mut [FailureStatus], known: &[FailureStatus], consecutive: i32) {
    let Some(last) = new.first().filter(|f| hardly_started(f)).cloned() else {
        return;
    };
    let is_same = |f: &FailureStatus| f.reason == last.reason && f.code == last.code;
    let all = new.iter().chain(known).take(IN_A_ROW);
    let in_a_row = usize::try_from(consecutive).is_ok_and(|n| n >= IN_A_ROW);
    if !in_a_row || all.filter(|f| is_same(f)).count() < IN_A_ROW {
        return;
    }
    // What has run out its time has been given up as a mistake already.
    let suspects = new.iter_mut().filter(|f| is_same(f));
    for failure in suspects.filter(|f| f.class == Class::Transient) {
        failure.class = Class::Config.into();
        failure.message.push_str(" That has happened several times in a row: look at the image, at its user, and at what spec.template changes of the container.");
    }
}

/// A driver that cannot be started on a node which has just come is not to blame yet: it may still be starting.
fn warming(runner: &Runner, failure: Failure, observed: &Observed, now: Timestamp) -> Failure {
    let node = runner.node.as_deref().and_then(|name| observed.node(name));
    let young = node.is_some_and(|node| node.is_warming_up(now));
    if !young
        || !failure.at_start
        || !matches!(
            failure.class,
            Class::Config | Class::Node | Class::Transient
        )
    {
        return failure;
    }
    Failure {
        reason: Reason::NodeWarmingUp,
        class: Class::Transient,
        message: format!(
            "The node is new, and its driver may still be starting; the gate tries again. It said: {}",
            failure.message
        ),
        ..failure
    }
}

/// Who may have left a process on a GPU whose memory is taken: the gate sees nothing of what ran there before. Of another
/// pool's job no more is said than whose it was: its namespace may be another team's.
fn left_behind(pool: &Pool, runner: &Runner, mut failure: Failure, observed: &Observed) -> Failure {
    if !failure.is(Finding::MemoryTaken) {
        return failure;
    }
    let device = failure.device.as_ref();
    let own = pool.status.last_jobs.iter().map(|job| (None, job));
    let elsewhere = observed.jobs_elsewhere.iter();
    let was_there = |(_, job): &(Option<&PoolKey>, &JobStatus)| {
        job.node.is_some()
            && job.node == runner.node
            && device.is_none_or(|device| job.devices.contains(device))
            && job.finished_at.0 <= failure.at
    };
    let last = own
        .chain(elsewhere.map(|(pool, job)| (Some(pool), job)))
        .filter(was_there)
        .max_by_key(|(_, job)| job.finished_at.0);
    let Some((whose, job)) = last else {
        return failure;
    };
    let which = if let Some(pool) = whose {
        format!("The last job there was the pool {pool}'s")
    } else {
        let url = job.url.as_ref();
        let of = url.map_or_else(String::new, |url| format!(" ({url})"));
        format!(
            "The pool's last job there was {}{of} on {}",
            job.job, job.runner
        )
    };
    let ended = job.finished_at.0.strftime("%H:%M:%SZ");
    // A string takes everything.
    let _ = write!(
        failure.message,
        " {which}, which ended at {ended}: it may have left a process behind."
    );
    failure
}

/// Failures in a row: a batch counts once, a runner that came online since ends the row, and a changed spec starts afresh.
fn consecutive(
    pool: &Pool,
    observed: &Observed,
    new: &[FailureStatus],
    last: Option<&FailureStatus>,
) -> i32 {
    let before = if pool.status.observed_generation == Some(pool.generation) {
        pool.status.consecutive_failures
    } else {
        0
    };
    let healthy_since = |moment: Timestamp| {
        observed
            .runners
            .iter()
            .any(|r| (r.is_online() || r.phase == RunnerPhase::Finished) && r.since > moment)
    };
    if last.is_some_and(|last| healthy_since(last.at.0)) {
        return 0;
    }
    if new.is_empty() {
        before
    } else {
        before.saturating_add(1)
    }
}

/// The pause after the first failure of a class.
fn first_pause(class: &FailureClass) -> SignedDuration {
    SignedDuration::from_secs(if needs_a_person(class) { 20 } else { 5 })
}

fn noted(runner: &Runner, mut failure: Failure) -> FailureStatus {
    // A job that fails before its first step leaves no mark.
    if let Some(job) = runner
        .heard
        .as_ref()
        .filter(|job| !failure.message.contains(&format!("of run {} in", job.run)))
    {
        failure.message = format!("{} GitHub had given it the {job}.", failure.message);
    }
    if failure.class == Class::Unknown {
        failure.message.push_str(UNJUDGED);
    }
    FailureStatus {
        runner: runner.name.clone(),
        node: runner.node.clone(),
        device: failure.device,
        class: failure.class.into(),
        code: failure.code,
        code_name: failure.code_name,
        shared: failure.shared,
        reason: failure.reason.into(),
        message: failure.message,
        at: Time(failure.at),
    }
}

/// When the phase of a runner is over at the latest; `None` where it may wait for ever.
#[must_use]
pub fn deadline(runner: &Runner, spec: &Spec) -> Option<Timestamp> {
    let devices = spec.gpu.count().unwrap_or(MOST_CLAIMED);
    let gate = of_a_try(spec.gate.timeout_seconds.into(), devices);
    let gate = i64::try_from(gate).unwrap_or(i64::MAX);
    let may_take = match runner.phase {
        RunnerPhase::Preparing | RunnerPhase::Starting if runner.container_trouble().is_some() => {
            let since = runner.waiting_since.unwrap_or(runner.since);
            return Some(since.after(FIXED));
        }
        RunnerPhase::Starting if runner.agent_running => ONLINE,
        RunnerPhase::Preparing | RunnerPhase::Starting => START,
        RunnerPhase::Gated => SignedDuration::from_secs(gate)
            .saturating_mul(2)
            .saturating_add(GATE_MARGIN),
        _ => return None,
    };
    Some(runner.since.after(may_take))
}

/// The failure of a runner that has overrun its phase.
fn overrun(runner: &Runner, spec: &Spec, now: Timestamp) -> Option<Failure> {
    if deadline(runner, spec)? > now {
        return None;
    }
    let registered = runner.agent_running;
    let failure = |reason, class, message| Failure::new(reason, class, message, now, registered);
    let waiting = runner.waiting.as_ref();
    let is_foreign = waiting.is_some_and(|w| architecture::is_mismatch(&w.message));
    let waiting = waiting.map_or_else(String::new, |waiting| format!(" ({waiting})"));
    Some(match runner.phase {
        RunnerPhase::Gated => failure(
            Reason::GateOverdue,
            Class::Node,
            "The gate neither passed nor failed within its time; the node may hang. Look at the node's kubelet and driver.".to_owned(),
        ),
        _ if runner.container_trouble().is_some() && is_foreign => failure(
            Reason::WrongArchitecture,
            Class::Config,
            format!("An image is for another architecture{waiting}; {}.", architecture::advice(spec.arch)),
        ),
        _ if image_trouble(runner).is_some() => failure(
            Reason::ImageNotPulled,
            Class::Config,
            format!("An image could not be pulled{waiting}; check its name and the imagePullSecrets in spec.template."),
        ),
        _ if runner.container_trouble().is_some() => failure(
            Reason::ContainerNotStarted,
            Class::Config,
            format!("A container could not be made or started{waiting}; fix what spec.template names, or make what it lacks."),
        ),
        RunnerPhase::Starting if registered => failure(
            Reason::NeverOnline,
            Class::Transient,
            format!("The agent was registered and did not come online{waiting}; `kubectl logs` of the pod tells more."),
        ),
        _ => failure(
            Reason::NeverStarted,
            Class::Transient,
            format!("The pod got a node and did not start there{waiting}; `kubectl describe` of the pod tells more."),
        ),
    })
}

/// Whether a condition with this reason repeats what Kubernetes says of a pod that waits.
#[must_use]
pub fn is_kubernetes_word(reason: Reason) -> bool {
    [Reason::Unschedulable, Reason::ContainerNotStarted].contains(&reason)
        || IMAGE_TROUBLE.contains(&reason)
}

/// What keeps a runner's image away, if that is what it waits for.
#[must_use]
pub fn image_trouble(runner: &Runner) -> Option<Reason> {
    let waiting = runner.waiting.as_ref()?;
    let mut all = IMAGE_TROUBLE.into_iter();
    all.find(|reason| waiting.reason.is(reason.word()))
}
