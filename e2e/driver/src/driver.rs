//! The driver behind the exported functions: devices, contexts, modules, memory.

use std::cell::Cell;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use gate_report::Version;

use crate::config::{CONFIG, Device};
use crate::errors::{
    ERROR_INVALID_CONTEXT, ERROR_INVALID_DEVICE, ERROR_INVALID_HANDLE, ERROR_INVALID_PTX,
    ERROR_INVALID_VALUE, ERROR_JIT_COMPILATION_DISABLED, ERROR_NO_BINARY_FOR_GPU, ERROR_NO_DEVICE,
    ERROR_NOT_FOUND, ERROR_NOT_INITIALIZED, ERROR_NOT_SUPPORTED, ERROR_OUT_OF_MEMORY,
    ERROR_UNKNOWN, ERROR_UNSUPPORTED_PTX_VERSION, Outcome, is_sticky,
};
use crate::memory::{Memory, Region};
use crate::ptx::{self, Launch, Module};
use crate::view::View;

static DRIVER: LazyLock<Mutex<Driver>> = LazyLock::new(Mutex::default);

thread_local! {
    /// The device whose context is current on this thread.
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Handles are an index with a kind on top, so that one kind is never taken for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Context = 0x51,
    Module,
    Function,
    Stream,
    Event,
}

impl Kind {
    pub(crate) fn handle(self, index: usize) -> usize {
        (self as usize) << 32 | index
    }

    pub(crate) fn index(self, handle: usize) -> Outcome<usize> {
        if handle >> 32 == self as usize {
            Ok(handle & 0xffff_ffff)
        } else {
            Err(ERROR_INVALID_HANDLE)
        }
    }
}

/// All state of the process.
#[derive(Default)]
pub(crate) struct Driver {
    initialised: bool,
    /// The code that a context answers since a fault, by device.
    poison: Vec<Option<i32>>,
    pub(crate) retained: Vec<bool>,
    /// Whose memory each device reaches besides its own.
    pub(crate) peers: Vec<Vec<usize>>,
    /// A kernel on each device that waits for another one, and so runs beside this thread.
    running: Vec<Option<JoinHandle<Outcome>>>,
    pub(crate) memory: Memory,
    /// How often each device's free memory was asked for.
    asked_for_free: Vec<u32>,
    modules: Vec<(usize, Arc<Module>)>,
    /// Module and kernel.
    functions: Vec<(usize, usize)>,
    /// Device of each.
    streams: Vec<usize>,
    /// What each recorded last.
    events: Vec<Option<Instant>>,
}

/// The driver, for one call.
pub(crate) fn driver() -> MutexGuard<'static, Driver> {
    DRIVER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The current device, for faults that are meant for one.
pub(crate) fn current() -> Option<usize> {
    CURRENT.get()
}

/// A device by its handle, which is its ordinal.
pub(crate) fn device(handle: i32) -> Outcome<(usize, &'static Device)> {
    if !driver().initialised {
        return Err(ERROR_NOT_INITIALIZED);
    }
    let ordinal = usize::try_from(handle).map_err(|_| ERROR_INVALID_DEVICE)?;
    let device = CONFIG.devices.get(ordinal).ok_or(ERROR_INVALID_DEVICE)?;
    Ok((ordinal, device))
}

impl Driver {
    pub(crate) fn init(&mut self) -> Outcome {
        if CONFIG.devices.is_empty() {
            return Err(ERROR_NO_DEVICE);
        }
        std::thread::sleep(CONFIG.startup);
        self.initialised = true;
        self.poison.resize(CONFIG.devices.len(), None);
        self.retained.resize(CONFIG.devices.len(), false);
        self.peers.resize(CONFIG.devices.len(), Vec::new());
        self.running.resize_with(CONFIG.devices.len(), || None);
        self.asked_for_free.resize(CONFIG.devices.len(), 0);
        Ok(())
    }

    pub(crate) fn count(&self) -> Outcome<usize> {
        if self.initialised {
            Ok(CONFIG.devices.len())
        } else {
            Err(ERROR_NOT_INITIALIZED)
        }
    }

    pub(crate) fn retain(&mut self, ordinal: usize) -> usize {
        self.retained[ordinal] = true;
        Kind::Context.handle(ordinal)
    }

