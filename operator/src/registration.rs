//! What the registrar learns from the rest of the operator, and the registration itself.

use std::sync::Arc;
use std::time::Duration;

use cudarunner_crds::ManagedMemory;
use gate_report::{Report, Version};
use jiff::Timestamp;

use crate::act::image;
use crate::context::Context;
use crate::github::{Client, Error, JitConfig, JitRequest};
use crate::observe::github::{client_of, refused, scale_set_of};
use crate::registrar::admit::{cut, sentence};
use crate::registrar::{
    Backend, Decision, KnownRunner, PodIdentity, Policy, PoolKey, RegisterError, Registration,
    RunnerLookup,
};
use crate::watch::Waker;
use cuda_runner_plan::model::pool::{Pool, RegistrationKind, Spec, WORK_FOLDER};
use cuda_runner_plan::model::scale_set::Known;

/// How soon a gate asks again when GitHub gave no hint.
const AGAIN: Duration = Duration::from_secs(3);
/// A limit that ends later is not for a gate to wait out, which holds its devices meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);
/// The API server's words that are more than a moment's: the pod is gone, or may not be changed so.
const FINAL: [u16; 4] = [403, 404, 409, 422];
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
        let resource = self.ctx.resource(key)?;
        Some(self.ctx.specs.pool(&resource))
    }
}

impl Backend for OperatorBackend {
    async fn runner(&self, pod: &PodIdentity) -> RunnerLookup {
        let Some((key, runner)) = self.ctx.pods.find(&pod.namespace, &pod.name) else {
            return RunnerLookup::NotYetKnown;
        };
        if runner.uid != pod.uid {
            return RunnerLookup::NotYetKnown;
        }
        let Some(pool) = self.pool(&key) else {
            return RunnerLookup::NotYetKnown;
        };
        if runner.gone_by.is_some() || runner.end.is_some() || pool.deleting.is_some() {
            return RunnerLookup::Closing;
        }
        // The books are empty after a restart: this is what the cluster still shows of them.
        if runner.is_online() {
            return RunnerLookup::Served;
        }
        let leaving = self
            .ctx
            .memory
            .with(&pool, |memory| memory.removed.contains(&runner.uid));
        match &pool.spec {
            // One that was made for an address which the pool has left is on its way out.
            Ok(spec) if !leaving && !runner.is_elsewhere(spec) => {
                RunnerLookup::Known(KnownRunner {
                    pool: key,
                    policy: policy(spec, pod, runner.node),
                    let_in: runner.gate_passed,
                    image: runner.image,
                })
            }
            _ => RunnerLookup::Closing,
        }
    }

