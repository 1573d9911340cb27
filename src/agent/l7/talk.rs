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
use super::digest::Digests;
use super::incarnations::Note;
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
/// For so long after that it may tell how it has ended what was open; then it is ended.
pub(super) const GRACE: Duration = Duration::from_secs(10);

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
    pub(super) note: Note,
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
    /// Whose rules it does not take.
    refused: BTreeSet<EndpointId>,
    digests: Digests,
    /// It is written down which rules it has.
    is_noted: bool,
    /// What it has not answered, with the generation; until when it must have answered something, or be at work on it.
    unanswered: BTreeMap<EndpointId, u64>,
    overdue: Option<Instant>,
    /// When it must have ended.
    end: Option<Instant>,
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
            refused: BTreeSet::new(),
            digests: Digests::default(),
            is_noted: false,
            unanswered: BTreeMap::new(),
            overdue: None,
            end: None,
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
                () = over(self.end) => return Err(lingers()),
            }
        }
    }

    async fn take(&mut self, message: FromProxy) -> Result<(), Lost> {
        let is_unasked = matches!(message, FromProxy::Flows(_) | FromProxy::Report(_));
        let is_answer = !is_unasked && message != FromProxy::Working;
        self.hear(message).await?;
        self.owed = self.owed.saturating_sub(usize::from(is_answer));
        if !is_unasked {
            self.lives();
        }
        self.report();
        Ok(())
    }

    /// Who answers, or is at work on an answer, is there, however much there is to answer; who only tells flows may hang all
    /// the same.
    fn lives(&mut self) {
        self.overdue = self.overdue.map(|_| Instant::now() + self.patience);
    }

    async fn hear(&mut self, message: FromProxy) -> Result<(), Lost> {
        match message {
            FromProxy::Accepted { generation, endpoint } => {
                self.answered(generation, endpoint);
                self.refused.remove(&endpoint);
                let mut refusals = self.listening.refusals.lock();
                match self.untold.contains(&endpoint) {
                    true => drop(refusals.insert(endpoint, untold())),
                    false => drop(refusals.remove(&endpoint)),
                }
            }
            FromProxy::Refused { generation, endpoint, field, why } => {
                self.answered(generation, endpoint);
                self.refused.insert(endpoint);
                tracing::error!(%endpoint, %field, %why, "the L7 proxy refuses rules");
                let refusal = match self.told.get(&endpoint) {
                    Some(told) => Refusal::new(told, &field, why),
                    None => Refusal::of_all(why),
                };
                self.listening.refusals.lock().insert(endpoint, refusal);
            }
            FromProxy::Synced { .. } => self.sync = Sync::Done,
            FromProxy::Working => {}
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
        self.note();
        let synced = matches!(self.sync, Sync::Done | Sync::Earlier);
        let now = Answered { plan: self.plan, synced, takes: self.sync != Sync::Due };
        self.listening.standing.send_if_modified(|standing| {
            let Some(answered) = standing.answered.get_mut(&self.number) else { return false };
            let differs = *answered != now;
            *answered = now;
            differs
        });
    }

    /// Writes down which rules it has, once these are what it was told and nothing else.
    fn note(&mut self) {
        let has_them = self.sync == Sync::Done && self.refused.is_empty() && self.untold.is_empty();
        if self.is_noted || !has_them {
            return;
        }
        self.is_noted = true;
        if let Some(digest) = self.digests.of(&self.told) {
            self.listening.note.is_in_force(digest);
        }
    }

    /// Before it is told something by which it has other rules.
    fn changes(&mut self) {
        self.is_noted = false;
        self.listening.note.changes();
    }

    /// Tells what differs from what it was told.
    async fn tell(&mut self, wanted: &mut watch::Receiver<Numbered>) -> Result<(), Lost> {
        let (number, plan) = wanted.borrow_and_update().clone();
        self.plan = number;
        let mut gone = std::mem::take(&mut self.told);
        for (id, endpoint) in &plan.endpoints {
            if gone.remove(id).as_ref() != Some(endpoint) {
                self.changes();
                self.digests.forget(*id);
                self.unanswered.insert(*id, number);
                let fits = endpoint.size() <= L7Endpoint::MAX_SIZE;
                let endpoint = Box::new(if fits { endpoint.clone() } else { endpoint.closed() });
                let _ = if fits { self.untold.remove(id) } else { self.untold.insert(*id) };
                self.say(ToProxy::Set { generation: number, endpoint }).await?;
            }
        }
        for endpoint in gone.into_keys() {
            self.changes();
            self.digests.forget(endpoint);
            self.untold.remove(&endpoint);
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
        // What it was told by an earlier agent alone goes with it.
        self.changes();
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
        if !*due.borrow_and_update() {
            return Ok(());
        }
        self.end = Some(Instant::now() + WITHIN + GRACE);
        self.say(drain()).await
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
            match said.map_err(ended)? {
                // That is all it says.
                Some(FromProxy::Working) => self.lives(),
                said => self.heard.extend(said),
            }
            if self.heard.len() > self.owed + 1 {
                return Err(Lost::Hangs("it said what it was not asked, and was ended".to_owned()));
            }
        }
        Ok(())
    }
}

pub(super) fn ended(error: ChannelError) -> Lost {
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

pub(super) fn drain() -> ToProxy {
    let milliseconds = |time: Duration| time.as_secs() * 1000;
    ToProxy::Drain { within: milliseconds(WITHIN), idle: milliseconds(IDLE) }
}

pub(super) fn lingers() -> Lost {
    Lost::Hangs("it has not ended in time, and was ended".to_owned())
}

pub(super) async fn over(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests;
