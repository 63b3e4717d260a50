//! The report's short form.

use crate::preflight::{CheckOutcome, Preflight};
use crate::report::{Report, SCHEMA, SUMMARY_LIMIT};

impl Report {
    /// The report as one line of JSON of at most [`SUMMARY_LIMIT`] bytes: what is bulky goes first, then long
    /// sentences are cut, then devices; the failure itself stays. Of the preflight, what passed goes first.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut short = self.clone();
        for device in &mut short.devices {
            device.steps.clear();
        }
        if let Some(text) = short.fitting() {
            return text;
        }
        // What of it matters is in the failure and the warnings.
        short.health = None;
        if let Some(text) = short.fitting() {
            return text;
        }
        if let Some(preflight) = &mut short.preflight {
            shorten(preflight);
        }
        if let Some(text) = short.fitting() {
            return text;
        }
        for limit in [1500, 600, 200, 80] {
            short.cut_texts(limit);
            if let Some(text) = short.fitting() {
                return text;
            }
        }
        short.warnings.truncate(4);
        if let Some(preflight) = &mut short.preflight {
            preflight.findings.truncate(4);
        }
        let culprit = short.failure.as_ref().and_then(|failure| failure.device);
        while short.devices.len() > 1 {
            // The device at fault is the one to keep.
            let last = short
                .devices
                .iter()
                .rposition(|device| Some(device.ordinal) != culprit);
            short.devices.remove(last.unwrap_or(0));
            if let Some(text) = short.fitting() {
                return text;
            }
        }
        short.warnings.clear();
        short.preflight = None;
        short.fitting().unwrap_or_else(|| {
            // Unreachable with texts of 80 bytes; a valid report all the same.
            format!(r#"{{"schema":"{SCHEMA}","outcome":"failed"}}"#)
        })
    }

    fn fitting(&self) -> Option<String> {
        serde_json::to_string(self)
            .ok()
            .filter(|text| text.len() <= SUMMARY_LIMIT)
    }

    fn cut_texts(&mut self, limit: usize) {
        cut(&mut self.version, limit);
        for text in [&mut self.node, &mut self.namespace, &mut self.pod]
            .into_iter()
            .flatten()
        {
            // Names in Kubernetes have at most 253 bytes, and a cut one names something else.
            cut(text, limit.max(253));
        }
        if let Some(host) = &mut self.host {
            cut(&mut host.architecture, limit);
        }
        if let Some(driver) = &mut self.driver {
            driver.other_libraries.clear();
            for text in [
                &mut driver.library,
                &mut driver.cuda_version,
                &mut driver.kernel_version,
            ]
            .into_iter()
            .flatten()
            {
                cut(text, limit);
            }
        }
        for device in &mut self.devices {
            cut(&mut device.name, limit);
            cut(&mut device.uuid, limit);
            cut(&mut device.compute_capability, limit);
            if let Some(text) = &mut device.pci_bus_id {
                cut(text, limit);
            }
        }
        if let Some(failure) = &mut self.failure {
            cut(&mut failure.code_name, limit);
            cut(&mut failure.message, limit.max(200));
            cut(&mut failure.advice, limit.max(200));
            for text in [&mut failure.call, &mut failure.uuid].into_iter().flatten() {
                cut(text, limit);
            }
        }
        for warning in &mut self.warnings {
            cut(&mut warning.reason, limit);
            cut(&mut warning.message, limit);
        }
        for finding in self.preflight.iter_mut().flat_map(|p| &mut p.findings) {
            cut(&mut finding.subject, limit);
            for text in [&mut finding.found, &mut finding.wanted]
                .into_iter()
                .flatten()
            {
                cut(text, limit);
            }
        }
    }
}

/// What passed goes, and so do the sentences: the failure says them, too.
fn shorten(preflight: &mut Preflight) {
    preflight
        .findings
        .retain(|finding| finding.outcome != CheckOutcome::Ok);
    for finding in &mut preflight.findings {
        finding.message.clear();
        finding.advice.clear();
    }
}

