//! One packet through one program: `BPF_PROG_TEST_RUN` and what it reports.

use std::os::fd::{AsFd as _, AsRawFd as _};

use abi::Event;
use aya::{
    TestRun as _, TestRunOptions,
    maps::{MapData, RingBuf},
    programs::SchedClassifier,
};

/// The compiled programs, as the library embeds them.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ferromesh.bpf.o"));

/// Verdicts of a tc program.
pub(crate) const OK: u32 = 0;
pub(crate) const SHOT: u32 = 2;
pub(crate) const REDIRECT: u32 = 7;

/// What a program did with a frame.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) verdict: u32,
    pub(crate) frame: Vec<u8>,
    pub(crate) mark: u32,
    pub(crate) priority: u32,
}

/// What the context says beside the frame.
#[derive(Clone, Copy, Default)]
pub(crate) struct Context {
    pub(crate) mark: u32,
    pub(crate) ingress_ifindex: u32,
    pub(crate) gso_size: u32,
    pub(crate) priority: u32,
}

/// Runs the program on a device of the caller's network namespace.
pub(crate) fn run(program: &SchedClassifier, ifindex: u32, context: Context, frame: &[u8]) -> Outcome {
    let (mut data, mut out) = (vec![0; frame.len().max(256)], [0; SKB]);
    let input = skb(ifindex, context);
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.data_out = Some(&mut data);
    options.ctx_in = Some(&input);
    options.ctx_out = Some(&mut out);
    let result = program.test_run(options).expect("the kernel runs the program");
    data.truncate(result.data_size_out as usize);
    let field = |at: usize| u32::from_ne_bytes([out[at], out[at + 1], out[at + 2], out[at + 3]]);
    Outcome { verdict: result.return_value, frame: data, mark: field(8), priority: field(32) }
}

/// `union bpf_attr` of `BPF_PROG_TEST_RUN`: aya has no flags for classifiers.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
}

/// Runs the program on a frame that a device has summed up (`CHECKSUM_COMPLETE`): the verdict, if the sum that the
/// program leaves behind is the frame's. Kernel 6.16.
pub(crate) fn run_summed(program: &SchedClassifier, ifindex: u32, frame: &[u8]) -> nix::Result<u32> {
    const BPF_PROG_TEST_RUN: i32 = 10;
    const BPF_F_TEST_SKB_CHECKSUM_COMPLETE: u32 = 1 << 2;
    let context = skb(ifindex, Context { ingress_ifindex: 77, ..Context::default() });
    let mut attributes = TestRun {
        program: program.fd().expect("loaded").as_fd().as_raw_fd().cast_unsigned(),
        data_size_in: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        ctx_size_in: context.len() as u32,
        ctx_in: context.as_ptr() as u64,
        flags: BPF_F_TEST_SKB_CHECKSUM_COMPLETE,
        ..TestRun::default()
    };
    // SAFETY: the attributes are as long as the size says, and all they point at outlives the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attributes, size_of::<TestRun>() as u32)
    };
    nix::errno::Errno::result(result).map(|_| attributes.retval)
}

/// What was reported since the last call.
pub(crate) fn events(ring: &mut RingBuf<MapData>) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(record) = ring.next() {
        assert_eq!(record.len(), size_of::<Event>());
        // SAFETY: the record is an `Event`, written by the programs; any bit pattern is one.
        events.push(unsafe { std::ptr::read_unaligned(record.as_ptr().cast()) });
    }
    events
}

/// `sizeof(struct __sk_buff)`.
const SKB: usize = 192;

/// A `__sk_buff`, by the offsets of its stable layout.
pub(crate) fn skb(ifindex: u32, context: Context) -> [u8; SKB] {
    let mut bytes = [0; SKB];
    let fields = [
        (8, context.mark),
        (32, context.priority),
        (36, context.ingress_ifindex),
        (40, ifindex),
        (176, context.gso_size),
    ];
    for (offset, value) in fields {
        bytes[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
    }
    bytes
}
