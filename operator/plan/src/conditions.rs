//! What is true of the pool, in words that a person can act on.
//!
//! A condition keeps its transition time while its status stays, and no message holds what changes by itself:
//! GitOps tools would see drift.

use cudarunner_crds::{FailureStatus, RunnerPhase};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::condition::{ConditionState, bad_status, condition_state, kind, set};
use super::device_taints;
use super::health::{self, Health};
use super::{
    About, Access, Action, Notice, Observed, Plan, architecture, checks, demand, devices, queue,
    scale_set, verify, webhook,
};
use crate::model::pool::{GpuRequest, Pool, Spec};
use crate::model::runner::{End, Runner, Waiting};
use crate::model::time::Shift as _;
use crate::reason::{Reason, Stored};

/// How long a pod may lack a node before it is worth a word: a predecessor may still be giving its GPU back.
const UNSCHEDULED: SignedDuration = SignedDuration::from_secs(15);

/// How long a pod may have a node and no container before it is worth a word: small images take seconds.
const SLOW: SignedDuration = SignedDuration::from_mins(2);

/// How long a runner may take to replace another before the pool is not ready any more.
const REPLACING: SignedDuration = SignedDuration::from_mins(2);

/// Fills in the conditions and the notices of their changes.
pub(super) fn plan(
    pool: &Pool,
    observed: &Observed,
    health: &Health,
    now: Timestamp,
    plan: &mut Plan,
) {
    let stalled = stalled(pool, observed, health);
    let credentials = credentials(observed);
    let online = online(pool, observed, health, now, plan);
    let gpu = with_suspects(gpu(pool, observed, health), plan);
    let ready = ready(&stalled, &credentials, &online);
    let ready = judged(pool, observed, plan.desired, ready);
    let all = [
        (kind::READY, ready),
        (kind::STALLED, stalled),
        (kind::CREDENTIALS_VALID, credentials),
        (kind::GPU_HEALTHY, gpu),
        (kind::RUNNERS_ONLINE, online),
        (kind::QUEUE_SERVED, queue::served(pool, observed)),
        (
            kind::WORKFLOW_VERIFIED,
            verify::verified(pool, plan.status.verification.as_ref(), observed),
        ),
        (
            kind::CHECKS_REQUIRED,
            checks::required(pool, plan.status.required_checks.as_ref(), observed),
        ),
        (
            kind::SPEC_SUPPORTED,
            condition_state("True", Reason::AllFieldsActedOn, "Every field is acted on"),
        ),
        (
            kind::WEBHOOK_READY,
            webhook::ready(pool, plan.status.webhook.as_ref(), observed),
        ),
    ];
    for (type_, said) in all {
        set(
            &mut plan.status.conditions,
            type_,
            said,
            pool.generation,
            now,
        );
    }
    announce(pool, health, plan);
}

/// An Event for each failure, and for each condition that changed.
fn announce(pool: &Pool, health: &Health, plan: &mut Plan) {
    for failure in &health.new {
        let node = failure
            .node
            .as_deref()
            .map(|n| format!(" on {n}"))
            .unwrap_or_default();
        plan.notices.push(Notice {
            warning: true,
            reason: Stored::parse(&failure.reason),
            note: format!("{}{node}: {}", failure.runner, failure.message),
            about: Some(About::Runner(failure.runner.clone())),
        });
    }
    for condition in &plan.status.conditions {
        let before = pool
            .status
            .conditions
            .iter()
            .find(|c| c.type_ == condition.type_);
        let changed =
            before.is_none_or(|b| b.status != condition.status || b.reason != condition.reason);
        let reason = Stored::parse(&condition.reason);
        // What is unknown at the first reconcile is no news, nor is a start; and Ready only sums up the others.
        let news = changed
            && condition.type_ != kind::READY
            && reason != Reason::Starting
            && !(before.is_none() && condition.status != bad_status(&condition.type_));
        // One cause shows in several conditions, and is reported once.
        let reported = plan.notices.iter().any(|n| n.reason == reason);
        if news && !reported {
            plan.notices.push(Notice {
                warning: condition.status == bad_status(&condition.type_),
                reason,
                note: format!("{}: {}", condition.type_, condition.message),
                about: None,
            });
        }
    }
}

