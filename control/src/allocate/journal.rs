//! Numbers given since the whole was last written, a line each.
//!
//! Ten thousand label sets take long to write, and a workload that has just got labels of its own waits for it. So new
//! numbers are appended and the whole is written only now and then. Each whole has an epoch, and a journal counts only
//! beside the whole of its own: what is left of an earlier one says nothing.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Stored, StoredNumber};
use ipnet::IpNet;
use mesh::labels::LabelSet;

/// So many lines; then the whole is written again.
const LONGEST: usize = 4096;

/// One line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Line {
    /// The first: the whole that it belongs to.
    Epoch(u64),
    Workload(StoredNumber<LabelSet>),
    Prefix(StoredNumber<IpNet>),
}

/// The file, as far as it is open.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: Option<File>,
    lines: usize,
}

impl Journal {
    /// The journal beside `identities.json`.
    pub(super) fn beside(whole: &Path) -> Self {
        Self { path: whole.with_extension("log"), file: None, lines: 0 }
    }

    /// Adds what it says to the whole; whether it says anything.
    pub(super) fn replay(&self, whole: &mut Stored) -> Result<bool, String> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(format!("{}: {error}", self.path.display())),
        };
        // A power cut may leave a piece of the last line, of numbers that nobody was told.
        let whole_lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        let (mut counts, mut any) = (false, false);
        for (number, line) in whole_lines.enumerate() {
            let line = serde_json::from_str(line)
                .map_err(|error| format!("{}:{}: {error}", self.path.display(), number + 1))?;
            match line {
                Line::Epoch(epoch) => counts = epoch == whole.epoch,
                _ if !counts => return Ok(false),
                Line::Workload(given) => whole.workloads.push(given),
                Line::Prefix(given) => whole.prefixes.push(given),
            }
            any |= number > 0;
        }
        Ok(any)
    }

    /// Whether the whole should be written instead.
    pub(super) fn is_long(&self, more: usize) -> bool {
        self.lines + more > LONGEST
    }

    /// Makes some lines durable.
    pub(super) fn append(&mut self, epoch: u64, lines: &[Line]) -> io::Result<()> {
        let mut bytes = Vec::new();
        let begin = self.file.is_none();
        for line in begin.then_some(&Line::Epoch(epoch)).into_iter().chain(lines) {
            serde_json::to_writer(&mut bytes, line)?;
            bytes.push(b'\n');
        }
        let mut file = match self.file.take() {
            Some(file) => file,
            None => File::create(&self.path)?,
        };
        file.write_all(&bytes)?;
        file.sync_data()?;
        if let (true, Some(directory)) = (begin, self.path.parent()) {
            File::open(directory)?.sync_all()?;
        }
        self.lines += lines.len();
        self.file = Some(file);
        Ok(())
    }

    /// A whole has been written that says it all.
    pub(super) fn end(&mut self) {
        (self.file, self.lines) = (None, 0);
    }
}
