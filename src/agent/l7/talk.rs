//! What is said to one process of the proxy, and what it says.
//!
//! Promise: it is heard while it is told something, however much that is, so that it is never waited for while it waits to be
//! heard. What it says meanwhile has a bound: the answers that it owes, and one message beside them ([`ToProxy::Taken`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use mesh::l7::{L7Endpoint, L7Plan};
use mesh::workload::EndpointId;
use node_api::channel::ChannelError;
use node_api::proxy::{FromProxy, ProxyAnswer, ProxyQuestion, ToProxy};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::Sink;
use super::refusals::{Refusal, Refusals};
use super::standing::{Answered, Standing};
use crate::agent::auth::process::Link;

/// A plan and its number.
pub(super) type Numbered = (u64, Arc<L7Plan>);
/// Somebody who asks.
pub(super) type Asked = (ProxyQuestion, oneshot::Sender<ProxyAnswer>);

/// For so long a proxy that another has followed leaves connections to their clients that wait for a request.
pub(super) const IDLE: Duration = Duration::from_secs(60);
/// After so long it ends, whatever is under way.
pub(super) const WITHIN: Duration = Duration::from_secs(600);

/// How it was lost.
#[derive(Debug)]
pub(super) enum Lost {
    /// It has ended.
    Ended(String),
    /// It is there and does nothing. Who connects to it again would wait again, and what it lets through it lets through by
    /// old rules.
    Hangs(String),
}

impl Lost {
    pub(super) fn why(self) -> String {
        let (Self::Ended(why) | Self::Hangs(why)) = self;
        why
    }
}

/// By what the kernel sends connections to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kernel {
    /// That is being decided.
    Unsettled,
    /// By what an earlier agent has left: no plan of this one's could be put in force.
    Earlier,
    /// By the plan that was told last.
    Latest,
}

/// What the one side of a conversation is told.
pub(super) struct Told {
    pub(super) wanted: watch::Receiver<Numbered>,
    pub(super) kernel: watch::Receiver<Kernel>,
    pub(super) asked: mpsc::Receiver<Asked>,
    /// Another has followed it.
    pub(super) drain: watch::Receiver<bool>,
}

/// Where what it says goes.
#[derive(Clone)]
pub(super) struct Listening {
    pub(super) sink: Sink,
    pub(super) refusals: Refusals,
    pub(super) standing: Arc<watch::Sender<Standing>>,
}

/// One connection to it.
pub(super) struct Talk {
    number: u32,
    link: Link<ToProxy, FromProxy>,
    listening: Listening,
    /// Whose rules it was not told, for no message takes them.
    untold: BTreeSet<EndpointId>,
    /// Questions it has not answered yet.
    asked: BTreeMap<u64, oneshot::Sender<ProxyAnswer>>,
    last: u64,
    /// Answers that it owes: to what it was told, and to questions.
    owed: usize,
    /// What it has said while it was told something.
    heard: VecDeque<FromProxy>,
    /// What it was told, and the number of that.
    told: BTreeMap<EndpointId, L7Endpoint>,
    plan: u64,
    /// What it has not answered, with the generation; until when it must have.
    unanswered: BTreeMap<EndpointId, u64>,
    overdue: Option<Instant>,
    patience: Duration,
    sync: Sync,
}

/// Whether it has been told that it was told everything.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sync {
    /// Not yet.
    Due,
    /// It has not answered that yet.
    Asked,
    Done,
    /// It is not to be told so: it has been by an earlier agent, and what that one has told it is needed still.
    Earlier,
}

impl Talk {
    pub(super) fn new(
        number: u32,
        link: Link<ToProxy, FromProxy>,
        listening: Listening,
        patience: Duration,
    ) -> Self {
        Self {
            number,
            link,
            listening,
            untold: BTreeSet::new(),
            asked: BTreeMap::new(),
            last: 0,
            owed: 0,
            heard: VecDeque::new(),
            told: BTreeMap::new(),
            plan: 0,
            unanswered: BTreeMap::new(),
            overdue: None,
            patience,
            sync: Sync::Due,
        }
    }

