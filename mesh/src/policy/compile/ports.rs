//! From claims on ports to the entries of one identity: sweep, then the least prefixes.
//!
//! Claims overlap at will. A sweep over each protocol's ports finds which claims hold where, the strongest effect wins
//! (deny, allow, allow through the proxy, unmet; of all that allow either way the strictest authentication), and equal neighbours become one step. The steps then become prefixes that may nest, the
//! longest being right: the least number of them, by the routing-table construction of Draves et al. (ORTC, 1999), so
//! "all of TCP but port 80" is two entries and not seventeen. The result depends only on what the claims mean.
//!
//! Cost: n claims on a protocol have at most 2n boundaries, and each boundary adds at most 16 entries. What can grow
//! faster is only the list of policies that an outcome names.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::super::protocol::TCP;
use super::super::{Authentication, Needs};

/// What a claim does where it holds, the strongest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(in crate::policy) enum Effect {
    Deny,
    Allow(Reverse<Authentication>),
    /// By way of the L7 proxy.
    Proxy(Reverse<Authentication>),
    Unmet(Needs),
}

/// Ports of a protocol; without a protocol, everything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(in crate::policy) struct Cell {
    pub(in crate::policy) protocol: Option<u8>,
    pub(in crate::policy) first: u16,
    pub(in crate::policy) last: u16,
}

impl Effect {
    pub(in crate::policy) fn allow(authentication: Authentication) -> Self {
        Self::Allow(Reverse(authentication))
    }

    pub(in crate::policy) fn proxy(authentication: Authentication) -> Self {
        Self::Proxy(Reverse(authentication))
    }

    /// What must be proven, of an effect that admits.
    pub(in crate::policy) fn authentication(self) -> Option<Authentication> {
        match self {
            Self::Allow(Reverse(authentication)) | Self::Proxy(Reverse(authentication)) => {
                Some(authentication)
            }
            Self::Deny | Self::Unmet(_) => None,
        }
    }

    /// Where a statement of this effect holds of the cells that it names: by way of the L7 proxy goes TCP and nothing else.
    pub(in crate::policy) fn cells(self, named: Vec<Cell>) -> Vec<Cell> {
        match self {
            Self::Proxy(_) => named.into_iter().filter_map(Cell::of_tcp).collect(),
            Self::Deny | Self::Allow(_) | Self::Unmet(_) => named,
        }
    }

    /// What several come to: the strongest, and of all that admit the strictest authentication. Given in order.
    pub(in crate::policy) fn of_all(mut in_order: impl Iterator<Item = Self>) -> Option<Self> {
        let strongest = in_order.next()?;
        let strictest = strongest.authentication().max(in_order.filter_map(Self::authentication).max());
        Some(match (strongest, strictest) {
            (Self::Allow(_), Some(strictest)) => Self::allow(strictest),
            (Self::Proxy(_), Some(strictest)) => Self::proxy(strictest),
            (other, _) => other,
        })
    }

    /// Whether it is why several come to `decision`: whoever asks for the strictest authentication is, however he
    /// allows.
    pub(in crate::policy) fn decides(self, decision: Self) -> bool {
        match decision.authentication() {
            Some(Authentication::None) | None => self == decision,
            required => self.authentication() == required,
        }
    }
}

impl Cell {
    pub(in crate::policy) const EVERYTHING: Self = Self { protocol: None, first: 0, last: u16::MAX };

    pub(in crate::policy) fn of(protocol: u8, first: u16, last: u16) -> Self {
        Self { protocol: Some(protocol), first, last }
    }

    /// The TCP in it.
    pub(in crate::policy) fn of_tcp(self) -> Option<Self> {
        let tcp = self.protocol.is_none_or(|protocol| protocol == TCP);
        tcp.then_some(Self { protocol: Some(TCP), ..self })
    }

    pub(in crate::policy) fn holds(&self, protocol: u8, port: u16) -> bool {
        self.protocol.is_none_or(|own| own == protocol) && (self.first..=self.last).contains(&port)
    }
}

/// Who makes a claim: an effect and the rank of the policy's name, `None` for what holds without any policy.
pub(super) type Claimant = (Effect, Option<u32>);

/// What a step says: the winning effect and the policies that have it, by rank.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Said {
    pub(super) effect: Effect,
    pub(super) by: Vec<u32>,
}

/// Where an entry stands: [`super::Match`] without the identity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Slot {
    pub(super) protocol: Option<u8>,
    pub(super) port: u16,
    pub(super) port_bits: u8,
}

