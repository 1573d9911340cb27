//! Kernel settings under `/proc/sys`. Those below `net` belong to the calling thread's network namespace.
//!
//! Keys are written with slashes (`net/ipv4/ip_forward`): the dotted form is ambiguous for devices like `eth0.100`.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::error::{Context, Result};

/// The value without its line end.
pub fn get(key: &str) -> Result<String> {
    let value = fs::read_to_string(path(key)).context("read sysctl", key)?;
    Ok(value.trim_end().to_owned())
}

/// Sets it. Returns what it was if that was something else.
pub fn set(key: &str, value: &str) -> Result<Option<String>> {
    let old = get(key)?;
    if old == value {
        return Ok(None);
    }
    fs::write(path(key), value).context("write sysctl", key)?;
    Ok(Some(old))
}

/// Names under a key: devices under `net/ipv4/conf`. Empty where the kernel lacks it.
pub fn list(key: &str) -> Result<Vec<String>> {
    let entries = match fs::read_dir(path(key)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context("list sysctls under", key)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.context("list sysctls under", key)?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

fn path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(key)
}

#[cfg(test)]
mod tests {
    //! Need root: they write settings of a namespace of their own.

    use crate::scratch;

    #[test]
    fn setting_returns_the_old_value_only_where_it_changed() {
        let scratch = scratch::Namespace::new("linux").unwrap();
        let inside = || {
            let key = "net/ipv4/ip_forward";
            super::set(key, "0").unwrap();
            (super::set(key, "1").unwrap(), super::set(key, "1").unwrap())
        };
        assert_eq!(scratch.namespace().inside(inside).unwrap(), (Some("0".to_owned()), None));
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = super::get("net/none").unwrap_err();
        assert_eq!(error.to_string(), "read sysctl net/none: No such file or directory (os error 2)");
    }
}
