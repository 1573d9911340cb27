use super::*;
use crate::driver::clock::WallClock;
use crate::driver::testing::TestCa;
use crate::event::SessionId;

type Svids = BTreeMap<SpiffeId, Arc<Svid>>;

impl Own for Svids {
    fn svid(&self, id: &SpiffeId) -> Result<Arc<Svid>, Refusal> {
        self.get(id).cloned().ok_or(Refusal::NoCertificate)
    }
}

/// One end of handshakes.
struct End {
    proofs: Proofs,
    own: Svids,
    trust: Trust,
    results: Vec<Result<Time, Failure>>,
}

impl End {
    fn new(trust: Trust, svids: impl IntoIterator<Item = Arc<Svid>>) -> Self {
        let own = svids.into_iter().map(|svid| (svid.id().clone(), svid)).collect();
        Self { proofs: Proofs::default(), own, trust, results: Vec::new() }
    }

    fn begin(&mut self, ours: bool, local: &SpiffeId, remote: &SpiffeId) {
        let proof = proof(ours);
        assert!(self.proofs.start(proof, "n".to_owned(), local.clone(), remote.clone(), 0).is_none());
    }

    /// Does all there is to do; what is for the other side.
    fn work(&mut self) -> Vec<Vec<u8>> {
        let mut bytes = Vec::new();
        while self.proofs.has_work() {
            for input in self.proofs.work(&self.own, &self.trust, Clock::read(&WallClock::machine())) {
                match input {
                    Input::ProofBytes(_, chunk) => bytes.push(chunk),
                    Input::ProofDone(_, result) => self.results.push(result),
                    other => panic!("{other:?}"),
                }
            }
        }
        bytes
    }

    fn result(&self) -> Result<(), Refusal> {
        assert_eq!(self.results.len(), 1, "over once");
        self.results[0].clone().map(drop).map_err(|failure| failure.why)
    }
}

fn proof(ours: bool) -> ProofId {
    ProofId { session: SessionId(1), ours, number: 1 }
}

/// Carries bytes both ways until neither end has more.
fn shake(client: &mut End, server: &mut End) {
    loop {
        let (there, back) = (client.work(), server.work());
        if there.is_empty() && back.is_empty() {
            return;
        }
        for bytes in there {
            assert!(server.proofs.feed(proof(false), bytes).is_none());
        }
        for bytes in back {
            assert!(client.proofs.feed(proof(true), bytes).is_none());
        }
    }
}

fn left(end: &End) -> u64 {
    end.results[0].clone().unwrap().saturating_sub(linux::clock::boottime()) / 1_000_000_000
}

#[test]
fn two_workloads_are_proven_until_their_certificates_end() {
    let ca = TestCa::new("td");
    let [a, b] = ["a", "b"].map(|name| ca.workload(name));
    let mut client = End::new(ca.trust(), [ca.svid(&a)]);
    let mut server = End::new(ca.trust(), [ca.svid_of(&b, -1_800)]);
    client.begin(true, &a, &b);
    server.begin(false, &b, &a);
    shake(&mut client, &mut server);
    assert_eq!((client.result(), server.result()), (Ok(()), Ok(())));
    for end in [&client, &server] {
        assert!(
            (1_700..1_800).contains(&left(end)),
            "of both chains the earliest, less a minute: {}",
            left(end)
        );
        assert!(end.proofs.running.is_empty());
    }
}

#[test]
fn each_side_insists_on_the_one_it_expects_and_says_what_was_wrong() {
    let (ca, stranger) = (TestCa::new("td"), TestCa::new("td"));
    let [a, b, c] = ["a", "b", "c"].map(|name| ca.workload(name));
    let foreign = TestCa::new("other").workload("b");
    // What the server shows, whom the client expects, how each ends.
    let cases = [
        (ca.svid(&c), &b, Refusal::WrongId),
        (stranger.svid(&b), &b, Refusal::Untrusted),
        (ca.svid_of(&b, -4_000), &b, Refusal::Expired),
        (ca.svid_of(&b, 4_000), &b, Refusal::NotYetValid),
        (ca.svid(&b), &foreign, Refusal::WrongId),
    ];
    for (shown, expected, why) in cases {
        let mut client = End::new(ca.trust(), [ca.svid(&a)]);
        let mut server = End::new(ca.trust(), []);
        let id = shown.id().clone();
        server.own.insert(id.clone(), shown.clone());
        client.begin(true, &a, expected);
        server.begin(false, &id, &a);
        shake(&mut client, &mut server);
        assert_eq!((client.result(), server.result()), (Err(why), Err(Refusal::RefusedByPeer)));
        let failure = client.results[0].clone().unwrap_err();
        assert_eq!(
            (failure.side, failure.shown),
            (Some(Side::Peer), Some(id)),
            "whose it was, and what it showed"
        );
        assert_eq!(
            server.results[0].clone().unwrap_err().side,
            Some(Side::Own),
            "to the other it is its own"
        );
        assert!(client.proofs.kept.is_empty() && server.proofs.kept.is_empty());
    }
    // A client's certificate is judged last: it has no error of its own. That is why the machine waits for an answer.
    let mut client = End::new(ca.trust(), [ca.svid(&c)]);
    let mut server = End::new(ca.trust(), [ca.svid(&b)]);
    client.begin(true, &c, &b);
    server.begin(false, &b, &a);
    shake(&mut client, &mut server);
    assert_eq!((client.result(), server.result()), (Ok(()), Err(Refusal::WrongId)));
}

