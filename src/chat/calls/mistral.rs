use super::expect::Expect;
use super::json_call::JsonCall;
use super::{CallReader, Calls, NoCall, Progress};
use crate::chat::json::JsonReader;

/// Reader of what follows `[TOOL_CALLS]`: a list of objects, or, in later models, one name with
/// its arguments (`f[ARGS]{...}`, `f[CALL_ID]id[ARGS]{...}` or `f{...}`).
#[derive(Debug)]
pub(super) enum Mistral {
    Start,
    /// Before an object of the list.
    Item,
    InItem(JsonCall),
    AfterItem,
    Name(String),
    /// At the bracket after the name.
    Mark {
        name: String,
        mark: Expect,
    },
    /// In the id, which is not the one that the server gives.
    Id {
        name: String,
    },
    /// Before the arguments.
    BeforeArguments(String),
    Arguments(JsonReader),
}

impl Mistral {
    /// A reader after the marker.
    pub fn new() -> Self {
        Self::Start
    }

    fn begin_arguments(name: &str, c: char, calls: &mut Calls) -> Result<Self, NoCall> {
        calls.tool(name)?;
        let (mut reader, mut text) = (JsonReader::new(), String::new());
        reader.push(c, &mut text).map_err(|_| NoCall)?;
        calls.start(name);
        calls.arguments(&text);
        Ok(Self::Arguments(reader))
    }
}

impl CallReader for Mistral {
    fn push(&mut self, c: char, calls: &mut Calls) -> Result<Progress, NoCall> {
        match self {
            Self::Start | Self::Item | Self::AfterItem | Self::BeforeArguments(_)
                if c.is_whitespace() => {}
            Self::Start if c == '[' => *self = Self::Item,
            Self::Start => *self = Self::Name(c.to_string()),
            Self::Item => {
                let mut call = JsonCall::new();
                call.push(c, calls)?;
                *self = Self::InItem(call);
            }
            Self::InItem(call) => {
                if call.push(c, calls)? == Progress::Done {
                    *self = Self::AfterItem;
                }
            }
            Self::AfterItem if c == ',' => *self = Self::Item,
            Self::AfterItem if c == ']' => return Ok(Progress::Done),
            Self::Name(name) => match c {
                '[' => {
                    calls.tool(name)?;
                    let mut mark = Expect::new(&["[ARGS]", "[CALL_ID]"]);
                    mark.push(c)?;
                    let name = std::mem::take(name);
                    *self = Self::Mark { name, mark };
                }
                '{' => *self = Self::begin_arguments(name, c, calls)?,
                c if c.is_whitespace() => *self = Self::BeforeArguments(std::mem::take(name)),
                c if c.is_ascii_alphanumeric() || c == '_' || c == '-' => name.push(c),
                _ => return Err(NoCall),
            },
            Self::Mark { name, mark } => match mark.push(c)? {
                Some("[ARGS]") => *self = Self::BeforeArguments(std::mem::take(name)),
                Some(_) => {
                    let name = std::mem::take(name);
                    *self = Self::Id { name };
                }
                None => {}
            },
            Self::Id { name } if c == '[' => {
                let mut mark = Expect::new(&["[ARGS]"]);
                mark.push(c)?;
                let name = std::mem::take(name);
                *self = Self::Mark { name, mark };
            }
            Self::Id { .. } if c.is_ascii_alphanumeric() => {}
            Self::BeforeArguments(name) if c == '{' => {
                *self = Self::begin_arguments(name, c, calls)?;
            }
            Self::Arguments(reader) => {
                let mut text = String::new();
                let read = reader.push(c, &mut text).map_err(|_| NoCall)?;
                calls.arguments(&text);
                if read {
                    return Ok(Progress::Done);
                }
            }
            Self::AfterItem | Self::Id { .. } | Self::BeforeArguments(_) => return Err(NoCall),
        }
        Ok(Progress::More)
    }

    fn is_between(&self) -> bool {
        matches!(self, Self::AfterItem)
    }
}
