//! What a ruleset says of a peer, a protocol and a port, and whether the peer has proven who it is where that is asked for.

use abi::{Address, Direction, DropReason, EndpointFlags, ReservedIdentity, RuleKey, RuleValue, RuleVerdict};
use aya_ebpf::btf_maps::lpm_trie::Key;

use crate::{
    auth,
    header::protocol,
    identity::{End, is_workload},
    maps::RULES,
    space::Zero,
};

/// What the rulesets of both ends said, for events, and the mark that stands for the proof they ask for. All zero: neither
/// was asked.
///
/// Small, because it lies on the stack of two functions at once: a ruleset's number is not in it, the ends have that.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Verdict {
    /// [`abi::Mark::epoch`].
    pub(crate) epoch: u64,
    /// Number of the mark; 0: no proof is asked for.
    pub(crate) mark: u32,
    /// Of the entries that decided, by [`Direction`].
    cookies: [u32; 2],
    /// [`Verdict::ASKED`], [`Verdict::AUDITED`], by [`Direction`].
    flags: [u8; 2],
    zero: [u8; 2],
}

// SAFETY: numbers.
unsafe impl Zero for Verdict {}

impl Verdict {
    /// An endpoint of this node stands at that end.
    const ASKED: u8 = 1;
    /// Policy denies, or wants a proof that is not there; audit mode lets it pass.
    const AUDITED: u8 = 2;
    /// Policy lets it pass by way of the L7 proxy only.
    const PROXIED: u8 = 4;
    /// Beside that: audit mode, where the proxy is not there or cannot be, lets it pass without.
    const SPARED: u8 = 8;

    /// Whether either end only looks on.
    #[inline(always)]
    pub(crate) fn audited(&self) -> bool {
        (self.flags[0] | self.flags[1]) & Self::AUDITED != 0
    }

    /// Whether either end wants the L7 proxy between them.
    #[inline(always)]
    pub(crate) fn proxied(&self) -> bool {
        (self.flags[0] | self.flags[1]) & Self::PROXIED != 0
    }

    /// Where the proxy would be in the way: whether no end that wants it enforces that. Then the connection is a direct one,
    /// and reported.
    #[inline(always)]
    pub(crate) fn spare_proxy(&mut self) -> bool {
        policy_spare(self) == 1
    }

    #[inline(always)]
    fn spared(flags: u8) -> u8 {
        if flags & Self::PROXIED == 0 { flags } else { flags & !Self::PROXIED | Self::AUDITED }
    }

    /// An endpoint of this node was asked for that direction.
    #[inline(always)]
    pub(crate) fn asked(&self, direction: Direction) -> bool {
        self.flags[direction as usize] & Self::ASKED != 0
    }

    /// That endpoint lets pass what its policy denies.
    #[inline(always)]
    pub(crate) fn is_audited(&self, direction: Direction) -> bool {
        self.flags[direction as usize] & Self::AUDITED != 0
    }

    /// Of the entry that decided; 0 if none matched.
    #[inline(always)]
    pub(crate) fn cookie(&self, direction: Direction) -> u32 {
        self.cookies[direction as usize]
    }
}

/// What is asked of policy: protocol, and port of the end that was called (ICMP: type).
#[derive(Clone, Copy)]
pub(crate) struct Question {
    pub(crate) port: u16,
    pub(crate) protocol: u8,
}

