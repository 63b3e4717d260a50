//! Which reasons there are: of conditions, of Events, and of runners that failed. For each, where it stands, what it
//! means, and what to do where it is trouble.
//!
//! The words are an interface: scripts compare them. `docs/guides/troubleshooting.md` is written from this table, so its
//! texts are Markdown with links from there.

use Place::{Event as EVENT, Failure as FAILURE, Node as NODE};

use crate::kind;

mod place;
mod stored;

pub use place::{Entry, Place, Section};
pub use stored::Stored;

const READY: Place = Place::Condition(kind::READY);
const STALLED: Place = Place::Condition(kind::STALLED);
const CREDENTIALS: Place = Place::Condition(kind::CREDENTIALS_VALID);
const GPU: Place = Place::Condition(kind::GPU_HEALTHY);
const ONLINE: Place = Place::Condition(kind::RUNNERS_ONLINE);
const QUEUE: Place = Place::Condition(kind::QUEUE_SERVED);
const VERIFIED: Place = Place::Condition(kind::WORKFLOW_VERIFIED);
const CHECKS: Place = Place::Condition(kind::CHECKS_REQUIRED);
const SUPPORTED: Place = Place::Condition(kind::SPEC_SUPPORTED);
const WEBHOOK: Place = Place::Condition(kind::WEBHOOK_READY);

/// Each `Word [places] "what it means" => "what to do";` is trouble, and without an arrow it is none.
macro_rules! catalogue {
    ($($section:ident {
        $($reason:ident [$($place:ident),+] $means:literal $(=> $advice:literal)?;)+
    })+) => {
        /// A reason: one word that stays the same from version to version.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum Reason {
            $($(#[doc = $means] $reason,)+)+
        }

        /// All reasons, in the order of [`Reason`].
        pub static ALL: &[Entry] = &[
            $($(Entry {
                reason: Reason::$reason,
                word: stringify!($reason),
                section: Section::$section,
                places: &[$($place),+],
                means: $means,
                advice: catalogue!(@ $($advice)?),
            },)+)+
        ];
    };
    (@) => { None };
    (@ $advice:literal) => { Some($advice) };
}

impl Reason {
    /// What the catalogue says of it.
    #[must_use]
    pub fn entry(self) -> &'static Entry {
        &ALL[self as usize]
    }

    /// The word, as in conditions, Events, failures and metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        self.entry().word
    }

    /// Whether somebody may have to act.
    #[must_use]
    pub fn is_trouble(self) -> bool {
        self.entry().advice.is_some()
    }
}

