//! Translation of GBNF (llama.cpp's grammars) into Lark.
//!
//! A rule `name ::= …` becomes `name: …`, and `root` becomes `start`. Literals and classes of
//! characters become regular expressions. Comments are dropped.

use std::collections::HashMap;
use std::fmt::Write as _;

/// Whether the text is GBNF rather than Lark, which has no `::=`.
pub fn is_gbnf(text: &str) -> bool {
    text.contains("::=")
}

/// A token of GBNF.
#[derive(Clone, Debug, PartialEq)]
enum Token {
    Name(String),
    Defines,
    /// A terminal, as Lark writes it.
    Terminal(String),
    /// `( ) | * + ?` or a repetition in braces.
    Sign(String),
}

/// Translates a grammar.
///
/// # Errors
/// The problem, with its line.
pub fn to_lark(gbnf: &str) -> Result<String, String> {
    let tokens = Scanner::new(gbnf).tokens()?;
    let is_head = |i: usize| {
        matches!(tokens[i].0, Token::Name(_))
            && tokens
                .get(i + 1)
                .is_some_and(|(token, _)| *token == Token::Defines)
    };
    let mut names = Names::default();
    let mut lark = String::new();
    let mut i = 0;
    while i < tokens.len() {
        let (Token::Name(name), true) = (&tokens[i].0, is_head(i)) else {
            return Err(format!(
                "line {}: expected a rule `name ::= …`",
                tokens[i].1
            ));
        };
        let _ = write!(lark, "{}:", names.lark(name));
        i += 2;
        while i < tokens.len() && !is_head(i) {
            let text = match &tokens[i].0 {
                Token::Name(name) => format!(" {}", names.lark(name)),
                Token::Terminal(text) => format!(" {text}"),
                Token::Sign(sign) if sign == "(" || sign == "|" => format!(" {sign}"),
                Token::Sign(sign) => sign.clone(),
                Token::Defines => return Err(format!("line {}: unexpected `::=`", tokens[i].1)),
            };
            lark.push_str(&text);
            i += 1;
        }
        lark.push('\n');
    }
    match names.0.contains_key("root") {
        true => Ok(lark),
        false => Err("it has no rule `root`".to_owned()),
    }
}

/// Lark's names of GBNF's rules, which may have dashes and capitals.
#[derive(Default)]
struct Names(HashMap<String, String>);

impl Names {
    fn lark(&mut self, name: &str) -> String {
        if name == "root" {
            self.0.insert(name.to_owned(), "start".to_owned());
            return "start".to_owned();
        }
        let number = self.0.len();
        let readable: String = name
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() {
                    c.to_ascii_lowercase()
                } else {
                    '_'
                }
            })
            .collect();
        let lark = self.0.entry(name.to_owned());
        lark.or_insert_with(|| format!("r{number}_{readable}"))
            .clone()
    }
}

struct Scanner<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
}