/// Asks the ruleset of `end` for that direction about `peer`, who has `address`, and for a proof of who that is if a rule
/// wants one. The error goes with the number of a refusal of that proof, or 0.
#[inline(always)]
pub(crate) fn ask(
    end: &End,
    direction: Direction,
    (peer, address): (&End, &Address),
    ask: Question,
    verdict: &mut Verdict,
) -> Result<(), (DropReason, u8)> {
    let is_audited = u32::from(end.flags) & EndpointFlags::AUDIT != 0;
    verdict.flags[direction as usize] |= Verdict::ASKED;
    let cookie = &mut verdict.cookies[direction as usize];
    let decision =
        policy_decide(ruleset(end, direction), peer.identity, ask.protocol.into(), ask.port.into(), cookie);
    let is_proxied = decision & PROXIED != 0;
    if is_proxied {
        verdict.flags[direction as usize] |=
            if is_audited { Verdict::PROXIED | Verdict::SPARED } else { Verdict::PROXIED };
    }
    let result = match decision & !PROXIED {
        // The proxy speaks nothing else.
        _ if is_proxied && ask.protocol != protocol::TCP => Err((DropReason::PolicyDenied, 0)),
        ALLOWED => Ok(()),
        NEEDS_PROOF => {
            // A connection that would pass without depends on nothing.
            let proof = if is_audited { None } else { Some(&mut *verdict) };
            prove(end, direction, (peer, address), proof)
        }
        DENIED_BY_RULE => Err((DropReason::PolicyDeny, 0)),
        _ => Err((DropReason::PolicyDenied, 0)),
    };
    if result.is_err() && is_audited {
        verdict.flags[direction as usize] |= Verdict::AUDITED;
        return Ok(());
    }
    result
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn policy_spare(verdict: *mut Verdict) -> u32 {
    const WANTS: u8 = Verdict::PROXIED | Verdict::SPARED;
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    let Some(verdict) = (unsafe { verdict.as_mut() }) else { return 0 };
    let [from, to] = verdict.flags;
    if from & WANTS == Verdict::PROXIED || to & WANTS == Verdict::PROXIED {
        return 0;
    }
    verdict.flags = [Verdict::spared(from), Verdict::spared(to)];
    1
}

#[inline(always)]
fn prove(
    end: &End,
    direction: Direction,
    (peer, address): (&End, &Address),
    verdict: Option<&mut Verdict>,
) -> Result<(), (DropReason, u8)> {
    // A node to its own workloads: it probes them, and could read their keys.
    if matches!(direction, Direction::Ingress) && peer.identity == ReservedIdentity::HOST {
        return Ok(());
    }
    if !is_workload(peer.identity) {
        return Err((DropReason::NoPrincipal, 0));
    }
    auth::prove(end, peer, address, verdict)
}

#[inline(always)]
fn ruleset(end: &End, direction: Direction) -> u32 {
    match direction {
        Direction::Ingress => end.ingress,
        Direction::Egress => end.egress,
    }
}

const ALLOWED: u32 = 0;
const DENIED: u32 = 1;
const DENIED_BY_RULE: u32 = 2;
/// Allowed to whoever is known to be who he says.
const NEEDS_PROOF: u32 = 3;

/// Beside one of the above that allows: by way of the L7 proxy.
const PROXIED: u32 = 4;

/// Two look-ups: the peer, and anybody. Deny in either wins, then what lets pass in either, and silence denies. If both
/// let pass, the stricter demand for a proof counts, and the direct way. The cookie is that of the entry which asks for
/// the proof or, if none or both do, opens the direct way; else the peer's.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn policy_decide(ruleset: u32, peer: u32, protocol: u32, port: u32, cookie: *mut u32) -> u32 {
    let mut key = Key::new(RuleKey::EXACT, RuleKey::exact(ruleset, peer, protocol as u8, port as u16));
    let peer = RULES.get(&key);
    key.data.identity = [0; 4];
    let anybody = RULES.get(&key);
    let (rule, verdict) = if is(peer, RuleVerdict::Deny) {
        (peer, DENIED_BY_RULE)
    } else if is(anybody, RuleVerdict::Deny) {
        (anybody, DENIED_BY_RULE)
    } else {
        let (own, all) = (weight(peer), weight(anybody));
        if own | all == 0 {
            (peer.or(anybody), DENIED)
        } else {
            let both = own | all;
            let demand = if both & Weight::PROOF != 0 { NEEDS_PROOF } else { ALLOWED };
            let way = if both & Weight::DIRECT != 0 { 0 } else { PROXIED };
            (if all > own { anybody } else { peer }, demand | way)
        }
    };
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    if let (Some(rule), Some(cookie)) = (rule, unsafe { cookie.as_mut() }) {
        *cookie = rule.cookie;
    }
    verdict
}

/// What an entry that lets pass says, the more decisive bit the higher; 0: it does not let pass.
struct Weight;
impl Weight {
    const PASSES: u32 = 1;
    const DIRECT: u32 = 2;
    const PROOF: u32 = 4;
}

#[inline(always)]
fn weight(rule: Option<&RuleValue>) -> u32 {
    let way = if is(rule, RuleVerdict::Allow) {
        Weight::PASSES | Weight::DIRECT
    } else if is(rule, RuleVerdict::Proxy) {
        Weight::PASSES
    } else {
        return 0;
    };
    way | if needs_proof(rule) { Weight::PROOF } else { 0 }
}

#[inline(always)]
fn is(rule: Option<&RuleValue>, verdict: RuleVerdict) -> bool {
    rule.is_some_and(|rule| rule.verdict == verdict as u8)
}

/// A demand that is not known here is met by a proof at least.
#[inline(always)]
fn needs_proof(rule: Option<&RuleValue>) -> bool {
    rule.is_some_and(|rule| rule.requirement != 0)
}
