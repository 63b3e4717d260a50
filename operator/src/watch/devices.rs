//! The devices that DRA drivers publish, and our rules on them. Only followed where devices are tainted: both need rights
//! that are not given otherwise.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use cudarunner_crds::CudaRunner;
use futures::StreamExt as _;
use k8s_openapi::api::resource::v1::{Device, DeviceTaint, DeviceTaintRule, ResourceSlice};
use kube::runtime::reflector::Store;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch as flag;

use super::{Events, PAGE, Pauses, Waker, log_error, refused};
use crate::context::CONTROLLER;
use cuda_runner_plan::device_taints::{MANAGED_BY, Owner, Present, Rule, UUID_ANNOTATION};
use cuda_runner_plan::model::published::{Published, PublishedDevice};

/// How long until an API is asked for again that is not served.
const UNSERVED: Duration = Duration::from_mins(10);
/// The attribute by which drivers publish a device's UUID, without their domain.
const UUID: &str = "uuid";

/// What is read of a slice.
#[derive(Clone, Debug, PartialEq)]
struct Slice {
    driver: String,
    pool: String,
    generation: i64,
    /// How many slices of this generation the pool has.
    of: i64,
    devices: Vec<PublishedDevice>,
}

/// The devices and the rules.
#[derive(Debug, Default)]
pub struct Devices {
    slices: RwLock<HashMap<String, Slice>>,
    published: RwLock<Arc<Published>>,
    rules: RwLock<BTreeMap<String, (Present, Vec<String>)>>,
    /// Whether slices and rules could be read.
    slices_served: AtomicBool,
    rules_served: AtomicBool,
    /// Whether a rule could not be written.
    refused: AtomicBool,
}

impl Devices {
    /// What drivers publish; `None` where that cannot be read.
    #[must_use]
    pub fn published(&self) -> Option<Arc<Published>> {
        let published = self
            .published
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        self.slices_served
            .load(Ordering::Acquire)
            .then(|| Arc::clone(&published))
    }

    /// Whether rules can be made: nodes are quarantined otherwise.
    #[must_use]
    pub fn may_taint(&self) -> bool {
        self.is_served() && !self.refused.load(Ordering::Acquire)
    }

    /// Whether the API has rules.
    #[must_use]
    pub(crate) fn is_served(&self) -> bool {
        self.rules_served.load(Ordering::Acquire)
    }

    /// Whether any rule is there.
    #[must_use]
    pub(crate) fn has_rules(&self) -> bool {
        let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner);
        !rules.is_empty()
    }

    /// Notes whether rules could be written; whether that is news.
    pub(crate) fn note_written(&self, all: bool) -> bool {
        self.refused.swap(!all, Ordering::AcqRel) == all
    }

    /// The rules that belong to this owner.
    #[must_use]
    pub fn rules(&self, owner: &Owner) -> Vec<Present> {
        let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner);
        let ours = rules
            .values()
            .filter(|(_, owners)| owners.contains(&owner.uid));
        ours.map(|(present, _)| present.clone()).collect()
    }

    /// Takes in a rule as it is after a write.
    pub(crate) fn apply(&self, rule: &DeviceTaintRule) {
        let mut rules = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        rules.insert(rule.name_any(), present(rule));
    }

    /// A rule has gone.
    pub(crate) fn remove(&self, name: &str) {
        let mut rules = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        rules.remove(name);
    }

    /// Changes the slices; whether that changes what is published.
    fn change(&self, change: impl FnOnce(&mut HashMap<String, Slice>)) -> bool {
        let mut slices = self.slices.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut slices);
        let now = whole(&slices);
        let mut published = self
            .published
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let changed = **published != now;
        *published = Arc::new(now);
        changed
    }
}

/// The devices of the pools of which every slice of the newest generation is there.
fn whole(slices: &HashMap<String, Slice>) -> Published {
    let mut newest: HashMap<(&str, &str), i64> = HashMap::new();
    for slice in slices.values() {
        let generation = newest
            .entry((&slice.driver, &slice.pool))
            .or_insert(slice.generation);
        *generation = slice.generation.max(*generation);
    }
    let current = |slice: &&Slice| {
        newest.get(&(slice.driver.as_str(), slice.pool.as_str())) == Some(&slice.generation)
    };
    let mut counts: HashMap<(&str, &str), i64> = HashMap::new();
    for slice in slices.values().filter(current) {
        let count = counts.entry((&slice.driver, &slice.pool)).or_default();
        *count = count.saturating_add(1);
    }
    let all_there = |slice: &&Slice| {
        let count = counts.get(&(slice.driver.as_str(), slice.pool.as_str()));
        count.is_some_and(|count| *count >= slice.of)
    };
    let whole = slices.values().filter(current).filter(all_there);
    Published::new(whole.flat_map(|slice| slice.devices.iter().cloned()))
}

