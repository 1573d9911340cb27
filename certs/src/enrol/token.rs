//! Join tokens: 128 random bits that show once, within an hour, that a node is the one of that name.
//!
//! Promise: only a token's hash is kept, and in memory alone: a CA that is started anew has given out none.

use std::fmt;
use std::time::Duration;

use rustls::pki_types::UnixTime;

use crate::tls;

/// How long a token is good.
pub const LIFETIME: Duration = Duration::from_secs(60 * 60);
/// Tokens out at one time; who asks for more has the oldest forgotten.
const MAX_TOKENS: usize = 1024;

type Digest = [u8; 32];

struct Entry {
    digest: Digest,
    node: String,
    end: UnixTime,
}

/// Those that have been given out and not used.
#[derive(Default)]
pub(super) struct Tokens {
    entries: Vec<Entry>,
}

/// A token that is good, until it is spent.
pub(super) struct Found(usize);

impl Tokens {
    /// A new one, for this node: 32 hexadecimal digits. `None`: there are no random numbers.
    pub(super) fn create(&mut self, node: &str, now: UnixTime) -> Option<String> {
        let mut bits = [0; 16];
        getrandom::fill(&mut bits).ok()?;
        let token = format!("{:032x}", u128::from_be_bytes(bits));
        self.entries.retain(|entry| now < entry.end);
        if self.entries.len() >= MAX_TOKENS {
            self.entries.remove(0);
        }
        let end = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + LIFETIME);
        self.entries.push(Entry { digest: digest(token.as_bytes())?, node: node.to_owned(), end });
        Some(token)
    }

    /// Looks a token up, in a time that tells nothing of the others.
    pub(super) fn find(&self, token: &str, node: &str, now: UnixTime) -> Option<Found> {
        let asked = digest(token.trim().as_bytes())?;
        let mut found = None;
        for (index, entry) in self.entries.iter().enumerate() {
            if equal(&entry.digest, &asked) {
                found = Some(index);
            }
        }
        let entry = self.entries.get(found?)?;
        (entry.node == node && now < entry.end).then_some(Found(found?))
    }

    /// It has been used.
    pub(super) fn spend(&mut self, Found(index): Found) {
        if index < self.entries.len() {
            self.entries.remove(index);
        }
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.entries.len())
    }
}

/// Enough for a secret of full entropy.
fn digest(bytes: &[u8]) -> Option<Digest> {
    tls::sha256(bytes)
}

/// Looks at every byte, whatever they are.
fn equal(a: &Digest, b: &Digest) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    #[test]
    fn a_token_is_good_once_for_its_node_and_an_hour() {
        let mut tokens = Tokens::default();
        let token = tokens.create("yavin", at(1000)).unwrap();
        let other = tokens.create("hoth", at(1000)).unwrap();
        assert_eq!(token.len(), 32);
        assert_ne!(token, other);
        assert!(tokens.find(&token, "hoth", at(1001)).is_none(), "another node's");
        assert!(tokens.find("", "yavin", at(1001)).is_none());
        assert!(tokens.find(&token, "yavin", at(1000 + 3600)).is_none(), "an hour old");
        // A file it was written to ends with a newline.
        let found = tokens.find(&format!("{token}\n"), "yavin", at(1000 + 3599)).unwrap();
        tokens.spend(found);
        assert!(tokens.find(&token, "yavin", at(1001)).is_none(), "used");
        assert!(tokens.find(&other, "hoth", at(1001)).is_some(), "the other is as it was");
    }

    #[test]
    fn only_hashes_are_kept_and_not_without_bound() {
        let mut tokens = Tokens::default();
        let first = tokens.create("yavin", at(0)).unwrap();
        let known = |byte: u8| format!("{byte:02x}");
        let hash: String = digest(b"abc").unwrap().into_iter().map(known).collect();
        assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(tokens.entries.iter().all(|entry| entry.digest[..16] != first.as_bytes()[..16]));
        for _ in 0..MAX_TOKENS {
            tokens.create("yavin", at(0)).unwrap();
        }
        assert_eq!(tokens.entries.len(), MAX_TOKENS);
        assert!(tokens.find(&first, "yavin", at(1)).is_none(), "the oldest has gone");
    }
}
