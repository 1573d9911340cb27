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
    std::fs::write(&script, "read line").unwrap();
    let mut command = tokio::process::Command::new("/bin/sh");
    command.arg0("ferromesh").arg("proxy").arg("--directory").arg(place.directory(Process::Proxy));
    let (user, _) = Process::Proxy.owner().unwrap();
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory, readable).unwrap();
    command.current_dir(directory).uid(user).stdin(std::process::Stdio::piped()).kill_on_drop(true);
    command.spawn().unwrap()
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
    let one = Incarnation { number: 3, pid, settings: surroundings.settings.clone(), drains: false };
    std::fs::write(place.started(Process::Proxy), serde_json::to_vec(&[one]).unwrap()).unwrap();
    let socket = tokio::net::UnixListener::bind(place.numbered_socket(Process::Proxy, 3)).unwrap();
    let keeper = Keeper::start(surroundings, l7::plan(&[1]));
    let bound = Duration::from_secs(60);
    let (_stream, _) = timeout(bound, socket.accept()).await.unwrap().unwrap();
    let ended = timeout(bound, child.wait()).await.unwrap().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9));
    keeper.into_task().abort();
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
    let known = [
        Incarnation { number: 1, pid: pids[0], settings: other, drains: true },
        Incarnation { number: 2, pid: pids[1], settings, drains: false },
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

#[test]
fn of_two_processes_the_answers_are_one() {
    let row = |draining| node_api::proxy::ProxyBudgets {
        owner: node_api::proxy::BudgetOwner::All,
        workload: None,
        address: None,
        instance: None,
        budgets: node_api::proxy::PerBudget::default(),
        draining,
    };
    let one = joined(None, ProxyAnswer::Budgets(vec![row(true)]));
    let both = joined(Some(one), ProxyAnswer::Budgets(vec![row(false)]));
    assert_eq!(both, ProxyAnswer::Budgets(vec![row(true), row(false)]));
}
