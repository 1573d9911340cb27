//! `ferromesh up`: starts the node's processes and returns when policy is in force.

use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use node_api::{Client, Reply, Request, Status};
use tokio::time::{Instant, sleep};
use tracing_subscriber::EnvFilter;

use super::{CliError, output};
use crate::directories::Directories;

/// How long an agent may take to bring the node up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Flags of `up`.
#[derive(clap::Args, Debug)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    directories: Directories,
    /// Stay in the foreground, as `ferromesh agent` does
    #[arg(long)]
    foreground: bool,
}

/// Starts an agent and waits until it answers.
pub(crate) async fn up(args: &UpArgs) -> Result<ExitCode, CliError> {
    let directories = &args.directories;
    if args.foreground {
        return agent(directories).await;
    }
    if let Some(status) = ask(directories).await {
        let Status { node, pid, .. } = status;
        return Err(CliError::Failed(format!(
            "node {node} is up already (agent {pid}); see `ferromesh status`"
        )));
    }
    let mut agent = start(directories)?;
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = ask(directories).await {
            let Status { node, pid, adopted, .. } = status;
            output::write(&format!("node {node} is up: agent {pid}, {adopted} endpoints adopted\n"))?;
            return Ok(ExitCode::SUCCESS);
        }
        if let Ok(Some(ended)) = agent.try_wait() {
            return Err(CliError::Failed(format!("the agent ended ({ended}): {}", last_words(directories))));
        }
        if Instant::now() > end {
            let words = last_words(directories);
            return Err(CliError::Failed(format!("the agent does not answer; it says: {words}")));
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// `ferromesh agent`: is the agent until it is told to end.
pub(crate) async fn agent(directories: &Directories) -> Result<ExitCode, CliError> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colours).init();
    crate::agent::agent(directories).await.map_err(|error| error.to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn start(directories: &Directories) -> Result<Child, String> {
    fs::create_dir_all(&directories.run_dir)
        .map_err(|error| format!("{}: {error}", directories.run_dir.display()))?;
    let log = directories.log();
    let open = || File::options().create(true).append(true).open(&log);
    let open = || open().map_err(|error| format!("{}: {error}", log.display()));
    let program = std::env::current_exe().map_err(|error| format!("this program's own file: {error}"))?;
    let mut command = Command::new(program);
    command.arg("agent");
    for (flag, path) in [
        ("--config", &directories.config),
        ("--state", &directories.state),
        ("--run-dir", &directories.run_dir),
        ("--pins", &directories.pins),
    ] {
        command.arg(flag).arg(path);
    }
    // A group of its own: Ctrl-C in this terminal is not meant for the node.
    command.stdin(Stdio::null()).stdout(open()?).stderr(open()?).current_dir("/").process_group(0);
    command.spawn().map_err(|error| format!("starting the agent: {error}"))
}

async fn ask(directories: &Directories) -> Option<Status> {
    let client = Client::connect(&directories.socket(), crate::BUILD).await.ok()?;
    match client.ask(&Request::Status).await {
        Ok(Reply::Status(status)) => Some(status),
        _ => None,
    }
}

fn last_words(directories: &Directories) -> String {
    let log = fs::read_to_string(directories.log()).unwrap_or_default();
    log.lines().last().map_or_else(|| "nothing".to_owned(), str::to_owned)
}
