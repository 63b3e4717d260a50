//! An opcode and its operands → what it does.

use super::Error;
use super::instruction::{
    Address, Binary, Comparison, Kind, Op, Register, Source, Space, Special, Type, Unary, Wmma,
};
use super::parse::{Body, Operand};

/// The addresses' own type.
const U64: Type = Type {
    kind: Kind::Unsigned,
    bytes: 8,
};
const B32: Type = Type {
    kind: Kind::Bits,
    bytes: 4,
};
const F32: Type = Type {
    kind: Kind::Float,
    bytes: 4,
};
const PREDICATE: Type = Type {
    kind: Kind::Predicate,
    bytes: 1,
};

/// Decodes one instruction.
pub(super) fn op(body: &Body, opcode: &str, operands: &[Operand], line: u32) -> Result<Op, Error> {
    let parts: Vec<&str> = opcode.split('.').collect();
    let given = Given {
        body,
        operands,
        line,
    };
    let op = match parts.as_slice() {
        ["ld", "param", ty] => given.load(Space::Param, typed(ty)),
        ["ld", "global", ty] | ["ld", "global", "nc", ty] => given.load(Space::Global, typed(ty)),
        ["ld", "acquire" | "relaxed", "sys", "global", ty] => given.load(Space::System, word(ty)),
        ["st", "global", ty] => given.store(Space::Global, typed(ty)),
        ["st", "release" | "relaxed", "sys", "global", ty] => given.store(Space::System, word(ty)),
        ["cvta", "to", "global", "u64"] | ["cvta", "global", "u64"] => {
            given.unary(Unary::Move, Some(U64))
        }
        ["mov", ty] => given.unary(Unary::Move, typed(ty)),
        ["not", ty] => given.unary(Unary::Not, logical(ty)),
        ["neg", ty] => given.unary(Unary::Neg, number(ty)),
        ["abs", ty] => given.unary(Unary::Abs, number(ty)),
        ["add" | "sub" | "mul", "rn", ty] | ["mul", ty] => given.binary(plain(parts[0]), float(ty)),
        ["add" | "sub" | "min" | "max", ty] => given.binary(plain(parts[0]), number(ty)),
        ["div", "rn", ty] => given.binary(Some(Binary::Div), float(ty)),
        ["div" | "rem", ty] => given.binary(plain(parts[0]), integer(ty)),
        ["mul", "lo", ty] => given.binary(Some(Binary::Mul), integer(ty)),
        ["mul", "hi", ty] => given.binary(Some(Binary::MulHigh), integer(ty)),
        ["and" | "or" | "xor", ty] => given.binary(plain(parts[0]), logical(ty)),
        ["shl", ty] => given.shift(Binary::Shl, typed(ty).filter(|ty| ty.kind == Kind::Bits)),
        ["shr", ty] => given.shift(Binary::Shr, typed(ty).filter(|ty| ty.kind != Kind::Float)),
        ["mul", "wide", ty] => given.wide(integer(ty), false),
        ["mad", "wide", ty] => given.wide(integer(ty), true),
        ["mad", "lo", ty] => given.mul_add(integer(ty)),
        ["fma", "rn", ty] => given.mul_add(float(ty)),
        ["setp", comparison, ty] => given.compare(comparison, typed(ty), false),
        ["setp", comparison, "or", ty] => given.compare(comparison, typed(ty), true),
        ["selp", ty] => given.select(typed(ty)),
        ["cvt", to, from] => given.convert(None, to, from),
        ["cvt", rounding, to, from] => given.convert(Some(rounding), to, from),
        ["atom", "global", op, ty] => given.atomic(op, integer(ty), true),
        ["red", "global", op, ty] => given.atomic(op, integer(ty), false),
        ["ret" | "exit"] if operands.is_empty() => Ok(Some(Op::Return)),
        ["wmma", rest @ ..] => given.wmma(rest),
        _ => Err(Error::new(
            line,
            format!("Not a name of any known instruction: '{opcode}'"),
        )),
    }?;
    op.ok_or_else(|| {
        Error::new(
            line,
            format!("Illegal modifier or operands for instruction '{opcode}'"),
        )
    })
}

fn typed(name: &str) -> Option<Type> {
    Type::parse(name)
}

/// A type that is read and written at once.
fn word(name: &str) -> Option<Type> {
    typed(name).filter(|ty| matches!(ty.bytes, 4 | 8) && ty.kind != Kind::Float)
}

