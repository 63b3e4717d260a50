//! Arithmetic on bits of a type.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "cutting and reading bits anew is what these functions are for"
)]

use super::instruction::{Binary, Comparison, Kind, Type, Unary};

/// Only the type's own bits.
pub(super) fn cut(value: u64, ty: Type) -> u64 {
    match ty.bytes {
        8.. => value,
        bytes => value & ((1 << (8 * bytes)) - 1),
    }
}

/// As a signed number of 64 bits.
pub(super) fn signed(value: u64, ty: Type) -> i64 {
    let unused = 64 - 8 * ty.bytes.min(8);
    ((value << unused) as i64) >> unused
}

fn f32_of(value: u64) -> f32 {
    f32::from_bits(value as u32)
}

fn bits32(value: f32) -> u64 {
    u64::from(value.to_bits())
}

/// `to = op a`
pub(super) fn unary(op: Unary, ty: Type, a: u64) -> u64 {
    let value = match (op, ty.kind, ty.bytes) {
        (Unary::Move, ..) => a,
        (Unary::Not, Kind::Predicate, _) => a ^ 1,
        (Unary::Not, ..) => !a,
        (Unary::Neg, Kind::Float, bytes) => a ^ 1 << (8 * bytes - 1),
        (Unary::Abs, Kind::Float, bytes) => a & !(1 << (8 * bytes - 1)),
        (Unary::Neg, ..) => a.wrapping_neg(),
        (Unary::Abs, ..) => signed(a, ty).unsigned_abs(),
    };
    cut(value, ty)
}

/// `to = a op b`
pub(super) fn binary(op: Binary, ty: Type, a: u64, b: u64) -> u64 {
    match (ty.kind, ty.bytes) {
        (Kind::Float, 4) => bits32(float32(op, f32_of(a), f32_of(b))),
        (Kind::Float, _) => float64(op, f64::from_bits(a), f64::from_bits(b)).to_bits(),
        _ => cut(integer(op, ty, a, b), ty),
    }
}

macro_rules! float {
    ($name:ident, $float:ty) => {
        fn $name(op: Binary, a: $float, b: $float) -> $float {
            match op {
                Binary::Add => a + b,
                Binary::Sub => a - b,
                Binary::Mul => a * b,
                Binary::Div => a / b,
                Binary::Min => a.min(b),
                Binary::Max => a.max(b),
                // The parser lets no other through.
                _ => <$float>::NAN,
            }
        }
    };
}

float!(float32, f32);
float!(float64, f64);

fn integer(op: Binary, ty: Type, a: u64, b: u64) -> u64 {
    let is_signed = ty.kind == Kind::Signed;
    let (sa, sb) = (signed(a, ty), signed(b, ty));
    let bits = 8 * ty.bytes;
    // A count is of 32 bits, and one beyond the width shifts everything out.
    let count = (b as u32).min(64);
    match op {
        Binary::Add => a.wrapping_add(b),
        Binary::Sub => a.wrapping_sub(b),
        Binary::Mul => a.wrapping_mul(b),
        Binary::MulHigh if is_signed => ((i128::from(sa) * i128::from(sb)) >> bits) as u64,
        Binary::MulHigh => ((u128::from(a) * u128::from(b)) >> bits) as u64,
        // A quotient by zero is unspecified in PTX; all ones is what GPUs give.
        Binary::Div if is_signed => sa.checked_div(sb).unwrap_or(-1) as u64,
        Binary::Div => a.checked_div(b).unwrap_or(u64::MAX),
        Binary::Rem if is_signed => sa.checked_rem(sb).unwrap_or(sa) as u64,
        Binary::Rem => a.checked_rem(b).unwrap_or(a),
        Binary::Min if is_signed => sa.min(sb) as u64,
        Binary::Min => a.min(b),
        Binary::Max if is_signed => sa.max(sb) as u64,
        Binary::Max => a.max(b),
        Binary::And => a & b,
        Binary::Or => a | b,
        Binary::Xor => a ^ b,
        Binary::Shl => a.checked_shl(count).unwrap_or(0),
        Binary::Shr if is_signed => (sa >> count.min(63)) as u64,
        Binary::Shr => a.checked_shr(count).unwrap_or(0),
    }
}

