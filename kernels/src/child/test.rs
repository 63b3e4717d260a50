//! The steps of the test, in their order.

use std::ffi::{CStr, c_int};
use std::thread;
use std::time::Instant;

use gate_report::{Device, DeviceStep, Finding, Step, Version, Warning};

use super::calls::{Attribute, Called, Driver};
use super::count;
use super::functions::Handle;
use super::library;
use super::memory_walk::WalkKernels;
use super::pattern::{self, CANARY, Difference, ELEMENTS, Vectors};
use super::peers::{self, Tested};
use crate::args::{Enforcement, Part, TestArgs};
use crate::protocol::{Event, send};
use crate::times::milliseconds;

/// PTX, with the zero at its end that the driver looks for.
macro_rules! ptx {
    ($file:literal) => {
        match CStr::from_bytes_with_nul(
            concat!(include_str!(concat!("../../ptx/", $file)), "\0").as_bytes(),
        ) {
            Ok(text) => text,
            Err(_) => c"",
        }
    };
}

const VECTOR_ADD: &CStr = ptx!("vector_add.ptx");
pub(super) const MEMORY_WALK: &CStr = ptx!("memory_walk.ptx");
const TENSOR_CORES: &CStr = ptx!("tensor_cores.ptx");
const PING_PONG: &CStr = ptx!("ping_pong.ptx");

/// The first compute capability with tensor cores.
const FIRST_WITH_TENSOR_CORES: Version = Version::new(7, 0);

/// Threads of a block.
pub(super) const THREADS: u32 = 256;

/// Elements of the round trip through managed memory: a few pages.
const MANAGED_ELEMENTS: usize = 16 * 1024 + 3;

/// Tests everything that the driver shows.
pub(super) fn all_devices(args: &TestArgs) -> Called<()> {
    // While the driver comes up: a hundred milliseconds at least.
    let vectors = thread::Builder::new().spawn(|| Vectors::new(ELEMENTS));
    let functions = library::load(&args.library_root)?;
    let driver = Driver::new(&functions);
    let started = Instant::now();
    driver.init()?;
    send(&Event::Initialised {
        ms: milliseconds(started),
    });
    check_version(driver.at(Step::DriverVersion), args)?;
    let count = count::check(driver.at(Step::DeviceCount), args)?;
    // All properties first: a report shows every device, whichever fails.
    let mut devices = (0..count)
        .map(|ordinal| properties(driver.at(Step::Properties).on(ordinal), ordinal))
        .collect::<Called<Vec<_>>>()?;
    for device in &devices {
        check_properties(
            driver.at(Step::Properties).on(device.report.ordinal),
            device,
            args,
        )?;
    }
    let made = vectors.ok().and_then(|thread| thread.join().ok());
    let vectors = made.unwrap_or_else(|| Vectors::new(ELEMENTS));
    let mut tested = Vec::new();
    for device in &mut devices {
        let driver = driver.on(device.report.ordinal);
        let result = Bench {
            driver,
            device,
            args,
        }
        .run(&vectors);
        send(&Event::Device(device.report.clone()));
        tested.push(result?);
    }
    if !args.has(Part::Peers) {
        return Ok(());
    }
    peers::talk(driver.at(Step::Peers), &tested, args)
}

fn check_version(driver: Driver, args: &TestArgs) -> Called<()> {
    let version = Version::from_cuda(driver.driver_version()?);
    send(&Event::CudaVersion {
        version: version.to_string(),
    });
    if version < args.min_cuda_version {
        return Err(driver
            .stop(
                Finding::CudaVersion,
                format!(
                    "the driver supports CUDA {version}, and {} or newer is asked for",
                    args.min_cuda_version
                ),
            )
            .into());
    }
    Ok(())
}

/// A device: what the report says of it, and the driver's handle.
struct Known {
    handle: c_int,
    capability: Version,
    report: Device,
}

