/// Reason why a grammar cannot constrain an output.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// A schema that cannot be honoured.
    #[error("the schema cannot be honoured at {}: {problem}", place(.pointer))]
    Schema {
        /// JSON pointer of the keyword or the subschema; empty for the root.
        pointer: String,
        problem: String,
    },
    #[error("the {kind} is not valid: {problem}")]
    Invalid { kind: &'static str, problem: String },
    #[error("the {kind} is too large: {problem}")]
    TooLarge { kind: &'static str, problem: String },
    /// The base's vocabulary cannot be used.
    #[error("grammars cannot be used with this base: {0}")]
    Vocabulary(String),
}

fn place(pointer: &str) -> String {
    match pointer {
        "" => "its root".to_owned(),
        pointer => format!("`{pointer}`"),
    }
}

impl GrammarError {
    /// A schema that cannot be honoured at `pointer`.
    pub(super) fn schema(pointer: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Schema {
            pointer: pointer.into(),
            problem: problem.into(),
        }
    }
}

/// The line that says what is wrong in a message of several: that with `error:`, as in those of the
/// crate regex, or else the first. Cut to a readable length.
pub(super) fn one_line(message: &str) -> String {
    const MOST: usize = 300;
    let mut lines = message.lines();
    let first = lines.next().unwrap_or_default();
    let line = lines.find_map(|line| line.strip_prefix("error:"));
    let line = line.unwrap_or(first).trim();
    let line = line.strip_prefix("Unsatisfiable schema: ").unwrap_or(line);
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}