/// `to = a * b + c`: the low half for integers, rounded once for floats.
pub(super) fn mul_add(ty: Type, a: u64, b: u64, c: u64) -> u64 {
    match (ty.kind, ty.bytes) {
        (Kind::Float, 4) => bits32(f32_of(a).mul_add(f32_of(b), f32_of(c))),
        (Kind::Float, _) => f64::from_bits(a)
            .mul_add(f64::from_bits(b), f64::from_bits(c))
            .to_bits(),
        _ => cut(a.wrapping_mul(b).wrapping_add(c), ty),
    }
}

/// `to = a * b + c`, where the result is twice as wide as the factors.
pub(super) fn wide(ty: Type, a: u64, b: u64, c: u64) -> u64 {
    let product = if ty.kind == Kind::Signed {
        (signed(a, ty) * signed(b, ty)) as u64
    } else {
        a * b
    };
    let result = Type {
        bytes: 2 * ty.bytes,
        ..ty
    };
    cut(product.wrapping_add(c), result)
}

/// `a op b`
pub(super) fn compare(op: Comparison, ty: Type, a: u64, b: u64) -> bool {
    let order = match (ty.kind, ty.bytes) {
        (Kind::Float, 4) => f32_of(a).partial_cmp(&f32_of(b)),
        (Kind::Float, _) => f64::from_bits(a).partial_cmp(&f64::from_bits(b)),
        (Kind::Signed, _) => Some(signed(a, ty).cmp(&signed(b, ty))),
        _ => Some(a.cmp(&b)),
    };
    // Without an order (NaN), nothing holds: not even "not equal", which PTX calls neu.
    let without_order = op == Comparison::Neu;
    order.map_or(without_order, |order| match op {
        Comparison::Eq => order.is_eq(),
        Comparison::Ne | Comparison::Neu => order.is_ne(),
        Comparison::Lt => order.is_lt(),
        Comparison::Le => order.is_le(),
        Comparison::Gt => order.is_gt(),
        Comparison::Ge => order.is_ge(),
    })
}

/// `cvt`: to nearest where a float is the result, towards zero where an integer is.
pub(super) fn convert(from: Type, to: Type, a: u64) -> u64 {
    let value = match (from.kind, to.kind) {
        (Kind::Float, Kind::Float) => {
            let value = if from.bytes == 4 {
                f64::from(f32_of(a))
            } else {
                f64::from_bits(a)
            };
            if to.bytes == 4 {
                bits32(value as f32)
            } else {
                value.to_bits()
            }
        }
        (Kind::Float, kind) => {
            let value = if from.bytes == 4 {
                f64::from(f32_of(a))
            } else {
                f64::from_bits(a)
            };
            let bits = 8 * to.bytes;
            if kind == Kind::Signed {
                let limit = (1_i128 << (bits - 1)) as f64;
                value.clamp(-limit, limit - 1.0) as i64 as u64
            } else {
                (value as u64).min(u64::MAX >> (64 - bits))
            }
        }
        (Kind::Signed, Kind::Float) if to.bytes == 4 => bits32(signed(a, from) as f32),
        (Kind::Signed, Kind::Float) => (signed(a, from) as f64).to_bits(),
        (_, Kind::Float) if to.bytes == 4 => bits32(a as f32),
        (_, Kind::Float) => (a as f64).to_bits(),
        (Kind::Signed, _) => signed(a, from) as u64,
        _ => a,
    };
    cut(value, to)
}