fn properties(driver: Driver, ordinal: u32) -> Called<Known> {
    let handle = driver.device(ordinal)?;
    let name = driver.device_name(handle)?;
    let attribute = |attribute| {
        driver
            .attribute(attribute, handle)
            .map(|value| u32::try_from(value).unwrap_or(0))
    };
    let capability = Version::new(
        attribute(Attribute::ComputeCapabilityMajor)?,
        attribute(Attribute::ComputeCapabilityMinor)?,
    );
    let report = Device {
        ordinal,
        integrated: Some(attribute(Attribute::Integrated)? != 0),
        host_page_tables: Some(attribute(Attribute::HostPageTables)? != 0),
        uuid: uuid(driver.uuid(handle)?, &name),
        pci_bus_id: Some(driver.pci_bus_id(handle)?),
        compute_capability: capability.to_string(),
        managed_memory: attribute(Attribute::ManagedMemory)? != 0,
        concurrent_managed_access: attribute(Attribute::ConcurrentManagedAccess)? != 0,
        multiprocessors: Some(attribute(Attribute::Multiprocessors)?),
        l2_cache_bytes: Some(attribute(Attribute::L2CacheSize)?.into()),
        memory_pools: Some(attribute(Attribute::MemoryPools)? != 0),
        name,
        ..Device::default()
    };
    send(&Event::Device(report.clone()));
    Ok(Known {
        handle,
        capability,
        report,
    })
}

/// As nvidia-smi writes it. A MIG slice has `MIG` and its size in its name.
fn uuid(bytes: [u8; 16], name: &str) -> String {
    let kind = if name.contains(" MIG ") { "MIG" } else { "GPU" };
    let digits = format!("{:032x}", u128::from_be_bytes(bytes));
    let groups = [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| &digits[range]);
    format!("{kind}-{}", groups.join("-"))
}

fn check_properties(driver: Driver, device: &Known, args: &TestArgs) -> Called<()> {
    let name = &device.report.name;
    if device.capability < args.min_compute_capability {
        return Err(driver
            .stop(
                Finding::ComputeCapability,
                format!(
                    "{name} has compute capability {}, and {} or newer is asked for",
                    device.capability, args.min_compute_capability
                ),
            )
            .into());
    }
    if !device.report.concurrent_managed_access {
        if args.managed_memory == Enforcement::Require {
            return Err(driver
                .stop(
                    Finding::ManagedMemory,
                    format!("{name} has no concurrent managed access"),
                )
                .into());
        }
        send(&Event::Warning(Warning {
            reason: "NoConcurrentManagedAccess".into(),
            message: format!(
                "{name} has no concurrent managed access (as under WDDM and WSL2): cuMemAdvise and cuMemPrefetchAsync \
                 will fail there, which is the platform's limit and no defect."
            ),
            device: Some(device.report.ordinal),
        }));
    }
    Ok(())
}

/// A device under test.
pub(super) struct Bench<'a> {
    pub(super) driver: Driver<'a>,
    device: &'a mut Known,
    pub(super) args: &'a TestArgs,
}

/// The kernels, loaded.
struct Kernels {
    vector_add: Handle,
    walk: WalkKernels,
    ping_pong: Handle,
    /// Where there are tensor cores.
    tensor_multiply: Option<Handle>,
}