/// What is kept of a slice; `None` where its devices are of no single node.
fn slice_of(slice: &ResourceSlice) -> Option<Slice> {
    let spec = &slice.spec;
    let node = spec.node_name.as_ref()?;
    let device = |device: &Device| {
        let (domain, uuid) = uuid(device).unzip();
        PublishedDevice {
            node: node.clone(),
            driver: spec.driver.clone(),
            pool: spec.pool.name.clone(),
            name: device.name.clone(),
            uuid,
            domain: domain.flatten().unwrap_or_else(|| spec.driver.clone()),
            taints: device.taints.iter().flatten().map(shown).collect(),
        }
    };
    Some(Slice {
        driver: spec.driver.clone(),
        pool: spec.pool.name.clone(),
        generation: spec.pool.generation,
        of: spec.pool.resource_slice_count,
        devices: spec.devices.iter().flatten().map(device).collect(),
    })
}

/// A taint as kubectl writes it.
fn shown(taint: &DeviceTaint) -> String {
    let DeviceTaint { key, effect, .. } = taint;
    match taint.value.as_deref() {
        None | Some("") => format!("{key}:{effect}"),
        Some(value) => format!("{key}={value}:{effect}"),
    }
}

/// The domain of the attribute with the UUID, and that. An attribute without a domain is of the driver's.
fn uuid(device: &Device) -> Option<(Option<String>, String)> {
    let mut attributes = device.attributes.iter().flatten();
    let named = |name: &str| match name.split_once('/') {
        Some((domain, UUID)) => Some(Some(domain.to_owned())),
        None if name == UUID => Some(None),
        _ => None,
    };
    let (domain, value) = attributes.find_map(|(name, value)| Some((named(name)?, value)))?;
    Some((domain, value.string.clone()?))
}

/// What is kept of a rule, and the uids of its owners.
fn present(rule: &DeviceTaintRule) -> (Present, Vec<String>) {
    let selector = rule.spec.device_selector.clone().unwrap_or_default();
    let taint = &rule.spec.taint;
    let said = Rule {
        name: rule.name_any(),
        driver: selector.driver.unwrap_or_default(),
        pool: selector.pool.unwrap_or_default(),
        device: selector.device.unwrap_or_default(),
        uuid: rule
            .annotations()
            .get(UUID_ANNOTATION)
            .cloned()
            .unwrap_or_default(),
        value: taint.value.clone().unwrap_or_default(),
        effect: taint.effect.clone(),
    };
    let present = Present {
        rule: said,
        uid: rule.uid().unwrap_or_default(),
    };
    let owners = rule.owner_references().iter();
    (present, owners.map(|owner| owner.uid.clone()).collect())
}

/// Follows the slices permanently. A change wakes whoever quarantines, and all where a driver's own taints have changed.
pub async fn follow_slices(
    client: Client,
    devices: Arc<Devices>,
    pools: Vec<Store<CudaRunner>>,
    waker: Arc<Waker>,
    filled: flag::Sender<bool>,
) {
    let api = Api::<ResourceSlice>::all(client);
    let mut events: Events<ResourceSlice> = watch(api, watcher::Config::default().page_size(PAGE))
        .backoff(Pauses::default())
        .boxed();
    let mut list = HashMap::new();
    while let Some(event) = events.next().await {
        let changed = match event {
            Ok(Event::Init) => {
                list.clear();
                false
            }
            Ok(Event::InitApply(slice)) => {
                list.extend(Some(slice.name_any()).zip(slice_of(&slice)));
                false
            }
            Ok(Event::InitDone) => {
                let list = std::mem::take(&mut list);
                let changed = devices.change(|slices| *slices = list);
                devices.slices_served.store(true, Ordering::Release);
                filled.send_replace(true);
                changed
            }
            Ok(Event::Apply(slice)) => devices.change(|slices| {
                match slice_of(&slice) {
                    Some(kept) => slices.insert(slice.name_any(), kept),
                    None => slices.remove(&slice.name_any()),
                };
            }),
            Ok(Event::Delete(slice)) => devices.change(|slices| {
                slices.remove(&slice.name_any());
            }),
            Err(error) => {
                unserved(&error, &devices.slices_served, &filled, "resourceslices").await;
                false
            }
        };
        if changed {
            waker.wake_all(&pools);
            waker.rules.notify_one();
        }
    }
}

