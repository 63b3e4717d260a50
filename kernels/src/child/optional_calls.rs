//! Calls that a driver or a platform may lack: managed memory, memory in the order of a stream, peers.

use std::ffi::c_int;

use cudarc::driver::sys::{CUmem_advise, CUmemAttach_flags, CUmemLocationType, CUresult};

use super::calls::{Buffer, Called, Driver};
use super::functions::{Handle, Location};
use crate::protocol::Cause;

/// Memory that host and device share.
pub(super) struct Managed {
    pub(super) buffer: Buffer,
}

impl Managed {
    /// The host's view. Only while no kernel runs: the borrow says so for `self`, the caller for the device.
    pub(super) fn as_mut_slice(&mut self) -> &mut [u32] {
        // SAFETY: the driver gave so many bytes at this address, aligned to 256, to host and device alike.
        unsafe {
            std::slice::from_raw_parts_mut(self.buffer.address as *mut u32, self.buffer.words)
        }
    }
}

fn on_device(device: c_int) -> Location {
    Location {
        kind: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE as c_int,
        id: device,
    }
}

impl Driver<'_> {
    pub(super) fn allocate_managed(self, words: usize) -> Called<Managed> {
        const ATTACH_GLOBAL: u32 = CUmemAttach_flags::CU_MEM_ATTACH_GLOBAL as u32;
        let allocate = self.function("cuMemAllocManaged", self.functions.cuMemAllocManaged)?;
        let mut address = 0;
        // SAFETY: writes one address.
        self.call("cuMemAllocManaged", |_| unsafe {
            allocate(&raw mut address, 4 * words, ATTACH_GLOBAL)
        })?;
        Ok(Managed {
            buffer: Buffer { address, words },
        })
    }

    /// Says that the memory had best live on the device. A driver may have the first form of the call or the second.
    pub(super) fn prefer(self, memory: &Managed, device: c_int) -> Called<()> {
        const SET_PREFERRED_LOCATION: c_int =
            CUmem_advise::CU_MEM_ADVISE_SET_PREFERRED_LOCATION as c_int;
        let Buffer { address, words } = memory.buffer;
        if let Some(advise) = self.functions.cuMemAdvise {
            // SAFETY: a hint on memory that is allocated.
            return self.call("cuMemAdvise", |_| unsafe {
                advise(address, 4 * words, SET_PREFERRED_LOCATION, device)
            });
        }
        let advise = self.function("cuMemAdvise", self.functions.cuMemAdvise_v2)?;
        // SAFETY: as above.
        self.call("cuMemAdvise_v2", |_| unsafe {
            advise(
                address,
                4 * words,
                SET_PREFERRED_LOCATION,
                on_device(device),
            )
        })
    }

    /// Moves the memory to the device. A driver may have the first form of the call or the second.
    pub(super) fn prefetch(self, memory: &Managed, device: c_int, stream: Handle) -> Called<()> {
        let Buffer { address, words } = memory.buffer;
        if let Some(prefetch) = self.functions.cuMemPrefetchAsync {
            // SAFETY: moves memory that is allocated; its contents stay.
            return self.call("cuMemPrefetchAsync", |_| unsafe {
                prefetch(address, 4 * words, device, stream)
            });
        }
        let prefetch = self.function("cuMemPrefetchAsync", self.functions.cuMemPrefetchAsync_v2)?;
        // SAFETY: as above.
        self.call("cuMemPrefetchAsync_v2", |_| unsafe {
            prefetch(address, 4 * words, on_device(device), 0, stream)
        })
    }

    /// Memory from the device's pool, there from its turn in the stream on.
    pub(super) fn allocate_async(self, words: usize, stream: Handle) -> Called<Buffer> {
        let allocate = self.function("cuMemAllocAsync", self.functions.cuMemAllocAsync)?;
        let mut address = 0;
        // SAFETY: writes one address; takes a handle that the driver gave.
        self.call("cuMemAllocAsync", |_| unsafe {
            allocate(&raw mut address, 4 * words, stream)
        })?;
        Ok(Buffer { address, words })
    }

    /// Gives it back, when its turn comes.
    pub(super) fn free_async(self, buffer: Buffer, stream: Handle) -> Called<()> {
        let free = self.function("cuMemFreeAsync", self.functions.cuMemFreeAsync)?;
        // SAFETY: it was allocated so, and nobody uses it behind this turn of the stream.
        self.call("cuMemFreeAsync", |_| unsafe {
            free(buffer.address, stream)
        })
    }

    /// Whether one device can be given access to the memory of another.
    pub(super) fn can_access_peer(self, device: c_int, peer: c_int) -> Called<bool> {
        let ask = self.function(
            "cuDeviceCanAccessPeer",
            self.functions.cuDeviceCanAccessPeer,
        )?;
        let mut can = 0;
        // SAFETY: writes one integer.
        self.call("cuDeviceCanAccessPeer", |_| unsafe {
            ask(&raw mut can, device, peer)
        })?;
        Ok(can != 0)
    }

    /// Gives the current context access to the memory of another; false where there is none to give after all.
    pub(super) fn enable_peer(self, context: Handle) -> Called<bool> {
        const UNSUPPORTED: c_int = CUresult::CUDA_ERROR_PEER_ACCESS_UNSUPPORTED as c_int;
        const ALREADY: c_int = CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED as c_int;
        const TOO_MANY_PEERS: c_int = CUresult::CUDA_ERROR_TOO_MANY_PEERS as c_int;
        let enable = self.function(
            "cuCtxEnablePeerAccess",
            self.functions.cuCtxEnablePeerAccess,
        )?;
        // SAFETY: takes a handle that the driver gave.
        let enabled = self.call("cuCtxEnablePeerAccess", |_| unsafe { enable(context, 0) });
        match enabled {
            Ok(()) => Ok(true),
            Err(stop) => match stop.cause {
                Cause::Code(ALREADY) => Ok(true),
                Cause::Code(UNSUPPORTED | TOO_MANY_PEERS) => Ok(false),
                _ => Err(stop),
            },
        }
    }

    /// Copies so many words between two contexts, after all that both were given before.
    pub(super) fn copy_to_peer(
        self,
        (to, to_context): (Buffer, Handle),
        (from, from_context): (Buffer, Handle),
        words: usize,
    ) -> Called<()> {
        let copy = self.function("cuMemcpyPeer", self.functions.cuMemcpyPeer)?;
        let bytes = 4 * words.min(to.words).min(from.words);
        // SAFETY: both sides hold so many bytes, each in its context.
        self.call("cuMemcpyPeer", |_| unsafe {
            copy(to.address, to_context, from.address, from_context, bytes)
        })
    }
}