impl Bench<'_> {
    fn run(&mut self, vectors: &Vectors) -> Called<Tested> {
        let handle = self.device.handle;
        let context = self.step(Step::Context, |driver| driver.make_context(handle))?;
        let free = self.room()?;
        let kernels = self.load()?;
        let stream = self.driver.at(Step::Context).stream()?;
        if self.args.has(Part::Kernel) {
            self.vector_add(vectors, kernels.vector_add, stream)?;
        }
        if self.args.has(Part::MemoryWalk)
            && let Some(room) = self.memory_walk(free, kernels.walk, stream)?
            && !self.is_shared()
        {
            self.copies(room, vectors)?;
        }
        if let Some(kernel) = kernels.tensor_multiply
            && self.args.has(Part::TensorCores)
        {
            self.tensor_cores(kernel, stream)?;
        }
        if self.device.report.concurrent_managed_access && self.args.has(Part::ManagedMemory) {
            self.managed_memory(kernels.vector_add, stream)?;
        }
        if self.args.has(Part::MemoryPool) {
            self.memory_pool(kernels.walk, stream)?;
        }
        Ok(Tested {
            ordinal: self.device.report.ordinal,
            uuid: self.device.report.uuid.clone(),
            handle,
            context,
            stream,
            walk: kernels.walk,
            ping_pong: kernels.ping_pong,
        })
    }

    fn load(&mut self) -> Called<Kernels> {
        let has_tensor_cores = self.device.capability >= FIRST_WITH_TENSOR_CORES;
        self.step(Step::ModuleLoad, |driver| {
            let module = driver.load_module(VECTOR_ADD)?;
            let vector_add = driver.kernel(module, c"vector_add")?;
            let module = driver.load_module(MEMORY_WALK)?;
            let walk = WalkKernels {
                fill: driver.kernel(module, c"memory_fill")?,
                check: driver.kernel(module, c"memory_check")?,
            };
            let module = driver.load_module(PING_PONG)?;
            let ping_pong = driver.kernel(module, c"ping_pong")?;
            let tensor_multiply = if has_tensor_cores {
                let module = driver.load_module(TENSOR_CORES)?;
                Some(driver.kernel(module, c"tensor_multiply")?)
            } else {
                None
            };
            Ok(Kernels {
                vector_add,
                walk,
                ping_pong,
                tensor_multiply,
            })
        })
    }

    /// Whether others use the GPU too, or it is a slice: then it is not for us to fill its memory or its link.
    pub(super) fn is_shared(&self) -> bool {
        self.args.shared || self.device.report.uuid.starts_with("MIG-")
    }

    /// Whether the device's memory is the host's as well.
    pub(super) fn is_hosts_too(&self) -> bool {
        let device = &self.device.report;
        device.integrated == Some(true) || device.host_page_tables == Some(true)
    }

    /// Bytes of the cache between multiprocessors and memory.
    pub(super) fn l2_bytes(&self) -> u64 {
        self.device.report.l2_cache_bytes.unwrap_or(0)
    }

    /// What the report says of the device.
    pub(super) fn report(&mut self) -> &mut Device {
        &mut self.device.report
    }

    /// Runs a step and notes its time.
    pub(super) fn step<T>(
        &mut self,
        step: Step,
        run: impl FnOnce(Driver) -> Called<T>,
    ) -> Called<T> {
        let started = Instant::now();
        let value = run(self.driver.at(step))?;
        self.note(step, milliseconds(started));
        Ok(value)
    }

    pub(super) fn note(&mut self, step: Step, ms: f64) {
        self.device.report.steps.push(DeviceStep { step, ms });
    }

    fn vector_add(&mut self, vectors: &Vectors, kernel: Handle, stream: Handle) -> Called<()> {
        let [a, b, out] = self.step(Step::Allocate, |driver| {
            Ok([
                driver.allocate(vectors.a.len())?,
                driver.allocate(vectors.b.len())?,
                driver.allocate(vectors.before.len())?,
            ])
        })?;
        self.step(Step::CopyToDevice, |driver| {
            driver.copy_to_device(a, &vectors.a)?;
            driver.copy_to_device(b, &vectors.b)?;
            driver.copy_to_device(out, &vectors.before)
        })?;
        let (start, end) = (
            self.driver.at(Step::Launch).event()?,
            self.driver.at(Step::Launch).event()?,
        );
        self.step(Step::Launch, |driver| {
            driver.record(start, stream)?;
            launch(
                driver,
                kernel,
                stream,
                [out.word(CANARY), a.address, b.address],
                vectors.a.len(),
            )?;
            driver.record(end, stream)
        })?;
        self.driver.at(Step::Synchronize).synchronize(stream)?;
        // The device's own clock, not ours.
        let ms = self.driver.at(Step::Synchronize).elapsed(start, end)?;
        self.note(Step::Synchronize, crate::times::rounded(ms));
        let mut found = vec![0; vectors.after.len()];
        self.step(Step::CopyToHost, |driver| {
            driver.copy_to_host(&mut found, out)
        })?;
        self.step(Step::Compare, |driver| {
            driver.announce();
            judge(driver, "vector_add", &found, &vectors.after)
        })?;
        Ok(())
    }

    /// The same kernel on memory that host and device share, with the hints that unified-memory programs use.
    fn managed_memory(&mut self, kernel: Handle, stream: Handle) -> Called<()> {
        let handle = self.device.handle;
        let result = self.step(Step::ManagedMemory, |driver| {
            let vectors = Vectors::new(MANAGED_ELEMENTS);
            let mut memory = [
                driver.allocate_managed(vectors.before.len())?,
                driver.allocate_managed(vectors.a.len())?,
                driver.allocate_managed(vectors.b.len())?,
            ];
            for (memory, words) in memory
                .iter_mut()
                .zip([&vectors.before, &vectors.a, &vectors.b])
            {
                memory.as_mut_slice().copy_from_slice(words);
                driver.prefer(memory, handle)?;
                driver.prefetch(memory, handle, stream)?;
            }
            let [out, a, b] = &mut memory;
            let addresses = [out.buffer.word(CANARY), a.buffer.address, b.buffer.address];
            launch(driver, kernel, stream, addresses, vectors.a.len())?;
            driver.synchronize(stream)?;
            judge(driver, "managed memory", out.as_mut_slice(), &vectors.after)
        });
        match result {
            Err(stop) if self.driver.at(Step::ManagedMemory).is_skip(&stop) => {
                if self.args.managed_memory == Enforcement::Require {
                    let driver = self.driver.at(Step::ManagedMemory);
                    return Err(driver.stop(Finding::ManagedMemory, stop.detail).into());
                }
                send(&Event::Warning(Warning {
                    reason: "ManagedMemorySkipped".into(),
                    message: format!(
                        "{}: this platform has no managed-memory hints, which is no defect.",
                        stop.detail
                    ),
                    device: Some(self.device.report.ordinal),
                }));
                Ok(())
            }
            result => result,
        }
    }
}

