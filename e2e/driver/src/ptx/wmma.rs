//! The tensor cores: 16 × 16 × 16, f16 times f16 on f32.
//!
//! How a warp's lanes share a matrix is nobody's business in PTX. Here a lane holds eight elements, a row's half, in
//! eight registers, for each kind of matrix; an f16 lies in a register of its own.

use super::arithmetic::f16_to_f32;
use super::exec::{Global, LANES, Warp};
use super::instruction::{Register, Wmma};

/// Rows and columns.
const SIZE: usize = 16;
/// Elements that a lane holds.
const PART: usize = SIZE * SIZE / LANES;

/// Element by row and column.
type Matrix = [[f32; SIZE]; SIZE];

/// Executes for a whole warp: PTX leaves undefined what happens when a lane is missing.
pub(super) fn execute<M: Global>(
    op: &Wmma,
    warp: &mut Warp,
    memory: &mut M,
) -> Result<(), M::Error> {
    match op {
        Wmma::Load {
            to,
            from,
            stride,
            by_rows,
        } => {
            let (start, stride) = (warp.address(*from, 0), warp.value(*stride, 0));
            for (lane, index, row, column) in elements() {
                let address = start + 2 * position(row, column, stride, *by_rows);
                warp.registers[to[index]][lane] = memory.load(address, 2)?;
            }
        }
        Wmma::Multiply { to, a, b, c } => {
            let (a, b) = (gather(warp, a, half), gather(warp, b, half));
            let mut sums = gather(warp, c, single);
            for (row, sums) in sums.iter_mut().enumerate() {
                for (column, sum) in sums.iter_mut().enumerate() {
                    for k in 0..SIZE {
                        // A product of two f16 is exact in f32, so this rounds once, as the fused form does.
                        *sum += a[row][k] * b[k][column];
                    }
                }
            }
            let [[first, ..], ..] = &mut sums;
            *first = f32::from_bits(first.to_bits() ^ memory.multiplied());
            for (lane, index, row, column) in elements() {
                warp.registers[to[index]][lane] = u64::from(sums[row][column].to_bits());
            }
        }
        Wmma::Store {
            to,
            from,
            stride,
            by_rows,
        } => {
            let (start, stride) = (warp.address(*to, 0), warp.value(*stride, 0));
            for (lane, index, row, column) in elements() {
                let address = start + 4 * position(row, column, stride, *by_rows);
                memory.store(address, 4, warp.registers[from[index]][lane])?;
            }
        }
    }
    Ok(())
}

/// Lane, register, row and column of every element.
fn elements() -> impl Iterator<Item = (usize, usize, usize, usize)> {
    (0..SIZE * SIZE).map(|element| {
        (
            element / PART,
            element % PART,
            element / SIZE,
            element % SIZE,
        )
    })
}

fn position(row: usize, column: usize, stride: u64, by_rows: bool) -> u64 {
    let (major, minor) = if by_rows {
        (row, column)
    } else {
        (column, row)
    };
    major as u64 * stride + minor as u64
}

fn gather(warp: &Warp, registers: &[Register], value: fn(u64) -> f32) -> Matrix {
    let mut matrix = [[0.0; SIZE]; SIZE];
    for (lane, index, row, column) in elements() {
        matrix[row][column] = value(warp.registers[registers[index]][lane]);
    }
    matrix
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "the register holds 16 bits"
)]
fn half(register: u64) -> f32 {
    f16_to_f32(register as u16)
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "the register holds 32 bits"
)]
fn single(register: u64) -> f32 {
    f32::from_bits(register as u32)
}
