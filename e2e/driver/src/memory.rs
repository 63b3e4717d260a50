//! Device memory: regions of the host's, found by the addresses that programs know.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::config::CONFIG;
use crate::errors::{
    ERROR_ILLEGAL_ADDRESS, ERROR_INVALID_VALUE, ERROR_MISALIGNED_ADDRESS, ERROR_OUT_OF_MEMORY,
    Outcome,
};

/// Where device addresses start: nothing of the host's is there.
const BASE: u64 = 0x0007_0000_0000;
/// Alignment of every region, as the driver promises it.
const ALIGN: u64 = 512;
/// Room between two regions, so that running past one meets nothing.
const GAP: u64 = 1 << 20;

/// A piece of memory of one device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) device: usize,
    start: u64,
    len: u64,
    host: NonNull<u8>,
}

// SAFETY: a region is only a place; whoever reads and writes there holds the driver's lock, or is the program itself
// in managed memory, which then answers for it as it does with a real device.
unsafe impl Send for Region {}

/// All memory of all devices. A copy of it knows the same places.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    regions: BTreeMap<u64, Region>,
    next: u64,
}

impl Memory {
    /// Allocates device memory.
    pub(crate) fn allocate(&mut self, device: usize, bytes: u64) -> Outcome<u64> {
        let host = host_memory(bytes)?;
        let start = BASE + self.next;
        self.next = (self.next + bytes + GAP).next_multiple_of(ALIGN);
        self.insert(device, start, bytes, host);
        self.stick(start, bytes);
        Ok(start)
    }

    /// Allocates memory whose address is good on the host as well.
    pub(crate) fn allocate_managed(&mut self, device: usize, bytes: u64) -> Outcome<u64> {
        let host = host_memory(bytes)?;
        let start = host.as_ptr().expose_provenance() as u64;
        self.insert(device, start, bytes, host);
        Ok(start)
    }

    fn insert(&mut self, device: usize, start: u64, len: u64, host: NonNull<u8>) {
        let region = Region {
            device,
            start,
            len,
            host,
        };
        self.regions.insert(start, region);
    }

    /// Frees a whole region.
    pub(crate) fn free(&mut self, start: u64) -> Outcome {
        let region = self.regions.remove(&start).ok_or(ERROR_INVALID_VALUE)?;
        // SAFETY: allocated with this layout, and known to nobody any more.
        unsafe { dealloc(region.host.as_ptr(), layout(region.len)?) };
        Ok(())
    }

    /// Bytes in use on a device.
    pub(crate) fn used(&self, device: usize) -> u64 {
        let of_device = self
            .regions
            .values()
            .filter(|region| region.device == device);
        of_device.map(|region| region.len).sum()
    }

    /// The region that holds all of these bytes.
    pub(crate) fn region(&self, address: u64, bytes: u64) -> Option<Region> {
        let (_, region) = self.regions.range(..=address).next_back()?;
        region.holds(address, bytes).then_some(*region)
    }

    /// Copies from the host.
    ///
    /// # Safety
    ///
    /// `from` must be good for reading so many bytes.
    pub(crate) unsafe fn copy_in(&self, address: u64, from: *const u8, bytes: u64) -> Outcome {
        let region = self.region(address, bytes).ok_or(ERROR_INVALID_VALUE)?;
        // SAFETY: the region holds so many bytes from there, and the caller answers for the other side.
        unsafe { region.at(address).copy_from(from, size(bytes)?) };
        self.stick(address, bytes);
        Ok(())
    }

    /// Copies within device memory, from anywhere to anywhere.
    pub(crate) fn copy(&self, to: u64, from: u64, bytes: u64) -> Outcome {
        let source = self.region(from, bytes).ok_or(ERROR_INVALID_VALUE)?;
        let target = self.region(to, bytes).ok_or(ERROR_INVALID_VALUE)?;
        // SAFETY: both regions hold so many bytes from there.
        unsafe { target.at(to).copy_from(source.at(from), size(bytes)?) };
        self.stick(to, bytes);
        Ok(())
    }

    /// Gives stuck cells among these bytes, which were just written, the value that they have.
    pub(crate) fn stick(&self, address: u64, bytes: u64) {
        for cell in &CONFIG.stuck_cells {
            let place = BASE + cell.offset;
            if (address..address.saturating_add(bytes)).contains(&place)
                && let Some(region) = self.region(place, 1)
                && region.device == cell.device
                && let Ok(held) = region.load(place, 1)
            {
                let mask = 1_u64.checked_shl(cell.bit).unwrap_or(0);
                let stuck = if cell.value {
                    held | mask
                } else {
                    held & !mask
                };
                // Inside, as it was loaded from there.
                let _ = region.store(place, 1, stuck);
            }
        }
    }

    /// Copies to the host.
    ///
    /// # Safety
    ///
    /// `to` must be good for writing so many bytes.
    pub(crate) unsafe fn copy_out(&self, to: *mut u8, address: u64, bytes: u64) -> Outcome {
        let region = self.region(address, bytes).ok_or(ERROR_INVALID_VALUE)?;
        // SAFETY: the region holds so many bytes from there, and the caller answers for the other side.
        unsafe { region.at(address).copy_to(to, size(bytes)?) };
        Ok(())
    }
}

