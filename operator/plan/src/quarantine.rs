//! Nodes that failed the gate and are quarantined for a while.
//!
//! A device of an extended resource cannot be excluded by itself, so its node is quarantined; the entry names
//! the device all the same. A device that a DRA driver publishes can: see [`super::device_taints`]. Entries
//! live in the status of the pool that made them, and all pools of the process keep off the nodes of all entries: a restart
//! loses nothing.

use std::collections::{BTreeMap, BTreeSet};

use cudarunner_crds::{
    FailureClass, FailureStatus, QuarantineScope, QuarantineStatus, RunnerPhase,
};
use gate_report::{Class, Finding};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::device_taints::{Place, Tainted};
use super::lasting::OF_OTHERS;
use super::{About, Case, Notice, Observed, Passed, retest};
use crate::model::claim::Retest;
use crate::model::node_marks::Quarantined;
use crate::model::pool::GpuRequest;
use crate::model::published::Published;
use crate::model::runner::Runner;
use crate::model::time::Shift as _;
use crate::reason::Reason;

/// The longest quarantine; also that of a node whose GPUs cannot do what is asked.
const LONGEST: SignedDuration = SignedDuration::from_hours(24);
/// Within this time no more than half of a pool's nodes are put into quarantine.
const BREAKER_WINDOW: SignedDuration = SignedDuration::from_mins(5);

/// What is decided about nodes.
#[derive(Clone, Debug, Default)]
pub struct Quarantine {
    /// The pool's entries, as its status will have them.
    pub entries: Vec<QuarantineStatus>,
    /// What people should hear.
    pub notices: Vec<Notice>,
    /// When an entry changes by time alone.
    pub wake: Option<Timestamp>,
    /// Why a node that failed was not put into quarantine.
    pub breaker: Option<String>,
    /// Nodes where no pod may go.
    avoided: BTreeSet<String>,
    /// Nodes whose time is over: one pod at a time may try them.
    probation: BTreeSet<String>,
    /// Devices that rules keep off.
    tainted: BTreeMap<Place, Tainted>,
    /// The device that the next new pod tries again.
    retest: Option<Retest>,
}

impl Quarantine {
    /// Reads the old entries and the new failures; the case's health has no quarantine yet.
    pub(super) fn assess(case: Case) -> Self {
        let mut quarantine = Self::default();
        quarantine.keep(case);
        for failure in case.health.new.iter().rev() {
            quarantine.add(case, failure);
        }
        quarantine.draw_conclusions(case);
        quarantine.breaker = quarantine.spared(case);
        if quarantine.breaker.is_none() {
            quarantine.retest = retest::next(case, &quarantine.entries, |node| {
                quarantine.avoided.contains(node) || quarantine.probation.contains(node)
            });
        }
        quarantine
    }

    /// Takes over the entries that are not lifted.
    fn keep(&mut self, case: Case) {
        let before = &case.pool.status.quarantine;
        let covered = case.covered(before.iter());
        for entry in before {
            let is_held = case.now < gives_up(entry) && covered.contains_key(&case.place_of(entry));
            match case.lifted(entry, is_held) {
                None => self.entries.push(entry.clone()),
                Some(why) => self.notices.push(Notice {
                    warning: false,
                    reason: Reason::QuarantineLifted.into(),
                    note: format!("{} may be used again: {why}", subject(entry)),
                    about: Some(About::Node(entry.node.clone())),
                }),
            }
        }
    }

