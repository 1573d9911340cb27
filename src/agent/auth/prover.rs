//! The auth-agent, kept running: it is told the plan whole whenever that changes, and what it says is acted upon at once,
//! beside the agent's loop.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use endpoint::Endpoints;
use l4_datapath::View;
use mesh::auth::AuthPlan;
use node_api::auth::{AuthAnswer, AuthCounters, AuthQuestion, FromAuthAgent, ToAuthAgent};
use observe::auth::AuthMetrics;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{
    Instant, Interval, MissedTickBehavior, interval, interval_at, sleep_until, timeout, timeout_at,
};

use super::Problem;
use super::authority::Authority;
use super::ending::switched_off;
use super::hold::OtherEnd;
use super::place::{Place, Process};
use super::process::{Backoff, Link, Start, obtain};
use super::reasons::Reasons;
use super::roots::Roots;
use super::settings::Settings;

/// How long it may take to have a plan in its maps, and to take a message.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked what it has counted.
const COUNTING: Duration = Duration::from_secs(1);
/// How often it is looked whether it needs a token: the CA may have been away for longer than its certificate lasts, or
/// the administrator lays one for a node that has none.
const JOINING: Duration = Duration::from_secs(30);
/// Questions that may wait.
const ASKERS: usize = 64;
/// Number of the agent's own question.
const OWN: u64 = 0;
/// A plan and its number.
pub(super) type Numbered = (u64, Arc<AuthPlan>);

/// The task that keeps it running, and what it is told.
pub(super) struct Prover {
    task: JoinHandle<()>,
    wanted: watch::Sender<Numbered>,
    settled: watch::Receiver<u64>,
    pub(super) askers: Askers,
}

/// Asks it.
#[derive(Clone)]
pub(in crate::agent) struct Askers(mpsc::Sender<(AuthQuestion, oneshot::Sender<AuthAnswer>)>);

/// What it acts upon and with.
pub(super) struct Surroundings {
    pub(super) place: Place,
    pub(super) settings: Settings,
    pub(super) authority: Option<Authority>,
    pub(super) hold: OtherEnd,
    /// `AUTH`, `MARKS`, `LEASES`, `TRIGGERS`.
    pub(super) maps: [OwnedFd; 4],
    pub(super) endpoints: Arc<Endpoints>,
    pub(super) view: Arc<View>,
    pub(super) metrics: AuthMetrics,
    pub(super) counters: Arc<Mutex<Option<AuthCounters>>>,
    pub(super) reasons: Reasons,
    pub(super) problem: Problem,
    /// The token that the auth-agent was given last.
    pub(super) left_token: Mutex<Option<String>>,
}

impl Prover {
    /// Keeps an auth-agent running from now on.
    pub(super) fn start(surroundings: Surroundings, plan: Arc<AuthPlan>) -> Self {
        // Higher than all that an earlier agent has told one that lives on.
        let (wanted, wants) = watch::channel((linux::clock::boottime(), plan));
        let (settles, settled) = watch::channel(0);
        let (askers, asked) = mpsc::channel(ASKERS);
        let task = tokio::spawn(surroundings.keep(wants, asked, settles));
        Self { task, wanted, settled, askers: Askers(askers) }
    }

    /// One that says nothing; what it is told.
    #[cfg(test)]
    pub(super) fn silent(plan: Arc<AuthPlan>) -> (Self, watch::Receiver<Numbered>) {
        let (wanted, wants) = watch::channel((1, plan));
        let (settles, settled) = watch::channel(0);
        let task = tokio::spawn(async move {
            let _speechless = settles;
            std::future::pending().await
        });
        (Self { task, wanted, settled, askers: Askers(mpsc::channel(ASKERS).0) }, wants)
    }

    pub(super) fn into_task(self) -> JoinHandle<()> {
        self.task
    }

    /// From now on this is to be proven.
    pub(super) fn tell(&self, plan: Arc<AuthPlan>) {
        self.wanted.send_if_modified(|(number, wanted)| {
            let differs = !Arc::ptr_eq(wanted, &plan) && *wanted != plan;
            if differs {
                *number += 1;
                *wanted = plan;
            }
            differs
        });
    }