/// The value of an f16.
pub(super) fn f16_to_f32(half: u16) -> f32 {
    let sign = if half & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(half >> 10 & 0x1f), f32::from(half & 0x3ff));
    sign * match exponent {
        0 => fraction * 2_f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1.0 + fraction / 1024.0) * 2_f32.powi(exponent - 15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ty(name: &str) -> Type {
        Type::parse(name).unwrap()
    }

    #[test]
    fn integers_wrap_at_their_width() {
        assert_eq!(binary(Binary::Add, ty("u32"), 0xffff_ffff, 2), 1);
        assert_eq!(binary(Binary::Sub, ty("s32"), 0, 1), 0xffff_ffff);
        assert_eq!(binary(Binary::Mul, ty("u32"), 0x1_0001, 0x1_0001), 0x2_0001);
        assert_eq!(
            binary(Binary::MulHigh, ty("u32"), 0xffff_ffff, 0xffff_ffff),
            0xffff_fffe
        );
        assert_eq!(
            binary(Binary::MulHigh, ty("s32"), 0xffff_ffff, 0xffff_ffff),
            0
        );
        assert_eq!(wide(ty("u32"), 0xffff_ffff, 4, 0), 0x3_ffff_fffc);
        assert_eq!(wide(ty("s32"), 0xffff_ffff, 4, 0), 0xffff_ffff_ffff_fffc);
    }

    #[test]
    fn shifts_go_out() {
        assert_eq!(binary(Binary::Shl, ty("b32"), 1, 31), 1 << 31);
        assert_eq!(binary(Binary::Shl, ty("b32"), 1, 32), 0);
        assert_eq!(binary(Binary::Shr, ty("u32"), 0x8000_0000, 100), 0);
        assert_eq!(
            binary(Binary::Shr, ty("s32"), 0x8000_0000, 100),
            0xffff_ffff
        );
    }

    #[test]
    fn signs_matter_where_they_should() {
        assert!(compare(Comparison::Lt, ty("s32"), 0xffff_ffff, 0));
        assert!(!compare(Comparison::Lt, ty("u32"), 0xffff_ffff, 0));
        assert_eq!(binary(Binary::Div, ty("s32"), 0xffff_fff9, 2), 0xffff_fffd);
        assert_eq!(binary(Binary::Min, ty("s32"), 0xffff_ffff, 0), 0xffff_ffff);
    }

    #[test]
    fn floats_are_those_of_the_host() {
        let bits = |x: f32| u64::from(x.to_bits());
        assert_eq!(
            binary(Binary::Add, ty("f32"), bits(0.1), bits(0.2)),
            bits(0.1_f32 + 0.2)
        );
        assert_eq!(
            mul_add(ty("f32"), bits(3.0), bits(5.0), bits(1.0)),
            bits(16.0)
        );
        assert!(!compare(
            Comparison::Ne,
            ty("f32"),
            bits(f32::NAN),
            bits(1.0)
        ));
        assert!(compare(
            Comparison::Neu,
            ty("f32"),
            bits(f32::NAN),
            bits(1.0)
        ));
        assert!(!compare(Comparison::Neu, ty("f32"), bits(-0.0), bits(0.0)));
        assert_eq!(unary(Unary::Neg, ty("f32"), bits(1.5)), bits(-1.5));
    }

    #[test]
    fn conversions() {
        let bits = |x: f32| u64::from(x.to_bits());
        assert_eq!(convert(ty("s32"), ty("s64"), 0xffff_ffff), u64::MAX);
        assert_eq!(convert(ty("u32"), ty("u64"), 0xffff_ffff), 0xffff_ffff);
        assert_eq!(convert(ty("s32"), ty("f32"), 0xffff_ffff), bits(-1.0));
        assert_eq!(convert(ty("f32"), ty("u32"), bits(-7.5)), 0);
        assert_eq!(convert(ty("f32"), ty("s32"), bits(-7.5)), 0xffff_fff9);
        assert_eq!(convert(ty("f32"), ty("s32"), bits(1e20)), 0x7fff_ffff);
    }

    #[test]
    fn halves() {
        let table = [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x3555, 0.333_251_95),
            (0x0001, 5.960_464_5e-8),
            (0x7bff, 65504.0),
        ];
        for (half, value) in table {
            assert_eq!(
                f16_to_f32(half).to_bits(),
                f32::to_bits(value),
                "{half:#06x}"
            );
        }
        assert!(f16_to_f32(0x7e00).is_nan());
    }
}
