//! Labels of GPU feature discovery, compared with what the gate found: they go stale when a GPU is partitioned anew or a
//! driver is updated. A stale label is reported once, and nothing else follows from it. See
//! <https://github.com/NVIDIA/k8s-device-plugin/blob/main/docs/gpu-feature-discovery/README.md>.

use cudarunner_crds::{MAX_STALE_LABELS, StaleLabelStatus};

use super::{About, NodeFacts, Notice, Observed, Plan};
use crate::model::hardware::{Hardware, Product};
use crate::model::pool::Pool;
use crate::model::runner::Runner;
use crate::reason::Reason;

/// Which GPUs a node has, as GPU feature discovery says it.
pub(super) const PRODUCT: &str = "nvidia.com/gpu.product";
const MEMORY: &str = "nvidia.com/gpu.memory";
/// What a resource's label of the product has after the resource's name.
pub(super) const OF_PRODUCT: &str = ".product";
/// So ends the product's name where several containers share a GPU.
pub(super) const SHARED: &str = "-SHARED";
const MIG_STRATEGY: &str = "nvidia.com/mig.strategy";
/// The gate sees some percent less memory than the label says: the driver keeps some for itself.
const MEMORY_TOLERANCE_PERCENT: u64 = 10;

/// Keeps the list of stale labels, and tells what is new on it.
pub(super) fn plan(pool: &Pool, observed: &Observed, plan: &mut Plan) {
    let node = |name: &str| observed.node(name);
    let seen: Vec<(&Runner, Vec<StaleLabelStatus>)> = observed
        .runners
        .iter()
        .filter_map(|runner| {
            let node = node(runner.node.as_deref()?)?;
            let hardware = runner.hardware.as_ref()?;
            Some((runner, stale(node, hardware, &runner.devices)))
        })
        .collect();

    let mut entries = pool.status.stale_labels.clone();
    entries.retain(|entry| {
        let unchanged =
            node(&entry.node).is_some_and(|n| n.labels.get(&entry.label) == Some(&entry.value));
        unchanged
            && !seen
                .iter()
                .any(|(runner, stale)| settles(runner, stale, entry))
    });
    let known = entries.len();
    for found in seen.into_iter().flat_map(|(_, stale)| stale) {
        let listed = |e: &StaleLabelStatus| e.node == found.node && e.label == found.label;
        if entries.len() < MAX_STALE_LABELS && !entries.iter().any(listed) {
            entries.push(found);
        }
    }
    let new: Vec<String> = entries[known..].iter().map(sentence).collect();
    if !new.is_empty() {
        plan.notices.push(Notice {
            warning: true,
            reason: Reason::StaleLabels.into(),
            note: format!(
                "Labels of feature discovery do not say what the gate found: {}. Restart gpu-feature-discovery there; until then, pods that select nodes by them may go to the wrong ones",
                new.join("; ")
            ),
            about: entries.get(known).map(|e| About::Node(e.node.clone())),
        });
    }
    plan.status.stale_labels = entries;
}

fn sentence(entry: &StaleLabelStatus) -> String {
    format!(
        "{} of {} is {}, found was {}",
        entry.label, entry.node, entry.value, entry.found
    )
}

/// Whether a runner's gate has found the label right where it was wrong: on the same device, where it is about one.
fn settles(runner: &Runner, stale: &[StaleLabelStatus], entry: &StaleLabelStatus) -> bool {
    let same_device = |device| runner.devices.contains(device);
    runner.node.as_deref() == Some(entry.node.as_str())
        && entry.device.as_ref().is_none_or(same_device)
        && !stale.iter().any(|s| s.label == entry.label)
}

/// The labels of a node that are wrong. Those that it does not have cannot be.
fn stale(node: &NodeFacts, hardware: &Hardware, devices: &[String]) -> Vec<StaleLabelStatus> {
    let Some(labelled) = node.labels.get(PRODUCT) else {
        return vec![];
    };
    let is_shared = labelled.ends_with(SHARED);
    let is_mixed = node.labels.get(MIG_STRATEGY).is_some_and(|s| s == "mixed");
    let of_devices = hardware.devices.iter().zip(devices);
    let of_devices = of_devices
        // Where GPUs are partitioned in several ways, the labels are those of whole ones.
        .filter(|(_, device)| !(is_mixed && device.starts_with("MIG-")))
        .flat_map(|(product, device)| {
            // Who shares a GPU by MPS may see a part of its memory only.
            let facts = of_device(product).into_iter();
            let facts = facts.filter(move |(label, _)| !(is_shared && *label == MEMORY));
            facts.map(move |(label, found)| (label, found, Some(device)))
        });
    let of_driver = of_driver(hardware).into_iter();
    of_devices
        .chain(of_driver.map(|(label, found)| (label, found, None)))
        .filter_map(|(label, found, device)| {
            let value = node.labels.get(label)?;
            (!fits(label, value, &found)).then(|| StaleLabelStatus {
                node: node.name.clone(),
                device: device.cloned(),
                label: label.to_owned(),
                value: value.clone(),
                found,
            })
        })
        .collect()
}

