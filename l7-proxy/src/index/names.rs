//! Names of TLS servers, for looking up: what is written out, or has a wildcard as its first label only, is found without trying.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh::identity::Identity;
use mesh::l7::{L7Tls, PATTERNS, SERVER_NAMES, ServerName};

use super::{Refused, Side};

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
    tried: Box<[ServerName]>,
}

impl Names {
    /// All of these.
    pub fn new(names: &[ServerName]) -> Self {
        let mut all = Self::default();
        let mut tried = Vec::new();
        for name in names {
            let text = name.as_str();
            match (text.strip_prefix("**."), text.strip_prefix("*.")) {
                _ if matches!(text, "*" | "**") => all.any = true,
                _ if name.is_tried() => tried.push(name.clone()),
                (Some(rest), _) => drop(all.deep.insert(rest.into())),
                (None, Some(rest)) => drop(all.below.insert(rest.into())),
                (None, None) => drop(all.exact.insert(text.into())),
            }
        }
        Self { tried: tried.into(), ..all }
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

/// Compiles the names of a range of ports; `tried` counts those of the endpoint that can only be tried.
pub(super) fn compile(field: &str, tls: &[L7Tls], tried: &mut usize) -> Result<Box<[Tls]>, Refused> {
    let mut all = Vec::with_capacity(tls.len());
    for (number, one) in tls.iter().enumerate() {
        let refused = |why: String| Refused { field: format!("{field}.tls[{number}].names"), why };
        if one.names.len() > SERVER_NAMES {
            return Err(refused(format!("{} names; at most {SERVER_NAMES} can be used", one.names.len())));
        }
        *tried += one.names.iter().filter(|name| name.is_tried()).count();
        if *tried > PATTERNS {
            return Err(refused(format!(
                "more than {PATTERNS} names of the endpoint have a * elsewhere than as their first part; \
                 write **.example.com or *.example.com where that says it"
            )));
        }
        let peers = one.peers.as_ref().map(|peers| {
            let mut peers = peers.to_vec();
            peers.sort_unstable();
            Arc::from(peers)
        });
        all.push(Tls { peers, names: Arc::new(Names::new(&one.names)) });
    }
    Ok(all.into())
}

impl Side {
    /// The names that a peer may say at a port.
    pub fn names(&self, port: u16, peer: Option<Identity>) -> Vec<Arc<Names>> {
        let (Self::Ports(ports), Some(peer)) = (self, peer) else { return Vec::new() };
        let ports = ports.iter().find(|ports| (ports.first..=ports.last).contains(&port));
        let tls = ports.iter().flat_map(|ports| ports.tls.iter());
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
                let names = Names::new(&both);
                for name in &said {
                    let expected = both.iter().any(|one| one.matches(name));
                    assert_eq!(names.holds(name), expected, "{first} {second} {name}");
                    if expected { held += 1 } else { not += 1 }
                }
            }
        }
        assert!(held > 1000 && not > 1000, "{held} {not}");
    }

    #[test]
    fn names_that_are_tried_have_a_bound() {
        let tls = |count: usize| L7Tls {
            peers: None,
            names: (0..count).map(|number| format!("a*{number}.b").parse().unwrap()).collect(),
        };
        assert_eq!(compile("ingress.ports[0]", &[tls(PATTERNS)], &mut 0).unwrap().len(), 1);
        let refused = compile("ingress.ports[0]", &[tls(PATTERNS), tls(1)], &mut 0).unwrap_err();
        assert_eq!(refused.field, "ingress.ports[0].tls[1].names");
    }
}
