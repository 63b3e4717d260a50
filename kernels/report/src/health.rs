//! What the driver's management library (NVML) says of the devices, and what that means.
//!
//! Numbers and names are those of `nvml.h`. What a device, a driver or a container cannot tell is not there; it is never 0.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::{Class, Context, Device, Failure, Finding, Report, Step, Warning, finding};

/// What NVML says of the devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Health {
    /// The file that was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library: Option<String>,
    /// The devices under test; all that NVML shows where CUDA named none.
    pub devices: Vec<DeviceHealth>,
}

/// What NVML says of one GPU; of a slice, what it says of the GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct DeviceHealth {
    /// As in `devices`. Empty where NVML could not say.
    pub uuid: String,
    /// NVML's code where it speaks against the GPU: 15 it is lost, 16 it needs a reset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<u32>,
    /// Field 230: 0 none, 1 reset the GPU, 2 restart the node, 3 drain peer traffic, 4 drain and reset, 5 recover the IMEX
    /// domain, 6 reset the bus, 7 restart the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_action: Option<u32>,
    /// Field 144: rows of memory wait for a reset to be replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remap_pending: Option<bool>,
    /// Field 145: a row of memory could not be replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remap_failed: Option<bool>,
    /// Field 4: errors that ECC could not correct, since the driver was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncorrected_ecc_errors: Option<u64>,
    /// SRAM has met more uncorrectable errors than NVIDIA's threshold allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sram_threshold_exceeded: Option<bool>,
    /// The `NVLink` fabric, where the GPU belongs to one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fabric: Option<Fabric>,
    /// `NVLinks` that the GPU has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nv_links: Option<u32>,
    /// `NVLinks` that are up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nv_links_up: Option<u32>,
    /// Whether MIG is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mig: Option<bool>,
    /// Whether MIG will be on after the next reset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mig_pending: Option<bool>,
    /// Why the clocks were held back at any time of the test, as bits: 0x20 and 0x40 heat, 0x80 the power supply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_reasons: Option<u64>,
    /// `PCIe` lanes in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pcie_width: Option<u32>,
    /// `PCIe` lanes that GPU and slot allow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pcie_max_width: Option<u32>,
    /// XIDs that the driver reported during the test.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub xids: Vec<u64>,
}

/// The state of the `NVLink` fabric, as a GPU sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Fabric {
    /// 1 not started, 2 in progress, 3 completed.
    pub state: u32,
    /// NVML's code of how it was completed: 0 is success. It says nothing in another state.
    pub status: u32,
    /// 1 healthy, 2 unhealthy, 3 limited capacity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<u32>,
}

/// `NVML_GPU_FABRIC_STATE_COMPLETED`.
const COMPLETED: u32 = 3;
/// Clocks held back by heat, as software or hardware found it, or by the power supply.
const THROTTLED: u64 = 0x20 | 0x40 | 0x80;

/// What becomes of a symptom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The gate fails, unless it has failed already: then it is named beside.
    Fails(Finding),
    /// A warning, with what to do.
    Warns(&'static str),
}

/// A row of the table.
#[derive(Debug)]
pub struct Symptom {
    /// One word, for machines: the warning's reason or the failure's name.
    pub name: &'static str,
    /// What shows it, for the document.
    pub sign: &'static str,
    /// What becomes of it.
    pub verdict: Verdict,
    /// A sentence without its full stop, where the device shows it.
    shows: fn(&DeviceHealth, &Seen) -> Option<String>,
}

/// What a device is compared with.
struct Seen<'a> {
    /// How many devices the pod has.
    devices: usize,
    /// The most `NVLinks` that any GPU of the same name has up.
    links: Option<u32>,
    health: &'a DeviceHealth,
}

impl Seen<'_> {
    fn lacks_links(&self) -> Option<String> {
        let (up, most) = (self.health.nv_links_up?, self.links?);
        (up < most).then(|| format!("{up} NVLinks are up, and {most} of another GPU of its kind"))
    }

    fn fabric_is_late(&self) -> Option<String> {
        match self.health.fabric.as_ref()?.state {
            1 => Some("the NVLink fabric has not been started".into()),
            2 => Some("the NVLink fabric is still being set up".into()),
            _ => None,
        }
    }
}

fn when(holds: Option<bool>, text: &str) -> Option<String> {
    (holds == Some(true)).then(|| text.to_owned())
}

