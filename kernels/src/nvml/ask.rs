//! What is asked of NVML, and when.

// SAFETY, of all calls here: types are those of nvml.h, and every pointer is to a place of its type that outlives the call.
#![allow(clippy::undocumented_unsafe_blocks, reason = "said once, above")]

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::thread;
use std::time::{Duration, Instant};

use gate_report::{DeviceHealth, Fabric};

use super::Told;
use super::calls::{No, Nvml};
use super::devices;
use super::layout::{FabricInfo, FieldValue, Handle, SramErrors};
use crate::protocol::send;

/// `NVML_FI_DEV_ECC_DBE_VOL_TOTAL`, `_REMAPPED_PENDING`, `_REMAPPED_FAILURE`, `_GET_GPU_RECOVERY_ACTION`.
const FIELDS: [c_uint; 4] = [4, 144, 145, 230];
/// `NVML_NVLINK_MAX_LINKS`.
const MOST_LINKS: c_uint = 36;
/// Most GPUs that are asked, and XIDs that are read: a broken library must not keep us.
const MOST: usize = 64;
/// `NVML_GPU_FABRIC_STATE_IN_PROGRESS`, and for how long it is waited for after the test.
const IN_PROGRESS: u32 = 2;
const FABRIC_WAIT: Duration = Duration::from_secs(3);
/// Between two looks at the fabric.
const PAUSE: Duration = Duration::from_millis(100);
/// How long an XID may come after the failure that it explains.
const LATE_XID: c_uint = 100;

type Get32 = unsafe extern "C" fn(Handle, *mut c_uint) -> c_uint;
type GetText = unsafe extern "C" fn(Handle, *mut c_char, c_uint) -> c_uint;
type GetFields = unsafe extern "C" fn(Handle, c_int, *mut FieldValue) -> c_uint;
type Parent = unsafe extern "C" fn(Handle, *mut Handle) -> c_uint;
type GetFabric = unsafe extern "C" fn(Handle, *mut FabricInfo) -> c_uint;
type GetLink = unsafe extern "C" fn(Handle, c_uint, *mut c_uint) -> c_uint;

/// All GPUs that NVML shows.
pub(super) struct Gpus {
    nvml: Nvml,
    events: Option<Handle>,
    known: Vec<Gpu>,
}

struct Gpu {
    handle: Option<Handle>,
    health: DeviceHealth,
}

impl Gpu {
    fn tell(&self) {
        send(&Told::Device(self.health.clone()));
    }

    /// Keeps a code that speaks against the GPU: lost, or in need of a reset.
    fn answer<T>(&mut self, answer: Result<T, No>) -> Option<T> {
        match answer {
            Ok(answer) => Some(answer),
            Err(No::Code(code @ (15 | 16))) => {
                self.health.error = Some(code);
                None
            }
            Err(_) => None,
        }
    }
}

impl Gpus {
    /// Finds them, has their XIDs kept, and asks all of each.
    pub(super) fn list(mut nvml: Nvml) -> Self {
        let events = devices::event_set(&mut nvml);
        let count = nvml
            .call(
                &["nvmlDeviceGetCount_v2"],
                |f: unsafe extern "C" fn(*mut c_uint) -> c_uint, count: &mut c_uint| unsafe {
                    f(count)
                },
            )
            .unwrap_or(0);
        let mut gpus = Self {
            nvml,
            events,
            known: vec![],
        };
        for index in (0..count).take(MOST) {
            gpus.add(index);
        }
        for index in 0..gpus.known.len() {
            gpus.ask(index);
        }
        gpus
    }

    fn add(&mut self, index: c_uint) {
        let mut gpu = Gpu {
            handle: None,
            health: DeviceHealth::default(),
        };
        let handle = self.nvml.call(
            &["nvmlDeviceGetHandleByIndex_v2"],
            move |f: unsafe extern "C" fn(c_uint, *mut Handle) -> c_uint, handle| unsafe {
                f(index, handle)
            },
        );
        gpu.handle = gpu.answer(handle);
        if let Some(handle) = gpu.handle {
            gpu.health.uuid = self.uuid(handle).unwrap_or_default();
            if let Some(set) = self.events {
                devices::register(&mut self.nvml, set, handle);
            }
        }
        if gpu.handle.is_some() || gpu.health.error.is_some() {
            gpu.tell();
            self.known.push(gpu);
        }
    }

