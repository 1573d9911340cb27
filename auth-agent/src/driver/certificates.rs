//! The certificates this node holds: its own, and one for each ID that workloads of it have.
//!
//! Promise: keys of workloads are made here and are in memory only; each certificate is asked for anew when half of its
//! life is over; a CA that is not to be had takes nothing away before its end, and is asked again, less and less often.
//! What no longer verifies is not shown to anybody. Of another bundle the CA tells as soon as it has one; while it
//! cannot, it is asked every few seconds.

mod asking;
mod held;
mod watch;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use certs::bundle::Bundle;
use certs::enrol::client::PATIENCE;
use certs::enrol::message::HOLD;
use certs::enrol::{Denied, EnrolError};
use certs::svid::Svid;
use certs::verify::Expected;
use mesh::auth::{AuthPlan, Refusal};
use mesh::spiffe::{SpiffeId, TrustDomain};
use node_api::auth::CertificateView;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::clock::{Clock, seconds};
use super::trust::Trust;
use crate::event::{Input, Time};
use held::{Held, RETRY, random};
use watch::{Watching, Word};

/// Requests under way at once.
const MAX_ASKING: usize = 8;
/// The first time after the CA has not heard yet of who is placed here: it hears of that at the same time as this node.
const EARLY: Time = 25_000_000;
/// How often the CA is asked for its bundle if nothing else is asked of it and it cannot tell of another by itself.
const BUNDLE: Time = 5_000_000_000;
/// How long a connection on which it can is good for without a word.
const WATCHED: Time = (HOLD.as_secs() + PATIENCE.as_secs()) * 1_000_000_000;
/// After a new bundle every certificate is asked for anew, within this time.
const ROTATION: Time = 10_000_000_000;
const MILLISECOND: Time = 1_000_000;
/// The node's own key and chain, in the directory.
const NODE: &str = "node.pem";
/// Where certificates come from.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// The node's name.
    pub(super) node: String,
    /// Where its CA is.
    pub(super) ca: SocketAddr,
    /// Where it keeps its own certificate.
    pub(super) directory: PathBuf,
}

/// All of them.
pub(super) struct Certificates {
    source: Source,
    /// None before the first plan.
    domain: Option<TrustDomain>,
    node: Held,
    workloads: BTreeMap<SpiffeId, Held>,
    asking: usize,
    bundle_due: Time,
    watching: Watching,
    /// One more whenever somebody nearer than the CA has said whom to trust.
    bundle_age: u64,
    /// Until when sessions wait for certificates after the start; none: they do not.
    patience: Option<Time>,
    answers: mpsc::Sender<Heard>,
    answered: mpsc::Receiver<Heard>,
}

/// What the CA has said.
pub(super) struct Answer {
    to: Asked,
    /// [`Certificates::bundle_age`] when it was asked.
    age: u64,
    result: Result<(Option<Svid>, Bundle), EnrolError>,
}

/// What comes of what the CA is asked.
pub(super) enum Heard {
    /// To a question.
    Answer(Box<Answer>),
    /// Of its own accord.
    Word(Word),
}

#[derive(Clone, PartialEq, Eq)]
enum Asked {
    Node(SpiffeId),
    Workload(SpiffeId),
    Bundle(TrustDomain),
}

/// What follows from something that happened.
#[derive(Default)]
pub(super) struct Change {
    /// For the machine.
    pub(super) inputs: Vec<Input>,
    /// Another bundle is in force: what was verified has to be judged again.
    pub(super) trust: bool,
}

impl Certificates {
    pub(super) fn new(source: Source) -> Self {
        let (answers, answered) = mpsc::channel(MAX_ASKING);
        Self {
            source,
            domain: None,
            node: Held::default(),
            workloads: BTreeMap::new(),
            asking: 0,
            bundle_due: 0,
            watching: Watching::default(),
            bundle_age: 0,
            patience: None,
            answers,
            answered,
        }
    }

    /// The plan says which trust domain this is. Reads what an earlier auth-agent has left of it.
    pub(super) fn belong(&mut self, plan: &AuthPlan, trust: &Trust, clock: Clock, now: Time) {
        let domain = &plan.trust_domain;
        if self.domain.as_ref() == Some(domain) {
            return;
        }
        self.patience = Some(now.saturating_add(plan.grace.saturating_mul(MILLISECOND) / 2));
        self.domain = Some(domain.clone());
        self.node = Held::default();
        self.bundle_due = now;
        self.watching.end(now);
        self.load(trust, clock, now);
    }

    /// The node's own certificate that is in the directory, if it is good.
    fn load(&mut self, trust: &Trust, clock: Clock, now: Time) {
        let id = self.domain.as_ref().and_then(|domain| domain.node(&self.source.node).ok());
        let Some(id) = id else { return };
        match Svid::load(&id, &self.source.directory.join(NODE)) {
            Ok(Some(svid)) => match trust.judge(svid.chain(), &Expected::Id(id)) {
                Ok(_) => {
                    info!("node certificate {} is still good", svid.serial());
                    self.node.svid = Some(Arc::new(svid));
                    self.node.problem = None;
                    self.node.renew_at_half(clock, now);
                }
                Err(error) => info!("the node certificate that is there is of no use: {error}"),
            },
            Ok(None) => {}
            Err(error) => warn!("{error}"),
        }
    }