    async fn let_in(&self, pod: &PodIdentity, runner: &KnownRunner) -> Result<(), RegisterError> {
        if runner.let_in {
            return Ok(());
        }
        let Some(agents) = &runner.image else {
            return Err(refusal(
                "NoImage",
                "the pod does not name its runner's image: somebody has removed its annotation",
            ));
        };
        let changed = image::change(self.client.clone(), pod, agents).await;
        let Err(error) = changed else {
            tracing::info!(pool = %runner.pool, runner = %pod.name, "the gate passed: the runner's image is on");
            return Ok(());
        };
        tracing::warn!(pool = %runner.pool, runner = %pod.name, %error, "the runner's image could not be put on");
        let message = sentence(&format!(
            "the pod's image could not be changed to the runner's: {error}"
        ));
        Err(match &error {
            kube::Error::Api(said) if FINAL.contains(&said.code) => {
                refusal("ImageNotChanged", &message)
            }
            _ => retry("ImageNotChanged", &message),
        })
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
            Err(Error::NotFound { message, .. })
                if spec.registration == RegistrationKind::ScaleSet =>
            {
                Err(self.lost_scale_set(&pool, &message))
            }
            Err(error) => Err(self.failed(&pool, &error)),
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
                let token = client.registration_token().await;
                return Some(token.map(|token| (false, Registration::RegistrationToken(token))));
            }
        };
        Some(config.map(|config| (config.lost_one, Registration::JitConfig(config.encoded))))
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
        require_managed_memory: spec.gate.managed_memory == ManagedMemory::Require,
        require_preflight: spec.preflight.is_some(),
        pod: pod.name.clone(),
        node: node.or_else(|| pod.node.clone()),
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
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use jiff::SignedDuration;
    use serde_json::json;

    use super::*;
    use crate::reconcile::tests::{Cluster, context};
    use cuda_runner_plan::{Access, fixture};

    fn pod() -> PodIdentity {
        PodIdentity {
            namespace: "ci".to_owned(),
            name: "pool-aaaaa".to_owned(),
            uid: "u".to_owned(),
            node: None,
        }
    }

    fn backend(ctx: &Arc<Context>) -> OperatorBackend {
        let client = ctx.client.clone();
        OperatorBackend::new(Arc::clone(ctx), Arc::new(Waker::new().0), client)
    }

    #[tokio::test]
    async fn a_restart_gives_no_pod_a_second_registration() {
        // Given an operator that has just started: its books are empty, and its stores show the cluster
        let ctx = context(&Cluster::default()).await;
        let backend = backend(&ctx);
        let pod = pod();
        let running = json!({"running": {"startedAt": "2026-01-01T00:00:06Z"}});
        for (gpu, image, ready, wanted) in [
            (
                json!({"state": running, "restartCount": 0}),
                "gate:1",
                false,
                "Known(false)",
            ),
            // The image is being changed, is pulled, and then the agent comes up: it may ask again for a lost answer
            (
                json!({"state": running, "restartCount": 0}),
                "runner:1",
                false,
                "Known(true)",
            ),
            (
                json!({"state": {"waiting": {"reason": "ErrImagePull"}}, "restartCount": 0}),
                "runner:1",
                false,
                "Known(true)",
            ),
            (
                json!({"state": running, "restartCount": 1}),
                "runner:1",
                false,
                "Known(true)",
            ),
            // It has come up: nobody who asks now means well
            (
                json!({"state": running, "restartCount": 1}),
                "runner:1",
                true,
                "Served",
            ),
            (
                json!({"state": {"terminated": {"exitCode": 0}}, "restartCount": 1}),
                "runner:1",
                false,
                "Closing",
            ),
            (
                json!({"state": {"terminated": {"exitCode": 12}}, "restartCount": 0}),
                "gate:1",
                false,
                "Closing",
            ),
        ] {
            // When the pod shows how far it has come
            let mut status = gpu.clone();
            status["name"] = json!("gpu");
            status["image"] = json!("");
            status["imageID"] = json!("");
            status["ready"] = json!(ready);
            let shown = json!({
                "metadata": {
                    "name": pod.name, "namespace": pod.namespace, "uid": pod.uid,
                    "labels": {"cudarunner.dev/pool": "pool"},
                    "ownerReferences": [{"apiVersion": "cudarunner.dev/v1alpha1", "kind": "CudaRunner", "name": "pool", "uid": "p"}],
                },
                "spec": {
                    "initContainers": [{"name": "gpu", "image": image}],
                    "containers": [{"name": "main", "image": "gate:1"}],
                },
                "status": {
                    "phase": "Pending", "initContainerStatuses": [status],
                    "conditions": [{"type": "PodScheduled", "status": "True"}],
                },
            });
            ctx.pods.apply(&serde_json::from_value(shown).unwrap());
            // Then it is served until it has been online
            let found = match backend.runner(&pod).await {
                RunnerLookup::Known(runner) => format!("Known({})", runner.let_in),
                other => format!("{other:?}"),
            };
            assert_eq!(found, wanted, "{gpu} {image}");
        }
    }

    #[tokio::test]
    async fn an_image_is_put_on_once_and_a_refusal_is_told_in_the_api_servers_words() {
        let ctx = context(&Cluster::default()).await;
        let any = Version::new(0, 0);
        let runner = |image: Option<&str>, let_in| KnownRunner {
            pool: PoolKey {
                namespace: "ci".to_owned(),
                name: "pool".to_owned(),
            },
            policy: Policy {
                devices: Some(1),
                min_compute_capability: any,
                min_cuda_version: any,
                require_managed_memory: false,
                require_preflight: false,
                pod: "pool-aaaaa".to_owned(),
                node: None,
            },
            image: image.map(str::to_owned),
            let_in,
        };
        for (code, runner, requests, expected) in [
            (200, runner(Some("runner:1"), false), 1, "Ok"),
            // The watch shows it already
            (200, runner(Some("runner:1"), true), 0, "Ok"),
            (200, runner(None, false), 0, "Refused NoImage"),
            (
                404,
                runner(Some("runner:1"), false),
                1,
                "Refused ImageNotChanged",
            ),
            (
                403,
                runner(Some("runner:1"), false),
                1,
                "Refused ImageNotChanged",
            ),
            (422, runner(Some(" "), false), 1, "Refused ImageNotChanged"),
            (
                500,
                runner(Some("runner:1"), false),
                1,
                "Retry ImageNotChanged",
            ),
            (
                429,
                runner(Some("runner:1"), false),
                1,
                "Retry ImageNotChanged",
            ),
        ] {
            // Given an API server that answers so
            let asked = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&asked);
            let service = tower::service_fn(move |_: http::Request<kube::client::Body>| {
                count.fetch_add(1, Ordering::SeqCst);
                let body = if code == 200 {
                    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {}})
                } else {
                    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "its own words", "reason": "x", "code": code})
                };
                let answer = http::Response::builder().status(code);
                let answer = answer.body(kube::client::Body::from(body.to_string().into_bytes()));
                async { Ok::<_, std::convert::Infallible>(answer.unwrap()) }
            });
            let client = kube::Client::new(service, "default");
            let backend = OperatorBackend::new(Arc::clone(&ctx), Arc::new(Waker::new().0), client);
            // When a runner is let in
            let outcome = match backend.let_in(&pod(), &runner).await {
                Ok(()) => "Ok".to_owned(),
                Err(RegisterError::Refused { reason, message }) => {
                    assert!(
                        requests == 0 || message.contains("its own words"),
                        "{message}"
                    );
                    format!("Refused {reason}")
                }
                Err(RegisterError::Retry { reason, .. }) => format!("Retry {reason}"),
            };
            // Then that is what its gate hears, and no more was asked
            assert_eq!(outcome, expected, "{code}");
            assert_eq!(asked.load(Ordering::SeqCst), requests, "{code}");
        }
    }

    #[tokio::test]
    async fn a_limit_that_outlasts_a_gate_is_told_by_the_pool() {
        let ctx = context(&Cluster::default()).await;
        let backend = backend(&ctx);
        let pool = Pool::read(&fixture::resource(), false);
        let access = || {
            ctx.memory
                .with(&pool, |memory| memory.github.access.clone())
        };
        let limit = |seconds| Error::RateLimited {
            until: Timestamp::now() + SignedDuration::from_secs(seconds),
            reason: "the credentials' 5000 requests an hour are used up".to_owned(),
        };

        // Given a limit that a gate waits out, then the pool goes on as it was
        let reported = backend.failed(&pool, &limit(20));
        assert!(
            matches!(reported, RegisterError::Retry { .. }),
            "{reported:?}"
        );
        assert_eq!(access(), Access::Unchecked);

        // Given one that lasts, then no further pod is made for it
        let reported = backend.failed(&pool, &limit(1800));
        assert!(
            matches!(reported, RegisterError::Retry { .. }),
            "{reported:?}"
        );
        let Access::Refused {
            reason,
            message,
            transient: true,
        } = access()
        else {
            panic!("{:?}", access())
        };
        assert_eq!(reason, "RateLimited");
        assert!(
            message.contains("requests an hour are used up"),
            "{message}"
        );
    }
}
