//! What this kernel offers, found by trying, never by version: distributions backport.
//!
//! Promise: nothing stays behind; devices are touched only in a network namespace made for the purpose.

use aya::maps::MapType;
use aya::programs::{ProgramType, SchedClassifier, TcAttachType};
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};

use crate::Error;

/// One row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What was looked for.
    pub capability: &'static str,
    /// Whether it works.
    pub works: bool,
    /// Whether we cannot do without it.
    pub required: bool,
    /// What was found, or since which kernel or configuration it would be there.
    pub text: String,
}

/// All rows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Capabilities(pub Vec<Finding>);

impl Capabilities {
    /// The first required capability that is missing, as an error that names it.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub fn check(&self) -> Result<(), Error> {
        match self.0.iter().find(|finding| finding.required && !finding.works) {
            Some(finding) => {
                Err(Error::Missing { capability: finding.capability, finding: finding.text.clone() })
            }
            None => Ok(()),
        }
    }
}

/// Tries everything.
pub fn capabilities() -> Capabilities {
    let mut rows = vec![program(), type_format()];
    rows.extend(MAPS.iter().map(|(capability, kind, hint)| map(capability, *kind, hint)));
    rows.extend(HELPERS.iter().map(|(capability, helper, hint)| self::helper(capability, *helper, hint)));
    rows.extend(hooks());
    rows.push(cgroup2());
    rows.extend(SOCKETS.map(socket_hook));
    rows.push(refusal());
    rows.push(timer());
    rows.push(ending_sockets());
    Capabilities(rows)
}

const MAPS: [(&str, MapType, &str); 4] = [
    ("ring buffer", MapType::RingBuf, "needs Linux 5.8"),
    ("LPM trie", MapType::LpmTrie, "needs Linux 4.11"),
    ("LRU hash", MapType::LruHash, "needs Linux 4.10"),
    ("map of maps", MapType::ArrayOfMaps, "needs Linux 4.12"),
];

const HELPERS: [(&str, BpfHelper, &str); 4] = [
    ("redirect_peer", BpfHelper::BPF_FUNC_redirect_peer, "needs Linux 5.10"),
    ("check_mtu", BpfHelper::BPF_FUNC_check_mtu, "needs Linux 5.12"),
    ("for_each_map_elem", BpfHelper::BPF_FUNC_for_each_map_elem, "needs Linux 5.13"),
    ("boot time clock", BpfHelper::BPF_FUNC_ktime_get_boot_ns, "needs Linux 5.8"),
];

/// Hooks of sockets: each kind of program, by a helper that ours want of it.
const SOCKETS: [(&str, ProgramType, BpfHelper, &str); 2] = [
    (
        "cgroup address hooks",
        ProgramType::CgroupSockAddr,
        BpfHelper::BPF_FUNC_get_netns_cookie,
        "needs Linux 5.8, CONFIG_CGROUP_BPF",
    ),
    (
        "cgroup socket hooks",
        ProgramType::CgroupSock,
        BpfHelper::BPF_FUNC_get_netns_cookie,
        "needs Linux 5.9, CONFIG_CGROUP_BPF",
    ),
];

fn required(capability: &'static str, works: Result<bool, String>, hint: &str) -> Finding {
    let text = match &works {
        Ok(true) => "yes".to_owned(),
        Ok(false) => format!("no: {hint}"),
        Err(error) => format!("cannot tell: {error}"),
    };
    Finding { capability, works: works == Ok(true), required: true, text }
}

fn program() -> Finding {
    let works = is_program_supported(ProgramType::SchedClassifier).map_err(|error| error.to_string());
    required(
        "tc programs",
        works,
        "needs CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF and the right to load programs",
    )
}

fn type_format() -> Finding {
    let found = std::path::Path::new("/sys/kernel/btf/vmlinux").exists();
    required("BTF", Ok(found), "needs CONFIG_DEBUG_INFO_BTF")
}

fn map(capability: &'static str, kind: MapType, hint: &str) -> Finding {
    required(capability, is_map_supported(kind).map_err(|error| error.to_string()), hint)
}

fn helper(capability: &'static str, helper: BpfHelper, hint: &str) -> Finding {
    required(capability, supports(ProgramType::SchedClassifier, helper), hint)
}

