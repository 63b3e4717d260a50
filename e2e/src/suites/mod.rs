//! The end-to-end suites: one file for each behaviour, one entry each in the table.

mod address_change;
mod admission;
mod arm64;
mod black_hole_node;
mod budgets;
mod by_hand;
mod capacity;
mod charts;
mod claimed_devices;
mod claims;
mod container_faults;
mod container_jobs;
pub mod context;
mod credentials;
mod demo;
mod device_taints;
mod diagnosis;
mod docs;
mod faults;
mod first_runner;
mod fleet_page;
mod from_arc;
mod gate;
mod gpu_lost;
mod gpu_missing;
mod hostile_job;
mod hostile_server;
mod hostile_tenant;
mod hours;
mod hung_agents;
mod images;
mod install;
mod job_ends;
mod job_policy;
mod krew;
mod kubelet_restart;
mod lasting_fault;
mod late_registration;
mod local_cluster;
mod long_job;
mod metrics;
mod missing_label;
mod neighbour;
mod node_lost;
mod node_marks;
mod permissions;
mod persistent;
mod playground;
mod plugin;
pub(crate) mod port_forward;
mod preflight;
mod private_registry;
mod proxy;
mod quarantine;
mod reasons;
mod recorder;
mod registration_token;
mod required_checks;
mod rerun;
mod restarts;
mod runner;
mod runner_ends;
mod sample;
mod scale;
mod scale_set;
mod schedule;
mod second_node;
mod secrets;
mod several_gpus;
mod shared_gpus;
mod side_by_side;
mod spec_changes;
mod strict_namespace;
mod suspect_device;
mod teardown;
mod teardown_troubles;
mod telemetry;
mod telemetry_of_jobs;
mod template;
mod two_replicas;
mod uninstall;
mod upgrade;
mod verification;
mod webhook;
mod why;
mod workflow;

use futures::future::LocalBoxFuture;

pub use context::Ctx;
use context::SOON;
pub use runner::run;

/// A suite.
#[derive(Clone, Copy, Debug)]
pub struct Suite {
    /// Its name, for `--suite`.
    pub name: &'static str,
    /// The rows of the product's list of behaviours that it shows.
    pub rows: &'static [u8],
    /// Whether it needs pods that run, and so a real node.
    pub node: bool,
    /// Whether it looks at all that the others have done, on every cluster: it waits for them.
    pub last: bool,
    /// Why it cannot be run on this machine, of one that is run by its name alone.
    pub by_name: Option<fn() -> Option<String>>,
    /// What it shows, in one sentence.
    pub about: &'static str,
    /// The suite itself.
    pub run: for<'a> fn(&'a Ctx) -> LocalBoxFuture<'a, anyhow::Result<()>>,
}

/// An entry of the table. `bare` ones do without a real node, `last` ones wait for all others.
macro_rules! suite {
    ($name:literal, $rows:expr, $about:literal, $run:path) => {
        suite!(@ $name, $rows, true, false, $about, $run)
    };
    (bare $name:literal, $rows:expr, $about:literal, $run:path) => {
        suite!(@ $name, $rows, false, false, $about, $run)
    };
    (last $name:literal, $rows:expr, $about:literal, $run:path) => {
        suite!(@ $name, $rows, true, true, $about, $run)
    };
    (by_name $name:literal, $about:literal, $run:path, $lacks:path) => {
        Suite {
            by_name: Some($lacks),
            ..suite!(bare $name, [], $about, $run)
        }
    };
    (@ $name:literal, $rows:expr, $node:literal, $last:literal, $about:literal, $run:path) => {
        Suite {
            by_name: None,
            name: $name,
            rows: &$rows,
            node: $node,
            last: $last,
            about: $about,
            run: |ctx| Box::pin($run(ctx)),
        }
    };
}

