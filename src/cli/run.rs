//! `ferromesh run`: a command as a workload of this node.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use linux::user::Credentials;
use mesh::labels::{LabelSet, Source};
use mesh::workload::WorkloadName;
use node_api::client::Replies;
use node_api::{ClientError, Enrol, Enrolled, Reply, Request};
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep, timeout};

use super::{Agent, CliError, output};
use crate::workload::{self, Failure, OwnFile, Workload};

/// How long the agent may take to put policy in force.
const ENROLMENT: Duration = Duration::from_secs(30);

/// Starts a command as a workload: its own network namespace, cgroup and addresses, its policy in force before its
/// first instruction. Exit status, signals and terminal are the command's own; 125 says that it was not started.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo ferromesh run --name mine --label org=empire -- curl -sXPOST http://10.77.0.2/v1/request-landing
  sudo ferromesh run --name web --user www-data --writable /srv/web -- nginx -g 'daemon off;'
  sudo ferromesh run --name shell --namespace test -- bash

The command sees the host's files read-only, a /run and /tmp of its own, and no device, host process or kernel interface.
Its /etc/resolv.conf names the node's DNS: services are called by name.")]
pub(super) struct Args {
    /// Name of the workload; in use once on a node
    #[arg(long)]
    name: String,
    /// Its namespace
    #[arg(long, default_value = "default")]
    namespace: String,
    /// A label, for a node whose directory is its own; a Workload object goes before it
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Its service account
    #[arg(long, value_name = "NAME", default_value = "default")]
    service_account: String,
    /// Who the command runs as: user[:group], each a name or a number
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// A capability beside the usual ones: NET_RAW, IPC_LOCK …
    #[arg(long = "cap-add", value_name = "CAPABILITY")]
    capabilities: Vec<String>,
    /// A file or directory of the host that the command may change
    #[arg(long, value_name = "PATH")]
    writable: Vec<PathBuf>,
    /// The command
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs the command to its end. Must not be called in a runtime: the process has to have one thread.
pub(super) fn run(agent: &Agent, args: Args) -> Result<ExitCode, CliError> {
    match start(agent, args) {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(failure) => {
            output::note(&format!("ferromesh: {failure}"));
            Ok(ExitCode::from(failure.code))
        }
    }
}

fn start(agent: &Agent, args: Args) -> Result<u8, Failure> {
    let credentials = args.user.as_deref().map(Credentials::parse).transpose().map_err(Failure::own)?;
    let capabilities = workload::added_capabilities(&args.capabilities).map_err(Failure::own)?;
    let workload: WorkloadName = format!("{}/{}", args.namespace, args.name).parse().map_err(Failure::own)?;
    let labels = labels(&args.labels)?;
    let enrol = Enrol { workload, labels, service_account: args.service_account };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::own)?;
    let (enrolled, lease) = runtime.block_on(enrolled(agent, enrol)).map_err(Failure::own)?;
    let addresses = [enrolled.endpoint.ipv4.into(), enrolled.endpoint.ipv6.into()];
    let resolver = OwnFile::resolver(enrolled.resolver);
    let workload = Workload {
        files: [resolver].into_iter().chain(OwnFile::hosts(&args.name, &addresses)).collect(),
        name: args.name,
        network_namespace: enrolled.network_namespace,
        cgroup: enrolled.cgroup,
        hidden: enrolled.hidden,
        kept: Vec::new(),
        writable: args.writable,
        credentials: credentials.unwrap_or_else(Credentials::root),
        capabilities,
        command: args.command,
    };
    workload::run(workload, Lease { _connection: lease, _runtime: runtime })
}

/// While it is held, the agent waits for a process.
struct Lease {
    _connection: Replies,
    _runtime: Runtime,
}

/// Waits where the agent says that it is a matter of time, for as long as it said first.
async fn enrolled(agent: &Agent, enrol: Enrol) -> Result<(Enrolled, Replies), CliError> {
    let mut until: Option<Instant> = None;
    loop {
        let mut replies = agent.connect().await?.stream(&Request::Enrol(enrol.clone())).await?;
        let socket = agent.socket.clone();
        let silent = ClientError::Silent { socket, waited: ENROLMENT };
        let (wait, why) = match timeout(ENROLMENT, replies.next()).await.map_err(|_| silent)?? {
            Reply::Enrolled(enrolled) => return Ok((enrolled, replies)),
            Reply::Later { milliseconds, why } => (Duration::from_millis(milliseconds), why),
            _ => return Err(CliError::Unexpected),
        };
        match until {
            // It has been so from the beginning again: a restart of the agent, say.
            Some(until) if Instant::now() >= until => return Err(ClientError::Refused(why).into()),
            Some(_) => {}
            None => {
                output::note(&format!("ferromesh: waiting: {why}"));
                until = Instant::now().checked_add(wait.saturating_add(ENROLMENT));
            }
        }
        sleep(wait).await;
    }
}

fn labels(texts: &[String]) -> Result<LabelSet, Failure> {
    let mut labels = LabelSet::new();
    for text in texts {
        let given: LabelSet = text.parse().map_err(Failure::own)?;
        for (key, value) in given.iter() {
            if key.source != Source::K8s {
                return Err(Failure::own(format!("--label {text}: only k8s: labels can be given")));
            }
            labels = labels.with(Source::K8s, &key.key, value);
        }
    }
    Ok(labels)
}