    /// Puts the device of a failure into quarantine where that can be, and otherwise its node, unless too many would be.
    fn add(&mut self, case: Case, failure: &FailureStatus) {
        let Some(node) = failure.node.as_deref().filter(|_| blames_node(failure)) else {
            return;
        };
        let mut entry = case.entry(node, failure);
        let is_its = case.device_of(&entry).is_some();
        let before = self.entries.iter().position(|e| {
            let same =
                is_its == case.device_of(e).is_some() && (!is_its || e.device == entry.device);
            e.node == node && same
        });
        if before.is_some_and(|i| is_active(&self.entries[i], case.now)) {
            return;
        }
        let alone = is_its && self.is_covered_with(case, &entry);
        if !alone && self.too_many_with(case, node) {
            return;
        }
        if let Some(before) = before.map(|i| self.entries.remove(i)) {
            entry.failures = before.failures.saturating_add(1);
            entry.retest = before.retest;
        }
        let lasts = case.lasts(&failure.class, entry.failures);
        entry.until = Some(Time(case.now.after(lasts)));
        entry.scope = alone.then_some(QuarantineScope::Device.into());
        let (reason, verb) = if alone {
            (Reason::DeviceQuarantined, "tainted")
        } else {
            (Reason::NodeQuarantined, "quarantined")
        };
        self.notices.push(Notice {
            warning: true,
            reason: reason.into(),
            note: format!(
                "{} is {verb} for {} minutes: {}. To end it now: kubectl annotate cudarunner {} --overwrite {}=\"{node} $(date +%s)\"",
                subject(&entry),
                lasts.as_mins(),
                failure.message.trim_end_matches('.'),
                case.pool.key.name,
                cudarunner_crds::RELEASE,
            ),
            about: Some(About::Node(node.to_owned())),
        });
        self.entries.push(entry);
    }

    /// Whether a rule would keep off the device of this entry, beside those that there are.
    fn is_covered_with(&self, case: Case, entry: &QuarantineStatus) -> bool {
        let entries = self.entries.iter().chain(std::iter::once(entry));
        case.covered(entries).contains_key(&case.place_of(entry))
    }

    /// Whether more than half of the pool's nodes would be out within the breaker's time, or for as long as no gate
    /// passes: what all nodes share may take its time to go through them, too.
    fn too_many_with(&self, case: Case, node: &str) -> bool {
        let nodes = case.nodes();
        let last_passed = case.last_passed(&self.still_in(&nodes, node));
        let counts = |entry: &QuarantineStatus| {
            case.now < entry.since.0.after(BREAKER_WINDOW)
                || last_passed.is_none_or(|passed| passed <= entry.since.0)
        };
        let others = facts(case.observed).map(|held| &held.entry);
        let mut out: BTreeSet<&str> = self
            .entries
            .iter()
            .chain(others)
            .filter(|e| is_of_node(e) && is_active(e, case.now) && counts(e))
            .map(|e| e.node.as_str())
            .filter(|name| nodes.contains(name))
            .collect();
        out.insert(node);
        out.len() > nodes.len().max(1) / 2
    }

