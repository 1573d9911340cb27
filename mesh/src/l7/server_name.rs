//! Names of servers as TLS clients say them, and as `serverNames` of a CiliumNetworkPolicy writes them.
//!
//! A written name has labels between dots. In a label `*` stands for any number of characters of a label, none included; a
//! label that is `**` stands for one or more whole labels; the name `*` stands for every name. Compared without regard to case.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name, bytes, as it is said; one more than DNS can write leaves room for what Cilium's schema takes.
const LONGEST: usize = 255;
/// Longest label, bytes.
const LABEL: usize = 63;

/// One of `serverNames`, in lower case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerName(Box<str>);

/// Why a text is no name of a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ServerNameError {
    /// Nothing at all.
    #[error("empty; write a name such as www.example.com, or \"*\" for every name")]
    Empty,
    /// A dot at the end.
    #[error("a dot at the end, which TLS does not send; leave it out")]
    FinalDot,
    /// An address.
    #[error("an address, and TLS names servers by name alone; use toCIDR")]
    Address,
    /// Longer than a name can be.
    #[error("longer than a name can be: at most 255 bytes, 63 of them between two dots")]
    Long,
    /// Two dots in a row, or one at the begin.
    #[error("nothing between two dots, or before the first")]
    EmptyLabel,
    /// A wildcard that means nothing.
    #[error("** stands for whole labels and for nothing within one: write **.example.com or *.example.com")]
    Wildcard,
    /// What no name has.
    #[error("a character that names of servers do not have; they have letters, digits, - and _")]
    Character,
}

impl FromStr for ServerName {
    type Err = ServerNameError;

