//! Instructions, decoded: names are numbers, types are checked.

/// A register of the kernel.
pub(super) type Register = usize;

/// What a type's bits mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bits,
    Unsigned,
    Signed,
    Float,
    Predicate,
}

/// A type: meaning and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Type {
    pub(super) kind: Kind,
    pub(super) bytes: u32,
}

impl Type {
    /// By its name, without the dot.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (kind, bits) = match name {
            "pred" => {
                return Some(Self {
                    kind: Kind::Predicate,
                    bytes: 1,
                });
            }
            _ => match name.split_at_checked(1)? {
                ("b", bits) => (Kind::Bits, bits),
                ("u", bits) => (Kind::Unsigned, bits),
                ("s", bits) => (Kind::Signed, bits),
                ("f", bits) => (Kind::Float, bits),
                _ => return None,
            },
        };
        let bytes = match bits {
            "8" if kind != Kind::Float => 1,
            "16" => 2,
            "32" => 4,
            "64" => 8,
            _ => return None,
        };
        Some(Self { kind, bytes })
    }

    pub(super) fn is_integer(self) -> bool {
        matches!(self.kind, Kind::Unsigned | Kind::Signed)
    }
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Source {
    Register(Register),
    /// Bits of the instruction's type.
    Immediate(u64),
    Special(Special),
}

/// Registers that the hardware fills; the number is the dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Special {
    ThreadIndex(usize),
    ThreadCount(usize),
    BlockIndex(usize),
    BlockCount(usize),
    Lane,
    /// Of 64 bits. A cycle is a nanosecond of a processor here.
    Clock,
}

impl Special {
    /// How wide it is.
    pub(super) fn bytes(self) -> u32 {
        if self == Self::Clock { 8 } else { 4 }
    }
}

/// A place in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Address {
    pub(super) base: Source,
    pub(super) offset: i64,
}

/// Whose memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    Param,
    Global,
    /// Global, and seen at once by whoever else runs: on another device, or on the host.
    System,
}

/// Operations with two operands and a result of the same type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Sub,
    Mul,
    MulHigh,
    Div,
    Rem,
    Min,
    Max,
    And,
    Or,
    Xor,
    Shl,
    Shr,
}

/// Operations with one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unary {
    Move,
    Not,
    Neg,
    Abs,
}

/// Comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Eq,
    Ne,
    /// Not equal, or without an order: NaN.
    Neu,
    Lt,
    Le,
    Gt,
    Ge,
}

/// What an instruction does.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Op {
    Load {
        space: Space,
        ty: Type,
        to: Register,
        from: Address,
    },
    Store {
        space: Space,
        ty: Type,
        to: Address,
        from: Source,
    },
    Unary {
        op: Unary,
        ty: Type,
        to: Register,
        a: Source,
    },
    Binary {
        op: Binary,
        ty: Type,
        to: Register,
        a: Source,
        b: Source,
    },
    /// `mul.wide` and `mad.wide`: the result is twice as wide as `ty`.
    Wide {
        ty: Type,
        to: Register,
        a: Source,
        b: Source,
        c: Option<Source>,
    },
    /// `mad.lo` on integers; `fma.rn` on floats, rounded once.
    MulAdd {
        ty: Type,
        to: Register,
        a: Source,
        b: Source,
        c: Source,
    },
    Compare {
        op: Comparison,
        ty: Type,
        to: Register,
        a: Source,
        b: Source,
        /// Another predicate, with which the result is one that either holds.
        or: Option<Register>,
    },
    Select {
        to: Register,
        a: Source,
        b: Source,
        predicate: Register,
    },
    Convert {
        from_ty: Type,
        to_ty: Type,
        to: Register,
        a: Source,
    },
    Atomic {
        op: Binary,
        ty: Type,
        to: Option<Register>,
        at: Address,
        a: Source,
    },
    Branch {
        target: usize,
    },
    Return,
    Wmma(Wmma),
}

/// Matrices of the tensor cores, 16 × 16 × 16, f16 in and f32 out. A whole warp executes one together.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Wmma {
    /// 16 × 16 values of f16, by rows or by columns in memory.
    Load {
        to: Vec<Register>,
        from: Address,
        stride: Source,
        by_rows: bool,
    },
    Multiply {
        to: Vec<Register>,
        a: Vec<Register>,
        b: Vec<Register>,
        c: Vec<Register>,
    },
    /// 16 × 16 values of f32.
    Store {
        to: Address,
        from: Vec<Register>,
        stride: Source,
        by_rows: bool,
    },
}

/// An operation, and the predicate on which it depends.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Instruction {
    /// The register, and whether it must be false.
    pub(super) guard: Option<(Register, bool)>,
    pub(super) op: Op,
}

impl Instruction {
    /// Whether it reads what another kernel may write meanwhile.
    pub(super) fn is_look_at_others(&self) -> bool {
        matches!(
            self.op,
            Op::Load {
                space: Space::System,
                ..
            }
        )
    }
}