fn integer(name: &str) -> Option<Type> {
    typed(name).filter(|ty| ty.is_integer())
}

fn float(name: &str) -> Option<Type> {
    typed(name).filter(|ty| ty.kind == Kind::Float && ty.bytes >= 4)
}

fn number(name: &str) -> Option<Type> {
    integer(name).or_else(|| float(name))
}

fn logical(name: &str) -> Option<Type> {
    typed(name).filter(|ty| matches!(ty.kind, Kind::Bits | Kind::Predicate))
}

fn plain(name: &str) -> Option<Binary> {
    Some(match name {
        "add" => Binary::Add,
        "sub" => Binary::Sub,
        "mul" => Binary::Mul,
        "div" => Binary::Div,
        "rem" => Binary::Rem,
        "min" => Binary::Min,
        "max" => Binary::Max,
        "and" => Binary::And,
        "or" => Binary::Or,
        "xor" => Binary::Xor,
        _ => return None,
    })
}

/// What the instruction was given. Each method's `None` means: not these modifiers, not that many operands.
struct Given<'a> {
    body: &'a Body<'a>,
    operands: &'a [Operand],
    line: u32,
}

type Decoded = Result<Option<Op>, Error>;

impl Given<'_> {
    fn load(&self, space: Space, ty: Option<Type>) -> Decoded {
        let (Some(ty), [Operand::Name(to), Operand::Address(base, offset)]) = (ty, self.operands)
        else {
            return Ok(None);
        };
        let to = self.body.wide_register(to, ty, self.line)?;
        let from = match space {
            Space::Global | Space::System => self.address(base, *offset)?,
            Space::Param => {
                let param = self.body.params.iter().find(|param| param.name == *base);
                let param = param
                    .ok_or_else(|| Error::new(self.line, format!("Unknown symbol '{base}'")))?;
                if *offset != 0 || param.size != ty.bytes as usize {
                    return Ok(None);
                }
                Address {
                    base: Source::Immediate(param.offset as u64),
                    offset: 0,
                }
            }
        };
        Ok(Some(Op::Load {
            space,
            ty,
            to,
            from,
        }))
    }

    fn store(&self, space: Space, ty: Option<Type>) -> Decoded {
        let (Some(ty), [Operand::Address(base, offset), from]) = (ty, self.operands) else {
            return Ok(None);
        };
        let to = self.address(base, *offset)?;
        let from = match from {
            Operand::Name(name) if self.body.is_register(name) => {
                Source::Register(self.body.wide_register(name, ty, self.line)?)
            }
            other => self.source(other, ty)?,
        };
        Ok(Some(Op::Store {
            space,
            ty,
            to,
            from,
        }))
    }

    fn unary(&self, op: Unary, ty: Option<Type>) -> Decoded {
        let (Some(ty), [to, a]) = (ty, self.operands) else {
            return Ok(None);
        };
        let (to, a) = (self.register(to, ty)?, self.source(a, ty)?);
        Ok(Some(Op::Unary { op, ty, to, a }))
    }

    fn binary(&self, op: Option<Binary>, ty: Option<Type>) -> Decoded {
        let (Some(op), Some(ty), [to, a, b]) = (op, ty, self.operands) else {
            return Ok(None);
        };
        let (to, a, b) = (
            self.register(to, ty)?,
            self.source(a, ty)?,
            self.source(b, ty)?,
        );
        Ok(Some(Op::Binary { op, ty, to, a, b }))
    }

    /// The count of a shift has 32 bits, whatever is shifted.
    fn shift(&self, op: Binary, ty: Option<Type>) -> Decoded {
        let (Some(ty), [to, a, b]) = (ty, self.operands) else {
            return Ok(None);
        };
        let (to, a, b) = (
            self.register(to, ty)?,
            self.source(a, ty)?,
            self.source(b, B32)?,
        );
        Ok(Some(Op::Binary { op, ty, to, a, b }))
    }

    fn wide(&self, ty: Option<Type>, with_sum: bool) -> Decoded {
        let Some(ty) = ty.filter(|ty| ty.bytes <= 4) else {
            return Ok(None);
        };
        let result = Type {
            bytes: 2 * ty.bytes,
            ..ty
        };
        let (to, a, b, c) = match (self.operands, with_sum) {
            ([to, a, b], false) => (to, a, b, None),
            ([to, a, b, c], true) => (to, a, b, Some(self.source(c, result)?)),
            _ => return Ok(None),
        };
        let (to, a, b) = (
            self.register(to, result)?,
            self.source(a, ty)?,
            self.source(b, ty)?,
        );
        Ok(Some(Op::Wide { ty, to, a, b, c }))
    }

    fn mul_add(&self, ty: Option<Type>) -> Decoded {
        let (Some(ty), [to, a, b, c]) = (ty, self.operands) else {
            return Ok(None);
        };
        let to = self.register(to, ty)?;
        let (a, b, c) = (
            self.source(a, ty)?,
            self.source(b, ty)?,
            self.source(c, ty)?,
        );
        Ok(Some(Op::MulAdd { ty, to, a, b, c }))
    }

    fn compare(&self, name: &str, ty: Option<Type>, with_other: bool) -> Decoded {
        let (Some(ty), [to, a, b, rest @ ..]) = (ty, self.operands) else {
            return Ok(None);
        };
        let or = match (rest, with_other) {
            ([], false) => None,
            ([other], true) => Some(self.register(other, PREDICATE)?),
            _ => return Ok(None),
        };
        let is_unsigned = ty.kind == Kind::Unsigned;
        let op = match name {
            "eq" => Comparison::Eq,
            "ne" => Comparison::Ne,
            "neu" if ty.kind == Kind::Float => Comparison::Neu,
            _ if ty.kind == Kind::Bits => return Ok(None),
            "lt" => Comparison::Lt,
            "le" => Comparison::Le,
            "gt" => Comparison::Gt,
            "ge" => Comparison::Ge,
            "lo" if is_unsigned => Comparison::Lt,
            "ls" if is_unsigned => Comparison::Le,
            "hi" if is_unsigned => Comparison::Gt,
            "hs" if is_unsigned => Comparison::Ge,
            _ => return Ok(None),
        };
        let (to, a, b) = (
            self.register(to, PREDICATE)?,
            self.source(a, ty)?,
            self.source(b, ty)?,
        );
        Ok(Some(Op::Compare {
            op,
            ty,
            to,
            a,
            b,
            or,
        }))
    }

    fn select(&self, ty: Option<Type>) -> Decoded {
        let (Some(ty), [to, a, b, predicate]) = (ty, self.operands) else {
            return Ok(None);
        };
        let predicate = self.register(predicate, PREDICATE)?;
        let (to, a, b) = (
            self.register(to, ty)?,
            self.source(a, ty)?,
            self.source(b, ty)?,
        );
        Ok(Some(Op::Select {
            to,
            a,
            b,
            predicate,
        }))
    }

    fn convert(&self, rounding: Option<&str>, to_ty: &str, from_ty: &str) -> Decoded {
        let (Some(to_ty), Some(from_ty), [to, a]) = (number(to_ty), number(from_ty), self.operands)
        else {
            return Ok(None);
        };
        let is_float = |ty: Type| ty.kind == Kind::Float;
        let needed = match (is_float(from_ty), is_float(to_ty)) {
            (true, false) => Some("rzi"),
            (false, true) => Some("rn"),
            (true, true) if to_ty.bytes < from_ty.bytes => Some("rn"),
            _ => None,
        };
        if rounding != needed {
            return Ok(None);
        }
        let (to, a) = (self.register(to, to_ty)?, self.source(a, from_ty)?);
        Ok(Some(Op::Convert {
            from_ty,
            to_ty,
            to,
            a,
        }))
    }

    fn atomic(&self, op: &str, ty: Option<Type>, with_result: bool) -> Decoded {
        let op = plain(op).filter(|op| matches!(op, Binary::Add | Binary::Min | Binary::Max));
        let (Some(op), Some(ty)) = (op, ty.filter(|ty| ty.bytes >= 4)) else {
            return Ok(None);
        };
        let (to, base, offset, a) = match (self.operands, with_result) {
            ([to, Operand::Address(base, offset), a], true) => {
                (Some(self.register(to, ty)?), base, offset, a)
            }
            ([Operand::Address(base, offset), a], false) => (None, base, offset, a),
            _ => return Ok(None),
        };
        let (at, a) = (self.address(base, *offset)?, self.source(a, ty)?);
        Ok(Some(Op::Atomic { op, ty, to, at, a }))
    }

    /// Only f16 in, f32 out, 16 × 16 × 16, `a` by rows and `b` by columns for the product.
    #[expect(clippy::too_many_lines, reason = "one table, of three forms")]
    fn wmma(&self, parts: &[&str]) -> Decoded {
        let by_rows = |layout: &str| match layout {
            "row" => Some(true),
            "col" => Some(false),
            _ => None,
        };
        let op = match (parts, self.operands) {
            (
                [
                    "load",
                    "a" | "b",
                    "sync",
                    "aligned",
                    layout,
                    "m16n16k16",
                    "global",
                    "f16",
                ],
                [to, from, stride],
            ) => {
                let Some(by_rows) = by_rows(layout) else {
                    return Ok(None);
                };
                Wmma::Load {
                    to: self.group(to, B32)?,
                    from: self.place(from)?,
                    stride: self.source(stride, B32)?,
                    by_rows,
                }
            }
            (
                [
                    "mma",
                    "sync",
                    "aligned",
                    "row",
                    "col",
                    "m16n16k16",
                    "f32",
                    "f32",
                ],
                [to, a, b, c],
            ) => Wmma::Multiply {
                to: self.group(to, F32)?,
                a: self.group(a, B32)?,
                b: self.group(b, B32)?,
                c: self.group(c, F32)?,
            },
            (
                [
                    "store",
                    "d",
                    "sync",
                    "aligned",
                    layout,
                    "m16n16k16",
                    "global",
                    "f32",
                ],
                [to, from, stride],
            ) => {
                let Some(by_rows) = by_rows(layout) else {
                    return Ok(None);
                };
                Wmma::Store {
                    to: self.place(to)?,
                    from: self.group(from, F32)?,
                    stride: self.source(stride, B32)?,
                    by_rows,
                }
            }
            _ => return Ok(None),
        };
        Ok(Some(Op::Wmma(op)))
    }

    /// The eight registers that hold a lane's part of a matrix.
    fn group(&self, operand: &Operand, ty: Type) -> Result<Vec<Register>, Error> {
        match operand {
            Operand::Group(names) if names.len() == 8 => names
                .iter()
                .map(|name| self.body.register(name, ty, self.line))
                .collect(),
            _ => Err(self.wrong("a group of eight registers")),
        }
    }

    fn place(&self, operand: &Operand) -> Result<Address, Error> {
        match operand {
            Operand::Address(base, offset) => self.address(base, *offset),
            _ => Err(self.wrong("an address")),
        }
    }

    fn address(&self, base: &str, offset: i64) -> Result<Address, Error> {
        let base = Source::Register(self.body.register(base, U64, self.line)?);
        Ok(Address { base, offset })
    }

    fn register(&self, operand: &Operand, ty: Type) -> Result<Register, Error> {
        match operand {
            Operand::Name(name) => self.body.register(name, ty, self.line),
            _ => Err(self.wrong("a register")),
        }
    }

    fn source(&self, operand: &Operand, ty: Type) -> Result<Source, Error> {
        let is_float = ty.kind == Kind::Float;
        match operand {
            Operand::Name(name) => match special(name) {
                Some(special) if ty.bytes == special.bytes() && !is_float => {
                    Ok(Source::Special(special))
                }
                Some(_) => Err(self.wrong("a type of the register's width")),
                None => Ok(Source::Register(self.body.register(name, ty, self.line)?)),
            },
            Operand::Int(value) if !is_float && ty.kind != Kind::Predicate => {
                Ok(Source::Immediate(super::arithmetic::cut(*value, ty)))
            }
            Operand::Float32(bits) if is_float && ty.bytes == 4 => {
                Ok(Source::Immediate(u64::from(*bits)))
            }
            Operand::Float64(bits) if is_float && ty.bytes == 8 => Ok(Source::Immediate(*bits)),
            _ => Err(self.wrong("an operand of the instruction's type")),
        }
    }

    fn wrong(&self, wanted: &str) -> Error {
        Error::new(
            self.line,
            format!("Arguments mismatch for instruction: {wanted} expected"),
        )
    }
}

fn special(name: &str) -> Option<Special> {
    match name {
        "%laneid" => return Some(Special::Lane),
        "%clock64" => return Some(Special::Clock),
        _ => {}
    }
    let (name, dimension) = name.split_once('.')?;
    let dimension = ["x", "y", "z"]
        .iter()
        .position(|letter| *letter == dimension)?;
    Some(match name {
        "%tid" => Special::ThreadIndex(dimension),
        "%ntid" => Special::ThreadCount(dimension),
        "%ctaid" => Special::BlockIndex(dimension),
        "%nctaid" => Special::BlockCount(dimension),
        _ => return None,
    })
}
