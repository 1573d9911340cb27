//! What the machine is called.

use nix::unistd::gethostname;

use crate::error::{Error, Result};

/// The host's name, as the kernel has it for the calling process (UTS namespace).
pub fn name() -> Result<String> {
    let unexpected = |found: String| Error::Unexpected {
        object: "host name".to_owned(),
        found,
        expected: "text that `hostname` would print",
    };
    let name = gethostname().map_err(|errno| unexpected(errno.to_string()))?;
    name.into_string().map_err(|name| unexpected(format!("{name:?}")))
}
