//! A reader of Rust source: the tokens, paths and imports that the rules check.

/// A word, number or mark of the source. Comments, strings and characters are not tokens.
#[derive(Clone, Debug)]
pub struct Token {
    pub text: String,
    pub line: usize,
}

impl Token {
    /// Whether the token is an identifier or a keyword.
    pub fn is_name(&self) -> bool {
        self.text
            .starts_with(|c: char| c.is_alphabetic() || c == '_')
    }
}

/// The tokens of a source text.
pub fn lex(text: &str) -> Vec<Token> {
    const MARKS: &[&str] = &["::", "=>", "==", "!=", "->", "<=", ">="];
    let chars: Vec<char> = text.chars().collect();
    let (mut tokens, mut at, mut line) = (Vec::new(), 0, 1);
    while at < chars.len() {
        let rest = &chars[at..];
        let (length, kept) = match skipped(rest) {
            Some(length) => (length, false),
            None if is_word(rest[0]) => (rest.iter().take_while(|c| is_word(**c)).count(), true),
            None => {
                let two: String = rest.iter().take(2).collect();
                (if MARKS.contains(&two.as_str()) { 2 } else { 1 }, true)
            }
        };
        if kept {
            tokens.push(Token {
                text: rest[..length].iter().collect(),
                line,
            });
        }
        line += rest[..length].iter().filter(|c| **c == '\n').count();
        at += length;
    }
    tokens
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The length of the white space, comment, string, character or lifetime at the start of `rest`.
fn skipped(rest: &[char]) -> Option<usize> {
    let starts = |prefix: &str| prefix.chars().eq(rest.iter().copied().take(prefix.len()));
    if rest[0].is_whitespace() {
        return Some(1);
    }
    if starts("//") {
        return Some(rest.iter().take_while(|c| **c != '\n').count());
    }
    if starts("/*") {
        return Some(block_comment(rest));
    }
    // A string may carry a prefix: b, c, r, br, cr; `r#name` is a name, not a string.
    let prefix = rest
        .iter()
        .take_while(|c| matches!(c, 'b' | 'c' | 'r'))
        .count()
        .min(2);
    let raw = rest[..prefix].contains(&'r');
    let hashes = rest[prefix..]
        .iter()
        .take_while(|c| raw && **c == '#')
        .count();
    match rest.get(prefix + hashes) {
        Some('"') if raw => Some(raw_string(rest, prefix + hashes + 1, hashes)),
        Some('"') => Some(quoted(rest, prefix + 1, '"')),
        Some('\'') if prefix == 0 || starts("b'") => Some(character(rest, prefix)),
        _ => None,
    }
}

fn block_comment(rest: &[char]) -> usize {
    let (mut at, mut depth) = (0, 0);
    while at < rest.len() {
        match (rest[at], rest.get(at + 1)) {
            ('/', Some('*')) => depth += 1,
            ('*', Some('/')) => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            break;
        }
    }
    at
}

fn raw_string(rest: &[char], mut at: usize, hashes: usize) -> usize {
    while at < rest.len() {
        let closing =
            rest[at] == '"' && rest[at + 1..].iter().take_while(|c| **c == '#').count() >= hashes;
        at += 1;
        if closing {
            return at + hashes;
        }
    }
    at
}

/// The length including the closing `quote`, which is at `at` or later.
fn quoted(rest: &[char], mut at: usize, quote: char) -> usize {
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn character(rest: &[char], prefix: usize) -> usize {
    let body = prefix + 1;
    if rest.get(body) == Some(&'\\') || rest.get(body + 1) == Some(&'\'') {
        return quoted(rest, body, '\'');
    }
    body + rest[body..].iter().take_while(|c| is_word(**c)).count() // a lifetime
}

/// The tokens without items under `#[cfg(test)]`.
pub fn without_tests(tokens: &[Token]) -> Vec<Token> {
    const MARK: &[&str] = &["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut kept, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        let marked = tokens[at..]
            .iter()
            .map(|token| token.text.as_str())
            .take(MARK.len());
        if marked.eq(MARK.iter().copied()) {
            at = end_of_item(tokens, at + MARK.len());
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    kept
}

/// The end of the item that begins at `at`: past its body or its semicolon.
fn end_of_item(tokens: &[Token], mut at: usize) -> usize {
    let mut depth = 0;
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 && matches!(tokens[at - 1].text.as_str(), "}" | ";") {
            break;
        }
    }
    at
}

/// A path in the code. Paths from `self` and `super` are made absolute: they begin with `crate`.
#[derive(Debug)]
pub struct PathInCode {
    pub names: Vec<String>,
    pub line: usize,
}

/// All paths of `tokens`, which are those of `module`. A group in a `use` gives one path per leaf.
pub fn paths(tokens: &[Token], module: &[String]) -> Vec<PathInCode> {
    let mut found = Vec::new();
    let mut inline: Vec<(String, usize)> = Vec::new();
    let (mut at, mut depth) = (0, 0);
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                inline.retain(|(_, opened)| *opened < depth + 1);
            }
            "mod" if tokens.get(at + 2).is_some_and(|token| token.text == "{") => {
                inline.push((tokens[at + 1].text.clone(), depth + 1));
            }
            _ => {}
        }
        if !tokens[at].is_name() {
            at += 1;
            continue;
        }
        let mut written = Vec::new();
        at = read_path(tokens, at, &[], &mut written);
        let here = || {
            module
                .iter()
                .chain(inline.iter().map(|(name, _)| name))
                .cloned()
        };
        found.extend(
            written
                .into_iter()
                .map(|path| absolute(path, here().collect())),
        );
    }
    found
}

