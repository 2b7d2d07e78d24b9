use super::NoCall;

/// Matcher of one of several fixed texts after any white space. None is a prefix of another.
#[derive(Debug)]
pub(super) struct Expect {
    options: &'static [&'static str],
    seen: String,
}

impl Expect {
    /// A matcher of these texts.
    pub fn new(options: &'static [&'static str]) -> Self {
        Self {
            options,
            seen: String::new(),
        }
    }

    /// Takes a character; gives the text that ends with it.
    ///
    /// # Errors
    /// None of the texts stands here.
    pub fn push(&mut self, c: char) -> Result<Option<&'static str>, NoCall> {
        if self.seen.is_empty() && c.is_whitespace() {
            return Ok(None);
        }
        self.seen.push(c);
        let mut matching = self.options.iter().filter(|o| o.starts_with(&*self.seen));
        let option = matching.next().ok_or(NoCall)?;
        Ok((option.len() == self.seen.len()).then_some(*option))
    }
}
