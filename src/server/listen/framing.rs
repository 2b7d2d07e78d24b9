//! Framing of the requests on one connection: where each head and each body ends.

use super::head::{self, BodyLength, MAX_HEAD_BYTES, bad};
use crate::server::error::ApiError;

/// Empty lines that a client may send before a request.
const MAX_BLANK_LINES: usize = 2;

/// What the next byte of a connection belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// The first byte of the next request.
    Between,
    /// A head that has begun.
    Head,
    /// A body.
    Body,
}

/// A malformed request.
#[derive(Debug)]
pub struct Malformed {
    /// Bytes of the input that precede the problem, and its request if that began in this input.
    pub good: usize,
    /// The problem.
    pub error: ApiError,
}

/// Follows the bytes of a connection. After an error, the rest of the input has no meaning.
#[derive(Debug, Default)]
pub struct Framing {
    state: State,
    /// The head so far.
    head: Vec<u8>,
    blank_lines: usize,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Head,
    Sized(u64),
    Chunked(Chunk),
}

/// Place within a chunked body.
#[derive(Clone, Copy, Debug)]
enum Chunk {
    /// In the size of a chunk, after this number of digits.
    Size { size: u64, digits: usize },
    /// In the extension of a chunk's size, after this number of bytes.
    Extension { size: u64, bytes: usize },
    /// Before the line feed after a chunk's size.
    SizeEnd { size: u64 },
    /// In the data of a chunk, with this number of bytes to come.
    Data(u64),
    /// Before the carriage return after a chunk's data.
    DataEnd,
    /// Before the line feed after a chunk's data.
    DataFeed,
    /// In the trailers: their bytes so far, and those of the current line.
    Trailers { bytes: usize, line: usize },
    /// Before the line feed of a line of the trailers.
    TrailerFeed { bytes: usize, line: usize },
}

const CHUNK: Chunk = Chunk::Size { size: 0, digits: 0 };

impl Framing {
    /// What the next byte belongs to.
    pub fn position(&self) -> Position {
        match self.state {
            State::Head if self.head.is_empty() => Position::Between,
            State::Head => Position::Head,
            State::Sized(_) | State::Chunked(_) => Position::Body,
        }
    }

    /// Follows the next bytes of the connection.
    ///
    /// # Errors
    /// A malformed head or chunk.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            // An error leaves out the bytes of the malformed request.
            let step = match &mut self.state {
                State::Head => self.head(rest),
                State::Sized(left) => {
                    let taken = (*left).min(rest.len() as u64);
                    *left -= taken;
                    if *left == 0 {
                        self.state = State::Head;
                    }
                    Ok(taken as usize)
                }
                State::Chunked(chunk) => match chunk.step(rest) {
                    Ok((taken, next)) => {
                        self.state = next.map_or(State::Head, State::Chunked);
                        Ok(taken)
                    }
                    Err(error) => Err(error),
                },
            };
            at += step.map_err(|error| Malformed { good: at, error })?;
        }
        Ok(())
    }

    /// Follows a head; returns the number of its bytes.
    fn head(&mut self, bytes: &[u8]) -> Result<usize, ApiError> {
        let begins = self.head.is_empty();
        for (i, &byte) in bytes.iter().enumerate() {
            self.head.push(byte);
            if self.head.len() > MAX_HEAD_BYTES {
                let limit = format!("{MAX_HEAD_BYTES} bytes");
                return Err(ApiError::HeadTooLarge { limit });
            }
            if byte != b'\n' {
                continue;
            }
            if !self.head.ends_with(b"\r\n") {
                return Err(bad("a line of the head ends without a carriage return"));
            }
            if self.head.len() == 2 {
                self.head.clear();
                self.blank_lines += 1;
                if self.blank_lines > MAX_BLANK_LINES {
                    return Err(bad("empty lines precede the request"));
                }
            } else if self.head.ends_with(b"\r\n\r\n") {
                self.state = match head::check(&self.head)? {
                    BodyLength::Sized(0) => State::Head,
                    BodyLength::Sized(bytes) => State::Sized(bytes),
                    BodyLength::Chunked => State::Chunked(CHUNK),
                };
                // Idle connections hold no buffer.
                self.head = Vec::new();
                self.blank_lines = 0;
                return Ok(i + 1);
            }
        }
        if begins {
            head::check_begun(&self.head)?;
        }
        Ok(bytes.len())
    }
}