/// The entries that say what the claims mean, in order of their slots.
pub(super) fn entries<'a>(claims: impl IntoIterator<Item = (Claimant, &'a Cell)>) -> Vec<(Slot, Said)> {
    let mut everywhere = Active::default();
    let mut by_protocol: BTreeMap<u8, Vec<(Claimant, &Cell)>> = BTreeMap::new();
    for (claimant, cell) in claims {
        match cell.protocol {
            None => everywhere.start(claimant),
            Some(protocol) => by_protocol.entry(protocol).or_default().push((claimant, cell)),
        }
    }
    let base = everywhere.said();
    let whole = Slot { protocol: None, port: 0, port_bits: 0 };
    let mut entries: Vec<(Slot, Said)> = base.iter().map(|said| (whole, said.clone())).collect();
    for (protocol, claims) in by_protocol {
        let steps = sweep(everywhere.clone(), claims);
        let start = entries.len();
        Range::WHOLE.fork(&steps).emit(Range::WHOLE, base.as_ref(), &mut |range, said| {
            let slot = Slot { protocol: Some(protocol), port: range.first, port_bits: range.bits };
            entries.push((slot, said.clone()));
        });
        entries[start..].sort_unstable_by_key(|(slot, _)| *slot);
    }
    entries
}

/// The claims that hold at one port, each with how often.
#[derive(Clone, Default)]
struct Active(BTreeMap<Claimant, u32>);

impl Active {
    fn start(&mut self, claimant: Claimant) {
        *self.0.entry(claimant).or_default() += 1;
    }

    fn end(&mut self, claimant: Claimant) {
        if let Some(count) = self.0.get_mut(&claimant) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&claimant);
            }
        }
    }

    fn said(&self) -> Option<Said> {
        let effect = Effect::of_all(self.0.keys().map(|(effect, _)| *effect))?;
        let winners = self.0.keys().filter(|(theirs, _)| theirs.decides(effect));
        let mut by: Vec<u32> = winners.filter_map(|(_, policy)| *policy).collect();
        by.sort_unstable();
        by.dedup();
        Some(Said { effect, by })
    }
}

/// First port of each step and what is said from there to the next; the first step is at port 0, neighbours differ.
type Steps = Vec<(u16, Option<Said>)>;

fn sweep(mut active: Active, claims: Vec<(Claimant, &Cell)>) -> Steps {
    let mut changes: BTreeMap<u16, Vec<(bool, Claimant)>> = BTreeMap::from([(0, Vec::new())]);
    for (claimant, cell) in claims.into_iter().filter(|(_, cell)| cell.first <= cell.last) {
        changes.entry(cell.first).or_default().push((true, claimant));
        if let Some(after) = cell.last.checked_add(1) {
            changes.entry(after).or_default().push((false, claimant));
        }
    }
    let mut steps = Steps::new();
    for (port, changes) in changes {
        for (starts, claimant) in changes {
            if starts { active.start(claimant) } else { active.end(claimant) }
        }
        let said = active.said();
        if steps.last().is_none_or(|(_, before)| *before != said) {
            steps.push((port, said));
        }
    }
    steps
}

/// The ports that share their leading `bits` bits with `first`.
#[derive(Clone, Copy)]
struct Range {
    first: u16,
    bits: u8,
}

/// A range seen as a binary tree that ends where one step fills it.
enum Node<'a> {
    /// One step fills it.
    Same(Option<&'a Said>),
    /// Two halves, and the outcomes of which any one, as this node's entry, leaves the fewest entries below. None
    /// where part of the range has no outcome: a prefix cannot leave a hole, so the halves get their own.
    Fork { wanted: Vec<&'a Said>, halves: Box<[Node<'a>; 2]> },
}

impl Range {
    const WHOLE: Self = Self { first: 0, bits: 0 };

    fn halves(self) -> [Self; 2] {
        let bits = self.bits + 1;
        [Self { bits, ..self }, Self { first: self.first | 1 << (16 - bits), bits }]
    }

    fn last(self) -> u16 {
        self.first | u16::MAX.checked_shr(u32::from(self.bits)).unwrap_or(0)
    }

    /// Recursion is at most 16 deep.
    fn fork(self, steps: &Steps) -> Node<'_> {
        let after = steps.partition_point(|(port, _)| *port <= self.first);
        let filled = steps.get(after).is_none_or(|(port, _)| *port > self.last());
        if filled {
            return Node::Same(after.checked_sub(1).and_then(|at| steps.get(at)?.1.as_ref()));
        }
        let halves = self.halves().map(|half| half.fork(steps));
        let [left, right] = halves.each_ref().map(Node::wanted);
        let both: Vec<_> = left.iter().filter(|said| right.binary_search(said).is_ok()).copied().collect();
        let wanted = match (left.is_empty() || right.is_empty(), both.is_empty()) {
            (true, _) => Vec::new(),
            (false, false) => both,
            (false, true) => {
                let mut either = [left, right].concat();
                either.sort_unstable();
                either
            }
        };
        Node::Fork { wanted, halves: Box::new(halves) }
    }
}

