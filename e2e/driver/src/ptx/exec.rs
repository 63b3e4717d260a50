//! Executes a kernel, warp by warp.
//!
//! The 32 lanes of a warp go in lockstep: at each step the lanes that are furthest behind execute their instruction
//! together, so they meet again behind a branch. Blocks and warps run one after the other, in order; there is no
//! shared memory and no barrier, so no kernel can tell. One that waits for another kernel can ([`Kernel::waits`]):
//! whoever runs it runs the other one beside it.

use super::arithmetic::{binary, compare, convert, cut, mul_add, unary, wide};
use super::instruction::{Address, Instruction, Op, Source, Space, Special, Type};
use super::{Kernel, wmma};

/// Lanes of a warp.
pub(super) const LANES: usize = 32;

/// Memory that kernels reach.
pub trait Global {
    /// Why an access fails.
    type Error;
    /// Reads a little-endian number of so many bytes.
    fn load(&mut self, address: u64, bytes: u32) -> Result<u64, Self::Error>;
    /// Writes a little-endian number of so many bytes.
    fn store(&mut self, address: u64, bytes: u32, value: u64) -> Result<(), Self::Error>;
    /// The tensor cores have multiplied: bits of the product's first element that come out inverted.
    fn multiplied(&mut self) -> u32 {
        0
    }
    /// As [`load`](Self::load), of what others write meanwhile.
    fn load_system(&mut self, address: u64, bytes: u32) -> Result<u64, Self::Error> {
        self.load(address, bytes)
    }
    /// As [`store`](Self::store), for others to see at once.
    fn store_system(&mut self, address: u64, bytes: u32, value: u64) -> Result<(), Self::Error> {
        self.store(address, bytes, value)
    }
}

/// What `cuLaunchKernel` says.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Blocks in each dimension.
    pub grid: [u32; 3],
    /// Threads of a block in each dimension.
    pub block: [u32; 3],
    /// The parameters, laid out as [`Kernel::params`] says.
    pub params: &'a [u8],
}

/// Executes all threads.
///
/// # Errors
///
/// That of the first access to memory that fails.
pub fn run<M: Global>(launch: &Launch, memory: &mut M) -> Result<(), M::Error> {
    let mut warp = Warp {
        launch,
        registers: vec![[0; LANES]; launch.kernel.registers],
        counters: [DONE; LANES],
        threads: [[0; 3]; LANES],
        block: [0; 3],
    };
    let [threads_x, threads_y, threads_z] = launch.block;
    let threads = threads_x * threads_y * threads_z;
    for block in positions(launch.grid) {
        warp.block = block;
        for first in (0..threads).step_by(LANES) {
            for lane in 0..LANES {
                let index = first + lane_number(lane);
                warp.counters[lane] = if index < threads { 0 } else { DONE };
                warp.threads[lane] = [
                    index % threads_x,
                    index / threads_x % threads_y,
                    index / threads_x / threads_y,
                ];
            }
            warp.run(memory)?;
        }
    }
    Ok(())
}

/// All positions of a grid, x fastest.
fn positions([x, y, z]: [u32; 3]) -> impl Iterator<Item = [u32; 3]> {
    (0..z).flat_map(move |z| (0..y).flat_map(move |y| (0..x).map(move |x| [x, y, z])))
}

#[allow(clippy::cast_possible_truncation, reason = "a lane is less than 32")]
fn lane_number(lane: usize) -> u32 {
    lane as u32
}

/// The counter of a lane that has returned.
const DONE: usize = usize::MAX;

/// A warp in flight.
pub(super) struct Warp<'a> {
    launch: &'a Launch<'a>,
    /// By register and lane.
    pub(super) registers: Vec<[u64; LANES]>,
    /// Where each lane is.
    counters: [usize; LANES],
    threads: [[u32; 3]; LANES],
    block: [u32; 3],
}

