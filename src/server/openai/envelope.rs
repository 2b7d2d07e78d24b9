//! Fields that a whole response and all chunks of a stream share.

use serde::Serialize;

use crate::engine::FinishReason;
use crate::server::generate::Usage;
use crate::server::protocol::{Facts, Piece, json};
use crate::server::timestamp::unix_seconds;

/// Last message of a stream.
pub fn done() -> Piece {
    Piece("[DONE]".to_owned())
}

/// OpenAI's name of a finish reason.
pub fn finish_reason(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop | FinishReason::Complete => "stop",
        FinishReason::Length => "length",
    }
}

/// Kind of a response.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Prefix of response ids.
    pub id_prefix: &'static str,
    /// `object` of a whole response.
    pub object: &'static str,
    /// `object` of a streamed chunk.
    pub chunk_object: &'static str,
}

impl Kind {
    /// A whole response.
    pub fn whole<C: Serialize>(&self, facts: &Facts, choices: &[C], usage: Usage) -> String {
        json(&self.envelope(self.object, facts, choices, Some(Some(usage))))
    }

    /// Chunks of one choice each. `usage` says whether the stream ends with a usage chunk.
    pub fn chunks<C: Serialize>(&self, facts: &Facts, choices: Vec<C>, usage: bool) -> Vec<Piece> {
        let usage = usage.then_some(None);
        let chunk =
            |choice| Piece::json(&self.envelope(self.chunk_object, facts, &[choice], usage));
        choices.into_iter().map(chunk).collect()
    }

    /// End of a stream, with a usage chunk if requested.
    pub fn end(&self, facts: &Facts, usage: Option<Usage>) -> Vec<Piece> {
        let no_choices: [(); 0] = [];
        let usage = usage.map(|usage| {
            Piece::json(&self.envelope(self.chunk_object, facts, &no_choices, Some(Some(usage))))
        });
        usage.into_iter().chain([done()]).collect()
    }

    fn envelope<'a, C>(
        &self,
        object: &'static str,
        facts: &'a Facts,
        choices: &'a [C],
        usage: Option<Option<Usage>>,
    ) -> Envelope<'a, C> {
        Envelope {
            id: facts.id(self.id_prefix),
            object,
            created: unix_seconds(facts.created),
            model: &facts.model,
            system_fingerprint: &facts.fingerprint,
            choices,
            usage,
        }
    }
}

/// A whole response, or one chunk of a stream.
#[derive(Serialize)]
struct Envelope<'a, C> {
    id: String,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: &'a [C],
    /// In streams: absent unless requested, `null` in all chunks except the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}
