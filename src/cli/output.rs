//! How answers reach a person: formats, colours, writing.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::ValueEnum;
use serde::Serialize;

use super::CliError;

/// Formats of most verbs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// The agent's answer as it is.
    Json,
}

/// `-o`, for the verbs that know text and JSON.
#[derive(Debug, clap::Args)]
pub(crate) struct FormatArg {
    /// How to print the answer.
    #[arg(short, long, value_enum, default_value = "text", value_name = "FORMAT")]
    pub(crate) output: Format,
}

impl FormatArg {
    /// Prints a value in the format that was asked for; `text` renders it for people.
    pub(crate) fn print<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(Paint) -> String,
    ) -> Result<ExitCode, CliError> {
        match self.output {
            Format::Text => write(&text(Paint::for_stdout()))?,
            Format::Json => write(&format!("{}\n", serde_json::to_string_pretty(value)?))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes to standard output at once. Unlike `println!` it returns an error when nobody reads any more.
pub(crate) fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Says something beside the answer. That nobody listens is no error.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", plain(text));
}

/// What a piece of text means, for its colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tone {
    Plain,
    Good,
    Warning,
    Bad,
}

/// Whether to colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Paint(bool);

impl Paint {
    /// No colours.
    #[cfg(test)]
    pub(crate) const NONE: Self = Self(false);

    /// Colours on a terminal that knows them, unless the user set `NO_COLOR` (no-color.org).
    pub(crate) fn for_stdout() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self(io::stdout().is_terminal() && !set("NO_COLOR") && !dumb)
    }

    /// The text in the colour of its tone.
    pub(crate) fn tint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "31",
            Tone::Plain => "",
        };
        if self.0 && !code.is_empty() { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// The text without what could command a terminal: labels and file names come from whoever wrote them.
pub(crate) fn plain(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() && character != '\n' {
            safe.extend(character.escape_default());
        } else {
            safe.push(character);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_command_a_terminal_is_shown_not_sent() {
        assert_eq!(plain("a\u{1b}[2Jb\rc\nd\u{9b}"), "a\\u{1b}[2Jb\\rc\nd\\u{9b}");
    }

    #[test]
    fn tones_have_colours_only_where_asked_for() {
        assert_eq!(Paint(true).tint(Tone::Bad, "False"), "\u{1b}[31mFalse\u{1b}[0m");
        assert_eq!(Paint(true).tint(Tone::Plain, "x"), "x");
        assert_eq!(Paint::NONE.tint(Tone::Bad, "False"), "False");
    }
}
