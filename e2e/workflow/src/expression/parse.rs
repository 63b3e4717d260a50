//! From text to a tree.

use serde_json::Value;

use super::Error;

/// An expression.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Literal(Value),
    Context(String),
    Index(Box<Self>, Box<Self>),
    Call(String, Vec<Self>),
    Not(Box<Self>),
    Binary(Operator, Box<Self>, Box<Self>),
}

impl Node {
    /// Whether a status function is called in it.
    pub(super) fn asks_for_status(&self) -> bool {
        match self {
            Self::Literal(_) | Self::Context(_) => false,
            Self::Call(name, arguments) => {
                let status = ["success", "failure", "always", "cancelled"];
                status.contains(&name.to_lowercase().as_str())
                    || arguments.iter().any(Self::asks_for_status)
            }
            Self::Not(inner) => inner.asks_for_status(),
            Self::Index(left, right) | Self::Binary(_, left, right) => {
                left.asks_for_status() || right.asks_for_status()
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Or,
    And,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Operators, and how tightly they bind; the longer ones first.
const OPERATORS: [(&str, Operator, u8); 8] = [
    ("||", Operator::Or, 1),
    ("&&", Operator::And, 2),
    ("==", Operator::Equal, 3),
    ("!=", Operator::NotEqual, 3),
    ("<=", Operator::LessOrEqual, 4),
    (">=", Operator::GreaterOrEqual, 4),
    ("<", Operator::Less, 4),
    (">", Operator::Greater, 4),
];

/// Reads a whole expression.
pub(super) fn parse(expression: &str) -> Result<Node, Error> {
    let mut parser = Parser {
        whole: expression,
        rest: expression,
    };
    let node = parser.binary(1)?;
    parser.skip();
    if parser.rest.is_empty() {
        Ok(node)
    } else {
        Err(parser.unexpected())
    }
}

struct Parser<'a> {
    whole: &'a str,
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn unexpected(&self) -> Error {
        let symbol = self.rest.split_whitespace().next().unwrap_or_default();
        Error::Symbol {
            symbol: symbol.to_owned(),
            expression: self.whole.trim().to_owned(),
        }
    }

    fn take(&mut self, word: &str) -> bool {
        self.skip();
        match self.rest.strip_prefix(word) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, word: &str) -> Result<(), Error> {
        if self.take(word) {
            Ok(())
        } else {
            Err(self.unexpected())
        }
    }

    fn binary(&mut self, least: u8) -> Result<Node, Error> {
        let mut left = self.unary()?;
        loop {
            self.skip();
            let next = OPERATORS
                .iter()
                .find(|(word, _, binds)| self.rest.starts_with(word) && *binds >= least);
            let Some((word, operator, binds)) = next else {
                return Ok(left);
            };
            self.take(word);
            let right = self.binary(binds + 1)?;
            left = Node::Binary(*operator, Box::new(left), Box::new(right));
        }
    }

    fn unary(&mut self) -> Result<Node, Error> {
        if self.take("!") {
            return Ok(Node::Not(Box::new(self.unary()?)));
        }
        let mut node = self.primary()?;
        loop {
            let index = if self.take(".") {
                let name = self.word()?;
                Node::Literal(name.into())
            } else if self.take("[") {
                let index = self.binary(1)?;
                self.expect("]")?;
                index
            } else {
                return Ok(node);
            };
            node = Node::Index(Box::new(node), Box::new(index));
        }
    }

    fn primary(&mut self) -> Result<Node, Error> {
        if self.take("(") {
            let inner = self.binary(1)?;
            self.expect(")")?;
            return Ok(inner);
        }
        if self.take("'") {
            return self.quoted();
        }
        if self
            .rest
            .starts_with(|c: char| c.is_ascii_digit() || c == '-')
        {
            return self.number();
        }
        let word = self.word()?;
        if self.take("(") {
            return Ok(Node::Call(word.to_owned(), self.arguments()?));
        }
        Ok(match word {
            "true" => Node::Literal(true.into()),
            "false" => Node::Literal(false.into()),
            "null" => Node::Literal(Value::Null),
            context => Node::Context(context.to_owned()),
        })
    }

    fn arguments(&mut self) -> Result<Vec<Node>, Error> {
        let mut arguments = Vec::new();
        if self.take(")") {
            return Ok(arguments);
        }
        loop {
            arguments.push(self.binary(1)?);
            if self.take(")") {
                return Ok(arguments);
            }
            self.expect(",")?;
        }
    }

    fn word(&mut self) -> Result<&'a str, Error> {
        self.skip();
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        if end == 0 || self.rest.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(self.unexpected());
        }
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(word)
    }

    /// The rest of a text in quotes; two quotes in it are one.
    fn quoted(&mut self) -> Result<Node, Error> {
        let mut text = String::new();
        loop {
            let (part, rest) = self
                .rest
                .split_once('\'')
                .ok_or_else(|| self.unexpected())?;
            text.push_str(part);
            self.rest = rest;
            match rest.strip_prefix('\'') {
                Some(rest) => {
                    text.push('\'');
                    self.rest = rest;
                }
                None => return Ok(Node::Literal(text.into())),
            }
        }
    }

    fn number(&mut self) -> Result<Node, Error> {
        let is_part = |c: char| c.is_ascii_digit() || c == '.' || c == '-';
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        let value = serde_json::from_str(digits).map_err(|_| self.unexpected())?;
        self.rest = rest;
        Ok(Node::Literal(value))
    }
}
