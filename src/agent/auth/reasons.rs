//! Why pairs are not proven, as the auth-agent has said lately: an event carries a number, this the certificate.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use abi::DropReason;
use mesh::auth::{AuthPlan, Blame, Refusal};
use mesh::flow::{Authentication, Flow, TrafficDirection};
use node_api::auth::UnprovenPair;
use parking_lot::Mutex;

/// Pairs of addresses that are kept; the oldest go first.
const KEPT: usize = 4096;
/// For how long what was said explains a drop.
const LATELY: Duration = Duration::from_secs(30);
/// How long events wait for what explains them, and how often they do: it is said before the packet goes back, but by
/// another way than its event comes.
const MOMENT: Duration = Duration::from_millis(20);
const SELDOM: Duration = Duration::from_secs(1);

/// The endpoint's own address and its peer's.
type Pair = (IpAddr, IpAddr);

/// All of them; a clone shares them.
#[derive(Clone, Default)]
pub(in crate::agent) struct Reasons(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    pairs: BTreeMap<Pair, Reason>,
    /// Events waited last.
    waited: Option<Instant>,
}

struct Reason {
    at: Instant,
    why: Refusal,
    blame: Option<Blame>,
}

impl Reasons {
    /// What the auth-agent says, by one of these plans, the latest first.
    pub(super) fn note(&self, plans: &[Option<Arc<AuthPlan>>; 2], unproven: Vec<UnprovenPair>) {
        let mut told = self.0.lock();
        let at = Instant::now();
        for UnprovenPair { instance, remote, why, blame } in unproven {
            let own = plans.iter().flatten().find_map(|plan| plan.endpoints.get(&instance));
            for own in own.into_iter().flat_map(|end| end.addresses()) {
                for peer in remote.iter().filter(|peer| peer.is_ipv4() == own.is_ipv4()) {
                    told.pairs.insert((own, *peer), Reason { at, why, blame: blame.clone() });
                }
            }
        }
        if told.pairs.len() > KEPT {
            let mut times: Vec<_> = told.pairs.values().map(|reason| reason.at).collect();
            times.sort_unstable();
            // Down to three quarters at once: not again with the next.
            let oldest = times[told.pairs.len() - KEPT / 4 * 3];
            told.pairs.retain(|_, reason| reason.at >= oldest && reason.at.elapsed() < LATELY);
        }
    }

    /// Lets flows wait for what explains them, if one of them needs that; not often.
    pub(in crate::agent) async fn catch_up(&self, flows: &[Flow]) {
        let is_awaited = {
            let mut told = self.0.lock();
            let seldom = told.waited.is_none_or(|last| last.elapsed() >= SELDOM);
            let unexplained = |flow: &Flow| pair(flow).is_some_and(|pair| told.of(pair).is_none());
            let is_awaited = seldom && flows.iter().any(unexplained);
            if is_awaited {
                told.waited = Some(Instant::now());
            }
            is_awaited
        };
        if is_awaited {
            tokio::time::sleep(MOMENT).await;
        }
    }

    /// Says in a flow that was dropped for want of a proof whose certificate it was, and what it showed.
    pub(in crate::agent) fn explain(&self, flow: &mut Flow) {
        let told = self.0.lock();
        let Some(Reason { why, blame, .. }) = pair(flow).and_then(|pair| told.of(pair)) else { return };
        let named = match &flow.authentication {
            Some(Authentication::Refused { reason, id, .. }) if *reason == *why => id.clone(),
            None => None,
            // Something else by now.
            Some(_) => return,
        };
        let expected = blame.as_ref().map(|blame| blame.expected.clone());
        let shown = blame.as_ref().and_then(|blame| blame.shown.clone());
        let shown = shown.filter(|shown| Some(shown) != expected.as_ref());
        flow.authentication = Some(Authentication::Refused { reason: *why, id: expected.or(named), shown });
    }
}

impl Told {
    fn of(&self, pair: Pair) -> Option<&Reason> {
        self.pairs.get(&pair).filter(|reason| reason.at.elapsed() < LATELY)
    }
}

