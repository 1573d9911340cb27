//! One node: a network namespace, an agent in it, workloads started through it.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use tempfile::TempDir;

use super::command::{Outcome, Session, wait_until};
use super::namespace::{Namespace, beside, within};
use super::outside::Outside;

static COUNT: AtomicU32 = AtomicU32::new(0);
static BPFFS: Once = Once::new();

/// A node of the lab.
pub struct Node {
    name: String,
    agent: Option<Session>,
    outside: Option<Outside>,
    network: Namespace,
    directory: TempDir,
    cgroup: PathBuf,
    /// The directory that the nodes of a mesh share.
    shared: Option<PathBuf>,
}

/// A name of the lab's own, of a namespace or the like.
pub(super) fn unique_name() -> String {
    format!("fmlab{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Pools of the node of this number.
pub(super) fn pools(number: u8) -> [String; 2] {
    [format!("10.77.{number}.0/24"), format!("fd00:77::{number}:0/112")]
}

/// A workload that was started and has an address. Ended when dropped.
pub struct Workload {
    /// Its process, spoken to line by line.
    pub session: Session,
    /// IPv4 and IPv6 address.
    pub addresses: [IpAddr; 2],
}

impl Node {
    /// A namespace with loopback, directories and a configuration; no agent yet.
    pub fn new() -> Self {
        Self::with("")
    }

    /// The same with more keys of the configuration: `, key: value`.
    pub fn with(settings: &str) -> Self {
        Self::made("lab", 0, settings, None)
    }

    /// A node of this name; `number` sets its pools apart from those of others it can reach.
    pub(super) fn made(node_name: &str, number: u8, settings: &str, shared: Option<PathBuf>) -> Self {
        BPFFS.call_once(mount_bpffs);
        let name = unique_name();
        let directory = TempDir::with_prefix("fmlab").expect("a temporary directory");
        let network = Namespace::new(name.clone());
        let cgroup = linux::cgroup::hierarchy().expect("cgroup v2").join(&name);
        fs::create_dir(&cgroup).expect("a cgroup");
        let node = Self { name, agent: None, outside: None, network, directory, cgroup, shared };
        fs::create_dir(node.config()).expect("a directory for configuration");
        let [ipv4, ipv6] = pools(number);
        node.write(
            "ferromesh.yaml",
            &format!(
                "apiVersion: ferromesh.io/v1alpha1\nkind: Configuration\nmetadata: {{name: node}}\n\
                 spec: {{nodeName: {node_name}, ipv4Pool: {ipv4}, ipv6Pool: '{ipv6}', \
                 ipv4ServicePool: 10.78.0.0/16, ipv6ServicePool: 'fd00:78::/108', \
                 cgroupRoot: {cgroup}/workloads, serviceCgroup: {cgroup}{settings}}}\n",
                cgroup = node.cgroup.display(),
            ),
        );
        node
    }

    /// A node with a way out whose agent is up.
    pub fn up_with_outside(settings: &str) -> Self {
        let mut node = Self::with(settings);
        node.outside = Some(Outside::new(&node.network, &node.name));
        node.start_agent();
        node
    }

    /// What is beyond it.
    pub fn outside(&self) -> &Outside {
        self.outside.as_ref().expect("made by up_with_outside")
    }

    /// A node whose agent is up.
    pub fn up() -> Self {
        Self::up_with("")
    }

    /// A node with more keys of the configuration whose agent is up.
    pub fn up_with(settings: &str) -> Self {
        let mut node = Self::with(settings);
        node.start_agent();
        node
    }

    /// Starts the agent and waits until it says that it is ready.
    pub fn start_agent(&mut self) {
        let mut command = self.inside(binary("ferromesh"));
        command.arg("agent").args(self.flags()).stderr(Stdio::inherit());
        let agent = Session::start(&mut command);
        let line = agent.line();
        assert!(line.starts_with("node up"), "the agent said: {line}");
        self.agent = Some(agent);
    }

    /// Ends the agent by SIGKILL, as a crash would.
    pub fn kill_agent(&mut self) {
        self.agent.take().expect("an agent runs").kill();
    }

    /// Process id of the agent.
    pub fn agent_pid(&self) -> i32 {
        let pid = self.agent.as_ref().expect("an agent runs").pid();
        i32::try_from(pid).expect("a process id")
    }

    /// A program of the node's own: in its namespace and its cgroup.
    pub fn inside(&self, program: impl AsRef<Path>) -> Command {
        within(&self.network.path(), &self.cgroup, program)
    }

    /// A program whose sockets the kernel takes for the L7 proxy's: in the node's namespace and the proxy's cgroup, which is
    /// there once a policy has needed one. It must have ended before the node does.
    pub fn as_proxy(&self, program: impl AsRef<Path>) -> Command {
        within(&self.network.path(), &self.workloads().join("proxy"), program)
    }

    /// A program in a workload's namespace and cgroup, with the host's files: one that starts faster than a workload.
    pub fn within(&self, workload: &str, program: impl AsRef<Path>) -> Command {
        within(&self.namespace(workload), &self.cgroup(workload), program)
    }

    /// A program in a workload's namespace whose sockets the agent's cgroup programs cannot see.
    pub fn beside(&self, workload: &str, program: impl AsRef<Path>) -> Command {
        beside(&self.namespace(workload), program)
    }

    /// The command line, asking this node's agent.
    pub fn ferromesh(&self, arguments: &[&str]) -> Outcome {
        Outcome::of(self.inside(binary("ferromesh")).arg("--socket").arg(self.socket()).args(arguments))
    }

    /// A verb that takes directories (`agent`, `up`, `down`, `check`), for this node.
    pub fn verb(&self, verb: &str, more: &[&str]) -> Outcome {
        Outcome::of(self.inside(binary("ferromesh")).arg(verb).args(self.flags()).args(more))
    }

    /// The JSON that a verb prints.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.ferromesh(&[arguments, &["-o", "json"]].concat()).success();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Writes a file of the configuration as editors do: whole, by rename.
    pub fn write(&self, file: &str, yaml: &str) {
        let draft = self.directory.path().join("draft");
        fs::write(&draft, yaml).expect("the draft is written");
        fs::rename(draft, self.config().join(file)).expect("the file is put in place");
    }

    /// Removes a file of the configuration.
    pub fn remove(&self, file: &str) {
        fs::remove_file(self.config().join(file)).expect("the file was there");
    }

    /// Writes a file and waits until it is in force.
    #[track_caller]
    pub fn apply(&self, file: &str, yaml: &str) {
        self.edit(file, || self.write(file, yaml));
    }

    /// Removes a file and waits until what it said is no longer in force.
    #[track_caller]
    pub fn withdraw(&self, file: &str) {
        self.edit(file, || self.remove(file));
    }

    #[track_caller]
    fn edit(&self, file: &str, change: impl FnOnce()) {
        // The agent answers after it has applied, so the number alone tells.
        let snapshot = || self.json(&["status"])["snapshot"].as_u64().expect("a number");
        let before = snapshot();
        change();
        wait_until(&format!("the edit of {file} is in force"), || snapshot() > before);
    }

    /// The generation in the kernel.
    pub fn revision(&self) -> u64 {
        self.json(&["status"])["revision"].as_u64().expect("a number")
    }

    /// A command as a workload: `ferromesh run --name NAME LABELS -- COMMAND`.
    pub fn run_command(&self, name: &str, labels: &[&str], command: &[&str]) -> Command {
        let mut run = self.inside(binary("ferromesh"));
        run.arg("--socket").arg(self.socket()).args(["run", "--name", name]);
        for label in labels {
            run.args(["--label", label]);
        }
        run.arg("--").args(command);
        run
    }

    /// Runs a command as a workload to its end.
    pub fn run(&self, name: &str, labels: &[&str], command: &[&str]) -> Outcome {
        Outcome::of(self.run_command(name, labels, command).stdin(Stdio::null()))
    }

    /// Starts a command as a workload; returns when it has said its first line.
    #[track_caller]
    pub fn start(&self, name: &str, labels: &[&str], command: &[&str]) -> Workload {
        let session = Session::start(&mut self.run_command(name, labels, command));
        let line = session.line();
        assert!(["serving", "open"].iter().any(|word| line.starts_with(word)), "{name} said: {line}");
        let view = self.json(&["endpoint", "get", name]);
        let address =
            |field: &str| view["endpoint"][field].as_str().expect("an address").parse().expect("it parses");
        Workload { session, addresses: [address("ipv4"), address("ipv6")] }
    }

    /// Starts `probe serve` on port 80 and 81-like ports as a workload.
    #[track_caller]
    pub fn serve(&self, name: &str, labels: &[&str], port: u16) -> Workload {
        let probe = binary("probe");
        self.start(name, labels, &[probe.to_str().expect("UTF-8"), "serve", &port.to_string()])
    }

    /// One attempt of a fresh workload: `tcp` or `udp`; returns the outcome's word.
    pub fn attempt(&self, name: &str, labels: &[&str], transport: &str, to: IpAddr, port: u16) -> String {
        let probe = binary("probe");
        let target = std::net::SocketAddr::new(to, port).to_string();
        self.run(name, labels, &[probe.to_str().expect("UTF-8"), transport, &target]).stdout
    }

    /// Directory of the configuration.
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("config")
    }

    /// Directory under which this node's maps and links are pinned.
    pub fn pins(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.name)
    }

    /// The cgroup of a live workload.
    pub fn cgroup(&self, name: &str) -> PathBuf {
        self.workloads().join(self.interface(name))
    }

    /// Where the workloads' cgroups are.
    pub fn workloads(&self) -> PathBuf {
        self.cgroup.join("workloads")
    }

    /// Where the workloads' network namespaces are.
    pub fn namespaces(&self) -> PathBuf {
        self.directory.path().join("run/netns")
    }

    /// The network namespace of a live workload.
    pub fn namespace(&self, name: &str) -> PathBuf {
        self.namespaces().join(self.interface(name))
    }

    fn interface(&self, name: &str) -> String {
        let view = self.json(&["endpoint", "get", name]);
        view["endpoint"]["interface"].as_str().expect("a name").to_owned()
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("run/agent.sock")
    }

    fn flags(&self) -> Vec<String> {
        let own = [
            ("--config", self.config()),
            ("--state", self.state()),
            ("--run-dir", self.run_dir()),
            ("--pins", self.pins()),
        ];
        let shared = self.shared.clone().map(|path| ("--shared", path));
        let flags = own.into_iter().chain(shared);
        flags.flat_map(|(flag, path)| [flag.to_owned(), path.display().to_string()]).collect()
    }

    /// The file of the node's network namespace.
    pub fn network_file(&self) -> PathBuf {
        self.network.path()
    }

    /// What a process of the node's has logged: `auth`, `ca`.
    pub fn log(&self, of: &str) -> String {
        fs::read_to_string(self.run_dir().join(of).with_extension("log")).unwrap_or_default()
    }

    /// Sockets, logs, and what the agent notes of the processes that it has started.
    pub fn run_dir(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// What the node remembers across restarts.
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// From its next start on the agent reads another directory than it did.
    pub(super) fn share(&mut self, directory: PathBuf) {
        self.shared = Some(directory);
    }

    /// The node's own network namespace.
    pub(super) fn network(&self) -> &Namespace {
        &self.network
    }
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let down = self.verb("down", &[]);
        if let Some(mut agent) = self.agent.take() {
            agent.kill();
        }
        // The namespace goes with its field. What the agent did not remove of the cgroup is the test's to find.
        if !std::thread::panicking() {
            down.success();
            wait_until("the node's cgroup is empty", || fs::remove_dir(&self.cgroup).is_ok());
        } else {
            let _ = fs::remove_dir(self.cgroup.join("workloads"));
            let _ = fs::remove_dir(&self.cgroup);
        }
    }
}

/// A node takes away the BPF file system it has mounted when nobody else seems to use it. Here nodes come and go side by
/// side, so the lab mounts one for all of them, and leaves it.
fn mount_bpffs() {
    let mounted =
        || fs::read_to_string("/proc/self/mounts").expect("a mount table").contains(" /sys/fs/bpf bpf ");
    if !mounted() {
        let outcome = Outcome::of(Command::new("mount").args(["-t", "bpf", "bpf", "/sys/fs/bpf"]));
        assert!(mounted(), "no BPF file system: {}", outcome.stderr);
    }
}

/// A program of this workspace: beside the program, or above the test or example, that runs.
pub fn binary(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("a program has a file");
    let folder = this.parent().expect("it is in a folder");
    let within = ["deps", "examples"].iter().any(|name| folder.ends_with(name));
    let path = if within { folder.parent().expect("target/PROFILE") } else { folder }.join(name);
    assert!(
        path.exists(),
        "{} is missing: run `cargo build --workspace --bins` first (make test does)",
        path.display()
    );
    path
}
