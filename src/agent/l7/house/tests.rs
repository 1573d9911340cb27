use super::super::Settings;
use super::super::keeper::{Keeper, PATIENCE};
use super::super::tests as l7;
use super::*;
use crate::agent::auth::place::Place;
use crate::agent::auth::place::Process;
use tokio::time::timeout;

/// In a directory of its own.
fn surroundings(directory: &std::path::Path) -> Surroundings {
    let (events, _) = mpsc::channel(4);
    Surroundings {
        place: Place::new(&l7::directories(directory)),
        cgroup: directory.to_owned(),
        // It has no listening sockets to copy.
        settings: Settings { build: "test".to_owned(), workers: 0 },
        maps: Vec::new(),
        sink: l7::sink(),
        refusals: Arc::default(),
        problem: Arc::default(),
        shortage: Arc::default(),
        events,
        doubted: Arc::default(),
        patience: Duration::from_millis(20),
    }
}

#[test]
fn too_few_files_are_named() {
    let limits =
        |files: &str| format!("Limit  Soft  Hard  Units\nMax open files   {files}   {files}   files\n");
    let said = too_few_files(&limits("1024"), 2).unwrap();
    assert!(said.starts_with("it may open 1024 files, and its 2 workers up to 65792:"), "{said}");
    assert_eq!(too_few_files(&limits("65792"), 2), None);
}

/// Stands for a proxy: it has its arguments and its user, and waits for what never comes.
fn stand_in(directory: &std::path::Path, place: &Place) -> tokio::process::Child {
    let script = directory.join("proxy");
    // Those that have been started may be about to read it.
    if !script.exists() {
        std::fs::write(&script, "read line").unwrap();
    }
    let mut command = tokio::process::Command::new("/bin/sh");
    command.arg0("ferromesh").arg("proxy").arg("--directory").arg(place.directory(Process::Proxy));
    let (user, _) = Process::Proxy.owner().unwrap();
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory, readable).unwrap();
    command.current_dir(directory).uid(user).stdin(std::process::Stdio::piped()).kill_on_drop(true);
    command.spawn().unwrap()
}

fn incarnation(number: u32, pid: i32, settings: &Settings, rules: Option<Digest>) -> Incarnation {
    Incarnation { number, pid, settings: settings.clone(), drains: false, rules }
}

/// Stand-ins of these builds with these rules, numbered from 1; an agent finds them, and wants plan 7 to be enforced.
struct Scene {
    house: House,
    children: Vec<tokio::process::Child>,
    sockets: Vec<tokio::net::UnixListener>,
    _lines: Vec<Option<tokio::process::ChildStdin>>,
    _tells: (watch::Sender<Numbered>, watch::Sender<Kernel>),
    directory: tempfile::TempDir,
}

const BOUND: Duration = Duration::from_secs(60);