fn stalled(pool: &Pool, observed: &Observed, health: &Health) -> ConditionState {
    if let Err(error) = &pool.spec {
        return condition_state("True", error.reason(), error.to_string());
    }
    if let Access::Refused {
        reason,
        message,
        transient: false,
    } = &observed.access
    {
        return condition_state("True", *reason, message.clone());
    }
    match health.stalled() {
        Some(failure) => condition_state(
            "True",
            Stored::parse(&failure.reason),
            failure.message.clone(),
        ),
        None => condition_state("False", Reason::Progressing, "Nothing waits for a person"),
    }
}

fn credentials(observed: &Observed) -> ConditionState {
    match &observed.access {
        Access::Unchecked => condition_state(
            "Unknown",
            Reason::NotChecked,
            "GitHub has not been asked yet",
        ),
        Access::Granted => {
            condition_state("True", Reason::Accepted, "GitHub accepts the credentials")
        }
        Access::Refused {
            reason,
            message,
            transient,
        } => condition_state(
            if *transient { "Unknown" } else { "False" },
            *reason,
            message.clone(),
        ),
    }
}

fn gpu(pool: &Pool, observed: &Observed, health: &Health) -> ConditionState {
    // Before the quarantined nodes: the breaker opens only when some are.
    if let Some(sentence) = &health.quarantine.breaker {
        return condition_state("False", Reason::BreakerOpen, sentence.clone());
    }
    let unhealthy = health.quarantine.unhealthy(observed);
    if !unhealthy.is_empty() {
        return condition_state(
            "False",
            Reason::NodesQuarantined,
            format!("Quarantined: {}", unhealthy.join("; ")),
        );
    }
    let tainted: Vec<&str> = health.quarantine.tainted().collect();
    if !tainted.is_empty() {
        return condition_state(
            "False",
            Reason::DevicesQuarantined,
            format!("Tainted: {}", tainted.join("; ")),
        );
    }
    let of_gate = [Reason::GateFailed, Reason::GateOverdue];
    if let Some(failure) = health.current() {
        let reason = Stored::parse(&failure.reason);
        if reason.is_one_of(&of_gate) {
            return condition_state("False", reason, failure.message.clone());
        }
    }
    let passed = observed.runners.iter().any(|r| r.gate_passed);
    let before = previous(pool, kind::GPU_HEALTHY);
    if passed || before.is_some_and(|c| c.status == "True") {
        return condition_state(
            "True",
            Reason::GatePassed,
            "Every device that was tried computes correctly",
        );
    }
    condition_state(
        "Unknown",
        Reason::NotTried,
        "No gate has run to its end yet",
    )
}

/// The same with the devices whose jobs fail more often than chance explains. Their gates pass, so they are healthy.
fn with_suspects(mut gpu: ConditionState, plan: &Plan) -> ConditionState {
    let suspects = devices::suspects(&plan.status.devices);
    if gpu.status == "True" && !suspects.is_empty() {
        gpu.message = format!(
            "{}. Jobs fail more often on {} than on the pool's other devices; status.devices has the counts",
            gpu.message,
            suspects.join(", ")
        );
    }
    gpu
}

