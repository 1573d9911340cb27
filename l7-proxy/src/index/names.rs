//! Names of TLS servers, for looking up: what is written out, or has a wildcard as its first label only, is found without trying.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh::identity::Identity;
use mesh::l7::ServerName;

use super::Side;
use super::rules::terms;

/// TLS that some peers may open.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The peers, ascending; `None`: anybody.
    pub peers: Option<Arc<[Identity]>>,
    /// The names of which the client must say one.
    pub names: Arc<Names>,
}

/// Names of servers.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Every name.
    any: bool,
    exact: BTreeSet<Box<str>>,
    /// Of `*.NAME`: what has one label before it.
    below: BTreeSet<Box<str>>,
    /// Of `**.NAME`: what has one label or more before it.
    deep: BTreeSet<Box<str>>,
    tried: Vec<ServerName>,
}

impl Names {
    /// One more.
    pub(super) fn add(&mut self, name: &ServerName) {
        let text = name.as_str();
        match (text.strip_prefix("**."), text.strip_prefix("*.")) {
            _ if matches!(text, "*" | "**") => self.any = true,
            _ if name.is_tried() => self.tried.push(name.clone()),
            (Some(rest), _) => drop(self.deep.insert(rest.into())),
            (None, Some(rest)) => drop(self.below.insert(rest.into())),
            (None, None) => drop(self.exact.insert(text.into())),
        }
    }

    /// Whether a name that a client has said, in lower case, is one of them.
    pub fn holds(&self, said: &str) -> bool {
        let parents = || said.match_indices('.').filter_map(|(dot, _)| said.get(dot + 1..));
        self.any
            || self.exact.contains(said)
            || parents().next().is_some_and(|parent| self.below.contains(parent))
            || !self.deep.is_empty() && parents().any(|parent| self.deep.contains(parent))
            || self.tried.iter().any(|name| name.matches(said))
    }
}

impl Side {
    /// The names that a peer may say at a port.
    pub fn names(&self, port: u16, peer: Option<Identity>) -> Vec<Arc<Names>> {
        let (Self::Ports(ports), Some(peer)) = (self, peer) else { return Vec::new() };
        let tls = terms(ports, port).into_iter().flat_map(|terms| terms.tls.iter());
        let is_meant = |tls: &&Tls| tls.peers.as_ref().is_none_or(|peers| peers.binary_search(&peer).is_ok());
        tls.filter(is_meant).map(|tls| Arc::clone(&tls.names)).collect()
    }
}

#[cfg(test)]
mod tests {
    use mesh::l7::is_said;

    use super::*;

    /// Looking up says what trying each name says.
    #[test]
    fn a_name_is_held_if_one_of_them_matches_it() {
        let written = [
            "a.b", "b", "*.b", "**.b", "*.a.b", "**.a.b", "*", "**", "*a.b", "a*.b", "*.*", "**.a.**",
            "*.*.b", "a.**",
        ];
        let written: Vec<ServerName> = written.iter().map(|text| text.parse().unwrap()).collect();
        let labels = ["a", "b", "aa", "ab"];
        let mut said: Vec<String> = labels.map(str::to_owned).into();
        for _ in 0..3 {
            let longer = said.iter().flat_map(|name| labels.map(|label| format!("{label}.{name}")));
            said = said.iter().cloned().chain(longer).collect();
        }
        assert!(said.iter().all(|name| is_said(name)));
        let (mut held, mut not) = (0, 0);
        for first in &written {
            for second in &written {
                let both = [first.clone(), second.clone()];
                let mut names = Names::default();
                both.iter().for_each(|name| names.add(name));
                for name in &said {
                    let expected = both.iter().any(|one| one.matches(name));
                    assert_eq!(names.holds(name), expected, "{first} {second} {name}");
                    if expected { held += 1 } else { not += 1 }
                }
            }
        }
        assert!(held > 1000 && not > 1000, "{held} {not}");
    }
}
