//! The proxy, kept running: it is told each endpoint's rules whenever they change, and what it says is passed on.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh::l7::{L7Endpoint, L7Plan};
use mesh::workload::EndpointId;
use node_api::proxy::{FromProxy, ProxyAnswer, ProxyQuestion, ToProxy};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::listeners::Listeners;
use super::{Event, Refusals, Settings, Sink};
use crate::agent::auth::place::{Place, Process};
use crate::agent::auth::process::{Backoff, Link, Start, end, obtain, running};

/// How long it may take to answer, and to take a message.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// For so long without a proxy connections wait for the next one.
const ABSENCE: Duration = Duration::from_secs(1);
/// Questions that may wait.
const ASKERS: usize = 64;
/// A plan and its number.
type Numbered = (u64, Arc<L7Plan>);
/// Somebody who asks.
type Asked = (ProxyQuestion, oneshot::Sender<ProxyAnswer>);

/// What the task is told: plans, questions, and that the kernel follows.
type Told<'a> =
    (&'a mut watch::Receiver<Numbered>, &'a mut mpsc::Receiver<Asked>, &'a mut watch::Receiver<bool>);

/// The task that keeps it running, and what it is told.
pub(super) struct Keeper {
    task: JoinHandle<()>,
    wanted: watch::Sender<Numbered>,
    settled: watch::Receiver<u64>,
    followed: watch::Sender<bool>,
    pub(super) askers: Askers,
}

/// Asks it.
#[derive(Clone)]
pub(in crate::agent) struct Askers(mpsc::Sender<Asked>);

/// What it is started and kept with.
pub(super) struct Surroundings {
    pub(super) place: Place,
    pub(super) cgroup: PathBuf,
    pub(super) settings: Settings,
    /// Read-only: `NODE`, `ENDPOINTS`, `ASSIGNMENTS`, `IPCACHE`.
    pub(super) maps: Vec<OwnedFd>,
    pub(super) sink: Sink,
    pub(super) refusals: Refusals,
    pub(super) problem: Arc<Mutex<Option<String>>>,
    /// What it has too little of; it works all the same.
    pub(super) shortage: Arc<Mutex<Option<String>>>,
    pub(super) events: mpsc::Sender<Event>,
    /// The kernel was told that there is none; when it has answered, [`Event::Ready`] is due once more.
    pub(super) doubted: Arc<AtomicBool>,
    /// How long it may take to answer, and to take a message.
    pub(super) patience: Duration,
}

impl Keeper {
    /// Keeps a proxy running from now on.
    pub(super) fn start(surroundings: Surroundings, plan: Arc<L7Plan>) -> Self {
        // Higher than all that an earlier agent has told one that lives on.
        let (wanted, wants) = watch::channel((linux::clock::boottime(), plan));
        let (settles, settled) = watch::channel(0);
        let (followed, follows) = watch::channel(false);
        let (askers, asked) = mpsc::channel(ASKERS);
        let task = tokio::spawn(surroundings.keep(wants, asked, settles, follows));
        Self { task, wanted, settled, followed, askers: Askers(askers) }
    }

    pub(super) fn into_task(self) -> JoinHandle<()> {
        self.task
    }

    /// From now on this is to be enforced.
    pub(super) fn tell(&self, plan: Arc<L7Plan>) {
        self.wanted.send_if_modified(|(number, wanted)| {
            let differs = !Arc::ptr_eq(wanted, &plan) && *wanted != plan;
            if differs {
                *number += 1;
                *wanted = plan;
            }
            differs
        });
    }

    /// The kernel has what was told last, and goes by no plan of an earlier agent.
    pub(super) fn follow(&self) {
        self.followed.send_replace(true);
    }

    /// Waits until it has answered all of the latest plan; false: that takes longer.
    pub(super) fn settle(&self, until: Instant) -> impl Future<Output = bool> + use<> {
        let (number, mut settled) = (self.wanted.borrow().0, self.settled.clone());
        async move { matches!(timeout_at(until, settled.wait_for(|settled| *settled >= number)).await, Ok(Ok(_))) }
    }

    /// Whether it has.
    pub(super) fn is_settled(&self) -> bool {
        *self.settled.borrow() >= self.wanted.borrow().0
    }

    /// One that says nothing.
    #[cfg(test)]
    pub(super) fn silent(plan: Arc<L7Plan>) -> (Self, watch::Receiver<Numbered>, watch::Sender<u64>) {
        let (wanted, wants) = watch::channel((1, plan));
        let (settles, settled) = watch::channel(0);
        let task = tokio::spawn(pending());
        let (followed, askers) = (watch::Sender::new(false), Askers(mpsc::channel(ASKERS).0));
        (Self { task, wanted, settled, followed, askers }, wants, settles)
    }

    /// Whether there is one that has its rules.
    pub(super) fn is_ready(&self) -> bool {
        *self.settled.borrow() != 0
    }
}

impl Askers {
    /// None if it does not answer.
    pub(in crate::agent) async fn ask(&self, question: ProxyQuestion) -> Option<ProxyAnswer> {
        let (asker, answer) = oneshot::channel();
        let ask = async {
            self.0.send((question, asker)).await.ok()?;
            answer.await.ok()
        };
        timeout(PATIENCE, ask).await.ok().flatten()
    }
}

/// How it was lost.
enum Lost {
    /// It has ended, or was never there.
    Ended(String),
    /// It is there and does nothing. Who connects to it again would wait again, and what it lets through it lets through by
    /// old rules.
    Hangs(String),
}

impl From<String> for Lost {
    fn from(why: String) -> Self {
        Self::Ended(why)
    }
}

/// One connection to it.
struct Talk {
    link: Link<ToProxy, FromProxy>,
    /// Whose rules it was not told, for no message takes them.
    untold: BTreeSet<EndpointId>,
    /// Questions it has not answered yet.
    asked: BTreeMap<u64, oneshot::Sender<ProxyAnswer>>,
    last: u64,
    /// What it was told, and the number of that.
    told: BTreeMap<EndpointId, L7Endpoint>,
    number: u64,
    /// What it has not answered, with the generation; until when it must have.
    unanswered: BTreeMap<EndpointId, u64>,
    overdue: Option<Instant>,
    patience: Duration,
    sync: Sync,
    /// The kernel is to be told that it is there.
    ready: bool,
}

/// Whether it has been told that it was told everything.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sync {
    /// Not yet.
    Due,
    /// It has not answered that yet.
    Asked,
    Done,
}