catalogue! {
    Unseen {
        NotSeen [READY]
            "The CRD is there, and no operator has read this resource."
            => "Does the operator run (`kubectl --namespace cuda-runner-system get pods`)? Does it serve this namespace (the chart's `watchNamespaces`)? With several replicas one holds the Lease. Of operators that have a selector (`poolSelector`), does one take in the pool's labels?";
        ServedByAnotherOperator [EVENT]
            "Two operators select this pool. The other one serves it, as `status.operator` says."
            => "Give them [selectors or namespaces that do not overlap](several-operators.md).";
        WaitsForOperator [EVENT]
            "The pool's label or namespace has become this operator's, and the one before has not given it back yet."
            => "Nothing: it lasts half a minute at most.";
    }
    Spec {
        StatusOfAnother [EVENT]
            "The status was that of another resource, as a backup brings it that is restored with statuses. The pool has begun with an empty one and touches nothing that the other one has."
            => "Nothing, where the other resource is there. Where it is gone, remove what the note names by hand. Restore without `status` ([why](../reference/cudarunner.md#status)).";
        CrdTooOld [EVENT]
            "The CRD lacks a field of the status that this operator writes, so no status of the pool is stored and its conditions are out of date. Pods that have ended stay, and when they are many no more are made."
            => "Upgrade the chart `cuda-runner-operator-crds` to the operator's release.";
        InvalidUrl [STALLED]
            "`github.url` cannot be understood."
            => "Correct it as the message says. Most mistakes are refused by `kubectl apply` already.";
        InvalidProxy [STALLED]
            "`github.proxy` cannot be understood."
            => "Correct it as the message says.";
        InvalidTemplate [STALLED]
            "`spec.template` has a field that a pod does not have, takes something that is the operator's, or is too large."
            => "The message names the field, the container and what to write instead; [all the rules](../reference/cudarunner.md#the-pod-template).";
        InvalidSchedule [STALLED]
            "A window of `scaling.schedule` has a time zone that there is not."
            => "Correct it as the message says.";
        NoQueue [STALLED]
            "`scaling.source: Poll` or `Webhook` for an organization or an enterprise, whose queue GitHub does not list."
            => "`scaling.source: ScaleSet`.";
        NoRunners [ONLINE]
            "No runner is made, because of one of these."
            => "See `Stalled`.";
    }
    GitHub {
        SecretNotFound [CREDENTIALS]
            "`github.credentialsRef` names a Secret that is not in the pool's namespace."
            => "[Create it](credentials.md).";
        SecretNotReadable [CREDENTIALS]
            "The operator may not read the Secret."
            => "With `watchNamespaces`, name it in the chart's `rbac.secretNames`.";
        SecretInvalid [CREDENTIALS]
            "A key of the Secret is missing, its value is no key or number, or what is read of it has more than 16 KiB."
            => "The message says which; the App's private key is the whole `.pem` file.";
        CaBundleNotFound [CREDENTIALS]
            "`github.caBundleRef` names no ConfigMap and key that are there."
            => "Create it, as PEM; with `watchNamespaces`, name it in `rbac.configMapNames`.";
        CaBundleInvalid [CREDENTIALS]
            "What `github.caBundleRef` names holds no certificates that can be read, or has more than 256 KiB."
            => "Store them as PEM, without those that every system has.";
        Unauthorized [CREDENTIALS, CHECKS, VERIFIED]
            "The key or token is wrong, revoked or expired, or the clock of the node is off."
            => "Make a new one, and write it into the same Secret.";
        Forbidden [CREDENTIALS, CHECKS]
            "The credentials are accepted and lack a permission; or something else is in the way: an IP allow list, an archived repository, self-hosted runners or Actions that are switched off, single sign-on."
            => "Do what the message says. A permission of an App has to be accepted on the installation's page too.";
        NotFound [CREDENTIALS, CHECKS]
            "The address is wrong, or the credentials do not reach it; GitHub does not say which."
            => "Compare `github.url` with the browser's; install the App there.";
        RateLimited [CREDENTIALS, CHECKS]
            "A limit of GitHub's is used up; the message says until when."
            => "Wait. Where it returns, see [which pools share a credential](monitoring.md#which-pools-share-a-credential).";
        Conflict [CREDENTIALS, CHECKS]
            "What is on GitHub contradicts what was asked."
            => "The message has GitHub's words.";
        Busy [CREDENTIALS, CHECKS]
            "GitHub keeps a runner because it has a job."
            => "Wait: it is tried again.";
        Validation [CREDENTIALS, CHECKS, VERIFIED]
            "GitHub refuses the request as it is, for example because of a runner group that does not exist."
            => "The message has GitHub's words and the field.";
        Unreachable [CREDENTIALS, CHECKS]
            "No answer came, or the address is [not asked for a pool](../security-model.md#addresses-that-pools-name)."
            => "DNS, firewall, `github.proxy`, the chart's `networkPolicy.egressPorts`; for an unknown authority, `github.caBundleRef`; for a server in the cluster's own networks, the chart's `githubAddresses.allow`.";
        Server [CREDENTIALS, CHECKS]
            "GitHub failed."
            => "Look at githubstatus.com. It is tried again. GitHub's support asks for the number of a request: it is in the operator's log at the level `debug`, as `request_id`.";
        Malformed [CREDENTIALS, CHECKS]
            "What answered is not GitHub."
            => "Look for a proxy in between. It is tried again.";
    }
    Pods {
        PodNotCreated [ONLINE]
            "Kubernetes refuses the pod: a quota, an admission policy, Pod Security, a service account that is not there."
            => "The message has its words, the name of the quota among them, and says which field answers them: [several teams and quotas](teams-and-quotas.md). What is asked of the container `gpu` is the template's `runner`, of `prepare` and `main` `spec.smoke.resources`.";
        Unschedulable [ONLINE]
            "No node takes the pod."
            => "The message says which it is: no node offers so many GPUs, all are taken or quarantined (and which pool found what), or the selector, tolerations and requests exclude them. The scheduler's own sentence follows; it stays as it was while only its counts change.";
        SchedulingGated [ONLINE]
            "A scheduling gate holds the pod: Kubernetes looks for no node for it yet. Kueue, for example, holds pods until their queue has quota. The message names the gates and Kueue's queue. No deadline runs meanwhile, and a scale set offers only what has a node."
            => "Ask who sets the gate. If it is Kueue, keep the pool out of its queues: [it would end each runner after its gate](priority-and-kueue.md#kueue).";
        WaitsForShare [ONLINE]
            "The pool has no runner: the GPUs of its nodes are taken, and the next one is for another pool that waits longer or holds less."
            => "Wait, add nodes, or see [how pools share GPUs](scaling.md#pools-that-share-gpus).";
        ImagePullBackOff [ONLINE]
            "An image cannot be pulled; the kubelet tries again."
            => "Name, tag, `imagePullSecrets` in `spec.template.spec`, the way to the registry. The message has container, image and the kubelet's own words.";
        ErrImageNeverPull [ONLINE]
            "An image is not on the node, and its `imagePullPolicy` is `Never`."
            => "Another policy, or the image on every node.";
        InvalidImageName [ONLINE]
            "The name of an image is none."
            => "Correct it in `spec.template`.";
        ImageInspectError [ONLINE]
            "The node's container runtime cannot read an image that it has."
            => "The message has its words; look at the node.";
        RegistryUnavailable [ONLINE]
            "The registry of an image does not answer."
            => "The registry, and the way to it from the node.";
        SignatureValidationFailed [ONLINE]
            "The node does not accept the signature of an image."
            => "Sign the image, or correct the node's policy.";
        ImageNotPulled [FAILURE]
            "An image could not be pulled for five minutes, from when that was first seen."
            => "The same as above. The pool tries again seldom.";
        ContainerNotStarted [FAILURE, ONLINE]
            "A container cannot be made or started: a Secret or ConfigMap that is not there, a shell that the image lacks. The message has the container and the kubelet's own words. An agent that could not be started is tried again, and the third in a row stalls the pool; its pod is kept for inspection. Five minutes after that was first seen the pod is given up."
            => "Make what is missing, or correct `spec.template`.";
        WrongArchitecture [FAILURE, ONLINE]
            "An image has nothing for the architecture of the pool's nodes: it cannot be pulled for them, or its programs do not start (`exec format error`), which stalls the pool at once. No node is blamed."
            => "Name an image for that architecture in `spec.template`, or correct [`spec.arch`](arm64.md). The message names container and image, or the runtime's own words.";
        SlowStart [ONLINE]
            "The pod has a node, and after two minutes none of its containers: a large image, or a volume that cannot be mounted. Only Events tell which, and the operator does not read them. It is not reported while another runner is online."
            => "`kubectl describe pod`.";
        InitContainerFailed [FAILURE]
            "An init container of `spec.template` failed; the message has its name, exit code and last words."
            => "`kubectl logs POD -c NAME`. `terminationMessagePolicy: FallbackToLogsOnError` brings its last words into the message.";
        PodDeleted [FAILURE]
            "Somebody else deleted the pod before its agent was online."
            => "Look for a descheduler, a preemption, a clean-up of the namespace.";
        NeverStarted [FAILURE]
            "The pod got a node and did not start there within 20 minutes."
            => "`kubectl describe pod`: volumes, the container runtime, `runtimeClassName`.";
        PodRejected [FAILURE]
            "The node's kubelet refused the pod; the message has its word and what follows. What no node of the kind can do (a sysctl, a profile, more devices than there are) stalls this pool. A node is quarantined only for what its device plugin caused: where the plugin answered with an error twice in a row, or had no device to give three times in a row with half a minute between, within an hour and without a gate that passed. A kubelet that was restarted looks like the latter for a moment. Everything else is tried again. A job that the pod had is named."
            => "Correct `spec.template`, or look at the kubelet and the device plugin on that node.";
        DeadlineExceeded [FAILURE]
            "`activeDeadlineSeconds` in `spec.template` ended the pod. It counts while a runner waits, too."
            => "Remove it; limit jobs by [`spec.jobs.maxMinutes`](hung-agents.md#a-time-limit-for-jobs), or by `timeout-minutes` in the workflow.";
    }
    Pool {
        NoneOnline [ONLINE]
            "No runner has been online for two minutes, and none has failed: the next one takes longer than usual."
            => "`status.runners` says how far it is, and what it waits for.";
        RollingOut [READY]
            "`Ready` is `Unknown`: what runners are made from has changed, and no runner of the new spec is online yet. The old ones go on."
            => "Wait; if it stays, the new runners wait for the old ones' jobs, or `RunnersOnline` says what is wrong.";
        Deleting [READY]
            "The resource is being deleted, and runners are left."
            => "Wait for their jobs, or see `spec.deletionPolicy`.";
    }
    Gate {
        GateFailed [FAILURE, GPU]
            "A device, its driver or its set-up did not pass. A fault that may pass is tried again, elsewhere while there is room; the same one twice in a row on one node is the node's, once that has been ready for ten minutes."
            => "[Each code has its sentence](gpu-faults.md); `kubectl cudarunner report POD` has the details.";
        GateOverdue [FAILURE, GPU]
            "The gate neither passed nor failed in time: the node may hang."
            => "The node's kernel log and driver.";
        NodeWarmingUp [FAILURE]
            "The gate failed on a node that came less than ten minutes ago, and its driver may still be starting."
            => "Wait.";
        NodeQuarantined [EVENT]
            "A node that failed is quarantined: no pod goes there for a while."
            => "Fix the node; `kubectl cudarunner release` ends it at once. [More](gpu-faults.md#quarantined-nodes).";
        NodesQuarantined [GPU]
            "Nodes are quarantined; the message names each with what it failed of."
            => "As for `NodeQuarantined`.";
        DeviceQuarantined [EVENT]
            "A device that failed is kept off by a `DeviceTaintRule`; its node's other devices are used on."
            => "Fix the device; `kubectl cudarunner release` with its node ends it at once. [More](device-taints.md).";
        DevicesQuarantined [GPU]
            "Devices are kept off by `DeviceTaintRules`; the message names each with what it failed of."
            => "As for `DeviceQuarantined`.";
        DeviceRetest [EVENT]
            "A tainted device is tried again, by one runner whose claim tolerates the taint."
            => "Wait for its gate. [More](device-taints.md#the-re-test).";
        DeviceFailed [NODE]
            "A pool quarantines the node because of a device, for the rest of the cluster to see."
            => "The message names fault and pool. [More](node-marks.md).";
        NodeFailed [NODE]
            "A pool quarantines the node because of its driver or itself, for the rest of the cluster to see."
            => "The message names fault and pool. [More](node-marks.md).";
        StaleLabels [EVENT]
            "Labels of a node say something else than the gate found there. The pool works."
            => "Restart feature discovery on the node. [More](gpu-faults.md#labels-that-are-out-of-date).";
        DeviceSuspect [EVENT]
            "On one device far more jobs fail than on the pool's others, and its gates pass. Nothing else follows."
            => "Look at the jobs, and at the device's error counters. [More](gpu-faults.md#a-device-whose-jobs-fail).";
        BreakerOpen [GPU]
            "So many nodes fail that what they share is more likely to blame."
            => "A new driver, a new image of the gate, a new `spec.template`?";
        PreflightFailed [FAILURE]
            "The runner's image or network lacks what [`spec.preflight`](preflight.md) asks for, or the image has no shell."
            => "The message lists all of it at once.";
        RegistrationRefused [FAILURE]
            "The gate passed, and the registrar gives no registration: the device, driver or preflight is not what the spec asks for, the gate's image is of another version, the pod is no runner of this operator, or another pool's [persistent runner](persistent-runners.md#one-name-in-one-place) has the name."
            => "The message says which.";
        RegistrarUnreachable [FAILURE]
            "The operator did not answer the gate in time."
            => "Does the operator run? Does a NetworkPolicy keep runner pods from port 8443 in its namespace?";
    }
    Agent {
        NeverOnline [FAILURE]
            "The agent was started with a registration and did not connect within five minutes."
            => "`kubectl logs POD`: the way to GitHub from this node, the proxy.";
        JobNeverStarted [FAILURE]
            "GitHub gave the runner a job, and in its pod none began for ten minutes: the agent hangs. The runner was ended, and with it the job, of which no step had run."
            => "Run the job again. Where it returns, a newer agent: [agents that hang](hung-agents.md).";
        JobOverAgentRunning [FAILURE]
            "The job was over at GitHub, and for ten minutes more the agent did not end: it hangs, or what the job left behind does. The runner was ended."
            => "Nothing for the pool. Where it returns, look at what the job leaves running: [agents that hang](hung-agents.md).";
        AgentOffline [FAILURE]
            "The agent listened for jobs, and GitHub called it offline for ten minutes: it lost its way there, as after a move to an address that cannot be reached. The runner was ended."
            => "Let runner pods reach `*.actions.githubusercontent.com`, by network policy, firewall and proxy: [agents that hang](hung-agents.md#an-agent-that-github-does-not-hear).";
        NotConfigured [FAILURE]
            "`config.sh` failed."
            => "`kubectl logs POD`.";
        SessionConflict [FAILURE]
            "Another agent held its session at GitHub until it gave up."
            => "Nothing at first: it is replaced. If it returns, look for an agent elsewhere that uses the same names.";
        VersionRefusedOnce [FAILURE]
            "GitHub refused the agent for its version, once; outages have looked the same."
            => "Wait: the next runner tells.";
        VersionRefused [FAILURE]
            "GitHub refuses agents of this age: a second refusal in a row says so, or GitHub's own date."
            => "An image with a newer one; the pool is stalled until then.";
        AgentVersionEnds [EVENT]
            "The agent works, and GitHub says from when on it will get no jobs."
            => "An image with a newer one, before that day.";
        EndedWithoutJob [FAILURE]
            "The agent ended and ran no job."
            => "Was its entry removed on GitHub? `kubectl logs POD`.";
        AgentEnded [FAILURE]
            "The agent of a persistent runner ended without a job."
            => "It is replaced under its name.";
        AgentEndedAtOnce [FAILURE]
            "The agent ended within a minute of its start and was never online. The third in a row with the same code stalls the pool, and its pod is kept for inspection."
            => "The message has code and last words: the image, its user, what `spec.template` changes.";
        OutOfMemory [FAILURE]
            "A container was killed at its memory limit; the message names both. The gate counts, too."
            => "Raise `resources.limits.memory` of that container, or the default of the namespace's LimitRange.";
        JobNotAllowed [EVENT]
            "A job was ended before its first step, because `spec.jobs.allow` does not let it use the GPUs. The message has job, event, ref and why. Its runner is replaced; nobody is blamed."
            => "Nothing, where that is what the policy is for. Else change the policy, or the workflow: [who may use the GPU](who-may-use-the-gpu.md).";
        JobTimedOut [EVENT]
            "A job was ended because it took longer than `spec.jobs.maxMinutes`. Its runner is replaced; nobody is blamed."
            => "Make the job faster, or raise the limit: [a time limit for jobs](hung-agents.md#a-time-limit-for-jobs).";
        JobCutShort [FAILURE]
            "The runner ended in the middle of a job; the message names the job, where the runner or GitHub showed one."
            => "Run the job again; `kubectl logs POD`.";
        GpuLost [FAILURE]
            "The GPU vanished from the running container."
            => "[More](gpu-faults.md#a-gpu-that-vanishes-from-a-running-container).";
        Evicted [FAILURE]
            "Kubernetes took the pod off its node: a drain, a taint, a shortage, a pod of higher priority. A job that it cost is named."
            => "Nothing for the pool: the runner is replaced.";
        NodeLost [FAILURE]
            "The node stopped answering, or is gone. A job that it cost is named."
            => "Nothing for the pool: the runner is replaced.";
        PodLost [FAILURE]
            "The pod ended before its containers did."
            => "Nothing for the pool: the runner is replaced.";
    }
    Queue {
        LabelMissing [QUEUE]
            "A queued job asks for runners like these, and for a label that no pool has. It is reported by the pool that comes nearest; labels that all runners of a kind share (`self-hosted`, `linux`, `x64`, `gpu`) do not count."
            => "Add the label to `spec.labels`, or correct `runs-on`. The message names job and label.";
        NotReadable [QUEUE]
            "The queue could not be read; the message has GitHub's answer."
            => "For repositories, grant *Actions: read*.";
        RunnerGroupShut [QUEUE]
            "The runner group of an organization's pool is not visible to the repository of `spec.verify`."
            => "Add the repository to the group in the organization's settings, or name another group in `github.runnerGroup`.";
        QueueNotReadable [ONLINE]
            "The queue could not be read, and the pool's number of runners follows it. It keeps those that it has."
            => "As for `NotReadable`, or `scaling.source: ScaleSet`.";
        SessionHeld [QUEUE, ONLINE]
            "Somebody else listens for the jobs of the pool's scale set."
            => "A second operator, in another cluster? Otherwise wait: a session runs out minutes after its process has ended. One that the pool itself has lost sight of is got rid of within seconds where the scale set has neither jobs nor registered runners: it is made anew.";
        ScaleSetRefused [QUEUE, ONLINE]
            "GitHub's scale-set service does not do what was asked; the message has its words."
            => "The permission, runner group or field that the message names.";
        ScaleSetUnavailable [QUEUE, ONLINE]
            "The scale-set service did not answer, failed, or wants us to wait; the message has its words. What was heard before is not followed any more: no runner is made or taken out because of it."
            => "A way to `*.actions.githubusercontent.com`, too; githubstatus.com. It is tried again.";
        ScaleSetMissing [QUEUE]
            "The pool's scale set is being made."
            => "Wait a moment.";
        NotListening [QUEUE]
            "Nobody listens for the jobs of the scale set yet."
            => "Wait a moment.";
        LabelsNotHonoured [QUEUE]
            "The server gave the scale set other labels than `spec.labels`."
            => "What the message says: another `runs-on`, or the pool applied anew. [More](scaling.md#scale-sets).";
        WebhooksOff [WEBHOOK]
            "The pool is to be woken by webhooks, and the operator takes none. It reads the queue twice a minute."
            => "Set `webhook.enabled` and `webhook.url` of the operator's chart: [webhooks](webhooks.md).";
        WebhookSecretInvalid [WEBHOOK]
            "The Secret of `spec.scaling.webhook.secretRef` is not there, or has no usable `secret`."
            => "Do what the message says.";
        WebhookMissing [WEBHOOK]
            "The credentials may make no webhook, and nothing comes by one that was made by hand. The pool reads the queue twice a minute."
            => "Grant *Webhooks: write*, or enter the webhook as the message says. [More](webhooks.md#when-nothing-comes).";
        WebhookSilent [WEBHOOK]
            "The webhook is there, and nothing has come by it yet; or, where it is `False`, jobs come of which it does not tell, and the pool reads the queue twice a minute."
            => "Nothing before the first job; then *Recent Deliveries* on the webhook's page: [webhooks](webhooks.md#when-nothing-comes).";
        WebhookFailing [WEBHOOK]
            "GitHub could not deliver; the message has its word for why. The pool reads the queue twice a minute."
            => "The Ingress or Gateway, its certificate, a firewall: [webhooks](webhooks.md#when-nothing-comes).";
        WebhookRefused [WEBHOOK]
            "GitHub did not let the webhook be read, made or removed; the message has its words."
            => "What the message says. It is tried again.";
    }
    Rerun {
        RerunsPaused [EVENT]
            "A job that a GPU or a node ended is not run again, because too many were within an hour, or because more than half of the pool's nodes fail the gate."
            => "Fix the GPUs or nodes that `status.reruns` names, then run the job again by hand.";
        RerunLimit [EVENT]
            "A job that a GPU or a node ended is not run again, because the attempt of its run is beyond `spec.rerun.limit`."
            => "Look at the device and the node, then run the job again by hand.";
        RerunNotAllowed [EVENT]
            "The credentials lack *Actions: write*, by which jobs are run again."
            => "[Grant it](rerun.md#what-it-needs).";
        RerunRefused [EVENT]
            "GitHub does not run the job again; the message has its words: the run is gone, too old, or was run again fifty times."
            => "Push a new commit, or start the workflow again.";
    }
    Verification {
        JobNotPickedUp [VERIFIED]
            "No runner of the pool took the job in time; the message has the likely cause."
            => "A label, a runner group, more replicas, a larger `verify.pickupSeconds`. [More](verification.md#when-it-is-not-green).";
        ForeignRunner [VERIFIED]
            "Another runner with the same labels took the job."
            => "Give the pool a label of its own.";
        JobFailed [VERIFIED]
            "A job ended otherwise than with `success`."
            => "Its log, on the page of the run.";
        TestsMissing [VERIFIED]
            "Fewer, or more, tests passed than `tests.passed`."
            => "The log of the job, or the number.";
        LogNotReadable [VERIFIED]
            "GitHub gave no log in the minute after the job, so its tests cannot be counted."
            => "The message has GitHub's words; run it again.";
        JobNotFound [VERIFIED]
            "The workflow has no job of that name."
            => "The message lists those that it has.";
        RunGone [VERIFIED]
            "Somebody deleted the run on GitHub."
            => "[Run it again](verification.md#when-it-is-not-green).";
        WorkflowNotFound [VERIFIED]
            "The default branch has no such workflow, or the credentials do not reach it."
            => "Correct `verify.workflow`, or install the App there.";
        NoDispatchTrigger [VERIFIED]
            "The workflow lacks `on: workflow_dispatch` on that ref, or the ref lacks the file."
            => "Add the trigger there.";
        RefNotFound [VERIFIED]
            "There is no such branch or tag."
            => "Correct `verify.ref`.";
        WorkflowDisabled [VERIFIED]
            "The workflow is switched off on GitHub."
            => "Switch it on, on its page.";
        MayNotStartWorkflow [VERIFIED]
            "The credentials lack *Actions: write*."
            => "[Grant it](credentials.md).";
        Failed [VERIFIED]
            "The workflow was not green, and there is no word of its own for why."
            => "The message has the run.";
        RepositoryMissing [VERIFIED]
            "The pool is of an organization or enterprise, and `verify.repository` is not set."
            => "Set it.";
        HeldByConcurrencyGroup [VERIFIED]
            "The run waits for another run of its concurrency group, and not for a runner."
            => "Let the other run end.";
        WaitsForApproval [VERIFIED]
            "The run waits for a protection rule of its environment, and not for a runner."
            => "Approve it on the page of the run.";
        CheckNotReported [CHECKS]
            "The green run lists no check under a job's name."
            => "Look at the run. [More](required-checks.md#where-they-are-written).";
        NotSeenOnPullRequest [CHECKS]
            "No recent pull request has reported the check: to require it would block every one."
            => "Open a pull request that runs the workflow, or set `allowUnseen`.";
        BranchNotFound [CHECKS]
            "There is no such branch."
            => "Correct the name; slashes are fine.";
        BranchNotProtected [CHECKS]
            "The branch has no protection."
            => "Protect it, set `ifProtected`, or use `Ruleset`.";
        StatusChecksNotEnabled [CHECKS]
            "The branch is protected, without required checks; GitHub lets nobody switch that on in passing."
            => "Tick it, or use `Ruleset`.";
        NotInPlan [CHECKS]
            "The owner's plan has no protection for private repositories."
            => "Upgrade, or make it public.";
    }
    Deletion {
        TeardownIncomplete [EVENT]
            "What the pool had on GitHub could not be removed in time. The message says what was left there, and why."
            => "Remove it there by hand: *Settings → Actions → Runners*, *Settings → Webhooks*, or the required check.";
        ChecksLeftBehind [EVENT]
            "The pool's address went to another server, or its spec to another repository or to no required checks, and those that it had added before cannot be taken away any more: the repository is archived or gone, or out of the credentials' reach."
            => "Remove them there by hand, where they are not wanted.";
        FinalizerRemoved [EVENT]
            "The resource is gone, and its operator has not let it go: somebody took its finalizer off. The message names what may stay on GitHub. Required checks among it go on blocking merges."
            => "Remove there what is named: [how it is called](backup-and-restore.md#what-is-left-on-github).";
        OperatorUninstalled [EVENT]
            "The operator was uninstalled and has let the pool go. It can be deleted, and its pods go with it; the message says what stays on GitHub."
            => "Nothing, if an operator is to run again: it takes the pool over. Otherwise remove what is named by hand.";
    }
    Well {
        Progressing [STALLED] "Nothing waits for a person.";
        AllFieldsActedOn [SUPPORTED] "Every field of the spec is acted on.";
        NotChecked [CREDENTIALS] "GitHub has not been asked yet.";
        Accepted [CREDENTIALS] "GitHub accepts the credentials.";
        Starting [ONLINE] "The first runner has not come online yet.";
        Online [ONLINE] "Runners are online.";
        ScaledToZero [ONLINE] "No runner is wanted, or no job waits.";
        NotTried [GPU] "No gate has run to its end yet.";
        GatePassed [GPU] "Every device that was tried computes correctly.";
        TakenOver [EVENT] "Another operator served this pool; from now on this one does. [More](several-operators.md).";
        QuarantineLifted [EVENT] "A node may be used again; the message says why.";
        Passed [NODE] "The gate has passed on the node since its failure.";
        Released [NODE] "No pool quarantines the node any more, and no gate has passed there yet.";
        NotRead [QUEUE] "The queue has not been read yet.";
        NotListed [QUEUE] "GitHub lists no queues for organizations and enterprises. The job's own page on GitHub names the labels that it waits for.";
        EveryJobHasAPool [QUEUE] "Every queued job that asks for runners like these can be served.";
        WebhookPending [WEBHOOK] "The webhook is being made.";
        WebhookDelivers [WEBHOOK] "GitHub's events arrive, and wake the pool.";
        Listening [QUEUE] "Jobs that ask for these labels are assigned to the pool's scale set.";
        JobRunAgain [EVENT] "A job that a GPU or a node ended is run again; the note says what was found. [More](rerun.md).";
        RerunNotNeeded [EVENT] "A job that a GPU or a node ended is not run again, because it did not fail, because somebody has cancelled it or pushed a newer commit, or because its run had another attempt meanwhile, with it or without it. The note says which.";
        JobCompleted [EVENT] "A runner has run its job, whatever became of that.";
        NotAsked [VERIFIED, CHECKS, WEBHOOK] "The spec does not ask for it.";
        NotStarted [VERIFIED, CHECKS] "The workflow has not been started, because of the spec or of what the message says.";
        WaitsForRunner [VERIFIED] "The workflow is started when a runner is online.";
        Requested [VERIFIED] "The workflow is about to be started.";
        VerificationStarted [EVENT] "The workflow runs.";
        Running [VERIFIED] "The run is watched.";
        Verified [VERIFIED] "The workflow was green on runners of this pool.";
        WaitsForVerification [CHECKS] "Checks are required when the verification was green.";
        Reading [CHECKS] "GitHub is asked what is required.";
        Adding [CHECKS] "Checks are being required.";
        Required [CHECKS] "The checks are required, or the branches are not protected and to be left so.";
        Removing [CHECKS] "What was required for this pool is being removed.";
        ChecksRemoved [EVENT] "A branch does not require checks for this pool any more.";
        TornDown [EVENT] "Nothing of the pool is left on GitHub.";
    }
}

#[cfg(test)]
pub(crate) mod tests;
