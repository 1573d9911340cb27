//! Paths, and what servers and gateways before them might make of one.

use std::collections::BTreeSet;

use l7_proxy::stage::normalise::Path;

/// How many steps a server may take in any order.
const STEPS: usize = 6;
/// How many forms are looked at; what has more is refused by then, or close to it.
const FORMS: usize = 400;

/// The canonical form is one, and of what a server might make of it nothing is left out. Whether there is one.
pub fn holds(raw: &[u8]) -> bool {
    let mut path = Path::default();
    let is_accepted = path.normalise(raw).is_ok();
    let mut again = path.clone();
    assert_eq!(again.normalise(raw).is_ok(), is_accepted, "what was there before does not matter");
    if !is_accepted {
        return false;
    }
    assert_eq!(again, path, "{}", raw.escape_ascii());
    let canonical = path.canonical().to_vec();
    assert_eq!(path.is_changed(), canonical != raw);
    is_canonical(raw, &canonical);
    again.normalise(&canonical).expect("what is canonical is accepted");
    assert_eq!((again.canonical(), again.is_changed()), (&canonical[..], false), "{}", raw.escape_ascii());
    assert!(again.readings().eq(path.readings()), "{}", raw.escape_ascii());

    let (form, query) = split(&canonical);
    let mut judged = BTreeSet::from([key(form)]);
    for reading in path.readings() {
        let reading = reading.strip_suffix(query).expect("a reading has the same query");
        assert!(is_resolved(reading), "{}: {}", raw.escape_ascii(), reading.escape_ascii());
        judged.insert(key(reading));
    }
    for (form, steps) in forms(form) {
        let form = resolved(&form, true);
        assert!(
            judged.contains(&key(&form)),
            "{}: by {steps:?} a server makes {} of {}, which is not judged",
            raw.escape_ascii(),
            form.escape_ascii(),
            canonical.escape_ascii(),
        );
    }
    true
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.split_at(path.iter().position(|byte| *byte == b'?').unwrap_or(path.len()))
}

fn is_canonical(raw: &[u8], canonical: &[u8]) {
    let shown = raw.escape_ascii();
    let (form, query) = split(canonical);
    assert_eq!(query, split(raw).1, "{shown}");
    assert!(is_resolved(form), "{shown}");
    assert!(!form.iter().any(|byte| *byte == b'\\' || !byte.is_ascii()), "{shown}");
    for at in (0..form.len()).filter(|at| form[*at] == b'%') {
        let digits = form.get(at + 1..at + 3).expect("an escape is whole");
        assert!(digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'A'..=b'F')), "{shown}");
        let byte = escape(&form[at..]).expect("and one");
        assert!(!byte.is_ascii_alphanumeric() && !b"-._~\0".contains(&byte), "{shown}");
    }
}

fn is_resolved(path: &[u8]) -> bool {
    let Some(rest) = path.strip_prefix(b"/") else { return false };
    let count = rest.split(|byte| *byte == b'/').count();
    rest.split(|byte| *byte == b'/')
        .enumerate()
        .all(|(at, segment)| segment != b"." && segment != b".." && (!segment.is_empty() || at + 1 == count))
}

/// All that servers might make of a target's path, without dots.
pub fn every_form(target: &[u8]) -> Vec<Vec<u8>> {
    forms(split(target).0).into_iter().map(|(form, _)| resolved(&form, true)).collect()
}

/// What a server, or one behind another, may do to a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Every escape, once.
    Decode,
    /// What stands behind `;` in each segment goes.
    Strip,
    /// `\` is `/`.
    Slash,
    /// Dots, where `//` is `/`.
    Merge,
    /// Dots, where between two `/` there is a segment (RFC 3986 section 5.2.4).
    Resolve,
}

/// All that can come of a path, each with how.
fn forms(path: &[u8]) -> Vec<(Vec<u8>, Vec<Step>)> {
    let mut forms = vec![(path.to_vec(), Vec::new())];
    let mut at = 0;
    while at < forms.len() && forms.len() < FORMS {
        let (form, steps) = forms[at].clone();
        at += 1;
        if steps.len() == STEPS {
            continue;
        }
        for step in [Step::Decode, Step::Strip, Step::Slash, Step::Merge, Step::Resolve] {
            let next = match step {
                Step::Decode => decoded(&form, |_| true),
                Step::Strip => stripped(&form),
                Step::Slash => form.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect(),
                Step::Merge => resolved(&form, true),
                Step::Resolve => resolved(&form, false),
            };
            if !forms.iter().any(|(known, _)| *known == next) {
                forms.push((next, [&steps[..], &[step]].concat()));
            }
        }
    }
    forms
}

fn escape(bytes: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(bytes.get(1..3)?).ok()?;
    let is_one = bytes[0] == b'%' && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u8::from_str_radix(digits, 16).ok().filter(|_| is_one)
}

fn decoded(path: &[u8], which: impl Fn(u8) -> bool) -> Vec<u8> {
    let (mut decoded, mut at) = (Vec::with_capacity(path.len()), 0);
    while at < path.len() {
        let found = escape(&path[at..]).filter(|byte| which(*byte));
        decoded.push(found.unwrap_or(path[at]));
        at += if found.is_some() { 3 } else { 1 };
    }
    decoded
}

fn stripped(path: &[u8]) -> Vec<u8> {
    let mut in_parameters = false;
    let mut kept = Vec::with_capacity(path.len());
    for byte in path {
        in_parameters = *byte != b'/' && (in_parameters || *byte == b';');
        if !in_parameters {
            kept.push(*byte);
        }
    }
    kept
}

fn resolved(path: &[u8], merges: bool) -> Vec<u8> {
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut is_open = false;
    for segment in path.strip_prefix(b"/").unwrap_or(path).split(|byte| *byte == b'/') {
        is_open = matches!(segment, b"" | b"." | b"..");
        match segment {
            b"" if merges => {}
            b"." => {}
            b".." => drop(segments.pop()),
            segment => {
                segments.push(segment);
                is_open = false;
            }
        }
    }
    let mut joined = [&b"/"[..], &segments.join(&b'/')].concat();
    if is_open && joined.last() != Some(&b'/') {
        joined.push(b'/');
    }
    joined
}

/// What of a form matters: what is documented not to be judged decoded is so on both sides, and a slash at the end is one
/// matter with each server.
fn key(path: &[u8]) -> Vec<u8> {
    let is_kept = |byte: u8| b"/\\;.!$&'()*+,=:@".contains(&byte);
    let mut form = path.to_vec();
    loop {
        let next = decoded(&form, |byte| !is_kept(byte));
        if next == form {
            break;
        }
        form = next;
    }
    let mut key = Vec::with_capacity(form.len());
    let mut at = 0;
    while at < form.len() {
        match (form[at], escape(&form[at..])) {
            (b'\\', _) => key.extend(b"%5C"),
            (_, Some(byte)) => {
                key.extend(format!("%{byte:02X}").bytes());
                at += 2;
            }
            (byte, None) => key.push(byte),
        }
        at += 1;
    }
    while key.len() > 1 && key.last() == Some(&b'/') {
        key.pop();
    }
    key
}
