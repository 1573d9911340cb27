//! The command line: one file per verb. A verb asks the agent and renders what it said; it decides nothing.
//!
//! A new verb is a module, a variant of [`Verb`] and an arm of [`dispatch`].
//!
//! Text is for people, `-o json` is the value of `node-api` as the agent sent it. Answers go to standard output,
//! everything about how they came about to standard error. A reader that goes away (`| head`) ends a verb quietly.

mod agent;
mod analyze;
mod auth;
mod auth_agent;
mod ca;
mod check;
mod completions;
mod config;
mod ct;
mod down;
mod drops;
mod endpoint;
#[cfg(test)]
mod golden;
mod identity;
mod ip;
mod lb;
mod metrics;
mod monitor;
mod observe;
mod output;
#[cfg(test)]
mod page;
mod plan;
mod policy;
mod proxied;
mod proxy;
mod run;
mod service;
mod status;
mod table;
mod up;
mod version;

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use node_api::{Client, ClientError, Reply, Request};

use crate::BUILD;

/// A service mesh without sidecars: policy by identity, in the kernel.
#[derive(Debug, Parser)]
#[command(name = "ferromesh", version = BUILD, arg_required_else_help = true, max_term_width = 110)]
#[command(after_help = "\
Examples:
  ferromesh status                       Is this node well?
  ferromesh observe --verdict DROPPED    What was dropped, and by which policy?
  ferromesh drops                        How much was dropped, why, and what to do?
  ferromesh policy list                  Which policies are in force, which are broken and where?
  ferromesh service list                 What can be called, and who answers?

`ferromesh help VERB` shows examples of each verb.")]
pub(crate) struct Cli {
    /// The agent's socket.
    #[arg(long, global = true, value_name = "PATH", default_value = "/run/ferromesh/agent.sock")]
    socket: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Up(up::Args),
    Down(down::Args),
    Check(check::Args),
    Agent(agent::Args),
    AuthAgent(auth_agent::Args),
    Ca(ca::Args),
    Run(run::Args),
    Status(status::Args),
    Endpoint(endpoint::Args),
    Identity(identity::Args),
    Service(service::Args),
    Policy(policy::Args),
    Auth(auth::Args),
    Proxy(proxy::Args),
    Observe(Box<observe::Args>),
    Drops(drops::Args),
    Monitor(monitor::Args),
    Metrics(metrics::Args),
    Lb(lb::Args),
    Ct(ct::Args),
    Ip(ip::Args),
    Plan(plan::Args),
    Config(config::Args),
    Analyze(analyze::Args),
    Version(version::Args),
    Completions(completions::Args),
}

/// Parses the command line, does what it says, returns the process's exit code.
pub(crate) fn main() -> ExitCode {
    let Cli { socket, verb } = Cli::parse();
    dispatch(&Agent { socket }, verb).unwrap_or_else(|error| error.report())
}

fn dispatch(agent: &Agent, verb: Verb) -> Result<ExitCode, CliError> {
    match verb {
        Verb::Up(args) => wait(up::run(args)),
        Verb::Down(args) => wait(down::run(args)),
        Verb::Check(args) => wait(check::run(args)),
        Verb::Agent(args) => wait(agent::run(args)),
        Verb::AuthAgent(args) => auth_agent::run(args),
        Verb::Ca(args) => ca::run(args),
        Verb::Run(args) => run::run(agent, args),
        Verb::Status(args) => wait(status::run(agent, args)),
        Verb::Endpoint(args) => wait(endpoint::run(agent, args)),
        Verb::Identity(args) => wait(identity::run(agent, args)),
        Verb::Service(args) => wait(service::run(agent, args)),
        Verb::Policy(args) => wait(policy::run(agent, args)),
        Verb::Auth(args) => wait(auth::run(agent, args)),
        Verb::Proxy(args) => proxy::run(agent, args),
        Verb::Observe(args) => wait(observe::run(agent, *args)),
        Verb::Drops(args) => wait(drops::run(agent, args)),
        Verb::Monitor(args) => wait(monitor::run(agent, args)),
        Verb::Metrics(args) => wait(metrics::run(agent, args)),
        Verb::Lb(args) => wait(lb::run(agent, args)),
        Verb::Ct(args) => wait(ct::run(agent, args)),
        Verb::Ip(args) => wait(ip::run(agent, args)),
        Verb::Plan(args) => wait(plan::run(agent, args)),
        Verb::Config(args) => wait(config::run(agent, args)),
        Verb::Analyze(args) => analyze::run(&args),
        Verb::Version(args) => wait(version::run(agent, args)),
        Verb::Completions(args) => completions::run(args),
    }
}

/// Runs a verb that talks to the agent to its end.
fn wait(verb: impl Future<Output = Result<ExitCode, CliError>>) -> Result<ExitCode, CliError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(verb)
}

/// The agent, by its socket.
#[derive(Debug)]
pub(crate) struct Agent {
    socket: PathBuf,
}

impl Agent {
    /// A greeted connection.
    async fn connect(&self) -> Result<Client, ClientError> {
        Client::connect(&self.socket, BUILD).await
    }

    /// One question, one answer.
    async fn ask(&self, request: Request) -> Result<Reply, ClientError> {
        self.connect().await?.ask(&request).await
    }

    /// All rows of an answer that comes in pieces; `piece` knows them from other replies.
    async fn rows<T>(
        &self,
        request: Request,
        piece: impl Fn(Reply) -> Option<Vec<T>>,
    ) -> Result<Vec<T>, CliError> {
        let mut replies = self.connect().await?.stream(&request).await?;
        let mut rows = Vec::new();
        loop {
            match replies.next().await? {
                Reply::Done => return Ok(rows),
                reply => rows.extend(piece(reply).ok_or(CliError::Unexpected)?),
            }
        }
    }
}

/// Why a verb could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error(transparent)]
    Agent(#[from] ClientError),
    /// The answer is not one to this question; only a broken agent does that.
    #[error(
        "the agent answered something else than was asked; restart it, and report this if it happens again"
    )]
    Unexpected,
    /// A verb's own words: what cannot be done and what can.
    #[error("{0}")]
    Failed(String),
    #[error("cannot write the answer as YAML: {0}")]
    Yaml(String),
    #[error("cannot write the answer as JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("cannot write the answer: {0}")]
    Io(#[from] io::Error),
}

impl CliError {
    /// Says it and returns the exit code. A reader that went away has had enough: that is success.
    fn report(&self) -> ExitCode {
        if let Self::Io(error) = self
            && error.kind() == io::ErrorKind::BrokenPipe
        {
            return ExitCode::SUCCESS;
        }
        output::note(&format!("ferromesh: {self}"));
        ExitCode::FAILURE
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_teaches_by_examples() {
        fn visit(command: &clap::Command, path: &str) {
            for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
                let path = format!("{path} {}", verb.get_name());
                let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(verb.get_about().is_some(), "{path} says what it does");
                if verb.has_subcommands() {
                    visit(verb, &path);
                } else {
                    assert!(help.starts_with("Example"), "{path} has examples");
                    assert!(help.contains(&path), "{path} is what the examples show: {help}");
                }
            }
        }
        visit(&Cli::command(), "ferromesh");
    }
}