    fn from_str(text: &str) -> Result<Self, ServerNameError> {
        if text.is_empty() {
            return Err(ServerNameError::Empty);
        }
        if text.parse::<std::net::IpAddr>().is_ok() {
            return Err(ServerNameError::Address);
        }
        if text.len() > 1 && text.ends_with('.') {
            return Err(ServerNameError::FinalDot);
        }
        if text.len() > LONGEST || text.split('.').any(|label| label.len() > LABEL) {
            return Err(ServerNameError::Long);
        }
        for label in text.split('.') {
            if label.is_empty() {
                return Err(ServerNameError::EmptyLabel);
            }
            if label != "**" && label.contains("**") {
                return Err(ServerNameError::Wildcard);
            }
            if !label.bytes().all(|byte| byte == b'*' || is_of_label(byte)) {
                return Err(ServerNameError::Character);
            }
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

impl TryFrom<String> for ServerName {
    type Error = ServerNameError;

    fn try_from(text: String) -> Result<Self, ServerNameError> {
        text.parse()
    }
}

impl From<ServerName> for String {
    fn from(name: ServerName) -> Self {
        name.0.into()
    }
}

impl fmt::Display for ServerName {
    /// As it is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl ServerName {
    /// As it is written, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it has a wildcard elsewhere than as its first label, so that it can only be tried, not looked up.
    pub fn is_tried(&self) -> bool {
        let rest = self.0.strip_prefix("**.").or(self.0.strip_prefix("*."));
        !matches!(&*self.0, "*" | "**") && rest.unwrap_or(&self.0).contains('*')
    }

    /// Whether it stands for a name that a client has said: one that [`is_said`] takes, in lower case.
    pub fn matches(&self, said: &str) -> bool {
        if &*self.0 == "*" {
            return true;
        }
        let written: Vec<&str> = self.0.split('.').collect();
        let said: Vec<&str> = said.split('.').collect();
        // At least one label for each `**`, and more only where nothing else is left to do: as with one kind of star.
        glob(&written, &said, |label| *label == "**", 1, |written, said| is_label(written, said))
    }
}

/// Whether a client may say it: a name of DNS, and no address.
pub fn is_said(text: &str) -> bool {
    let is_label = |label: &str| !label.is_empty() && label.len() <= LABEL && label.bytes().all(is_of_label);
    text.len() <= LONGEST && text.split('.').all(is_label) && text.parse::<std::net::Ipv4Addr>().is_err()
}

fn is_of_label(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

fn is_label(written: &str, said: &str) -> bool {
    glob(written.as_bytes(), said.as_bytes(), |byte| *byte == b'*', 0, |written, said| written == said)
}

/// Whether a pattern with stars, each of which stands for `least` items or more, fits all items. A star that turns out to stand
/// for too few takes one more; earlier ones need not be looked at again, so that time is a product of the two lengths.
fn glob<T, S>(
    pattern: &[T],
    items: &[S],
    is_star: impl Fn(&T) -> bool,
    least: usize,
    fits: impl Fn(&T, &S) -> bool,
) -> bool {
    let (mut at, mut item) = (0, 0);
    // Behind the last star, and where what it stands for ends.
    let mut star: Option<(usize, usize)> = None;
    loop {
        let here = pattern.get(at);
        if here.is_some_and(&is_star) {
            (at, item) = (at + 1, item + least);
            if item > items.len() {
                return false;
            }
            star = Some((at, item));
            continue;
        }
        match (here, items.get(item)) {
            (None, None) => return true,
            (Some(here), Some(there)) if fits(here, there) => (at, item) = (at + 1, item + 1),
            _ => match star {
                Some((after, end)) if end < items.len() => {
                    (at, item) = (after, end + 1);
                    star = Some((after, end + 1));
                }
                _ => return false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn matches(written: &str, said: &str) -> bool {
        assert!(is_said(said), "{said}");
        written.parse::<ServerName>().unwrap().matches(said)
    }

    #[test]
    fn stars_stand_for_what_they_stand_for_in_cilium() {
        for (written, said, not) in [
            (
                "www.example.com",
                &["www.example.com"][..],
                &["example.com", "www.example.org", "wwww.example.com"][..],
            ),
            (
                "*.example.com",
                &["www.example.com", "blog.example.com"],
                &["example.com", "a.b.example.com", "example.org"],
            ),
            (
                "**.example.com",
                &["a.example.com", "c.b.a.example.com"],
                &["example.com", "aexample.com", "a.example.com.org"],
            ),
            ("*example.com", &["example.com", "sub-example.com"], &["www.example.com"]),
            (
                "sub*.example.com",
                &["sub.example.com", "subdomain.example.com"],
                &["www.example.com", "a.sub.example.com"],
            ),
            (
                "api.*-prod.example.com",
                &["api.eu-prod.example.com"],
                &["api.eu-test.example.com", "api.a.eu-prod.example.com"],
            ),
            ("a*b*c", &["abc", "axxbyyc", "abbc"], &["ab", "acb", "abcd"]),
            ("**.svc.**.local", &["a.svc.b.local", "a.b.svc.c.svc.d.local"], &["svc.b.local", "a.svc.local"]),
            ("*.*", &["a.b"], &["a", "a.b.c"]),
            ("*", &["localhost", "a.b.c"], &[]),
            ("**", &["localhost", "a.b.c"], &[]),
        ] {
            for name in said {
                assert!(matches(written, name), "{written} {name}");
            }
            for name in not {
                assert!(!matches(written, name), "{written} {name}");
            }
        }
        assert_eq!("WWW.Example.com".parse::<ServerName>().unwrap().as_str(), "www.example.com");
    }

    #[test]
    fn what_names_no_server_is_refused() {
        use ServerNameError::*;
        let long = "a".repeat(64);
        let longest = vec!["a".repeat(63); 4].join(".") + ".a";
        for (text, error) in [
            ("", Empty),
            ("example.com.", FinalDot),
            ("10.0.0.1", Address),
            ("fd00::1", Address),
            (&long, Long),
            (&longest, Long),
            (".example.com", EmptyLabel),
            ("a..b", EmptyLabel),
            (".", EmptyLabel),
            ("***.example.com", Wildcard),
            ("a**.example.com", Wildcard),
            ("exa mple.com", Character),
            ("https://example.com", Character),
            ("example.com:443", Character),
            ("[a-z].example.com", Character),
            ("b\u{fc}cher.example", Character),
        ] {
            assert_eq!(text.parse::<ServerName>(), Err(error), "{text:?}");
        }
    }

    /// What the stars mean, tried out: every way to cut a name in two at every star.
    fn plainly(written: &[u8], said: &[u8]) -> bool {
        match written {
            [] => said.is_empty(),
            [b'*', b'*', rest @ ..] => {
                let is_whole = |end: usize| {
                    let (labels, left) = said.split_at(end);
                    let labels = std::str::from_utf8(labels).unwrap();
                    labels.split('.').all(|label| !label.is_empty()) && plainly(rest, left)
                };
                (1..=said.len()).any(is_whole)
            }
            [b'*', rest @ ..] => {
                let label = said.iter().position(|byte| *byte == b'.').unwrap_or(said.len());
                (0..=label).any(|end| plainly(rest, &said[end..]))
            }
            [byte, rest @ ..] => said.first() == Some(byte) && plainly(rest, &said[1..]),
        }
    }

    /// All short names against all short patterns.
    #[test]
    fn matching_is_what_trying_out_says() {
        let texts = |letters: &[u8], longest: u32| -> Vec<String> {
            let count = letters.len();
            let all =
                (1..=longest).flat_map(|length| (0..count.pow(length)).map(move |number| (length, number)));
            all.map(|(length, number)| {
                (0..length).map(|at| char::from(letters[number / count.pow(at) % count])).collect()
            })
            .collect()
        };
        let names: Vec<String> = texts(b"ab.", 6).into_iter().filter(|text| is_said(text)).collect();
        let mut seen = (0, 0);
        for written in texts(b"ab.*", 6).iter().filter_map(|text| text.parse::<ServerName>().ok()) {
            if written.as_str() == "*" {
                continue;
            }
            for said in &names {
                let found = written.matches(said);
                assert_eq!(found, plainly(written.as_str().as_bytes(), said.as_bytes()), "{written} {said}");
                if found { seen.0 += 1 } else { seen.1 += 1 }
            }
        }
        assert!(seen.0 > 10_000 && seen.1 > 10_000, "{seen:?}");
    }
}