#[test]
fn without_a_certificate_nothing_begins() {
    let ca = TestCa::new("td");
    let [a, b] = ["a", "b"].map(|name| ca.workload(name));
    let mut client = End::new(ca.trust(), []);
    client.begin(true, &a, &b);
    assert!(client.work().is_empty());
    assert_eq!(client.result(), Err(Refusal::NoCertificate));
}

#[test]
fn what_is_no_handshake_or_takes_too_long_has_failed() {
    let ca = TestCa::new("td");
    let [a, b] = ["a", "b"].map(|name| ca.workload(name));
    let server = || {
        let mut server = End::new(ca.trust(), [ca.svid(&b)]);
        server.begin(false, &b, &a);
        server.work();
        server
    };
    let mut garbled = server();
    garbled.proofs.feed(proof(false), vec![0x47; 100]);
    garbled.work();
    assert_eq!(garbled.result(), Err(Refusal::Protocol));

    let mut endless = server();
    // A record that never ends, in small pieces.
    let pieces = (0..=MAX_BYTES).find_map(|_| endless.proofs.feed(proof(false), vec![22; 1_000]));
    assert_eq!(pieces, Some(Input::ProofDone(proof(false), Err(Refusal::Protocol.into()))));
    assert!(!endless.proofs.has_work() && endless.proofs.running.is_empty());

    let mut slow = server();
    assert!(slow.proofs.expire(PATIENCE - 1).is_empty());
    let late = vec![Input::ProofDone(proof(false), Err(Refusal::TimedOut.into()))];
    assert_eq!(slow.proofs.expire(PATIENCE), late);
    assert!(slow.proofs.feed(proof(false), vec![1]).is_none() && !slow.proofs.has_work());
}

#[test]
fn of_what_was_dropped_nothing_more_comes() {
    let ca = TestCa::new("td");
    let [a, b] = ["a", "b"].map(|name| ca.workload(name));
    let mut client = End::new(ca.trust(), [ca.svid(&a)]);
    client.begin(true, &a, &b);
    client.proofs.drop(proof(true));
    assert!(client.work().is_empty() && client.results.is_empty());
}

fn locally(end: &mut End, a: &SpiffeId, b: &SpiffeId) -> Result<(), (Refusal, Option<Side>)> {
    end.proofs.prove_locally(a.clone(), b.clone());
    match &end.proofs.work(&end.own, &end.trust, Clock::read(&WallClock::machine()))[..] {
        [Input::LocalProofDone { result, .. }] => {
            result.clone().map(drop).map_err(|failure| (failure.why, failure.side))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_workloads_of_one_node_are_proven_by_the_same_handshake() {
    let ca = TestCa::new("td");
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| ca.workload(name));
    let mut end = End::new(ca.trust(), [ca.svid(&a), ca.svid(&b), ca.svid_of(&c, -4_000)]);
    assert_eq!(locally(&mut end, &a, &b), Ok(()));
    assert_eq!(locally(&mut end, &a, &a), Ok(()), "two instances of one workload");
    assert_eq!(locally(&mut end, &a, &c), Err((Refusal::Expired, Some(Side::Peer))));
    assert_eq!(locally(&mut end, &c, &a), Err((Refusal::Expired, Some(Side::Own))));
    assert_eq!(locally(&mut end, &a, &d), Err((Refusal::PeerNoCertificate, Some(Side::Peer))));
    assert_eq!(locally(&mut end, &d, &a), Err((Refusal::NoCertificate, Some(Side::Own))));
}

#[test]
fn a_root_that_goes_takes_what_it_has_proven() {
    let (ca, other) = (TestCa::new("td"), TestCa::new("td"));
    let [a, b] = ["a", "b"].map(|name| ca.workload(name));
    let mut client = End::new(ca.trust(), [ca.svid(&a), ca.svid(&b)]);
    let mut server = End::new(ca.trust(), [ca.svid(&b)]);
    client.begin(true, &a, &b);
    server.begin(false, &b, &a);
    shake(&mut client, &mut server);
    locally(&mut client, &a, &b).unwrap();
    assert!(client.proofs.judge_again(&client.trust).is_empty());

    other.trust();
    std::fs::copy(other.bundle_file(), ca.bundle_file()).unwrap();
    assert!(client.trust.refresh(&ca.domain));
    let lost = |node: Option<&str>| Input::ProofLost {
        node: node.map(str::to_owned),
        local: a.clone(),
        remote: b.clone(),
        why: Failure { why: Refusal::Untrusted, side: Some(Side::Peer), shown: Some(b.clone()), said: None },
    };
    assert_eq!(client.proofs.judge_again(&client.trust), [lost(None), lost(Some("n"))]);
    assert!(client.proofs.judge_again(&client.trust).is_empty(), "once");
}

#[test]
fn what_has_ended_by_the_wall_clock_is_lost_even_if_that_was_set() {
    let ca = TestCa::new("td");
    let [a, b] = ["a", "b"].map(|name| ca.workload(name));
    let mut end = End::new(ca.trust(), [ca.svid(&a), ca.svid(&b)]);
    locally(&mut end, &a, &b).unwrap();
    let wall = Clock::read(&WallClock::machine()).wall();
    assert!(end.proofs.lose_ended(wall + 3_500).is_empty());
    let why = Failure { why: Refusal::Expired, side: Some(Side::Own), shown: Some(a.clone()), said: None };
    let lost = Input::ProofLost { node: None, local: a, remote: b, why };
    assert_eq!(end.proofs.lose_ended(wall + 3_601), [lost]);
}
