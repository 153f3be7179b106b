//! Characters to tokens, one at a time, each with its place. Words and names are slices of the text.

/// A token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Token<'a> {
    /// A bare word.
    Word(&'a str),
    /// A quoted name.
    Quoted(&'a str),
    /// Digits.
    Int(i64),
    /// A number with a point or exponent.
    Float(f32),
    /// Punctuation, at most two characters.
    Sign(&'static str),
    /// A character that begins no token.
    Unknown(&'a str),
    /// A number out of range.
    Beyond(&'a str),
    /// A quoted name without its end.
    Open,
    /// The end of the text.
    End,
}

impl Token<'_> {
    /// How a message names it.
    pub fn describe(&self) -> String {
        match self {
            Token::Word(w) => format!("`{w}`"),
            Token::Quoted(w) => format!("\"{w}\""),
            Token::Int(n) => format!("`{n}`"),
            Token::Float(n) => format!("`{n:?}`"),
            Token::Sign(s) => format!("`{s}`"),
            Token::Unknown(character) => format!("the character `{character}`"),
            Token::Beyond(number) => format!("the number {number}"),
            Token::Open => "a quoted name without its end".into(),
            Token::End => "the end of the text".into(),
        }
    }
}

const SIGNS: [&str; 18] =
    ["->", "<-", "..", "(", ")", "[", "]", "{", "}", ":", ";", ",", "|", "@", "+", "-", "*", "/"];

/// A text being split; behind its last token there is [`Token::End`] for ever.
pub struct Lexer<'a> {
    text: &'a str,
    /// What is left of the line, and where that begins.
    rest: &'a str,
    at: usize,
    /// Where the next line begins.
    next_line: usize,
}

impl<'a> Lexer<'a> {
    /// At the beginning of a text.
    pub fn new(text: &'a str) -> Self {
        let mut lexer = Lexer { text, rest: "", at: 0, next_line: 0 };
        lexer.line();
        lexer
    }

    /// Goes on to the next line; false if there is none.
    fn line(&mut self) -> bool {
        let rest = &self.text[self.next_line..];
        if rest.is_empty() {
            return false;
        }
        let length = rest.find('\n').unwrap_or(rest.len());
        self.at = self.next_line;
        self.rest = rest[..length].strip_suffix('\r').unwrap_or(&rest[..length]);
        self.next_line = (self.at + length + 1).min(self.text.len());
        true
    }

    /// The next token and the byte where it begins. Characters that make no token are not passed.
    pub fn next(&mut self) -> (Token<'a>, usize) {
        loop {
            let trimmed = self.rest.trim_start();
            self.at += self.rest.len() - trimmed.len();
            self.rest = trimmed;
            if !(trimmed.is_empty() || trimmed.starts_with('#') || trimmed.starts_with("//")) {
                let (token, length) = token(trimmed);
                let at = self.at;
                self.at += length;
                self.rest = &trimmed[length..];
                return (token, at);
            }
            if !self.line() {
                return (Token::End, self.at);
            }
        }
    }

    /// Line and column, both from 1, of a byte.
    pub fn place(&self, at: usize) -> (u32, u32) {
        let before = &self.text[..at];
        let line = before.rfind('\n').map_or(0, |end| end + 1);
        (before.matches('\n').count() as u32 + 1, before[line..].chars().count() as u32 + 1)
    }
}

/// The first token of `text` and its length in bytes.
fn token(text: &str) -> (Token<'_>, usize) {
    let first = text.chars().next().unwrap_or(' ');
    if first == '"' {
        return match text[1..].find('"') {
            Some(end) => (Token::Quoted(&text[1..=end]), end + 2),
            None => (Token::Open, 0),
        };
    }
    if first.is_ascii_digit() {
        return number(text);
    }
    if first.is_alphabetic() || first == '_' {
        let end = word_end(text);
        return (Token::Word(&text[..end]), end);
    }
    match SIGNS.iter().find(|s| text.starts_with(**s)) {
        Some(sign) => (Token::Sign(sign), sign.len()),
        None => (Token::Unknown(&text[..first.len_utf8()]), 0),
    }
}

/// Where the word at the beginning of a text ends.
fn word_end(text: &str) -> usize {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    let end = text.bytes().take_while(plain).count();
    match text.as_bytes().get(end) {
        Some(byte) if !byte.is_ascii() => {
            text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len())
        }
        _ => end,
    }
}

fn number(text: &str) -> (Token<'_>, usize) {
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
    let digits = &text[..end];
    let token = match float {
        true => digits.parse().ok().map(Token::Float),
        false => digits.parse().ok().map(Token::Int),
    };
    match token {
        Some(token) => (token, end),
        None => (Token::Beyond(digits), 0),
    }
}