impl Surroundings {
    async fn keep(
        self,
        mut wanted: watch::Receiver<Numbered>,
        mut asked: mpsc::Receiver<Asked>,
        settled: watch::Sender<u64>,
        mut followed: watch::Receiver<bool>,
    ) {
        let mut backoff = Backoff::new();
        let mut listeners = None;
        let mut absence: Option<JoinHandle<()>> = None;
        loop {
            let result = match self.obtain(&mut listeners).await {
                Ok(link) => {
                    let told = (&mut wanted, &mut asked, &mut followed);
                    self.serve(link, &listeners, told, &settled, &mut absence).await
                }
                Err(error) => Err(Lost::Ended(error)),
            };
            settled.send_replace(0);
            if absence.is_none() {
                let events = self.events.clone();
                absence = Some(tokio::spawn(async move {
                    sleep(ABSENCE).await;
                    // Who listens may be gone with the agent.
                    let _ = events.send(Event::Gone).await;
                }));
            }
            let Err(lost) = result else { return };
            if let Lost::Hangs(_) = lost
                && let Err(error) = end(Process::Proxy, &self.place).await
            {
                self.report(format!("it hangs and cannot be ended: {error}"));
            }
            let (Lost::Ended(why) | Lost::Hangs(why)) = lost;
            self.report(why);
            backoff.wait().await;
        }
    }

    /// Said once, however often it happens.
    fn report(&self, error: String) {
        let mut problem = self.problem.lock();
        if problem.as_ref() != Some(&error) {
            tracing::error!("the L7 proxy: {error}");
            *problem = Some(error);
        }
    }

    async fn obtain(&self, listeners: &mut Option<Listeners>) -> Result<Link<ToProxy, FromProxy>, String> {
        let (place, workers) = (&self.place, self.settings.workers);
        let prepare = async || {
            let kept = match listeners.take() {
                Some(kept) => kept,
                None => Listeners::open(&self.cgroup, workers)?,
            };
            let mut descriptors = Vec::new();
            for map in &self.maps {
                descriptors.push(map.try_clone().map_err(|error| format!("copying a descriptor: {error}"))?);
            }
            descriptors.extend(kept.copies()?);
            *listeners = Some(kept);
            let arguments = ["--workers".to_owned(), workers.to_string()].into();
            Ok::<_, String>(Start { arguments, descriptors, cgroup: Some(self.cgroup.clone()) })
        };
        let link = obtain(Process::Proxy, place, &self.settings, prepare).await?;
        if link.adopted && listeners.is_none() {
            let pids = running(Process::Proxy, place).map_err(|error| error.to_string())?;
            let pid = pids.first().ok_or("it has ended")?;
            *listeners = Some(Listeners::of(*pid, workers)?);
        }
        Ok(link)
    }

