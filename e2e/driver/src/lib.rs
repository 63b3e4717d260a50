//! A `libcuda.so.1` for tests: executes the PTX that it is given on devices that exist in memory only.
//!
//! Cargo builds it as `target/<profile>/libcuda.so`; tests put it on a program's `LD_LIBRARY_PATH` under the name
//! `libcuda.so.1`. It exports the functions that `cuda-smoke` and cudarc resolve, checks their arguments, keeps
//! contexts, modules and memory apart, and runs kernels with a small interpreter ([`ptx`]): a wrong kernel gives a
//! wrong result, a wrong address an error. It belongs in no image that is released.
//!
//! # `SIMCUDA`
//!
//! The environment variable `SIMCUDA` says what to simulate: JSON, or `@` and the path of a file with JSON, which
//! every process reads when it starts. Unset, it is the content of `/usr/local/nvidia/simcuda.json`, which the device
//! plugin puts beside the driver's folder: a container's first program may clear the environment of others. Without that
//! file, there is one healthy A100. What is not understood aborts the process.
//!
//! ```json
//! {
//!   "cudaVersion": "12.9",
//!   "devices": [
//!     {"profile": "a100", "uuid": "GPU-6d3c8a4e-3a5e-4a6c-9a51-3f6a0d1b2c3d"},
//!     {"profile": "t4", "count": 2, "computeCapability": "6.1"}
//!   ],
//!   "faults": [
//!     {"call": "cuInit", "code": 802},
//!     {"call": "cuStreamSynchronize", "code": 719, "device": 1, "nth": 2},
//!     {"call": "cuMemAlloc_v2", "hang": true}
//!   ],
//!   "storeFaults": [{"kernel": "vector_add", "nth": 1000, "flipBit": 3}]
//! }
//! ```
//!
//! | field | meaning | default |
//! |---|---|---|
//! | `cudaVersion` | newest CUDA version of the driver; newer PTX is refused with 222 | `12.9` |
//! | `devices` | in the driver's order; `[]` is a machine that lost its GPUs (`cuInit` returns 100) | one `a100` |
//! | `faults` | what goes wrong at a call | none |
//! | `storeFaults` | what goes wrong when a kernel stores | none |
//! | `productFaults` | what goes wrong when the tensor cores multiply | none |
//! | `peerFaults` | what goes wrong between devices | none |
//! | `stuckCells` | bits of memory that have their value whatever is written | none |
//! | `clock` | file that gets the nanoseconds which the process has spent in the driver's calls | none |
//! | `brokenClock` | the time between two events is no number | false |
//! | `deviceFiles` | folder of device files: a device whose `nvidia<minor>` cannot be opened is not shown | none are opened |
//! | `state` | folder where processes are counted and faults outlive them | none |
//! | `memoryEvents` | file in which a kill for want of memory is counted, as in a control group | none |
//!
//! Fields of a device: `profile` (`p100`, `v100`, `t4`, `rtx2060`, `rtx2060-wddm`, `a100`, `mig-1g`, `l4`, `h100`,
//! `gh200`, `b200`, `gb200`, `gb10`, `rtx5090`) gives all the others, which are `name`, `computeCapability`, `memoryBytes`,
//! `freeBytes`, `freedAt` (all of the memory is free from so many questions on), `multiprocessors`, `l2Bytes`,
//! `integrated`, `hostPageTables`, `managedMemory`, `concurrentManagedAccess`, `memoryPools`, `peers` (both of a pair need
//! it for peer access), `pciBusId`, and `uuid` (made from profile and ordinal). `count` repeats the device; each repetition
//! has its own made-up UUID. `minor` is the number of its device file,
//! by default the ordinal, and `startupMs` what `cuInit` takes for it. Of a MIG profile, `count` makes slices of one GPU, of
//! which a program sees the first. `CUDA_VISIBLE_DEVICES` is honoured, and faults are for devices as they are shown.
//!
//! Fields of a fault: `call` is the exported name. It strikes at every call, or only at the `nth` (from 1, for each
//! process), only on `device`, only in the first process that can create the file `once`, only in `processes` `[from, to]`
//! as `state` counts them from 1. What it does, in this order: `says` prints a text without an end of its line; `leaves` has
//! later processes get that code when they make a context on the device; `delayMs` waits; `hang` waits for ever; `crash` is
//! `abort`, `segv`, or `oom` and `nodeOom`, which count in `memoryEvents` and kill: `oom` as at the container's limit, `nodeOom`
//! as where the node has no memory left; `exit` ends the process with this code; `code` is returned in place of calling. A code from a kernel's fault (700, 719 and so on) stays with the
//! context, as the real one does.
//!
//! Fields of a store fault: at the `nth` store (from 0, in the order of threads) of `kernel`, or at each of this `value`, on
//! `device` or on all, `flipBit` inverts a bit of the value, and `moveBytes` stores it so far from where it belongs.
//!
//! Fields of a product fault: in the `nth` product (from 0, in the order of warps) of a launch of `kernel`, on `device` or on
//! all, `flipBit` inverts a bit of the first element.
//!
//! Fields of a peer fault, which is about writing `from` one device `to` another: `flipBit` inverts that bit of each copy,
//! `loseCopies` and `loseStores` let copies and kernels' stores vanish without an error, `noAccess` refuses access.
//!
//! Fields of a stuck cell: the `bit` of the byte at `offset` from where memory starts has its `value` on `device`.
//!
//! # Time
//!
//! A launch is over when `cuLaunchKernel` returns, unless the kernel looks at what others write meanwhile
//! (`ld.acquire.sys`, `ld.relaxed.sys`): such a one runs in a thread until the device is next waited for, so that two of
//! them can wait for one another.
//!
//! The same file, as `libnvidia-ml.so.1`, is the driver's management library (NVML) for the same devices; all of them,
//! whatever CUDA shows. What it says of a device is in its field `health`: `recoveryAction`, `remapPending`, `remapFailed`,
//! `eccErrors`, `sramThreshold`, `fabric` (state, status, health) and `fabricAfter` (looks until one in progress is
//! complete), `links` and `mig` and `pcie` (two values each), `clockReasons`, `xids` (told to who has registered). `null` is
//! not supported, and so are fabric, links and MIG by default. What it says of the use of a device is in its field
//! `activity`, whatever programs do: `utilization` (percents, one for each question; the last one stays) and `samples` (whether
//! the driver keeps them), `memoryUsed`, `clockMhz`, `celsius`, `watts`, `correctedErrors` and `uncorrectedErrors` and
//! `pcieReplays` (the first answer, and what each question adds), `xids` (told after the second question for the utilisation).
//! Faults strike its functions as the driver's.
//!
//! A missing function is made with [`without_symbol`], a truncated library by cutting the file.

mod activity;
mod api;
mod clock;
mod config;
mod driver;
mod errors;
mod faults;
mod memory;
mod nvml;
mod peers;
mod process;
mod profiles;
pub mod ptx;
mod view;

/// The bytes of a shared library whose dynamic symbol `name` nobody can find any more, or `None` where it has none.
///
/// The symbol stays and gets another name of the same length, so `dlsym` fails as it does with a library that never
/// had it.
#[must_use]
pub fn without_symbol(library: &[u8], name: &str) -> Option<Vec<u8>> {
    let entry = [b"\0", name.as_bytes(), b"\0"].concat();
    let mut changed = library.to_vec();
    let mut found = false;
    for start in 0..library.len() {
        if library[start..].starts_with(&entry) {
            changed[start + 1] = b'~';
            found = true;
        }
    }
    found.then_some(changed)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_symbol_is_renamed_whole_only() {
        let library = b"\0cuInitialise\0cuInit\0";
        let changed = super::without_symbol(library, "cuInit").unwrap();
        assert_eq!(changed, b"\0cuInitialise\0~uInit\0");
        assert_eq!(super::without_symbol(library, "cuMemAlloc"), None);
    }
}