impl Chunk {
    /// Takes some of the bytes, of which there is at least one. Returns their number, and the next
    /// place, or `None` at the end of the body.
    fn step(self, bytes: &[u8]) -> Result<(usize, Option<Self>), ApiError> {
        let byte = bytes[0];
        let next = match self {
            Self::Size { size, digits } => match char::from(byte).to_digit(16) {
                Some(digit) if digits < 15 => Self::Size {
                    size: size << 4 | u64::from(digit),
                    digits: digits + 1,
                },
                None if digits > 0 && byte == b'\r' => Self::SizeEnd { size },
                None if digits > 0 && byte == b';' => Self::Extension { size, bytes: 0 },
                _ => return Err(bad("the size of a chunk is malformed")),
            },
            Self::Extension { size, bytes } => match byte {
                b'\r' => Self::SizeEnd { size },
                b'\n' => return Err(bad("the extension of a chunk is malformed")),
                _ if bytes == MAX_HEAD_BYTES => return Err(trailers_too_large()),
                _ => Self::Extension {
                    size,
                    bytes: bytes + 1,
                },
            },
            Self::SizeEnd { size } => match (byte, size) {
                (b'\n', 0) => Self::Trailers { bytes: 0, line: 0 },
                (b'\n', size) => Self::Data(size),
                _ => return Err(bad("the size of a chunk is malformed")),
            },
            Self::Data(left) => {
                let taken = left.min(bytes.len() as u64);
                let next = match left - taken {
                    0 => Self::DataEnd,
                    left => Self::Data(left),
                };
                return Ok((taken as usize, Some(next)));
            }
            Self::DataEnd if byte == b'\r' => Self::DataFeed,
            Self::DataFeed if byte == b'\n' => CHUNK,
            Self::DataEnd | Self::DataFeed => {
                return Err(bad("the end of a chunk is malformed"));
            }
            Self::Trailers { bytes, .. } if bytes == MAX_HEAD_BYTES => {
                return Err(trailers_too_large());
            }
            Self::Trailers { bytes, line } => match byte {
                b'\r' => Self::TrailerFeed { bytes, line },
                b'\n' => return Err(bad("the trailers of the body are malformed")),
                _ => Self::Trailers {
                    bytes: bytes + 1,
                    line: line + 1,
                },
            },
            Self::TrailerFeed { bytes, line } => match (byte, line) {
                (b'\n', 0) => return Ok((1, None)),
                (b'\n', _) => Self::Trailers { bytes, line: 0 },
                _ => return Err(bad("the trailers of the body are malformed")),
            },
        };
        Ok((1, Some(next)))
    }
}

fn trailers_too_large() -> ApiError {
    let limit = format!("{MAX_HEAD_BYTES} bytes");
    ApiError::HeadTooLarge { limit }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const SIZED: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab\n";
    const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                           2\r\n\n\n\r\nA;x=y\r\n0123456789\r\n0\r\nA: b\r\n\r\n";

    /// Feeds the text in pieces; returns the error and the number of good bytes before it.
    fn feed(text: &str, piece: usize) -> Result<Position, (usize, String)> {
        let mut framing = Framing::default();
        for (i, bytes) in text.as_bytes().chunks(piece).enumerate() {
            framing
                .feed(bytes)
                .map_err(|m| (i * piece + m.good, m.error.to_string()))?;
        }
        Ok(framing.position())
    }

    #[test]
    fn requests_end_where_they_should_however_they_arrive() {
        let text = [GET, SIZED, "\r\n", CHUNKED, GET].concat();
        for piece in [1, 2, 7, text.len()] {
            assert_eq!(feed(&text, piece), Ok(Position::Between));
            assert_eq!(feed(&format!("{text}G"), piece), Ok(Position::Head));
            let body = text.find("ab\n").unwrap() + 1;
            assert_eq!(feed(&text[..body], piece), Ok(Position::Body));
            assert_eq!(
                feed(&text[..text.len() - GET.len() - 1], piece),
                Ok(Position::Body)
            );
        }
    }

    #[test]
    fn what_precedes_a_malformed_request_is_good() {
        let text = [SIZED, "GET / HTTP/1.1\nHost: a\n\n"].concat();
        let (good, message) = feed(&text, text.len()).unwrap_err();
        assert_eq!(good, SIZED.len());
        assert!(message.contains("carriage return"), "{message}");
    }

    #[test]
    fn a_malformed_head_is_refused_before_its_end() {
        for text in [
            "\x16\x03\x01",
            "GET / HTTP/2.0\r\n",
            "GET / HTTP/1.1\r\na b",
        ] {
            let (good, _) = feed(&[GET, text].concat(), 1000).unwrap_err();
            assert_eq!(good, GET.len(), "{text:?}");
        }
    }

    #[test]
    fn malformed_chunks_are_refused() {
        let head = CHUNKED.split_inclusive("\r\n\r\n").next().unwrap();
        for chunks in [
            "\r\n",
            "-1\r\n",
            "1 \r\n",
            "1\n",
            "FFFFFFFFFFFFFFFF\r\n",
            "1\r\nab\r\n",
            "1\r\na\n",
            "1;x\ny\r\n",
            "0\r\n\n",
            "0\r\na: b\n\r\n",
        ] {
            for piece in [1, 1000] {
                let text = format!("{head}{chunks}");
                assert!(feed(&text, piece).is_err(), "{chunks:?}");
            }
        }
    }

    #[test]
    fn what_a_client_sends_besides_bodies_is_bounded() {
        let long = "a".repeat(MAX_HEAD_BYTES);
        let chunked = CHUNKED.split_inclusive("\r\n\r\n").next().unwrap();
        for text in [
            format!("GET /{long}"),
            format!("GET / HTTP/1.1\r\nHost: {long}"),
            format!("{chunked}1;{long}a"),
            format!("{chunked}0\r\nA: {long}"),
            "\r\n\r\n\r\n".to_owned(),
        ] {
            assert!(feed(&text, 100).is_err(), "{text:.40}");
        }
    }
}