impl<'a> Scanner<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            rest: text.chars().peekable(),
            line: 1,
        }
    }

    /// The tokens, each with its line.
    fn tokens(mut self) -> Result<Vec<(Token, usize)>, String> {
        let mut tokens = Vec::new();
        while let Some(c) = self.next() {
            let line = self.line;
            let token = match c {
                c if c.is_whitespace() => continue,
                '#' => {
                    while self.rest.peek().is_some_and(|&c| c != '\n') {
                        self.next();
                    }
                    continue;
                }
                ':' if self.next() == Some(':') && self.next() == Some('=') => Token::Defines,
                '"' => Token::Terminal(format!("/{}/", self.literal()?)),
                '[' => Token::Terminal(format!("/{}/", self.class()?)),
                '.' => Token::Terminal("/(?s:.)/".to_owned()),
                '(' | ')' | '|' | '*' | '+' | '?' => Token::Sign(c.to_string()),
                '{' => Token::Sign(self.repetition()?),
                c if is_of_name(c) => {
                    let mut name = c.to_string();
                    while let Some(c) = self.rest.next_if(|&c| is_of_name(c)) {
                        name.push(c);
                    }
                    Token::Name(name)
                }
                c => return Err(format!("line {line}: unexpected `{c}`")),
            };
            tokens.push((token, line));
        }
        Ok(tokens)
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.next();
        self.line += usize::from(c == Some('\n'));
        c
    }

    /// Regular expression of a literal whose quote was read.
    fn literal(&mut self) -> Result<String, String> {
        let mut regex = String::new();
        loop {
            match self.next() {
                Some('"') => return Ok(regex),
                Some(c) => {
                    let c = self.unescaped(c)?;
                    push_escaped(&mut regex, c);
                }
                None => return Err(format!("line {}: a literal does not end", self.line)),
            }
        }
    }

    /// Regular expression of a character class whose bracket was read.
    fn class(&mut self) -> Result<String, String> {
        let mut regex = "[".to_owned();
        if self.rest.next_if_eq(&'^').is_some() {
            regex.push('^');
        }
        let opened = regex.len();
        loop {
            match self.next() {
                Some(']') if regex.len() > opened => break,
                Some(']') => return Err(format!("line {}: an empty class", self.line)),
                // A range, unless it is the first or the last of the class.
                Some('-') if regex.len() > opened && self.rest.peek() != Some(&']') => {
                    regex.push('-');
                }
                Some(c) => {
                    let c = self.unescaped(c)?;
                    push_escaped(&mut regex, c);
                }
                None => return Err(format!("line {}: a class does not end", self.line)),
            }
        }
        regex.push(']');
        Ok(regex)
    }

    /// A repetition `{m}`, `{m,}` or `{m,n}` whose brace was read.
    fn repetition(&mut self) -> Result<String, String> {
        let mut repetition = "{".to_owned();
        loop {
            match self.next() {
                Some('}') => break,
                Some(c) if c.is_ascii_digit() || c == ',' => repetition.push(c),
                Some(' ') => {}
                _ => return Err(format!("line {}: expected `{{m,n}}`", self.line)),
            }
        }
        repetition.push('}');
        Ok(repetition)
    }

    /// The character that `c` stands for, if it is a backslash with what follows.
    fn unescaped(&mut self, c: char) -> Result<char, String> {
        if c != '\\' {
            return Ok(c);
        }
        let unknown = format!("line {}: an unknown escape", self.line);
        let digits = match self.next().ok_or_else(|| unknown.clone())? {
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            c if c.is_ascii_punctuation() => return Ok(c),
            _ => return Err(unknown),
        };
        let digits: String = (0..digits).filter_map(|_| self.next()).collect();
        let code = u32::from_str_radix(&digits, 16).ok();
        code.and_then(char::from_u32).ok_or(unknown)
    }
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

/// Appends a character to a regular expression, for itself.
fn push_escaped(regex: &mut String, c: char) {
    if c.is_alphanumeric() || c == ' ' {
        regex.push(c);
    } else {
        let _ = write!(regex, "\\x{{{:X}}}", u32::from(c));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_become_lark() {
        let gbnf = "# a list\nroot ::= item-one (\",\" ws item-one)* # of items\n\
                    item-one ::= [a-zA-Z_\\-] [^\"\\n]{1,3} |\n  \"x\\\"/\"\nws ::= \" \"?\n";
        assert!(is_gbnf(gbnf) && !is_gbnf("start: \"a\""));
        assert_eq!(
            to_lark(gbnf).unwrap(),
            "start: r1_item_one ( /\\x{2C}/ r2_ws r1_item_one)*\n\
             r1_item_one: /[a-zA-Z\\x{5F}\\x{2D}]/ /[^\\x{22}\\x{A}]/{1,3} | /x\\x{22}\\x{2F}/\n\
             r2_ws: / /?\n"
        );
    }

    #[test]
    fn what_is_no_gbnf_is_refused_with_its_line() {
        for (gbnf, problem) in [
            ("root = \"a\"\nb ::= c", "line 1"),
            ("root ::= \"a", "line 1: a literal does not end"),
            ("root ::= \"a\"\nb ::= []", "line 2: an empty class"),
            ("a ::= \"a\"", "no rule `root`"),
            ("root ::= \"\\q\"", "unknown escape"),
            ("root ::= \"a\" ::= \"b\"", "unexpected `::=`"),
            ("root ::= a{x}", "expected `{m,n}`"),
        ] {
            let found = to_lark(gbnf).unwrap_err();
            assert!(found.contains(problem), "{gbnf}: {found}");
        }
    }
}
