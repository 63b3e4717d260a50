//! PTX: text → [`Module`] → executed on warps of 32 lanes.
//!
//! What is here is a part of the language, and exact in it: types must fit, and what is not known is refused, as a
//! compiler would. [`parse()`] reads, [`run()`] executes.

mod arithmetic;
mod decode;
mod exec;
mod instruction;
mod lexer;
mod parse;
#[cfg(test)]
mod tests;
mod wmma;

pub use exec::{Global, Launch, run};
pub use parse::parse;

use instruction::Instruction;

/// What a PTX file holds.
#[derive(Debug)]
pub struct Module {
    /// `.version`: major and minor.
    pub version: (u32, u32),
    /// `.target`: 70 for `sm_70`.
    pub target: u32,
    /// The letter after it: `a` runs on that very architecture only, `f` on its family.
    pub suffix: Option<char>,
    /// The `.entry` functions.
    pub kernels: Vec<Kernel>,
}

/// An `.entry` function.
#[derive(Debug)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Its parameters.
    pub params: Vec<Param>,
    registers: usize,
    code: Vec<Instruction>,
}

/// A parameter of a kernel.
#[derive(Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name.
    pub name: String,
    /// Where it is in the kernel's parameters.
    pub offset: usize,
    /// Its size in bytes.
    pub size: usize,
}

/// Why PTX is refused: what the driver's compiler would write to its log.
#[derive(Debug, PartialEq, Eq)]
pub struct Error {
    line: u32,
    message: String,
}

impl Error {
    fn new(line: u32, message: impl Into<String>) -> Self {
        Self {
            line,
            message: message.into(),
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "ptxas application ptx input, line {}; error   : {}",
            self.line, self.message
        )
    }
}

impl std::error::Error for Error {}

impl Kernel {
    /// Whether it looks at what another kernel writes meanwhile, so that both have to run at once.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.code.iter().any(Instruction::is_look_at_others)
    }

    /// How many bytes all its parameters take.
    #[must_use]
    pub fn param_bytes(&self) -> usize {
        self.params
            .last()
            .map_or(0, |param| param.offset + param.size)
    }
}
