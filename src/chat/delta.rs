/// A part of the assistant's message, as it streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageDelta {
    /// More of the reasoning.
    Reasoning(String),
    /// More of the content.
    Content(String),
    /// The start of call number `index`, counted from 0. Each has one, before its arguments.
    ToolCall {
        index: usize,
        id: String,
        name: String,
    },
    /// More of the arguments of call number `index`: JSON of an object, once complete.
    Arguments { index: usize, text: String },
}

/// Appends text to the last delta if it is of the same kind, else adds one.
pub(super) fn push_delta(deltas: &mut Vec<MessageDelta>, delta: MessageDelta) {
    use MessageDelta::{Arguments, Content, Reasoning};
    match (deltas.last_mut(), &delta) {
        (Some(Reasoning(last)), Reasoning(more)) | (Some(Content(last)), Content(more)) => {
            last.push_str(more);
        }
        (
            Some(Arguments { index, text }),
            Arguments {
                index: same,
                text: more,
            },
        ) if index == same => text.push_str(more),
        _ => deltas.push(delta),
    }
}
