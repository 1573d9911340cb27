//! What the judgement of one request may cost, and what it has cost.

/// The most bytes that rules may look at for one request, all readings of its path together: some milliseconds.
pub const MAX_WORK: usize = 4 << 20;
/// What is counted for something that looks at a few bytes.
const STEP: usize = 32;

/// What has been looked at for a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Work {
    /// Expressions of paths that the request's path was held against behind a literal that it begins with.
    pub expressions: usize,
    /// Rules whose other parts were looked at.
    pub rules: usize,
    /// Bytes, about.
    pub bytes: usize,
}

/// Rules have looked at [`MAX_WORK`] bytes for a request, and it is not known whether it may pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exhausted;

impl Work {
    /// An expression is held against so many bytes.
    pub(super) fn expression(&mut self, bytes: usize) -> Result<(), Exhausted> {
        self.expressions += 1;
        self.take(bytes)
    }

    /// A rule is looked at that compares so many bytes.
    pub(super) fn rule(&mut self, bytes: usize) -> Result<(), Exhausted> {
        self.rules += 1;
        self.take(bytes)
    }

    /// So many headers of a request are held against so many that rules look at.
    pub(crate) fn headers(&mut self, given: usize, judged: usize) -> Result<(), Exhausted> {
        self.take(8 * given * judged)
    }

    /// A list of rules is looked at.
    pub(super) fn take(&mut self, bytes: usize) -> Result<(), Exhausted> {
        self.bytes = self.bytes.saturating_add(bytes).saturating_add(STEP);
        if self.bytes > MAX_WORK { Err(Exhausted) } else { Ok(()) }
    }
}
