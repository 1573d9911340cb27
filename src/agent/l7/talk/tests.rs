use node_api::channel::Channel;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::super::digest::Digest;
use super::super::escort::escort;
use super::super::incarnations::Incarnations;
use super::super::tests as l7;
use super::*;
use crate::agent::auth::place::Place;

type Proxy = Channel<FromProxy, ToProxy>;
const PATIENCE: Duration = Duration::from_secs(10);

/// Who tells, and what is told by that.
struct Teller {
    wants: watch::Sender<Numbered>,
    kernel: watch::Sender<Kernel>,
    drains: watch::Sender<bool>,
    _asks: mpsc::Sender<Asked>,
}

fn teller() -> (Teller, Told) {
    let (wants, wanted) = watch::channel((7, l7::plan(&[1])));
    let (goes_by, kernel) = watch::channel(Kernel::Unsettled);
    let (drains, drain) = watch::channel(false);
    let (asks, asked) = mpsc::channel(1);
    (Teller { wants, kernel: goes_by, drains, _asks: asks }, Told { wanted, kernel, asked, drain })
}

/// A process of the proxy that is talked to.
struct Scene {
    proxy: Proxy,
    teller: Teller,
    standing: watch::Receiver<Standing>,
    refusals: Refusals,
    incarnations: Incarnations,
    talking: JoinHandle<Lost>,
    _directory: tempfile::TempDir,
}

/// One that lives on, which is told this plan, number 7; it has heard what it is to record.
async fn talk(plan: Arc<L7Plan>) -> Scene {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut proxy: Proxy = Channel::new(theirs);
    let (teller, told) = teller();
    teller.wants.send_replace((7, plan));
    let answered = [(1, Answered::default())].into();
    let (stands, standing) = watch::channel(Standing { serving: Some(1), next: None, answered });
    let directory = tempfile::tempdir().unwrap();
    let incarnations = Incarnations::known_at(Place::new(&l7::directories(directory.path())), 1);
    let (refusals, note) = (Refusals::default(), incarnations.note(1));
    let listening =
        Listening { sink: l7::sink(), refusals: Arc::clone(&refusals), standing: Arc::new(stands), note };
    let talking = tokio::spawn(Talk::new(1, Link::adopted(ours), listening, PATIENCE).run(told));
    assert_eq!(proxy.receive().await.unwrap(), ToProxy::Pack);
    let second = proxy.receive().await.unwrap();
    assert!(matches!(second, ToProxy::Record(_)), "{second:?}");
    Scene { proxy, teller, standing, refusals, incarnations, talking, _directory: directory }
}

impl Scene {
    /// The next that it hears is an endpoint of this generation.
    async fn set(&mut self, number: u64) -> EndpointId {
        match self.proxy.receive().await.unwrap() {
            ToProxy::Set { generation, endpoint } if generation == number => endpoint.id,
            other => panic!("{other:?}"),
        }
    }

    async fn accepts(&mut self, generation: u64, endpoint: EndpointId) {
        self.proxy.send(&FromProxy::Accepted { generation, endpoint }).await.unwrap();
    }

    /// The kernel has the plan: it is told that this was everything, and answers.
    async fn syncs(&mut self, generation: u64) {
        self.teller.kernel.send_replace(Kernel::Latest);
        assert_eq!(self.proxy.receive().await.unwrap(), ToProxy::Synced { generation });
        self.proxy.send(&FromProxy::Synced { generation }).await.unwrap();
    }

    /// Until all of this plan has been answered.
    async fn settles(&mut self, plan: u64) {
        self.standing.wait_for(|standing| standing.is_settled(plan)).await.unwrap();
    }

    /// Which rules it has, as the next agent would read it.
    fn noted(&self) -> Option<Digest> {
        self.incarnations.written().remove(0).rules
    }

    /// Nobody wants it any more.
    async fn ends(self) {
        drop(self.teller);
        assert!(matches!(self.talking.await.unwrap(), Lost::Ended(_)));
    }
}

