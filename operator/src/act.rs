//! The one writer: carries out actions. Each is safe to repeat, and every removal is tied to a uid.

pub mod device_rules;
pub mod events;
pub mod hours;
pub mod image;
pub mod job;
pub mod nodes;
pub mod owner;
mod rerun;
mod scale_set;
#[cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]
pub mod status;
pub mod uninstall;
mod unused;
mod verify;
pub mod wake;
mod webhook;

use std::sync::Arc;

use cudarunner_crds::{CudaRunner, RunnerPhase};
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::PartialObjectMeta;
use kube::{Api, ResourceExt as _};
use serde_json::json;

use crate::context::Context;
use crate::error::ActError;
use crate::github::{Client, Deletion, Workflow};
use crate::memory::{Answer, Expectation};
use crate::observe;
use crate::observe::checks::note_failure;
use crate::observe::github::let_in_at;
use crate::observe::runners::is_of;
use cuda_runner_plan::model::claim::Retest;
use cuda_runner_plan::model::pool::{FINALIZER, Pool, another_owner};
use cuda_runner_plan::model::runner::URL_ANNOTATION;
use cuda_runner_plan::{Action, Entry, NewRunner, Plan, PodSettings, Target, pod, retest};

/// Requests in flight for one pool.
const AT_ONCE: usize = 32;

/// What became of the actions.
#[derive(Debug, Default)]
pub struct Outcome {
    /// A runner that was to go has a job, and stays for now.
    pub busy: bool,
    /// The resource was to be let go.
    pub lets_go: bool,
    /// What could not be done.
    pub errors: Vec<ActError>,
}

/// What became of one action.
enum Done {
    Yes,
    Busy,
}

/// Publishes a plan's Events, carries out its actions, and then acknowledges what was acted on.
pub async fn act(
    ctx: &Context,
    pool: &Pool,
    client: Option<Arc<Client>>,
    plan: &mut Plan,
) -> Outcome {
    ctx.events.publish(pool, &plan.notices);
    if ctx.fence.check().is_ok() {
        hours::report(ctx, std::mem::take(&mut plan.ended));
    }
    unused::let_go(ctx, pool);
    let actions = std::mem::take(&mut plan.actions);
    let lets_go = actions.contains(&Action::RemoveFinalizer);
    let mut outcome = carry_out(ctx, pool, client, actions).await;
    outcome.lets_go = lets_go;
    ctx.memory.with(pool, |memory| {
        memory.refresh |= plan.refresh;
        memory.intent = plan.intent.or(memory.intent);
    });
    // What could not be done is tried again with the same numbers: they stay.
    if let Some((set, number)) = plan.acted_on {
        scale_set::acknowledge(ctx, pool, set, number);
    }
    outcome
}

async fn carry_out(
    ctx: &Context,
    pool: &Pool,
    client: Option<Arc<Client>>,
    actions: Vec<Action>,
) -> Outcome {
    let executor = Executor {
        ctx,
        pool,
        client,
        pods: Api::namespaced(ctx.client.clone(), &pool.key.namespace),
        settings: ctx.pod_settings(),
    };
    let executor = &executor;
    let mut results = futures::stream::iter(actions)
        .map(|action| async move { executor.execute(action).await })
        .buffer_unordered(AT_ONCE);
    let mut outcome = Outcome::default();
    while let Some(result) = results.next().await {
        match result {
            Ok(Done::Yes) => {}
            Ok(Done::Busy) => outcome.busy = true,
            Err(error) => outcome.errors.push(error),
        }
    }
    outcome
}

/// What the actions of one pool share.
struct Executor<'a> {
    ctx: &'a Context,
    pool: &'a Pool,
    client: Option<Arc<Client>>,
    pods: Api<Pod>,
    settings: PodSettings,
}

