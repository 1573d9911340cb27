//! From [`mesh::l7`] to what is matched: what is kept of it for all endpoints, and what holds where new rules stand beside those
//! before. How one endpoint is compiled is said in [`super::course`].

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use expression::Expressions;
use mesh::l7::{L7Endpoint, L7Rules, left_of};

use super::contexts::Contexts;
use super::course::Preparation;
use super::{Endpoint, Ports, Rule, RuleSet, Side, Terms};

/// What cannot be used of an endpoint's rules.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// Which part: `ingress.ports[0].access[1].http[0].path`.
    pub field: String,
    /// Why, and what to write instead.
    pub why: String,
}

/// Compiles endpoints, and keeps expressions and lists of rules once for all of them.
#[derive(Debug, Default)]
pub struct Compiler {
    pub(super) expressions: Expressions,
    sets: BTreeSet<Known>,
    pub(super) contexts: Contexts,
    /// Work that had been done when it was looked at last what is still used.
    collected: usize,
}

/// Expressions, and KiB of automata.
const LITTER: usize = 64 << 10;

/// A list of rules that is there, found by what it consists of.
#[derive(Debug)]
struct Known(Arc<RuleSet>);

impl Compiler {
    /// Goes on with an endpoint until it is done or `effort` is spent, which it takes from.
    pub fn advance(
        &mut self,
        preparation: &mut Preparation,
        effort: &mut usize,
    ) -> Option<Result<Endpoint, Refused>> {
        preparation.advance(self, effort)
    }

    /// Compiles an endpoint's rules, however long that takes.
    pub fn endpoint(&mut self, endpoint: &L7Endpoint) -> Result<Endpoint, Refused> {
        let mut preparation = Preparation::new(Box::new(endpoint.clone()));
        loop {
            if let Some(done) = self.advance(&mut preparation, &mut usize::MAX.clone()) {
                return done;
            }
        }
    }

    /// An endpoint whose rules cannot be used, after those that it had before: these stay, and nothing passes where only the
    /// new ones say anything, for the kernel may send it here by them.
    pub fn kept(before: &Endpoint, refused: &L7Endpoint) -> Endpoint {
        Endpoint {
            ingress: keep(before.ingress.as_ref(), refused.ingress.as_deref()),
            egress: keep(before.egress.as_ref(), refused.egress.as_deref()),
            audit: before.audit && refused.audit,
            ..before.clone()
        }
    }

    /// An endpoint with the rules that it had before for the ports and directions that it has none for any more: by those the
    /// kernel may send connections here still.
    pub fn joined(endpoint: Endpoint, before: &Endpoint) -> Endpoint {
        Endpoint {
            ingress: beside(endpoint.ingress, before.ingress.as_ref()),
            egress: beside(endpoint.egress, before.egress.as_ref()),
            ..endpoint
        }
    }

    /// An endpoint whose rules cannot be used and never could: nothing passes where it has any.
    pub fn nothing(endpoint: &L7Endpoint) -> Endpoint {
        Endpoint {
            id: endpoint.id,
            instance: endpoint.instance,
            addresses: [endpoint.ipv4.into(), endpoint.ipv6.into()],
            ingress: endpoint.ingress.as_ref().map(|_| Side::Refused),
            egress: endpoint.egress.as_ref().map(|_| Side::Refused),
            audit: endpoint.audit,
            fault: None,
        }
    }

    /// Whether so much has been made since the last [`Compiler::collect`] that another is due, though somebody waits.
    pub fn is_littered(&self) -> bool {
        self.expressions.made() - self.collected > LITTER
    }

    /// Forgets expressions and lists of rules that no endpoint has any more.
    pub fn collect(&mut self) {
        self.collected = self.expressions.made();
        self.sets.retain(|known| Arc::strong_count(&known.0) > 1);
        self.expressions.collect();
        self.contexts.collect();
    }

    /// How many lists of rules, expressions and automata there are.
    pub fn count(&self) -> (usize, usize, usize) {
        let (expressions, automata) = self.expressions.count();
        (self.sets.len(), expressions, automata)
    }

    /// The list of these rules, if it is there.
    pub(super) fn known(&self, rules: &[Rule]) -> Option<Arc<RuleSet>> {
        self.sets.get(rules).map(|known| Arc::clone(&known.0))
    }

    /// Keeps a list that is not there.
    pub(super) fn keep(&mut self, set: RuleSet) -> Arc<RuleSet> {
        let set = Arc::new(set);
        self.sets.insert(Known(Arc::clone(&set)));
        set
    }
}

impl Borrow<[Rule]> for Known {
    fn borrow(&self) -> &[Rule] {
        self.0.rules()
    }
}

impl Ord for Known {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.rules().cmp(other.0.rules())
    }
}

impl PartialOrd for Known {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Known {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Known {}

/// A side with ranges besides that nobody may use: those of `refused` that it has not.
fn keep(before: Option<&Side>, refused: Option<&L7Rules>) -> Option<Side> {
    let Some(refused) = refused else { return before.cloned() };
    let kept: &[Ports] = match before {
        Some(Side::Refused) => return Some(Side::Refused),
        Some(Side::Ports(ports)) => ports,
        None => &[],
    };
    let closed = refused.ports.iter().flat_map(|ports| left_of((ports.first, ports.last), kept, ends));
    let nothing = Arc::<Terms>::default();
    let closed = closed.map(|(first, last)| Ports { first, last, terms: Arc::clone(&nothing) });
    let mut ports: Vec<Ports> = kept.iter().cloned().chain(closed).collect();
    ports.sort_by_key(|ports| ports.first);
    Some(Side::Ports(ports.into()))
}

/// A side with those ranges besides that only `before` has.
fn beside(side: Option<Side>, before: Option<&Side>) -> Option<Side> {
    let Some(Side::Ports(earlier)) = before else { return side.or_else(|| before.cloned()) };
    let ports: &[Ports] = match &side {
        Some(Side::Refused) => return side,
        Some(Side::Ports(ports)) => ports,
        None => &[],
    };
    let parts = earlier.iter().flat_map(|earlier| {
        let left = left_of(ends(earlier), ports, ends);
        left.into_iter().map(|(first, last)| Ports { first, last, ..earlier.clone() })
    });
    let mut all: Vec<Ports> = ports.iter().cloned().chain(parts).collect();
    all.sort_by_key(|ports| ports.first);
    Some(Side::Ports(all.into()))
}

fn ends(ports: &Ports) -> (u16, u16) {
    (ports.first, ports.last)
}