    async fn serve(
        &self,
        link: Link<ToProxy, FromProxy>,
        listeners: &Option<Listeners>,
        (wanted, asked, followed): Told<'_>,
        settled: &watch::Sender<u64>,
        absence: &mut Option<JoinHandle<()>>,
    ) -> Result<(), Lost> {
        let mut talk = Talk {
            link,
            untold: BTreeSet::new(),
            asked: BTreeMap::new(),
            last: 0,
            told: BTreeMap::new(),
            number: 0,
            unanswered: BTreeMap::new(),
            overdue: None,
            patience: self.patience,
            sync: Sync::Due,
            ready: false,
        };
        talk.say(ToProxy::Record(self.sink.record.clone())).await?;
        talk.tell(wanted).await?;
        // What one that lives on was told by an earlier agent goes only when the kernel sends nobody there by it.
        if !talk.link.adopted || *followed.borrow_and_update() {
            talk.sync().await?;
        }
        if talk.has_answered() {
            settled.send_replace(talk.number);
        }
        loop {
            tokio::select! {
                // What is wanted before what is said: however much that is, it does not hold up a change.
                biased;
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    talk.tell(wanted).await?;
                    if talk.has_answered() {
                        settled.send_replace(talk.number);
                    }
                }
                message = talk.link.channel.receive() => {
                    match message.map_err(|error| format!("it has ended: {error}"))? {
                        FromProxy::Accepted { generation, endpoint } => {
                            talk.answered(generation, endpoint);
                            match talk.untold.contains(&endpoint) {
                                true => drop(self.refusals.lock().insert(endpoint, untold())),
                                false => drop(self.refusals.lock().remove(&endpoint)),
                            }
                        }
                        FromProxy::Refused { generation, endpoint, field, why } => {
                            talk.answered(generation, endpoint);
                            tracing::error!(%endpoint, %field, %why, "the L7 proxy refuses rules");
                            self.refusals.lock().insert(endpoint, format!("{field}: {why}"));
                        }
                        FromProxy::Synced { .. } => {
                            talk.sync = Sync::Done;
                            talk.ready = true;
                            if let Some(absence) = absence.take() {
                                absence.abort();
                            }
                            *self.problem.lock() = None;
                            *self.shortage.lock() = self.shortage();
                        }
                        FromProxy::Flows(flows) => {
                            self.sink.take(flows);
                            talk.say(ToProxy::Taken).await?;
                        }
                        FromProxy::Report(report) => {
                            self.sink.report(*report);
                            talk.say(ToProxy::Taken).await?;
                        }
                        FromProxy::Answer { number, answer } => talk.reply(number, *answer),
                    }
                    // Who answers is there, however much there is to answer.
                    talk.overdue = talk.overdue.map(|_| Instant::now() + self.patience);
                    if talk.has_answered() {
                        talk.overdue = None;
                        settled.send_replace(talk.number);
                    }
                    if talk.has_answered() && talk.sync == Sync::Done {
                        talk.ready |= self.doubted.swap(false, Ordering::SeqCst);
                        if std::mem::take(&mut talk.ready) {
                            self.ready(listeners).await?;
                        }
                    }
                }
                Ok(()) = followed.changed() => {
                    if talk.sync == Sync::Due {
                        talk.sync().await?;
                    }
                }
                Some((question, asker)) = asked.recv() => talk.ask(question, asker).await?,
                () = over(talk.overdue) => {
                    return Err(Lost::Hangs("it did not answer, and was ended".to_owned()));
                }
            }
        }
    }

    /// What it has too little of for all that it may do.
    fn shortage(&self) -> Option<String> {
        let pid = *running(Process::Proxy, &self.place).ok()?.first()?;
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
        too_few_files(&limits, self.settings.workers)
    }

    /// The kernel may send connections to it.
    async fn ready(&self, listeners: &Option<Listeners>) -> Result<(), String> {
        let metadata = std::fs::metadata(&self.cgroup);
        // The number of a cgroup is that of its directory.
        let cgroup = metadata.map_err(|error| format!("{}: {error}", self.cgroup.display()))?.ino();
        let listeners = listeners.as_ref().map(Listeners::copies).transpose()?.unwrap_or_default();
        // Who listens may be gone with the agent.
        let _ = self.events.send(Event::Ready { cgroup, listeners }).await;
        Ok(())
    }
}

