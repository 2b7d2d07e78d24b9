//! Stop strings over streamed text.

use std::sync::Arc;

/// Compiled stop strings, shared by all sequences of a request.
#[derive(Clone, Debug, Default)]
pub struct StopSet(Arc<[Pattern]>);

impl StopSet {
    /// Compiles stop strings, in time linear in their bytes. Ignores empty ones, which would match
    /// everywhere.
    pub fn new(stop: Vec<String>) -> Self {
        let stop = stop.into_iter().filter(|text| !text.is_empty());
        Self(stop.map(Pattern::new).collect())
    }
}

/// Matcher that finds the first stop string in a text that arrives in chunks, and holds back only
/// what may be the beginning of one.
///
/// The first stop string is the one that ends first; of several that end together, the longest. The
/// result does not depend on how the text is cut into chunks.
#[derive(Clone, Debug)]
pub(super) struct StopStrings {
    patterns: StopSet,
    /// Per pattern: length of its longest proper prefix that the text so far ends with.
    matched: Box<[u32]>,
    include_in_output: bool,
    /// Beginning of a possible stop string, not emitted yet.
    held: String,
    stopped: Option<String>,
}

/// Outcome of one chunk of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopStep {
    /// Text to emit now.
    pub text_to_emit: String,
    /// The stop string that ended the text, if one did.
    pub stopped: Option<String>,
}

impl StopStrings {
    /// A matcher of these stop strings at the start of a text.
    pub fn new(patterns: StopSet, include_in_output: bool) -> Self {
        Self {
            matched: vec![0; patterns.0.len()].into(),
            patterns,
            include_in_output,
            held: String::new(),
            stopped: None,
        }
    }

    /// Takes the next chunk. After a stop, nothing more is emitted.
    pub fn push(&mut self, chunk: &str) -> StopStep {
        self.advance(chunk, true)
    }

    /// Takes the next chunk without stopping in it. A stop string that begins in it and ends in a
    /// later, checked chunk is still found.
    pub fn push_unchecked(&mut self, chunk: &str) -> StopStep {
        self.advance(chunk, false)
    }

    /// Ends the text and returns what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    fn advance(&mut self, chunk: &str, check: bool) -> StopStep {
        if self.stopped.is_some() {
            return StopStep {
                text_to_emit: String::new(),
                stopped: self.stopped.clone(),
            };
        }
        let before = self.held.len();
        self.held.push_str(chunk);
        for (offset, byte) in chunk.bytes().enumerate() {
            let states = self.patterns.0.iter().zip(&mut self.matched);
            let hit = states
                .filter_map(|(pattern, matched)| {
                    pattern.step(matched, byte).then_some(&pattern.text)
                })
                .max_by_key(|text| text.len());
            if let Some(stop) = hit.filter(|_| check) {
                let end = before + offset + 1;
                let keep = if self.include_in_output {
                    end
                } else {
                    end - stop.len()
                };
                self.stopped = Some(stop.clone());
                self.held.truncate(keep);
                return StopStep {
                    text_to_emit: self.finish(),
                    stopped: self.stopped.clone(),
                };
            }
        }
        let rest = self.held.split_off(self.held.len() - self.hold_back());
        StopStep {
            text_to_emit: std::mem::replace(&mut self.held, rest),
            stopped: None,
        }
    }

    /// Number of bytes at the end of the text that may begin a stop string.
    fn hold_back(&self) -> usize {
        if self.include_in_output {
            return 0; // The text so far is emitted in any case.
        }
        self.matched.iter().copied().max().unwrap_or(0) as usize
    }
}

/// Knuth-Morris-Pratt automaton of one stop string, over bytes: a match of a UTF-8 string in UTF-8
/// text always begins and ends at character boundaries.
#[derive(Debug)]
struct Pattern {
    text: String,
    /// `borders[n]`: length of the longest proper suffix of the first `n` bytes that is also a
    /// prefix of them.
    borders: Box<[u32]>,
}

impl Pattern {
    fn new(text: String) -> Self {
        let bytes = text.as_bytes();
        let mut borders = vec![0; bytes.len() + 1];
        let mut border = 0;
        for end in 1..bytes.len() {
            while border > 0 && bytes[end] != bytes[border] {
                border = borders[border] as usize;
            }
            border += usize::from(bytes[end] == bytes[border]);
            borders[end + 1] = border as u32;
        }
        Self {
            text,
            borders: borders.into(),
        }
    }

