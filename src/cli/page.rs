//! `docs/cli.md`, made of the definition of the command line, so that the page cannot lag behind it.
//!
//! Not clap-markdown: it prints each option as a paragraph and knows no examples, which is several times as long.

use std::fmt::Write as _;

use clap::{Arg, Command, CommandFactory};

use super::Cli;

const HEAD: &str = "\
# Command line

Made of what `ferromesh help` prints; not written by hand. `FERROMESH_REWRITE_GOLDEN=1 cargo test --bin ferromesh page`
makes it anew. Every verb also takes `--help` and `--socket PATH` (the agent's socket, by default
`/run/ferromesh/agent.sock`). Those that print data print text for people, or with `-o json` the agent's answer as it is.

";

/// The whole page.
fn page() -> String {
    let mut cli = Cli::command();
    cli.build();
    let mut verbs = Vec::new();
    leaves(&cli, &mut verbs);
    let mut page = HEAD.to_owned();
    page.push_str("| verb | |\n|---|---|\n");
    for (name, verb) in &verbs {
        let _ = writeln!(page, "| [`{name}`](#{}) | {} |", anchor(name), about(verb));
    }
    verbs.iter().for_each(|(name, verb)| section(&mut page, name, verb));
    page
}

/// Verbs that do something, by their words.
fn leaves<'a>(command: &'a Command, found: &mut Vec<(String, &'a Command)>) {
    for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help" && !verb.is_hide_set()) {
        if verb.has_subcommands() {
            leaves(verb, found);
        } else {
            let name = verb.get_bin_name().unwrap_or_default().trim_start_matches("ferromesh ");
            found.push((name.to_owned(), verb));
        }
    }
}

fn section(page: &mut String, name: &str, verb: &Command) {
    let usage = verb.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    let about = verb.get_long_about().or(verb.get_about()).map(ToString::to_string).unwrap_or_default();
    let _ = write!(page, "\n## {name}\n\n    {usage}\n\n{}\n", sentence(&about));
    let rows = rows(verb);
    if !rows.is_empty() {
        let _ = write!(page, "\n| option | |\n|---|---|\n{rows}");
    }
    let after = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
    let (examples, notes) = after.split_once("\n\n").unwrap_or((&after, ""));
    page.push('\n');
    for line in examples.lines().skip(1) {
        let _ = writeln!(page, "    {}", line.trim_start());
    }
    if !notes.is_empty() {
        let _ = write!(page, "\n{}\n", notes.replace('<', "&lt;"));
    }
}

/// What is not said of every verb at the top.
fn is_own(argument: &Arg) -> bool {
    let usual = argument.get_id() == "output" && accepted(argument) == ["text", "json"];
    !["help", "version", "socket"].contains(&argument.get_id().as_str()) && !usual && !argument.is_hide_set()
}

/// A row for each option; `--from-X` and `--to-X` stand beside their `--X`.
fn rows(verb: &Command) -> String {
    let own: Vec<_> = verb.get_arguments().filter(|argument| is_own(argument)).collect();
    let has = |name: &str| own.iter().any(|argument| argument.get_long() == Some(name));
    let sides = |name: &str| {
        ["from-", "to-"]
            .map(|side| format!("{side}{name}"))
            .into_iter()
            .filter(|name| has(name))
            .collect::<Vec<_>>()
    };
    let is_side = |name: &str| ["from-", "to-"].iter().filter_map(|side| name.strip_prefix(side)).any(has);
    let shown = own.iter().filter(|argument| !argument.get_long().is_some_and(is_side));
    shown.map(|argument| row(argument, &sides(argument.get_long().unwrap_or("\0")))).collect()
}

fn row(argument: &Arg, sides: &[String]) -> String {
    let flags = [
        argument.get_short().map(|short| format!("-{short}")),
        argument.get_long().map(|long| format!("--{long}")),
    ];
    let flags = flags.into_iter().flatten().collect::<Vec<_>>().join(", ");
    let option = [flags, value(argument)].join(" ");
    let sides: String = sides.iter().map(|side| format!(", `--{side}`")).collect();
    let help = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
    let text = format!("`{}`{sides} | {}{}", cell(option.trim()), cell(&sentence(&help)), values(argument));
    format!("| {text} |\n")
}

/// Names of the values, for what takes any.
fn value(argument: &Arg) -> String {
    let flag = !argument.get_action().takes_values() || argument.get_num_args() == Some(0.into());
    let names = argument.get_value_names().filter(|_| !flag).unwrap_or_default();
    names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" ")
}

/// Text that does not end its cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn accepted(argument: &Arg) -> Vec<String> {
    let values = argument.get_possible_values();
    values.iter().filter(|value| !value.is_hide_set()).map(|value| value.get_name().to_owned()).collect()
}

/// What is accepted, and what it is if nothing is said.
fn values(argument: &Arg) -> String {
    let takes = !value(argument).is_empty();
    let accepted = accepted(argument);
    let mut text = String::new();
    if takes && !accepted.is_empty() && !argument.is_hide_possible_values_set() {
        let _ = write!(text, " `{}`.", accepted.join("`, `"));
    }
    if let ([default], true) = (argument.get_default_values(), takes) {
        let _ = write!(text, " Default `{}`.", default.to_string_lossy());
    }
    text
}

/// The first sentence of what it does.
fn about(verb: &Command) -> String {
    let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
    about.split_once(". ").map_or(about.as_str(), |(first, _)| first).to_owned()
}

/// With a full stop, as clap takes it away.
fn sentence(text: &str) -> String {
    let end = if text.ends_with(['.', '?', ')', ']', '…']) { "" } else { "." };
    format!("{text}{end}").replace('<', "&lt;")
}

/// As web pages of repositories make it from a heading.
fn anchor(name: &str) -> String {
    name.replace(' ', "-")
}

#[test]
fn the_page_is_what_the_command_line_is() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md");
    let page = page();
    if std::env::var_os("FERROMESH_REWRITE_GOLDEN").is_some() {
        std::fs::write(&file, &page).unwrap();
    }
    let hint = "is out of date; FERROMESH_REWRITE_GOLDEN=1 cargo test --bin ferromesh page";
    assert!(std::fs::read_to_string(&file).unwrap_or_default() == page, "{} {hint}", file.display());
}

#[test]
fn every_verb_and_each_of_its_own_options_is_on_the_page() {
    let page = page();
    for expected in [
        "\n## observe\n",
        "\n## policy trace\n",
        "| [`ct list`](#ct-list) |",
        "| `-n, --namespace NAME`, `--from-namespace`, `--to-namespace` |",
        "| `--not` |",
        "| `-t, --type TYPE` | What to show. `drop`, `trace`, `policy-verdict`. |",
        "Default `compact`.",
        "\n    ferromesh drops --by-endpoint",
    ] {
        assert!(page.contains(expected), "{expected}\n{page}");
    }
    assert!(!page.contains("--help |") && !page.contains("`--socket PATH` |"));
}