/// Whether runners are connected. A pool that replaces its only runner after a job stays online: only trouble ends it.
fn online(
    pool: &Pool,
    observed: &Observed,
    health: &Health,
    now: Timestamp,
    plan: &mut Plan,
) -> ConditionState {
    let Ok(spec) = &pool.spec else {
        return condition_state(
            "False",
            Reason::NoRunners,
            "The spec cannot be carried out; see the condition Stalled",
        );
    };
    if let Some(said) = not_listening(spec, observed) {
        return said;
    }
    let before = previous(pool, kind::RUNNERS_ONLINE).filter(|c| c.status == "True");
    if plan.desired == 0 && !demand::is_known(pool, spec, observed) {
        return match before {
            Some(c) => condition_state("True", Stored::parse(&c.reason), c.message.clone()),
            None => condition_state("False", Reason::Starting, "The queue has not been read yet"),
        };
    }
    if plan.desired == 0 {
        let why = if spec.size.is_elastic() {
            "No job waits; a runner comes with the first"
        } else {
            "No runner is wanted"
        };
        return condition_state("True", Reason::ScaledToZero, why);
    }
    let trouble = trouble(spec, observed, health, now, plan);
    let first = observed
        .runners
        .iter()
        .filter(|r| r.is_online())
        .map(|r| r.since)
        .min();
    match (first, trouble) {
        (Some(_), Some((reason, message))) => condition_state(
            "True",
            reason,
            format!("Runners are online, though not all that are wanted: {message}"),
        ),
        (Some(_), None) if before.is_some_and(|c| Stored::parse(&c.reason) == Reason::Online) => {
            condition_state(
                "True",
                Reason::Online,
                before.map(|c| c.message.clone()).unwrap_or_default(),
            )
        }
        (Some(first), None) => {
            plan.first_online = first_online(pool, first);
            condition_state("True", Reason::Online, online_message(plan.first_online))
        }
        (None, Some((reason, message))) => condition_state("False", reason, message),
        (None, None) => none_online(pool, observed, now, plan),
    }
}

/// No runner is online, and nothing is wrong: one is replaced after its job, or the first ones start.
fn none_online(
    pool: &Pool,
    observed: &Observed,
    now: Timestamp,
    plan: &mut Plan,
) -> ConditionState {
    let before = previous(pool, kind::RUNNERS_ONLINE);
    let was_online = before.filter(|c| c.status == "True");
    let until = last_change(pool, observed, now, plan).map(|at| at.after(REPLACING));
    if let (Some(c), Some(until)) = (was_online, until.filter(|until| now < *until)) {
        plan.wake_at(until, now);
        return condition_state("True", Stored::parse(&c.reason), c.message.clone());
    }
    if was_online.is_some()
        || before.is_some_and(|c| Stored::parse(&c.reason) == Reason::NoneOnline)
    {
        return condition_state(
            "False",
            Reason::NoneOnline,
            "No runner is online any more, and the next one takes longer than usual; status.runners says how far it is",
        );
    }
    condition_state(
        "False",
        Reason::Starting,
        "The first runner has not come online yet",
    )
}

/// When a runner last ended its job or was last made, as far as it can still be seen.
fn last_change(pool: &Pool, observed: &Observed, now: Timestamp, plan: &Plan) -> Option<Timestamp> {
    let creates = plan
        .actions
        .iter()
        .any(|a| matches!(a, Action::CreatePod(_)));
    if creates || !observed.expected.is_empty() {
        return Some(now);
    }
    let runners = observed.runners.iter().map(|runner| match runner.end {
        Some(End::JobDone(_)) => runner.since.min(now),
        _ => runner.created,
    });
    let jobs = pool.status.last_jobs.iter().map(|job| job.finished_at.0);
    runners.chain(jobs).max()
}