/// The ends of a flow that was dropped for want of a proof.
fn pair(flow: &Flow) -> Option<Pair> {
    let of_proof = [
        DropReason::AuthenticationRequired,
        DropReason::AuthenticationRefused,
        DropReason::AuthenticationEnded,
    ];
    let dropped = flow.drop.as_ref()?.reason;
    if !of_proof.into_iter().any(|reason| reason as u8 == dropped) {
        return None;
    }
    let (source, destination) = (flow.source.address?, flow.destination.address?);
    Some(match flow.direction {
        TrafficDirection::Egress => (source, destination),
        TrafficDirection::Ingress => (destination, source),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use mesh::auth::AuthEndpoint;
    use mesh::flow::{Drop, Peer, Verdict};
    use mesh::identity::Identity;
    use mesh::spiffe::SpiffeId;

    use super::*;

    const OWN: [u8; 4] = [10, 0, 0, 1];
    const PEER: [u8; 4] = [10, 1, 0, 2];

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://mesh/ns/default/sa/{name}").parse().unwrap()
    }

    fn plans() -> [Option<Arc<AuthPlan>>; 2] {
        let own = AuthEndpoint {
            workload: "default/ship".parse().unwrap(),
            id: id("ship"),
            identity: Identity::new(300).unwrap(),
            ipv4: OWN.into(),
            ipv6: std::net::Ipv6Addr::LOCALHOST,
        };
        let plan = AuthPlan {
            trust_domain: "mesh".parse().unwrap(),
            node: "node1".to_owned(),
            grace: 10_000,
            ahead: 20_000,
            nodes: BTreeMap::new(),
            endpoints: [(7, own)].into(),
            remotes: BTreeMap::new(),
            pairs: BTreeSet::new(),
        };
        // By a plan that is no more: an endpoint that goes has drops to explain, too.
        [None, Some(Arc::new(plan))]
    }

    fn flow(reason: DropReason, authentication: Option<Authentication>) -> Flow {
        let peer = |address: [u8; 4]| Peer {
            address: Some(address.into()),
            port: Some(80),
            identity: None,
            workload: None,
            labels: Default::default(),
        };
        Flow {
            time: 0,
            node: "node1".to_owned(),
            verdict: Verdict::Dropped,
            drop: Some(Drop { reason: reason as u8, text: reason.text().to_owned(), policies: Vec::new() }),
            direction: TrafficDirection::Ingress,
            source: peer(PEER),
            destination: peer(OWN),
            protocol: 6,
            tcp_flags: 2,
            icmp_type: None,
            is_reply: None,
            length: 60,
            interface: "fm1".to_owned(),
            authentication,
            l7: None,
            trace: false,
        }
    }

    fn said(why: Refusal, shown: &str) -> UnprovenPair {
        let blame = Some(Blame { expected: id("peer"), shown: Some(id(shown)), said: None });
        UnprovenPair { instance: 7, remote: vec![PEER.into()], why, blame }
    }

    fn explained(reasons: &Reasons, mut flow: Flow) -> Option<String> {
        reasons.explain(&mut flow);
        flow.authentication.as_ref().and_then(Authentication::refusal)
    }

    #[test]
    fn a_drop_is_explained_by_what_was_said_of_its_pair() {
        let reasons = Reasons::default();
        let refused = |reason| Some(Authentication::Refused { reason, id: Some(id("peer")), shown: None });
        let wrong = || flow(DropReason::AuthenticationRefused, refused(Refusal::WrongId));
        let plain = "the certificate shows another SPIFFE ID: spiffe://mesh/ns/default/sa/peer";
        assert_eq!(explained(&reasons, wrong()).as_deref(), Some(plain));
        reasons.note(&plans(), vec![said(Refusal::WrongId, "thief")]);
        let full = format!("{plain}, it shows spiffe://mesh/ns/default/sa/thief");
        assert_eq!(explained(&reasons, wrong()), Some(full.clone()));
        // What ends, or has no proof, carries no number of its own.
        for reason in [DropReason::AuthenticationEnded, DropReason::AuthenticationRequired] {
            assert_eq!(explained(&reasons, flow(reason, None)), Some(full.clone()));
        }
        // Not what was dropped for another reason, of another pair, or refused for something else.
        assert_eq!(explained(&reasons, flow(DropReason::PolicyDenied, None)), None);
        let mut other = flow(DropReason::AuthenticationEnded, None);
        other.source.address = Some([10, 1, 0, 3].into());
        assert_eq!(explained(&reasons, other), None);
        let late = flow(DropReason::AuthenticationRefused, refused(Refusal::Expired));
        let text = explained(&reasons, late).unwrap();
        assert!(text.starts_with("the certificate has expired") && !text.contains("thief"), "{text}");
    }

    #[test]
    fn what_is_kept_has_a_bound_and_the_latest_stay() {
        let reasons = Reasons::default();
        for number in 0..=KEPT as u32 + 10 {
            let remote = vec![std::net::Ipv4Addr::from(0x0b00_0000 + number).into()];
            reasons.note(&plans(), vec![UnprovenPair { remote, ..said(Refusal::Expired, "peer") }]);
        }
        assert!(reasons.0.lock().pairs.len() <= KEPT);
        reasons.note(&plans(), vec![said(Refusal::Expired, "peer")]);
        assert!(explained(&reasons, flow(DropReason::AuthenticationEnded, None)).is_some());
    }
}