    /// Takes one byte of text after `matched` bytes of the pattern; true if the pattern ends there.
    fn step(&self, matched: &mut u32, byte: u8) -> bool {
        let bytes = self.text.as_bytes();
        let mut length = *matched as usize;
        while length > 0 && bytes[length] != byte {
            length = self.borders[length] as usize;
        }
        length += usize::from(bytes[length] == byte);
        let complete = length == bytes.len();
        *matched = if complete {
            self.borders[length]
        } else {
            length as u32
        };
        complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stop_strings(stop: &[&str], include: bool) -> StopStrings {
        let stop = stop.iter().map(|&s| s.to_owned()).collect();
        StopStrings::new(StopSet::new(stop), include)
    }

    fn step(text: &str, stopped: Option<&str>) -> StopStep {
        StopStep {
            text_to_emit: text.into(),
            stopped: stopped.map(Into::into),
        }
    }

    #[test]
    fn matchers_share_the_patterns_and_own_four_bytes_for_each() {
        let set = StopSet::new(vec!["a".repeat(1024); 8]);
        let mut first = StopStrings::new(set.clone(), false);
        let second = StopStrings::new(set.clone(), false);
        assert_eq!(Arc::strong_count(&set.0), 3);
        assert_eq!(size_of_val(&*second.matched), 8 * 4);
        // Their states are apart.
        assert_eq!(first.push("aaa"), step("", None));
        assert_eq!(second.hold_back(), 0);
    }

    #[test]
    fn holds_back_only_what_may_become_a_stop_string() {
        let mut stop = stop_strings(&["END", "\n\n"], false);
        assert_eq!(stop.push("a sentence"), step("a sentence", None));
        assert_eq!(stop.push(" EN"), step(" ", None));
        assert_eq!(stop.push("E"), step("EN", None));
        assert_eq!(stop.push("\n"), step("E", None));
        assert_eq!(stop.push("ENDgame"), step("\n", Some("END")));
        assert_eq!(stop.push("more"), step("", Some("END")));
        assert_eq!(stop.finish(), "");
    }

    #[test]
    fn an_included_stop_string_is_emitted_and_nothing_after_it() {
        let mut stop = stop_strings(&["END"], true);
        assert_eq!(stop.push("the E"), step("the E", None));
        assert_eq!(stop.push("ND of"), step("ND", Some("END")));
    }

    #[test]
    fn held_back_text_is_emitted_at_the_end() {
        let mut stop = stop_strings(&["END", ""], false);
        assert_eq!(stop.push("the EN"), step("the ", None));
        assert_eq!(stop.finish(), "EN");
    }

    #[test]
    fn the_first_end_wins_and_then_the_longest() {
        assert_eq!(
            stop_strings(&["abcd", "bc"], false).push("xabcd"),
            step("xa", Some("bc"))
        );
        assert_eq!(
            stop_strings(&["c", "bc"], false).push("abcd"),
            step("a", Some("bc"))
        );
    }

    #[test]
    fn an_unchecked_chunk_may_begin_but_not_end_a_stop_string() {
        let mut stop = stop_strings(&["ab", "xabc"], false);
        assert_eq!(stop.push_unchecked("ab xab"), step("ab ", None));
        assert_eq!(stop.push("c"), step("", Some("xabc")));
    }

    /// Reference: (end, start) of the match that ends first.
    fn expected(text: &str, stop: &[String]) -> Option<(usize, usize)> {
        stop.iter()
            .flat_map(|s| {
                (0..text.len())
                    .filter(|&i| text.as_bytes()[i..].starts_with(s.as_bytes()))
                    .map(|i| (i + s.len(), i))
            })
            .min()
    }

    fn letters(max: usize) -> impl Strategy<Value = String> {
        proptest::collection::vec(
            prop_oneof![Just('a'), Just('b'), Just('é'), Just('🤗')],
            0..=max,
        )
        .prop_map(String::from_iter)
    }

    proptest! {
        #[test]
        fn any_chunking_stops_at_the_first_end(
            chunks in proptest::collection::vec(letters(4), 0..12),
            stop in proptest::collection::vec(letters(4), 0..4),
            include in any::<bool>(),
        ) {
            let text = chunks.concat();
            let mut matcher = StopStrings::new(StopSet::new(stop.clone()), include);
            let stop: Vec<String> = stop.into_iter().filter(|s| !s.is_empty()).collect();
            let (mut emitted, mut fed, mut stopped) = (String::new(), String::new(), None);
            for chunk in &chunks {
                let step = matcher.push(chunk);
                fed.push_str(chunk);
                emitted.push_str(&step.text_to_emit);
                stopped = step.stopped;
                prop_assert!(text.starts_with(&emitted));
                if stopped.is_none() {
                    let withheld = &fed[emitted.len()..];
                    let may_stop = stop.iter().any(|s| s.starts_with(withheld));
                    prop_assert!(include || withheld.is_empty() || may_stop);
                }
            }
            emitted.push_str(&matcher.finish());
            match expected(&text, &stop) {
                None => prop_assert_eq!((emitted, stopped), (text, None)),
                Some((end, start)) => {
                    prop_assert_eq!(&emitted, &text[..if include { end } else { start }]);
                    prop_assert_eq!(stopped.as_deref(), Some(&text[start..end]));
                    prop_assert!(include || stop.iter().all(|s| !emitted.contains(s.as_str())));
                }
            }
        }
    }
}