    fn uuid(&mut self, handle: Handle) -> Option<String> {
        /// `NVML_DEVICE_UUID_V2_BUFFER_SIZE`.
        const LONGEST: c_uint = 96;
        let text = self.nvml.call(
            &["nvmlDeviceGetUUID"],
            move |f: GetText, text: &mut Vec<u8>| {
                // A byte more, so that a text always ends.
                text.resize(LONGEST as usize + 1, 0);
                unsafe { f(handle, text.as_mut_ptr().cast(), LONGEST) }
            },
        );
        let text = text.ok()?;
        let text = CStr::from_bytes_until_nul(&text).ok()?;
        Some(text.to_string_lossy().into_owned())
    }

    /// Everything.
    fn ask(&mut self, index: usize) {
        self.fields(index);
        let Self { nvml, known, .. } = self;
        let Some(gpu) = known.get_mut(index) else {
            return;
        };
        let Some(handle) = gpu.handle else { return };
        let sram = nvml.call(
            &["nvmlDeviceGetSramEccErrorStatus"],
            move |f: unsafe extern "C" fn(Handle, *mut SramErrors) -> c_uint, errors| unsafe {
                f(handle, errors)
            },
        );
        let sram: Option<SramErrors> = gpu.answer(sram);
        gpu.health.sram_threshold_exceeded = sram.map(|errors| errors.threshold_exceeded != 0);
        gpu.health.fabric = fabric(nvml, handle);
        if let Some((all, up)) = links(nvml, handle) {
            gpu.health.nv_links = Some(all);
            gpu.health.nv_links_up = Some(up);
        }
        let mig = nvml.call(
            &["nvmlDeviceGetMigMode"],
            move |f: unsafe extern "C" fn(Handle, *mut c_uint, *mut c_uint) -> c_uint,
                  modes: &mut (c_uint, c_uint)| unsafe {
                f(handle, &raw mut modes.0, &raw mut modes.1)
            },
        );
        if let Some((current, pending)) = gpu.answer(mig) {
            gpu.health.mig = Some(current != 0);
            gpu.health.mig_pending = Some(pending != 0);
        }
        let mut width = |name| {
            nvml.call(&[name], move |f: Get32, width| unsafe { f(handle, width) })
                .ok()
        };
        gpu.health.pcie_width = width("nvmlDeviceGetCurrPcieLinkWidth");
        gpu.health.pcie_max_width = width("nvmlDeviceGetMaxPcieLinkWidth");
        gpu.tell();
    }

    /// What a fault changes: recovery action, rows, ECC.
    fn fields(&mut self, index: usize) {
        let Some(gpu) = self.known.get_mut(index) else {
            return;
        };
        let Some(handle) = gpu.handle else { return };
        let values = self.nvml.call(
            &["nvmlDeviceGetFieldValues"],
            move |f: GetFields, values: &mut [FieldValue; 4]| {
                *values = FIELDS.map(FieldValue::new);
                // Four, as FIELDS has.
                unsafe { f(handle, 4, values.as_mut_ptr()) }
            },
        );
        let values: Option<[FieldValue; 4]> = gpu.answer(values);
        if let Some(values) = values {
            let [ecc, pending, failed, action] = values.map(FieldValue::get);
            gpu.health.uncorrected_ecc_errors = ecc;
            gpu.health.remap_pending = pending.map(|value| value != 0);
            gpu.health.remap_failed = failed.map(|value| value != 0);
            gpu.health.recovery_action = action.and_then(|action| u32::try_from(action).ok());
        }
    }