/// The table: all that fails first, the gravest at the top.
pub static SYMPTOMS: [Symptom; 17] = [
    Symptom {
        name: "NeedsReboot",
        sign: "recovery action (field 230) is 2 or 7, or NVML says that the GPU is lost (15)",
        verdict: Verdict::Fails(Finding::NeedsReboot),
        shows: |health, _| match (health.error, health.recovery_action) {
            (Some(15), _) => Some("the GPU is lost (NVML's code 15)".into()),
            (_, Some(action @ (2 | 7))) => Some(action_of(action, "restart the node")),
            _ => None,
        },
    },
    Symptom {
        name: "NeedsReset",
        sign: "recovery action (field 230) is 1, 4 or 6, or NVML says so (16)",
        verdict: Verdict::Fails(Finding::NeedsReset),
        shows: |health, _| match (health.error, health.recovery_action) {
            (Some(16), _) => Some("the GPU needs a reset (NVML's code 16)".into()),
            (_, Some(1)) => Some(action_of(1, "reset the GPU")),
            (_, Some(4)) => Some(action_of(4, "drain and reset the GPU")),
            (_, Some(6)) => Some(action_of(6, "reset the bus")),
            _ => None,
        },
    },
    Symptom {
        name: "NeedsDrain",
        sign: "recovery action (field 230) is 3",
        verdict: Verdict::Fails(Finding::NeedsDrain),
        shows: |health, _| {
            (health.recovery_action == Some(3)).then(|| action_of(3, "drain peer traffic"))
        },
    },
    Symptom {
        name: "NeedsRecovery",
        sign: "recovery action (field 230) is above 7",
        verdict: Verdict::Fails(Finding::NeedsRecovery),
        shows: |health, _| {
            let action = health.recovery_action.filter(|action| *action > 7)?;
            Some(format!("the GPU's recovery action is {action}"))
        },
    },
    Symptom {
        name: "RemapFailed",
        sign: "row remapping has failed (field 145)",
        verdict: Verdict::Fails(Finding::RemapFailed),
        shows: |health, _| when(health.remap_failed, "a row of memory could not be replaced"),
    },
    Symptom {
        name: "SramThreshold",
        sign: "the threshold of SRAM errors is exceeded",
        verdict: Verdict::Fails(Finding::SramThreshold),
        shows: |health, _| {
            when(
                health.sram_threshold_exceeded,
                "SRAM has met more uncorrectable errors than its threshold allows",
            )
        },
    },
    Symptom {
        name: "FabricFailed",
        sign: "fabric state 3 with a status other than 0 or health 2, or recovery action 5",
        verdict: Verdict::Fails(Finding::FabricFailed),
        shows: |health, _| {
            if health.recovery_action == Some(5) {
                return Some(action_of(5, "recover the IMEX domain"));
            }
            let fabric = health.fabric.as_ref()?;
            let fails = fabric.status != 0 || fabric.health == Some(2);
            (fabric.state == COMPLETED && fails).then(|| match fabric.status {
                0 => "the NVLink fabric is unhealthy".into(),
                status => format!("the NVLink fabric ended with NVML's code {status}"),
            })
        },
    },
    Symptom {
        name: "FabricNotReady",
        sign: "fabric state 1, or 2 after a wait, in a pod with several devices",
        verdict: Verdict::Fails(Finding::FabricNotReady),
        shows: |_, seen| seen.fabric_is_late().filter(|_| seen.devices > 1),
    },
    Symptom {
        name: "NvLinkDown",
        sign: "fewer NVLinks up than another GPU of the same name, on a fabric that is complete",
        verdict: Verdict::Fails(Finding::NvLinkDown),
        shows: |health, seen| {
            let complete = health.fabric.as_ref()?.state == COMPLETED;
            seen.lacks_links().filter(|_| complete)
        },
    },
    Symptom {
        name: "FabricNotReady",
        sign: "fabric state 1 or 2 in a pod with one device, which CUDA found ready",
        verdict: Verdict::Warns("Look at nvidia-fabricmanager, or at IMEX, on the node."),
        shows: |_, seen| seen.fabric_is_late().filter(|_| seen.devices <= 1),
    },
    Symptom {
        name: "FabricLimited",
        sign: "fabric health 3",
        verdict: Verdict::Warns("Look at the log of nvidia-fabricmanager on the node."),
        shows: |health, _| {
            (health.fabric.as_ref()?.health == Some(3))
                .then(|| "the NVLink fabric has limited capacity".into())
        },
    },
    Symptom {
        name: "NvLinkDown",
        sign: "fewer NVLinks up than another GPU of the same name, without a fabric: bridges may differ",
        verdict: Verdict::Warns("Check the links with nvidia-smi nvlink -s."),
        shows: |health, seen| {
            let complete = health.fabric.as_ref().map(|fabric| fabric.state) == Some(COMPLETED);
            seen.lacks_links().filter(|_| !complete)
        },
    },
    Symptom {
        name: "RemapPending",
        sign: "row remapping is pending (field 144)",
        verdict: Verdict::Warns("Reset the GPU when the node is drained."),
        shows: |health, _| when(health.remap_pending, "rows of memory wait to be replaced"),
    },
    Symptom {
        name: "UncorrectedEcc",
        sign: "uncorrected ECC errors since the driver was loaded (field 4)",
        verdict: Verdict::Warns("Look for XID 48 and 94 in the node's kernel log."),
        shows: |health, _| {
            let count = health.uncorrected_ecc_errors.filter(|count| *count > 0)?;
            Some(format!("memory has had {count} uncorrected ECC errors"))
        },
    },
    Symptom {
        name: "MigPending",
        sign: "MIG's pending mode is not the current one: configuration, no defect",
        verdict: Verdict::Warns(
            "Reset the GPU, so that the mode that somebody has set comes into force.",
        ),
        shows: |health, _| {
            (health.mig_pending? != health.mig?)
                .then(|| "MIG has been switched, and the GPU not been reset since".into())
        },
    },
    Symptom {
        name: "Throttled",
        sign: "clocks are held back by heat or by the power supply during the test (0x20, 0x40, 0x80)",
        verdict: Verdict::Warns("Check cooling and power of the node."),
        shows: |health, _| {
            let reasons = health.clock_reasons? & THROTTLED;
            (reasons != 0).then(|| format!("clocks were held back (reasons {reasons:#x})"))
        },
    },
    Symptom {
        name: "NarrowPcie",
        sign: "fewer PCIe lanes than GPU and slot allow",
        verdict: Verdict::Warns("Reseat the device or its riser."),
        shows: |health, _| {
            let (width, most) = (health.pcie_width?, health.pcie_max_width?);
            (width < most).then(|| format!("{width} of {most} PCIe lanes are in use"))
        },
    },
];

