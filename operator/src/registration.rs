//! What the registrar learns from the rest of the operator, and the registration itself.

use std::sync::Arc;
use std::time::Duration;

use cudarunner_crds::Enforcement;
use gate_report::wire::JobContainer;
use gate_report::{Report, Version};
use jiff::Timestamp;
use secrecy::SecretString;

use crate::act::{image, job};
use crate::context::Context;
use crate::github::{Client, Error, JitConfig, JitRequest};
use crate::observe::github::{client_of, refused, scale_set_of};
use crate::registrar::admit::{cut, sentence};
use crate::registrar::{
    Backend, Decision, JobRunner, KnownRunner, PodIdentity, Policy, PoolKey, RegisterError,
    Registration, RunnerLookup,
};
use crate::watch::Waker;
use cuda_runner_plan::model::pool::{Pool, RegistrationKind, Spec, WORK_FOLDER};
use cuda_runner_plan::model::runner::Runner;
use cuda_runner_plan::model::scale_set::Known;
use cuda_runner_plan::pod::jobs::rights;
use cuda_runner_plan::sharing;

/// How soon a gate asks again when GitHub gave no hint.
const AGAIN: Duration = Duration::from_secs(3);
/// A limit that ends later is not for a gate to wait out, which holds its devices meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);
/// The API server's words that are more than a moment's: the pod is gone, or may not be changed so. A conflict is a moment's:
/// another write came between, or a namesake is there, and then the pod that asks is refused when it asks again.
const FINAL: [u16; 3] = [403, 404, 422];
/// So many devices of a report are named in the log.
const LONGEST_LIST: usize = 16;

/// What the registrar asks of this process.
pub struct OperatorBackend {
    ctx: Arc<Context>,
    waker: Arc<Waker>,
    client: kube::Client,
}

impl OperatorBackend {
    /// One on these stores. The client changes images, whether this replica leads or not.
    #[must_use]
    pub fn new(ctx: Arc<Context>, waker: Arc<Waker>, client: kube::Client) -> Self {
        Self { ctx, waker, client }
    }

    fn pool(&self, key: &PoolKey) -> Option<Pool> {
        let resource = self.ctx.resource(key);
        let resource = resource.filter(|pool| pool.may_be_of(self.ctx.ownership.own()))?;
        Some(self.ctx.specs.pool(&resource))
    }

    /// Whether the GPUs that a pod has on its node are shared, as far as nodes are watched.
    fn is_shared(&self, spec: &Spec, node: Option<&str>) -> bool {
        let nodes = self.ctx.nodes.as_ref();
        let node = nodes.zip(node).and_then(|(nodes, name)| nodes.named(name));
        sharing::is_shared(&spec.gpu, node.as_deref())
    }

    /// The pod as the watch shows it, and its pool, while nobody has asked it to go.
    fn find(&self, pod: &PodIdentity) -> RunnerLookup<(Pool, Runner)> {
        let found = self.ctx.pods.find(&pod.namespace, &pod.name);
        let found = found.filter(|(_, runner)| runner.uid == pod.uid);
        let Some((key, runner)) = found else {
            return RunnerLookup::NotYetKnown;
        };
        // A pod of an earlier pool of this name is none of this one's.
        let Some(pool) = self.pool(&key).filter(|pool| pool.uid == runner.owner) else {
            return RunnerLookup::NotYetKnown;
        };
        let leaves = || {
            let memory = &self.ctx.memory;
            memory.with(&pool, |memory| memory.removed.contains(&runner.uid))
        };
        if runner.gone_by.is_some() || runner.end.is_some() || leaves() {
            return RunnerLookup::Closing;
        }
        RunnerLookup::Known((pool, runner))
    }
}

impl Backend for OperatorBackend {
    async fn runner(&self, pod: &PodIdentity) -> RunnerLookup {
        self.find(pod).and_then(|(pool, runner)| {
            if pool.deleting.is_some() {
                return RunnerLookup::Closing;
            }
            // The books are empty after a restart: this is what the cluster still shows of them.
            if runner.is_online() {
                return RunnerLookup::Served;
            }
            match &pool.spec {
                // One that was made for an address which the pool has left is on its way out.
                Ok(spec) if !runner.is_elsewhere(spec) => RunnerLookup::Known(KnownRunner {
                    shared: self.is_shared(spec, runner.node.as_deref()),
                    policy: policy(spec, pod, runner.node),
                    pool: pool.key,
                    let_in: runner.gate_passed,
                    image: runner.image,
                    takes_containers: runner.job_pod.is_some(),
                }),
                _ => RunnerLookup::Closing,
            }
        })
    }

