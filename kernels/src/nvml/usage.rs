//! What the GPUs of this pod do during a job, as NVML tells it.

// SAFETY, of all calls here: types are those of nvml.h, and every pointer is to a place of its type that outlives the call.
#![allow(clippy::undocumented_unsafe_blocks, reason = "said once, above")]

use std::ffi::c_uint;
use std::path::PathBuf;
use std::ptr;
use std::time::{Duration, Instant};

use gate_report::usage::{GpuUsage, Throttled};

use super::calls::{self, Nvml, within};
use super::devices;
use super::layout::{Handle, Memory, Sample, Utilization};

/// NVML's start takes seconds where no program holds the driver. What takes longer hangs.
const STARTUP: Duration = Duration::from_secs(20);
/// `NVML_GPU_UTILIZATION_SAMPLES`, `NVML_CLOCK_SM`, `NVML_TEMPERATURE_GPU`, `NVML_VOLATILE_ECC`.
const UTILIZATION: c_uint = 1;
const SM: c_uint = 1;
const GPU: c_uint = 0;
const VOLATILE: c_uint = 0;
/// `NVML_MEMORY_ERROR_TYPE_CORRECTED` and `_UNCORRECTED`.
const CORRECTED: c_uint = 0;
const UNCORRECTED: c_uint = 1;
/// Samples that are taken at a look, and XIDs: a broken library must not keep us.
const MOST: c_uint = 4096;
/// A program's context takes more.
const CONTEXT_MIB: u32 = 64;
/// A shorter job is not said to have left its GPU alone: NVML speaks of a second that is over.
const JUDGED: Duration = Duration::from_secs(10);

type Get32 = unsafe extern "C" fn(Handle, *mut c_uint) -> c_uint;
type Get64 = unsafe extern "C" fn(Handle, *mut u64) -> c_uint;
type GetOf = unsafe extern "C" fn(Handle, c_uint, *mut c_uint) -> c_uint;
type GetErrors = unsafe extern "C" fn(Handle, c_uint, c_uint, *mut u64) -> c_uint;
type GetUtilization = unsafe extern "C" fn(Handle, *mut Utilization) -> c_uint;
type GetMemory = unsafe extern "C" fn(Handle, *mut Memory) -> c_uint;
type GetSamples =
    unsafe extern "C" fn(Handle, c_uint, u64, *mut c_uint, *mut c_uint, *mut Sample) -> c_uint;

/// The GPUs that are watched.
pub(crate) struct Usage {
    nvml: Nvml,
    events: Option<Handle>,
    gpus: Vec<Gpu>,
    /// Others use them as well: what is busy, taken and spent is not this job's alone, and is not told.
    shared: bool,
    began: Instant,
    looked: Instant,
}

/// One of them, and what it did so far.
struct Gpu {
    handle: Handle,
    uuid: String,
    name: String,
    /// The time of the last sample of its utilisation, by NVML's clock.
    sampled: u64,
    /// Whether the driver keeps such samples.
    has_samples: bool,
    busy: Mean,
    clock: Mean,
    lowest_clock: Option<u32>,
    first_memory: Option<u32>,
    most_memory: Option<u32>,
    celsius: Option<u32>,
    /// In milliseconds.
    throttled: Option<Throttled>,
    first: Counters,
    last: Counters,
    xids: Vec<u32>,
}

/// Figures that only grow.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    millijoules: Option<u64>,
    corrected: Option<u64>,
    uncorrected: Option<u64>,
    replays: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: u64,
    count: u64,
    most: u32,
}

impl Mean {
    fn add(&mut self, value: u32) {
        self.sum = self.sum.saturating_add(value.into());
        self.count = self.count.saturating_add(1);
        self.most = self.most.max(value);
    }

    fn value(self) -> Option<u32> {
        let mean = self.sum.saturating_add(self.count / 2);
        mean.checked_div(self.count).map(narrow)
    }
}

fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// How much a count has grown, where both ends are known.
fn grown(first: Option<u64>, last: Option<u64>) -> Option<u64> {
    Some(last?.saturating_sub(first?))
}

impl Usage {
    /// Loads the library and finds these GPUs, named by UUID and product. `None` where there is no library, or none that
    /// answers, or none of them.
    pub(crate) fn load(root: PathBuf, gpus: &[(String, String)], shared: bool) -> Option<Self> {
        let mut nvml = within(STARTUP, move || calls::load(&root, |_| {}))??;
        let events = devices::event_set(&mut nvml);
        let mut found = vec![];
        for (uuid, name) in gpus {
            let Some(handle) = devices::by_uuid(&mut nvml, uuid) else {
                continue;
            };
            if let Some(set) = events {
                devices::register(&mut nvml, set, handle);
            }
            found.push(Gpu::new(handle, uuid.clone(), name.clone()));
        }
        let now = Instant::now();
        (!found.is_empty()).then_some(Self {
            nvml,
            events,
            gpus: found,
            shared,
            began: now,
            looked: now,
        })
    }

    /// A job begins: what was before is forgotten.
    pub(crate) fn begin(&mut self) {
        self.read_xids();
        self.began = Instant::now();
        self.looked = self.began;
        for gpu in &mut self.gpus {
            *gpu = Gpu::new(gpu.handle, gpu.uuid.clone(), gpu.name.clone());
            gpu.first = gpu.counters(&mut self.nvml);
            gpu.first_memory = gpu.memory(&mut self.nvml);
            // What the driver remembers of the time before is not this job's.
            gpu.samples(&mut self.nvml);
        }
    }

    /// Adds what is to be seen now.
    pub(crate) fn look(&mut self) {
        let since = self.looked.elapsed();
        self.looked = Instant::now();
        for gpu in &mut self.gpus {
            gpu.look(&mut self.nvml, since);
        }
        self.read_xids();
    }

    /// Whether the driver remembers what happens between two looks.
    pub(crate) fn is_remembered(&self) -> bool {
        self.gpus.iter().all(|gpu| gpu.has_samples)
    }

    /// What was seen so far.
    pub(crate) fn told(&self) -> Vec<GpuUsage> {
        let watched = self.looked.duration_since(self.began);
        let told = self.gpus.iter().map(|gpu| gpu.told(watched, self.shared));
        told.map(GpuUsage::bounded).collect()
    }

    fn read_xids(&mut self) {
        let Some(set) = self.events else { return };
        for _ in 0..MOST {
            let Some((device, xid)) = devices::next_xid(&mut self.nvml, set, 0) else {
                return;
            };
            let xid = narrow(xid);
            if let Some(gpu) = self.gpus.iter_mut().find(|gpu| gpu.handle == device)
                && !gpu.xids.contains(&xid)
            {
                gpu.xids.push(xid);
            }
        }
    }
}

impl Gpu {
    fn new(handle: Handle, uuid: String, name: String) -> Self {
        Self {
            handle,
            uuid,
            name,
            sampled: 0,
            has_samples: false,
            busy: Mean::default(),
            clock: Mean::default(),
            lowest_clock: None,
            first_memory: None,
            most_memory: None,
            celsius: None,
            throttled: None,
            first: Counters::default(),
            last: Counters::default(),
            xids: vec![],
        }
    }

    fn look(&mut self, nvml: &mut Nvml, since: Duration) {
        let samples = self.samples(nvml);
        let busy = if samples.is_empty() {
            self.utilization(nvml).into_iter().collect()
        } else {
            samples
        };
        for percent in &busy {
            self.busy.add(*percent);
        }
        if busy.iter().any(|percent| *percent > 0)
            && let Some(clock) = self.get_of(nvml, "nvmlDeviceGetClockInfo", SM)
        {
            self.clock.add(clock);
            self.lowest_clock = Some(self.lowest_clock.map_or(clock, |low| low.min(clock)));
        }
        self.most_memory = self.memory(nvml).max(self.most_memory);
        let celsius = self.get_of(nvml, "nvmlDeviceGetTemperature", GPU);
        self.celsius = celsius.max(self.celsius);
        if let Some(reasons) = devices::clock_reasons(nvml, self.handle) {
            let milliseconds = u32::try_from(since.as_millis()).unwrap_or(u32::MAX);
            let throttled = self.throttled.get_or_insert_default();
            throttled.add(reasons, milliseconds);
        }
        self.last = self.counters(nvml);
    }