    /// Waits until every pair of the latest plan has been tried; false: that takes longer.
    pub(super) fn settle(&self, until: Instant) -> impl Future<Output = bool> + use<> {
        let (number, mut settled) = (self.wanted.borrow().0, self.settled.clone());
        async move { matches!(timeout_at(until, settled.wait_for(|settled| *settled >= number)).await, Ok(Ok(_))) }
    }
}

impl Askers {
    /// None if it does not answer.
    pub(in crate::agent) async fn ask(&self, question: AuthQuestion) -> Option<AuthAnswer> {
        let (asker, answer) = oneshot::channel();
        let ask = async {
            self.0.send((question, asker)).await.ok()?;
            answer.await.ok()
        };
        timeout(PATIENCE, ask).await.ok().flatten()
    }
}

/// One connection to it.
struct Talk {
    link: Link<ToAuthAgent, FromAuthAgent>,
    /// Questions it has not answered yet.
    pending: BTreeMap<u64, oneshot::Sender<AuthAnswer>>,
    asked: u64,
    /// Number of the plan it was told last, and until when it must be in force, if it is not yet.
    told: u64,
    overdue: Option<Instant>,
    /// That plan, and the one before.
    plans: [Option<Arc<AuthPlan>>; 2],
}

impl Surroundings {
    async fn keep(
        self,
        mut wanted: watch::Receiver<Numbered>,
        mut asked: mpsc::Receiver<(AuthQuestion, oneshot::Sender<AuthAnswer>)>,
        settled: watch::Sender<u64>,
    ) {
        let mut backoff = Backoff::new();
        loop {
            let (place, settings) = (&self.place, &self.settings);
            let result =
                match obtain(Process::AuthAgent, place, settings, async || self.prepare().await).await {
                    Ok(link) => self.serve(link, &mut wanted, &mut asked, &settled).await,
                    Err(error) => Err(error),
                };
            // Unknown is not what it was.
            *self.counters.lock() = None;
            self.metrics.set(None);
            match result {
                // Nobody holds the handle any more.
                Ok(()) => return,
                Err(error) => self.problem.set(format!("the auth-agent: {error}")),
            }
            backoff.wait().await;
        }
    }

    async fn prepare(&self) -> Result<Start, String> {
        self.leave_credentials().await?;
        let mut descriptors = vec![self.hold.hand_out()?];
        for map in &self.maps {
            let copy = map.try_clone().map_err(|error| format!("copying a descriptor: {error}"))?;
            descriptors.push(copy);
        }
        descriptors.extend(super::listen::all(&self.settings.listen)?.into_iter().map(OwnedFd::from));
        let ca = self.settings.ca_address().to_string();
        let arguments = ["--ca", &ca, "--node", &self.settings.node].map(str::to_owned).into();
        Ok(Start { arguments, descriptors, cgroup: None })
    }

