//! Memory as a kernel on one device sees it, with what goes wrong there.

use std::thread;

use crate::config::{CONFIG, ProductFault, StoreFault};
use crate::errors::{ERROR_ILLEGAL_ADDRESS, Outcome};
use crate::memory::{Memory, Region};
use crate::ptx::Global;

/// The view of one launch.
pub(crate) struct View<'a> {
    memory: &'a Memory,
    device: usize,
    /// Devices whose memory it reaches besides its own.
    peers: &'a [usize],
    /// Regions that were met lately: a kernel goes back and forth between few.
    recent: [Option<Region>; 4],
    next: usize,
    stores: u64,
    faults: Vec<&'static StoreFault>,
    products: u64,
    product_faults: Vec<&'static ProductFault>,
}

impl<'a> View<'a> {
    /// For a launch of `kernel`.
    pub(crate) fn new(memory: &'a Memory, device: usize, peers: &'a [usize], kernel: &str) -> Self {
        let is_meant = |wanted: &str, on: Option<u32>| {
            wanted == kernel && on.is_none_or(|wanted| wanted as usize == device)
        };
        let faults = CONFIG.store_faults.iter();
        let product_faults = CONFIG.product_faults.iter();
        Self {
            memory,
            device,
            peers,
            recent: [None; 4],
            next: 0,
            stores: 0,
            faults: faults
                .filter(|fault| is_meant(&fault.kernel, fault.device))
                .collect(),
            products: 0,
            product_faults: product_faults
                .filter(|fault| is_meant(&fault.kernel, fault.device))
                .collect(),
        }
    }

    fn region(&mut self, address: u64, bytes: u32) -> Outcome<Region> {
        let bytes = u64::from(bytes);
        let recent = self
            .recent
            .iter()
            .flatten()
            .find(|region| region.holds(address, bytes));
        if let Some(region) = recent {
            return Ok(*region);
        }
        let is_in_reach =
            |region: &Region| region.device == self.device || self.peers.contains(&region.device);
        let found = self.memory.region(address, bytes).filter(is_in_reach);
        let region = found.ok_or(ERROR_ILLEGAL_ADDRESS)?;
        self.recent[self.next] = Some(region);
        self.next = (self.next + 1) % self.recent.len();
        Ok(region)
    }

    /// What becomes of a store: where it goes to, and what is stored.
    fn struck(&mut self, mut address: u64, mut value: u64) -> (u64, u64) {
        let stored = value;
        let strikes = |fault: &&&StoreFault| {
            fault.nth.is_none_or(|nth| nth == self.stores)
                && fault.value.is_none_or(|wanted| wanted == stored)
        };
        for fault in self.faults.iter().filter(strikes) {
            address = address.wrapping_add_signed(fault.move_bytes);
            value ^= fault
                .flip_bit
                .map_or(0, |bit| 1_u64.checked_shl(bit).unwrap_or(0));
        }
        self.stores += 1;
        (address, value)
    }

    /// Whether nothing that this device stores there arrives.
    fn is_lost(&self, region: &Region) -> bool {
        region.device != self.device
            && CONFIG
                .peer_faults
                .iter()
                .any(|fault| fault.is_on(self.device, region.device) && fault.lose_stores)
    }
}

impl Global for View<'_> {
    type Error = i32;

    fn load(&mut self, address: u64, bytes: u32) -> Outcome<u64> {
        self.region(address, bytes)?.load(address, bytes)
    }

    fn store(&mut self, address: u64, bytes: u32, value: u64) -> Outcome {
        let (address, value) = self.struck(address, value);
        let region = self.region(address, bytes)?;
        if self.is_lost(&region) {
            return Ok(());
        }
        region.store(address, bytes, value)?;
        if !CONFIG.stuck_cells.is_empty() {
            self.memory.stick(address, bytes.into());
        }
        Ok(())
    }

    fn multiplied(&mut self) -> u32 {
        let now = self.products;
        self.products += 1;
        let struck = self.product_faults.iter().filter(|fault| fault.nth == now);
        struck.fold(0, |bits, fault| {
            bits ^ 1_u32.checked_shl(fault.flip_bit).unwrap_or(0)
        })
    }

    fn load_system(&mut self, address: u64, bytes: u32) -> Outcome<u64> {
        // Whoever is waited for may need this very processor.
        thread::yield_now();
        self.region(address, bytes)?.load_shared(address, bytes)
    }

    fn store_system(&mut self, address: u64, bytes: u32, value: u64) -> Outcome {
        let (address, value) = self.struck(address, value);
        let region = self.region(address, bytes)?;
        if self.is_lost(&region) {
            return Ok(());
        }
        region.store_shared(address, bytes, value)
    }
}
