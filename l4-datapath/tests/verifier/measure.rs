//! What the verifier says of each program: instructions walked, stack taken.
//!
//! aya hands out the verifier's log only of a load that failed. So each load is made to fail at its very last step, after
//! the verifier has agreed: the process is left no descriptor to give to the program. Meanwhile no other thread may
//! need one, hence a test program, and an example, of their own.

use std::fs::File;
use std::os::fd::AsRawFd as _;

use aya::programs::{Program, ProgramError};
use aya::{EbpfLoader, VerifierLogLevel};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The compiled programs, as the library embeds them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ferromesh.bpf.o"));
/// How often a load that a signal has interrupted is tried; libbpf tries as often.
const ATTEMPTS: usize = 5;

/// What one program takes, or may take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Verified {
    pub(crate) program: String,
    /// Instructions walked, of a million.
    pub(crate) instructions: u32,
    /// Bytes of stack of the program itself.
    pub(crate) stack: u32,
    /// The most that one of its functions takes. A chain of calls has 512 bytes in all.
    pub(crate) function: u32,
}

/// Has every program verified, in the order of their names.
pub(crate) fn measure() -> Vec<Verified> {
    let mut loader = EbpfLoader::new();
    // What is 0 in the object the verifier would take for a reason not to walk what follows.
    loader.override_global("SYN_TIMEOUT", &2_u32, true).verifier_log_level(VerifierLogLevel::STATS);
    let mut bpf = loader.load(OBJECT).unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let next = File::open("/dev/null").unwrap().as_raw_fd();
    setrlimit(Resource::RLIMIT_NOFILE, next.unsigned_abs().into(), hard).unwrap();
    let mut all: Vec<_> = bpf.programs_mut().map(|(name, program)| one(name, program)).collect();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    all.sort_by(|a, b| a.program.cmp(&b.program));
    all
}

fn one(name: &str, program: &mut Program) -> Verified {
    for _ in 0..ATTEMPTS {
        match load(program).expect_err("no descriptor is left") {
            ProgramError::LoadError { io_error, .. }
                if io_error.raw_os_error() == Some(Errno::EAGAIN as i32) => {}
            ProgramError::LoadError { io_error, verifier_log }
                if io_error.raw_os_error() == Some(Errno::EMFILE as i32) =>
            {
                return read(name, &verifier_log.to_string());
            }
            error => panic!("{name}: {error}"),
        }
    }
    panic!("{name}: interrupted {ATTEMPTS} times");
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::SockOps(program) => program.load(),
        _ => unreachable!("no other kind of program is ours"),
    }
}

/// Reads `stack depth 408+0+120` and `processed 49314 insns (limit 1000000) …`.
fn read(name: &str, log: &str) -> Verified {
    let after = |words: &str| log.lines().find_map(|line| line.strip_prefix(words));
    let (depths, processed) = (after("stack depth "), after("processed "));
    let (Some(depths), Some(processed)) = (depths, processed) else {
        panic!("{name}: no statistics in {log:?}")
    };
    let number =
        |text: &str| text.trim().parse::<u32>().unwrap_or_else(|_| panic!("{name}: {text:?} in {log:?}"));
    let mut depths = depths.split('+').map(number);
    Verified {
        program: name.to_owned(),
        instructions: number(processed.split(' ').next().unwrap_or_default()),
        stack: depths.next().unwrap_or_default(),
        function: depths.max().unwrap_or_default(),
    }
}

/// The budgets of `verifier-budget.txt`, in the order of their names.
pub(crate) fn budgets() -> Vec<Verified> {
    let lines = include_str!("../../verifier-budget.txt").lines();
    let rows = lines.filter(|line| !line.starts_with('#') && !line.is_empty()).map(|line| {
        let [program, instructions, stack, function] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("four columns: {line:?}")
        };
        let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("{text:?} in {line:?}"));
        Verified {
            program: program.to_owned(),
            instructions: number(instructions),
            stack: number(stack),
            function: number(function),
        }
    });
    let mut all: Vec<_> = rows.collect();
    all.sort_by(|a: &Verified, b| a.program.cmp(&b.program));
    all
}
