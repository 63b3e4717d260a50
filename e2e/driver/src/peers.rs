//! Devices that reach one another's memory.

use crate::config::CONFIG;
use crate::driver::{Driver, Kind};
use crate::errors::{
    ERROR_INVALID_CONTEXT, ERROR_INVALID_DEVICE, ERROR_INVALID_VALUE,
    ERROR_PEER_ACCESS_ALREADY_ENABLED, ERROR_PEER_ACCESS_UNSUPPORTED, Outcome,
};

/// Whether `from` can be given access to the memory of `to`: both are of a kind that has it, and no fault forbids it.
pub(crate) fn can_access(from: usize, to: usize) -> bool {
    let has_peers = |ordinal: usize| {
        CONFIG
            .devices
            .get(ordinal)
            .is_some_and(|device| device.peers)
    };
    let mut faults = CONFIG.peer_faults.iter();
    from != to
        && has_peers(from)
        && has_peers(to)
        && !faults.any(|fault| fault.is_on(from, to) && fault.no_access)
}

impl Driver {
    /// Gives the current device access to the memory of a context's.
    pub(crate) fn enable_peer(&mut self, context: usize) -> Outcome {
        let from = self.context()?;
        let to = self.device_of(context)?;
        if from == to {
            return Err(ERROR_INVALID_DEVICE);
        }
        if !can_access(from, to) {
            return Err(ERROR_PEER_ACCESS_UNSUPPORTED);
        }
        if self.peers[from].contains(&to) {
            return Err(ERROR_PEER_ACCESS_ALREADY_ENABLED);
        }
        self.peers[from].push(to);
        Ok(())
    }

    /// Copies from the memory of one context to that of another, when both have done what they were given before. It
    /// needs no access: without it the host passes the bytes on.
    pub(crate) fn copy_between(
        &mut self,
        (to, to_context): (u64, usize),
        (from, from_context): (u64, usize),
        bytes: u64,
    ) -> Outcome {
        self.context()?;
        let ends = [(to, to_context), (from, from_context)];
        for (address, context) in ends {
            let device = self.device_of(context)?;
            self.finish(device)?;
            let region = self.memory.region(address, bytes);
            if region.is_none_or(|region| region.device != device) {
                return Err(ERROR_INVALID_VALUE);
            }
        }
        let way = (self.device_of(from_context)?, self.device_of(to_context)?);
        let faults = || {
            let mut all = CONFIG.peer_faults.iter();
            std::iter::from_fn(move || all.find(|fault| fault.is_on(way.0, way.1)))
        };
        if faults().any(|fault| fault.lose_copies) {
            return Ok(());
        }
        self.memory.copy(to, from, bytes)?;
        for bit in faults().filter_map(|fault| fault.flip_bit) {
            let place = to.saturating_add(bit / 8);
            // One beyond the copy is none of it.
            if bit / 8 < bytes
                && let Some(region) = self.memory.region(place, 1)
            {
                region.store(place, 1, region.load(place, 1)? ^ (1 << (bit % 8)))?;
            }
        }
        Ok(())
    }

    fn device_of(&self, context: usize) -> Outcome<usize> {
        let ordinal = Kind::Context
            .index(context)
            .map_err(|_| ERROR_INVALID_CONTEXT)?;
        match self.retained.get(ordinal) {
            Some(true) => Ok(ordinal),
            _ => Err(ERROR_INVALID_CONTEXT),
        }
    }
}