/// Whether what the spec says now is known to work. Old runners that are online prove nothing of a new template.
fn judged(
    pool: &Pool,
    observed: &Observed,
    desired: usize,
    ready: ConditionState,
) -> ConditionState {
    let Ok(spec) = &pool.spec else { return ready };
    let proven = previous(pool, kind::READY)
        .is_some_and(|c| c.status == "True" && c.observed_generation == Some(pool.generation));
    let is_new = |r: &Runner| r.is_online() && r.template == spec.template_hash;
    if ready.status != "True" || desired == 0 || proven || observed.runners.iter().any(is_new) {
        return ready;
    }
    // A change of a number alone makes no other runners. The old ones go before the first new one is online.
    let is_old = |r: &Runner| r.template != spec.template_hash;
    let rolls =
        previous(pool, kind::READY).is_some_and(|c| Stored::parse(&c.reason) == Reason::RollingOut);
    if !rolls && !observed.runners.iter().any(is_old) {
        return ready;
    }
    condition_state(
        "Unknown",
        Reason::RollingOut,
        "The spec has changed, and no runner of the new one is online yet; those of the old one go on until they are replaced",
    )
}

/// What a pool in deletion says while runners are left.
pub(super) fn leaving(pool: &Pool, now: Timestamp, plan: &mut Plan) {
    let said = condition_state(
        "False",
        Reason::Deleting,
        "The resource is being deleted: no new jobs are taken, and running ones end as spec.deletionPolicy says",
    );
    let conditions = &mut plan.status.conditions;
    set(conditions, kind::READY, said, pool.generation, now);
}

/// A pool whose number of runners is for the queue to say, and that does not hear of it.
fn not_listening(spec: &Spec, observed: &Observed) -> Option<ConditionState> {
    if !spec.size.is_elastic() || observed.access != Access::Granted {
        return None;
    }
    if let Some(Err(message)) = observed.queue.as_ref().map(|queue| &queue.jobs)
        && spec.reads_queue()
    {
        return Some(condition_state(
            "False",
            Reason::QueueNotReadable,
            message.clone(),
        ));
    }
    let trouble = scale_set::trouble(observed.scale_set.as_ref()?)?;
    Some(condition_state(
        "False",
        trouble.reason,
        trouble.message.clone(),
    ))
}

/// At the first time, how long it took from the resource's creation.
fn first_online(pool: &Pool, first: Timestamp) -> Option<SignedDuration> {
    let seen_before = previous(pool, kind::RUNNERS_ONLINE)
        .is_some_and(|c| Stored::parse(&c.reason) != Reason::Starting);
    let took = first.duration_since(pool.created);
    (!seen_before && !took.is_negative()).then_some(took)
}

fn online_message(took: Option<SignedDuration>) -> String {
    took.map_or("Runners are online".to_owned(), |took| {
        format!(
            "Runners are online; the first was {} s after the resource was created",
            took.as_secs()
        )
    })
}

/// What keeps runners from coming online, if anything does.
fn trouble(
    spec: &Spec,
    observed: &Observed,
    health: &Health,
    now: Timestamp,
    plan: &mut Plan,
) -> Option<(Stored, String)> {
    if let Access::Refused {
        reason, message, ..
    } = &observed.access
    {
        return Some(((*reason).into(), message.clone()));
    }
    let unscheduled = unscheduled(spec, observed, health, now, plan);
    // Where the attempt after a failure waits for a node, that is what keeps the pool now, unless a person has to mend the
    // failure first.
    let is_past = |failure: &FailureStatus| {
        let waits = |(runner, ..): &(&Runner, Reason, String)| runner.created > failure.at.0;
        !health::needs_a_person(&failure.class) && unscheduled.as_ref().is_some_and(waits)
    };
    let failure = health.current().filter(|f| !health.is_behind(f));
    if let Some(failure) = failure.filter(|f| !is_past(f)) {
        return Some((Stored::parse(&failure.reason), failure.message.clone()));
    }
    if let Some(message) = &observed.pod_refused {
        return Some((Reason::PodNotCreated.into(), not_created(spec, message)));
    }
    let waiting = observed.runners.iter().find_map(|runner| {
        let waiting = runner.container_trouble()?;
        Some(held_up(spec, runner, waiting))
    });
    let (reason, message) = waiting
        .or_else(|| unscheduled.map(|(_, reason, message)| (reason, message)))
        .or_else(|| not_its_turn(observed, plan))
        .or_else(|| slow(observed, now, plan))?;
    Some((reason.into(), message))
}