/// What the labels of a device should be, as far as the driver could say what it is.
fn of_device(product: &Product) -> Vec<(&'static str, String)> {
    let mut facts = vec![];
    if !product.name.is_empty() {
        facts.push((PRODUCT, product.name.replace(' ', "-")));
    }
    if product.memory_mib > 0 {
        facts.push((MEMORY, product.memory_mib.to_string()));
    }
    if let Some((major, minor)) = product.compute_capability.split_once('.') {
        facts.push(("nvidia.com/gpu.compute.major", major.to_owned()));
        facts.push(("nvidia.com/gpu.compute.minor", minor.to_owned()));
    }
    facts
}

/// What the labels of the driver should be, in their newer form and in that which every version has.
fn of_driver(hardware: &Hardware) -> Vec<(&'static str, String)> {
    let mut facts = vec![];
    let major = |version: &str| version.split('.').next().unwrap_or_default().to_owned();
    if let Some(driver) = &hardware.driver {
        facts.push(("nvidia.com/cuda.driver-version.full", driver.clone()));
        facts.push(("nvidia.com/cuda.driver.major", major(driver)));
    }
    if let Some(cuda) = &hardware.cuda {
        facts.push(("nvidia.com/cuda.runtime-version.full", cuda.clone()));
        facts.push(("nvidia.com/cuda.runtime.major", major(cuda)));
    }
    facts
}

fn fits(label: &str, value: &str, found: &str) -> bool {
    match label {
        PRODUCT => value.strip_suffix(SHARED).unwrap_or(value) == found,
        MEMORY => {
            let mib = |text: &str| text.parse::<u64>().unwrap_or_default();
            let (value, found) = (mib(value), mib(found));
            let tolerance = (value / 100).saturating_mul(MEMORY_TOLERANCE_PERCENT);
            value.abs_diff(found) <= tolerance
        }
        _ => value == found,
    }
}

#[cfg(test)]
mod tests {
    use cudarunner_crds::RunnerPhase;

    use std::sync::Arc;

    use super::*;
    use crate::fixture::{NOW, first_node, hardware, observed, pool, runner};
    use crate::{Action, plan};

    /// What feature discovery says of the fixture's device, and of its driver 580.95.05.
    const FITTING: [(&str, &str); 9] = [
        (PRODUCT, "NVIDIA-A100-SXM4-40GB"),
        (MEMORY, "40960"),
        ("nvidia.com/gpu.compute.major", "8"),
        ("nvidia.com/gpu.compute.minor", "0"),
        ("nvidia.com/gpu.count", "8"),
        ("nvidia.com/cuda.driver.major", "580"),
        ("nvidia.com/cuda.driver-version.full", "580.95.05"),
        ("nvidia.com/cuda.runtime.major", "12"),
        ("nvidia.com/cuda.runtime-version.full", "12.9"),
    ];

    /// A pool with an idle runner on node-1, whose labels fit but for these.
    fn given(changes: &[(&str, &str)]) -> (Pool, Observed) {
        let pool = pool(1);
        let mut idle = runner(&pool, "pool-aaaaa", RunnerPhase::Idle);
        idle.devices = vec!["GPU-1".to_owned()];
        idle.hardware = Some(hardware("NVIDIA A100-SXM4-40GB", "580.95.05"));
        let mut observed = observed(vec![idle]);
        let labels = FITTING.iter().chain(changes);
        let node = first_node(&mut observed);
        node.labels = labels
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        (pool, observed)
    }

    fn wrong(changes: &[(&str, &str)]) -> Vec<(String, String, String)> {
        let (pool, observed) = given(changes);
        let entries = plan(&pool, &observed, NOW).status.stale_labels;
        entries
            .into_iter()
            .map(|e| (e.label, e.value, e.found))
            .collect()
    }

    fn notices(plan: &Plan) -> Vec<&Notice> {
        plan.notices
            .iter()
            .filter(|n| n.reason == "StaleLabels")
            .collect()
    }

    #[test]
    fn labels_that_fit_are_no_news() {
        assert_eq!(wrong(&[]), []);
        let shared = [(PRODUCT, "NVIDIA-A100-SXM4-40GB-SHARED"), (MEMORY, "81920")];
        assert_eq!(wrong(&shared), []);
        // A device of which the driver could say nothing
        let (pool, mut observed) = given(&[]);
        let hardware = observed.runners[0].hardware.as_mut().unwrap();
        hardware.devices = vec![Product::default()];
        hardware.driver = None;
        assert_eq!(plan(&pool, &observed, NOW).status.stale_labels, []);
    }