    /// The nodes that speak for the rest: a node that passed and then failed itself says nothing of what they share.
    fn still_in<'a>(&self, nodes: &BTreeSet<&'a str>, failed: &str) -> BTreeSet<&'a str> {
        let of_nodes = || self.entries.iter().filter(|e| is_of_node(e));
        let is_out = |name: &str| name == failed || of_nodes().any(|e| e.node == name);
        nodes.iter().copied().filter(|name| !is_out(name)).collect()
    }

    fn draw_conclusions(&mut self, case: Case) {
        let now = case.now;
        self.tainted = case.covered(self.entries.iter());
        for entry in &mut self.entries {
            let of_device = case.device_of(entry).is_some();
            let covered = of_device && self.tainted.contains_key(&case.place_of(entry));
            let alone = of_device && (covered || !is_active(entry, now));
            entry.scope = alone.then_some(QuarantineScope::Device.into());
            if case.published().is_some() {
                entry.retest = covered && case.can_retest(entry).unwrap_or(entry.retest);
            }
            if let Some(later) = retest::put_off(case, entry) {
                entry.until = Some(Time(later));
            }
            if alone {
                continue;
            }
            if is_active(entry, now) {
                self.avoided.insert(entry.node.clone());
            } else if !case.has_passed(entry) {
                self.probation.insert(entry.node.clone());
            }
        }
        // What another pool has found is its to try again; what both have found, either's when both times are over.
        for Quarantined { entry, .. } in facts(case.observed) {
            let avoid = if case.device_of(entry).is_some() {
                is_active(entry, now) && !self.tainted.contains_key(&case.place_of(entry))
            } else if self.probation.contains(&entry.node) {
                is_active(entry, now)
            } else {
                now < ends_by_itself(entry)
            };
            if avoid {
                self.avoided.insert(entry.node.clone());
            }
        }
        let avoided = &self.avoided;
        self.probation.retain(|node| !avoided.contains(node));
        let others = facts(case.observed).map(|held| &held.entry);
        let all = self.entries.iter().chain(others);
        let runners = case.observed.runners.iter();
        self.wake = all
            .flat_map(|e| {
                [
                    e.until.as_ref().map_or(e.since.0, |t| t.0),
                    ends_by_itself(e),
                    gives_up(e),
                ]
            })
            .chain(runners.filter_map(retest::waits_until))
            .filter(|moment| *moment > now)
            .min();
    }

    /// The breaker's sentence, while a node that just failed was spared. A pool of one node has nowhere else to go.
    fn spared(&self, case: Case) -> Option<String> {
        let mut recent = case
            .health
            .new
            .iter()
            .chain(&case.pool.status.last_failures)
            .filter(|f| blames_node(f) && self.taint(f).is_none())
            .peekable();
        recent.peek()?;
        let nodes = case.nodes();
        let last_failed = recent.peek().and_then(|f| f.node.as_deref());
        let still_in = self.still_in(&nodes, last_failed.unwrap_or_default());
        let last_passed = case.last_passed(&still_in);
        // Pauses grow longer than the breaker's time: it stays open for as long as nothing but failures is seen.
        let still_failing = case.pool.status.consecutive_failures > 0;
        let counts = |failure: &FailureStatus| {
            case.now < failure.at.0.after(BREAKER_WINDOW)
                || still_failing && last_passed.is_none_or(|passed| passed <= failure.at.0)
        };
        let spared = recent
            .filter(|f| counts(f))
            .filter_map(|f| f.node.as_deref())
            .any(|node| !self.is_avoided(node) && self.too_many_with(case, node));
        let total = nodes.len();
        if total < 2 || !spared {
            return None;
        }
        Some(format!(
            "More than half of the pool's {total} nodes failed the gate, so no further node is quarantined: what they share is more likely to blame than each of them. One runner at a time is tried"
        ))
    }

    /// Whether no pod may go to the node.
    #[must_use]
    pub fn is_avoided(&self, node: &str) -> bool {
        self.avoided.contains(node)
    }

    /// The nodes where no pod may go.
    pub(super) fn avoided(&self) -> &BTreeSet<String> {
        &self.avoided
    }

    /// Whether a rule keeps the next pod off the device that failed. One that fails there in spite of the rule tolerates it,
    /// or came before the scheduler saw it.
    #[must_use]
    pub fn is_tainted(&self, failure: &FailureStatus) -> bool {
        // A status knows seconds.
        let tainted = self.taint(failure);
        tainted.is_some_and(|tainted| failure.at.0.as_second() <= tainted.since.as_second())
    }

    fn taint(&self, failure: &FailureStatus) -> Option<&Tainted> {
        let place = failure.device.clone().zip(failure.node.clone())?;
        self.tainted.get(&place)
    }

    /// The device that the next new pod tries again.
    pub(super) fn retest(&self) -> Option<&Retest> {
        self.retest.as_ref()
    }

    /// The devices that rules keep off, one sentence each.
    pub(super) fn tainted(&self) -> impl Iterator<Item = &str> {
        self.tainted.values().map(|found| found.sentence.as_str())
    }

    /// The nodes that new pods keep off, one set for each pod in turn: a node on probation gets one pod to try it.
    pub(super) fn avoided_by_new<'a>(
        &'a self,
        runners: &[Runner],
    ) -> impl Iterator<Item = BTreeSet<String>> + 'a {
        let everything = self.avoided_by_retests();
        let untried: Vec<String> = self
            .probation
            .iter()
            .filter(|node| !runners.iter().any(|r| tries(r, node)))
            .cloned()
            .collect();
        let all_but = everything.clone();
        untried
            .into_iter()
            .map(move |node| {
                let mut avoid = all_but.clone();
                avoid.remove(&node);
                avoid
            })
            .chain(std::iter::repeat(everything))
    }

    /// The nodes that a pod keeps off which tries a device: it tries no node.
    pub(super) fn avoided_by_retests(&self) -> BTreeSet<String> {
        self.avoided.union(&self.probation).cloned().collect()
    }

    /// Whether a pod that waits for a node was told to keep off the wrong ones, or waits in vain for a device.
    pub(super) fn is_outdated(&self, runner: &Runner, runners: &[Runner], now: Timestamp) -> bool {
        if runner.phase != RunnerPhase::Unscheduled {
            return false;
        }
        if runner.retests.is_some() {
            return retest::is_overdue(runner, now);
        }
        let may_be_avoided =
            |node: &String| self.avoided.contains(node) || self.probation.contains(node);
        let untried = |node: &&String| {
            self.probation.contains(*node) && !runners.iter().any(|r| tries(r, node))
        };
        !self.avoided.is_subset(&runner.avoids)
            || !runner.avoids.iter().all(may_be_avoided)
            || runner.avoids.iter().any(|node| untried(&node))
    }

    /// The nodes of this pool that are quarantined for a fault of a device or of their own, one sentence each.
    pub(super) fn unhealthy(&self, observed: &Observed) -> Vec<String> {
        self.left_alone(observed, |entry| entry.class != Class::Unsupported)
    }

    /// The quarantined nodes, whatever for, one sentence each; of what another pool found it says which.
    pub(super) fn reasons(&self, observed: &Observed) -> Vec<String> {
        self.left_alone(observed, |_| true)
    }

    fn left_alone(
        &self,
        observed: &Observed,
        wanted: impl Fn(&QuarantineStatus) -> bool,
    ) -> Vec<String> {
        let own = self.entries.iter().map(|entry| (entry, None));
        let others = facts(observed).map(|held| (&held.entry, Some(&held.pool)));
        let mut found: BTreeMap<&str, String> = BTreeMap::new();
        for (entry, pool) in own.chain(others) {
            if !self.is_avoided(&entry.node) || !wanted(entry) {
                continue;
            }
            let by = pool.map_or_else(String::new, |pool| format!(" (found by the pool {pool})"));
            let device = entry.device.as_ref();
            let device = device.map_or_else(String::new, |device| format!(" ({device})"));
            let sentence = format!("{}{device}{by}: {}", entry.node, entry.message);
            found.entry(entry.node.as_str()).or_insert(sentence);
        }
        found.into_values().collect()
    }
}

