//! Pairs of endpoint instances: on what grounds one may be marked, what is tried to get there, and what is done when it
//! fails.

use mesh::auth::{AuthEndpoint, InstanceName, Refusal};
use node_api::auth::Step;

use super::marks::Marked;
use super::proofs::ProofKey;
use super::timers::Timer;
use super::{MILLISECOND, Machine, SECOND};
use crate::event::{Failure, Output, Packet, SessionId, Time};

/// A pair, from this node. Of two instances here, the lower is `local`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct PairName {
    /// First, so that all pairs of a node, or of an instance of it, stand together.
    pub(super) peer: InstanceName,
    pub(super) local: u64,
}

/// Both ends, as the plan has them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Ends {
    pub(super) local: AuthEndpoint,
    pub(super) remote: AuthEndpoint,
}

/// What is being done about a pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Work {
    /// Nothing, or it waits for [`Timer::Retry`].
    Idle,
    /// It stands in the queue.
    Queued,
    /// Its proof is under way.
    Proving,
    /// The peer has been asked to mark it.
    Binding(u64),
}

/// A pair that the plan wants authenticated.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) ends: Ends,
    pub(super) mark: Option<Marked>,
    pub(super) work: Work,
    /// Why it failed last, and whose certificate that was about.
    pub(super) last: Option<Failure>,
    /// How often in a row.
    pub(super) failures: u32,
    /// When it is tried again; a timer that rings before has been overtaken.
    pub(super) retry: Option<Time>,
    /// Until when the kernel refuses its packets.
    pub(super) refused: Option<Time>,
    /// Since when a packet has asked for its mark, and since when it is to have one ahead.
    pub(super) asked: Option<Time>,
    pub(super) ahead: Option<Time>,
    /// Packets that wait for it.
    pub(super) packets: Vec<Packet>,
    /// Until when a call that wants it counts as a packet would that waits.
    pub(super) called: Time,
}

impl Pair {
    /// Whether somebody waits for it.
    fn is_awaited(&self, now: Time) -> bool {
        !self.packets.is_empty() || now < self.called
    }
}

/// A pair that has failed is tried again after so long at first, and at last.
const RETRY: (Time, Time) = (20 * MILLISECOND, 10 * SECOND);
/// The same while a packet waits.
const RETRY_ASKED: Time = 100 * MILLISECOND;

impl Machine {
    /// Makes a name of two ends in the form that stands for both directions.
    pub(super) fn pair_name(&self, local: u64, peer: InstanceName) -> PairName {
        if peer.node == self.own_node() && peer.instance < local {
            return PairName {
                local: peer.instance,
                peer: InstanceName { node: peer.node, instance: local },
            };
        }
        PairName { peer, local }
    }

    /// Begins to keep a pair, if the plan wants it.
    pub(super) fn keep(&mut self, name: &PairName) -> Result<&mut Pair, Refusal> {
        let ends = self.ends(name)?;
        if self.pairs.len() >= self.settings.pairs && !self.pairs.contains_key(name) {
            return Err(Refusal::Overloaded);
        }
        Ok(self.pairs.entry(name.clone()).or_insert_with(|| Pair {
            ends,
            mark: None,
            work: Work::Idle,
            last: None,
            failures: 0,
            retry: None,
            refused: None,
            asked: None,
            ahead: None,
            packets: Vec::new(),
            called: 0,
        }))
    }

    /// Keeps a pair no longer; it has no mark any more. Its packets are looked at again.
    pub(super) fn forget(&mut self, name: &PairName) {
        let keys = self.keys(name);
        let Some(pair) = self.pairs.remove(name) else {
            return;
        };
        if pair.refused.is_some() {
            self.out.push(Output::Forget(keys));
        }
        for packet in pair.packets {
            self.holds.orphan(packet);
        }
        self.leave_settling(name);
    }

