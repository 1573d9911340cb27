//! What a ruleset says of a peer, a protocol and a port.

use abi::{DropReason, EndpointFlags, RuleKey, RuleValue, RuleVerdict};
use aya_ebpf::btf_maps::lpm_trie::Key;

use crate::{identity::End, maps::RULES};

/// What one direction of one endpoint decided, for the event.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Decision {
    /// 0: no endpoint of this node stands at that end, nobody was asked.
    pub(crate) ruleset: u32,
    pub(crate) cookie: u32,
    /// Policy denies; audit mode lets it pass.
    pub(crate) audited: bool,
}

/// What is asked of policy: protocol, and port of the end that was called (ICMP: type).
#[derive(Clone, Copy)]
pub(crate) struct Question {
    pub(crate) port: u16,
    pub(crate) protocol: u8,
}

/// Asks the egress ruleset of `end` about `peer`.
#[inline(always)]
pub(crate) fn egress(end: &End, peer: u32, ask: Question, decision: &mut Decision) -> Result<(), DropReason> {
    decision.ruleset = end.egress;
    audit(end.flags, decide(peer, ask, decision), decision)
}

/// Asks the ingress ruleset of `end` about `peer`.
#[inline(always)]
pub(crate) fn ingress(
    end: &End,
    peer: u32,
    ask: Question,
    decision: &mut Decision,
) -> Result<(), DropReason> {
    decision.ruleset = end.ingress;
    audit(end.flags, decide(peer, ask, decision), decision)
}

#[inline(always)]
fn audit(flags: u16, verdict: Result<(), DropReason>, decision: &mut Decision) -> Result<(), DropReason> {
    if verdict.is_err() && u32::from(flags) & EndpointFlags::AUDIT != 0 {
        decision.audited = true;
        return Ok(());
    }
    verdict
}

#[inline(always)]
fn decide(peer: u32, ask: Question, decision: &mut Decision) -> Result<(), DropReason> {
    let (protocol, port) = (ask.protocol.into(), ask.port.into());
    match policy_decide(decision.ruleset, peer, protocol, port, &mut decision.cookie) {
        ALLOWED => Ok(()),
        DENIED_BY_RULE => Err(DropReason::PolicyDeny),
        _ => Err(DropReason::PolicyDenied),
    }
}

const ALLOWED: u32 = 0;
const DENIED: u32 = 1;
const DENIED_BY_RULE: u32 = 2;

/// Two look-ups: the peer, and anybody. Deny in either wins, then allow in either, and silence denies.
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
    } else if is(peer, RuleVerdict::Allow) {
        (peer, ALLOWED)
    } else if is(anybody, RuleVerdict::Allow) {
        (anybody, ALLOWED)
    } else {
        (peer.or(anybody), DENIED)
    };
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    if let (Some(rule), Some(cookie)) = (rule, unsafe { cookie.as_mut() }) {
        *cookie = rule.cookie;
    }
    verdict
}

#[inline(always)]
fn is(rule: Option<&RuleValue>, verdict: RuleVerdict) -> bool {
    rule.is_some_and(|rule| rule.verdict == verdict as u8)
}