/// What other pools found that binds this one, too.
pub(crate) fn facts(observed: &Observed) -> impl Iterator<Item = &Quarantined> {
    observed
        .quarantined
        .iter()
        .filter(|held| is_fact(&held.entry))
}

/// Whether an entry rests on a fact that no pool's author can make: a wrong result, a code of the driver's or a word of its
/// management library's that speaks against a device or its node. What a pool's own settings can cause binds that pool
/// alone: thresholds, time limits, the environment and the memory of its containers, what the kubelet says of its pods.
#[must_use]
pub(crate) fn is_fact(entry: &QuarantineStatus) -> bool {
    is_proof(&entry.class, entry.code, entry.code_name.as_deref())
}

/// The same of what a gate found.
pub(crate) fn is_proof(class: &FailureClass, code: Option<i32>, name: Option<&str>) -> bool {
    const SEEN: [Finding; 10] = [
        Finding::WrongResult,
        Finding::BrokenCanary,
        Finding::BadMemory,
        Finding::NeedsReset,
        Finding::NeedsDrain,
        Finding::NeedsRecovery,
        Finding::NeedsReboot,
        Finding::RemapFailed,
        Finding::SramThreshold,
        Finding::FabricFailed,
    ];
    let is_one_of = |findings: &[Finding]| {
        let mut findings = findings.iter();
        findings.any(|found| Some(found.name()) == name)
    };
    let blames_hardware = class.is_one_of(&[Class::Device, Class::Node]);
    // The code may be another fault's, beside which the gate found what has the name.
    let is_found = is_one_of(&Finding::ALL);
    let is_of_driver = !is_found && code.is_some_and(|code| !OF_OTHERS.contains(&code));
    blames_hardware && (is_of_driver || is_one_of(&SEEN))
}

