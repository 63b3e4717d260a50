//! Tokens → module: directives, kernels and their bodies.

use std::collections::HashMap;

use super::instruction::{Instruction, Kind, Op, Register, Type};
use super::lexer::{Placed, Token, tokens, unexpected};
use super::{Error, Kernel, Module, Param, decode};

/// Reads a whole file.
///
/// # Errors
///
/// The first thing that does not belong there, with its line.
pub fn parse(text: &str) -> Result<Module, Error> {
    let tokens = tokens(text)?;
    let mut cursor = Cursor {
        tokens: &tokens,
        next: 0,
    };
    let mut module = header(&mut cursor)?;
    while cursor.peek().is_some() {
        let word = cursor.word()?;
        match word {
            ".visible" | ".weak" => {}
            ".entry" => module.kernels.push(kernel(&mut cursor)?),
            _ => return Err(unexpected(cursor.line(), word)),
        }
    }
    Ok(module)
}

/// `.version`, `.target` and `.address_size`.
fn header(cursor: &mut Cursor) -> Result<Module, Error> {
    let missing = |cursor: &Cursor, what: &str| {
        Error::new(
            cursor.line(),
            format!("Missing {what} directive at start of file"),
        )
    };
    if cursor.word() != Ok(".version") {
        return Err(missing(cursor, ".version"));
    }
    let Some(Token::Decimal(major, minor)) = cursor.token() else {
        return Err(missing(cursor, ".version"));
    };
    let version = (*major, *minor);
    if cursor.word() != Ok(".target") {
        return Err(missing(cursor, ".target"));
    }
    let name = cursor.word()?;
    let (number, suffix) = match name.char_indices().next_back() {
        Some((end, letter @ ('a' | 'f'))) => (&name[..end], Some(letter)),
        _ => (name, None),
    };
    let target = number
        .strip_prefix("sm_")
        .and_then(|number| number.parse().ok());
    let target =
        target.ok_or_else(|| Error::new(cursor.line(), format!("Unknown target '{name}'")))?;
    if cursor.peek() == Some(&Token::Word(".address_size".into())) {
        cursor.token();
        if cursor.token() != Some(&Token::Int(64)) {
            return Err(Error::new(
                cursor.line(),
                "Only addresses of 64 bits are supported",
            ));
        }
    }
    Ok(Module {
        version,
        target,
        suffix,
        kernels: Vec::new(),
    })
}

/// From the name behind `.entry` to the closing brace.
fn kernel(cursor: &mut Cursor) -> Result<Kernel, Error> {
    let name = cursor.word()?.to_owned();
    let params = if cursor.take('(') {
        params(cursor)?
    } else {
        Vec::new()
    };
    // Hints for the compiler: `.maxntid 256, 1, 1` and the like.
    while !cursor.take('{') {
        match cursor.token() {
            Some(Token::Word(hint))
                if [".maxntid", ".reqntid", ".minnctapersm", ".maxnreg"]
                    .contains(&hint.as_str()) => {}
            Some(Token::Int(_) | Token::Mark(',')) => {}
            _ => return Err(unexpected(cursor.line(), &name)),
        }
    }
    let mut body = Body {
        params: &params,
        registers: HashMap::new(),
    };
    let code = statements(cursor, &mut body)?;
    Ok(Kernel {
        registers: body.registers.len(),
        name,
        code,
        params,
    })
}

/// `.param .u64 name, …)`
fn params(cursor: &mut Cursor) -> Result<Vec<Param>, Error> {
    let mut params: Vec<Param> = Vec::new();
    while !cursor.take(')') {
        cursor.directive(".param")?;
        let size = cursor.ty()?.bytes as usize;
        let name = cursor.word()?.to_owned();
        let end = params.last().map_or(0, |param| param.offset + param.size);
        params.push(Param {
            name,
            offset: end.next_multiple_of(size),
            size,
        });
        if !cursor.take(',') && cursor.peek() != Some(&Token::Mark(')')) {
            return Err(unexpected(cursor.line(), "parameter list"));
        }
    }
    Ok(params)
}

