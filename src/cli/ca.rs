//! `ferromesh ca`: the embedded CA's process, which the agent starts, and the rotation of its root.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use certs::ca::SVID_LIFETIME;
use clap::builder::RangedU64ValueParser;

use super::CliError;
use crate::ca::Rotated;

/// Run the embedded CA; the agent does this, with the sockets the process needs. Or rotate its root.
#[derive(Debug, clap::Args)]
#[command(
    hide = true,
    after_help = "\
Examples:
  ferromesh ca --directory /var/lib/ferromesh/ca --user 64250 3<>CONTROL 4<>LISTENER
  sudo ferromesh ca --directory /var/lib/ferromesh/ca --rotate-root /var/lib/ferromesh/ca-root"
)]
pub(super) struct Args {
    /// Its directory, which becomes all it can see
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,
    /// Who it runs as: a user without rights, by name or number
    #[arg(long, value_name = "USER", required_unless_present = "rotate_root")]
    user: Option<String>,
    /// How long what it issues is good, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = SVID_LIFETIME.as_secs(), value_parser = RangedU64ValueParser::<u64>::new().range(1..=86_400))]
    svid_lifetime: u64,
    /// Take the next step towards another root, with the root keys in this directory
    #[arg(long, value_name = "DIR", conflicts_with = "user")]
    rotate_root: Option<PathBuf>,
}

/// Must not be called in a runtime: the process has to have one thread when it gives up its rights.
pub(super) fn run(args: Args) -> Result<ExitCode, CliError> {
    super::agent::log();
    let failed = |error: crate::ca::Failure| CliError::Failed(error.to_string());
    let Args { directory, user, svid_lifetime, rotate_root } = args;
    if let Some(root) = rotate_root {
        let told = match crate::ca::rotate(&directory, &root).map_err(failed)? {
            Rotated::Announced => {
                "a new root is trusted beside the old one; once every node has heard of it (a minute), take the next step"
            }
            Rotated::Switched => {
                "the new root signs; once all older certificates have ended (svidLifetime), take the last step"
            }
            Rotated::Finished => "the new root alone is trusted",
        };
        writeln!(io::stdout(), "{told}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let lifetime = Duration::from_secs(svid_lifetime);
    crate::ca::run(&directory, &user.unwrap_or_default(), lifetime).map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}