    /// [`crate::event::Output::Want`].
    pub(super) fn want(&mut self, id: SpiffeId, now: Time) {
        self.workloads.entry(id).or_insert_with(|| Held { due: now, ..Held::default() });
    }

    /// [`crate::event::Output::Unwant`].
    pub(super) fn unwant(&mut self, id: &SpiffeId) {
        self.workloads.remove(id);
    }

    /// Whether sessions may begin. What this node does not attest in a session's first words is withdrawn by its peer;
    /// so, after a restart, they wait until there is a certificate for each ID that can have one, or half of the grace
    /// is over.
    pub(super) fn are_settled(&mut self, now: Time) -> bool {
        let will_come = |held: &Held| match &held.problem {
            _ if held.svid.is_some() => false,
            Some((refusal, _)) => *refusal != Refusal::NoCertificate,
            None => true,
        };
        if self.patience.is_some_and(|until| until <= now || !self.workloads.values().any(will_come)) {
            self.patience = None;
        }
        self.patience.is_none()
    }

    /// The node's own; else why there is none.
    pub(super) fn node(&self) -> Result<&Arc<Svid>, String> {
        self.node.svid.as_ref().ok_or_else(|| match &self.node.problem {
            Some((_, problem)) => format!("this node has no certificate: {problem}"),
            None => "this node has no certificate yet".to_owned(),
        })
    }

    /// A workload's.
    pub(super) fn svid(&self, id: &SpiffeId) -> Result<Arc<Svid>, Refusal> {
        let held = self.workloads.get(id).ok_or(Refusal::NoCertificate)?;
        held.svid.clone().ok_or(held.problem.as_ref().map_or(Refusal::NoCertificate, |(refusal, _)| *refusal))
    }

    /// Whom to trust has been said by somebody else: what the CA has been asked before does not count.
    pub(super) fn outdate_bundles(&mut self, now: Time) {
        self.bundle_age += 1;
        self.bundle_due = now.saturating_add(BUNDLE);
        self.watching.end(self.bundle_due);
    }

    /// The CA's next word. Cancel safe.
    pub(super) async fn answers(&mut self) -> Heard {
        match self.answered.recv().await {
            Some(answer) => answer,
            // This side keeps a sender.
            None => std::future::pending().await,
        }
    }

    /// Takes the CA's word.
    pub(super) fn take(&mut self, heard: Heard, trust: &mut Trust, clock: Clock, now: Time) -> Change {
        match heard {
            Heard::Answer(answer) => self.take_answer(*answer, trust, clock, now),
            Heard::Word(word) => self.take_word(word, trust, now),
        }
    }

    /// Of whom to trust, from the connection that is there for it.
    fn take_word(&mut self, word: Word, trust: &mut Trust, now: Time) -> Change {
        let mut change = Change::default();
        // One from before somebody nearer has spoken counts no more.
        let Some(result) = self.watching.hear(word, now) else { return change };
        match result {
            Ok(None) => self.bundle_due = now.saturating_add(WATCHED),
            Ok(Some(bundle)) => {
                info!("the CA tells of another bundle");
                change.trust = trust.learn(bundle);
                // It is to be asked again by who trusts it still.
                self.bundle_due = now.saturating_add(BUNDLE);
                self.watching.end(if change.trust { now } else { self.bundle_due });
            }
            Err(problem) => {
                info!("the CA tells of no other bundle by itself: {problem}");
                self.bundle_due = self.bundle_due.min(now);
            }
        }
        change
    }

    fn take_answer(&mut self, answer: Answer, trust: &mut Trust, clock: Clock, now: Time) -> Change {
        let Answer { to, age, result } = answer;
        if matches!(to, Asked::Workload(_)) {
            self.asking = self.asking.saturating_sub(1);
        }
        let domain = match &to {
            Asked::Node(id) | Asked::Workload(id) => id.trust_domain(),
            Asked::Bundle(domain) => domain,
        };
        if self.domain.as_ref() != Some(domain) {
            return Change::default();
        }
        let mut change = Change::default();
        let is_early =
            matches!(result, Err(EnrolError::Denied { denied: Denied::NotPlaced | Denied::UnknownNode, .. }));
        let result =
            result.map_err(|error| (error.refusal(), error.to_string())).and_then(|(svid, bundle)| {
                self.bundle_due = self.bundle_due.max(now.saturating_add(BUNDLE));
                // What the CA said of whom to trust may be from before a root was taken away.
                change.trust = age == self.bundle_age && trust.learn(bundle);
                let Some(svid) = svid else { return Ok(None) };
                match trust.judge(svid.chain(), &Expected::Id(svid.id().clone())) {
                    Ok(_) => Ok(Some(svid)),
                    Err(error) => Err((error.refusal(), error.to_string())),
                }
            });
        let (held, id) = match &to {
            Asked::Bundle(_) => {
                if let Err((_, problem)) = result {
                    info!("no bundle of the CA: {problem}");
                }
                return change;
            }
            Asked::Node(id) => (Some(&mut self.node), id),
            Asked::Workload(id) => (self.workloads.get_mut(id), id),
        };
        let Some(held) = held else { return change };
        held.asking = false;
        match result {
            Ok(Some(svid)) => {
                info!("certificate {} of {id}", svid.serial());
                if matches!(to, Asked::Node(_)) {
                    save(&svid, &self.source.directory);
                }
                held.svid = Some(Arc::new(svid));
                held.problem = None;
                held.renew_at_half(clock, now);
            }
            Ok(None) => {}
            Err((refusal, problem)) => {
                warn!("no certificate of {id}: {problem}");
                held.fail(refusal, problem, if is_early { EARLY } else { RETRY.0 }, now);
            }
        }
        if matches!(to, Asked::Workload(_)) {
            change.inputs.push(Input::Certificate(id.clone(), held.state(clock)));
        }
        change
    }