/// All suites, in the order in which they begin. The last two look at the traces of all before them.
pub const SUITES: &[Suite] = &[
    suite!(bare "by-hand",
        [25],
        "`cuda-smoke check` on a machine without a GPU says so",
        by_hand::run
    ),
    suite!(bare "krew",
        [],
        "krew installs the plugin from what a release carries",
        krew::run
    ),
    suite!(
        "images",
        [],
        "the images that are shipped hold one binary and no simulated driver; those of jobs are what their names say",
        images::run
    ),
    suite!(bare "docs",
        [],
        "every command line of the documentation is one that its program takes, every manifest one that the server takes",
        docs::run
    ),
    suite!(
        "try-the-gate",
        [25],
        "the gate in a pod by hand, by the command of the guide",
        docs::try_the_gate
    ),
    suite!(bare "refused-at-apply",
        [],
        "what can never work is refused by the API server, in words that help",
        admission::run
    ),
    suite!(
        "template",
        [],
        "a pod template takes nothing of the operator's, and is told what to write instead; a team's own user, hooks, sidecar and quota work",
        template::run
    ),
    suite!(
        "strict-namespace",
        [],
        "a namespace with a quota alone, and one with Pod Security restricted, a quota and a LimitRange: a runner comes up, and a refusal names what to change",
        strict_namespace::run
    ),
    suite!(
        "first-runner",
        [2, 11, 14, 19],
        "one manifest: proven, idle, one job, replaced",
        first_runner::run
    ),
    suite!(
        "example",
        [2],
        "the example manifest is taken as a whole; a field that is not built stalls the pool",
        first_runner::example
    ),
    suite!(
        "workflow",
        [15],
        "the workflow's four jobs are picked up in time and pass",
        workflow::run
    ),
    suite!(
        "local-cluster",
        [],
        "a pod gets a GPU and its driver as on a real node, and `down` of a cluster leaves nothing of it behind",
        local_cluster::run
    ),
    suite!(
        "verification",
        [15, 16, 23],
        "the pool runs its workflow: green with 46 tests, not with 45; a job that nobody picks up, and a run that its concurrency group holds, have their cause",
        verification::run
    ),
    suite!(
        "required-checks",
        [17, 21],
        "what was green becomes required, beside what the user had, and goes again; no branch is locked",
        required_checks::run
    ),
    suite!(
        "missing-label",
        [1],
        "a job that no pool can serve is named, with the missing label",
        missing_label::run
    ),
    suite!(
        "why",
        [],
        "`kubectl cudarunner why` names what holds a pool, at once and once: a number, GPUs, GitHub, a deletion, a missing Secret",
        why::run
    ),
    suite!(
        "gate",
        [5, 18, 20],
        "a GPU that does not compute gets no job; the pool says why and recovers",
        gate::run
    ),
    suite!(
        "preflight",
        [6, 7, 8, 9],
        "what the runner's image and network lack is said all at once, before a job finds it",
        preflight::run
    ),
    suite!(
        "proxy",
        [],
        "operator, gate and agent reach GitHub through the pool's proxy, by TLS and as its user where it asks for that, or past it",
        proxy::run
    ),
    suite!(
        "gpu-missing",
        [],
        "no GPU, too few, an unhealthy one: said on the resource, and recovered from",
        gpu_missing::run
    ),
    suite!(
        "gpu-lost",
        [],
        "a GPU that vanishes from a running container takes its runner out, and no job",
        gpu_lost::run
    ),
    suite!(
        "claims",
        [],
        "GPUs by dynamic resource allocation: one claim for each runner, allocated, for gate and runner alike",
        claims::run
    ),
    suite!(
        "claimed-devices",
        [],
        "runners and their jobs on devices that they claimed, by a real kubelet and containerd: each its own, for jobs with containers, and by number",
        claimed_devices::run
    ),
    suite!(
        "device-taints",
        [],
        "a device of two that fails is tainted and its node used on; the rule follows the device, and goes when one runner has tried it, by a claim of its own; the driver's own taints are shown",
        device_taints::run
    ),
    suite!(
        "container-jobs",
        [],
        "jobs with `container:` and `services:` run on the proven device, by workflow files as people have them; what cannot be is refused in a sentence",
        container_jobs::run
    ),
    suite!(
        "container-faults",
        [],
        "jobs with containers that meet trouble: a step that was cut off is never green, the log says why, the runner is replaced",
        container_faults::run
    ),
    suite!(
        "second-node",
        [4, 24],
        "scaled from zero for a node that comes late and cold; two pools, each on its own nodes",
        second_node::run
    ),
    suite!(
        "metrics",
        [],
        "what has happened is counted for Prometheus, as GitHub has seen it; a deleted pool leaves no series",
        metrics::run
    ),
    suite!(
        "hours",
        [],
        "each runner that has ended is one line of the log, once, and its seconds add up to its pod's life",
        hours::run
    ),
    suite!(
        "quarantine",
        [],
        "a broken GPU costs its node and no job: all pools keep off, the node says so, the healthy one takes over, an annotation ends it; stale labels are reported",
        quarantine::run
    ),
    suite!(
        "lasting-fault",
        [],
        "a device that needs a reset: the second gate in a row that says so is enough, and the job runs on another node",
        lasting_fault::run
    ),
    suite!(
        "black-hole-node",
        [],
        "one dead GPU whose device plugin refuses every pod of a Ready node: one quarantine, a few pods, no storm",
        black_hole_node::run
    ),
    suite!(
        "several-gpus",
        [],
        "the gate of a runner with two GPUs lets them talk; a pool may ask that they can",
        several_gpus::run
    ),
    suite!(
        "shared-gpus",
        [],
        "shared GPUs, by the node's labels: a busy one is nobody's fault, and the gate takes a small share",
        shared_gpus::run
    ),
    suite!(
        "from-arc",
        [],
        "Secrets and files of Actions Runner Controller: read as they are, and a pool answers to its name and to GitHub's labels",
        from_arc::run
    ),
    suite!(
        "suspect-device",
        [],
        "a device on which far more jobs fail than on the others is named, and used as before",
        suspect_device::run
    ),
    suite!(
        "credentials",
        [10],
        "credentials that do not work: what to do, no pod, no storm, recovery",
        credentials::run
    ),
    suite!(
        "faults",
        [],
        "GitHub's bad days: lost answers, errors, limits, lists that lag; no restart, no storm, nothing left",
        faults::run
    ),
    suite!(
        "scale",
        [22],
        "`kubectl scale` from 1 to 20 and back, around a running job",
        scale::run
    ),
    suite!(
        "capacity",
        [],
        "GPUs that others hold are offered to nobody, two pools share the rest by weight and in turn, and a scheduling gate is named",
        capacity::run
    ),
    suite!(
        "scale-set",
        [22],
        "runners follow the queue of a scale set: from none, as far as there are GPUs, through a killed operator and a vanished set",
        scale_set::run
    ),
    suite!(
        "poll",
        [22],
        "runners follow the queue of a repository as it is read: from none to the most, and back",
        scale_set::polled
    ),
    suite!(
        "schedule",
        [22],
        "runners wait while a window of time is open, and one is made when a window opens",
        schedule::run
    ),
    suite!(
        "webhook",
        [22],
        "webhooks wake a pool at once; repeated, reordered, forged and lost ones end in the right number of runners",
        webhook::run
    ),
    suite!(
        "charts",
        [],
        "a fleet from the chart and from Kustomize: health by kstatus, no drift, a CRD that stays",
        charts::run
    ),
    suite!(
        "registration-token",
        [11, 12],
        "a token and `config.sh` register a runner; an agent that is too old is named",
        registration_token::run
    ),
    suite!(
        "persistent",
        [3, 13],
        "a persistent runner keeps its name from job to job and through whatever ends its pod",
        persistent::run
    ),
    suite!(
        "reasons",
        [],
        "what Kubernetes will not do for a pod is reported in its own words, and blames no node",
        reasons::run
    ),
    suite!(
        "runner-ends",
        [],
        "evicted, without a job, without an image: each has its reason on the resource and in an Event",
        runner_ends::run
    ),
    suite!(
        "job-ends",
        [],
        "how each job ended is on the resource and in an Event, once; an agent's version is named with its end",
        job_ends::run
    ),
    suite!(
        "job-policy",
        [],
        "a job that may not use the GPU ends before its first step, in a plain pool and in one for containers; it is told, and nobody is blamed",
        job_policy::run
    ),
    suite!(
        "telemetry-of-jobs",
        [],
        "what a job's GPU did is on the job's page, in the status and the metrics; a driver that hangs or dies costs the job nothing",
        telemetry_of_jobs::run
    ),
    suite!(
        "hung-agents",
        [],
        "an agent that hangs is ended and told, as is a job beyond the pool's time limit; an idle runner lives on past that",
        hung_agents::run
    ),
    suite!(
        "rerun",
        [],
        "a job that a broken GPU or an evicted pod ended is run again, once, and several of a run by one request when that is over; none that is red by itself, cancelled, of an older commit, or beyond the limits",
        rerun::run
    ),
    suite!(
        "address-change",
        [],
        "a pool that moves to another address finishes its jobs at the old one, and leaves nothing there",
        address_change::run
    ),
    suite!(
        "long-job",
        [],
        "a job outlives scale-down, another template, other credentials, a restart and the deletion",
        long_job::run
    ),
    suite!(
        "teardown",
        [21],
        "after a deletion GitHub is as before, and a running job was waited for",
        teardown::run
    ),
    suite!(
        "teardown-troubles",
        [21],
        "credentials, GitHub, the repository or the namespace are gone: the pool goes in time, and says what it had to leave",
        teardown_troubles::run
    ),
    suite!(
        "budgets",
        [],
        "requests for each runner, and none in a minute of idleness",
        budgets::run
    ),
    suite!(
        "restarts",
        [],
        "the operator is killed at ten moments, and nothing is doubled, lost or left",
        restarts::run
    ),
    suite!(
        "kubelet-restart",
        [],
        "the kubelet is restarted beside an idle and a busy runner, while an image is changed, and with a late device plugin: no job is lost, no node blamed",
        kubelet_restart::run
    ),
    suite!(
        "late-registration",
        [],
        "an image that takes its time: the gate passes meanwhile, and GitHub hears nothing before the agent can start",
        late_registration::run
    ),
    suite!(
        "two-replicas",
        [],
        "two replicas share one authority, and one takes over from the other",
        two_replicas::run
    ),
    suite!(
        "side-by-side",
        [],
        "two operators, each for the pools of a selector: a pool moves while its job runs, what one finds the other heeds, and GPUs are shared",
        side_by_side::run
    ),
    suite!(
        "upgrade",
        [],
        "upgrade and downgrade of both charts around running jobs: no runner restarts, nothing is lost",
        upgrade::run
    ),
    suite!(
        "install",
        [],
        "the README's two commands install an operator from a registry; limited to one namespace it serves a pool by its Role there; when it is gone, another one takes that over",
        install::run
    ),
    suite!(
        "uninstall",
        [21],
        "the operator is uninstalled before its pools: none hangs, what stays is said, and the next operator serves the rest",
        uninstall::run
    ),
    suite!(
        "spec-changes",
        [],
        "each field of the spec goes from one value to another and back, and the pool is as a fresh one; what a field cannot be is refused",
        spec_changes::run
    ),
    suite!(
        "hostile-tenant",
        [],
        "whoever has the role `edit` in one namespace harms no other team: not its runners, nodes, required checks, nor the operator",
        hostile_tenant::run
    ),
    suite!(
        "hostile-server",
        [],
        "servers that mean ill cost their own pools alone: bounded memory and requests, plain words, no other team waits",
        hostile_server::run
    ),
    suite!(
        "hostile-job",
        [],
        "what a job writes, kills or floods stays in its own pod: nobody is blamed, no other gate waits",
        hostile_job::run
    ),
    suite!(
        "fleet-page",
        [],
        "the page of the fleet in a real browser: foreign text stays text, nothing comes from elsewhere, by keyboard, narrow, dark, without scripts; `kubectl cudarunner top` says the same",
        fleet_page::run
    ),
    suite!(
        "telemetry",
        [],
        "traces reach a collector, from a reconcile to its requests; the log's filter and form change while it runs",
        telemetry::run
    ),
    suite!(
        "private-registry",
        [],
        "the cluster's own registry: nodes pull with its password and not without; it can be held, and says who asked; a runner's image that it has for arm64 alone is named as that",
        private_registry::run
    ),
    suite!(by_name "arm64",
        "by its name alone: the gate for arm64 passes tests under emulation, where Debian's tools for that are to be had",
        arm64::run,
        arm64::lacks
    ),
    suite!(by_name "demo",
        "by its name alone: the demonstration tells its story to the end, and its figures are those of the Events",
        demo::run,
        demo::lacks
    ),
    suite!(by_name "playground",
        "by its name alone: the guide of the playground by its own commands: programs on the PATH, a job, broken GPUs, a pull request",
        playground::run,
        playground::lacks
    ),
    // Kubernetes is in no hurry to give a node up.
    Suite {
        by_name: Some(|| None),
        ..suite!(
            "node-lost",
            [],
            "by its name alone: a machine dies under three jobs: those that GitHub has named, by a scale set or in a list, run again elsewhere at once, the third when its pod names it, as the machine is back; none twice",
            node_lost::run
        )
    },
    suite!(last "secrets",
        [],
        "no credential in any log, Event, object or argument list of the whole run",
        secrets::run
    ),
    suite!(last "permissions",
        [],
        "by the audit log of the whole run, the operator has every right that it needs, and none that it does not use",
        permissions::run
    ),
];

/// The table, for people.
pub fn list() -> String {
    use std::fmt::Write as _;
    SUITES.iter().fold(String::new(), |mut text, suite| {
        let rows = suite
            .rows
            .iter()
            .map(u8::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        let rows = if rows.is_empty() {
            String::new()
        } else {
            format!(" (rows {rows})")
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:24} {}{rows}", suite.name, suite.about);
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_runbook_has_a_suite() {
        let shown: std::collections::BTreeSet<u8> = SUITES
            .iter()
            .flat_map(|suite| suite.rows)
            .copied()
            .collect();
        assert_eq!(shown, (1..=25).collect());
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = SUITES.iter().map(|suite| suite.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SUITES.len());
    }
}
