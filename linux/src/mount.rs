//! The mount table and the calls that change it.
//!
//! Promise: every call acts on the calling process's own mount namespace; whether that is the machine's is for the
//! caller to know.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::error::{Context, Result};

/// A line of the mount table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// Where it is mounted.
    pub path: PathBuf,
    /// File system type: `ext4`, `cgroup2`, `bpf`.
    pub filesystem: String,
}

/// The mount table of the calling process, oldest mount first.
pub fn table() -> Result<Vec<Mount>> {
    let file = "/proc/self/mountinfo";
    let text = fs::read(file).context("read", file)?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(parse_line).collect())
}

/// proc_pid_mountinfo(5): the fifth field is the mount point; after a lone `-` comes the type.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let path = unescape(fields.nth(4)?);
    let filesystem = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount {
        path: PathBuf::from(OsString::from_vec(path)),
        filesystem: String::from_utf8_lossy(filesystem).into_owned(),
    })
}

/// Space, tab, newline and backslash stand as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
                text.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = tail;
            }
            _ => {
                text.push(*first);
                rest = tail;
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optional_fields_and_escapes_are_understood() {
        let line =
            br"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue";
        let mount = Mount { path: PathBuf::from("/mnt 2"), filesystem: "ext3".to_owned() };
        assert_eq!(parse_line(line), Some(mount));
        assert_eq!(parse_line(b""), None);
    }
}