/// A recovery action in words, by `nvmlDeviceGpuRecoveryAction_t`.
fn action_of(number: u32, words: &str) -> String {
    format!("the GPU's recovery action is {number}: {words}")
}

/// XIDs that are met often, by NVIDIA's catalogue.
pub static XIDS: [(u64, &str); 15] = [
    (13, "graphics engine exception"),
    (31, "page fault of the GPU's memory"),
    (43, "the GPU stopped processing"),
    (45, "preemptive clean-up after earlier errors"),
    (48, "double-bit ECC error"),
    (61, "internal microcontroller breakpoint"),
    (62, "internal microcontroller halt"),
    (63, "a row of memory is to be remapped"),
    (64, "row remapping failed"),
    (74, "NVLink error"),
    (79, "the GPU has fallen off the bus"),
    (94, "contained memory error"),
    (95, "uncontained memory error"),
    (119, "the GPU's system processor timed out"),
    (154, "the recovery action changed"),
];

/// `XID 79 (the GPU has fallen off the bus)`.
pub(crate) fn xid(number: u64) -> String {
    match XIDS.iter().find(|(known, _)| *known == number) {
        Some((_, words)) => format!("XID {number} ({words})"),
        None => format!("XID {number}"),
    }
}

/// A symptom that a device shows.
struct Shown<'a> {
    name: &'static str,
    verdict: Verdict,
    uuid: &'a str,
    detail: String,
}

impl Shown<'_> {
    fn uuid(&self) -> Option<String> {
        Some(self.uuid.to_owned()).filter(|uuid| !uuid.is_empty())
    }

    /// The failure of a device that CUDA found nothing wrong with.
    fn failure(&self, found: Finding, device: Option<u32>) -> Failure {
        let fault = finding(found, Context::at(Step::Health));
        Failure {
            class: fault.class,
            step: Step::Health,
            code: None,
            code_name: fault.name.into(),
            call: None,
            device,
            uuid: self.uuid(),
            message: format!("NVML: {}. {}", self.detail, fault.meaning),
            advice: fault.advice.into(),
            confidence: fault.confidence,
            shared: false,
        }
    }
}

impl Failure {
    /// Names a symptom beside what CUDA said.
    fn mention(&mut self, shown: &Shown) {
        // A string takes everything.
        let _ = write!(self.message, " NVML on {}: {}.", shown.uuid, shown.detail);
    }

    /// Names a symptom that fails the gate by itself. A device that needs a reset is called busy by CUDA (46): where CUDA
    /// blames nobody, the verdict is NVML's. The driver's code, its call and the step stay facts.
    fn add(&mut self, shown: &Shown, found: Finding, device: Option<u32>) {
        self.mention(shown);
        let is_open = matches!(self.class, Class::Transient | Class::Unknown);
        let is_of_it = self.device.is_none() || self.uuid.as_deref() == Some(shown.uuid);
        if !is_open || !is_of_it {
            return;
        }
        let fault = finding(found, Context::at(Step::Health));
        let _ = write!(self.message, " {}", fault.meaning);
        self.class = fault.class;
        self.code_name = fault.name.into();
        self.advice = fault.advice.into();
        self.confidence = fault.confidence;
        if self.device.is_none() {
            self.device = device;
            self.uuid = shown.uuid();
        }
    }
}