    /// Goes on until it is lost.
    pub(super) async fn run(mut self, mut told: Told) -> Lost {
        match self.go_on(&mut told).await {
            Ok(()) => Lost::Ended("nobody wants it any more".to_owned()),
            Err(lost) => lost,
        }
    }

    async fn go_on(&mut self, told: &mut Told) -> Result<(), Lost> {
        self.say(ToProxy::Pack).await?;
        self.say(ToProxy::Record(self.listening.sink.record.clone())).await?;
        // Before the rules: one that drains already is told nothing that it would have to wait for.
        self.drain(&mut told.drain).await?;
        self.tell(&mut told.wanted).await?;
        self.settle(&mut told.kernel).await?;
        self.report();
        loop {
            while let Some(message) = self.heard.pop_front() {
                self.take(message).await?;
            }
            tokio::select! {
                // What is wanted before what is said: however much that is, it does not hold up a change.
                biased;
                changed = told.wanted.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.tell(&mut told.wanted).await?;
                    self.report();
                }
                Ok(()) = told.drain.changed() => self.drain(&mut told.drain).await?,
                message = self.link.channel.receive() => self.take(message.map_err(ended)?).await?,
                Ok(()) = told.kernel.changed() => {
                    self.settle(&mut told.kernel).await?;
                    self.report();
                }
                Some((question, asker)) = told.asked.recv() => self.ask(question, asker).await?,
                () = over(self.overdue) => {
                    return Err(Lost::Hangs("it did not answer, and was ended".to_owned()));
                }
            }
        }
    }

    async fn take(&mut self, message: FromProxy) -> Result<(), Lost> {
        let is_answer = !matches!(message, FromProxy::Flows(_) | FromProxy::Report(_));
        self.hear(message).await?;
        // Who answers is there, however much there is to answer; who only tells flows may hang all the same.
        if is_answer {
            self.owed = self.owed.saturating_sub(1);
            self.overdue = self.overdue.map(|_| Instant::now() + self.patience);
        }
        self.report();
        Ok(())
    }

    async fn hear(&mut self, message: FromProxy) -> Result<(), Lost> {
        match message {
            FromProxy::Accepted { generation, endpoint } => {
                self.answered(generation, endpoint);
                let mut refusals = self.listening.refusals.lock();
                match self.untold.contains(&endpoint) {
                    true => drop(refusals.insert(endpoint, untold())),
                    false => drop(refusals.remove(&endpoint)),
                }
            }
            FromProxy::Refused { generation, endpoint, field, why } => {
                self.answered(generation, endpoint);
                tracing::error!(%endpoint, %field, %why, "the L7 proxy refuses rules");
                let refusal = match self.told.get(&endpoint) {
                    Some(told) => Refusal::new(told, &field, why),
                    None => Refusal::of_all(why),
                };
                self.listening.refusals.lock().insert(endpoint, refusal);
            }
            FromProxy::Synced { .. } => self.sync = Sync::Done,
            FromProxy::Flows(flows) => {
                self.listening.sink.take(flows);
                self.say(ToProxy::Taken).await?;
            }
            FromProxy::Report(report) => {
                self.listening.sink.report(*report);
                self.say(ToProxy::Taken).await?;
            }
            FromProxy::Answer { number, answer } => self.reply(number, *answer),
        }
        Ok(())
    }

    /// Makes known how far it is.
    fn report(&mut self) {
        if !self.has_answered() {
            return;
        }
        self.overdue = None;
        let synced = matches!(self.sync, Sync::Done | Sync::Earlier);
        let now = Answered { plan: self.plan, synced, takes: self.sync != Sync::Due };
        self.listening.standing.send_if_modified(|standing| {
            let Some(answered) = standing.answered.get_mut(&self.number) else { return false };
            let differs = *answered != now;
            *answered = now;
            differs
        });
    }

    /// Tells what differs from what it was told.
    async fn tell(&mut self, wanted: &mut watch::Receiver<Numbered>) -> Result<(), Lost> {
        let (number, plan) = wanted.borrow_and_update().clone();
        self.plan = number;
        let mut gone = std::mem::take(&mut self.told);
        for (id, endpoint) in &plan.endpoints {
            if gone.remove(id).as_ref() != Some(endpoint) {
                self.unanswered.insert(*id, number);
                let fits = endpoint.size() <= L7Endpoint::MAX_SIZE;
                let endpoint = Box::new(if fits { endpoint.clone() } else { endpoint.closed() });
                let _ = if fits { self.untold.remove(id) } else { self.untold.insert(*id) };
                self.say(ToProxy::Set { generation: number, endpoint }).await?;
            }
        }
        for endpoint in gone.into_keys() {
            self.unanswered.insert(endpoint, number);
            self.say(ToProxy::Remove { generation: number, endpoint }).await?;
        }
        self.told = plan.endpoints.clone();
        if !self.unanswered.is_empty() {
            self.overdue = Some(Instant::now() + self.patience);
        }
        Ok(())
    }

    /// Says that this was everything, unless it was said. What one that lives on was told by an earlier agent goes with that:
    /// only when the kernel sends nobody there by it.
    async fn settle(&mut self, kernel: &mut watch::Receiver<Kernel>) -> Result<(), Lost> {
        let kernel = *kernel.borrow_and_update();
        match (self.sync, kernel) {
            (Sync::Asked | Sync::Done, _) => Ok(()),
            _ if !self.link.adopted || kernel == Kernel::Latest => self.sync().await,
            (_, Kernel::Earlier) => {
                self.sync = Sync::Earlier;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// That this was everything.
    async fn sync(&mut self) -> Result<(), Lost> {
        self.sync = Sync::Asked;
        self.overdue = Some(Instant::now() + self.patience);
        self.listening.standing.send_if_modified(|standing| {
            standing
                .answered
                .get_mut(&self.number)
                .is_some_and(|own| !std::mem::replace(&mut own.takes, true))
        });
        self.say(ToProxy::Synced { generation: self.plan }).await
    }

    async fn drain(&mut self, due: &mut watch::Receiver<bool>) -> Result<(), Lost> {
        if *due.borrow_and_update() { self.say(drain()).await } else { Ok(()) }
    }

    fn has_answered(&self) -> bool {
        self.unanswered.is_empty() && self.sync != Sync::Asked
    }

    fn answered(&mut self, generation: u64, endpoint: EndpointId) {
        if self.unanswered.get(&endpoint).is_some_and(|waiting| *waiting <= generation) {
            self.unanswered.remove(&endpoint);
        }
    }

    async fn ask(
        &mut self,
        question: ProxyQuestion,
        asker: oneshot::Sender<ProxyAnswer>,
    ) -> Result<(), Lost> {
        // Who asked and has gone is forgotten.
        self.asked.retain(|_, asker| !asker.is_closed());
        self.last += 1;
        self.asked.insert(self.last, asker);
        self.say(ToProxy::Ask { number: self.last, question }).await
    }

    fn reply(&mut self, number: u64, answer: ProxyAnswer) {
        if let Some(asker) = self.asked.remove(&number) {
            // Who asked may be gone.
            let _ = asker.send(answer);
        }
    }

    async fn say(&mut self, message: ToProxy) -> Result<(), Lost> {
        self.owed += usize::from(is_answered(&message));
        self.link.channel.put(&message).map_err(ended)?;
        // It may have to be heard before it listens.
        while self.link.channel.waiting() > 0 {
            let turn = timeout(self.patience, self.link.channel.turn()).await;
            let said = turn.map_err(|_| Lost::Hangs("it did not listen, and was ended".to_owned()))?;
            self.heard.extend(said.map_err(ended)?);
            if self.heard.len() > self.owed + 1 {
                return Err(Lost::Hangs("it said what it was not asked, and was ended".to_owned()));
            }
        }
        Ok(())
    }
}

fn ended(error: ChannelError) -> Lost {
    Lost::Ended(format!("it has ended: {error}"))
}

/// Whether one message is the answer.
fn is_answered(message: &ToProxy) -> bool {
    match message {
        ToProxy::Set { .. } | ToProxy::Remove { .. } | ToProxy::Synced { .. } | ToProxy::Ask { .. } => true,
        ToProxy::Pack | ToProxy::Record(_) | ToProxy::Taken | ToProxy::Drain { .. } => false,
    }
}

/// Why rules are not in force that no message takes.
fn untold() -> Refusal {
    let most = L7Endpoint::MAX_SIZE >> 20;
    Refusal::of_all(format!("more than {most} MiB of HTTP rules together: no request passes"))
}

fn drain() -> ToProxy {
    let milliseconds = |time: Duration| time.as_secs() * 1000;
    ToProxy::Drain { within: milliseconds(WITHIN), idle: milliseconds(IDLE) }
}

async fn over(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// The same with a process of another build: it is told nothing but [`ToProxy::Drain`], for what else is said it could take
/// for something else, and let through what it must not. So with the first change of the rules it has to end.
pub(super) async fn escort(
    mut link: Link<ToProxy, serde_json::Value>,
    mut told: Told,
    sink: Sink,
    patience: Duration,
) -> Lost {
    told.wanted.borrow_and_update();
    loop {
        let due = *told.drain.borrow_and_update();
        if due && !matches!(timeout(patience, link.channel.send(&drain())).await, Ok(Ok(()))) {
            return Lost::Hangs("it cannot be told to end by and by".to_owned());
        }
        loop {
            tokio::select! {
                biased;
                _ = told.wanted.changed() => {
                    return Lost::Hangs("rules have changed, which one of another build cannot be told".to_owned());
                }
                Ok(()) = told.drain.changed() => break,
                message = link.channel.receive() => {
                    let message = match message {
                        Ok(message) => message,
                        Err(error) => return Lost::Ended(format!("it has ended: {error}")),
                    };
                    if message["message"] != "flows" && message["message"] != "report" {
                        continue;
                    }
                    match serde_json::from_value(message) {
                        Ok(FromProxy::Flows(flows)) => sink.take(flows),
                        Ok(FromProxy::Report(report)) => sink.report(*report),
                        // It says it otherwise than this build. It waits for its answer all the same.
                        Ok(_) | Err(_) => {}
                    }
                    if !matches!(timeout(patience, link.channel.send(&ToProxy::Taken)).await, Ok(Ok(()))) {
                        return Lost::Hangs("it does not listen".to_owned());
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use node_api::channel::Channel;
    use tokio::net::UnixStream;

    use super::super::tests as l7;
    use super::*;

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

    fn listening() -> (Listening, watch::Receiver<Standing>) {
        let answered = [(1, Answered::default())].into();
        let (stands, standing) = watch::channel(Standing { serving: Some(1), next: None, answered });
        (Listening { sink: l7::sink(), refusals: Refusals::default(), standing: Arc::new(stands) }, standing)
    }

    /// The first that it hears is how it is to tell what it sees, and what it is to record.
    async fn recorded(proxy: &mut Proxy) {
        assert_eq!(proxy.receive().await.unwrap(), ToProxy::Pack);
        let first = proxy.receive().await.unwrap();
        assert!(matches!(first, ToProxy::Record(_)), "first: {first:?}");
    }

    /// The next that it hears is an endpoint of this generation.
    async fn set(proxy: &mut Proxy, number: u64) -> EndpointId {
        match proxy.receive().await.unwrap() {
            ToProxy::Set { generation, endpoint } if generation == number => endpoint.id,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn what_an_earlier_agent_told_goes_when_the_kernel_has_this_ones_plan() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut proxy: Proxy = Channel::new(theirs);
        let (teller, told) = teller();
        let (listening, mut standing) = listening();
        let talking = tokio::spawn(Talk::new(1, Link::adopted(ours), listening, PATIENCE).run(told));
        recorded(&mut proxy).await;
        let endpoint = set(&mut proxy, 7).await;
        proxy.send(&FromProxy::Accepted { generation: 7, endpoint }).await.unwrap();
        standing.wait_for(|standing| standing.is_settled(7)).await.unwrap();
        // By now it would have been told that this was everything; the next that it hears is another plan.
        teller.wants.send_replace((8, l7::plan(&[1, 2])));
        let endpoint = set(&mut proxy, 8).await;
        assert!(!standing.borrow().is_synced(1), "the kernel is told of it only after that");
        teller.kernel.send_replace(Kernel::Latest);
        assert_eq!(proxy.receive().await.unwrap(), ToProxy::Synced { generation: 8 });
        proxy.send(&FromProxy::Synced { generation: 8 }).await.unwrap();
        proxy.send(&FromProxy::Accepted { generation: 8, endpoint }).await.unwrap();
        standing.wait_for(|standing| standing.is_settled(8) && standing.is_synced(1)).await.unwrap();
        // One that another has followed is told of changes as before.
        teller.drains.send_replace(true);
        assert_eq!(proxy.receive().await.unwrap(), drain());
        teller.wants.send_replace((9, l7::plan(&[1])));
        assert!(matches!(proxy.receive().await.unwrap(), ToProxy::Remove { generation: 9, .. }));
        assert!(!standing.borrow().is_settled(9));
        drop(teller);
        assert!(matches!(talking.await.unwrap(), Lost::Ended(_)));
    }

    /// The kernel goes by what an earlier agent has told it: that stays, and by it connections are sent there.
    #[tokio::test]
    async fn what_an_earlier_agent_told_stays_where_no_plan_of_this_one_fits() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut proxy: Proxy = Channel::new(theirs);
        let (teller, told) = teller();
        let (listening, mut standing) = listening();
        let talking = tokio::spawn(Talk::new(1, Link::adopted(ours), listening, PATIENCE).run(told));
        recorded(&mut proxy).await;
        let endpoint = set(&mut proxy, 7).await;
        teller.kernel.send_replace(Kernel::Earlier);
        proxy.send(&FromProxy::Accepted { generation: 7, endpoint }).await.unwrap();
        standing.wait_for(|standing| standing.is_settled(7) && standing.is_synced(1)).await.unwrap();
        // It would have been told that this was everything by now.
        teller.drains.send_replace(true);
        assert_eq!(proxy.receive().await.unwrap(), drain());
        // A plan fits.
        teller.kernel.send_replace(Kernel::Latest);
        assert_eq!(proxy.receive().await.unwrap(), ToProxy::Synced { generation: 7 });
        drop(teller);
        assert!(matches!(talking.await.unwrap(), Lost::Ended(_)));
    }

    /// With a rule whose path has that length.
    fn plan(ids: &[u16], length: usize) -> Arc<L7Plan> {
        use mesh::l7::{Expression, HttpRule, L7Access, L7Ports, L7Rules};
        let mut plan = L7Plan::clone(&l7::plan(ids));
        let rule = HttpRule { path: Some(Expression("a".repeat(length))), ..HttpRule::default() };
        let access = vec![L7Access { peers: None, http: Some([rule].into()) }];
        let ports = L7Ports { first: 80, last: 80, access: access.into(), tls: Arc::default() };
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
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut proxy: Proxy = Channel::new(theirs);
        let (teller, told) = teller();
        let (listening, mut standing) = listening();
        let talking = tokio::spawn(Talk::new(1, Link::adopted(ours), listening, PATIENCE).run(told));
        recorded(&mut proxy).await;
        let endpoint = set(&mut proxy, 7).await;
        proxy.send(&FromProxy::Accepted { generation: 7, endpoint }).await.unwrap();
        standing.wait_for(|standing| standing.is_settled(7)).await.unwrap();
        let ids: Vec<u16> = (1..=20).collect();
        teller.wants.send_replace((8, plan(&ids, 100_000)));
        // The agent tells by now, for the socket is full.
        let (mut answers, mut taken) = (vec![set(&mut proxy, 8).await], 0);
        proxy.send(&FromProxy::Flows((0..1024).map(|_| flow(2000)).collect())).await.unwrap();
        // Answers to what it has heard, before it hears more.
        while answers.len() < ids.len() {
            let endpoint = answers[answers.len() - 1];
            proxy.send(&FromProxy::Accepted { generation: 8, endpoint }).await.unwrap();
            loop {
                match proxy.receive().await.unwrap() {
                    ToProxy::Set { generation: 8, endpoint } => break answers.push(endpoint.id),
                    ToProxy::Taken => taken += 1,
                    other => panic!("{other:?}"),
                }
            }
        }
        let endpoint = answers[answers.len() - 1];
        proxy.send(&FromProxy::Accepted { generation: 8, endpoint }).await.unwrap();
        standing.wait_for(|standing| standing.is_settled(8)).await.unwrap();
        if taken == 0 {
            assert_eq!(proxy.receive().await.unwrap(), ToProxy::Taken);
        }
        drop(teller);
        assert!(matches!(talking.await.unwrap(), Lost::Ended(_)));
    }

    /// What it may say unasked while it does not listen has a bound.
    #[tokio::test]
    async fn one_that_says_what_it_was_not_asked_and_does_not_listen_is_given_up() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut proxy: Proxy = Channel::new(theirs);
        let (teller, told) = teller();
        let (listening, _standing) = listening();
        teller.wants.send_replace((8, plan(&[1], 4 << 20)));
        let talking = tokio::spawn(Talk::new(1, Link::adopted(ours), listening, PATIENCE).run(told));
        recorded(&mut proxy).await;
        let endpoint = EndpointId::new(1).unwrap();
        for _ in 0..3 {
            proxy.send(&FromProxy::Accepted { generation: 8, endpoint }).await.unwrap();
        }
        let Lost::Hangs(why) = talking.await.unwrap() else { panic!("it has not ended") };
        assert!(why.contains("not asked"), "{why}");
    }

    #[tokio::test]
    async fn rules_that_no_message_takes_are_told_closed_and_named() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut proxy: Proxy = Channel::new(theirs);
        let plan = |length| plan(&[1], length);
        let (teller, told) = teller();
        teller.wants.send_replace((7, plan(L7Endpoint::MAX_SIZE)));
        let (listening, mut standing) = listening();
        let refusals = Arc::clone(&listening.refusals);
        let talking = tokio::spawn(Talk::new(1, Link::adopted(ours), listening, PATIENCE).run(told));
        recorded(&mut proxy).await;
        for (generation, rules, named) in [(7, 0, true), (8, 1, false)] {
            let set = proxy.receive().await.unwrap();
            let ToProxy::Set { endpoint, .. } = set else { panic!("{set:?}") };
            let ports = &endpoint.ingress.as_ref().unwrap().ports;
            assert_eq!(ports[0].access[0].http.as_ref().unwrap().len(), rules);
            proxy.send(&FromProxy::Accepted { generation, endpoint: endpoint.id }).await.unwrap();
            standing.wait_for(|standing| standing.is_settled(generation)).await.unwrap();
            assert_eq!(refusals.lock().contains_key(&endpoint.id), named);
            teller.wants.send_replace((8, plan(1)));
        }
        drop(teller);
        assert!(matches!(talking.await.unwrap(), Lost::Ended(_)));
    }

    #[tokio::test]
    async fn one_of_another_build_is_told_to_drain_alone_and_ends_when_rules_change() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut proxy: Channel<serde_json::Value, ToProxy> = Channel::new(theirs);
        let (teller, told) = teller();
        teller.kernel.send_replace(Kernel::Latest);
        let escorting = tokio::spawn(escort(Link::adopted(ours), told, l7::sink(), PATIENCE));
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
}