#[tokio::test]
async fn what_an_earlier_agent_told_goes_when_the_kernel_has_this_ones_plan() {
    let mut scene = talk(l7::plan(&[1])).await;
    let endpoint = scene.set(7).await;
    scene.accepts(7, endpoint).await;
    scene.settles(7).await;
    // By now it would have been told that this was everything; the next that it hears is another plan.
    scene.teller.wants.send_replace((8, l7::plan(&[1, 2])));
    let endpoint = scene.set(8).await;
    assert!(!scene.standing.borrow().is_synced(1), "the kernel is told of it only after that");
    scene.syncs(8).await;
    scene.accepts(8, endpoint).await;
    scene.settles(8).await;
    assert!(scene.standing.borrow().is_synced(1));
    // One that another has followed is told of changes as before.
    scene.teller.drains.send_replace(true);
    assert_eq!(scene.proxy.receive().await.unwrap(), drain());
    scene.teller.wants.send_replace((9, l7::plan(&[1])));
    assert!(matches!(scene.proxy.receive().await.unwrap(), ToProxy::Remove { generation: 9, .. }));
    assert!(!scene.standing.borrow().is_settled(9));
    scene.ends().await;
}

/// The kernel goes by what an earlier agent has told it: that stays, and by it connections are sent there.
#[tokio::test]
async fn what_an_earlier_agent_told_stays_where_no_plan_of_this_one_fits() {
    let mut scene = talk(l7::plan(&[1])).await;
    let endpoint = scene.set(7).await;
    scene.teller.kernel.send_replace(Kernel::Earlier);
    scene.accepts(7, endpoint).await;
    scene.standing.wait_for(|standing| standing.is_settled(7) && standing.is_synced(1)).await.unwrap();
    assert_eq!(scene.noted(), None, "it has others beside these");
    // It would have been told that this was everything by now.
    scene.teller.drains.send_replace(true);
    assert_eq!(scene.proxy.receive().await.unwrap(), drain());
    // A plan fits.
    scene.syncs(7).await;
    scene.ends().await;
}

/// What a later agent may rely on: it is there only while it is true.
#[tokio::test]
async fn which_rules_it_has_is_written_down_while_it_has_them_and_no_others() {
    let (first, second) = (l7::plan(&[1]), l7::plan(&[1, 2]));
    let mut scene = talk(Arc::clone(&first)).await;
    let one = scene.set(7).await;
    scene.accepts(7, one).await;
    scene.settles(7).await;
    assert_eq!(scene.noted(), None, "what an earlier agent has told it is there, too");
    scene.syncs(7).await;
    scene.standing.wait_for(|standing| standing.is_synced(1)).await.unwrap();
    assert_eq!(scene.noted(), Digest::of(&first.endpoints));
    scene.teller.wants.send_replace((8, Arc::clone(&second)));
    let two = scene.set(8).await;
    assert_eq!(scene.noted(), None, "before it is told");
    scene.accepts(8, two).await;
    scene.settles(8).await;
    assert_eq!(scene.noted(), Digest::of(&second.endpoints));
    // What it does not take leaves the rules before, which are nobody's plan.
    scene.teller.wants.send_replace((9, plan(&[1, 2], 1)));
    for endpoint in [scene.set(9).await, scene.set(9).await] {
        let (field, why) = ("ingress".to_owned(), "no".to_owned());
        scene.proxy.send(&FromProxy::Refused { generation: 9, endpoint, field, why }).await.unwrap();
    }
    scene.settles(9).await;
    assert_eq!(scene.noted(), None);
    // Both are gone, and what is left is what is wanted.
    scene.teller.wants.send_replace((10, l7::plan(&[])));
    for endpoint in [one, two] {
        assert_eq!(scene.proxy.receive().await.unwrap(), ToProxy::Remove { generation: 10, endpoint });
        scene.accepts(10, endpoint).await;
    }
    scene.settles(10).await;
    assert_eq!(scene.noted(), Digest::of(&l7::plan(&[]).endpoints));
    scene.ends().await;
}

/// It ends by itself, unless it hangs.
#[tokio::test(start_paused = true)]
async fn one_that_has_not_ended_in_time_is_given_up() {
    let mut scene = talk(l7::plan(&[1])).await;
    let endpoint = scene.set(7).await;
    scene.accepts(7, endpoint).await;
    scene.syncs(7).await;
    scene.teller.drains.send_replace(true);
    assert_eq!(scene.proxy.receive().await.unwrap(), drain());
    let begin = Instant::now();
    let Lost::Hangs(why) = scene.talking.await.unwrap() else { panic!("it has not ended") };
    assert!(why.contains("in time") && begin.elapsed() > WITHIN, "{why}");
}