impl Health {
    fn shown(&self, devices: &[Device]) -> Vec<Shown<'_>> {
        let name_of = |health: &DeviceHealth| {
            let device = devices.iter().find(|device| device.uuid == health.uuid);
            device.map(|device| device.name.as_str())
        };
        let count = devices.len();
        let rows = SYMPTOMS.iter().flat_map(|symptom| {
            self.devices.iter().filter_map(move |health| {
                let alike = self
                    .devices
                    .iter()
                    .filter(|other| name_of(other).is_some() && name_of(other) == name_of(health));
                let seen = Seen {
                    devices: count,
                    links: alike.filter_map(|other| other.nv_links_up).max(),
                    health,
                };
                Some(Shown {
                    name: symptom.name,
                    verdict: symptom.verdict,
                    uuid: &health.uuid,
                    detail: (symptom.shows)(health, &seen)?,
                })
            })
        });
        let xids = self.devices.iter().flat_map(|health| {
            health.xids.iter().map(|number| Shown {
                name: "Xid",
                verdict: Verdict::Warns("Look at the node's kernel log."),
                uuid: &health.uuid,
                detail: format!("the driver reported {} during the test", xid(*number)),
            })
        });
        rows.chain(xids).collect()
    }
}

impl Report {
    /// Adds what NVML says. A report without a failure fails where the table says so. A failure gets the cause named
    /// beside it, and one that blames nobody gets its verdict from there.
    pub fn add_health(&mut self, mut health: Health) {
        if !self.devices.is_empty() {
            health
                .devices
                .retain(|one| self.devices.iter().any(|device| device.uuid == one.uuid));
        }
        for shown in health.shown(&self.devices) {
            let device = self
                .devices
                .iter()
                .find(|device| device.uuid == shown.uuid && !shown.uuid.is_empty())
                .map(|device| device.ordinal);
            match (&mut self.failure, shown.verdict) {
                (Some(failure), Verdict::Fails(found)) => failure.add(&shown, found, device),
                (Some(failure), _) if shown.name == "Xid" => failure.mention(&shown),
                (None, Verdict::Fails(found)) => {
                    self.failure = Some(shown.failure(found, device));
                }
                (_, Verdict::Warns(advice)) => self.warnings.push(Warning {
                    reason: shown.name.into(),
                    message: format!("NVML on {}: {}. {advice}", shown.uuid, shown.detail),
                    device,
                }),
            }
        }
        self.health = Some(health);
    }

    /// Says that NVML could not be asked, or not everything.
    pub fn health_unknown(&mut self, why: &str) {
        self.warnings.push(Warning {
            reason: "HealthUnknown".into(),
            message: format!("NVML, the driver's management library: {why}."),
            device: None,
        });
    }
}

impl DeviceHealth {
    /// What is known, in words; empty where nothing is.
    #[must_use]
    pub fn facts(&self) -> String {
        let yes = |value: Option<bool>, text: &str| {
            value.map(|value| format!("{text} {}", if value { "yes" } else { "no" }))
        };
        let of = |part: Option<u32>, whole: Option<u32>, text: &str| {
            Some(format!("{text} {} of {}", part?, whole?))
        };
        let facts = [
            self.error.map(|code| format!("NVML's code {code}")),
            self.recovery_action
                .map(|action| format!("recovery action {action}")),
            yes(self.remap_failed, "remapping failed"),
            yes(self.remap_pending, "remapping pending"),
            self.uncorrected_ecc_errors
                .map(|count| format!("uncorrected ECC errors {count}")),
            yes(self.sram_threshold_exceeded, "SRAM threshold exceeded"),
            self.fabric
                .as_ref()
                .map(|fabric| format!("fabric state {} status {}", fabric.state, fabric.status)),
            of(self.nv_links_up, self.nv_links, "NVLinks up"),
            yes(self.mig, "MIG"),
            self.clock_reasons
                .map(|reasons| format!("clock reasons {reasons:#x}")),
            of(self.pcie_width, self.pcie_max_width, "PCIe lanes"),
            (!self.xids.is_empty()).then(|| {
                let xids: Vec<_> = self.xids.iter().map(ToString::to_string).collect();
                format!("XID {}", xids.join(" "))
            }),
        ];
        facts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}
