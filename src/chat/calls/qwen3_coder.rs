use super::expect::Expect;
use super::{CallReader, Calls, NoCall, Progress};
use crate::chat::json::{JsonReader, escaped, quoted};
use crate::chat::schema::Types;

/// Reader of `<function=f><parameter=a>\nvalue\n</parameter></function></tool_call>`, which gives
/// the arguments as JSON.
#[derive(Debug)]
pub(super) struct Qwen3Coder {
    /// Whether `<tool_call>` opened the call, and has to be closed.
    wrapped: bool,
    /// Name of the tool, once known.
    tool: String,
    parameters: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    Open(Expect),
    Function(String),
    /// Between parameters.
    Between(Expect),
    Key(String),
    Value(Box<Value>),
    Close(Expect),
}

#[derive(Debug)]
struct Value {
    types: Types,
    /// Whether the value is written while it is read, as a text can be.
    streams: bool,
    /// The value so far, if it is written at its end.
    raw: String,
    /// Reader of the value while it is JSON, in whose strings the value does not end. Only of a
    /// value that is not declared to be a text.
    json: Option<JsonReader>,
    /// Text that may be part of the end.
    held: String,
    /// Whether nothing was read yet: a line break there belongs to the form.
    fresh: bool,
}

const CLOSE: &str = "</parameter>";
/// The line break before the end belongs to the form.
const CLOSE_LINE: &str = "\n</parameter>";

impl Qwen3Coder {
    /// A reader after `marker`, which is `<tool_call>` or `<function=`.
    pub fn new(marker: &str) -> Self {
        let wrapped = marker != "<function=";
        Self {
            wrapped,
            tool: String::new(),
            parameters: 0,
            state: if wrapped {
                State::Open(Expect::new(&["<function="]))
            } else {
                State::Function(String::new())
            },
        }
    }

    fn between() -> State {
        State::Between(Expect::new(&["<parameter=", "</function>"]))
    }

    fn begin_value(&mut self, key: &str, calls: &mut Calls) -> Result<State, NoCall> {
        let types = Types::of(&calls.tool(&self.tool)?.parameters, key);
        let streams = types.only_text();
        let separator = if self.parameters == 0 { "" } else { ", " };
        self.parameters += 1;
        let json = (!types.name_text()).then(JsonReader::new);
        let quote = if streams { "\"" } else { "" };
        calls.arguments(&format!("{separator}{}: {quote}", quoted(key)));
        Ok(State::Value(Box::new(Value {
            types,
            streams,
            raw: String::new(),
            json,
            held: String::new(),
            fresh: true,
        })))
    }
}

impl CallReader for Qwen3Coder {
    fn push(&mut self, c: char, calls: &mut Calls) -> Result<Progress, NoCall> {
        match &mut self.state {
            State::Open(open) => {
                if open.push(c)?.is_some() {
                    self.state = State::Function(String::new());
                }
            }
            State::Function(name) if c == '>' => {
                calls.tool(name)?;
                calls.start(name);
                calls.arguments("{");
                self.tool = std::mem::take(name);
                self.parameters = 0;
                self.state = Self::between();
            }
            State::Function(name) if !c.is_whitespace() && c != '<' => name.push(c),
            State::Between(next) => match next.push(c) {
                Ok(Some("</function>")) => {
                    calls.arguments("}");
                    if !self.wrapped {
                        return Ok(Progress::Done);
                    }
                    self.state = State::Close(Expect::new(&["</tool_call>", "<function="]));
                }
                Ok(Some(_)) => self.state = State::Key(String::new()),
                Ok(None) => {}
                Err(error) => {
                    calls.arguments("}");
                    return Err(error);
                }
            },
            State::Key(key) if c == '>' => {
                let key = std::mem::take(key);
                self.state = self.begin_value(&key, calls)?;
            }
            State::Key(key) if c != '\n' && c != '<' => key.push(c),
            State::Value(value) => {
                if value.push(c, calls) {
                    value.end(calls);
                    self.state = Self::between();
                }
            }
            State::Close(close) => match close.push(c)? {
                Some("</tool_call>") => return Ok(Progress::Done),
                Some(_) => self.state = State::Function(String::new()),
                None => {}
            },
            State::Key(_) => {
                calls.arguments("}");
                return Err(NoCall);
            }
            State::Function(_) => return Err(NoCall),
        }
        Ok(Progress::More)
    }

    fn finish(&mut self, calls: &mut Calls) {
        if let State::Value(value) = &mut self.state {
            let held = std::mem::take(&mut value.held);
            value.write(&held, calls);
            if !value.streams {
                let raw = std::mem::take(&mut value.raw);
                calls.arguments(&raw);
            }
        }
    }

    fn is_between(&self) -> bool {
        matches!(self.state, State::Between(_) | State::Close(_))
    }
}

impl Value {
    /// Takes a character; true if the value ends with it.
    fn push(&mut self, c: char, calls: &mut Calls) -> bool {
        if std::mem::take(&mut self.fresh) && c == '\n' {
            return false;
        }
        if let Some(json) = &mut self.json {
            let read = json.push(c, &mut String::new());
            let in_text = json.in_text();
            if !matches!(read, Ok(false)) {
                self.json = None;
            } else if in_text {
                self.raw.push_str(&std::mem::take(&mut self.held));
                self.raw.push(c);
                return false;
            }
        }
        self.held.push(c);
        if self.held == CLOSE || self.held == CLOSE_LINE {
            self.held.clear();
            return true;
        }
        let may_end = |held: &str| CLOSE.starts_with(held) || CLOSE_LINE.starts_with(held);
        let mut free = 0;
        while !may_end(&self.held[free..]) {
            free += self.held[free..].chars().next().map_or(1, char::len_utf8);
        }
        let text: String = self.held.drain(..free).collect();
        self.write(&text, calls);
        false
    }

    fn write(&mut self, text: &str, calls: &mut Calls) {
        if self.streams {
            for c in text.chars() {
                calls.arguments(&escaped(c));
            }
        } else {
            self.raw.push_str(text);
        }
    }

    fn end(&mut self, calls: &mut Calls) {
        if self.streams {
            calls.arguments("\"");
        } else {
            calls.arguments(&self.types.read(&self.raw).to_string());
        }
    }
}