impl<'a> Node<'a> {
    /// In order.
    fn wanted(&self) -> Vec<&'a Said> {
        match self {
            Self::Same(said) => said.iter().copied().collect(),
            Self::Fork { wanted, .. } => wanted.clone(),
        }
    }

    fn emit(&self, range: Range, inherited: Option<&'a Said>, entry: &mut impl FnMut(Range, &'a Said)) {
        let wanted = self.wanted();
        let here = match inherited.filter(|said| wanted.contains(said)) {
            Some(said) => Some(said),
            None => wanted.first().copied().inspect(|said| entry(range, said)),
        };
        if let Self::Fork { halves, .. } = self {
            for (half, node) in range.halves().into_iter().zip(halves.iter()) {
                node.emit(half, here, entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;

    const EFFECTS: [Effect; 6] = [
        Effect::Deny,
        Effect::Allow(Reverse(Authentication::Required)),
        Effect::Allow(Reverse(Authentication::None)),
        Effect::Proxy(Reverse(Authentication::Required)),
        Effect::Proxy(Reverse(Authentication::None)),
        Effect::Unmet(Needs::L7Proxy),
    ];

    fn claim() -> impl Strategy<Value = (Claimant, Cell)> {
        // Few boundaries, so that claims touch, nest and repeat; some odd ones, so that prefixes split to the last bit.
        let edge = prop_oneof![4 => 0..4_u16, 2 => 78..83_u16, 1 => 65_533..=u16::MAX, 1 => any::<u16>()];
        let ports = (edge.clone(), edge).prop_map(|(one, other)| (one.min(other), one.max(other)));
        let cell = prop_oneof![
            1 => Just(Cell::EVERYTHING),
            6 => (prop_oneof![Just(6_u8), Just(17)], ports)
                .prop_map(|(protocol, (first, last))| Cell::of(protocol, first, last)),
        ];
        ((prop::sample::select(EFFECTS.to_vec()), prop::option::of(0..3_u32)), cell)
    }

    /// What one port's claims come to, port by port.
    fn plainly(claims: &[(Claimant, Cell)], protocol: u8, port: u16) -> Option<Said> {
        let holding = claims.iter().filter(|(_, cell)| cell.holds(protocol, port));
        let says = |effect: Effect| holding.clone().any(|((theirs, _), _)| *theirs == effect);
        let admits = |required| [Effect::allow(required), Effect::proxy(required)];
        let required = admits(Authentication::Required).into_iter().any(says);
        let direct =
            [Authentication::Required, Authentication::None].into_iter().map(Effect::allow).any(says);
        let authentication = if required { Authentication::Required } else { Authentication::None };
        let effect = if says(Effect::Deny) {
            Effect::Deny
        } else if direct {
            Effect::allow(authentication)
        } else if admits(Authentication::Required).into_iter().chain(admits(Authentication::None)).any(says) {
            Effect::proxy(authentication)
        } else {
            says(Effect::Unmet(Needs::L7Proxy)).then_some(Effect::Unmet(Needs::L7Proxy))?
        };
        let deciding = |theirs: Effect| match theirs.authentication() {
            Some(Authentication::Required) if effect != Effect::Deny => true,
            _ => theirs == effect,
        };
        let mut by: Vec<u32> =
            holding.filter(|(who, _)| deciding(who.0)).filter_map(|(who, _)| who.1).collect();
        by.sort_unstable();
        by.dedup();
        Some(Said { effect, by })
    }

    fn longest(entries: &[(Slot, Said)], protocol: u8, port: u16) -> Option<Said> {
        let covers = |slot: &Slot| {
            let shift = 16 - u32::from(slot.port_bits);
            let same_port = (slot.port ^ port).checked_shr(shift).unwrap_or(0) == 0;
            slot.protocol.is_none() || (slot.protocol == Some(protocol) && same_port)
        };
        let covering = entries.iter().filter(|(slot, _)| covers(slot));
        covering.max_by_key(|(slot, _)| (slot.protocol, slot.port_bits)).map(|(_, said)| said.clone())
    }

    fn compiled(claims: &[(Claimant, Cell)]) -> Vec<(Slot, Said)> {
        entries(claims.iter().map(|(claimant, cell)| (*claimant, cell)))
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            rng_seed: RngSeed::Fixed(1),
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn entries_say_at_each_port_what_the_claims_come_to(claims in prop::collection::vec(claim(), 0..8)) {
            let entries = compiled(&claims);
            let edges = claims.iter().flat_map(|(_, cell)| [cell.first, cell.last]);
            let around = edges.flat_map(|port| [port.saturating_sub(1), port, port.saturating_add(1)]);
            for port in around.chain([0, 80, u16::MAX]) {
                for protocol in [6, 17, 1] {
                    prop_assert_eq!(longest(&entries, protocol, port), plainly(&claims, protocol, port));
                }
            }
        }

        #[test]
        fn a_claim_in_two_pieces_and_another_order_makes_the_same_entries(
            claims in prop::collection::vec(claim(), 1..8),
            cut in any::<u16>(),
        ) {
            let pieces = claims.iter().rev().flat_map(|(who, cell)| {
                let cut = cut.clamp(cell.first, cell.last);
                [(*who, Cell { last: cut, ..*cell }), (*who, Cell { first: cut, ..*cell })]
            });
            let pieces: Vec<_> = pieces.map(|(who, cell)| match cell.protocol {
                Some(_) => (who, cell),
                None => (who, Cell::EVERYTHING),
            }).collect();
            prop_assert_eq!(compiled(&pieces), compiled(&claims));
        }

        #[test]
        fn n_ranges_make_few_entries(claims in prop::collection::vec(claim(), 0..64)) {
            prop_assert!(compiled(&claims).len() <= 1 + 16 * 2 * claims.len());
        }
    }
}
