//! `ferromesh up`: starts the node's processes and returns when policy is in force.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use node_api::{Client, Reply, Request, Status};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::CliError;
use super::output::FormatArg;
use crate::directories::Directories;

/// How long an agent may take to bring the node up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Start this node: policy is in force when the command returns.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo ferromesh up                       Run from /etc/ferromesh
  sudo ferromesh up --config ./demo       Run from a directory of your own")]
pub(super) struct Args {
    #[command(flatten)]
    directories: Directories,
    /// Stay in the foreground, as `ferromesh agent` does
    #[arg(long)]
    foreground: bool,
    #[command(flatten)]
    format: FormatArg,
}

/// The agent that is up.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Up {
    node: String,
    pid: u32,
    /// Endpoints that an earlier agent had left.
    adopted: usize,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let directories = &args.directories;
    if args.foreground {
        return super::agent::foreground(directories).await;
    }
    let up = background(directories).await.map_err(CliError::Failed)?;
    // The node is up whether or not somebody reads that.
    let _ = args.format.print(&up, |_| render(&up));
    Ok(ExitCode::SUCCESS)
}

/// Starts an agent and waits until it answers.
async fn background(directories: &Directories) -> Result<Up, String> {
    if let Some(status) = ask(directories).await {
        return Err(format!(
            "node {} is up already (agent {}); see `ferromesh status`",
            status.node, status.pid
        ));
    }
    let mut agent = start(directories)?;
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = ask(directories).await {
            let Status { node, pid, adopted, .. } = status;
            return Ok(Up { node, pid, adopted });
        }
        if let Ok(Some(ended)) = agent.try_wait() {
            return Err(format!("the agent ended ({ended}): {}", last_words(directories)));
        }
        if Instant::now() > end {
            return Err(format!("the agent does not answer; it says: {}", last_words(directories)));
        }
        sleep(Duration::from_millis(10)).await;
    }
}

fn render(up: &Up) -> String {
    let Up { node, pid, adopted } = up;
    format!("node {node} is up: agent {pid}, {adopted} endpoints adopted\n")
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
        ("--config", Some(&directories.config)),
        ("--shared", directories.shared.as_ref()),
        ("--state", Some(&directories.state)),
        ("--run-dir", Some(&directories.run_dir)),
        ("--pins", Some(&directories.pins)),
    ] {
        if let Some(path) = path {
            command.arg(flag).arg(path);
        }
    }
    // A group of its own: Ctrl-C in this terminal is not meant for the node.
    command.stdin(Stdio::null()).stdout(open()?).stderr(open()?).current_dir("/").process_group(0);
    command.spawn().map_err(|error| format!("starting the agent: {error}"))
}

async fn ask(directories: &Directories) -> Option<Status> {
    let client = Client::connect(&directories.socket(), crate::BUILD).await.ok()?;
    match client.ask(&Request::Status).await {
        Ok(Reply::Status(status)) => Some(*status),
        _ => None,
    }
}

fn last_words(directories: &Directories) -> String {
    let log = fs::read_to_string(directories.log()).unwrap_or_default();
    log.lines().last().map_or_else(|| "nothing".to_owned(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::super::golden::golden;
    use super::*;

    #[test]
    fn the_agent_that_is_up_is_told() {
        let up = Up { node: "death-star-1".to_owned(), pid: 4242, adopted: 3 };
        golden("up", &render(&up));
        golden("up.json", &serde_json::to_string_pretty(&up).unwrap());
    }
}