impl Executor<'_> {
    async fn execute(&self, action: Action) -> Result<Done, ActError> {
        // Kubernetes' client looks at it, too; GitHub's does not.
        self.ctx.fence.check()?;
        match action {
            Action::AddFinalizer => self.set_finalizer(true).await,
            Action::RemoveFinalizer => self.let_go().await,
            Action::CreatePod(new) => self.create(new).await,
            Action::DeletePod(target) => self.delete_pod(&target, None).await,
            Action::Drain(target) => self.remove(&target, false).await,
            Action::DeleteEntryOf(target) => self.unregister(target).await,
            Action::Evict(target) => self.remove(&target, true).await,
            Action::EndUnstarted(target) => self.end_unstarted(&target).await,
            Action::ReplaceUnregistered(target) => self.replace_unregistered(&target).await,
            Action::DeleteEntry(entry) => self.delete_orphan(&entry, None).await,
            Action::DeleteEntryAt(url, entry) => self.delete_orphan(&entry, Some(&url)).await,
            Action::DeleteScaleSetAt(url, id) => self.delete_scale_set_at(&url, id).await,
            Action::CreateScaleSet(new) => self.create_scale_set(&new).await,
            Action::UpdateScaleSet(id, new) => self.update_scale_set(id, &new).await,
            Action::DeleteUnusedScaleSet(id) => self.delete_unused_scale_set(id).await,
            Action::DeleteScaleSet(id) => self.delete_scale_set(id).await,
            Action::Listen {
                set,
                capacity,
                session,
            } => self.listen(set, capacity, session),
            Action::StopListening => self.stop_listening().await,
            Action::CreateWebhook(url) => self.create_webhook(&url).await,
            Action::UpdateWebhook(id, url) => self.update_webhook(id, &url).await,
            Action::RemoveWebhook(address, url) => self.remove_webhook(&address, &url).await,
            Action::DispatchWorkflow(workflow) => self.dispatch(&workflow).await,
            Action::CancelRun(repository, run) => {
                self.github()?.cancel_run(&repository, run).await?;
                Ok(Done::Yes)
            }
            Action::RunAgain(new) => self.run_again(&new).await,
            Action::TellCommit(untold) => self.tell_unless_told(&untold).await,
            Action::RequireChecks(repository, branch, contexts) => {
                let github = self.github()?;
                let done = github.require_checks(&repository, &branch, &contexts);
                Ok(self.required(done.await))
            }
            Action::UnrequireChecks(repository, branch, contexts) => {
                let github = self.github()?;
                let done = github.unrequire_checks(&repository, &branch, &contexts);
                Ok(self.required(done.await))
            }
            Action::CreateRuleset(repository, ruleset) => {
                let done = self.github()?.create_ruleset(&repository, &ruleset);
                Ok(self.required(done.await))
            }
            Action::UpdateRuleset(repository, id, ruleset) => {
                let done = self.github()?.update_ruleset(&repository, id, &ruleset);
                Ok(self.required(done.await))
            }
            Action::DeleteRuleset(repository, id) => {
                let done = self.github()?.delete_ruleset(&repository, id);
                Ok(self.required(done.await))
            }
        }
    }

    fn github(&self) -> Result<&Client, ActError> {
        self.client.as_deref().ok_or(ActError::NoClient)
    }

    /// Starts a workflow. Whatever comes of it is the plan's to judge, at the next reconcile.
    async fn dispatch(&self, workflow: &Workflow) -> Result<Done, ActError> {
        let answer = self.github()?.dispatch(workflow).await;
        self.ctx.memory.with(self.pool, |memory| {
            verify::answered(&mut memory.verification, answer, Timestamp::now());
        });
        Ok(Done::Yes)
    }

    /// Notes what came of a change of the required checks. The next look shows it; a refusal is the condition's to tell.
    fn required(&self, outcome: Result<(), crate::github::Error>) -> Done {
        self.ctx.memory.with(self.pool, |memory| {
            let facts = &mut memory.checks.facts;
            let (is_first, refusals) = (facts.read.take().is_some(), facts.refusals);
            match outcome {
                Ok(()) => (facts.next_look, facts.refusals) = (None, 0),
                Err(error) => {
                    note_failure(facts, self.pool, &error, Timestamp::now());
                    // All branches that are changed at a time are one try.
                    facts.refusals = if is_first { facts.refusals } else { refusals };
                }
            }
        });
        Done::Yes
    }

    async fn set_finalizer(&self, present: bool) -> Result<Done, ActError> {
        put_finalizers(&self.ctx.client, self.pool, present).await?;
        Ok(Done::Yes)
    }

    /// Notes it before it is asked for: an answer may be lost, and the resource gone.
    async fn let_go(&self) -> Result<Done, ActError> {
        let note = |lets_go| {
            let memory = &self.ctx.memory;
            memory.with(self.pool, |memory| memory.lets_go = lets_go);
        };
        note(true);
        let done = self.set_finalizer(false).await;
        // The API server has said no.
        if let Err(ActError::Kubernetes(kube::Error::Api(_))) = &done {
            note(false);
        }
        done
    }

    /// Expects the pod before it is created: a watch may show it before the answer comes.
    async fn create(&self, new: NewRunner) -> Result<Done, ActError> {
        let Ok(spec) = &self.pool.spec else {
            // Nothing is planned to be made of a spec that cannot be read.
            return Ok(Done::Yes);
        };
        // The semaphore is never closed.
        let _turn = self.ctx.creations.acquire().await;
        let pod = pod::build(self.pool, spec, &self.settings, &new);
        let name = new.name.clone();
        self.ctx.memory.with(self.pool, |memory| {
            let expectation = Expectation::new(Timestamp::now());
            memory.expected.insert(name.clone(), expectation);
        });
        let created = match self.pods.create(&PostParams::default(), &pod).await {
            // An earlier creation may have come through whose answer was lost.
            Err(error) if is_reason(&error, "AlreadyExists") => {
                let there = self.pods.get_metadata_opt(&name).await?;
                let is_ours = there.as_ref().is_none_or(|pod| is_of(pod, self.pool));
                let uid = there.and_then(|pod| pod.uid());
                if is_ours { Ok(uid) } else { Err(error) }
            }
            Ok(pod) => {
                let uid = pod.uid();
                if let Some(uid) = &uid {
                    self.ctx.ledger.made(uid);
                }
                Ok(uid)
            }
            Err(error) => Err(error),
        };
        self.ctx.memory.with(self.pool, |memory| match &created {
            Ok(_) => {
                memory.pod_refused = None;
                if let Some(expectation) = memory.expected.get_mut(&name) {
                    expectation.answer = Answer::Created;
                }
            }
            // The API server has said no. Any other error leaves the expectation: the pod may be there.
            Err(kube::Error::Api(status)) => {
                memory.pod_refused = Some(without_name(&status.message, &name));
                if status.code < 500 {
                    memory.expected.remove(&name);
                }
            }
            Err(_) => {}
        });
        // After the pod, which it belongs to; a pod that is left without it waits for a while, and goes.
        if let (Some(uid), Some(retest)) = (created?, &new.retest) {
            self.create_claim(&name, &uid, retest).await?;
        }
        Ok(Done::Yes)
    }

    /// Creates the claim of a pod that tries a device again.
    async fn create_claim(&self, pod: &str, uid: &str, retest: &Retest) -> Result<(), ActError> {
        let namespace = &self.pool.key.namespace;
        let claim = retest::claim(namespace, pod, uid, retest);
        let api = Api::<ResourceClaim>::namespaced(self.ctx.client.clone(), namespace);
        match api.create(&PostParams::default(), &claim).await {
            Err(error) if !is_reason(&error, "AlreadyExists") => Err(ActError::Kubernetes(error)),
            _ => Ok(()),
        }
    }

    /// Removes a pod; with a version, only if it has not changed since.
    async fn delete_pod(
        &self,
        target: &Target,
        resource_version: Option<String>,
    ) -> Result<Done, ActError> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(target.uid.clone()),
                resource_version,
            }),
            ..DeleteParams::default()
        };
        match self.pods.delete(&target.name, &params).await {
            Err(error) if is_status(&error, 404) => {}
            // A namesake has replaced it, or nothing of the kind: a conflict has other causes.
            Err(error) if is_status(&error, 409) => {
                let there = self.pods.get_metadata_opt(&target.name).await?;
                if there.is_some_and(|pod| pod.metadata.uid.as_ref() == Some(&target.uid)) {
                    return Err(ActError::Kubernetes(error));
                }
            }
            Err(error) => return Err(ActError::Kubernetes(error)),
            Ok(_) => {}
        }
        self.ctx.memory.with(self.pool, |memory| {
            memory.removed.insert(target.uid.clone());
            memory.last_change = Some(Timestamp::now());
        });
        Ok(Done::Yes)
    }

    /// Removes a runner, its entry first; a busy one only by force. One that stays may be registered again.
    async fn remove(&self, target: &Target, by_force: bool) -> Result<Done, ActError> {
        let outcome = match self.delete_entry_of(target).await {
            Ok(Deletion::Busy) if !by_force => Ok(Done::Busy),
            Ok(_) => self.delete_pod(target, None).await,
            Err(error) => Err(error),
        };
        let stays = match &outcome {
            // Where no answer came, or that of a server in trouble, the pod may still go.
            Err(ActError::Kubernetes(kube::Error::Api(said))) => said.code < 500,
            Ok(Done::Yes) | Err(ActError::Kubernetes(_)) => false,
            Ok(Done::Busy) | Err(_) => true,
        };
        if stays {
            self.stays(target);
        }
        outcome
    }

    /// Removes a runner whose agent never began its job. GitHub calls it busy, and so keeps the entry until it gives the job
    /// up. The watch may be behind: the pod is read once more, and goes only as it was read.
    async fn end_unstarted(&self, target: &Target) -> Result<Done, ActError> {
        self.delete_entry_of(target).await?;
        let Some(pod) = self.pods.get_opt(&target.name).await? else {
            return Ok(Done::Yes);
        };
        let read = observe::pod::read(&pod);
        if read.uid == target.uid && read.phase != RunnerPhase::Idle {
            self.stays(target);
            return Ok(Done::Busy);
        }
        self.delete_pod(target, pod.resource_version()).await
    }

    /// Notes that a runner goes on: it may be registered again, and is doubted anew where there is reason to.
    fn stays(&self, target: &Target) {
        self.ctx.ledger.reopen(&target.uid);
        self.ctx.memory.with(self.pool, |memory| {
            memory.doubts.remove(&target.uid);
        });
    }

    /// Removes the entry of a pod that stays.
    async fn unregister(&self, target: Target) -> Result<Done, ActError> {
        if self.delete_entry_of(&target).await? == Deletion::Busy {
            return Ok(Done::Busy);
        }
        self.ctx.memory.with(self.pool, |memory| {
            memory.unregistered.insert(target.uid);
            memory.last_change = Some(Timestamp::now());
        });
        Ok(Done::Yes)
    }

    /// Removes a pod of whose runner GitHub knows nothing.
    async fn replace_unregistered(&self, target: &Target) -> Result<Done, ActError> {
        let place = self.place_of(target.url.as_deref()).await?;
        match place.find_entry(&target.name).await? {
            Some(_) => Ok(Done::Yes),
            None => self.delete_pod(target, None).await,
        }
    }

    /// Removes the entry of a pod, found by its name: nothing of GitHub's has to be remembered. From now on none is made.
    async fn delete_entry_of(&self, target: &Target) -> Result<Deletion, ActError> {
        let books = &self.ctx.ledger;
        if books.is_under_way(&target.uid) {
            return Ok(Deletion::Busy);
        }
        let registered = books.close(&target.uid);
        if registered == Some(false) && !target.is_stranded {
            return Ok(Deletion::Gone);
        }
        let place = self.place_of(target.url.as_deref()).await?;
        let Some(entry) = place.find_entry(&target.name).await? else {
            let memory = &self.ctx.memory;
            memory.with(self.pool, |memory| memory.not_listed(Timestamp::now()));
            return Ok(Deletion::Gone);
        };
        if entry.busy {
            return Ok(Deletion::Busy);
        }
        place.delete_entry(&entry).await
    }

    /// Where a runner registers: at the pool's address, or at one that the pool has left.
    async fn place_of(&self, url: Option<&str>) -> Result<Place, ActError> {
        let spec = self.pool.spec.as_ref().ok();
        let status = &self.pool.status;
        let label = self.pool.ownership_label();
        // Of a spec that cannot be read the last address counts: its client is remembered.
        let now_at = spec.map(|spec| spec.url.to_string());
        let now_at = now_at.or_else(|| status.registered_at.clone());
        // Whoever may write pods can write another address into one: only those count at which the pool has been.
        let was_at = |url: &str| {
            let before = status.registered_at.iter();
            let mut before = before.chain(status.left_at.iter().map(|left| &left.url));
            before.any(|before| before == url)
        };
        match url.filter(|url| now_at.as_deref() != Some(*url)) {
            None => Ok(Place {
                client: self.client.clone().ok_or(ActError::NoClient)?,
                has_scale_set: status.scale_set.is_some(),
                label,
            }),
            // Elsewhere it is not found, and that would say nothing.
            Some(url) if !was_at(url) => Err(ActError::UnknownAddress(url.to_owned())),
            Some(url) => {
                let client = let_in_at(self.ctx, self.pool, url).await;
                let mut sets = status.left_at.iter().filter(|left| left.url == url);
                // At the reconcile that sees the change the status does not say it yet.
                let has_scale_set = status.registered_at.as_deref() == Some(url)
                    && status.scale_set.is_some()
                    || sets.any(|left| left.scale_set.is_some());
                Ok(Place {
                    client: client.map_err(|_| ActError::NoClient)?,
                    has_scale_set,
                    label,
                })
            }
        }
    }

    /// Has an address that the pool has left looked at again, after a change there.
    fn ask_again_at(&self, url: &str) {
        self.ctx.memory.with(self.pool, |memory| {
            if let Some(left) = memory.left.get_mut(url) {
                left.ask_again = None;
            }
        });
    }

    /// Removes an entry that has no pod. The stores may lag, so the API server is asked itself.
    async fn delete_orphan(&self, entry: &Entry, url: Option<&str>) -> Result<Done, ActError> {
        let pod = self.pods.get_metadata_opt(&entry.name).await?;
        // A persistent runner's successor has the same name, and may register at another address.
        let is_of = |pod: PartialObjectMeta<Pod>| {
            let at = pod.annotations().get(URL_ANNOTATION);
            url.is_none_or(|url| at.is_none_or(|at| at == url))
        };
        if pod.is_some_and(is_of) {
            return Ok(Done::Yes);
        }
        let place = self.place_of(url).await?;
        let deletion = place.delete_entry(entry).await?;
        if let Some(url) = url {
            self.ask_again_at(url);
        }
        self.ctx.memory.with(self.pool, |memory| {
            memory.last_change = Some(Timestamp::now());
            if let Some(listing) = &mut memory.github.listing {
                listing
                    .entries
                    .retain(|e| e.id != entry.id || deletion == Deletion::Busy);
                for left in listing.entries.iter_mut().filter(|e| e.id == entry.id) {
                    left.busy = true;
                }
            }
        });
        tracing::info!(pool = %self.pool.key, runner = %entry.name, ?deletion, "removed an entry on GitHub that has no pod");
        Ok(Done::Yes)
    }
}