/// Cuts `text` so that its JSON form has at most `limit` bytes, an ellipsis included.
fn cut(text: &mut String, limit: usize) {
    const ELLIPSIS: char = '…';
    let escaped = |c: char| match c {
        '"' | '\\' | '\n' | '\r' | '\t' => 2,
        c if c.is_control() => 6,
        c => c.len_utf8(),
    };
    if text.chars().map(escaped).sum::<usize>() <= limit {
        return;
    }
    let mut left = limit.saturating_sub(ELLIPSIS.len_utf8());
    let end = text
        .char_indices()
        .find(|(_, c)| {
            let fits = escaped(*c) <= left;
            left = left.saturating_sub(escaped(*c));
            !fits
        })
        .map_or(text.len(), |(index, _)| index);
    text.truncate(end);
    text.push(ELLIPSIS);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Class, Confidence, Device, DeviceStep, Failure, Step, Warning};

    fn device(ordinal: u32) -> Device {
        Device {
            ordinal,
            name: "NVIDIA A100-SXM4-40GB".into(),
            uuid: format!("GPU-00000000-0000-0000-0000-{ordinal:012}"),
            compute_capability: "8.0".into(),
            steps: vec![DeviceStep {
                step: Step::Launch,
                ms: 0.1,
            }],
            ..Device::default()
        }
    }

    fn failed(message: &str, devices: u32) -> Report {
        Report {
            devices: (0..devices).map(device).collect(),
            failure: Some(Failure {
                class: Class::Device,
                step: Step::Synchronize,
                code: Some(719),
                code_name: "CUDA_ERROR_LAUNCH_FAILED".into(),
                call: Some("cuStreamSynchronize".into()),
                device: Some(devices - 1),
                uuid: None,
                message: message.into(),
                advice: message.into(),
                confidence: Confidence::High,
                shared: false,
            }),
            ..Report::new("0.1.0")
        }
    }

    #[test]
    fn a_short_report_loses_its_steps_and_nothing_else() {
        let report = failed("short", 1);
        let back: Report = serde_json::from_str(&report.summary()).unwrap();
        let mut expected = report;
        expected.devices[0].steps.clear();
        assert_eq!(back, expected);
    }

    #[test]
    fn a_summary_always_fits_and_keeps_the_failure() {
        for message in [
            "x".repeat(100_000),
            "\u{1}\"\n…🦀".repeat(5_000),
            String::new(),
        ] {
            for devices in [1, 16, 300] {
                let mut report = failed(&message, devices);
                report.warnings = vec![
                    Warning {
                        reason: message.clone(),
                        message: message.clone(),
                        device: None
                    };
                    50
                ];
                report.node = Some("n".repeat(253));
                let summary = report.summary();
                assert!(summary.len() <= SUMMARY_LIMIT, "{}", summary.len());
                let back: Report = serde_json::from_str(&summary).unwrap();
                let failure = back.failure.unwrap();
                assert_eq!((failure.class, failure.code), (Class::Device, Some(719)));
                assert!(
                    back.devices
                        .iter()
                        .any(|device| device.ordinal == devices - 1)
                );
                assert_eq!(back.node, report.node);
            }
        }
    }

    #[test]
    fn a_summary_with_a_preflight_of_any_length_fits_and_keeps_what_failed() {
        use crate::preflight::{Check, PreflightFinding};
        for (count, text) in [
            (3, "short"),
            (150, "https://example.com/\u{1}🦀"),
            (50, &*"x".repeat(512)),
        ] {
            let bad = |number| {
                let message = format!("{text}{number} did not answer");
                PreflightFinding::failed(Check::Egress, text, message, text)
            };
            let preflight = Preflight {
                findings: (0..count)
                    .flat_map(|n| [PreflightFinding::ok(Check::Command, text), bad(n)])
                    .collect(),
            };
            let mut report = Report {
                failure: preflight.failure(),
                devices: (0..16).map(device).collect(),
                ..Report::new("0")
            };
            report.preflight = Some(preflight.clone());
            let summary = report.summary();
            assert!(summary.len() <= SUMMARY_LIMIT, "{}", summary.len());
            let back: Report = serde_json::from_str(&summary).unwrap();
            assert_eq!(back.failure.unwrap().code_name, crate::preflight::FAILED);
            if count == 3 {
                assert!(back.preflight.unwrap().has_failed());
                assert!(summary.contains("short2 did not answer"), "{summary}");
            }
        }
    }
}