    async fn serve(
        &self,
        link: Link<ToAuthAgent, FromAuthAgent>,
        wanted: &mut watch::Receiver<Numbered>,
        asked: &mut mpsc::Receiver<(AuthQuestion, oneshot::Sender<AuthAnswer>)>,
        settled: &watch::Sender<u64>,
    ) -> Result<(), String> {
        let adopted = link.adopted;
        let mut talk =
            Talk { link, pending: BTreeMap::new(), asked: OWN, told: 0, overdue: None, plans: [None, None] };
        self.tell(&mut talk, wanted).await?;
        let mut roots = self.roots();
        let mut is_swept = false;
        let mut counting = interval(COUNTING);
        counting.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // At once for one that was taken over; the others have been given all there is.
        let first = Instant::now() + if adopted { Duration::ZERO } else { JOINING };
        let mut joining = pin!(self.join(interval_at(first, JOINING)));
        loop {
            let overdue = talk.overdue.unwrap_or_else(Instant::now);
            tokio::select! {
                // What has ended is to end at once, also while plans and questions come.
                biased;
                message = talk.link.channel.receive() => {
                    match message.map_err(|error| format!("it has ended: {error}"))? {
                        FromAuthAgent::Applied { number } if number >= talk.told => {
                            talk.overdue = None;
                            tracing::debug!(adopted, number, "the auth-agent has the plan in force");
                            self.problem.clear();
                            // Whose end it told nobody, before there was this connection, is found by what is left.
                            if !std::mem::replace(&mut is_swept, true) {
                                self.sweep(talk.plans[0].clone());
                            }
                        }
                        FromAuthAgent::Applied { .. } => {}
                        FromAuthAgent::Unproven(pairs) => self.reasons.note(&talk.plans, pairs),
                        FromAuthAgent::Settled { number } => drop(settled.send_replace(number)),
                        FromAuthAgent::Ended(mut pairs) => {
                            if let [Some(now), Some(before)] = &talk.plans {
                                pairs.retain(|pair| !switched_off(before, now, pair));
                            }
                            self.end(&pairs);
                        }
                        FromAuthAgent::Free { instance } => self.free(instance),
                        FromAuthAgent::Answer { number: OWN, answer } => self.count(*answer),
                        FromAuthAgent::Answer { number, answer } => talk.answered(number, *answer),
                    }
                }
                pem = changed(&mut roots) => {
                    talk.say(ToAuthAgent::Bundle { pem: pem.clone() }).await?;
                    if let Err(error) = self.remember(&pem) {
                        // It is in force all the same, and told once more later.
                        tracing::warn!("{error}");
                    }
                }
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.tell(&mut talk, wanted).await?;
                }
                Some((question, asker)) = asked.recv() => talk.ask(question, asker).await?,
                _ = counting.tick() => {
                    talk.say(ToAuthAgent::Ask { number: OWN, question: AuthQuestion::Counters }).await?;
                }
                // Beside all the rest: a CA that does not answer holds nothing up.
                () = &mut joining => {}
                () = sleep_until(overdue), if talk.overdue.is_some() => {
                    return Err("it does not answer".to_owned());
                }
            }
        }
    }

    /// Lays a token where it needs one.
    async fn join(&self, mut ticks: Interval) {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said = None;
        loop {
            ticks.tick().await;
            let problem = self.leave_token().await.err();
            if problem.is_some() && problem != said {
                tracing::warn!(
                    "the auth-agent needs a join token: {}",
                    problem.as_deref().unwrap_or_default()
                );
            }
            said = problem;
        }
    }

    /// Tells the latest plan, at once: somebody may be withdrawn by it. A CA that has not heard of who is new in it yet is
    /// asked again.
    async fn tell(&self, talk: &mut Talk, wanted: &mut watch::Receiver<Numbered>) -> Result<(), String> {
        let (number, plan) = wanted.borrow_and_update().clone();
        talk.plans = [Some(Arc::clone(&plan)), talk.plans[0].take()];
        talk.told = number;
        talk.overdue = Some(Instant::now() + PATIENCE);
        talk.say(ToAuthAgent::Plan { number, plan }).await
    }

    fn free(&self, instance: u64) {
        if let Err(error) = self.endpoints.free(instance) {
            tracing::warn!(instance, %error, "addresses of an endpoint that is gone stay in quarantine");
        }
    }

    fn count(&self, answer: AuthAnswer) {
        if let AuthAnswer::Counters(counters) = answer {
            self.metrics.set(Some(counters.clone()));
            *self.counters.lock() = Some(counters);
        }
    }
}

/// The next bundle; never, where none is watched.
async fn changed(roots: &mut Option<Roots>) -> String {
    match roots {
        Some(roots) => roots.changed().await,
        None => std::future::pending().await,
    }
}

impl Talk {
    async fn ask(
        &mut self,
        question: AuthQuestion,
        asker: oneshot::Sender<AuthAnswer>,
    ) -> Result<(), String> {
        // Who asked and has gone is forgotten.
        self.pending.retain(|_, asker| !asker.is_closed());
        self.asked += 1;
        self.pending.insert(self.asked, asker);
        self.say(ToAuthAgent::Ask { number: self.asked, question }).await
    }

    fn answered(&mut self, number: u64, answer: AuthAnswer) {
        if let Some(asker) = self.pending.remove(&number) {
            // Who asked may be gone.
            let _ = asker.send(answer);
        }
    }

    async fn say(&mut self, message: ToAuthAgent) -> Result<(), String> {
        match timeout(PATIENCE, self.link.channel.send(&message)).await {
            Ok(sent) => sent.map_err(|error| format!("it has ended: {error}")),
            Err(_) => Err("it does not listen".to_owned()),
        }
    }
}
