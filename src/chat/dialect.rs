use std::fmt;
use std::str::FromStr;

/// The form in which a model writes calls of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ToolDialect {
    /// `<tool_call>{"name": "f", "arguments": {...}}</tool_call>`: Hermes, Qwen2.5, Qwen3.
    Hermes,
    /// `{"name": "f", "parameters": {...}}` as the whole answer: Llama 3.1 to 3.3.
    Llama3Json,
    /// `[TOOL_CALLS][{"name": "f", "arguments": {...}}]` or `[TOOL_CALLS]f[ARGS]{...}`: Mistral.
    Mistral,
    /// `<tool_call><function=f><parameter=a>...</parameter></function></tool_call>`: Qwen3-Coder.
    Qwen3Coder,
    /// `[f(a=1), g()]` as the whole answer: Llama 4 and others.
    Pythonic,
}

/// A name that no dialect has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is unknown; expected one of {expected}")]
pub struct UnknownDialect {
    pub found: String,
    pub expected: String,
}

impl ToolDialect {
    /// All dialects.
    pub const ALL: [Self; 5] = [
        Self::Hermes,
        Self::Llama3Json,
        Self::Mistral,
        Self::Qwen3Coder,
        Self::Pythonic,
    ];

    /// The name of vLLM's parser.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hermes => "hermes",
            Self::Llama3Json => "llama3_json",
            Self::Mistral => "mistral",
            Self::Qwen3Coder => "qwen3_coder",
            Self::Pythonic => "pythonic",
        }
    }

    /// The dialect that a chat template teaches, by the markers in its source.
    pub fn detect(template: &str) -> Option<Self> {
        let markers = [
            // Before Hermes, whose marker Qwen3-Coder's template has too.
            ("<function=", Self::Qwen3Coder),
            ("[TOOL_CALLS]", Self::Mistral),
            ("<tool_call>", Self::Hermes),
            ("<|python_tag|>", Self::Llama3Json),
            (r#""parameters": dictionary of argument"#, Self::Llama3Json),
            ("<|python_start|>", Self::Pythonic),
            ("[func_name1(", Self::Pythonic),
        ];
        let found = markers.iter().find(|(marker, _)| template.contains(marker));
        found.map(|&(_, dialect)| dialect)
    }

    /// Whether markers of the dialect are special tokens, which a stream must then not skip.
    pub fn has_special_markers(self) -> bool {
        matches!(self, Self::Mistral | Self::Llama3Json | Self::Pythonic)
    }

    /// Texts that begin calls anywhere in an answer. None is a prefix of another.
    pub(super) fn markers(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["<tool_call>"],
            Self::Llama3Json => &["<|python_tag|>"],
            Self::Mistral => &["[TOOL_CALLS]"],
            Self::Qwen3Coder => &["<tool_call>", "<function="],
            Self::Pythonic => &["<|python_start|>"],
        }
    }

    /// Character that begins calls without a marker, if nothing else came before.
    pub(super) fn opener(self) -> Option<char> {
        match self {
            Self::Llama3Json => Some('{'),
            Self::Pythonic => Some('['),
            Self::Hermes | Self::Mistral | Self::Qwen3Coder => None,
        }
    }

    /// A new id of a call. Mistral's templates take only nine alphanumeric characters.
    pub(super) fn call_id(self) -> String {
        use rand::Rng;
        use rand::distr::Alphanumeric;
        let random = |count| rand::rng().sample_iter(Alphanumeric).take(count);
        match self {
            Self::Mistral => random(9).map(char::from).collect(),
            _ => "call_".chars().chain(random(24).map(char::from)).collect(),
        }
    }
}

impl fmt::Display for ToolDialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ToolDialect {
    type Err = UnknownDialect;

    fn from_str(name: &str) -> Result<Self, UnknownDialect> {
        let found = Self::ALL.into_iter().find(|dialect| dialect.name() == name);
        found.ok_or_else(|| UnknownDialect {
            found: name.to_owned(),
            expected: Self::ALL.map(Self::name).join(", "),
        })
    }
}