/// Follows our rules permanently: one that somebody changes or removes is made again.
pub async fn follow_rules(
    client: Client,
    devices: Arc<Devices>,
    waker: Arc<Waker>,
    filled: flag::Sender<bool>,
) {
    let api = Api::<DeviceTaintRule>::all(client);
    let ours = watcher::Config::default()
        .labels(&format!("{MANAGED_BY}={CONTROLLER}"))
        .page_size(PAGE);
    let mut events: Events<DeviceTaintRule> = watch(api, ours).backoff(Pauses::default()).boxed();
    let mut list = BTreeMap::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => list.clear(),
            Ok(Event::InitApply(rule)) => {
                list.insert(rule.name_any(), present(&rule));
                continue;
            }
            Ok(Event::InitDone) => {
                let mut rules = devices
                    .rules
                    .write()
                    .unwrap_or_else(PoisonError::into_inner);
                *rules = std::mem::take(&mut list);
                drop(rules);
                devices.rules_served.store(true, Ordering::Release);
                filled.send_replace(true);
            }
            Ok(Event::Apply(rule)) => devices.apply(&rule),
            Ok(Event::Delete(rule)) => devices.remove(&rule.name_any()),
            Err(error) => {
                unserved(&error, &devices.rules_served, &filled, "devicetaintrules").await;
            }
        }
        waker.rules.notify_one();
    }
}

