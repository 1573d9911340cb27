//! *normalise*: the one form of a request's path that is judged and forwarded. `docs/normalisation.md` is the table.
//!
//! Promise: no origin executes what policy denies. Whatever an origin might make of the path (decode `%2F`, strip
//! `;parameters`, decode twice, take `\` for `/`, decode `%3A`), in whatever order, is a *reading* of it, and a request passes only if
//! every reading may. So `%2F` and `;jsessionid=…` pass wherever they change nothing, without a setting. The query stays as it
//! came.

/// Why a target is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "`text` says it")]
pub enum TargetFault {
    Backslash,
    NotAscii,
    Escape,
    Nul,
    Overlong,
    Nested,
    Ambiguous,
}

impl TargetFault {
    /// In a few words, as flows say it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Backslash => "backslash in the path",
            Self::NotAscii => "byte beyond ASCII in the path",
            Self::Escape => "malformed escape in the path",
            Self::Nul => "escaped NUL in the path",
            Self::Overlong => "escaped overlong UTF-8 in the path",
            Self::Nested => "escape of an escape of an escape in the path",
            Self::Ambiguous => "path that servers read in too many ways",
        }
    }
}

/// What one that is at rest keeps for the next, bytes.
const RESTS: usize = 1024;

/// A path, with its query. Made to be used again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Path {
    canonical: Vec<u8>,
    is_changed: bool,
    /// It has not been brought into its one form, for nobody looked at it.
    is_raw: bool,
    readings: Vec<Vec<u8>>,
}

/// Who looks at the path of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Looks {
    /// No rule.
    Nobody,
    /// Rules in audit mode only: it is judged in its one form and forwarded as it came.
    Audit,
    /// Rules that are enforced.
    Rules,
}

/// How often an escape may have been escaped.
const MAX_NESTING: usize = 3;
/// How many forms servers may make of a path.
const MAX_FORMS: usize = 48;
/// And how long they may be together: what is done for one request is bounded by that.
const MAX_FORM_BYTES: usize = 256 << 10;

impl Path {
    /// Takes a path with its query as it came; an absolute target may have an empty one.
    pub fn normalise(&mut self, raw: &[u8]) -> Result<(), TargetFault> {
        self.readings.clear();
        self.canonical.clear();
        (self.is_changed, self.is_raw) = (false, false);
        let (path, query) = split(raw);
        if is_plain(path) {
            self.canonical.extend_from_slice(raw);
            return Ok(());
        }
        let decoded = decode(path)?;
        resolve(&decoded, &mut self.canonical);
        let has_readings = self.canonical.iter().any(|byte| matches!(byte, b'%' | b';'));
        if has_readings {
            self.read(query)?;
        }
        self.canonical.extend_from_slice(query);
        self.is_changed = self.canonical != raw;
        Ok(())
    }

    /// Takes the path of a request for those who look at it.
    pub fn take(&mut self, raw: &[u8], looks: Looks) -> Result<(), TargetFault> {
        match looks {
            Looks::Rules => self.normalise(raw)?,
            Looks::Audit => {
                self.normalise(raw)?;
                self.is_changed = false;
            }
            Looks::Nobody => {
                self.keep(raw);
                self.is_raw = true;
            }
        }
        Ok(())
    }

    /// Takes what has no form but this: `*`, or nothing.
    pub fn keep(&mut self, raw: &[u8]) {
        self.readings.clear();
        self.canonical.clear();
        self.canonical.extend_from_slice(raw);
        (self.is_changed, self.is_raw) = (false, false);
    }

    /// What rules that look at paths now judge where none did when the request came; `None`: it is that already.
    pub fn overdue(&self) -> Option<Result<Self, TargetFault>> {
        self.is_raw.then(|| {
            let mut path = Self::default();
            path.normalise(&self.canonical).map(|()| path)
        })
    }

    /// Gives back what a long one has taken.
    pub fn rest(&mut self) {
        self.readings = Vec::new();
        if self.canonical.capacity() > RESTS {
            *self = Self::default();
        }
    }

    /// What is judged and forwarded.
    pub fn canonical(&self) -> &[u8] {
        &self.canonical
    }