/// Why rules are not in force that no message takes.
fn untold() -> String {
    let most = L7Endpoint::MAX_SIZE >> 20;
    format!("the policies that select it have more than {most} MiB of HTTP rules together: no request passes")
}

/// By `/proc/PID/limits`.
fn too_few_files(limits: &str, workers: usize) -> Option<String> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let files: u64 = line.split_whitespace().next()?.parse().ok()?;
    let needed = l7_proxy::listener::descriptors(workers);
    (files < needed).then(|| {
        format!(
            "it may open {files} files, and its {workers} workers up to {needed}: connections beyond that wait; start the \
             agent with a higher limit (LimitNOFILE={needed})"
        )
    })
}

async fn over(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

impl Talk {
    /// Tells what differs from what it was told.
    async fn tell(&mut self, wanted: &mut watch::Receiver<Numbered>) -> Result<(), Lost> {
        let (number, plan) = wanted.borrow_and_update().clone();
        self.number = number;
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

    /// That this was everything.
    async fn sync(&mut self) -> Result<(), Lost> {
        self.sync = Sync::Asked;
        self.overdue = Some(Instant::now() + self.patience);
        self.say(ToProxy::Synced { generation: self.number }).await
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
        match timeout(self.patience, self.link.channel.send(&message)).await {
            Ok(sent) => sent.map_err(|error| Lost::Ended(format!("it has ended: {error}"))),
            Err(_) => Err(Lost::Hangs("it did not listen, and was ended".to_owned())),
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

    /// In a directory of its own.
    fn surroundings(directory: &std::path::Path) -> (Surroundings, mpsc::Receiver<Event>) {
        let (events, said) = mpsc::channel(4);
        let directories = l7::directories(directory);
        let surroundings = Surroundings {
            place: Place::new(&directories),
            cgroup: directory.to_owned(),
            settings: Settings { build: "test".to_owned(), workers: 1 },
            maps: Vec::new(),
            sink: l7::sink(),
            refusals: Arc::default(),
            problem: Arc::default(),
            shortage: Arc::default(),
            events,
            doubted: Arc::default(),
            patience: Duration::from_millis(20),
        };
        (surroundings, said)
    }

    #[test]
    fn too_few_files_are_named() {
        let limits =
            |files: &str| format!("Limit  Soft  Hard  Units\nMax open files   {files}   {files}   files\n");
        let said = too_few_files(&limits("1024"), 2).unwrap();
        assert!(said.starts_with("it may open 1024 files, and its 2 workers up to 65792:"), "{said}");
        assert_eq!(too_few_files(&limits("65792"), 2), None);
    }

    #[tokio::test]
    async fn what_an_earlier_agent_told_goes_when_the_kernel_has_this_ones_plan() {
        let directory = tempfile::tempdir().unwrap();
        let (mut surroundings, mut said) = surroundings(directory.path());
        surroundings.patience = PATIENCE;
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut proxy: Proxy = Channel::new(theirs);
        let (wants, mut wanted) = watch::channel((7, l7::plan(&[1])));
        let (_asker, mut asked) = mpsc::channel(1);
        let (settles, mut settled) = watch::channel(0);
        let (follows, mut followed) = watch::channel(false);
        let serving = tokio::spawn(async move {
            let told = (&mut wanted, &mut asked, &mut followed);
            surroundings.serve(Link::adopted(ours), &None, told, &settles, &mut None).await
        });
        let record = proxy.receive().await.unwrap();
        assert!(matches!(record, ToProxy::Record(_)), "first: {record:?}");
        let set = proxy.receive().await.unwrap();
        let ToProxy::Set { generation: 7, endpoint } = set else { panic!("{set:?}") };
        let answer = FromProxy::Accepted { generation: 7, endpoint: endpoint.id };
        proxy.send(&answer).await.unwrap();
        settled.wait_for(|settled| *settled == 7).await.unwrap();
        // By now it would have been told that this was everything; the next that it hears is another plan.
        wants.send_replace((8, l7::plan(&[1, 2])));
        let set = proxy.receive().await.unwrap();
        let ToProxy::Set { generation: 8, endpoint } = set else { panic!("{set:?}") };
        assert!(said.try_recv().is_err(), "the kernel is told of it only after that");
        follows.send_replace(true);
        assert_eq!(proxy.receive().await.unwrap(), ToProxy::Synced { generation: 8 });
        proxy.send(&FromProxy::Synced { generation: 8 }).await.unwrap();
        proxy.send(&FromProxy::Accepted { generation: 8, endpoint: endpoint.id }).await.unwrap();
        assert!(matches!(said.recv().await, Some(Event::Ready { .. })));
        settled.wait_for(|settled| *settled == 8).await.unwrap();
        drop(wants);
        assert!(serving.await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn rules_that_no_message_takes_are_told_closed_and_named() {
        use mesh::l7::{Expression, HttpRule, L7Access, L7Ports, L7Rules};
        let directory = tempfile::tempdir().unwrap();
        let (mut surroundings, _said) = surroundings(directory.path());
        surroundings.patience = PATIENCE;
        let refusals = Arc::clone(&surroundings.refusals);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut proxy: Proxy = Channel::new(theirs);
        let plan = |length: usize| {
            let mut plan = L7Plan::clone(&l7::plan(&[1]));
            let rule = HttpRule { path: Some(Expression("a".repeat(length))), ..HttpRule::default() };
            let access = vec![L7Access { peers: None, http: Some([rule].into()) }];
            let rules = L7Rules { ports: vec![L7Ports { first: 80, last: 80, access, tls: Vec::new() }] };
            plan.endpoints.values_mut().for_each(|it| it.ingress = Some(Arc::new(rules.clone())));
            Arc::new(plan)
        };
        let (wants, mut wanted) = watch::channel((7, plan(L7Endpoint::MAX_SIZE)));
        let (_asker, mut asked) = mpsc::channel(1);
        let (settles, mut settled) = watch::channel(0);
        let (_follows, mut followed) = watch::channel(false);
        let serving = tokio::spawn(async move {
            let told = (&mut wanted, &mut asked, &mut followed);
            surroundings.serve(Link::adopted(ours), &None, told, &settles, &mut None).await
        });
        for (generation, rules, named) in [(7, 0, true), (8, 1, false)] {
            let set = proxy.receive().await.unwrap();
            let ToProxy::Set { endpoint, .. } = set else { panic!("{set:?}") };
            let ports = &endpoint.ingress.as_ref().unwrap().ports;
            assert_eq!(ports[0].access[0].http.as_ref().unwrap().len(), rules);
            proxy.send(&FromProxy::Accepted { generation, endpoint: endpoint.id }).await.unwrap();
            settled.wait_for(|settled| *settled == generation).await.unwrap();
            assert_eq!(refusals.lock().contains_key(&endpoint.id), named);
            wants.send_replace((8, plan(1)));
        }
        drop(wants);
        assert!(serving.await.unwrap().is_ok());
    }

    /// Needs root: it is another user's.
    #[tokio::test]
    async fn one_that_does_not_answer_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let (mut surroundings, _said) = surroundings(directory.path());
        // It has no listening sockets to copy.
        surroundings.settings.workers = 0;
        let place = surroundings.place.clone();
        std::fs::write(place.started(Process::Proxy), serde_json::to_vec(&surroundings.settings).unwrap())
            .unwrap();
        let socket = tokio::net::UnixListener::bind(place.socket(Process::Proxy)).unwrap();
        let script = directory.path().join("proxy");
        std::fs::write(&script, "read line").unwrap();
        // Stands for it: it has its arguments and its user, and waits for what never comes.
        let mut command = tokio::process::Command::new("/bin/sh");
        command.arg0("ferromesh").arg("proxy").arg("--directory").arg(place.directory(Process::Proxy));
        let (user, _) = Process::Proxy.owner().unwrap();
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), readable).unwrap();
        command
            .current_dir(directory.path())
            .uid(user)
            .stdin(std::process::Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        // Its file descriptor of what never comes stays open.
        let _line = child.stdin.take();
        let keeper = Keeper::start(surroundings, l7::plan(&[1]));
        let bound = std::time::Duration::from_secs(60);
        let (_stream, _) = tokio::time::timeout(bound, socket.accept()).await.unwrap().unwrap();
        let ended = tokio::time::timeout(bound, child.wait()).await.unwrap().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9));
        keeper.into_task().abort();
    }
}