/// All statements up to the closing brace, with branches resolved.
fn statements(cursor: &mut Cursor, body: &mut Body) -> Result<Vec<Instruction>, Error> {
    let mut code = Vec::new();
    let mut labels: HashMap<&str, usize> = HashMap::new();
    let mut branches: Vec<(usize, &str, u32)> = Vec::new();
    while !cursor.take('}') {
        let guard = if cursor.take('@') {
            let negated = cursor.take('!');
            let (line, name) = (cursor.line(), cursor.word()?);
            Some((body.register(name, PREDICATE, line)?, negated))
        } else {
            None
        };
        let line = cursor.line();
        let word = cursor.word()?;
        if word == ".reg" {
            declare(cursor, body)?;
        } else if cursor.take(':') {
            if labels.insert(word, code.len()).is_some() {
                return Err(Error::new(
                    line,
                    format!("Duplicate definition of label '{word}'"),
                ));
            }
        } else if word == "bra" || word == "bra.uni" {
            branches.push((code.len(), cursor.word()?, line));
            cursor.expect(';')?;
            let op = Op::Branch { target: usize::MAX };
            code.push(Instruction { guard, op });
        } else {
            let operands = operands(cursor)?;
            let op = decode::op(body, word, &operands, line)?;
            code.push(Instruction { guard, op });
        }
    }
    for (index, label, line) in branches {
        let target = *labels
            .get(label)
            .ok_or_else(|| Error::new(line, format!("Unknown symbol '{label}'")))?;
        code[index].op = Op::Branch { target };
    }
    // Falling off the end is returning.
    let op = Op::Return;
    code.push(Instruction { guard: None, op });
    Ok(code)
}

/// `.reg .b32 %a, %b<4>;`
fn declare(cursor: &mut Cursor, body: &mut Body) -> Result<(), Error> {
    let ty = cursor.ty()?;
    loop {
        let line = cursor.line();
        let name = cursor.word()?.to_owned();
        if cursor.take('<') {
            let Some(&Token::Int(count)) = cursor.token() else {
                return Err(unexpected(line, &name));
            };
            cursor.expect('>')?;
            for number in 0..count {
                body.declare(format!("{name}{number}"), ty, line)?;
            }
        } else {
            body.declare(name, ty, line)?;
        }
        if cursor.take(';') {
            return Ok(());
        }
        cursor.expect(',')?;
    }
}

/// What an instruction is given.
#[derive(Debug, PartialEq)]
pub(super) enum Operand {
    Name(String),
    Int(u64),
    Float32(u32),
    Float64(u64),
    /// `[name + offset]`
    Address(String, i64),
    /// `{a, b}`
    Group(Vec<String>),
}

/// All operands, and the semicolon behind them.
fn operands(cursor: &mut Cursor) -> Result<Vec<Operand>, Error> {
    let mut operands = Vec::new();
    if cursor.take(';') {
        return Ok(operands);
    }
    loop {
        operands.push(operand(cursor)?);
        if cursor.take(';') {
            return Ok(operands);
        }
        cursor.expect(',')?;
    }
}

fn operand(cursor: &mut Cursor) -> Result<Operand, Error> {
    let line = cursor.line();
    match cursor.token() {
        Some(Token::Word(name)) => Ok(Operand::Name(name.clone())),
        Some(&Token::Int(value)) => Ok(Operand::Int(value)),
        Some(&Token::Float32(bits)) => Ok(Operand::Float32(bits)),
        Some(&Token::Float64(bits)) => Ok(Operand::Float64(bits)),
        Some(Token::Mark('-')) => match cursor.token() {
            Some(&Token::Int(value)) => Ok(Operand::Int(value.wrapping_neg())),
            _ => Err(unexpected(line, "-")),
        },
        Some(Token::Mark('[')) => {
            let name = cursor.word()?.to_owned();
            let sign = if cursor.take('+') { 1 } else { -1 };
            if cursor.take(']') {
                return Ok(Operand::Address(name, 0));
            }
            let negative = cursor.take('-');
            match cursor.token() {
                Some(&Token::Int(value)) if sign == 1 || negative => {
                    cursor.expect(']')?;
                    let offset = i64::try_from(value).map_err(|_| unexpected(line, &name))?;
                    Ok(Operand::Address(
                        name,
                        if negative { -offset } else { offset },
                    ))
                }
                _ => Err(unexpected(line, &name)),
            }
        }
        Some(Token::Mark('{')) => {
            let mut names = Vec::new();
            loop {
                names.push(cursor.word()?.to_owned());
                if cursor.take('}') {
                    return Ok(Operand::Group(names));
                }
                cursor.expect(',')?;
            }
        }
        other => Err(unexpected(line, &format!("{other:?}"))),
    }
}

