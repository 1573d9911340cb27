//! Where the processes that the agent starts keep their things, and as whom they run.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::directories::Directories;

/// Name of the device on which packets wait for a proof.
pub(crate) const HOLD_DEVICE: &str = "fm_hold";

/// A process that the agent starts and that outlives it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Process {
    /// `ferromesh ca`: issues certificates.
    Ca,
    /// `ferromesh auth-agent`: proves workloads to each other.
    AuthAgent,
    /// `ferromesh proxy`: lets requests through as HTTP rules say.
    Proxy,
}

impl Process {
    /// All; who needs another ends first.
    pub(crate) const ALL: [Self; 3] = [Self::Proxy, Self::AuthAgent, Self::Ca];

    /// The verb that starts it.
    pub(crate) fn verb(self) -> &'static str {
        match self {
            Self::Ca => "ca",
            Self::AuthAgent => "auth-agent",
            Self::Proxy => "proxy",
        }
    }

    /// What its directory, its socket and its log are named after.
    fn stem(self) -> &'static str {
        match self {
            Self::Ca => "ca",
            Self::AuthAgent => "auth",
            Self::Proxy => "proxy",
        }
    }

    /// Its user and group: those of this name; where there is no such user, a number that stands for nobody else, so that
    /// nothing need be set up before. Whoever gives that number to somebody gives him the keys.
    pub(crate) fn owner(self) -> linux::Result<(u32, u32)> {
        let (name, number) = match self {
            Self::Ca => ("ferromesh-ca", 64_250),
            Self::AuthAgent => ("ferromesh-auth", 64_251),
            Self::Proxy => ("ferromesh-proxy", 64_252),
        };
        Ok(linux::user::user(name)?.unwrap_or((number, number)))
    }
}

/// Directories and files.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    state: PathBuf,
    run_dir: PathBuf,
}

impl Place {
    pub(crate) fn new(directories: &Directories) -> Self {
        Self { state: directories.state.clone(), run_dir: directories.run_dir.clone() }
    }

    /// What becomes a process's `/`; its own.
    pub(crate) fn directory(&self, process: Process) -> PathBuf {
        self.state.join(process.stem())
    }

    /// The root key of the embedded CA: root's, needed only to make an intermediate.
    pub(crate) fn root(&self) -> PathBuf {
        self.state.join("ca-root")
    }

    /// Where the process takes the agent's word.
    pub(crate) fn socket(&self, process: Process) -> PathBuf {
        self.run_dir.join(process.stem()).with_extension("sock")
    }

    /// Where one of several processes that do the same takes the agent's word.
    pub(crate) fn numbered_socket(&self, process: Process, number: u32) -> PathBuf {
        self.run_dir.join(format!("{}-{number}.sock", process.stem()))
    }

    /// Sockets of that kind that are there.
    pub(crate) fn numbered_sockets(&self, process: Process) -> Vec<PathBuf> {
        let prefix = format!("{}-", process.stem());
        let is_one = |name: &str| {
            let rest = name.strip_prefix(&prefix).and_then(|rest| rest.split_once('.'));
            rest.is_some_and(|(number, kind)| number.parse::<u32>().is_ok() && kind.starts_with("sock"))
        };
        // No directory, no sockets.
        let entries = fs::read_dir(&self.run_dir).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_name().to_str().is_some_and(is_one))
            .map(|entry| entry.path())
            .collect()
    }

    /// What it says.
    pub(crate) fn log(&self, process: Process) -> PathBuf {
        self.run_dir.join(process.stem()).with_extension("log")
    }

    /// What it was started with.
    pub(crate) fn started(&self, process: Process) -> PathBuf {
        self.run_dir.join(process.stem()).with_extension("started")
    }

    /// What the auth-agent was told last of an administrator's `trustBundleFile`.
    pub(crate) fn told_bundle(&self) -> PathBuf {
        self.state.join("trust-bundle.pem")
    }

    /// Makes a process's directory, its owner's alone.
    pub(crate) fn make(&self, process: Process) -> Result<(), String> {
        let (directory, (user, group)) =
            (self.directory(process), process.owner().map_err(|error| error.to_string())?);
        let made = make_private(&directory).and_then(|()| chown(&directory, Some(user), Some(group)));
        made.map_err(|error| format!("directory {}: {error}", directory.display()))
    }

    /// Writes a file into a process's directory, whole, for it to read and remove.
    pub(crate) fn put(&self, process: Process, name: &str, text: &str) -> Result<(), String> {
        let path = self.directory(process).join(name);
        let beside = path.with_extension("new");
        let write = || {
            let (user, group) = process.owner().map_err(io::Error::other)?;
            // Never one that stands there already: its owner might be listening to it.
            remove_file(&beside)?;
            fs::write(&beside, "")?;
            fs::set_permissions(&beside, fs::Permissions::from_mode(0o600))?;
            fs::write(&beside, text)?;
            chown(&beside, Some(user), Some(group))?;
            fs::rename(&beside, &path)
        };
        write().map_err(|error: io::Error| format!("{}: {error}", path.display()))
    }
}

/// A directory of mode 0700, also where there is one of another.
pub(crate) fn make_private(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
}

/// That it is gone already is no error.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
