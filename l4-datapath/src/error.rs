//! What can go wrong in the kernel datapath, each as one line for the person who must fix it.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel lacks something we cannot do without.
    #[error("this kernel cannot run the datapath: {capability}: {finding}")]
    Missing {
        /// Row of [`crate::probe::Capabilities`].
        capability: &'static str,
        /// What was found.
        finding: String,
    },
    /// A system call on a path failed.
    #[error("{path}: {operation}: {source}")]
    Path {
        /// The path.
        path: PathBuf,
        /// What was being done.
        operation: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The pin directory is not on a BPF file system.
    #[error(
        "{0}: not on a BPF file system; mount one there (mount -t bpf bpf DIR) or use the default pin root"
    )]
    NotBpffs(PathBuf),
    /// Somebody holds the pin directory.
    #[error("{0}: another ferromesh agent is running with this pin root; stop it first (ferromesh down)")]
    Busy(PathBuf),
    /// Pins of another layout version.
    #[error(
        "{path}: pins of schema {found}, this version speaks schema {expected}; they stay in force untouched: go back \
         to the version that made them, or drop them and every connection with `ferromesh down`"
    )]
    Schema {
        /// Directory of the other version.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// Ours.
        expected: u32,
    },
    /// A pinned map cannot be reused.
    #[error(
        "{path}: pinned map {difference}; it stays in force untouched: restore the map sizes it was made with, or drop \
         it and every connection with `ferromesh down`"
    )]
    IncompatiblePin {
        /// Path of the pin; ends in the map's name.
        path: PathBuf,
        /// What differs.
        difference: maps::Difference,
    },
    /// The object does not load.
    #[error("loading the kernel programs: {0}")]
    Load(#[from] aya::EbpfError),
    /// The object lacks something that this crate wants from it.
    #[error("the kernel object has no {0}: the build is inconsistent")]
    Object(&'static str),
    /// The ring of events has its one reader already.
    #[error("the events of this datapath are being read already; they have one reader")]
    EventsTaken,
    /// A program does not load, attach or run.
    #[error("program {program}: {operation}: {detail}")]
    Program {
        /// Its name in the object.
        program: &'static str,
        /// What was being done, and where.
        operation: String,
        /// The kernel's or verifier's answer.
        detail: String,
    },
    /// The plan does not fit; nothing was written.
    #[error(
        "map {map} holds {capacity} entries and this change needs {needed} ({held} of them held until the switch); the \
         previous state stays in force: enlarge the map or reduce the policies"
    )]
    Full {
        /// Name of the map.
        map: &'static str,
        /// Entries there would be just before the switch.
        needed: u64,
        /// Entries there are now.
        held: u64,
        /// Capacity.
        capacity: u64,
    },
    /// A map operation failed.
    #[error(transparent)]
    Map(#[from] maps::Error),
    /// A setting of the host could not be made.
    #[error(transparent)]
    Host(#[from] linux::Error),
    /// The wait for running programs failed.
    #[error("waiting for running programs to end: {0}")]
    Grace(String),
}

impl Error {
    pub(crate) fn path(
        path: impl Into<PathBuf>,
        operation: &'static str,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Path { path, operation, source }
    }

    pub(crate) fn program<E: std::error::Error>(
        program: &'static str,
        operation: impl Into<String>,
    ) -> impl FnOnce(E) -> Self {
        let operation = operation.into();
        move |error| Self::Program { program, operation, detail: chain(&error) }
    }
}

/// An error and its causes in one line. Of a verifier's log, which has a line for each instruction, the end says why.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    let lines: Vec<&str> = text.lines().collect();
    match lines.as_slice() {
        [first, .., before, last] if lines.len() > 4 => {
            let first: String = first.chars().take(200).collect();
            format!("{first} … {before}; {last}")
        }
        short => short.join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_becomes_one_line_that_ends_with_the_reason() {
        let log = format!("load refused: {}R0 invalid mem access\nprocessed 9 insns", "insn\n".repeat(999));
        let line = chain(&std::io::Error::other(log));
        assert_eq!(line, "load refused: insn … R0 invalid mem access; processed 9 insns");
    }
}