/// What Kubernetes said of a pod, and what to do where its words tell: it names the pod's containers, not the spec's fields.
fn not_created(spec: &Spec, said: &str) -> String {
    let fields = if spec.job_containers.is_some() {
        "those of gpu are spec.jobContainers.resources, of main the resources of runner in spec.template, of prepare spec.smoke.resources"
    } else {
        "those of gpu are the resources of runner in spec.template, of prepare and main spec.smoke.resources"
    };
    let resources = format!("set the requests and limits that it asks for: {fields}");
    let security = "give runner in spec.template the securityContext that it asks of gpu or main";
    let table = [
        (
            "exceeded quota",
            "raise the quota, or let pools of the namespace ask for less; it is tried again",
        ),
        ("failed quota", &resources),
        // Of a LimitRange, which names no container.
        (" per Container is ", &resources),
        ("violates PodSecurity", security),
    ];
    let todo = table.iter().find(|(words, _)| said.contains(words));
    let todo = todo.map(|(_, todo)| format!("; {todo}"));
    let todo = todo.unwrap_or_default();
    format!("Kubernetes did not take the pod: {said}{todo}")
}

/// What keeps a container from being made, in Kubernetes' words.
fn held_up(spec: &Spec, runner: &Runner, waiting: &Waiting) -> (Reason, String) {
    if architecture::is_mismatch(&waiting.message) {
        let message = format!(
            "An image is for another architecture ({waiting}); {}",
            architecture::advice(spec.arch)
        );
        return (Reason::WrongArchitecture, message);
    }
    match health::image_trouble(runner) {
        Some(reason) => (
            reason,
            format!(
                "An image cannot be pulled ({waiting}); check its name and the imagePullSecrets in spec.template"
            ),
        ),
        None => (
            Reason::ContainerNotStarted,
            format!(
                "A container cannot be made or started ({waiting}); fix what spec.template names, or make what it lacks. The kubelet tries again"
            ),
        ),
    }
}

/// Pods that no node takes, and which of them waits longest.
fn unscheduled<'a>(
    spec: &Spec,
    observed: &'a Observed,
    health: &Health,
    now: Timestamp,
    plan: &mut Plan,
) -> Option<(&'a Runner, Reason, String)> {
    let runners = observed.runners.iter();
    let unscheduled = runners.filter(|r| r.phase == RunnerPhase::Unscheduled);
    // Of one that no scheduler looks at nothing is known but that.
    let first = unscheduled.min_by_key(|r| (r.is_gated(), r.since))?;
    if now < first.since.after(UNSCHEDULED) {
        plan.wake_at(first.since.after(UNSCHEDULED), now);
        return None;
    }
    if first.is_gated() {
        return Some((first, Reason::SchedulingGated, gated(first)));
    }
    let mut message = unschedulable(spec, observed, health);
    message.push_str(&device_taints::said_by_drivers(observed));
    if let Some(waiting) = first.waiting.as_ref().filter(|w| !w.message.is_empty()) {
        // What a preemption would bring is the same once more, at length.
        let (said, _) = waiting
            .message
            .split_once(" preemption: ")
            .unwrap_or((&waiting.message, ""));
        message = format!(
            "{message}. The scheduler says: {}",
            said.trim_end_matches('.')
        );
    }
    Some((first, Reason::Unschedulable, message))
}

/// A pod that a scheduling gate holds.
fn gated(runner: &Runner) -> String {
    let waiting = runner.waiting.as_ref();
    let gates = waiting.map_or("", |waiting| waiting.message.as_str());
    format!(
        "A scheduling gate holds the pod: {gates}. Kubernetes looks for no node until whoever has set the gate takes it off. If that is Kueue, keep the pool out of its queues: it would end each runner after its gate"
    )
}

