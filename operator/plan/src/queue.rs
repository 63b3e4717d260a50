//! The jobs that wait: for us, or for runners that nobody has.

use jiff::{SignedDuration, Timestamp};

use super::condition::{ConditionState, condition_state};
use super::{Access, Observed, Plan, scale_set, webhook};
use crate::model::github::{QueuedJob, has_label};
use crate::model::pool::{Pool, Spec};
use crate::model::time::Shift as _;
use crate::reason::Reason;

/// A queue that is due is read at the next reconcile, which does not follow at once.
const AGAIN: SignedDuration = SignedDuration::from_secs(1);

/// The jobs that wait for a pool.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Waiting {
    /// How many.
    pub jobs: i32,
    /// Since when the first of them waits, where GitHub says it.
    pub oldest: Option<Timestamp>,
}

/// Counts the jobs that wait for this pool.
pub(super) fn plan(pool: &Pool, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    webhook::plan(pool, observed, now, plan);
    let read = observed.queue.as_ref();
    if is_out_of_reach(pool, observed, now) {
        plan.status.looked_again.clone_from(&pool.look_again);
    } else if let Some(queue) = read {
        plan.status.looked_again.clone_from(&queue.asked);
    }
    let Some(queue) = read else { return };
    if let Ok(spec) = &pool.spec
        && spec.reads_queue()
    {
        // Where GitHub must not be asked yet, the queue cannot be read, however old it is.
        let heard = observed.webhook.as_ref().map(|facts| facts.heard);
        let due = webhook::read_again(spec, queue.at, &heard.unwrap_or_default())
            .max(observed.ask_again.unwrap_or(Timestamp::MIN));
        plan.wake_at(due.max(now.after(AGAIN)), now);
    }
    let by_scale_set = observed.scale_set.is_some();
    if let (Ok(spec), Ok(Some(jobs)), false) = (&pool.spec, &queue.jobs, by_scale_set) {
        let ours = jobs.iter().filter(|job| job.is_served_by(&spec.labels));
        let length = i32::try_from(ours.clone().count()).unwrap_or(i32::MAX);
        plan.status.queued = length;
        plan.queue = Some(Waiting {
            jobs: length,
            oldest: ours.filter_map(|job| job.created_at).min(),
        });
    }
}

/// Whether GitHub cannot be asked now. Whoever wants it asked again hears of that at once, and the conditions say why.
fn is_out_of_reach(pool: &Pool, observed: &Observed, now: Timestamp) -> bool {
    let pauses = observed.ask_again.is_some_and(|moment| now < moment);
    pool.spec.is_err() || pauses || matches!(observed.access, Access::Refused { .. })
}

/// Whether every queued job that looks for runners like ours finds some; the first that does not is named.
pub(super) fn served(pool: &Pool, observed: &Observed) -> ConditionState {
    let Ok(spec) = &pool.spec else {
        return condition_state(
            "Unknown",
            Reason::NotRead,
            "The queue is not read while the spec cannot be carried out",
        );
    };
    if let Some(said) = scale_set::served(pool, spec, observed) {
        return said;
    }
    if let Some(repository) = observed.queue.as_ref().and_then(|q| q.shut_out.as_ref()) {
        return condition_state("False", Reason::RunnerGroupShut, shut_out(spec, repository));
    }
    let jobs = match observed.queue.as_ref().map(|q| &q.jobs) {
        None => {
            return condition_state(
                "Unknown",
                Reason::NotRead,
                "The queue has not been read yet",
            );
        }
        Some(Err(message)) => {
            return condition_state("Unknown", Reason::NotReadable, message.clone());
        }
        Some(Ok(None)) => {
            return condition_state(
                "Unknown",
                Reason::NotListed,
                "GitHub lists queued jobs for repositories only",
            );
        }
        Some(Ok(Some(jobs))) => jobs,
    };
    match jobs.iter().find(|job| {
        let is_meant = has_label(&job.labels, &pool.key.name);
        (is_meant || is_like_ours(spec, observed, job)) && is_lost(spec, observed, job)
    }) {
        Some(job) => condition_state("False", Reason::LabelMissing, lost(spec, job)),
        None => condition_state(
            "True",
            Reason::EveryJobHasAPool,
            "Every queued job that asks for runners like these can be served",
        ),
    }
}

/// Labels that say nothing of whose job it is: every runner of the kind has them.
const COMMON: [&str; 9] = [
    "self-hosted",
    "linux",
    "windows",
    "macos",
    "x64",
    "x86_64",
    "arm",
    "arm64",
    "gpu",
];

/// Whether a label says nothing of whose job it is.
pub(super) fn is_common(label: &str) -> bool {
    COMMON.contains(&label.to_lowercase().as_str())
}

