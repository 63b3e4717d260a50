//! Text → tokens.

use super::Error;

/// The smallest pieces with a meaning.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// A name, an opcode with its dots, or a directive.
    Word(String),
    /// An integer.
    Int(u64),
    /// `8.0`, as in `.version`.
    Decimal(u32, u32),
    /// `0f` and 8 digits: the bits of an f32.
    Float32(u32),
    /// `0d` and 16 digits: the bits of an f64.
    Float64(u64),
    /// Anything else that is not space.
    Mark(char),
}

/// A token and the line that it is on.
pub(super) type Placed = (Token, u32);

/// Cuts the text into tokens; comments are gone.
pub(super) fn tokens(text: &str) -> Result<Vec<Placed>, Error> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            let end = rest
                .find("*/")
                .ok_or_else(|| Error::new(line, "Unterminated comment"))?;
            end + 2
        } else if first.is_whitespace() {
            first.len_utf8()
        } else if first.is_ascii_digit() {
            let length = length_while(rest, |c| c.is_ascii_alphanumeric() || c == '.');
            tokens.push((
                number(&rest[..length]).ok_or_else(|| unexpected(line, &rest[..length]))?,
                line,
            ));
            length
        } else if is_word(first) {
            let length = length_while(rest, is_word);
            tokens.push((Token::Word(rest[..length].into()), line));
            length
        } else {
            tokens.push((Token::Mark(first), line));
            first.len_utf8()
        };
        line += u32::try_from(rest[..length].matches('\n').count()).unwrap_or(0);
        rest = &rest[length..];
    }
    Ok(tokens)
}

pub(super) fn unexpected(line: u32, text: &str) -> Error {
    Error::new(line, format!("Parsing error near '{text}': syntax error"))
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%' | '.')
}

fn length_while(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|c| !belongs(c)).unwrap_or(text.len())
}

fn number(text: &str) -> Option<Token> {
    let hex = |prefixes: [&str; 2]| {
        prefixes
            .into_iter()
            .find_map(|prefix| text.strip_prefix(prefix))
    };
    if let Some(digits) = hex(["0f", "0F"]).filter(|digits| digits.len() == 8) {
        return u32::from_str_radix(digits, 16).ok().map(Token::Float32);
    }
    if let Some(digits) = hex(["0d", "0D"]).filter(|digits| digits.len() == 16) {
        return u64::from_str_radix(digits, 16).ok().map(Token::Float64);
    }
    let integer = text.strip_suffix('U').unwrap_or(text);
    if let Some(digits) = hex(["0x", "0X"]) {
        return u64::from_str_radix(digits.strip_suffix('U').unwrap_or(digits), 16)
            .ok()
            .map(Token::Int);
    }
    if let Some((major, minor)) = text.split_once('.') {
        return Some(Token::Decimal(major.parse().ok()?, minor.parse().ok()?));
    }
    integer.parse().ok().map(Token::Int)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_in_pieces() {
        let found = tokens("/* a\nb */ @!%p1 ld.param.u64 %rd1, [x+8]; // 0x1F").unwrap();
        let word = |text: &str| Token::Word(text.into());
        let expected = [
            Token::Mark('@'),
            Token::Mark('!'),
            word("%p1"),
            word("ld.param.u64"),
            word("%rd1"),
            Token::Mark(','),
            Token::Mark('['),
            word("x"),
            Token::Mark('+'),
            Token::Int(8),
            Token::Mark(']'),
            Token::Mark(';'),
        ];
        assert_eq!(
            found
                .iter()
                .map(|(token, _)| token.clone())
                .collect::<Vec<_>>(),
            expected
        );
        assert!(found.iter().all(|(_, line)| *line == 2));
    }

    #[test]
    fn numbers() {
        let table = [
            ("0x1F", Token::Int(31)),
            ("42U", Token::Int(42)),
            ("8.0", Token::Decimal(8, 0)),
            ("0f3F800000", Token::Float32(0x3f80_0000)),
            ("0d3FF0000000000000", Token::Float64(0x3ff0_0000_0000_0000)),
        ];
        for (text, token) in table {
            assert_eq!(number(text), Some(token), "{text}");
        }
        assert_eq!(number("12abc"), None);
    }
}