impl Warp<'_> {
    fn run<M: Global>(&mut self, memory: &mut M) -> Result<(), M::Error> {
        let code = &self.launch.kernel.code;
        loop {
            let now = self.counters.iter().copied().min().unwrap_or(DONE);
            let Some(instruction) = code.get(now) else {
                return Ok(());
            };
            let active = self.active(now, instruction);
            for counter in &mut self.counters {
                if *counter == now {
                    *counter += 1;
                }
            }
            self.execute(&instruction.op, active, memory)?;
        }
    }

    /// The lanes that execute: those that are here, less those whose guard says no. A bit for each.
    fn active(&self, now: usize, instruction: &Instruction) -> u32 {
        let mut active = 0;
        for lane in 0..LANES {
            let willing = match instruction.guard {
                None => true,
                Some((register, negated)) => (self.registers[register][lane] != 0) != negated,
            };
            active |= u32::from(self.counters[lane] == now && willing) << lane;
        }
        active
    }

    #[expect(clippy::too_many_lines, reason = "one table, of all instructions")]
    fn execute<M: Global>(&mut self, op: &Op, active: u32, memory: &mut M) -> Result<(), M::Error> {
        let lanes = Lanes(active);
        match *op {
            Op::Load {
                space,
                ty,
                to,
                from,
            } => {
                for lane in lanes {
                    let address = self.address(from, lane);
                    self.registers[to][lane] = match space {
                        Space::Param => self.param(address, ty),
                        Space::Global => memory.load(address, ty.bytes)?,
                        Space::System => memory.load_system(address, ty.bytes)?,
                    };
                }
            }
            Op::Store {
                space,
                ty,
                to,
                from,
            } => {
                for lane in lanes {
                    let address = self.address(to, lane);
                    let value = cut(self.value(from, lane), ty);
                    match space {
                        Space::System => memory.store_system(address, ty.bytes, value)?,
                        _ => memory.store(address, ty.bytes, value)?,
                    }
                }
            }
            Op::Unary { op, ty, to, a } => {
                for lane in lanes {
                    self.registers[to][lane] = unary(op, ty, self.value(a, lane));
                }
            }
            Op::Binary { op, ty, to, a, b } => {
                for lane in lanes {
                    self.registers[to][lane] =
                        binary(op, ty, self.value(a, lane), self.value(b, lane));
                }
            }
            Op::Wide { ty, to, a, b, c } => {
                for lane in lanes {
                    let c = c.map_or(0, |c| self.value(c, lane));
                    self.registers[to][lane] =
                        wide(ty, self.value(a, lane), self.value(b, lane), c);
                }
            }
            Op::MulAdd { ty, to, a, b, c } => {
                for lane in lanes {
                    let [a, b, c] = [a, b, c].map(|source| self.value(source, lane));
                    self.registers[to][lane] = mul_add(ty, a, b, c);
                }
            }
            Op::Compare {
                op,
                ty,
                to,
                a,
                b,
                or,
            } => {
                for lane in lanes {
                    let holds = compare(op, ty, self.value(a, lane), self.value(b, lane))
                        || or.is_some_and(|other| self.registers[other][lane] != 0);
                    self.registers[to][lane] = u64::from(holds);
                }
            }
            Op::Select {
                to,
                a,
                b,
                predicate,
            } => {
                for lane in lanes {
                    let chosen = if self.registers[predicate][lane] != 0 {
                        a
                    } else {
                        b
                    };
                    self.registers[to][lane] = self.value(chosen, lane);
                }
            }
            Op::Convert {
                from_ty,
                to_ty,
                to,
                a,
            } => {
                for lane in lanes {
                    self.registers[to][lane] = convert(from_ty, to_ty, self.value(a, lane));
                }
            }
            Op::Atomic { op, ty, to, at, a } => {
                for lane in lanes {
                    let address = self.address(at, lane);
                    let before = memory.load(address, ty.bytes)?;
                    memory.store(
                        address,
                        ty.bytes,
                        binary(op, ty, before, self.value(a, lane)),
                    )?;
                    if let Some(to) = to {
                        self.registers[to][lane] = before;
                    }
                }
            }
            Op::Branch { target } => lanes.for_each(|lane| self.counters[lane] = target),
            Op::Return => lanes.for_each(|lane| self.counters[lane] = DONE),
            Op::Wmma(ref op) => wmma::execute(op, self, memory)?,
        }
        Ok(())
    }

    pub(super) fn value(&self, source: Source, lane: usize) -> u64 {
        match source {
            Source::Register(register) => self.registers[register][lane],
            Source::Immediate(value) => value,
            Source::Special(Special::Clock) => clock(),
            Source::Special(special) => u64::from(match special {
                Special::ThreadIndex(dimension) => self.threads[lane][dimension],
                Special::ThreadCount(dimension) => self.launch.block[dimension],
                Special::BlockIndex(dimension) => self.block[dimension],
                Special::BlockCount(dimension) => self.launch.grid[dimension],
                Special::Lane => lane_number(lane),
                // Of 64 bits, above.
                Special::Clock => 0,
            }),
        }
    }

    pub(super) fn address(&self, address: Address, lane: usize) -> u64 {
        self.value(address.base, lane)
            .wrapping_add_signed(address.offset)
    }

    fn param(&self, offset: u64, ty: Type) -> u64 {
        let mut word = [0; 8];
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| self.launch.params.get(start..)?.get(..ty.bytes as usize));
        if let Some(bytes) = bytes {
            word[..bytes.len()].copy_from_slice(bytes);
        }
        u64::from_le_bytes(word)
    }
}

/// Nanoseconds in which this thread had a processor: a kernel that gets none does not grow impatient, as on a device.
fn clock() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one time.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let [seconds, nanoseconds] =
        [time.tv_sec, time.tv_nsec].map(|part| u64::try_from(part).unwrap_or(0));
    seconds * 1_000_000_000 + nanoseconds
}

/// The lanes whose bits are set, in order.
struct Lanes(u32);

impl Iterator for Lanes {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let lane = self.0.trailing_zeros() as usize;
        self.0 &= self.0 - 1;
        Some(lane)
    }
}
