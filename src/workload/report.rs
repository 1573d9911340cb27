//! What init tells run, through a pipe: one message, written at once (pipe(7): up to `PIPE_BUF` bytes are not torn).

use std::io::{self, PipeReader, PipeWriter, Read, Write};

use super::Failure;

/// Longest text.
const TEXT: usize = 2048;

/// How it went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Report {
    /// The command could not be run.
    Failed {
        /// For `run` to exit with.
        code: u8,
        /// What went wrong with what.
        text: String,
    },
    /// The command has ended.
    Ended {
        /// Its exit code as shells have it.
        code: u8,
        /// It has left processes.
        inhabited: bool,
    },
}

impl From<Failure> for Report {
    fn from(failure: Failure) -> Self {
        Self::Failed { code: failure.code, text: failure.text }
    }
}

impl Report {
    /// Tells it. Nobody may be left to hear.
    pub(super) fn send(&self, mut pipe: &PipeWriter) {
        let message = match self {
            Self::Failed { code, text } => {
                let text = text.as_bytes();
                [&[0, *code], text.get(..TEXT).unwrap_or(text)].concat()
            }
            Self::Ended { code, inhabited } => vec![if *inhabited { 2 } else { 1 }, *code],
        };
        let _ = pipe.write_all(&message);
    }

    /// Reads it; none if init has ended without one. Of several the first counts.
    pub(super) fn receive(pipe: &mut PipeReader) -> io::Result<Option<Self>> {
        let mut message = [0; TEXT + 2];
        let length = pipe.read(&mut message)?;
        Ok(match message.get(..length) {
            Some([0, code, text @ ..]) => {
                Some(Self::Failed { code: *code, text: String::from_utf8_lossy(text).into_owned() })
            }
            Some([kind, code, ..]) => Some(Self::Ended { code: *code, inhabited: *kind == 2 }),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_arrives_as_it_was_sent() {
        let reports = [
            Report::Failed { code: 125, text: "mount /proc: no".to_owned() },
            Report::Ended { code: 0, inhabited: false },
            Report::Ended { code: 143, inhabited: true },
        ];
        for report in reports {
            let (mut reader, writer) = io::pipe().unwrap();
            report.send(&writer);
            drop(writer);
            assert_eq!(Report::receive(&mut reader).unwrap(), Some(report));
            assert_eq!(Report::receive(&mut reader).unwrap(), None);
        }
    }
}