/// What an entry sets aside, for people.
fn subject(entry: &QuarantineStatus) -> String {
    let device = entry.device.as_deref();
    match device.filter(|_| !is_of_node(entry)) {
        Some(device) => format!("{device} of {}", entry.node),
        None => entry.node.clone(),
    }
}

impl<'a> Case<'a> {
    /// What a failure is entered as: for the first time, and without an end.
    fn entry(self, node: &str, failure: &FailureStatus) -> QuarantineStatus {
        let facts = self.observed.node(node);
        QuarantineStatus {
            node: node.to_owned(),
            device: failure.device.clone(),
            scope: None,
            class: failure.class.clone(),
            code: failure.code,
            code_name: failure.code_name.clone(),
            message: failure.message.clone(),
            failures: 1,
            boot_id: facts.and_then(|n| n.boot_id.clone()),
            retest: false,
            since: failure.at.clone(),
            until: Some(Time(self.now.after(self.spec.quarantine))),
        }
    }

    /// Why an entry goes before its time, or at the end of it, unless a re-test alone ends it.
    fn lifted(self, entry: &QuarantineStatus, by_retest: bool) -> Option<&'static str> {
        if self.is_released(&entry.node) {
            return Some("an annotation on the resource says so");
        }
        if self.is_gone(entry) {
            return Some("no node has the device any more");
        }
        let boot_id = self
            .observed
            .node(&entry.node)
            .and_then(|n| n.boot_id.as_ref());
        if let (Some(then), Some(now)) = (&entry.boot_id, boot_id)
            && then != now
        {
            return Some("it was restarted");
        }
        let unsupported = entry.class == Class::Unsupported;
        if unsupported && self.pool.status.observed_generation != Some(self.pool.generation) {
            return Some("the spec has changed");
        }
        if self.is_settled(entry) {
            return Some("the gate has passed there");
        }
        let is_over = !by_retest && self.now >= ends_by_itself(entry);
        is_over.then_some("it was quarantined for long enough")
    }

    /// Whether a device that was kept off alone is no longer published, though others of its kind are on its node. A driver
    /// that is away, as while its kubelet starts anew, publishes none.
    fn is_gone(self, entry: &QuarantineStatus) -> bool {
        let uuid = entry.device.as_deref().unwrap_or_default();
        let is_gone = |published: &Published| {
            published.has_like(uuid, &entry.node) && published.find(uuid, &entry.node).is_none()
        };
        !is_of_node(entry) && self.published().is_some_and(is_gone)
    }

    fn is_released(self, node: &str) -> bool {
        let asked = self.pool.release.as_ref();
        asked
            .filter(|_| self.pool.status.released != self.pool.release)
            .and_then(|asked| asked.split_whitespace().next())
            .is_some_and(|word| word == "all" || word == node)
    }

    /// Whether a gate has passed on the node, in a pod made after the failure.
    fn has_passed(self, entry: &QuarantineStatus) -> bool {
        let mut all = self.observed.passed.iter();
        all.any(|p| p.node == entry.node && p.created > entry.since.0)
    }

    /// Whether such a gate speaks for what failed, or one on the node where the device is by now.
    fn is_settled(self, entry: &QuarantineStatus) -> bool {
        let device = self.device_of(entry);
        let moved = |p: &Passed| {
            let mut ids = p.devices.iter();
            device.is_some_and(|d| d.node == p.node && ids.any(|id| d.uuid.as_ref() == Some(id)))
        };
        let all = self.observed.passed.iter();
        let mut since = all.filter(|p| p.created > entry.since.0);
        since.any(|p| p.node == entry.node && self.settles(entry, p) || moved(p))
    }

    /// When the newest pod was made that passed the gate on one of these nodes.
    fn last_passed(self, nodes: &BTreeSet<&str>) -> Option<Timestamp> {
        let passed = self.observed.passed.iter();
        passed
            .filter(|p| nodes.contains(p.node.as_str()))
            .map(|p| p.created)
            .max()
    }

    /// Whether a pass speaks for the device that failed: it was among those that passed, or it is not in the node any more.
    fn settles(self, entry: &QuarantineStatus, passed: &Passed) -> bool {
        let Some(device) = &entry.device else {
            return true;
        };
        let offers = match &self.spec.gpu {
            GpuRequest::Resource { name, .. } => {
                let node = self.observed.node(&entry.node);
                node.and_then(|node| node.offers.get(name).copied())
            }
            // How many devices may be claimed is for the scheduler to know.
            GpuRequest::Claim(_) => None,
        };
        passed.devices.contains(device)
            || offers.is_some_and(|n| usize::try_from(n).is_ok_and(|n| passed.devices.len() >= n))
    }

    /// How long a node is quarantined that failed so often in a row.
    fn lasts(self, class: &FailureClass, failures: i32) -> SignedDuration {
        if *class == Class::Unsupported {
            return LONGEST;
        }
        let doublings = u32::try_from(failures.saturating_sub(1))
            .unwrap_or_default()
            .min(16);
        self.spec
            .quarantine
            .saturating_mul(1 << doublings)
            .min(LONGEST)
    }

    /// The nodes that the pool's pods may go to; where nodes are not watched, those that are known from its pods.
    fn nodes(self) -> BTreeSet<&'a str> {
        let Some(nodes) = &self.observed.nodes else {
            let runners = self.observed.runners.iter();
            let failures = self.pool.status.last_failures.iter();
            return runners
                .filter_map(|r| r.node.as_deref())
                .chain(failures.filter_map(|f| f.node.as_deref()))
                .collect();
        };
        let nodes = nodes.iter().filter(|node| self.spec.selects(node));
        nodes.map(|n| n.name.as_str()).collect()
    }
}