impl Scene {
    async fn new(found: &[(&str, Option<Digest>)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let surroundings = Surroundings { patience: PATIENCE, ..surroundings(directory.path()) };
        let place = surroundings.place.clone();
        let (mut children, mut known) = (Vec::new(), Vec::new());
        for ((build, rules), number) in found.iter().zip(1..) {
            let child = stand_in(directory.path(), &place);
            let pid = i32::try_from(child.id().unwrap()).unwrap();
            let settings = Settings { build: (*build).to_owned(), workers: 0 };
            known.push(incarnation(number, pid, &settings, rules.clone()));
            children.push(child);
        }
        std::fs::write(place.started(Process::Proxy), serde_json::to_vec(&known).unwrap()).unwrap();
        let listen = |one: &Incarnation| {
            tokio::net::UnixListener::bind(place.numbered_socket(Process::Proxy, one.number))
        };
        let sockets = known.iter().map(|one| listen(one).unwrap()).collect();
        let (wants, wanted) = watch::channel((7, l7::plan(&[1])));
        let (settles, kernel) = watch::channel(Kernel::Latest);
        let (mut house, _stands) = House::new(surroundings, wanted, kernel);
        let _lines = children.iter_mut().map(|child| child.stdin.take()).collect();
        house.begin().await.unwrap();
        Self { house, children, sockets, _lines, _tells: (wants, settles), directory }
    }

    /// What this one of them hears first, and the connection to it.
    async fn hears(&mut self, number: usize) -> (ToProxy, node_api::channel::Channel<FromProxy, ToProxy>) {
        let (stream, _) = timeout(BOUND, self.sockets[number - 1].accept()).await.unwrap().unwrap();
        let mut proxy = node_api::channel::Channel::new(stream);
        (timeout(BOUND, proxy.receive()).await.unwrap().unwrap(), proxy)
    }

    /// Returns when it has been ended by SIGKILL.
    async fn is_ended(&mut self, number: usize) {
        let ended = timeout(BOUND, self.children[number - 1].wait()).await.unwrap().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9));
    }

    fn lives(&mut self, number: usize) -> bool {
        self.children[number - 1].try_wait().unwrap().is_none()
    }

    /// The next talk that is over is taken note of.
    async fn talk_ends(&mut self) {
        let ended = timeout(BOUND, self.house.talks.join_next_with_id()).await.unwrap().unwrap();
        self.house.ended(ended).await;
    }
}

/// Edits may have been made while no agent ran. Needs root, as all of these.
#[tokio::test]
async fn one_of_another_build_goes_on_only_with_the_rules_of_now() {
    let digest = |ids: &[u16]| Digest::of(&l7::plan(ids).endpoints);
    let of_another_version = serde_json::from_str(r#""0:""#).unwrap();
    let found = [
        ("before", digest(&[1])),
        ("before", digest(&[1, 2])),
        ("before", None),
        ("before", Some(of_another_version)),
        ("test", None),
    ];
    let mut scene = Scene::new(&found).await;
    for number in [2, 3, 4] {
        scene.is_ended(number).await;
    }
    assert!(scene.lives(1) && scene.lives(5));
    assert_eq!(scene.house.serving(), Some(5));
    assert_eq!(scene.house.standing.borrow().draining(), 1);
    scene.house.drain_others(5);
    let (first, _) = scene.hears(1).await;
    assert!(matches!(first, ToProxy::Drain { .. }), "{first:?}");
}

/// It takes connections still, and nobody would tell it of an edit.
#[tokio::test]
async fn one_that_is_lost_sight_of_while_another_is_to_follow_is_ended() {
    let mut scene = Scene::new(&[("test", None), ("test", None)]).await;
    scene.house.standing.send_modify(|standing| (standing.serving, standing.next) = (Some(1), Some(2)));
    let (_, other) = scene.hears(2).await;
    drop(scene.hears(1).await);
    scene.talk_ends().await;
    scene.is_ended(1).await;
    assert!(scene.lives(2));
    assert_eq!(scene.house.serving(), Some(2));
    drop(other);
}

/// With nobody in its place it is talked to again.
#[tokio::test]
async fn one_that_alone_serves_and_is_lost_sight_of_is_talked_to_again() {
    let mut scene = Scene::new(&[("test", None)]).await;
    drop(scene.hears(1).await);
    scene.talk_ends().await;
    assert_eq!(scene.house.serving(), None);
    scene.house.begin().await.unwrap();
    assert_eq!(scene.house.serving(), Some(1));
    let (first, _) = scene.hears(1).await;
    assert_eq!(first, ToProxy::Pack);
}

/// As a panic would: the talk leaves no word.
#[tokio::test]
async fn one_whose_talk_has_broken_off_is_ended() {
    let mut scene = Scene::new(&[("test", None)]).await;
    scene.house.talks.abort_all();
    scene.talk_ends().await;
    scene.is_ended(1).await;
    assert_eq!(scene.house.serving(), None);
}

#[tokio::test]
async fn who_runs_and_is_not_talked_to_is_ended_when_that_is_tried_again() {
    let mut scene = Scene::new(&[("test", None), ("test", None)]).await;
    let mut unknown = stand_in(scene.directory.path(), &scene.house.surroundings.place);
    let _line = unknown.stdin.take();
    scene.house.attended.remove(&1);
    scene.house.tidy().await;
    scene.is_ended(1).await;
    let ended = timeout(BOUND, unknown.wait()).await.unwrap().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9));
    assert!(scene.lives(2) && scene.house.tidies.is_none());
}

