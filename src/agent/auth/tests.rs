//! What the auth-agent is told when plans change, and what is waited for.

use mesh::auth::AuthEndpoint;
use mesh::identity::Identity;
use mesh::plan::EndpointPlan;

use super::told::{common, join, may_be_cut, nobody};
use super::*;

fn pair(one: u32, other: u32) -> IdentityPair {
    IdentityPair::new(Identity::new(one).unwrap(), Identity::new(other).unwrap())
}

fn plan(pairs: &[IdentityPair]) -> Arc<AuthPlan> {
    Arc::new(AuthPlan {
        trust_domain: "mesh".parse().unwrap(),
        node: "node1".to_owned(),
        grace: 10_000,
        ahead: 20_000,
        nodes: BTreeMap::new(),
        endpoints: BTreeMap::new(),
        remotes: BTreeMap::new(),
        pairs: pairs.iter().copied().collect(),
    })
}

#[test]
fn until_a_plan_is_in_force_who_was_proven_by_the_one_before_still_is() {
    let [one, two] = [pair(300, 301), pair(300, 302)];
    let wanted = plan(&[two]);
    let both = join(&wanted, &[one].into());
    assert_eq!(both.pairs, [one, two].into());
    assert!(Arc::ptr_eq(&join(&wanted, &[two].into()), &wanted), "nothing to add");
}

#[test]
fn time_to_be_proven_is_given_to_who_may_have_something_open() {
    let endpoint =
        |identity| EndpointPlan { identity: Identity::new(identity).unwrap(), ..golden_endpoint() };
    let id = mesh::workload::EndpointId::new(1).unwrap();
    let identities = [300, 301].map(|number| (Identity::new(number).unwrap(), Default::default()));
    let before = NodePlan {
        endpoints: [(id, endpoint(300))].into(),
        identities: Arc::new(identities.into()),
        ..NodePlan::default()
    };
    assert!(may_be_cut(&[pair(300, 301)], &before));
    assert!(!may_be_cut(&[pair(300, 302)], &before), "nobody had that identity");
    assert!(!may_be_cut(&[pair(301, 301)], &before), "nobody here has it");
    assert!(!may_be_cut(&[], &before));
}

fn golden_endpoint() -> EndpointPlan {
    let endpoint = mesh::workload::Endpoint {
        id: mesh::workload::EndpointId::new(1).unwrap(),
        instance: 1,
        workload: "default/deathstar".parse().unwrap(),
        labels: Default::default(),
        service_account: "default".to_owned(),
        interface: "fm1".to_owned(),
        ifindex: 1,
        mac: mesh::workload::Mac([2; 6]),
        gateway_mac: mesh::workload::Mac([4; 6]),
        ipv4: [10, 0, 0, 1].into(),
        ipv6: std::net::Ipv6Addr::LOCALHOST,
    };
    EndpointPlan {
        endpoint,
        identity: Identity::new(300).unwrap(),
        ingress: Arc::default(),
        egress: Arc::default(),
        audit: false,
    }
}

