//! `ferromesh identity`: which number stands for which labels.

use std::process::ExitCode;

use node_api::{IdentityView, Reply, Request};

use super::output::{FormatArg, Paint};
use super::table::table;
use super::{Agent, CliError};

/// Show security identities: which number stands for which labels.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List all identities known on this node.
    #[command(after_help = "\
Examples:
  ferromesh identity list
  ferromesh identity list -o json | jq '.[] | select(.labels[] == \"k8s:org=empire\") | .identity'")]
    List {
        #[command(flatten)]
        format: FormatArg,
    },
    /// Show one identity.
    #[command(after_help = "\
Examples:
  ferromesh identity get 13058     The number behind `ID:` in `ferromesh observe`
  ferromesh identity get world     A reserved one by its name")]
    Get {
        /// Number, or name of a reserved identity.
        #[arg(value_name = "ID|NAME")]
        which: String,
        #[command(flatten)]
        format: FormatArg,
    },
}

pub(crate) async fn run(agent: &Agent, args: Args) -> Result<ExitCode, CliError> {
    let Reply::Identities(identities) = agent.ask(Request::Identities).await? else {
        return Err(CliError::Unexpected);
    };
    match args.verb {
        Verb::List { format } => format.print(&identities, |paint| list(&identities, paint)),
        Verb::Get { which, format } => {
            let view = find(&identities, &which)?;
            format.print(view, |paint| list(std::slice::from_ref(view), paint))
        }
    }
}

fn find<'a>(identities: &'a [IdentityView], which: &str) -> Result<&'a IdentityView, CliError> {
    let fits = |view: &&IdentityView| {
        let identity = view.identity;
        identity.to_string() == which || identity.number().to_string() == which
    };
    identities.iter().find(fits).ok_or_else(|| {
        CliError::Failed(format!("identity {which:?}: not known on this node; see `ferromesh identity list`"))
    })
}

fn list(identities: &[IdentityView], paint: Paint) -> String {
    let row = |view: &IdentityView| {
        let ids: Vec<_> = view.spiffe_ids.iter().map(ToString::to_string).collect();
        [
            view.identity.number().into(),
            view.labels.to_string().replace(',', "\n").into(),
            ids.join("\n").into(),
        ]
    };
    table(["ID", "LABELS", "SPIFFE ID"], identities.iter().map(row).collect(), paint)
}

#[cfg(test)]
mod tests {
    use super::super::golden::{self, golden};
    use super::*;

    #[test]
    fn identities_are_listed_with_a_label_a_line() {
        golden("identity-list", &list(&golden::identities(), Paint::NONE));
        golden("identity-list.json", &serde_json::to_string_pretty(&golden::identities()).unwrap());
    }

    #[test]
    fn an_identity_is_found_by_number_or_reserved_name() {
        for (which, expected) in [("17839", 17_839), ("world", 2), ("2", 2)] {
            assert_eq!(find(&golden::identities(), which).unwrap().identity.number(), expected, "{which}");
        }
        assert_eq!(
            find(&golden::identities(), "yoda").unwrap_err().to_string(),
            "identity \"yoda\": not known on this node; see `ferromesh identity list`"
        );
    }
}