    /// Gives up what has ended by the wall clock.
    pub(super) fn lose_ended(&mut self, clock: Clock, now: Time) -> Vec<Input> {
        let wall = clock.wall();
        self.lose(clock, now, |svid| {
            if seconds(svid.not_after()) <= wall {
                Err((Refusal::Expired, "it has ended and the CA has given no other".to_owned()))
            } else {
                Ok(())
            }
        })
    }

    /// Judges all of them again after trust has changed, and asks for others. The node's own counts again when its root
    /// does: without it there is no asking.
    pub(super) fn judge_again(&mut self, trust: &Trust, clock: Clock, now: Time) -> Vec<Input> {
        for held in self.all() {
            held.due = held.due.min(now.saturating_add(random(ROTATION)));
        }
        let lost = self.lose(clock, now, |svid| {
            let judged = trust.judge(svid.chain(), &Expected::Id(svid.id().clone()));
            judged.map(drop).map_err(|error| (error.refusal(), error.to_string()))
        });
        if self.node.svid.is_none() {
            self.load(trust, clock, now);
        }
        lost
    }

    /// The wall clock was stepped: what is known of each in boot time is another.
    pub(super) fn tell_again(&mut self, clock: Clock, now: Time) -> Vec<Input> {
        for held in self.all().filter(|held| held.failures == 0) {
            held.renew_at_half(clock, now);
        }
        let told = self.workloads.iter().filter(|(_, held)| held.svid.is_some());
        told.map(|(id, held)| Input::Certificate(id.clone(), held.state(clock))).collect()
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Held> {
        std::iter::once(&mut self.node).chain(self.workloads.values_mut())
    }

    fn lose(
        &mut self,
        clock: Clock,
        now: Time,
        judge: impl Fn(&Svid) -> Result<(), (Refusal, String)>,
    ) -> Vec<Input> {
        let lost = |held: &mut Held| {
            let verdict = held.svid.as_ref().map_or(Ok(()), |svid| judge(svid));
            let Err((refusal, problem)) = verdict else { return false };
            held.lose(refusal, problem, now);
            true
        };
        if lost(&mut self.node) {
            warn!("this node has no certificate any more");
        }
        let workloads = self.workloads.iter_mut().filter_map(|(id, held)| lost(held).then_some((id, held)));
        workloads.map(|(id, held)| Input::Certificate(id.clone(), held.state(clock))).collect()
    }

    /// Rows of `auth list`.
    pub(super) fn views(&self, plan: Option<&AuthPlan>) -> Vec<CertificateView> {
        let node = self.domain.as_ref().and_then(|domain| domain.node(&self.source.node).ok());
        let all = node.iter().map(|id| (id, &self.node)).chain(&self.workloads);
        all.map(|(id, held)| {
            let endpoints = plan.into_iter().flat_map(|plan| plan.endpoints.values());
            let workloads = endpoints.filter(|endpoint| endpoint.id == *id);
            CertificateView {
                id: id.clone(),
                serial: held.svid.as_ref().map(|svid| svid.serial().to_owned()),
                expires: held.svid.as_ref().map(|svid| seconds(svid.not_after())),
                workloads: workloads.map(|endpoint| endpoint.workload.clone()).collect(),
                problem: held.problem.as_ref().map(|(_, problem)| problem.clone()),
            }
        })
        .collect()
    }

    /// When the first of them ends, seconds since 1970.
    pub(super) fn first_end(&self) -> Option<i64> {
        let all = std::iter::once(&self.node).chain(self.workloads.values());
        all.filter_map(|held| held.svid.as_ref()).map(|svid| seconds(svid.not_after())).min()
    }
}

fn save(svid: &Svid, directory: &Path) {
    if let Err(error) = svid.save(&directory.join(NODE)) {
        // It is in force all the same; after a restart there may have to be a token.
        warn!("the node certificate is not kept: {error}");
    }
}