    async fn let_in(
        &self,
        pod: &PodIdentity,
        runner: &KnownRunner,
        summary: &str,
    ) -> Result<(), RegisterError> {
        if runner.let_in {
            return Ok(());
        }
        let client = self.client.clone();
        if runner.takes_containers {
            let noted = image::note_passed(client, pod, summary, Timestamp::now()).await;
            let Err(error) = noted else {
                tracing::info!(pool = %runner.pool, runner = %pod.name, "the gate passed: its container waits for a job");
                return Ok(());
            };
            return Err(not_done(
                &runner.pool,
                pod,
                "PassNotNoted",
                "that the gate has passed could not be noted on the pod",
                &error,
            ));
        }
        let Some(agents) = &runner.image else {
            return Err(refusal(
                "NoImage",
                "the pod does not name its runner's image: somebody has removed its annotation",
            ));
        };
        let Err(error) = image::change(client, pod, agents).await else {
            tracing::info!(pool = %runner.pool, runner = %pod.name, "the gate passed: the runner's image is on");
            return Ok(());
        };
        let what = "the pod's image could not be changed to the runner's";
        Err(not_done(&runner.pool, pod, "ImageNotChanged", what, &error))
    }

    async fn job_runner(&self, pod: &PodIdentity) -> RunnerLookup<JobRunner> {
        self.find(pod).and_then(|(pool, runner)| {
            let Some(job_pod) = runner.job_pod else {
                return RunnerLookup::Unknown;
            };
            // A pool that is being deleted, or whose spec has changed, lets its jobs finish.
            let spec = pool.spec.as_ref().ok();
            let containers = spec.and_then(|spec| spec.job_containers.clone());
            RunnerLookup::Known(JobRunner {
                let_in: runner.gate_passed,
                pod: *job_pod,
                containers: containers.unwrap_or_default(),
                rights: spec.and_then(|spec| rights(spec)),
                pool: pool.key,
            })
        })
    }

    async fn bring(
        &self,
        pod: &PodIdentity,
        runner: &JobRunner,
        wanted: &JobContainer,
    ) -> Result<(), RegisterError> {
        let brought = job::bring(self.client.clone(), pod, runner, wanted).await;
        let Err(failed) = brought else {
            tracing::info!(pool = %runner.pool, runner = %pod.name, services = wanted.services.len(), "a job's container is on");
            return Ok(());
        };
        Err(not_done(
            &runner.pool,
            pod,
            failed.reason,
            &failed.what(),
            &failed.error,
        ))
    }

    async fn register(
        &self,
        pod: &PodIdentity,
        runner: &KnownRunner,
    ) -> Result<Registration, RegisterError> {
        let Some(pool) = self.pool(&runner.pool) else {
            return Err(retry("PoolUnknown", "the pool is not known at the moment"));
        };
        let Ok(spec) = &pool.spec else {
            return Err(refusal(
                "SpecInvalid",
                "the pool's spec cannot be carried out",
            ));
        };
        let client = client_of(&self.ctx, &pool).await;
        // A replica that stands by acts on no pool: it does so here.
        self.ctx.release_objects(&pool);
        let Some(client) = client else {
            return Err(retry(
                "NoCredentials",
                "the pool has no usable credentials at the moment",
            ));
        };
        let begun = Timestamp::now();
        // A registration token by itself makes no entry.
        if spec.registration != RegistrationKind::Token {
            self.ctx
                .memory
                .with(&pool, |memory| memory.registers(&pod.uid, begun));
        }
        let made = self.ask(&client, &pool, spec, &pod.name).await;
        let in_doubt = match &made {
            Some(Ok((lost_one, _))) => *lost_one,
            Some(Err(error)) => error.is_unanswered(),
            None => false,
        };
        self.ctx.memory.with(&pool, |memory| {
            memory.registered(&pod.uid, begun, in_doubt, Timestamp::now());
        });
        let Some(made) = made else {
            return Err(retry(
                "NoScaleSet",
                "the pool's scale set is not there at the moment",
            ));
        };
        let result = made.as_ref().map_or_else(Error::category, |_| "ok");
        self.ctx.metrics.registered(&pool.key, result);
        match made {
            Ok((_, registration)) => {
                tracing::info!(pool = %pool.key, runner = %pod.name, "registered");
                Ok(registration)
            }
            Err(error) => Err(self.not_made(&pool, spec, &error)),
        }
    }

    async fn note_report(
        &self,
        pod: &PodIdentity,
        runner: &KnownRunner,
        report: &Report,
        decision: &Decision,
    ) {
        // A gate that has to ask again brings the same report again.
        let is_first = self.pool(&runner.pool).is_some_and(|pool| {
            let there = self.ctx.pods.uids(&runner.pool);
            let memory = &self.ctx.memory;
            memory.with(&pool, |memory| memory.is_first_report(&pod.uid, &there))
        });
        if !is_first {
            return;
        }
        self.ctx.metrics.gate(&runner.pool, report, decision);
        let devices: Vec<String> = report
            .devices
            .iter()
            .take(LONGEST_LIST)
            .map(|d| cut(&d.uuid))
            .collect();
        let class = report.failure.as_ref().map(|f| f.class.as_str());
        let code = report.failure.as_ref().and_then(|f| f.code);
        tracing::info!(
            pool = %runner.pool, runner = %pod.name, node = pod.node, ?devices, class, code,
            admitted = matches!(decision, Decision::Admit), "the gate reported"
        );
    }
}