    pub(crate) fn set_current(&mut self, context: usize) -> Outcome {
        if !self.initialised {
            return Err(ERROR_NOT_INITIALIZED);
        }
        if context == 0 {
            CURRENT.set(None);
            return Ok(());
        }
        let ordinal = Kind::Context
            .index(context)
            .map_err(|_| ERROR_INVALID_CONTEXT)?;
        if self.retained.get(ordinal) != Some(&true) {
            return Err(ERROR_INVALID_CONTEXT);
        }
        CURRENT.set(Some(ordinal));
        Ok(())
    }

    /// The current device, if its context still answers.
    pub(crate) fn context(&self) -> Outcome<usize> {
        if !self.initialised {
            return Err(ERROR_NOT_INITIALIZED);
        }
        let ordinal = CURRENT.get().ok_or(ERROR_INVALID_CONTEXT)?;
        match self.poison.get(ordinal) {
            Some(Some(code)) => Err(*code),
            _ => Ok(ordinal),
        }
    }

    /// Keeps a kernel's fault with the context.
    pub(crate) fn poison(&mut self, code: i32) {
        if let Some(ordinal) = CURRENT.get() {
            self.poison_device(ordinal, code);
        }
    }

    fn poison_device(&mut self, ordinal: usize, code: i32) {
        if let Some(poison) = self.poison.get_mut(ordinal)
            && is_sticky(code)
        {
            *poison = Some(code);
        }
    }

    /// Waits until a device has done what it was given; the code of a kernel that failed.
    pub(crate) fn finish(&mut self, ordinal: usize) -> Outcome {
        if let Some(running) = self.running.get_mut(ordinal).and_then(Option::take)
            && let Err(code) = running.join().unwrap_or(Err(ERROR_UNKNOWN))
        {
            self.poison_device(ordinal, code);
            return Err(code);
        }
        Ok(())
    }

    /// The current device, when it has done what it was given, if its context still answers.
    pub(crate) fn idle(&mut self) -> Outcome<usize> {
        let ordinal = self.context()?;
        self.finish(ordinal)?;
        Ok(ordinal)
    }

    /// Free and total bytes, for whoever asks.
    pub(crate) fn ask_memory(&mut self) -> Outcome<(u64, u64)> {
        let ordinal = self.context()?;
        self.asked_for_free[ordinal] = self.asked_for_free[ordinal].saturating_add(1);
        self.memory_info()
    }

    fn memory_info(&self) -> Outcome<(u64, u64)> {
        let ordinal = self.context()?;
        let device = &CONFIG.devices[ordinal];
        let is_freed = |at| self.asked_for_free[ordinal] >= at;
        let free = if device.freed_at.is_some_and(is_freed) {
            device.memory_bytes
        } else {
            device.free_bytes
        };
        let free = free.saturating_sub(self.memory.used(ordinal));
        Ok((free, device.memory_bytes))
    }

    /// Allocates in the order of a stream, which here is at once.
    pub(crate) fn allocate_async(&mut self, bytes: u64, stream: usize) -> Outcome<u64> {
        self.check_stream(stream)?;
        let ordinal = self.idle()?;
        if !CONFIG.devices[ordinal].memory_pools {
            return Err(ERROR_NOT_SUPPORTED);
        }
        self.allocate(bytes)
    }

    pub(crate) fn allocate(&mut self, bytes: u64) -> Outcome<u64> {
        let ordinal = self.room_for(bytes)?;
        self.memory.allocate(ordinal, bytes)
    }

    pub(crate) fn allocate_managed(&mut self, bytes: u64) -> Outcome<u64> {
        let ordinal = self.room_for(bytes)?;
        if !CONFIG.devices[ordinal].managed_memory {
            return Err(ERROR_NOT_SUPPORTED);
        }
        self.memory.allocate_managed(ordinal, bytes)
    }

    fn room_for(&self, bytes: u64) -> Outcome<usize> {
        let (free, _) = self.memory_info()?;
        if bytes > free {
            return Err(ERROR_OUT_OF_MEMORY);
        }
        self.context()
    }

    pub(crate) fn memory(&mut self) -> Outcome<&mut Memory> {
        self.idle()?;
        Ok(&mut self.memory)
    }

