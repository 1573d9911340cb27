//! What expressions may not have: forms that Cilium's proxy (RE2) reads otherwise than ours. Who wrote such a one would get
//! another policy than he wrote, so that it is refused by name.

/// The first form of an expression, which is one by our syntax, that RE2 does not have or reads otherwise; with what to
/// write instead.
pub(super) fn differs(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let rest = &bytes[at..];
        match byte {
            b'\\' => {
                if let Some(form) = escape(rest) {
                    return Some(format!(
                        "{form} asserts an edge of a word here and not in RE2; leave it out"
                    ));
                }
                at += 2;
            }
            b'[' => match class(rest) {
                Ok(length) => at += length,
                Err(found) => return Some(found),
            },
            b'(' if rest.starts_with(b"(?") => {
                let flags = rest[2..].iter().take_while(|byte| byte.is_ascii_alphabetic() || **byte == b'-');
                let foreign = flags.copied().find(|flag| !b"imsU-P".contains(flag));
                if let Some(flag) = foreign {
                    return Some(format!(
                        "the flag {} of (?…) is none of RE2; i, m, s and U are",
                        char::from(flag)
                    ));
                }
                at += 2;
            }
            b'{' if rest.starts_with(b"{,") => {
                return Some("{,n} repeats here and is text in RE2; write {0,n}".to_owned());
            }
            _ => at += 1,
        }
    }
    None
}

fn escape(rest: &[u8]) -> Option<&'static str> {
    let forms: [(&[u8], &str); 4] =
        [(b"\\<", "\\<"), (b"\\>", "\\>"), (b"\\b{", "\\b{…}"), (b"\\B{", "\\B{…}")];
    forms.into_iter().find(|(form, _)| rest.starts_with(form)).map(|(_, name)| name)
}

/// Length of the class that begins here; or what is in it that RE2 reads as plain characters.
fn class(rest: &[u8]) -> Result<usize, String> {
    let mut at = if rest.starts_with(b"[^") { 2 } else { 1 };
    // The first may be a bracket that closes nothing.
    if rest.get(at) == Some(&b']') {
        at += 1;
    }
    while let Some(&byte) = rest.get(at) {
        let here = &rest[at..];
        match byte {
            b']' => return Ok(at + 1),
            b'\\' => at += 2,
            b'[' if here.starts_with(b"[:") => {
                let end = here.windows(2).position(|two| two == b":]");
                at += end.map_or(1, |end| end + 2);
            }
            b'[' => {
                return Err("[ within a class begins a class here and is text in RE2; write \\[".to_owned());
            }
            b'&' | b'-' | b'~' if here.get(1) == Some(&byte) => {
                let set = char::from(byte);
                return Err(format!(
                    "{set}{set} within a class is an operation on sets here and text in RE2; write \\{set}"
                ));
            }
            _ => at += 1,
        }
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::differs;

    #[test]
    fn what_re2_reads_otherwise_is_refused_by_name() {
        for (text, named) in [
            ("[a&&b]", "&&"),
            ("[^x&&y]", "&&"),
            ("/[a--b]", "--"),
            ("[a~~b]", "~~"),
            ("[a[b]]", "[ within"),
            ("[]a[b]]", "[ within"),
            ("[[:alpha:][x]]", "[ within"),
            ("(?x) a b", "flag x"),
            ("(?R)a", "flag R"),
            ("a(?i-u:b)", "flag u"),
            ("\\<a", "\\<"),
            ("\\b{start}a", "\\b{"),
            ("a{,3}", "{,n}"),
        ] {
            let found = differs(text).unwrap_or_else(|| panic!("{text} is let through"));
            assert!(found.contains(named), "{text}: {found}");
        }
    }

    #[test]
    fn what_both_read_alike_is_let_through() {
        for text in [
            "/v1/.*",
            "a&&b--c~~d",
            "[a&b~c-]",
            "[\\[&\\&]",
            "[]a]",
            "[^]a]",
            "[[:alpha:]_-]",
            "(?i)get",
            "(?i-s:a)",
            "(?P<name>a)",
            "(?<name>a)",
            "(?:a)",
            "\\[a&&b",
            "a{1,3}",
            "\\bword\\b",
        ] {
            assert_eq!(differs(text), None, "{text}");
        }
    }
}
