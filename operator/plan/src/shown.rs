//! What a plan says to people, without anything that they would not see. Names that must stay what they are, such as the
//! contexts of checks, are cleaned by whoever shows them.

use gate_report::clean;

use super::{NOTE, Notice, Plan};

/// Characters of a sentence in the status.
const SENTENCE: usize = 4_000;
/// Characters of a name or a value.
const NAME: usize = 256;

/// Cleans the notices, and the sentences and values of the status.
pub(super) fn tidy(plan: &mut Plan) {
    for Notice { note, .. } in plan.notices.iter_mut().chain(&mut plan.news) {
        tidied(note, NOTE);
    }
    let status = &mut plan.status;
    for condition in &mut status.conditions {
        tidied(&mut condition.message, SENTENCE);
    }
    for job in &mut status.last_jobs {
        job.devices.iter_mut().for_each(|uuid| tidied(uuid, NAME));
    }
    for failure in &mut status.last_failures {
        tidied(&mut failure.message, SENTENCE);
        failure
            .device
            .iter_mut()
            .for_each(|uuid| tidied(uuid, NAME));
    }
    for entry in &mut status.quarantine {
        tidied(&mut entry.message, SENTENCE);
        entry.device.iter_mut().for_each(|uuid| tidied(uuid, NAME));
    }
    for device in &mut status.tainted_devices {
        let uuid = device.uuid.iter_mut();
        uuid.chain(&mut device.taints)
            .for_each(|text| tidied(text, NAME));
    }
    for entry in &mut status.reruns {
        tidied(&mut entry.evidence, SENTENCE);
        entry.device.iter_mut().for_each(|uuid| tidied(uuid, NAME));
        let said = entry.message.iter_mut();
        said.for_each(|message| tidied(message, SENTENCE));
    }
    for label in &mut status.stale_labels {
        tidied(&mut label.value, NAME);
        tidied(&mut label.found, NAME);
    }
    for runner in &mut status.runners {
        runner
            .devices
            .iter_mut()
            .for_each(|uuid| tidied(uuid, NAME));
    }
    for job in &mut status.last_jobs {
        job.devices.iter_mut().for_each(|uuid| tidied(uuid, NAME));
    }
    if let Some(verification) = &mut status.verification {
        let said = verification.message.iter_mut();
        said.for_each(|message| tidied(message, SENTENCE));
    }
    let version = status.runner_version.iter_mut();
    version.for_each(|version| tidied(version, NAME));
}

/// The new text, or the one before where they differ in numbers only: a scheduler's counts, a registry's port, a pause
/// that grows. Such a text changes by itself, and each change would be a write.
pub(super) fn steady(before: Option<&str>, new: String) -> String {
    match before.filter(|before| essence(before) == essence(&new)) {
        Some(before) => before.to_owned(),
        None => new,
    }
}

/// The words of a text that are no numbers, in an order of their own: a scheduler sorts its reasons by their counts.
fn essence(text: &str) -> Vec<&str> {
    let is_edge = |c: char| !c.is_alphanumeric();
    let words = text
        .split_whitespace()
        .map(|word| word.trim_matches(is_edge));
    let mut words: Vec<&str> = words
        .filter(|word| !word.starts_with(|c: char| c.is_ascii_digit()))
        .collect();
    words.sort_unstable();
    words
}

fn tidied(text: &mut String, max: usize) {
    let line = clean(text, max);
    if line != *text {
        *text = line;
    }
}

#[cfg(test)]
mod tests {
    use super::steady;
    use cudarunner_crds::RunnerPhase;
    use gate_report::{Class, is_hidden};

    use crate::Access;
    use crate::fixture::{NOW, gate_failure, observed, pool, runner};
    use crate::model::runner::{End, Failure};
    use crate::reason::Reason;

    #[test]
    fn a_text_whose_numbers_alone_change_stays() {
        let scheduler = "0/5 nodes are available: 2 node(s) had untolerated taint {a: b}, 3 Insufficient nvidia.com/gpu.";
        for (before, new, stays) in [
            (
                scheduler,
                "0/7 nodes are available: 1 Insufficient nvidia.com/gpu, 6 node(s) had untolerated taint {a: b}.",
                true,
            ),
            (
                scheduler,
                "0/5 nodes are available: 5 Insufficient nvidia.com/gpu.",
                false,
            ),
            (
                "back-off 10s restarting failed container",
                "back-off 5m0s restarting failed container",
                true,
            ),
            (
                "read udp 10.0.0.1:41231->10.0.0.2:53: i/o timeout",
                "read udp 10.0.0.1:5223->10.0.0.2:53: i/o timeout",
                true,
            ),
            // A name is no number.
            (
                "secret \"token-1\" not found",
                "secret \"token-2\" not found",
                false,
            ),
            ("node-1 is quarantined", "node-2 is quarantined", false),
        ] {
            let shown = steady(Some(before), new.to_owned());
            assert_eq!(shown, if stays { before } else { new });
        }
        assert_eq!(steady(None, "a".to_owned()), "a");
    }

    #[test]
    fn nothing_that_is_said_forges_a_line_or_moves_a_cursor() {
        // Given a gate, an API server and a GitHub that say what a terminal would follow
        const HOSTILE: &str = "\u{1b}[2J\u{1b}[Hfine\nFAKE  ready\u{202e}txt\u{200b}";
        let pool = pool(2);
        let mut failed = runner(&pool, "pool-aaaaa", RunnerPhase::Failed);
        failed.end = Some(End::Failed(Failure {
            device: Some(HOSTILE.to_owned()),
            message: HOSTILE.to_owned(),
            ..gate_failure(Class::Node)
        }));
        let mut observed = observed(vec![failed]);
        observed.pod_refused = Some(HOSTILE.to_owned());
        observed.access = Access::Refused {
            reason: Reason::Forbidden,
            message: HOSTILE.to_owned(),
            transient: false,
        };

        // When it is planned
        let plan = crate::plan(&pool, &observed, NOW);

        // Then neither the status nor an Event repeats that, though both tell what was said
        let status = serde_json::to_value(&plan.status).unwrap();
        let notes = plan
            .notices
            .iter()
            .chain(&plan.news)
            .map(|n| n.note.clone());
        let mut said: Vec<String> = notes.collect();
        texts(&status, &mut said);
        assert!(
            said.iter().any(|text| text.contains("fine FAKE  readytxt")),
            "{said:?}"
        );
        assert!(
            !said.iter().any(|text| text.chars().any(is_hidden)),
            "{said:?}"
        );
    }

    fn texts(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::String(text) => found.push(text.clone()),
            serde_json::Value::Array(items) => items.iter().for_each(|v| texts(v, found)),
            serde_json::Value::Object(fields) => fields.values().for_each(|v| texts(v, found)),
            _ => {}
        }
    }
}