    /// In percent, since the last look, as the driver has kept it.
    fn samples(&mut self, nvml: &mut Nvml) -> Vec<u32> {
        const NAME: [&str; 1] = ["nvmlDeviceGetSamples"];
        let (handle, since) = (self.handle, self.sampled);
        let size = move |f: GetSamples, count: &mut c_uint| unsafe {
            let mut kind = 0;
            f(
                handle,
                UTILIZATION,
                since,
                &raw mut kind,
                count,
                ptr::null_mut(),
            )
        };
        let Ok(size) = nvml.call(&NAME, size) else {
            return vec![];
        };
        let size = size.min(MOST);
        let read = move |f: GetSamples, (kind, samples): &mut (c_uint, Vec<Sample>)| unsafe {
            samples.resize(size as usize, Sample::default());
            let mut count = size;
            let to = samples.as_mut_ptr();
            let code = f(handle, UTILIZATION, since, kind, &raw mut count, to);
            samples.truncate(count as usize);
            code
        };
        let Ok((kind, samples)) = nvml.call(&NAME, read) else {
            return vec![];
        };
        self.has_samples = true;
        // The buffer may not have been filled, and times go on.
        let samples = samples.iter().filter(|sample| sample.time > since);
        let mut values = vec![];
        for sample in samples {
            self.sampled = self.sampled.max(sample.time);
            values.extend(sample.value(kind));
        }
        values
    }

    fn utilization(&self, nvml: &mut Nvml) -> Option<u32> {
        let handle = self.handle;
        let get = move |f: GetUtilization, now: &mut Utilization| unsafe { f(handle, now) };
        let now = nvml.call(&["nvmlDeviceGetUtilizationRates"], get).ok()?;
        Some(now.gpu)
    }

    /// In MiB, without what the driver keeps for itself.
    fn memory(&self, nvml: &mut Nvml) -> Option<u32> {
        let handle = self.handle;
        let get = move |f: GetMemory, memory: &mut Memory| unsafe { f(handle, memory) };
        let memory = nvml.call(&["nvmlDeviceGetMemoryInfo_v2"], get).ok()?;
        Some(narrow(memory.used >> 20))
    }

    fn get_of(&self, nvml: &mut Nvml, name: &'static str, what: c_uint) -> Option<u32> {
        let handle = self.handle;
        let get = move |f: GetOf, value: &mut c_uint| unsafe { f(handle, what, value) };
        nvml.call(&[name], get).ok()
    }

    fn counters(&self, nvml: &mut Nvml) -> Counters {
        let handle = self.handle;
        let energy = move |f: Get64, value: &mut u64| unsafe { f(handle, value) };
        let replays = move |f: Get32, value: &mut c_uint| unsafe { f(handle, value) };
        let replays = nvml.call(&["nvmlDeviceGetPcieReplayCounter"], replays);
        let energy = nvml.call(&["nvmlDeviceGetTotalEnergyConsumption"], energy);
        let mut errors = |kind: c_uint| {
            let get =
                move |f: GetErrors, count: &mut u64| unsafe { f(handle, kind, VOLATILE, count) };
            nvml.call(&["nvmlDeviceGetTotalEccErrors"], get).ok()
        };
        Counters {
            corrected: errors(CORRECTED),
            uncorrected: errors(UNCORRECTED),
            millijoules: energy.ok(),
            replays: replays.ok().map(u64::from),
        }
    }