/// Whether a failure speaks against its node, or against a device in it.
#[must_use]
pub fn blames_node(failure: &FailureStatus) -> bool {
    failure
        .class
        .is_one_of(&[Class::Device, Class::Node, Class::Unsupported])
}

/// Whether the node is set aside, and not a device of it alone.
#[must_use]
pub fn is_of_node(entry: &QuarantineStatus) -> bool {
    !entry.is_of_device()
}

/// Whether its time is not over.
#[must_use]
pub fn is_active(entry: &QuarantineStatus, now: Timestamp) -> bool {
    entry.until.as_ref().is_some_and(|until| now < until.0)
}

/// When an entry goes that nobody tried: it is over, and the same time has passed again.
fn ends_by_itself(entry: &QuarantineStatus) -> Timestamp {
    let until = entry.until.as_ref().map_or(entry.since.0, |t| t.0);
    let lasted = until.duration_since(entry.since.0);
    until.after(lasted.max(SignedDuration::ZERO))
}

/// Until when an entry waits for its re-test. A pool that makes no runners for a day must not hold a device permanently.
fn gives_up(entry: &QuarantineStatus) -> Timestamp {
    let until = entry.until.as_ref().filter(|_| entry.retest);
    until.map_or(entry.since.0, |until| until.0.after(LONGEST))
}

/// Whether a pod is on its way to a verdict on the node, or may be.
fn tries(runner: &Runner, node: &str) -> bool {
    match runner.phase {
        RunnerPhase::Unscheduled => !runner.avoids.contains(node),
        RunnerPhase::Preparing | RunnerPhase::Gated | RunnerPhase::Starting => {
            runner.node.as_deref() == Some(node)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