    #[test]
    fn each_label_is_compared() {
        for (label, value, found) in [
            (PRODUCT, "Tesla-T4", "NVIDIA-A100-SXM4-40GB"),
            (MEMORY, "4864", "40339"),
            (MEMORY, "much", "40339"),
            ("nvidia.com/gpu.compute.major", "7", "8"),
            ("nvidia.com/gpu.compute.minor", "6", "0"),
            ("nvidia.com/cuda.driver.major", "570", "580"),
            (
                "nvidia.com/cuda.driver-version.full",
                "580.65.06",
                "580.95.05",
            ),
            ("nvidia.com/cuda.runtime.major", "13", "12"),
            ("nvidia.com/cuda.runtime-version.full", "12.8", "12.9"),
        ] {
            let expected = (label.to_owned(), value.to_owned(), found.to_owned());
            assert_eq!(wrong(&[(label, value)]), [expected]);
        }
    }

    #[test]
    fn a_slice_is_not_compared_with_the_labels_of_whole_gpus() {
        let (pool, mut observed) =
            given(&[(PRODUCT, "NVIDIA-A100-SXM4-80GB"), (MIG_STRATEGY, "mixed")]);
        observed.runners[0].devices = vec!["MIG-1".to_owned()];
        assert_eq!(plan(&pool, &observed, NOW).status.stale_labels, []);
        // Where all GPUs are cut the same way, they are those of the slice
        first_node(&mut observed)
            .labels
            .insert(MIG_STRATEGY.to_owned(), "single".to_owned());
        assert_eq!(plan(&pool, &observed, NOW).status.stale_labels.len(), 1);
    }

    #[test]
    fn a_stale_label_is_told_once_and_harms_nobody() {
        let (mut pool, mut observed) = given(&[(PRODUCT, "Tesla-T4")]);
        let first = plan(&pool, &observed, NOW);
        let note = &notices(&first)[0].note;
        assert!(
            note.contains(
                "nvidia.com/gpu.product of node-1 is Tesla-T4, found was NVIDIA-A100-SXM4-40GB"
            ),
            "{note}"
        );
        assert!(notices(&first)[0].warning);
        assert_eq!(first.status.quarantine, []);
        let gpu = first
            .status
            .conditions
            .iter()
            .find(|c| c.type_ == "GpuHealthy");
        assert_eq!(gpu.unwrap().reason, "GatePassed");
        assert!(
            !first
                .actions
                .iter()
                .any(|a| matches!(a, Action::Drain(_) | Action::DeletePod(_)))
        );

        // Nor is it reported again, by this runner, by another one of the pool, or by none
        pool.status = first.status;
        let another = Runner {
            name: "pool-bbbbb".to_owned(),
            ..observed.runners[0].clone()
        };
        for runners in [observed.runners.clone(), vec![another], vec![]] {
            observed.runners = runners;
            let next = plan(&pool, &observed, NOW);
            assert_eq!(notices(&next), Vec::<&Notice>::new());
            assert_eq!(next.status.stale_labels, pool.status.stale_labels);
        }
    }

    #[test]
    fn it_goes_with_the_label_with_the_node_and_with_the_device_that_it_fits_again() {
        let (mut pool, observed) = given(&[(PRODUCT, "Tesla-T4")]);
        pool.status = plan(&pool, &observed, NOW).status;
        let left = |observed: &Observed| plan(&pool, observed, NOW).status.stale_labels.len();
        assert_eq!(left(&given(&[]).1), 0);
        let mut gone = observed.clone();
        gone.nodes = Some(vec![]);
        assert_eq!(left(&gone), 0);
        // Another device of the node says nothing of this one
        let mut repaired = observed;
        repaired.runners[0].hardware = Some(hardware("Tesla T4", "580.95.05"));
        assert_eq!(left(&repaired), 0);
        repaired.runners[0].devices = vec!["GPU-2".to_owned()];
        assert_eq!(left(&repaired), 1);
    }

    #[test]
    fn the_list_and_its_news_are_bounded() {
        let (pool, mut observed) = given(&[(PRODUCT, "Tesla-T4")]);
        let (first, node) = (
            observed.runners[0].clone(),
            observed.nodes.as_ref().unwrap()[0].clone(),
        );
        for number in 2..=2 * MAX_STALE_LABELS {
            let name = format!("node-{number}");
            observed.runners.push(Runner {
                name: format!("pool-{number}"),
                node: Some(name.clone()),
                ..first.clone()
            });
            let node = NodeFacts {
                name,
                ..NodeFacts::clone(&node)
            };
            observed.nodes.as_mut().unwrap().push(Arc::new(node));
        }
        let plan = plan(&pool, &observed, NOW);
        assert_eq!(plan.status.stale_labels.len(), MAX_STALE_LABELS);
        assert_eq!(notices(&plan).len(), 1);
    }
}