    fn told(&self, watched: Duration, shared: bool) -> GpuUsage {
        let (first, last) = (self.first, self.last);
        let count = |first, last| grown(first, last).map(narrow);
        let own = |value: Option<u32>| value.filter(|_| !shared);
        let percent = |value: Option<u32>| own(value).and_then(|value| u8::try_from(value).ok());
        let mean = self.busy.value();
        let most = mean.map(|_| self.busy.most);
        let joules = grown(first.millijoules, last.millijoules).map(|energy| energy / 1000);
        let seconds = |milliseconds: u32| milliseconds.saturating_add(500) / 1000;
        GpuUsage {
            uuid: self.uuid.clone(),
            name: self.name.clone(),
            seconds: seconds(u32::try_from(watched.as_millis()).unwrap_or(u32::MAX)),
            busy_percent: percent(mean),
            max_busy_percent: percent(most),
            unused: most == Some(0) && watched >= JUDGED && !self.holds_more(),
            memory_mib: own(self.most_memory),
            energy_joules: joules.filter(|_| !shared),
            min_clock_mhz: self.lowest_clock,
            mean_clock_mhz: self.clock.value(),
            max_celsius: self.celsius,
            throttled: self
                .throttled
                .map(|all| <[u32; 5]>::from(all).map(seconds).into()),
            corrected_errors: count(first.corrected, last.corrected),
            uncorrected_errors: count(first.uncorrected, last.uncorrected),
            pcie_replays: count(first.replays, last.replays),
            xids: self.xids.clone(),
        }
    }

    /// Whether more of its memory was taken at a look than when the job began.
    fn holds_more(&self) -> bool {
        let more = self.most_memory.zip(self.first_memory);
        more.is_some_and(|(most, first)| most.saturating_sub(first) >= CONTEXT_MIB)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_was_not_used_where_nothing_ran_and_nothing_was_put_into_its_memory() {
        let minute = Duration::from_mins(1);
        let gpu = |busy: &[u32], first, most| {
            let mut gpu = Gpu::new(1, "GPU-1".into(), String::new());
            for percent in busy {
                gpu.busy.add(*percent);
            }
            (gpu.first_memory, gpu.most_memory) = (first, most);
            gpu
        };
        for (gpu, watched, unused) in [
            (gpu(&[0, 0], Some(4), Some(4)), minute, true),
            (gpu(&[0, 0], None, None), minute, true),
            (gpu(&[0, 1], Some(4), Some(4)), minute, false),
            // A context, and no kernel at a look.
            (gpu(&[0, 0], Some(4), Some(400)), minute, false),
            // Nobody knows how busy it was.
            (gpu(&[], Some(4), Some(4)), minute, false),
            (gpu(&[0], Some(4), Some(4)), Duration::from_secs(9), false),
        ] {
            assert_eq!(gpu.told(watched, false).unused, unused, "{:?}", gpu.busy);
        }
    }

    #[test]
    fn counts_are_of_the_job_and_time_is_rounded() {
        let mut gpu = Gpu::new(1, "GPU-1".into(), String::new());
        gpu.first = Counters {
            millijoules: Some(1_000_000),
            corrected: Some(7),
            uncorrected: None,
            replays: Some(9),
        };
        gpu.last = Counters {
            millijoules: Some(1_002_999),
            corrected: Some(9),
            uncorrected: Some(5),
            // A counter that began anew.
            replays: Some(1),
        };
        gpu.throttled = Some([1499, 0, 1500, 0, 499].into());
        let told = gpu.told(Duration::from_millis(61_500), false);
        assert_eq!((told.seconds, told.energy_joules), (62, Some(2)));
        assert_eq!(
            (
                told.corrected_errors,
                told.uncorrected_errors,
                told.pcie_replays
            ),
            (Some(2), None, Some(0))
        );
        assert_eq!(told.throttled, Some([1, 0, 2, 0, 0].into()));
    }
}