    /// Whether a hint on managed memory may name this device.
    pub(crate) fn check_hint(&self, address: u64, bytes: u64, target: i32) -> Outcome {
        const HOST: i32 = -1;
        self.context()?;
        self.memory
            .region(address, bytes)
            .filter(Region::is_managed)
            .ok_or(ERROR_INVALID_VALUE)?;
        if target == HOST {
            return Ok(());
        }
        let ordinal = usize::try_from(target).map_err(|_| ERROR_INVALID_DEVICE)?;
        match CONFIG.devices.get(ordinal) {
            Some(device) if device.concurrent_managed_access => Ok(()),
            // What WDDM answers.
            _ => Err(ERROR_INVALID_DEVICE),
        }
    }

    /// Compiles PTX for the current device. The error comes with what the compiler says.
    pub(crate) fn load_module(&mut self, text: &str) -> Result<usize, (i32, String)> {
        let ordinal = self.context().map_err(|code| (code, String::new()))?;
        if std::env::var("CUDA_DISABLE_PTX_JIT").is_ok_and(|value| value == "1") {
            return Err((ERROR_JIT_COMPILATION_DISABLED, String::new()));
        }
        let module = ptx::parse(text).map_err(|error| (ERROR_INVALID_PTX, error.to_string()))?;
        let (major, minor) = newest_ptx(CONFIG.cuda_version);
        if module.version > (major, minor) {
            let (found_major, found_minor) = module.version;
            return Err((
                ERROR_UNSUPPORTED_PTX_VERSION,
                format!(
                    "ptxas application ptx input; fatal   : Unsupported .version {found_major}.{found_minor}; current version is '{major}.{minor}'"
                ),
            ));
        }
        if !runs_on(&module, CONFIG.devices[ordinal].capability) {
            return Err((ERROR_NO_BINARY_FOR_GPU, String::new()));
        }
        self.modules.push((ordinal, Arc::new(module)));
        Ok(Kind::Module.handle(self.modules.len() - 1))
    }

    pub(crate) fn function(&mut self, module: usize, name: &str) -> Outcome<usize> {
        let ordinal = self.context()?;
        let index = Kind::Module.index(module)?;
        let (owner, module) = self.modules.get(index).ok_or(ERROR_INVALID_HANDLE)?;
        if *owner != ordinal {
            return Err(ERROR_INVALID_HANDLE);
        }
        let found = module.kernels.iter().position(|kernel| kernel.name == name);
        let kernel = found.ok_or(ERROR_NOT_FOUND)?;
        self.functions.push((index, kernel));
        Ok(Kind::Function.handle(self.functions.len() - 1))
    }

    /// Offset and size of a kernel's parameters, for whoever collects them.
    pub(crate) fn params(&self, function: usize) -> Outcome<Vec<(usize, usize)>> {
        let (_, kernel) = self.kernel(function)?;
        Ok(kernel
            .params
            .iter()
            .map(|param| (param.offset, param.size))
            .collect())
    }

    fn kernel(&self, function: usize) -> Outcome<(usize, &ptx::Kernel)> {
        let index = Kind::Function.index(function)?;
        let (module, kernel) = *self.functions.get(index).ok_or(ERROR_INVALID_HANDLE)?;
        let (owner, module) = &self.modules[module];
        Ok((*owner, &module.kernels[kernel]))
    }

    /// Runs a kernel to its end, or starts it where it waits for another one: both have to run at once. A fault of its own
    /// shows at the next call, as with the real one. What the device was given before is over by then.
    pub(crate) fn launch(
        &mut self,
        function: usize,
        grid: [u32; 3],
        block: [u32; 3],
        params: &[u8],
    ) -> Outcome {
        let ordinal = self.idle()?;
        let index = Kind::Function.index(function)?;
        let (module, kernel) = *self.functions.get(index).ok_or(ERROR_INVALID_HANDLE)?;
        let (owner, module) = &self.modules[module];
        if *owner != ordinal {
            return Err(ERROR_INVALID_HANDLE);
        }
        let threads = block
            .iter()
            .try_fold(1_u32, |product, size| product.checked_mul(*size));
        if grid.contains(&0) || !threads.is_some_and(|threads| (1..=1024).contains(&threads)) {
            return Err(ERROR_INVALID_VALUE);
        }
        let peers = self.peers[ordinal].clone();
        if module.kernels[kernel].waits() {
            // A copy: that kernel meets no memory that comes after it.
            let (module, memory, params) = (module.clone(), self.memory.clone(), params.to_vec());
            self.running[ordinal] = Some(thread::spawn(move || {
                let kernel = &module.kernels[kernel];
                let mut view = View::new(&memory, ordinal, &peers, &kernel.name);
                let launch = Launch {
                    kernel,
                    grid,
                    block,
                    params: &params,
                };
                ptx::run(&launch, &mut view)
            }));
            return Ok(());
        }
        let kernel = &module.kernels[kernel];
        let mut view = View::new(&self.memory, ordinal, &peers, &kernel.name);
        let launch = Launch {
            kernel,
            grid,
            block,
            params,
        };
        if let Err(code) = ptx::run(&launch, &mut view) {
            self.poison(code);
        }
        Ok(())
    }