/// Reads the path at `at`, which continues `prefix`; returns the place after it.
fn read_path(
    tokens: &[Token],
    mut at: usize,
    prefix: &[String],
    found: &mut Vec<PathInCode>,
) -> usize {
    let mark = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    let line = tokens[at].line;
    let mut names = prefix.to_vec();
    loop {
        match mark(at) {
            "{" if !names.is_empty() => {
                at += 1;
                while at < tokens.len() && mark(at) != "}" {
                    at = match mark(at) {
                        "as" => at + 2,
                        "," => at + 1,
                        _ => read_path(tokens, at, &names, found),
                    };
                }
                return at + 1;
            }
            name => names.push(name.to_owned()),
        }
        at += 1;
        let goes_on =
            tokens.get(at + 1).is_some_and(Token::is_name) || matches!(mark(at + 1), "{" | "*");
        if mark(at) != "::" || !goes_on {
            found.push(PathInCode { names, line });
            return at;
        }
        at += 1;
    }
}

fn absolute(path: PathInCode, mut here: Vec<String>) -> PathInCode {
    let supers = path
        .names
        .iter()
        .take_while(|name| *name == "super")
        .count();
    let relative = supers > 0 || path.names[0] == "self";
    if !relative {
        return path;
    }
    here.truncate(here.len().saturating_sub(supers));
    let own = usize::from(path.names[0] == "self");
    let rest = path.names.into_iter().skip(supers.max(own));
    let names = std::iter::once("crate".to_owned())
        .chain(here)
        .chain(rest)
        .collect();
    PathInCode {
        names,
        line: path.line,
    }
}

/// A name that a `use` declaration brings into a file.
#[derive(Debug)]
pub struct Import {
    /// The name in the file; `*` for a glob.
    pub name: String,
    /// The imported path, without the `*` of a glob.
    pub path: Vec<String>,
    /// Whether it is a re-export, visible outside the file.
    pub public: bool,
}

/// The imports of a file of `module`.
pub fn imports(tokens: &[Token], module: &[String]) -> Vec<Import> {
    let mut found = Vec::new();
    for at in 0..tokens.len() {
        if tokens[at].text == "use" {
            let public = at > 0 && matches!(tokens[at - 1].text.as_str(), "pub" | ")");
            read_imports(tokens, at + 1, &[], public, &mut found);
        }
    }
    for import in &mut found {
        let names = std::mem::take(&mut import.path);
        import.path = absolute(PathInCode { names, line: 0 }, module.to_vec()).names;
    }
    found
}

/// Reads the tree of imports at `at`, which continues `prefix`; returns the place after it.
fn read_imports(
    tokens: &[Token],
    mut at: usize,
    prefix: &[String],
    public: bool,
    found: &mut Vec<Import>,
) -> usize {
    let mark = |at: usize| tokens.get(at).map_or(";", |token| token.text.as_str());
    let mut path = prefix.to_vec();
    loop {
        match mark(at) {
            "{" => {
                at += 1;
                while !matches!(mark(at), "}" | ";") {
                    at = read_imports(tokens, at, &path, public, found);
                    at += usize::from(mark(at) == ",");
                }
                return at + 1;
            }
            "::" => at += 1,
            "," | "}" | ";" | "as" => break,
            "self" if !path.is_empty() => at += 1,
            name => {
                path.push(name.to_owned());
                at += 1;
            }
        }
    }
    let glob = path.last().is_some_and(|name| name == "*");
    let mut name = path.last().cloned().unwrap_or_default();
    if glob {
        path.pop();
    }
    if mark(at) == "as" {
        name = mark(at + 1).to_owned();
        at += 2;
    }
    found.push(Import { name, path, public });
    at
}

/// The tokens without `use` declarations.
pub fn without_imports(tokens: &[Token]) -> Vec<Token> {
    let mut inside = false;
    let mut kept = Vec::new();
    for token in tokens {
        inside |= token.text == "use";
        if !inside {
            kept.push(token.clone());
        }
        inside &= token.text != ";";
    }
    kept
}
