//! The pool's runners: those whose pods are there, and those that have vanished untold.

use std::collections::BTreeSet;

use cudarunner_crds::{CudaRunnerStatus, RunnerPhase};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Resource, ResourceExt as _};

use super::scale_set;
use crate::context::Context;
use crate::memory::PoolMemory;
use cuda_runner_plan::model::pool::Pool;
use cuda_runner_plan::model::runner::{End, Runner, Told};
use cuda_runner_plan::{health, jobs as ended_jobs};

/// Pods that the API server is asked for at one reconcile.
const ASKED_FOR: usize = 32;

/// The runners whose pods are there, and those that have vanished untold.
pub(super) async fn look(ctx: &Context, pool: &Pool, now: Timestamp) -> (Vec<Runner>, Vec<Runner>) {
    let (removed, told) = ctx
        .memory
        .with(pool, |memory| (memory.removed.clone(), memory.told.clone()));
    let told = |runner: &Runner| {
        let told = told.as_ref()?;
        Some(told.get(&runner.uid).copied().unwrap_or_default())
    };
    let (mut runners, mut vanished) =
        ctx.pods
            .look(&pool.key, &pool.uid, |runner| match pool.spec {
                Ok(_) => is_told(&pool.status, &removed, told(runner), runner),
                // Its job is told, and run again, when the spec can be read.
                Err(_) => removed.contains(&runner.uid),
            });
    let serving = ctx.ca.serving();
    for runner in &mut runners {
        runner.is_stranded = is_stranded(runner, &ctx.registrar_url, &serving);
    }
    for runner in runners.iter_mut().chain(&mut vanished) {
        runner.told = told(runner);
    }
    let seen = runners
        .iter()
        .map(|r| (r.name.clone(), r.uid.clone()))
        .collect();
    ctx.memory.with(pool, |memory| {
        memory.settle(&seen, now);
        let all = runners.iter_mut().chain(&mut vanished);
        memory.moments.correct(all, now);
    });
    ask_for_pods(ctx, pool, now).await;
    scale_set::name_jobs(ctx, pool, runners.iter_mut().chain(&mut vanished));
    (runners, vanished)
}

/// Whether a pod knows another registrar than the one at this address, whose certificate one of these authorities has signed.
/// In a rotation none does: the bundle has the successor long before that signs. A Secret that was lost, or put back from
/// before, has another authority.
fn is_stranded(runner: &Runner, url: &str, serving: &BTreeSet<u64>) -> bool {
    runner.registrar.as_ref().is_some_and(|known| {
        let trusted = &known.authorities;
        // Of a pod that does not say it nothing is known.
        let trusts_another = !trusted.is_empty() && trusted.is_disjoint(serving);
        known.url != url || trusts_another
    })
}

/// Whether nothing is left to tell of a runner whose pod is gone. A job is reported even where we have removed the pod:
/// the watch is behind at times, and shows a runner as idle that has run its job meanwhile.
pub(super) fn is_told(
    status: &CudaRunnerStatus,
    removed: &BTreeSet<String>,
    told: Option<Told>,
    runner: &Runner,
) -> bool {
    let is_noted = |done| ended_jobs::is_noted(&status.last_jobs, told, runner, done);
    let end_is_told = || {
        matches!(runner.end, Some(End::JobDone(_)))
            || removed.contains(&runner.uid)
            || match told {
                Some(told) => told.end,
                None => health::is_listed(&status.last_failures, runner),
            }
    };
    runner.done.as_deref().is_none_or(is_noted) && end_is_told()
}

/// Adds what is remembered of the runners to what the watch shows of them.
pub(super) fn amend(memory: &mut PoolMemory, runners: &mut [Runner], now: Timestamp) {
    memory.wait(runners, now);
    memory.release(runners, now);
    for runner in runners {
        // Asked to go, though the watch does not show it yet.
        if memory.removed.contains(&runner.uid) {
            runner.phase = RunnerPhase::Terminating;
        }
        if let Some(End::Failed(failure)) = &mut runner.end {
            failure.registered &= !memory.unregistered.contains(&runner.uid);
        }
    }
}

/// Asks the API server for pods that were created a while ago and that the watch does not show: it may be behind, the
/// creation may not have come through, or somebody has removed them within a moment.
async fn ask_for_pods(ctx: &Context, pool: &Pool, now: Timestamp) {
    let overdue = ctx.memory.with(pool, |memory| memory.overdue(now));
    let api = Api::<Pod>::namespaced(ctx.client.clone(), &pool.key.namespace);
    for name in overdue.into_iter().take(ASKED_FOR) {
        let found = api.get_metadata_opt(&name).await;
        ctx.memory.with(pool, |memory| match &found {
            Ok(pod) => memory.found(&name, pod.as_ref().is_some_and(|pod| is_of(pod, pool)), now),
            Err(_) => memory.not_found_out(&name, now),
        });
        if let Err(error) = found {
            tracing::warn!(pool = %pool.key, runner = name, %error, "a pod that was created could not be looked for");
        }
    }
}

/// Whether an object is the pool's: somebody else's may have the same name.
pub fn is_of(object: &impl Resource, pool: &Pool) -> bool {
    let mut owners = object.owner_references().iter();
    owners.any(|owner| owner.uid == pool.uid)
}

#[cfg(test)]
mod tests {
    use super::super::pod::read;
    use super::*;
    use crate::registrar::ca::{Authorities, Authority, NOTICE, SUCCESSION};
    use cuda_runner_plan::fixture;
    use cuda_runner_plan::model::runner::authorities;
    use cuda_runner_plan::pod::build;
    use cuda_runner_plan::{NewRunner, PodSettings};

    const URL: &str = "https://10.96.0.7:8443";

    /// Whether a pod that was made with this bundle knows a registrar with this authority no more.
    fn strands(bundle: String, serving: &Authority) -> bool {
        let pool = fixture::pool(1);
        let settings = PodSettings {
            gate_image: "example/cuda-smoke:1".into(),
            image_pull_policy: "IfNotPresent".into(),
            registrar_url: URL.into(),
            registrar_ca: bundle,
        };
        let new = NewRunner {
            name: "pool-aaaaa".into(),
            avoids: BTreeSet::new(),
            shuns: BTreeSet::new(),
            retest: None,
        };
        let pod = build(&pool, pool.spec.as_ref().unwrap(), &settings, &new);
        is_stranded(&read(&pod), URL, &authorities(&serving.certificate))
    }

    #[test]
    fn a_pod_is_stranded_by_an_authority_that_it_does_not_know_and_by_no_rotation() {
        // Given a pod, and an authority that goes through a rotation
        let first = Authorities::first(fixture::NOW).unwrap();
        let made = first.bundle();
        let begin = first.current.until - SUCCESSION;
        let step = |of: &Authorities, now| of.rotate(now, Authority::make).unwrap().unwrap();
        let ahead = step(&first, begin);
        let after = step(&ahead, begin + NOTICE);
        assert_ne!(after.current.certificate, first.current.certificate);
        // Then neither it nor one that is made meanwhile is stranded
        assert!(!strands(made.clone(), &first.current));
        assert!(!strands(made.clone(), &ahead.current));
        assert!(!strands(ahead.bundle(), &after.current));
        assert!(!strands(after.bundle(), &first.current));
        // When the authority is lost, then the pod is, and so is one that is older than the notice
        let lost = Authorities::first(fixture::NOW).unwrap();
        assert!(strands(made.clone(), &lost.current));
        assert!(strands(made, &after.current));
        // And of one that says nothing, nothing is known
        assert!(!strands(String::new(), &lost.current));
    }
}