    pub(crate) fn stream(&mut self) -> Outcome<usize> {
        let ordinal = self.context()?;
        self.streams.push(ordinal);
        Ok(Kind::Stream.handle(self.streams.len() - 1))
    }

    /// The default stream is 0.
    pub(crate) fn check_stream(&self, stream: usize) -> Outcome {
        let ordinal = self.context()?;
        if stream == 0 || self.streams.get(Kind::Stream.index(stream)?) == Some(&ordinal) {
            return Ok(());
        }
        Err(ERROR_INVALID_HANDLE)
    }

    pub(crate) fn event(&mut self) -> Outcome<usize> {
        self.context()?;
        self.events.push(None);
        Ok(Kind::Event.handle(self.events.len() - 1))
    }

    pub(crate) fn record(&mut self, event: usize) -> Outcome {
        self.idle()?;
        let index = Kind::Event.index(event)?;
        let event = self.events.get_mut(index).ok_or(ERROR_INVALID_HANDLE)?;
        *event = Some(Instant::now());
        Ok(())
    }

    /// Seconds between two events that were recorded.
    pub(crate) fn elapsed(&self, start: usize, end: usize) -> Outcome<f32> {
        self.context()?;
        let at = |event| {
            let index = Kind::Event.index(event)?;
            self.events
                .get(index)
                .copied()
                .flatten()
                .ok_or(ERROR_INVALID_HANDLE)
        };
        let seconds = at(end)?.duration_since(at(start)?).as_secs_f32();
        Ok(if CONFIG.broken_clock {
            f32::NAN
        } else {
            seconds
        })
    }
}

/// The newest PTX that a driver of this CUDA version reads.
fn newest_ptx(cuda: Version) -> (u32, u32) {
    match (cuda.major, cuda.minor) {
        (13.., minor) => (9, minor),
        // 12.6 brought none.
        (12, minor @ 0..=5) => (8, minor),
        (12, minor) => (8, minor - 1),
        (11, minor) => (7, minor),
        _ => (6, 5),
    }
}

/// PTX runs on its target and whatever is newer; with `a` on that alone, with `f` within its generation.
fn runs_on(module: &Module, capability: Version) -> bool {
    let device = 10 * capability.major + capability.minor;
    match module.suffix {
        Some('a') => module.target == device,
        Some(_) => module.target / 10 == capability.major && module.target <= device,
        None => module.target <= device,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn ptx_versions_of_drivers() {
        let table = [
            ("11.8", (7, 8)),
            ("12.0", (8, 0)),
            ("12.4", (8, 4)),
            ("12.6", (8, 5)),
            ("12.9", (8, 8)),
            ("13.0", (9, 0)),
        ];
        for (cuda, ptx) in table {
            assert_eq!(newest_ptx(version(cuda)), ptx, "CUDA {cuda}");
        }
    }

    #[test]
    fn targets_run_on_what_is_newer() {
        let module = |target, suffix| Module {
            version: (8, 0),
            target,
            suffix,
            kernels: Vec::new(),
        };
        let table = [
            (module(70, None), "6.1", false),
            (module(70, None), "7.0", true),
            (module(70, None), "12.0", true),
            (module(90, Some('a')), "9.0", true),
            (module(90, Some('a')), "10.0", false),
            (module(100, Some('f')), "10.3", true),
            (module(100, Some('f')), "12.0", false),
        ];
        for (module, capability, expected) in table {
            assert_eq!(
                runs_on(&module, version(capability)),
                expected,
                "{module:?} on {capability}"
            );
        }
    }
}