    /// Whether that is not what came.
    pub fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// What origins might take it for, beside the canonical form.
    pub fn readings(&self) -> impl Iterator<Item = &[u8]> {
        self.readings.iter().map(Vec::as_slice)
    }

    /// What servers make of the canonical form, and others behind them of that: any of these steps in any order.
    fn read(&mut self, query: &[u8]) -> Result<(), TargetFault> {
        has_few_nested(&self.canonical)?;
        let mut forms = vec![self.canonical.clone()];
        let (mut at, mut bytes) = (0, 0);
        while let Some(form) = forms.get(at) {
            at += 1;
            for next in steps(form) {
                if memchr::memmem::find(&next, b"%00").is_some() {
                    return Err(TargetFault::Nul);
                }
                if !forms.contains(&next) {
                    bytes += next.len() + query.len();
                    if forms.len() == MAX_FORMS || bytes > MAX_FORM_BYTES {
                        return Err(TargetFault::Ambiguous);
                    }
                    forms.push(next);
                }
            }
        }
        for form in forms {
            let mut reading = Vec::with_capacity(form.len() + query.len());
            resolve(&form, &mut reading);
            if reading != self.canonical {
                reading.extend_from_slice(query);
                if !self.readings.contains(&reading) {
                    self.readings.push(reading);
                }
            }
        }
        Ok(())
    }
}

fn split(raw: &[u8]) -> (&[u8], &[u8]) {
    raw.split_at(memchr::memchr(b'?', raw).unwrap_or(raw.len()))
}

/// Whether it is its own canonical form and only reading, seen at one look.
fn is_plain(path: &[u8]) -> bool {
    let mut before = 0;
    path.first() == Some(&b'/')
        && path.iter().all(|byte| {
            let is_special =
                matches!(byte, b'%' | b';' | b'\\' | 0x80..) || before == b'/' && matches!(byte, b'/' | b'.');
            before = *byte;
            !is_special
        })
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn hex(digit: Option<&u8>) -> Option<u8> {
    char::from(*digit?).to_digit(16).map(|value| value as u8)
}

/// The byte that an escape at the begin of `bytes` stands for.
fn escape(bytes: &[u8]) -> Option<u8> {
    match bytes {
        [b'%', high, low, ..] => Some(hex(Some(high))? << 4 | hex(Some(low))?),
        _ => None,
    }
}

/// Checks every byte; decodes what need not be escaped; writes other escapes in capitals.
fn decode(path: &[u8]) -> Result<Vec<u8>, TargetFault> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut escaped_before = None;
    let mut at = 0;
    while let Some(rest @ [byte, ..]) = path.get(at..) {
        let mut escaped = None;
        match byte {
            b'\\' => return Err(TargetFault::Backslash),
            0x80.. => return Err(TargetFault::NotAscii),
            b'%' => {
                let value = escape(rest).ok_or(TargetFault::Escape)?;
                let is_overlong = match escaped_before {
                    Some(0xc0 | 0xc1) => (0x80..=0xbf).contains(&value),
                    Some(0xe0) => (0x80..=0x9f).contains(&value),
                    Some(0xf0) => (0x80..=0x8f).contains(&value),
                    _ => false,
                };
                match value {
                    0 => return Err(TargetFault::Nul),
                    _ if is_overlong => return Err(TargetFault::Overlong),
                    _ if is_unreserved(value) => decoded.push(value),
                    _ => decoded.extend(rest.iter().take(3).map(u8::to_ascii_uppercase)),
                }
                escaped = Some(value);
                at += 3;
            }
            other => {
                decoded.push(*other);
                at += 1;
            }
        }
        escaped_before = escaped;
    }
    Ok(decoded)
}

/// Removes dot segments and empty ones.
fn resolve(path: &[u8], resolved: &mut Vec<u8>) {
    resolved.clear();
    let path = path.strip_prefix(b"/").unwrap_or(path);
    let mut ends_open = false;
    for segment in path.split(|byte| *byte == b'/') {
        ends_open = true;
        match segment {
            b"" | b"." => {}
            b".." => {
                let parent = memchr::memrchr(b'/', resolved).unwrap_or_default();
                resolved.truncate(parent);
            }
            name => {
                resolved.push(b'/');
                resolved.extend_from_slice(name);
                ends_open = false;
            }
        }
    }
    if ends_open {
        resolved.push(b'/');
    }
}