/// An address at which the pool has runners.
struct Place {
    client: Arc<Client>,
    has_scale_set: bool,
    /// The pool's ownership label.
    label: String,
}

impl Place {
    /// The entry of a runner: of the pool's scale set, where it has one, or another. One of the same name that bears the label
    /// of another pool is that pool's, and is not found.
    async fn find_entry(&self, name: &str) -> Result<Option<Entry>, ActError> {
        if self.has_scale_set
            && let Some(agent) = self.client.find_agent(name).await?
        {
            return Ok(Some(Entry::of_scale_set(agent)));
        }
        let found = self.client.find_runner(name).await?;
        let own = found.filter(|runner| another_owner(&runner.labels, &self.label).is_none());
        Ok(own.map(|runner| Entry::from(&*runner)))
    }

    async fn delete_entry(&self, entry: &Entry) -> Result<Deletion, ActError> {
        Ok(if entry.of_scale_set {
            self.client.delete_agent(entry.id).await?
        } else {
            self.client.delete_runner(entry.id).await?
        })
    }
}

/// Puts our finalizer on the resource, or takes it off. A conflict says that it has changed meanwhile and is to be read
/// again: an error, because a change of the status alone wakes nobody.
async fn put_finalizers(
    client: &kube::Client,
    pool: &Pool,
    present: bool,
) -> Result<(), kube::Error> {
    let mut finalizers = pool.finalizers.clone();
    finalizers.retain(|f| f != FINALIZER);
    if present {
        finalizers.push(FINALIZER.to_owned());
    }
    // With the version, so that a finalizer that somebody else adds meanwhile is not lost.
    let patch = Patch::Merge(json!({"metadata": {
        "finalizers": finalizers,
        "resourceVersion": pool.resource_version,
    }}));
    let api = Api::<CudaRunner>::namespaced(client.clone(), &pool.key.namespace);
    let params = PatchParams::default();
    let patched = api.patch_metadata(&pool.key.name, &params, &patch);
    match patched.await {
        Err(error) if !is_status(&error, 404) => Err(error),
        _ => Ok(()),
    }
}

/// What the API server said of an object, without its name: that is another at each attempt.
fn without_name(said: &str, name: &str) -> String {
    let begin = [
        format!("pods {name:?} is forbidden: "),
        format!("Pod {name:?} is invalid: "),
    ];
    let rest = begin.iter().find_map(|begin| said.strip_prefix(begin));
    rest.unwrap_or(said).to_owned()
}

fn is_reason(error: &kube::Error, reason: &str) -> bool {
    matches!(error, kube::Error::Api(status) if status.reason == reason)
}

fn is_status(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

#[cfg(test)]
mod tests;
