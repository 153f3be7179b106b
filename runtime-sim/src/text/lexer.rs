//! Characters to tokens, each with its place.

/// A token.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// A bare word.
    Word(String),
    /// A quoted name.
    Quoted(String),
    /// Digits.
    Int(i64),
    /// A number with a point or exponent.
    Float(f32),
    /// Punctuation, at most two characters.
    Sign(&'static str),
    /// The end of the text.
    End,
}

impl Token {
    /// How a message names it.
    pub fn describe(&self) -> String {
        match self {
            Token::Word(w) => format!("`{w}`"),
            Token::Quoted(w) => format!("\"{w}\""),
            Token::Int(n) => format!("`{n}`"),
            Token::Float(n) => format!("`{n:?}`"),
            Token::Sign(s) => format!("`{s}`"),
            Token::End => "the end of the text".into(),
        }
    }
}

/// A token with its line and column.
#[derive(Clone, Debug, PartialEq)]
pub struct Spanned {
    /// The token.
    pub token: Token,
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
}

const SIGNS: [&str; 18] =
    ["->", "<-", "..", "(", ")", "[", "]", "{", "}", ":", ";", ",", "|", "@", "+", "-", "*", "/"];

/// Splits a text; the last token is [`Token::End`]. Fails with the place and the offending characters.
pub fn tokens(text: &str) -> Result<Vec<Spanned>, (u32, u32, String)> {
    let mut out = Vec::new();
    let mut last = (1, 1);
    for (number, line) in text.lines().enumerate() {
        let number = number as u32 + 1;
        let (mut rest, mut column) = (line, 1);
        let characters = |text: &str| text.chars().count() as u32;
        loop {
            let trimmed = rest.trim_start();
            column += characters(&rest[..rest.len() - trimmed.len()]);
            last = (number, column);
            if trimmed.is_empty() || trimmed.starts_with('#') || trimmed.starts_with("//") {
                break;
            }
            let (token, length) = token(trimmed).map_err(|what| (number, column, what))?;
            out.push(Spanned { token, line: number, column });
            column += characters(&trimmed[..length]);
            rest = &trimmed[length..];
        }
    }
    out.push(Spanned { token: Token::End, line: last.0, column: last.1 });
    Ok(out)
}

/// The first token of `text` and its length in bytes.
fn token(text: &str) -> Result<(Token, usize), String> {
    let first = text.chars().next().unwrap_or(' ');
    if first == '"' {
        let end = text[1..].find('"').ok_or("a quoted name without its end")?;
        return Ok((Token::Quoted(text[1..=end].into()), end + 2));
    }
    if first.is_ascii_digit() {
        return number(text);
    }
    if first.is_alphabetic() || first == '_' {
        let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
        return Ok((Token::Word(text[..end].into()), end));
    }
    let sign = SIGNS.iter().find(|s| text.starts_with(**s));
    sign.map(|s| (Token::Sign(s), s.len())).ok_or_else(|| format!("the character `{first}`"))
}

fn number(text: &str) -> Result<(Token, usize), String> {
    let digits = |from: usize| text[from..].bytes().take_while(u8::is_ascii_digit).count();
    let mut end = digits(0);
    let mut float = false;
    if text[end..].starts_with('.') && digits(end + 1) > 0 {
        end += 1 + digits(end + 1);
        float = true;
    }
    if text[end..].starts_with(['e', 'E']) {
        let sign = usize::from(text[end + 1..].starts_with(['+', '-']));
        if digits(end + 1 + sign) > 0 {
            end += 1 + sign + digits(end + 1 + sign);
            float = true;
        }
    }
    let bad = || format!("the number {}", &text[..end]);
    let token = match float {
        true => Token::Float(text[..end].parse().map_err(|_| bad())?),
        false => Token::Int(text[..end].parse().map_err(|_| bad())?),
    };
    Ok((token, end))
}