fn supports(kind: ProgramType, helper: BpfHelper) -> Result<bool, String> {
    is_helper_supported(kind, helper).map_err(|error| error.to_string())
}

/// Whether a program of a socket's hook can say why the call fails.
pub(crate) fn set_retval() -> bool {
    supports(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval) == Ok(true)
}

fn socket_hook((capability, kind, helper, hint): (&'static str, ProgramType, BpfHelper, &str)) -> Finding {
    required(capability, supports(kind, helper), hint)
}

fn refusal() -> Finding {
    let works = set_retval();
    let text = if works {
        "yes"
    } else {
        "no: needs Linux 6.1; calls to a service without endpoints fail with EPERM (operation not permitted)"
    };
    Finding { capability: "set_retval", works, required: false, text: text.to_owned() }
}

/// Whether a program can set the timer of a connection's first SYN, and knows whose connection it is.
pub(crate) fn syn_timer() -> bool {
    supports(ProgramType::SockOps, BpfHelper::BPF_FUNC_get_netns_cookie) == Ok(true)
}

fn timer() -> Finding {
    let works = syn_timer();
    let text = if works {
        "yes"
    } else {
        "no: needs Linux 5.15, CONFIG_CGROUP_BPF; a connection whose first packet finds no room to wait for its proof \
        opens a second later"
    };
    Finding { capability: "SYN timer", works, required: false, text: text.to_owned() }
}

/// Whether the kernel has tcx: it answers a query for the programs on a device.
pub(crate) fn tcx() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

/// tcx and clsact; one of them is enough.
fn hooks() -> [Finding; 2] {
    let tcx = tcx();
    let clsact = clsact();
    let row = |capability, works: bool, other: bool, text: String| Finding {
        capability,
        works,
        required: !other,
        text,
    };
    let without = "no: needs Linux 6.6; clsact is used";
    let clsact_text = clsact.as_ref().map_or_else(|error| format!("no: {error}"), |()| "yes".to_owned());
    [
        row("tcx", tcx, clsact.is_ok(), if tcx { "yes".to_owned() } else { without.to_owned() }),
        row("clsact", clsact.is_ok(), tcx, clsact_text),
    ]
}

fn clsact() -> Result<(), String> {
    let scratch = linux::scratch::Namespace::new("ferromesh-probe").map_err(|error| error.to_string())?;
    let added = scratch.namespace().inside(|| aya::programs::tc::qdisc_add_clsact("lo"));
    added.map_err(|error| error.to_string())?.map_err(|error| format!("{error} (CONFIG_NET_SCH_INGRESS)"))
}

fn cgroup2() -> Finding {
    let table = linux::mount::table().unwrap_or_default();
    let mount = table.iter().find(|mount| mount.filesystem == "cgroup2");
    let text = mount.map_or_else(
        || "no: mount cgroup2, `ferromesh run` needs it".to_owned(),
        |mount| format!("yes, at {}", mount.path.display()),
    );
    Finding { capability: "cgroup v2", works: mount.is_some(), required: false, text }
}

fn ending_sockets() -> Finding {
    let tried = linux::scratch::Namespace::new("ferromesh-probe")
        .and_then(|scratch| scratch.namespace().inside(|| linux::sock_diag::Diagnosis::open()?.works())?);
    let text = tried.as_ref().map_or_else(
        |error| format!("no: {error}; UDP clients of a backend that is gone notice by themselves"),
        |()| "yes".to_owned(),
    );
    Finding { capability: "ending sockets", works: tried.is_ok(), required: false, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(capability: &'static str, works: bool, required: bool) -> Finding {
        Finding { capability, works, required, text: if works { "yes" } else { "no: needs more" }.to_owned() }
    }

    #[test]
    fn the_missing_capability_is_named_in_one_line() {
        let found = Capabilities(vec![finding("BTF", true, true), finding("ring buffer", false, true)]);
        let line = found.check().unwrap_err().to_string();
        assert_eq!(line, "this kernel cannot run the datapath: ring buffer: no: needs more");
    }

    #[test]
    fn what_is_not_required_may_be_missing() {
        assert!(Capabilities(vec![finding("tcx", false, false)]).check().is_ok());
    }

    #[test]
    fn this_kernel_has_all_that_is_required() {
        let found = capabilities();
        assert!(found.check().is_ok(), "{found:?}");
    }
}