impl OperatorBackend {
    /// Asks GitHub for a registration, and whether a request before got no answer; `None` where the pool's scale set is
    /// missing.
    async fn ask(
        &self,
        client: &Client,
        pool: &Pool,
        spec: &Spec,
        name: &str,
    ) -> Option<Result<(bool, Registration), Error>> {
        let config = match spec.registration {
            RegistrationKind::JitConfig => jit_config(client, pool, spec, name).await,
            RegistrationKind::ScaleSet => {
                let set = scale_set_of(&self.ctx, pool)?;
                client.scale_set_runner(set, name, WORK_FOLDER).await
            }
            RegistrationKind::Token => {
                let token = registration_token(client, pool, spec, name).await;
                return Some(token.map(|token| (false, Registration::RegistrationToken(token))));
            }
        };
        Some(config.map(|config| (config.lost_one, Registration::JitConfig(config.encoded))))
    }

    /// What a gate hears that gets no registration.
    fn not_made(&self, pool: &Pool, spec: &Spec, error: &Error) -> RegisterError {
        match error {
            Error::NotFound { message, .. } if spec.registration == RegistrationKind::ScaleSet => {
                self.lost_scale_set(pool, message)
            }
            // Another pool has the name: asking again would only hold the devices.
            Error::Conflict { message } if spec.persistent => {
                tracing::warn!(pool = %pool.key, message, "a runner could not be registered");
                refusal(error.category(), message)
            }
            _ => self.failed(pool, error),
        }
    }

    /// Somebody has removed the scale set: the pool looks for it, and makes another.
    fn lost_scale_set(&self, pool: &Pool, message: &str) -> RegisterError {
        self.ctx.memory.with(pool, |memory| {
            memory.github.scale_set.known = Known::Unknown;
        });
        self.waker.wake(&pool.key);
        retry("NoScaleSet", message)
    }

    /// What time alone will not fix, or not soon, concerns the whole pool: it hears of it now, not with its next look
    /// at GitHub.
    fn failed(&self, pool: &Pool, error: &Error) -> RegisterError {
        let now = Timestamp::now();
        tracing::warn!(pool = %pool.key, category = error.category(), %error, "a runner could not be registered");
        let after = error.retry_after(now).unwrap_or(AGAIN);
        if !error.is_transient() || after > PATIENCE {
            self.ctx.memory.with(pool, |memory| {
                refused(&mut memory.github, error, &pool.uid, now);
            });
            self.waker.wake(&pool.key);
        }
        if error.is_transient() {
            RegisterError::Retry {
                after,
                reason: error.category().to_owned(),
                message: error.to_string(),
            }
        } else {
            refusal(error.category(), &error.to_string())
        }
    }
}

/// A token for a runner. The name of a persistent one is not random: a pool of the same name elsewhere has it, too.
async fn registration_token(
    client: &Client,
    pool: &Pool,
    spec: &Spec,
    name: &str,
) -> Result<SecretString, Error> {
    if spec.persistent {
        let label = pool.ownership_label();
        client.may_replace(name, &label).await?;
    }
    client.registration_token().await
}

async fn jit_config(
    client: &Client,
    pool: &Pool,
    spec: &Spec,
    name: &str,
) -> Result<JitConfig, Error> {
    let group_id = client.runner_group_id(spec.runner_group.as_deref()).await?;
    let request = JitRequest {
        name: name.to_owned(),
        labels: pool.registered_labels(spec),
        ownership_label: pool.ownership_label(),
        group_id,
        work_folder: WORK_FOLDER.to_owned(),
    };
    client.generate_jit_config(&request).await
}

fn policy(spec: &Spec, pod: &PodIdentity, node: Option<String>) -> Policy {
    // The schema admits versions only; a stored object from before it is held to the least.
    let version = |text: &str| text.parse().unwrap_or(Version::new(0, 0));
    Policy {
        devices: spec.gpu.count(),
        min_compute_capability: version(&spec.gate.min_compute_capability),
        min_cuda_version: version(&spec.gate.min_cuda_version),
        require_managed_memory: spec.gate.managed_memory == Enforcement::Require,
        require_peer_access: spec.gate.peer_access == Enforcement::Require,
        require_preflight: spec.preflight.is_some(),
        pod: pod.name.clone(),
        node: node.or_else(|| pod.node.clone()),
    }
}

/// A write to a pod that the API server has not carried out, in its own words.
fn not_done(
    pool: &PoolKey,
    pod: &PodIdentity,
    reason: &str,
    what: &str,
    error: &kube::Error,
) -> RegisterError {
    tracing::warn!(%pool, runner = %pod.name, reason, %error, "{what}");
    let message = sentence(&format!("{what}: {error}"));
    match error {
        kube::Error::Api(said) if FINAL.contains(&said.code) => refusal(reason, &message),
        _ => retry(reason, &message),
    }
}

fn retry(reason: &str, message: &str) -> RegisterError {
    RegisterError::Retry {
        after: AGAIN,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

fn refusal(reason: &str, message: &str) -> RegisterError {
    RegisterError::Refused {
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests;
