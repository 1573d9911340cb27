//! The auth-agent, kept running: it is told the plan whole whenever that changes, and what it says is acted upon at once,
//! beside the agent's loop.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use endpoint::Endpoints;
use l4_datapath::View;
use linux::tap::Tap;
use mesh::auth::AuthPlan;
use mesh::spiffe::SpiffeId;
use node_api::auth::{AuthAnswer, AuthCounters, AuthQuestion, EndedPair, FromAuthAgent, ToAuthAgent};
use observe::auth::AuthMetrics;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::Problem;
use super::authority::Authority;
use super::hierarchy::Bundle;
use super::place::{HOLD_DEVICE, Place, Process};
use super::process::{Backoff, Link, Start, obtain};
use super::settings::{Ca, Settings};

/// How long it may take to have a plan in its maps, and to take a message.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked what it has counted.
const COUNTING: Duration = Duration::from_secs(1);
/// Questions that may wait.
const ASKERS: usize = 64;
/// Number of the agent's own question.
const OWN: u64 = 0;
/// Files in its directory: the roots it trusts, its own certificate, what it shows to get one.
const BUNDLE: &str = "bundle.pem";
const CERTIFICATE: &str = "node.pem";
const TOKEN: &str = "join-token";

/// A plan and its number.
type Numbered = (u64, Arc<AuthPlan>);

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
    /// `AUTH`, `MARKS`, `LEASES`.
    pub(super) maps: [OwnedFd; 3],
    pub(super) endpoints: Arc<Endpoints>,
    pub(super) view: Arc<View>,
    pub(super) metrics: AuthMetrics,
    pub(super) counters: Arc<Mutex<Option<AuthCounters>>>,
    pub(super) problem: Problem,
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
    pub(super) async fn settle(&mut self, patience: Duration) -> bool {
        let number = self.wanted.borrow().0;
        matches!(timeout(patience, self.settled.wait_for(|settled| *settled >= number)).await, Ok(Ok(_)))
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
    /// The plan it was told last, and until when it must be in force, if it is not yet.
    told: u64,
    /// IDs of this node's workloads in it.
    ids: BTreeSet<SpiffeId>,
    overdue: Option<Instant>,
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
            *self.counters.lock() = None;
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
        let tap = Tap::open(HOLD_DEVICE).map_err(|error| error.to_string())?;
        let mut descriptors = vec![OwnedFd::from(tap)];
        for map in &self.maps {
            let copy = map.try_clone().map_err(|error| format!("copying a descriptor: {error}"))?;
            descriptors.push(copy);
        }
        descriptors.extend(super::listen::all(&self.settings.listen)?.into_iter().map(OwnedFd::from));
        let ca = self.settings.ca_address().to_string();
        let arguments = ["--ca", &ca, "--node", &self.settings.node].map(str::to_owned).into();
        Ok(Start { arguments, descriptors })
    }

    /// The roots to trust and, if it has no certificate of its own, what it can get one with.
    async fn leave_credentials(&self) -> Result<(), String> {
        let read = |path: &Path, key: &str| {
            std::fs::read_to_string(path).map_err(|error| format!("{key} {}: {error}", path.display()))
        };
        let has_certificate = self.place.directory(Process::AuthAgent).join(CERTIFICATE).exists();
        let (bundle, token) = match (&self.settings.ca, &self.authority) {
            (Ca::Elsewhere { join_token, bundle, .. }, _) => {
                let token = match join_token {
                    Some(path) if !has_certificate => Some(read(path, "joinTokenFile")?),
                    _ => None,
                };
                let bundle = match bundle {
                    Some(path) => Some(read(path, "trustBundleFile")?),
                    None => None,
                };
                (bundle, token)
            }
            (Ca::Here { .. }, Some(authority)) => {
                let token =
                    if has_certificate { None } else { Some(authority.token(&self.settings.node).await?) };
                (Some(Bundle(self.place.clone()).read()?), token)
            }
            (Ca::Here { .. }, None) => (None, None),
        };
        for (name, text) in [(BUNDLE, bundle), (TOKEN, token)] {
            if let Some(text) = text {
                self.place.put(Process::AuthAgent, name, text.trim_end())?;
            }
        }
        Ok(())
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
            Talk { link, pending: BTreeMap::new(), asked: OWN, told: 0, ids: BTreeSet::new(), overdue: None };
        self.tell(&mut talk, wanted).await?;
        let mut counting = interval(COUNTING);
        counting.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
                        }
                        FromAuthAgent::Applied { .. } => {}
                        FromAuthAgent::Settled { number } => drop(settled.send_replace(number)),
                        FromAuthAgent::Ended(pairs) => self.end(&pairs),
                        FromAuthAgent::Free { instance } => self.free(instance),
                        FromAuthAgent::Answer { number: OWN, answer } => self.count(*answer),
                        FromAuthAgent::Answer { number, answer } => talk.answered(number, *answer),
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
                () = sleep_until(overdue), if talk.overdue.is_some() => {
                    return Err("it does not answer".to_owned());
                }
            }
        }
    }

    /// Tells the latest plan; of workloads that are new in it once the CA knows of them.
    async fn tell(&self, talk: &mut Talk, wanted: &mut watch::Receiver<Numbered>) -> Result<(), String> {
        let (number, plan) = wanted.borrow_and_update().clone();
        let ids: BTreeSet<_> = plan.endpoints.values().map(|endpoint| endpoint.id.clone()).collect();
        if let (false, Some(authority)) = (ids.is_subset(&talk.ids), &self.authority) {
            authority.catch_up().await;
        }
        (talk.told, talk.ids) = (number, ids);
        talk.overdue = Some(Instant::now() + PATIENCE);
        talk.say(ToAuthAgent::Plan { number, plan }).await
    }

    /// Marks have gone: ends the sockets that depended on them, beside this task.
    fn end(&self, pairs: &[EndedPair]) {
        let view = Arc::clone(&self.view);
        let pass = self.endpoints.end_unproven(pairs, move |socket| {
            let epoch = view.epoch(socket.protocol.number(), socket.local, socket.remote);
            epoch.unwrap_or_else(|error| {
                tracing::warn!(%error, "on which proof a socket depends cannot be told; it is left alone");
                None
            })
        });
        tokio::spawn(async move {
            match pass.await {
                Ok(Ok(0)) => {}
                Ok(Ok(count)) => tracing::debug!(count, "sockets without a proof have been ended"),
                Ok(Err(error)) => tracing::warn!("sockets without a proof are not all ended: {error}"),
                // The runtime ends.
                Err(_) => {}
            }
        });
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
