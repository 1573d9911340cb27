//! `ferromesh check`: may a node run here, would anything disturb it, is anything left of one.

use std::process::ExitCode;

use control::source::files::Directory;
use endpoint::Host;

use super::CliError;
use crate::directories::Directories;
use crate::teardown::leftovers;

/// Can a node run here, would anything disturb it, is anything left of one?
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo ferromesh check              What this kernel offers and what on this host disturbs
  sudo ferromesh check --clean      After `down`: is anything left?")]
pub(super) struct Args {
    #[command(flatten)]
    directories: Directories,
    /// Only look for what is left of a node on this host; exit code 1 if anything is
    #[arg(long)]
    clean: bool,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, CliError> {
    check(&args).await.map_err(CliError::Failed)
}

/// Prints what was found; the exit code is 1 where a node cannot run, or, with `--clean`, where something is left.
async fn check(args: &Args) -> Result<ExitCode, String> {
    let endpoints = endpoints(&args.directories)?;
    if args.clean {
        let found = leftovers(&args.directories, &endpoints).await.map_err(|error| error.to_string())?;
        found.iter().for_each(|sentence| println!("left: {sentence}"));
        if found.is_empty() {
            println!("clean: nothing of a node is left on this host");
        }
        return Ok(if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let capabilities = l4_datapath::probe::capabilities();
    print!("{capabilities}");
    for sentence in Host::conflicts(&endpoints).await.map_err(|error| error.to_string())? {
        println!("‼ {sentence}");
    }
    capabilities.check().map_err(|error| error.to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// How the endpoints of a node in these directories are made; the defaults where there is no configuration.
pub(super) fn endpoints(directories: &Directories) -> Result<endpoint::Config, String> {
    let world = match Directory::open(&directories.config, &directories.state, None) {
        Ok(source) => source.world(),
        Err(_) => std::sync::Arc::default(),
    };
    directories.endpoints(&world).map_err(|error| error.to_string())
}