    /// Names of the pairs that end in a node.
    pub(super) fn pairs_of(&self, node: &str) -> Vec<PairName> {
        let first = InstanceName { node: node.to_owned(), instance: 0 };
        self.pairs
            .range(PairName { peer: first, local: 0 }..)
            .map(|(name, _)| name)
            .take_while(|name| name.peer.node == node)
            .cloned()
            .collect()
    }

    /// Names of the pairs that end in an instance.
    pub(super) fn pairs_with(&self, peer: &InstanceName) -> Vec<PairName> {
        self.pairs
            .range(PairName { peer: peer.clone(), local: 0 }..)
            .map(|(name, _)| name)
            .take_while(|name| name.peer == *peer)
            .cloned()
            .collect()
    }

    /// On which proof a pair rests, and in which session; an error says what is missing, apart from the proof. These are
    /// all conditions of a mark: they are asked before a proof is begun, and again whenever a mark is set.
    pub(super) fn grounds(&self, name: &PairName) -> Result<(ProofKey, Option<SessionId>), Refusal> {
        let Ends { local, remote } = self.ends(name)?;
        self.has_certificate(&local.id).map_err(|_| Refusal::NoCertificate)?;
        let here = name.peer.node == self.own_node();
        if here {
            self.has_certificate(&remote.id).map_err(|_| Refusal::PeerNoCertificate)?;
            if !self.leased(&name.peer.node) {
                return Err(Refusal::NodeUnreachable);
            }
            return Ok((ProofKey::here(name.peer.node.clone(), local.id, remote.id), None));
        }
        let session = self.current(&name.peer.node).ok_or(Refusal::NodeUnreachable)?;
        if !self.attests(session, name.peer.instance, &remote) {
            return Err(Refusal::NotAttested);
        }
        if !self.leased(&name.peer.node) {
            return Err(Refusal::NodeUnreachable);
        }
        let key = ProofKey { node: name.peer.node.clone(), local: local.id, remote: remote.id };
        Ok((key, Some(session)))
    }

    /// Takes the next step towards a mark. False: it would need a handshake, and `may_begin` says that none may begin.
    pub(super) fn attempt(&mut self, name: &PairName, may_begin: bool) -> bool {
        let (key, session) = match self.grounds(name) {
            Ok(grounds) => grounds,
            Err(why) => {
                self.fail(name, why);
                return true;
            }
        };
        if let Some(expiry) = self.live_proof(&key) {
            self.join(&key, name);
            match session {
                None => self.mark(name, expiry),
                Some(session) => self.bind(name, session),
            }
            return true;
        }
        if !self.proving(&key) && !may_begin {
            return false;
        }
        self.join(&key, name);
        self.set_work(name, Work::Proving);
        self.begin_proof(&key, session);
        true
    }

    pub(super) fn set_work(&mut self, name: &PairName, work: Work) {
        if let Some(pair) = self.pairs.get_mut(name) {
            pair.work = work;
        }
    }

    /// A pair has a mark: what waited for it goes on.
    pub(super) fn proven(&mut self, name: &PairName) {
        let Some(pair) = self.pairs.get_mut(name) else {
            return;
        };
        pair.work = Work::Idle;
        pair.failures = 0;
        pair.last = None;
        (pair.asked, pair.ahead) = (None, None);
        for packet in std::mem::take(&mut pair.packets) {
            self.release(packet);
        }
        self.leave_settling(name);
    }

    /// A pair has failed for now: what waits for it is refused, unless a moment may change it.
    pub(super) fn fail(&mut self, name: &PairName, failure: impl Into<Failure>) {
        let failure = failure.into();
        let why = failure.why;
        let Some(pair) = self.pairs.get_mut(name) else {
            return;
        };
        // What only has to be waited for counts once.
        if !passes(why) || pair.last.as_ref().is_none_or(|last| last.why != why) {
            self.tally.refuse(Step::Pair, why);
        }
        pair.work = Work::Idle;
        pair.last = Some(failure);
        let slower = RETRY.0.saturating_mul(1 << pair.failures.min(16)).min(RETRY.1);
        pair.failures = pair.failures.saturating_add(1);
        let wait = if passes(why) && pair.is_awaited(self.now) { slower.min(RETRY_ASKED) } else { slower };
        let at = self.now + self.random.shorten(wait);
        pair.retry = Some(at);
        self.timers.add(at, Timer::Retry(name.clone()));
        if !passes(why) {
            pair.ahead = None;
            self.refuse(name);
            self.leave_settling(name);
        } else if why != Refusal::NotAttested
            && why != Refusal::NodeUnreachable
            && !self.awaits_certificate(name)
        {
            self.leave_settling(name);
        }
    }

