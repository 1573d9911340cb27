//! What the verifier thinks of the programs, and what a packet costs.

use aya::{
    EbpfLoader, VerifierLogLevel,
    programs::{Program, ProgramError, ProgramInfo},
};

use super::{
    frame::{ACK, SYN, arp, tcp, udp},
    node::{Context, Node, OBJECT},
    world::{A, B, FAMILIES},
};

const BUDGET: &str = include_str!("../../verifier-budget.txt");

#[test]
fn no_program_takes_more_instructions_to_verify_than_its_budget() {
    let mut bpf = EbpfLoader::new().verifier_log_level(VerifierLogLevel::STATS).load(OBJECT).unwrap();
    let mut budgets = 0;
    for line in BUDGET.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (name, budget) = line.split_once(' ').expect("program and number");
        let budget: u32 = budget.trim().parse().expect("a number");
        let program = bpf.program_mut(name).expect(name);
        let verified = load(program).expect(name).verified_instruction_count().expect("kernel 5.16");
        assert!(
            verified <= budget,
            "{name}: {verified} instructions verified, budget {budget}. If the growth is worth it, write the new \
             number into l4-datapath/verifier-budget.txt"
        );
        budgets += 1;
    }
    assert_eq!(budgets, bpf.programs().count(), "each program has a line in verifier-budget.txt");
}

fn load(program: &mut Program) -> Result<ProgramInfo, ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load()?,
        Program::CgroupSockAddr(program) => program.load()?,
        Program::CgroupSock(program) => program.load()?,
        _ => unreachable!("no other kind of program is ours"),
    }
    program.info()
}

/// Not a test of speed: prints what a packet costs. On a quiet machine:
/// `cargo test -p l4-datapath --test program cost -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_packet() {
    let mut node = Node::new();
    node.allow_all();
    node.set_quota(A, 1_000_000);
    let beyond = Context { ingress_ifindex: 77, ..Context::default() };
    let silence = arp((A.mac, [0xff; 6]), 1, (A.mac, [0; 4]), ([0; 6], [10, 0, 0, 9]));
    let many = |program, context, frame: &[u8]| {
        (0..5).map(|_| node.cost(program, A, context, frame, 1_000_000)).min().unwrap_or_default()
    };
    let single = |frame: &dyn Fn(u16) -> Vec<u8>| {
        let mut costs: Vec<_> = (0..2000).map(|n| node.cost("from_pod", A, beyond, &frame(n), 1)).collect();
        costs.sort_unstable();
        costs[costs.len() / 2]
    };
    // As near to an empty program as there is: node, clock, two headers read.
    println!("repeated: ARP probe       {} ns", many("from_pod", beyond, &silence));
    for family in FAMILIES {
        let (out, back) = (family.from(A, family.peer()), family.to(family.peer(), A));
        let near = family.between(A, B);
        for frame in [tcp(out, (4000, 80), SYN), tcp(near, (4000, 80), SYN)] {
            node.run_from_pod(A, &frame);
        }
        node.run_to_pod(A, &tcp(back, (80, 4000), ACK));
        let (data, reply) = (tcp(out, (4000, 80), ACK), tcp(back, (80, 4000), ACK));
        println!("{family:?} repeated: from_pod     {} ns", many("from_pod", beyond, &data));
        println!("{family:?} repeated: to_pod       {} ns", many("to_pod", beyond, &reply));
        println!("{family:?} single:   established  {} ns", single(&|_| data.clone()));
        println!("{family:?} single:   new          {} ns", single(&|n| udp(out, (5000 + n, 53), b"")));
        println!("{family:?} single:   to a pod     {} ns", single(&|_| tcp(near, (4000, 80), ACK)));
    }
}