/// Another pool's turn, where this one has no runner at all for that.
fn not_its_turn(observed: &Observed, plan: &Plan) -> Option<(Reason, String)> {
    let share = observed.share.as_ref()?;
    let waits = share.is_contended && !share.is_next && share.runners < plan.desired;
    (waits && observed.runners.iter().all(|r| r.end.is_some())).then(|| {
        let said = "The GPUs that this pool may use are taken, and the next one that becomes free is for another pool: namespaces share them evenly, and pools within one by spec.scaling.weight. The pool's turn comes when runners end";
        (Reason::WaitsForShare, said.to_owned())
    })
}

/// A pod whose first container takes long to be made. Why, only Events tell, and the operator does not read them. While
/// others serve, that is no trouble: its name would change with every runner.
fn slow(observed: &Observed, now: Timestamp, plan: &mut Plan) -> Option<(Reason, String)> {
    if observed.runners.iter().any(Runner::is_online) {
        return None;
    }
    let runners = observed.runners.iter();
    let preparing = runners.filter(|r| r.phase == RunnerPhase::Preparing);
    let first = preparing.min_by_key(|r| r.since)?;
    if now < first.since.after(SLOW) {
        plan.wake_at(first.since.after(SLOW), now);
        return None;
    }
    Some((
        Reason::SlowStart,
        format!(
            "A pod has its node and none of its containers yet: a large image is on its way, or a volume cannot be mounted because a Secret, ConfigMap or claim that spec.template names is not there. `kubectl describe pod {}` tells which",
            first.name
        ),
    ))
}

/// Why no node takes a pod, as far as that is known.
fn unschedulable(spec: &Spec, observed: &Observed, health: &Health) -> String {
    let nodes = observed.nodes.as_ref();
    let all_left_alone = nodes.is_some_and(|nodes| {
        !nodes.is_empty() && nodes.iter().all(|n| health.quarantine.is_avoided(&n.name))
    });
    if all_left_alone {
        return format!(
            "Every node that is known to have such GPUs is quarantined after a failure: {}. The runner waits",
            health.quarantine.reasons(observed).join("; ")
        );
    }
    if let Some(message) = architecture::elsewhere(spec, observed) {
        return message;
    }
    match &spec.gpu {
        GpuRequest::Resource { name, count: 1 } if nodes.is_some_and(Vec::is_empty) => format!(
            "No node offers {name}: add a node with a GPU, or look whether the device plugin runs on those that have one"
        ),
        GpuRequest::Resource { name, count } if nodes.is_some_and(Vec::is_empty) => format!(
            "No node offers {count} of {name} at a time; ask for fewer in spec.gpu.count, or add a node that has as many"
        ),
        GpuRequest::Resource { .. } => format!(
            "No node has {} free for this pool: they are taken, or the node selector, tolerations or other requests of spec.template exclude them. The runner waits",
            spec.gpu
        ),
        GpuRequest::Claim(template) => format!(
            "No node has devices free for the claim: they are taken, or the ResourceClaimTemplate {template} does not exist or asks for what no ResourceSlice has, or the node selector, tolerations or other requests of spec.template exclude them. The runner waits"
        ),
    }
}

fn ready(
    stalled: &ConditionState,
    credentials: &ConditionState,
    online: &ConditionState,
) -> ConditionState {
    if stalled.status == "True" {
        return condition_state("False", stalled.reason.clone(), stalled.message.clone());
    }
    if credentials.status != "True" {
        return condition_state(
            "False",
            credentials.reason.clone(),
            credentials.message.clone(),
        );
    }
    if online.status == "True" {
        return condition_state("True", online.reason.clone(), online.message.clone());
    }
    condition_state("False", online.reason.clone(), online.message.clone())
}

fn previous<'a>(pool: &'a Pool, type_: &str) -> Option<&'a Condition> {
    pool.status.conditions.iter().find(|c| c.type_ == type_)
}
