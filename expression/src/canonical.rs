//! Whether an expression can match a path at all: paths are brought into one form before they are judged.

use crate::{Branch, Matcher, Rest};

impl Matcher {
    /// Why no path in its canonical form matches it, by what it begins with; `None`: some may, as far as that tells.
    pub fn never_a_path(&self) -> Option<&'static str> {
        let mut whys = self.branches().iter().map(Branch::never_a_path);
        let first = whys.next()??;
        whys.all(|why| why.is_some()).then_some(first)
    }
}

impl Branch {
    fn never_a_path(&self) -> Option<&'static str> {
        let is_whole = matches!(self.rest, Rest::End);
        let prefix = &*self.prefix;
        // Of CONNECT, of OPTIONS, or not known.
        if prefix.is_empty() || is_whole && prefix == b"*" {
            return None;
        }
        let has_query = prefix.contains(&b'?');
        let path = prefix.split(|byte| *byte == b'?').next().unwrap_or_default();
        if !path.starts_with(b"/") {
            return Some("it does not begin with /");
        }
        if let Some(byte) = path.iter().find(|byte| !byte.is_ascii_graphic() || b"\\#".contains(byte)) {
            return Some(match byte {
                b'\\' => "a backslash in a path is refused",
                b'#' => "a path has no #",
                b' ' => "a blank in a path is written %20",
                _ => "other bytes than those of ASCII are escaped in a path",
            });
        }
        escape(path, is_whole || has_query).or_else(|| segment(path, is_whole || has_query))
    }
}

/// What is wrong with an escape.
fn escape(path: &[u8], is_whole: bool) -> Option<&'static str> {
    let hex = |byte: u8| char::from(byte).to_digit(16);
    for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'%') {
        let digits = path.get(at + 1..path.len().min(at + 3)).unwrap_or_default();
        if digits.iter().any(|digit| hex(*digit).is_none()) || is_whole && digits.len() < 2 {
            return Some("% in a path begins an escape of two digits");
        }
        if digits.iter().any(u8::is_ascii_lowercase) {
            return Some("escapes are written in capitals (%2F) before they are judged");
        }
        let [high, low] = *digits else { continue };
        let value = (hex(high)? << 4 | hex(low)?) as u8;
        if value.is_ascii_alphanumeric() || b"-._~".contains(&value) {
            return Some("what need not be escaped is decoded before it is judged");
        }
        if value == 0 {
            return Some("%00 in a path is refused");
        }
    }
    None
}

/// What is wrong with a segment. The last one may go on where the path is not whole.
fn segment(path: &[u8], is_whole: bool) -> Option<&'static str> {
    let mut segments: Vec<&[u8]> = path.split(|byte| *byte == b'/').skip(1).collect();
    let last = segments.pop();
    let is_dots = |segment: &&[u8]| matches!(*segment, b"." | b"..");
    if segments.iter().any(|segment| segment.is_empty()) {
        return Some("// is made / before it is judged");
    }
    let ends = last.filter(|_| is_whole);
    (segments.iter().any(is_dots) || ends.as_ref().is_some_and(is_dots))
        .then_some("/./ and /../ are resolved before they are judged")
}

#[cfg(test)]
mod tests {
    use crate::{Expressions, Matcher};

    fn never(text: &str) -> Option<&'static str> {
        Matcher::new(text, false, &mut Expressions::default()).unwrap().never_a_path()
    }

    #[test]
    fn what_no_canonical_path_can_be_is_named() {
        for (text, named) in [
            ("v1/.*", "begin with /"),
            ("/a%2fb", "capitals"),
            ("/a%2", "two digits"),
            ("/%zz.*", "two digits"),
            ("/%41dmin", "need not"),
            ("/%7Euser/.*", "need not"),
            ("//x", "//"),
            ("/a//.*", "//"),
            ("/a/\\./b", "resolved"),
            ("/a/\\.\\./b.*", "resolved"),
            ("/a/\\.\\.", "resolved"),
            ("/a/\\.\\?x=.*", "resolved"),
            ("/a\\\\b", "backslash"),
            ("/a b", "%20"),
            ("/a#b", "#"),
            ("/\u{e4}", "ASCII"),
            ("/a%00", "%00"),
            ("/a%2fb|//x", "capitals"),
        ] {
            let why = never(text).unwrap_or_else(|| panic!("{text} is taken for a path"));
            assert!(why.contains(named), "{text}: {why}");
        }
    }

    #[test]
    fn what_may_be_one_is_let_be() {
        for text in [
            "",
            ".*",
            "/",
            "/.*",
            "/v1/[a-z]+",
            "/a%2Fb",
            "/a%2.*",
            "/a%.*",
            "/\\.well-known/x",
            "/a/\\..*",
            "/a/\\.\\.[a-z]",
            "/a\\?x=//../%2f",
            "/a%2fb|/a%2Fb",
            "[^/]*",
            "\\*",
            "(?i)/a%2fb",
            "/a/\\.\\.\\.",
            "/a/",
            "/a/.*//",
        ] {
            assert_eq!(never(text), None, "{text}");
        }
    }
}
