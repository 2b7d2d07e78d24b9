use super::python_value::{PythonValue, ValueEnd};
use super::{CallReader, Calls, NoCall, Progress};
use crate::chat::json::quoted;

/// Reader of `[f(a=1, b="x"), g()]`, which gives the arguments as JSON.
#[derive(Debug)]
pub(super) struct Pythonic {
    state: State,
    /// Name of the tool of this call.
    tool: String,
    /// Arguments of this call so far.
    arguments: usize,
}

#[derive(Debug)]
enum State {
    Open,
    /// Before a name.
    Call,
    Name,
    /// Before the name of an argument, or the end of the call.
    Argument,
    Key(String),
    /// Between the name of an argument and `=`.
    Equals(String),
    Value(PythonValue),
    AfterValue,
    AfterCall,
}

impl Pythonic {
    /// A reader before the opening bracket.
    pub fn new() -> Self {
        Self {
            state: State::Open,
            tool: String::new(),
            arguments: 0,
        }
    }

    fn begin_value(&mut self, key: &str, calls: &mut Calls) {
        let separator = if self.arguments == 0 {
            calls.start(&self.tool);
            "{"
        } else {
            ", "
        };
        self.arguments += 1;
        calls.arguments(&format!("{separator}{}: ", quoted(key)));
        self.state = State::Value(PythonValue::new());
    }

    fn end_call(&mut self, calls: &mut Calls) {
        if self.arguments == 0 {
            calls.start(&self.tool);
            calls.arguments("{");
        }
        calls.arguments("}");
        self.state = State::AfterCall;
    }
}

impl CallReader for Pythonic {
    fn push(&mut self, c: char, calls: &mut Calls) -> Result<Progress, NoCall> {
        let in_name = c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        match &mut self.state {
            State::Open
            | State::Call
            | State::Argument
            | State::Equals(_)
            | State::AfterValue
            | State::AfterCall
                if c.is_whitespace() => {}
            State::Open if c == '[' => self.state = State::Call,
            State::Call if in_name => {
                self.tool = c.to_string();
                self.state = State::Name;
            }
            State::Name if in_name => self.tool.push(c),
            State::Name if c == '(' => {
                calls.tool(&self.tool)?;
                self.arguments = 0;
                self.state = State::Argument;
            }
            State::Argument if in_name => self.state = State::Key(c.to_string()),
            State::Argument | State::AfterValue if c == ')' => self.end_call(calls),
            State::Key(key) if in_name => key.push(c),
            State::Key(key) | State::Equals(key) if c == '=' => {
                let key = std::mem::take(key);
                self.begin_value(&key, calls);
            }
            State::Key(key) if c.is_whitespace() => {
                self.state = State::Equals(std::mem::take(key));
            }
            State::Value(value) => {
                let mut text = String::new();
                let end = value.push(c, &mut text)?;
                calls.arguments(&text);
                match end {
                    ValueEnd::Open => {}
                    ValueEnd::Taken => self.state = State::AfterValue,
                    ValueEnd::Before => {
                        self.state = State::AfterValue;
                        return self.push(c, calls);
                    }
                }
            }
            State::AfterValue if c == ',' => self.state = State::Argument,
            State::AfterCall if c == ',' => self.state = State::Call,
            State::AfterCall if c == ']' => return Ok(Progress::Done),
            _ => return Err(NoCall),
        }
        Ok(Progress::More)
    }

    fn is_between(&self) -> bool {
        matches!(self.state, State::AfterCall)
    }
}