/// How many labels of their own a job and a set of runners share, and how many the runners lack.
fn compared(labels: &[String], job: &QueuedJob) -> (usize, usize) {
    let own = job.labels.iter().filter(|label| !is_common(label));
    let (shared, lacking): (Vec<_>, Vec<_>) = own.partition(|wanted| has_label(labels, wanted));
    (shared.len(), lacking.len())
}

/// A job that was most likely meant for us: it shares labels of its own with ours, ours lack few, and no other pool of the
/// address comes nearer.
fn is_like_ours(spec: &Spec, observed: &Observed, job: &QueuedJob) -> bool {
    let (shared, lacking) = compared(&spec.labels, job);
    let nearer = |labels: &Vec<String>| compared(labels, job).0 > shared;
    shared > 0 && lacking <= shared && !observed.other_pools.iter().any(nearer)
}

fn is_lost(spec: &Spec, observed: &Observed, job: &QueuedJob) -> bool {
    let queue = observed.queue.as_ref();
    let Some(registered) = queue.and_then(|q| q.registered.as_ref()) else {
        return false;
    };
    let mut pools = std::iter::once(&spec.labels).chain(&observed.other_pools);
    let mut others = registered.iter();
    !pools.any(|labels| job.is_served_by(labels)) && !others.any(|labels| job.is_served_by(labels))
}

/// Why no job of a repository comes to the pool, and what to do.
pub(super) fn shut_out(spec: &Spec, repository: &str) -> String {
    let group = spec.runner_group.as_deref().unwrap_or("Default");
    format!(
        "No job of {repository} can come to these runners: their runner group {group} is not visible to it. Add the repository to the group in the organization's settings (Actions, Runner groups), or name another group in spec.github.runnerGroup"
    )
}