    /// While the test runs: what holds the clocks back.
    pub(super) fn sample(&mut self) {
        for gpu in &mut self.known {
            let Some(handle) = gpu.handle else { continue };
            if let Some(reasons) = devices::clock_reasons(&mut self.nvml, handle) {
                *gpu.health.clock_reasons.get_or_insert(0) |= reasons;
            }
        }
    }

    /// After the test: what may have changed, of the devices that it had.
    pub(super) fn finish(&mut self, uuids: &[String], failed: bool) {
        self.sample();
        for index in 0..self.known.len() {
            self.fields(index);
        }
        self.read_xids(if failed { LATE_XID } else { 0 });
        if !failed {
            self.wait_for_fabric();
        }
        for uuid in uuids {
            self.name_slice(uuid);
        }
        for gpu in &self.known {
            gpu.tell();
        }
    }

    fn read_xids(&mut self, mut milliseconds: c_uint) {
        let Some(set) = self.events else { return };
        for _ in 0..MOST {
            let Some((device, xid)) = devices::next_xid(&mut self.nvml, set, milliseconds) else {
                return;
            };
            milliseconds = 0;
            let of = |gpu: &&mut Gpu| gpu.handle == Some(device);
            if let Some(gpu) = self.known.iter_mut().find(of)
                && !gpu.health.xids.contains(&xid)
            {
                gpu.health.xids.push(xid);
            }
        }
    }

    fn wait_for_fabric(&mut self) {
        let end = Instant::now() + FABRIC_WAIT;
        for gpu in &mut self.known {
            let Some(handle) = gpu.handle else { continue };
            let is_late = |health: &DeviceHealth| {
                health.fabric.as_ref().map(|fabric| fabric.state) == Some(IN_PROGRESS)
            };
            while is_late(&gpu.health) && Instant::now() < end {
                thread::sleep(PAUSE);
                gpu.health.fabric = fabric(&mut self.nvml, handle);
            }
        }
    }

    /// A slice is known by the GPU that it is of: what is said of that is said of it.
    fn name_slice(&mut self, uuid: &str) {
        if !uuid.starts_with("MIG-") {
            return;
        }
        let Some(slice) = devices::by_uuid(&mut self.nvml, uuid) else {
            return;
        };
        let parent = self.nvml.call(
            &["nvmlDeviceGetDeviceHandleFromMigDeviceHandle"],
            move |f: Parent, handle| unsafe { f(slice, handle) },
        );
        let Ok(parent) = parent else { return };
        let of = |gpu: &&Gpu| gpu.handle == Some(parent);
        if let Some(gpu) = self.known.iter().find(of) {
            send(&Told::Device(DeviceHealth {
                uuid: uuid.to_owned(),
                ..gpu.health.clone()
            }));
        }
    }
}

fn fabric(nvml: &mut Nvml, handle: Handle) -> Option<Fabric> {
    let mut get = |empty: fn() -> FabricInfo| {
        nvml.call(
            &["nvmlDeviceGetGpuFabricInfoV"],
            move |f: GetFabric, info: &mut FabricInfo| {
                *info = empty();
                unsafe { f(handle, info) }
            },
        )
    };
    let info = get(FabricInfo::v3).or_else(|_| get(FabricInfo::v2)).ok()?;
    // 0 is no fabric.
    (info.state != 0).then(|| Fabric {
        state: info.state.into(),
        status: info.status,
        health: (info.summary != 0).then_some(info.summary.into()),
    })
}

/// How many there are, and how many of them are up.
fn links(nvml: &mut Nvml, handle: Handle) -> Option<(c_uint, c_uint)> {
    let count = move |f: GetLink, (all, up): &mut (c_uint, c_uint)| {
        for link in 0..MOST_LINKS {
            let mut is_up = 0;
            match unsafe { f(handle, link, &raw mut is_up) } {
                0 => {
                    *all += 1;
                    *up += c_uint::from(is_up != 0);
                }
                // The first link that is none.
                code if link == 0 => return code,
                _ => break,
            }
        }
        0
    };
    nvml.call(&["nvmlDeviceGetNvLinkState"], count).ok()
}