#[tokio::test]
async fn who_is_withdrawn_while_others_are_waited_for_is_so_at_once() {
    let state = tempfile::tempdir().unwrap();
    let directories = Directories {
        config: state.path().to_owned(),
        shared: None,
        state: state.path().to_owned(),
        run_dir: state.path().to_owned(),
        pins: state.path().to_owned(),
    };
    let mut auth = Auth::new(&directories, &World::default(), "node1", &mut Registry::default());
    let (prover, told) = Prover::silent(plan(&[]));
    auth.prover = Some(prover);
    let end = |instance: u64, identity| {
        let end = AuthEndpoint {
            workload: "default/ship".parse().unwrap(),
            id: "spiffe://mesh/ns/default/sa/ship".parse().unwrap(),
            identity: Identity::new(identity).unwrap(),
            ipv4: [10, 0, 0, 1].into(),
            ipv6: std::net::Ipv6Addr::LOCALHOST,
        };
        (instance, end)
    };
    let identities = [300, 301].map(|number| (Identity::new(number).unwrap(), Default::default()));
    let before = NodePlan {
        endpoints: [(EndpointId::new(1).unwrap(), golden_endpoint())].into(),
        identities: Arc::new(identities.into()),
        ..NodePlan::default()
    };
    let next = |labels| {
        let auth = AuthPlan {
            endpoints: [end(1, 300), end(2, labels)].into(),
            ..AuthPlan::clone(&plan(&[pair(300, 301)]))
        };
        NodePlan { auth: Some(Arc::new(auth)), ..before.clone() }
    };
    assert!(auth.announce(&next(301), &before), "somebody may have something open");
    let never = Instant::now() + Duration::from_secs(1 << 20);
    let mut waits = Box::pin(auth.settled(never));
    assert!(auth.announce(&next(302), &before), "a newer world is waited for like the one before");
    let relabelled = told.borrow().1.endpoints[&2].identity;
    assert_eq!(relabelled, Identity::new(302).unwrap(), "it is told without waiting");
    tokio::select! {
        biased;
        () = &mut waits => panic!("they have not been proven"),
        () = std::future::ready(()) => {}
    }
    auth.follow(&next(302), &BTreeSet::new());
    assert!(!auth.announce(&next(302), &before), "it is in force");
    auth.keep(AuthPlan { endpoints: [end(1, 300)].into(), ..AuthPlan::clone(&plan(&[])) });
    assert_eq!(told.borrow().1.endpoints.len(), 1, "nobody else, where there is no plan");
}

#[test]
fn a_refused_plan_leaves_permissions_and_takes_proofs_away() {
    let endpoint = |account: &str| AuthEndpoint {
        workload: "default/deathstar".parse().unwrap(),
        id: format!("spiffe://mesh/ns/default/sa/{account}").parse().unwrap(),
        identity: Identity::new(300).unwrap(),
        ipv4: [10, 0, 0, 1].into(),
        ipv6: std::net::Ipv6Addr::LOCALHOST,
    };
    let with = |pairs: &[IdentityPair], endpoints: [(u64, &str); 2]| AuthPlan {
        endpoints: endpoints.map(|(instance, account)| (instance, endpoint(account))).into(),
        ..AuthPlan::clone(&plan(pairs))
    };
    let old = with(&[pair(300, 301)], [(1, "same"), (2, "before")]);
    let new = with(&[], [(1, "same"), (2, "after")]);
    let common = common(&old, &new);
    assert_eq!(common.endpoints.keys().collect::<Vec<_>>(), [&1], "the other is somebody else by now");
    assert_eq!(common.pairs, old.pairs);
}

#[test]
fn addresses_are_kept_back_for_longer_than_a_mark_can_live() {
    assert_eq!(quarantine(&NodePlan::default()), None);
    let auth = Some(plan(&[]));
    assert_eq!(quarantine(&NodePlan { auth, ..NodePlan::default() }), Some(Duration::from_secs(12)));
}

#[test]
fn where_nobody_must_authenticate_any_more_who_leaves_is_told_from_who_stays() {
    let end = |instance: u64| {
        let end = AuthEndpoint {
            workload: "default/ship".parse().unwrap(),
            id: "spiffe://mesh/ns/default/sa/ship".parse().unwrap(),
            identity: Identity::new(300).unwrap(),
            ipv4: [10, 0, 0, 1].into(),
            ipv6: std::net::Ipv6Addr::LOCALHOST,
        };
        (instance, end)
    };
    let told = AuthPlan { endpoints: [end(1), end(2)].into(), ..AuthPlan::clone(&plan(&[pair(300, 300)])) };
    let id = EndpointId::new(1).unwrap();
    let there = NodePlan { endpoints: [(id, golden_endpoint())].into(), ..NodePlan::default() };
    let after = nobody(&told, &there, &BTreeSet::new());
    assert_eq!((after.pairs.len(), after.endpoints.keys().collect::<Vec<_>>()), (0, vec![&1]));
    assert!(nobody(&told, &there, &[id].into()).endpoints.is_empty());
}