    /// Whether the CA has not yet said anything about one of the ends here: the pair has not really been tried.
    fn awaits_certificate(&self, name: &PairName) -> bool {
        let Ok(Ends { local, remote }) = self.ends(name) else { return false };
        let here = name.peer.node == self.own_node();
        !self.certificates.contains_key(&local.id) || (here && !self.certificates.contains_key(&remote.id))
    }

    /// Lets the kernel refuse a pair for what it failed of last, for a while, beginning with what waits for it: that is given back, so that its
    /// sender is told and somebody hears of it. In this order: the hook that stopped it is to find the refusal.
    pub(super) fn refuse(&mut self, name: &PairName) {
        let until = self.now + self.settings.refusal_time;
        let last = self.pairs.get(name).and_then(|pair| pair.last.clone());
        let failure = last.unwrap_or_else(|| Refusal::TimedOut.into());
        let sides = self.sides(name, &failure);
        let Some(pair) = self.pairs.get_mut(name) else {
            return;
        };
        if !pair.is_awaited(self.now) {
            return;
        }
        pair.called = 0;
        let packets = std::mem::take(&mut pair.packets);
        // A refusal would stand where the keys lead to the mark.
        if pair.mark.is_none() {
            pair.refused = Some(until);
            self.timers.add(until, Timer::Refusal(name.clone()));
            for (keys, why, side) in sides {
                self.out.push(Output::Refuse { keys, why, side, until });
            }
        }
        let why = failure.why;
        pair.last = Some(failure);
        pair.asked = None;
        self.explain(name);
        for packet in packets {
            self.give_back(packet, why);
        }
    }

    pub(super) fn check_refusal(&mut self, name: &PairName) {
        let now = self.now;
        let Some(pair) =
            self.pairs.get_mut(name).filter(|pair| pair.refused.is_some_and(|until| until <= now))
        else {
            return;
        };
        pair.refused = None;
        let keys = self.keys(name);
        self.out.push(Output::Forget(keys));
    }

    pub(super) fn retry(&mut self, name: &PairName) {
        let now = self.now;
        if let Some(pair) = self.pairs.get_mut(name).filter(|pair| pair.retry.is_some_and(|at| at <= now)) {
            pair.retry = None;
            let idle = pair.mark.is_none() && pair.work == Work::Idle && !pair.is_awaited(now);
            if idle && pair.refused.is_none() && self.pairs.len() > self.most_ahead() {
                // Only what is asked for is kept beyond the bound; a packet asks again.
                return self.forget(name);
            }
            self.enqueue(name, false);
        }
    }

    /// Something about a node has changed: what could not be proven for want of it is tried now.
    pub(super) fn try_node(&mut self, node: &str) {
        for name in self.pairs_of(node) {
            self.enqueue_ahead(&name);
        }
    }
}

/// Whether a failure may be over in a moment, because the other side is only behind.
pub(super) fn passes(why: Refusal) -> bool {
    matches!(
        why,
        Refusal::NodeUnreachable
            | Refusal::NotAttested
            | Refusal::NoCertificate
            | Refusal::PeerNoCertificate
            | Refusal::TimedOut
            | Refusal::Overloaded
            | Refusal::NotRequired
            | Refusal::UnknownPeer
            | Refusal::Withdrawn
            | Refusal::Protocol
    )
}