/// Compares an output with what it must be.
pub(super) fn judge(driver: Driver, what: &str, found: &[u32], expected: &[u32]) -> Called<()> {
    pattern::compare(found, expected, CANARY).map_err(|difference| {
        let (finding, text) = match difference {
            Difference::Result(text) => (Finding::WrongResult, text),
            Difference::Canary(text) => (Finding::BrokenCanary, text),
        };
        driver.stop(finding, format!("{what}: {text}")).into()
    })
}

fn launch(
    driver: Driver,
    kernel: Handle,
    stream: Handle,
    addresses: [u64; 3],
    elements: usize,
) -> Called<()> {
    let [out, a, b] = addresses;
    let n = u32::try_from(elements).unwrap_or(u32::MAX);
    driver.launch(
        kernel,
        n.div_ceil(THREADS),
        THREADS,
        stream,
        &mut [out, a, b, u64::from(n)],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_are_embedded_whole() {
        for ptx in [VECTOR_ADD, MEMORY_WALK, TENSOR_CORES, PING_PONG] {
            let text = ptx.to_str().unwrap();
            assert!(
                text.contains(".version 8.0")
                    && text.contains(".target sm_70")
                    && text.trim_end().ends_with('}')
            );
        }
    }

    #[test]
    fn uuids_are_written_as_nvidia_smi_does() {
        let bytes = std::array::from_fn(|i| u8::try_from(i).unwrap() * 0x11);
        assert_eq!(
            uuid(bytes, "NVIDIA A100"),
            "GPU-00112233-4455-6677-8899-aabbccddeeff"
        );
        assert!(uuid(bytes, "NVIDIA A100 MIG 1g.5gb").starts_with("MIG-00112233-"));
    }
}