pub(super) fn lost(spec: &Spec, job: &QueuedJob) -> String {
    format!(
        "The job {} of run {} asks for [{}], and no runner has all of these; this pool lacks {}. Add it to spec.labels of the pool that should run the job, or change the job's runs-on",
        job.name,
        job.run,
        job.labels.join(", "),
        job.lacks(&spec.labels).join(", "),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::condition::kind;
    use crate::fixture::{NOW, ago, observed, pool};
    use crate::{Plan, Queue};

    fn with(jobs: &[(&str, &[&str])], other_pools: &[&[&str]], registered: &[&[&str]]) -> Plan {
        let mut observed = observed(vec![]);
        observed.other_pools = other_pools.iter().map(|l| strings(l)).collect();
        observed.queue = Some(Arc::new(queue(jobs, registered)));
        crate::plan(&pool(1), &observed, NOW)
    }

    fn strings(labels: &[&str]) -> Vec<String> {
        labels.iter().map(|label| (*label).to_owned()).collect()
    }

    fn queue(jobs: &[(&str, &[&str])], registered: &[&[&str]]) -> Queue {
        Queue {
            at: ago(1),
            asked: None,
            jobs: Ok(Some(
                jobs.iter()
                    .map(|(name, labels)| QueuedJob {
                        run: 17,
                        name: (*name).to_owned(),
                        created_at: Some(ago(90)),
                        labels: strings(labels),
                        ..QueuedJob::default()
                    })
                    .collect(),
            )),
            registered: Some(registered.iter().map(|l| strings(l).into()).collect()),
            shut_out: None,
        }
    }

    fn queue_served(plan: &Plan) -> (&str, &str) {
        let c = plan
            .status
            .conditions
            .iter()
            .find(|c| c.type_ == kind::QUEUE_SERVED);
        c.map(|c| (c.status.as_str(), c.message.as_str())).unwrap()
    }

    #[test]
    fn a_label_that_nobody_has_is_named() {
        let plan = with(&[("train", &["self-hosted", "cuda", "a100"])], &[], &[]);
        let (status, message) = queue_served(&plan);
        assert_eq!(status, "False");
        assert!(
            message.contains("lacks a100") && message.contains("train"),
            "{message}"
        );
        assert_eq!(plan.status.queued, 0);
    }

    #[test]
    fn a_job_that_asks_for_the_pool_by_name_is_meant_for_it() {
        // Given a pool whose labels are written down, without its name
        let plan = with(&[("train", &["Pool"])], &[], &[]);
        let (status, message) = queue_served(&plan);
        assert_eq!(status, "False");
        assert!(message.contains("this pool lacks Pool"), "{message}");
        // Unless another runner has that label
        let plan = with(&[("train", &["pool"])], &[], &[&["pool"]]);
        assert_eq!(queue_served(&plan).0, "True");
    }

    #[test]
    fn a_pool_without_labels_of_its_own_serves_its_name_and_what_github_adds() {
        let resource: cudarunner_crds::CudaRunner = serde_json::from_value(serde_json::json!({
            "apiVersion": "cudarunner.dev/v1alpha1", "kind": "CudaRunner",
            "metadata": {"name": "a100"},
            "spec": {"github": {"url": "https://github.com/acme/widgets", "credentialsRef": {"name": "app"}}},
        }))
        .unwrap();
        let served = |pool: &Pool, wanted: &[&str]| {
            let job = QueuedJob {
                run: 17,
                name: "train".to_owned(),
                labels: wanted.iter().map(|l| (*l).to_owned()).collect(),
                ..QueuedJob::default()
            };
            job.is_served_by(&pool.spec.as_ref().unwrap().labels)
        };
        let by_default = Pool::read(&resource, false);
        for wanted in [
            &["a100"][..],
            &["A100", "cuda"],
            &["self-hosted", "cuda"],
            &["self-hosted", "linux", "x64", "cuda"],
            &["self-hosted", "Linux", "X64"],
        ] {
            assert!(served(&by_default, wanted), "{wanted:?}");
        }
        assert!(!served(&by_default, &["self-hosted", "linux", "arm64"]));
        assert!(!served(&by_default, &["ubuntu-latest"]));
        // What is written down stays as it is
        let mut explicit = resource;
        explicit.spec.labels = vec!["self-hosted".to_owned(), "cuda".to_owned()];
        let explicit = Pool::read(&explicit, false);
        assert!(served(&explicit, &["self-hosted", "cuda"]));
        assert!(!served(&explicit, &["a100"]) && !served(&explicit, &["self-hosted", "linux"]));
    }

    #[test]
    fn a_job_is_missed_by_the_pool_that_is_nearest_and_by_no_other() {
        let named = |wanted: &[&str], others: &[&[&str]]| {
            queue_served(&with(&[("train", wanted)], others, &[])).0 == "False"
        };
        let cuda_a100: &[&str] = &["self-hosted", "cuda", "a100", "big"];
        assert!(named(&["self-hosted", "cuda", "a100"], &[]));
        assert!(
            !named(cuda_a100, &[&["self-hosted", "cuda", "a100"]]),
            "another is nearer"
        );
        assert!(
            !named(&["self-hosted", "linux", "sparc"], &[]),
            "what all share says nothing"
        );
        assert!(!named(cuda_a100, &[]), "it lacks more than it has");
    }

    #[test]
    fn letters_of_every_script_are_compared_without_case() {
        let labels = ["ГПУ-Ä".to_owned()];
        assert!(has_label(&labels, "гпу-ä"));
        assert!(!has_label(&labels, "гпу-a"));
    }

    #[test]
    fn a_runner_group_that_shuts_the_repository_out_is_named() {
        let mut observed = observed(vec![]);
        observed.queue = Some(Arc::new(Queue {
            at: ago(1),
            asked: None,
            jobs: Ok(None),
            registered: Some([].into()),
            shut_out: Some("acme/widgets".to_owned()),
        }));
        let plan = crate::plan(&pool(1), &observed, NOW);
        let (status, message) = queue_served(&plan);
        assert_eq!(status, "False");
        assert!(
            message.contains("acme/widgets") && message.contains("group Default"),
            "{message}"
        );
    }

    #[test]
    fn another_pool_or_another_runner_may_serve_it() {
        let job: &[(&str, &[&str])] = &[("train", &["self-hosted", "cuda", "A100"])];
        let a100: &[&str] = &["self-hosted", "cuda", "a100"];
        assert_eq!(queue_served(&with(job, &[a100], &[])).0, "True");
        assert_eq!(queue_served(&with(job, &[], &[a100])).0, "True");
        assert_eq!(queue_served(&with(job, &[], &[])).0, "False");

        // Where nobody has looked at all runners, any job may have one
        let mut observed = observed(vec![]);
        observed.queue = Some(Arc::new(Queue {
            registered: None,
            ..queue(job, &[])
        }));
        let plan = crate::plan(&pool(1), &observed, NOW);
        assert_eq!(queue_served(&plan).0, "True");
    }

    #[test]
    fn our_jobs_are_counted_and_githubs_own_are_none_of_our_business() {
        let plan = with(
            &[
                ("build", &["self-hosted", "CUDA"]),
                ("lint", &["ubuntu-latest"]),
            ],
            &[],
            &[],
        );
        assert_eq!(queue_served(&plan).0, "True");
        assert_eq!(plan.status.queued, 1);
        let oldest = Some(ago(90));
        assert_eq!(plan.queue, Some(Waiting { jobs: 1, oldest }));
    }
}