/// What it was told may take it minutes, on a node whose cores others want.
#[tokio::test(start_paused = true)]
async fn one_that_is_at_work_on_what_it_was_told_is_waited_for_and_one_that_is_not_is_given_up() {
    let mut scene = talk(l7::plan(&[1])).await;
    let endpoint = scene.set(7).await;
    for _ in 0..30 {
        tokio::time::sleep(PATIENCE * 3 / 4).await;
        scene.proxy.send(&FromProxy::Working).await.unwrap();
    }
    scene.accepts(7, endpoint).await;
    scene.settles(7).await;
    scene.teller.wants.send_replace((8, l7::plan(&[1, 2])));
    scene.set(8).await;
    let begin = Instant::now();
    scene.proxy.send(&FromProxy::Flows(vec![flow(1)])).await.unwrap();
    let Lost::Hangs(why) = scene.talking.await.unwrap() else { panic!("it has not ended") };
    assert!(why.contains("did not answer") && begin.elapsed() < PATIENCE * 2, "{why}");
}

/// It has so many orders that it takes no more before it has carried out some.
#[tokio::test(start_paused = true)]
async fn one_that_is_at_work_and_takes_nothing_more_meanwhile_is_waited_for() {
    let mut scene = talk(plan(&[1], 4 << 20)).await;
    for _ in 0..30 {
        tokio::time::sleep(PATIENCE * 3 / 4).await;
        scene.proxy.send(&FromProxy::Working).await.unwrap();
    }
    let endpoint = scene.set(7).await;
    scene.accepts(7, endpoint).await;
    scene.settles(7).await;
    scene.ends().await;
}

/// With a rule whose path has that length.
fn plan(ids: &[u16], length: usize) -> Arc<L7Plan> {
    use mesh::l7::{Expression, HttpRule, L7Access, L7Ports, L7Rules};
    let mut plan = L7Plan::clone(&l7::plan(ids));
    let rule = HttpRule { path: Some(Expression("a".repeat(length))), ..HttpRule::default() };
    let access = vec![L7Access { peers: None, http: Some([rule].into()) }];
    let ports = L7Ports {
        first: 80,
        last: 80,
        access: access.into(),
        tls: Arc::default(),
        inspected: Arc::default(),
    };
    let rules = L7Rules { ports: vec![ports] };
    plan.endpoints.values_mut().for_each(|it| it.ingress = Some(Arc::new(rules.clone())));
    Arc::new(plan)
}

fn flow(url: usize) -> node_api::proxy::ProxyFlow {
    node_api::proxy::ProxyFlow {
        time: 1,
        client: ([10, 0, 0, 1], 40_000).into(),
        server: ([10, 0, 0, 2], 80).into(),
        client_identity: None,
        server_identity: None,
        endpoint: EndpointId::new(1).unwrap(),
        direction: mesh::flow::TrafficDirection::Ingress,
        verdict: mesh::flow::Verdict::Forwarded,
        reason: None,
        l7: mesh::l7::L7Flow::Http(mesh::l7::HttpFlow {
            kind: mesh::l7::HttpKind::Request,
            method: "GET".to_owned(),
            url: "a".repeat(url),
            protocol: "HTTP/1.1".to_owned(),
            code: None,
            latency: None,
            note: None,
        }),
    }
}