/// A kernel's names while its body is read.
pub(super) struct Body<'a> {
    pub(super) params: &'a [Param],
    registers: HashMap<String, (Register, Type)>,
}

const PREDICATE: Type = Type {
    kind: Kind::Predicate,
    bytes: 1,
};

impl Body<'_> {
    fn declare(&mut self, name: String, ty: Type, line: u32) -> Result<(), Error> {
        let register = self.registers.len();
        let duplicate = format!("Duplicate definition of variable '{name}'");
        match self.registers.insert(name, (register, ty)) {
            None => Ok(()),
            Some(_) => Err(Error::new(line, duplicate)),
        }
    }

    /// The register of this name, if an operand of `ty` may be in it.
    pub(super) fn register(&self, name: &str, ty: Type, line: u32) -> Result<Register, Error> {
        let (register, declared) = self.lookup(name, line)?;
        if fits(declared, ty) && declared.bytes == ty.bytes {
            Ok(register)
        } else {
            Err(mismatch(name, line))
        }
    }

    /// The register of this name, if an operand of `ty` or narrower may be in it, as for loads and stores.
    pub(super) fn wide_register(&self, name: &str, ty: Type, line: u32) -> Result<Register, Error> {
        let (register, declared) = self.lookup(name, line)?;
        let is_wider =
            declared.bytes > ty.bytes && declared.kind != Kind::Float && ty.kind != Kind::Float;
        if fits(declared, ty) && (declared.bytes == ty.bytes || is_wider) {
            Ok(register)
        } else {
            Err(mismatch(name, line))
        }
    }

    pub(super) fn is_register(&self, name: &str) -> bool {
        self.registers.contains_key(name)
    }

    fn lookup(&self, name: &str, line: u32) -> Result<(Register, Type), Error> {
        self.registers
            .get(name)
            .copied()
            .ok_or_else(|| Error::new(line, format!("Unknown symbol '{name}'")))
    }
}

fn fits(declared: Type, wanted: Type) -> bool {
    let group = |ty: Type| match ty.kind {
        Kind::Bits => 0,
        Kind::Unsigned | Kind::Signed => 1,
        Kind::Float => 2,
        Kind::Predicate => 3,
    };
    let (declared, wanted) = (group(declared), group(wanted));
    declared == wanted || (declared == 0 && wanted != 3) || (wanted == 0 && declared != 3)
}

fn mismatch(name: &str, line: u32) -> Error {
    Error::new(
        line,
        format!("Arguments mismatch for instruction: type of '{name}'"),
    )
}

/// Where in the file the parser is.
struct Cursor<'a> {
    tokens: &'a [Placed],
    next: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<&'a Token> {
        self.tokens.get(self.next).map(|(token, _)| token)
    }

    fn line(&self) -> u32 {
        let index = self.next.min(self.tokens.len().saturating_sub(1));
        self.tokens.get(index).map_or(1, |(_, line)| *line)
    }

    fn token(&mut self) -> Option<&'a Token> {
        let token = self.peek();
        self.next += 1;
        token
    }

    fn take(&mut self, mark: char) -> bool {
        let found = self.peek() == Some(&Token::Mark(mark));
        self.next += usize::from(found);
        found
    }

    fn expect(&mut self, mark: char) -> Result<(), Error> {
        let line = self.line();
        if self.take(mark) {
            return Ok(());
        }
        let found = self
            .peek()
            .map_or_else(|| "end of file".into(), |token| format!("{token:?}"));
        Err(unexpected(line, &found))
    }

    fn word(&mut self) -> Result<&'a str, Error> {
        let line = self.line();
        match self.token() {
            Some(Token::Word(word)) => Ok(word),
            Some(token) => Err(unexpected(line, &format!("{token:?}"))),
            None => Err(unexpected(line, "end of file")),
        }
    }

    fn directive(&mut self, name: &str) -> Result<(), Error> {
        let line = self.line();
        match self.word()? {
            word if word == name => Ok(()),
            word => Err(unexpected(line, word)),
        }
    }

    /// `.u64`
    fn ty(&mut self) -> Result<Type, Error> {
        let line = self.line();
        let word = self.word()?;
        word.strip_prefix('.')
            .and_then(Type::parse)
            .ok_or_else(|| unexpected(line, word))
    }
}