/// Needs root: it is another user's.
#[tokio::test]
async fn one_that_does_not_answer_is_ended() {
    let directory = tempfile::tempdir().unwrap();
    let surroundings = surroundings(directory.path());
    let place = surroundings.place.clone();
    let mut child = stand_in(directory.path(), &place);
    // Its file descriptor of what never comes stays open.
    let _line = child.stdin.take();
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    let one = incarnation(3, pid, &surroundings.settings, None);
    std::fs::write(place.started(Process::Proxy), serde_json::to_vec(&[one]).unwrap()).unwrap();
    let socket = tokio::net::UnixListener::bind(place.numbered_socket(Process::Proxy, 3)).unwrap();
    let keeper = Keeper::start(surroundings, l7::plan(&[1]));
    let bound = Duration::from_secs(60);
    let (_stream, _) = timeout(bound, socket.accept()).await.unwrap().unwrap();
    let ended = timeout(bound, child.wait()).await.unwrap().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9));
    let _ = keeper.close().await;
}

/// Needs root, as above.
#[tokio::test]
async fn who_is_not_written_down_is_ended_and_who_drains_is_told_so_and_not_to_serve() {
    let directory = tempfile::tempdir().unwrap();
    let surroundings = surroundings(directory.path());
    let (place, settings) = (surroundings.place.clone(), surroundings.settings.clone());
    let mut children = [(); 3].map(|()| stand_in(directory.path(), &place));
    let _lines = children.each_mut().map(|child| child.stdin.take());
    let pids = children.each_ref().map(|child| i32::try_from(child.id().unwrap()).unwrap());
    let other = Settings { build: "before".to_owned(), ..settings.clone() };
    let rules = Digest::of(&l7::plan(&[1]).endpoints);
    let known = [
        Incarnation { drains: true, ..incarnation(1, pids[0], &other, rules) },
        incarnation(2, pids[1], &settings, None),
    ];
    std::fs::write(place.started(Process::Proxy), serde_json::to_vec(&known).unwrap()).unwrap();
    let listen =
        |number| tokio::net::UnixListener::bind(place.numbered_socket(Process::Proxy, number)).unwrap();
    let sockets = [listen(1), listen(2)];
    let (_wants, wanted) = watch::channel((7, l7::plan(&[1])));
    let (_settles, kernel) = watch::channel(Kernel::Latest);
    let (mut house, _stands) =
        House::new(Surroundings { patience: PATIENCE, ..surroundings }, wanted, kernel);
    house.begin().await.unwrap();
    let bound = Duration::from_secs(60);
    let ended = timeout(bound, children[2].wait()).await.unwrap().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9));
    assert_eq!(house.serving(), Some(2));
    assert_eq!(house.standing.borrow().draining(), 1);
    let mut told = Vec::new();
    for (socket, messages) in sockets.iter().zip([1, 3]) {
        let (stream, _) = timeout(bound, socket.accept()).await.unwrap().unwrap();
        let mut proxy = node_api::channel::Channel::<FromProxy, ToProxy>::new(stream);
        for _ in 0..messages {
            told.push(timeout(bound, proxy.receive()).await.unwrap().unwrap());
        }
    }
    assert!(matches!(told[0], ToProxy::Drain { within: 600_000, idle: 60_000 }), "{told:?}");
    assert!(matches!(told[2], ToProxy::Record(_)), "{told:?}");
    assert!(matches!(told[3], ToProxy::Set { generation: 7, .. }), "{told:?}");
}