/// It has to say more than a socket takes before it listens, while it is to be told more than a socket takes.
#[tokio::test]
async fn one_that_does_not_listen_before_it_is_heard_is_heard_while_it_is_told() {
    let mut scene = talk(l7::plan(&[1])).await;
    let endpoint = scene.set(7).await;
    scene.accepts(7, endpoint).await;
    scene.settles(7).await;
    let ids: Vec<u16> = (1..=20).collect();
    scene.teller.wants.send_replace((8, plan(&ids, 100_000)));
    // The agent tells by now, for the socket is full.
    let (mut answers, mut taken) = (vec![scene.set(8).await], 0);
    scene.proxy.send(&FromProxy::Flows((0..1024).map(|_| flow(2000)).collect())).await.unwrap();
    // Answers to what it has heard, before it hears more.
    while answers.len() < ids.len() {
        scene.accepts(8, answers[answers.len() - 1]).await;
        loop {
            match scene.proxy.receive().await.unwrap() {
                ToProxy::Set { generation: 8, endpoint } => break answers.push(endpoint.id),
                ToProxy::Taken => taken += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    scene.accepts(8, answers[answers.len() - 1]).await;
    scene.settles(8).await;
    if taken == 0 {
        assert_eq!(scene.proxy.receive().await.unwrap(), ToProxy::Taken);
    }
    scene.ends().await;
}

/// What it may say unasked while it does not listen has a bound.
#[tokio::test]
async fn one_that_says_what_it_was_not_asked_and_does_not_listen_is_given_up() {
    let mut scene = talk(plan(&[1], 4 << 20)).await;
    for _ in 0..3 {
        scene.accepts(7, EndpointId::new(1).unwrap()).await;
    }
    let Lost::Hangs(why) = scene.talking.await.unwrap() else { panic!("it has not ended") };
    assert!(why.contains("not asked"), "{why}");
}

#[tokio::test]
async fn rules_that_no_message_takes_are_told_closed_and_named() {
    let plan = |length| plan(&[1], length);
    let mut scene = talk(plan(L7Endpoint::MAX_SIZE)).await;
    for (generation, rules, named) in [(7, 0, true), (8, 1, false)] {
        let set = scene.proxy.receive().await.unwrap();
        let ToProxy::Set { endpoint, .. } = set else { panic!("{set:?}") };
        let ports = &endpoint.ingress.as_ref().unwrap().ports;
        assert_eq!(ports[0].access[0].http.as_ref().unwrap().len(), rules);
        scene.accepts(generation, endpoint.id).await;
        scene.settles(generation).await;
        assert_eq!(scene.refusals.lock().contains_key(&endpoint.id), named);
        scene.teller.wants.send_replace((8, plan(1)));
    }
    scene.ends().await;
}

/// One of another build, which has the rules of plan 7.
fn escorted() -> (Channel<serde_json::Value, ToProxy>, Teller, JoinHandle<Lost>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (teller, told) = teller();
    teller.kernel.send_replace(Kernel::Latest);
    let escorting = tokio::spawn(escort(Link::adopted(ours), told, 7, l7::sink(), PATIENCE));
    (Channel::new(theirs), teller, escorting)
}

#[tokio::test]
async fn one_of_another_build_is_told_to_drain_alone_and_ends_when_rules_change() {
    let (mut proxy, teller, escorting) = escorted();
    // What it says may be what this build does not know.
    for said in [
        r#"{"message":"weather"}"#,
        r#"{"message":"flows","value":[{"new":1}]}"#,
        r#"{"message":"report","value":{"new":1}}"#,
    ] {
        proxy.send(&serde_json::from_str(said).unwrap()).await.unwrap();
    }
    for _ in ["flows", "report"] {
        assert_eq!(proxy.receive().await.unwrap(), ToProxy::Taken);
    }
    teller.drains.send_replace(true);
    assert_eq!(proxy.receive().await.unwrap(), drain());
    teller.wants.send_replace((8, l7::plan(&[1, 2])));
    assert!(matches!(escorting.await.unwrap(), Lost::Hangs(_)));
}

/// Between the look at its rules and the first word to it.
#[tokio::test]
async fn one_of_another_build_whose_rules_have_changed_meanwhile_is_given_up() {
    let (_proxy, teller, escorting) = escorted();
    teller.wants.send_replace((8, l7::plan(&[1, 2])));
    let lost = timeout(PATIENCE, escorting).await.unwrap().unwrap();
    assert!(matches!(lost, Lost::Hangs(_)));
}

#[tokio::test(start_paused = true)]
async fn one_of_another_build_that_has_not_ended_in_time_is_given_up() {
    let (mut proxy, teller, escorting) = escorted();
    teller.drains.send_replace(true);
    assert_eq!(proxy.receive().await.unwrap(), drain());
    let Lost::Hangs(why) = escorting.await.unwrap() else { panic!("it has not ended") };
    assert!(why.contains("in time"), "{why}");
}
