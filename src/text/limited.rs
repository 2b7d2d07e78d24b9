use std::io;

/// Text of at most a number of bytes, written in pieces.
pub(super) struct LimitedText {
    bytes: Vec<u8>,
    max: usize,
    exceeded: bool,
}

impl LimitedText {
    /// An empty text.
    pub fn new(max: usize) -> Self {
        Self {
            bytes: Vec::new(),
            max,
            exceeded: false,
        }
    }

    /// Whether more was written than fits.
    pub fn is_exceeded(&self) -> bool {
        self.exceeded
    }

    /// The text, as far as it is UTF-8, which all of what a template writes is.
    pub fn into_string(self) -> String {
        String::from_utf8(self.bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }
}

impl io::Write for LimitedText {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if piece.len() > self.max - self.bytes.len() {
            self.exceeded = true;
            return Err(io::Error::other("the text is too long"));
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