impl Region {
    /// Whether all of these bytes are inside.
    pub(crate) fn holds(&self, address: u64, bytes: u64) -> bool {
        address >= self.start
            && address
                .checked_add(bytes)
                .is_some_and(|end| end <= self.start + self.len)
    }

    fn at(&self, address: u64) -> *mut u8 {
        // The difference is inside of an allocation, so it fits.
        self.host
            .as_ptr()
            .wrapping_add(usize::try_from(address - self.start).unwrap_or(usize::MAX))
    }

    /// Reads a little-endian number of 1 to 8 bytes, as a kernel does.
    pub(crate) fn load(&self, address: u64, bytes: u32) -> Outcome<u64> {
        self.check(address, bytes)?;
        let mut word = [0; 8];
        // SAFETY: checked to be inside.
        unsafe { self.at(address).copy_to(word.as_mut_ptr(), bytes as usize) };
        Ok(u64::from_le_bytes(word))
    }

    /// Writes a little-endian number of 1 to 8 bytes, as a kernel does.
    pub(crate) fn store(&self, address: u64, bytes: u32, value: u64) -> Outcome {
        self.check(address, bytes)?;
        let word = value.to_le_bytes();
        // SAFETY: checked to be inside.
        unsafe { self.at(address).copy_from(word.as_ptr(), bytes as usize) };
        Ok(())
    }

    /// As [`load`](Self::load), of what another thread may write meanwhile. 4 or 8 bytes.
    pub(crate) fn load_shared(&self, address: u64, bytes: u32) -> Outcome<u64> {
        self.check(address, bytes)?;
        // SAFETY: checked to be inside and aligned, and whoever else is there uses atomics as well.
        Ok(unsafe {
            match bytes {
                4 => AtomicU32::from_ptr(self.at(address).cast())
                    .load(Ordering::SeqCst)
                    .into(),
                _ => AtomicU64::from_ptr(self.at(address).cast()).load(Ordering::SeqCst),
            }
        })
    }

    /// As [`store`](Self::store), for another thread to see. 4 or 8 bytes.
    pub(crate) fn store_shared(&self, address: u64, bytes: u32, value: u64) -> Outcome {
        self.check(address, bytes)?;
        let low = u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0);
        // SAFETY: as above.
        unsafe {
            match bytes {
                4 => AtomicU32::from_ptr(self.at(address).cast()).store(low, Ordering::SeqCst),
                _ => AtomicU64::from_ptr(self.at(address).cast()).store(value, Ordering::SeqCst),
            }
        }
        Ok(())
    }

    /// Whether the host knows it by the same address.
    pub(crate) fn is_managed(&self) -> bool {
        self.host.as_ptr().addr() as u64 == self.start
    }

    fn check(&self, address: u64, bytes: u32) -> Outcome {
        if !self.holds(address, u64::from(bytes)) {
            return Err(ERROR_ILLEGAL_ADDRESS);
        }
        if !address.is_multiple_of(u64::from(bytes)) {
            return Err(ERROR_MISALIGNED_ADDRESS);
        }
        Ok(())
    }
}

fn size(bytes: u64) -> Outcome<usize> {
    usize::try_from(bytes).map_err(|_| ERROR_INVALID_VALUE)
}

fn layout(bytes: u64) -> Outcome<Layout> {
    Layout::from_size_align(size(bytes)?, size(ALIGN)?).map_err(|_| ERROR_INVALID_VALUE)
}

fn host_memory(bytes: u64) -> Outcome<NonNull<u8>> {
    if bytes == 0 {
        return Err(ERROR_INVALID_VALUE);
    }
    // SAFETY: not of size zero.
    NonNull::new(unsafe { alloc_zeroed(layout(bytes)?) }).ok_or(ERROR_OUT_OF_MEMORY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_end_where_they_end() {
        let mut memory = Memory::default();
        let first = memory.allocate(0, 100).unwrap();
        let second = memory.allocate(1, 8).unwrap();
        assert!(memory.region(first + 96, 4).is_some());
        assert!(memory.region(first + 97, 4).is_none());
        assert!(memory.region(first - 1, 1).is_none());
        assert_eq!((memory.used(0), memory.used(1)), (100, 8));
        let region = memory.region(second, 8).unwrap();
        region.store(second, 4, 0xdead_beef_1234_5678).unwrap();
        assert_eq!(region.load(second, 8), Ok(0x1234_5678));
        assert_eq!(region.load(second + 2, 4), Err(ERROR_MISALIGNED_ADDRESS));
        assert_eq!(region.load(second + 8, 4), Err(ERROR_ILLEGAL_ADDRESS));
        assert_eq!(memory.free(second + 1), Err(ERROR_INVALID_VALUE));
        assert_eq!(memory.free(second), Ok(()));
        assert!(memory.region(second, 1).is_none());
    }
}
