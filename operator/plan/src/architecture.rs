//! Nodes and images of another architecture than the pool's: by which words that is known, and what to do.

use cudarunner_crds::{ARCH_LABEL, Arch};

use super::{NodeFacts, Observed};
use crate::model::pool::Spec;

/// What is said where an image has nothing for the node's architecture: by the kernel, when a program is started; by
/// containerd, Docker and CRI-O, when an image is pulled.
const SAID: [&str; 5] = [
    "exec format error",
    "no match for platform in manifest",
    "no matching manifest for",
    "no image found in image index for architecture",
    "no image found in manifest list for architecture",
];

/// Whether these words of others say that an image is for another architecture.
#[must_use]
pub fn is_mismatch(words: &str) -> bool {
    let words = words.to_lowercase();
    SAID.iter().any(|said| words.contains(said))
}

/// What to do about it.
#[must_use]
pub fn advice(arch: Arch) -> String {
    format!(
        "the pool's nodes are {arch} (spec.arch): name an image that is built for linux/{arch}, or set spec.arch to {} where there are such nodes",
        arch.other()
    )
}

/// Where every node that offers what the pool asks for has another architecture: which, and what to do.
pub(super) fn elsewhere(spec: &Spec, observed: &Observed) -> Option<String> {
    let nodes = observed.nodes.as_ref().filter(|nodes| !nodes.is_empty())?;
    if nodes.iter().any(|node| spec.is_for(node)) {
        return None;
    }
    let of = |node: &NodeFacts| node.labels.get(ARCH_LABEL).cloned();
    let mut found: Vec<String> = nodes.iter().filter_map(|node| of(node)).collect();
    found.sort_unstable();
    found.dedup();
    let found = match found.as_slice() {
        [] => format!("lack the label {ARCH_LABEL}"),
        found => format!("are {}", found.join(" and ")),
    };
    Some(format!(
        "The nodes with {} {found}, and the pool's are to be {} (spec.arch): set spec.arch to the architecture of the nodes, and name a runner's image that is built for it",
        spec.gpu, spec.arch
    ))
}

#[cfg(test)]
mod tests {
    use cudarunner_crds::RunnerPhase;
    use gate_report::Class;

    use super::*;
    use crate::fixture::{NOW, ago, first_node, observed, pool, runner};
    use crate::model::runner::{IMAGE_PULL_BACK_OFF, Waiting};
    use crate::plan;

    #[test]
    fn runtimes_have_several_words_for_it() {
        for words in [
            "/bin/sh could not be started: Exec format error (os error 8)",
            "exec /cuda-smoke: exec format error",
            "failed to pull and unpack image \"docker.io/acme/a:1\": no match for platform in manifest: not found",
            "no matching manifest for linux/arm64/v8 in the manifest list entries",
            "choosing an image from manifest list: no image found in image index for architecture \"arm64\", variant \"v8\", OS \"linux\"",
        ] {
            assert!(is_mismatch(words), "{words}");
        }
        for words in ["", "manifest unknown", "exec: \"/bin/sh\": not found"] {
            assert!(!is_mismatch(words), "{words}");
        }
    }

    #[test]
    fn an_image_that_the_registry_does_not_have_for_the_nodes_is_named_as_that_and_blames_no_node()
    {
        // Given a pod whose image is there for another architecture
        let mut pool = pool(1);
        pool.spec_mut().arch = Arch::Arm64;
        let mut waiting = runner(&pool, "pool-aaaaa", RunnerPhase::Preparing);
        waiting.waiting = Some(Waiting {
            reason: IMAGE_PULL_BACK_OFF.into(),
            message: "no match for platform in manifest: not found".to_owned(),
            container: Some("gpu".to_owned()),
            image: Some("acme/runner:1".to_owned()),
        });
        let mut observed = observed(vec![waiting]);

        // When it waits, and when it has waited for too long
        for (since, phase) in [(20, "online"), (600, "failed")] {
            observed.runners[0].since = ago(since);
            observed.runners[0].waiting_since = Some(ago(since));
            let plan = plan(&pool, &observed, NOW);
            // Then the condition says which it should be
            let conditions = &plan.status.conditions;
            let online = conditions.iter().find(|c| c.type_ == "RunnersOnline");
            let online = online.unwrap();
            assert_eq!(online.reason, "WrongArchitecture", "{phase}: {online:?}");
            for word in ["acme/runner:1", "linux/arm64", "spec.arch to amd64"] {
                assert!(online.message.contains(word), "{phase}: {}", online.message);
            }
            // And the failure is the pool's, not the node's
            for failure in &plan.status.last_failures {
                assert_eq!(failure.class, Class::Config);
            }
            assert_eq!(plan.status.last_failures.len(), usize::from(since > 300));
            assert_eq!(plan.status.quarantine, []);
        }
    }

    #[test]
    fn nodes_that_all_have_another_architecture_are_named_with_it() {
        let pool = pool(1);
        let mut unscheduled = runner(&pool, "pool-aaaaa", RunnerPhase::Unscheduled);
        unscheduled.node = None;
        unscheduled.since = ago(60);
        let mut observed = observed(vec![unscheduled]);
        let message = |observed: &Observed| {
            let conditions = plan(&pool, observed, NOW).status.conditions;
            let mut online = conditions.into_iter();
            online.find(|c| c.type_ == "RunnersOnline").unwrap().message
        };
        assert!(!message(&observed).contains("arch"));

        let arch = (ARCH_LABEL.to_owned(), "arm64".to_owned());
        first_node(&mut observed).labels.extend([arch]);
        let said = message(&observed);
        assert!(
            said.starts_with("The nodes with 1 x nvidia.com/gpu are arm64, and the pool's are to be amd64 (spec.arch)"),
            "{said}"
        );
        // One that fits is enough
        let mut both = observed.clone();
        let fitting = crate::fixture::node("node-2");
        both.nodes.as_mut().unwrap().push(fitting);
        assert!(!message(&both).contains("arch"));
    }
}