/// What gives a path its shape.
fn is_shape(byte: u8) -> bool {
    matches!(byte, b'/' | b';' | b'.')
}

/// What may stand in a path as it is (RFC 3986 section 3.3: sub-delims, `:` and `@`), and is escaped by some all the same.
fn is_legal(byte: u8) -> bool {
    b"!$&'()*+,;=:@".contains(&byte)
}

/// Decodes `what` once; `deep`: also what is behind an escaped percent sign.
fn unescape(path: &[u8], what: impl Fn(u8) -> bool, deep: bool) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(rest @ [byte, ..]) = path.get(at..) {
        let follows = || escape(&[&b"%"[..], rest.get(3..5).unwrap_or_default()].concat()).is_some();
        let value = match escape(rest) {
            Some(value) if what(value) => Some(value),
            Some(b'%') if deep && follows() => Some(b'%'),
            Some(value) if deep && is_unreserved(value) => Some(value),
            _ => None,
        };
        decoded.push(value.unwrap_or(*byte));
        at += if value.is_some() { 3 } else { 1 };
    }
    decoded
}

/// Whether decoding comes to an end soon.
fn has_few_nested(path: &[u8]) -> Result<(), TargetFault> {
    let mut decoded = path.to_vec();
    for _ in 0..=MAX_NESTING {
        let next = unescape(&decoded, is_decoded, true);
        if memchr::memmem::find(&next, b"%00").is_some() {
            return Err(TargetFault::Nul);
        }
        if next == decoded {
            return Ok(());
        }
        decoded = next;
    }
    Err(TargetFault::Nested)
}

/// What a server may do to a path: decode what gives it its shape, or what of it need not have been escaped, or either with
/// what has been escaped twice; take `\` for `/`; cut parameters off; resolve dots, where empty segments count or do not.
fn steps(path: &[u8]) -> Vec<Vec<u8>> {
    let mut steps = Vec::new();
    if path.contains(&b'%') {
        steps.push(unescape(path, is_shape, false));
        steps.push(unescape(path, is_legal, false));
        steps.push(unescape(path, is_shape, true));
        steps.push(unescape(path, is_decoded, true));
        steps.push(with_slashes(path));
    }
    if path.contains(&b';') {
        steps.push(without_parameters(path));
    }
    let mut merged = Vec::with_capacity(path.len());
    resolve(path, &mut merged);
    steps.push(merged);
    steps.push(resolve_all(path));
    steps
}

fn is_decoded(byte: u8) -> bool {
    is_shape(byte) || is_legal(byte)
}

/// As servers of Windows see it. Elsewhere `\` is a character as any other, which stays escaped here.
fn with_slashes(path: &[u8]) -> Vec<u8> {
    let mut slashed = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, tail @ ..] = rest {
        let is_backslash = escape(rest) == Some(b'\\');
        slashed.push(if is_backslash { b'/' } else { *first });
        rest = if is_backslash { rest.get(3..).unwrap_or_default() } else { tail };
    }
    slashed
}

/// Removes dot segments where between two `/` there always is a segment (RFC 3986 section 5.2.4).
fn resolve_all(path: &[u8]) -> Vec<u8> {
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut ends_open = false;
    for segment in path.strip_prefix(b"/").unwrap_or(path).split(|byte| *byte == b'/') {
        ends_open = matches!(segment, b"." | b"..");
        match segment {
            b"." => {}
            b".." => drop(segments.pop()),
            name => segments.push(name),
        }
    }
    if ends_open {
        segments.push(b"");
    }
    [&b"/"[..], &segments.join(&b'/')].concat()
}

/// As servers of Java see it: of each segment what stands before `;`.
fn without_parameters(path: &[u8]) -> Vec<u8> {
    let segments = path.split(|byte| *byte == b'/');
    let names: Vec<&[u8]> =
        segments.map(|segment| segment.split(|byte| *byte == b';').next().unwrap_or_default()).collect();
    names.join(&b'/')
}