/// An API that is not served, or not for us, is no reason to wait; it is asked for again, seldom.
async fn unserved(
    error: &watcher::Error,
    served: &AtomicBool,
    filled: &flag::Sender<bool>,
    what: &'static str,
) {
    let Some(code @ (403 | 404)) = refused(error) else {
        return log_error(what, error);
    };
    served.store(false, Ordering::Release);
    filled.send_replace(true);
    tracing::warn!(
        what,
        code,
        "no device can be tainted, and nodes are quarantined instead: DeviceTaintRules need Kubernetes 1.37 with resource.k8s.io/v1, and the operator the rights that its chart gives with deviceTaints.enabled"
    );
    tokio::time::sleep(UNSERVED).await;
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;

    use super::*;
    use crate::device_taints::Tainting;
    use crate::observe::taints_devices;
    use crate::reconcile::tests::{Cluster, context};
    use cuda_runner_plan::device_taints::Effect;

    /// An API server that answers every list with this code, and has nothing to tell afterwards.
    fn answering(code: u16) -> Client {
        let service = tower::service_fn(move |request: Request<Body>| async move {
            if request
                .uri()
                .query()
                .unwrap_or_default()
                .contains("watch=true")
            {
                std::future::pending::<()>().await;
            }
            let answer = if code == 200 {
                json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []})
            } else {
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "No", "message": "no", "code": code})
            };
            let answer = Response::builder()
                .status(code)
                .body(Body::from(answer.to_string().into_bytes()));
            Ok::<_, Infallible>(answer.unwrap())
        });
        Client::new(service, "default")
    }

    #[tokio::test]
    async fn where_devices_cannot_be_tainted_the_operator_goes_on_and_nodes_are_quarantined() {
        for (code, is_served) in [(200, true), (403, false), (404, false)] {
            // Given an API server that serves slices and rules, or not, or not to us
            let client = answering(code);
            let devices = Arc::new(Devices::default());
            let waker = Arc::new(Waker::new().0);
            let (of_slices, mut slices) = flag::channel(false);
            let (of_rules, mut rules) = flag::channel(false);
            let following = futures::future::join(
                follow_slices(
                    client.clone(),
                    Arc::clone(&devices),
                    vec![],
                    Arc::clone(&waker),
                    of_slices,
                ),
                follow_rules(client, Arc::clone(&devices), waker, of_rules),
            );
            // Then the operator's start waits for neither
            let filled = async {
                slices.wait_for(|filled| *filled).await.unwrap();
                rules.wait_for(|filled| *filled).await.unwrap();
            };
            tokio::select! {
                _ = following => panic!("a watch ended"),
                () = filled => {}
            }
            assert_eq!(devices.is_served(), is_served, "{code}");
            assert_eq!(devices.published().is_some(), is_served, "{code}");

            // And a device that failed is kept off by a rule, or its node is, as `plan` has it
            let mut ctx = context(&Cluster::default()).await;
            let seen = Arc::get_mut(&mut ctx).unwrap();
            seen.devices = Some(devices);
            seen.tainting = Some(Tainting {
                effect: Effect::NoSchedule,
                owner: "operator".to_owned(),
            });
            assert_eq!(taints_devices(&ctx), is_served, "{code}");
        }
    }

    fn slice(name: &str, generation: i64, of: i64, uuid: &str) -> ResourceSlice {
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "driver": "gpu.nvidia.com",
                "nodeName": "node-1",
                "pool": {"name": "node-1", "generation": generation, "resourceSliceCount": of},
                "devices": [{
                    "name": "gpu-0",
                    "attributes": {"uuid": {"string": uuid}, "type": {"string": "gpu"}},
                    "taints": [
                        {"key": "gpu.nvidia.com/xid", "value": "79", "effect": "NoSchedule"},
                        {"key": "gpu.nvidia.com/gpu-lost", "effect": "NoSchedule"},
                    ],
                }],
            },
        }))
        .unwrap()
    }

    fn published(all: &[ResourceSlice]) -> Published {
        let devices = Devices::default();
        devices.change(|slices| {
            slices.extend(all.iter().map(|s| (s.name_any(), slice_of(s).unwrap())));
        });
        devices.slices_served.store(true, Ordering::Release);
        Published::clone(&devices.published().unwrap())
    }

    #[test]
    fn only_whole_pools_of_the_newest_generation_count() {
        let found = |all: &[ResourceSlice]| {
            let published = published(all);
            ["GPU-old", "GPU-new"].map(|uuid| published.find(uuid, "node-1").is_some())
        };
        let (old, new) = (slice("a", 1, 1, "GPU-old"), slice("b", 2, 1, "GPU-new"));
        assert_eq!(found(std::slice::from_ref(&old)), [true, false]);
        assert_eq!(found(&[old.clone(), new]), [false, true]);
        // One of two is no basis for what is not there
        assert_eq!(found(&[old, slice("b", 2, 2, "GPU-new")]), [false, false]);
    }

    #[test]
    fn the_domain_of_a_uuid_is_the_drivers_unless_it_has_its_own() {
        let with = |name: &str| {
            let mut all = slice("a", 1, 1, "GPU-1");
            let device = &mut all.spec.devices.as_mut().unwrap()[0];
            let attributes = device.attributes.as_mut().unwrap();
            let value = attributes.remove("uuid").unwrap();
            attributes.insert(name.to_owned(), value);
            let published = published(&[all]);
            published.find("GPU-1", "node-1").map(|d| d.domain.clone())
        };
        for (name, domain) in [
            ("uuid", Some("gpu.nvidia.com")),
            ("gpu.nvidia.com/uuid", Some("gpu.nvidia.com")),
            ("ids.example/uuid", Some("ids.example")),
            ("my-uuid", None),
        ] {
            assert_eq!(with(name).as_deref(), domain, "{name}");
        }
    }

    #[test]
    fn a_rule_is_of_each_of_its_owners() {
        // Given a rule to which somebody has given an owner before its own
        let owner =
            |uid: &str| json!({"apiVersion": "v1", "kind": "ClusterRole", "name": uid, "uid": uid});
        let rule = json!({
            "metadata": {"name": "rule", "uid": "r", "ownerReferences": [owner("other"), owner("own")]},
            "spec": {"taint": {"key": "k", "effect": "NoSchedule"}},
        });
        let devices = Devices::default();
        devices.apply(&serde_json::from_value(rule).unwrap());
        // Then it is found all the same, and not made once more
        let of = |uid: &str| {
            let (name, uid) = (String::new(), uid.to_owned());
            devices.rules(&Owner { name, uid }).len()
        };
        assert_eq!(["own", "other", "none"].map(of), [1, 1, 0]);
    }

    #[test]
    fn a_drivers_own_taints_are_read() {
        let published = published(&[slice("a", 1, 1, "GPU-1")]);
        let [tainted] = published.tainted() else {
            panic!("{published:?}");
        };
        assert_eq!(
            tainted.taints,
            [
                "gpu.nvidia.com/xid=79:NoSchedule",
                "gpu.nvidia.com/gpu-lost:NoSchedule",
            ]
        );
        assert_eq!(tainted.uuid.as_deref(), Some("GPU-1"));
    }
}
