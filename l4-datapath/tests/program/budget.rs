//! What the verifier thinks of the programs, and what a packet costs.

use aya::{EbpfLoader, VerifierLogLevel, programs::SchedClassifier};

use super::{
    frame::{ACK, SYN, tcp, udp},
    node::{A, B, FAMILIES, Node, OBJECT},
};

/// The verifier's limit is 512 bytes along a chain of calls.
const BUDGET: &str = include_str!("../../verifier-budget.txt");

#[test]
fn no_program_takes_more_instructions_to_verify_than_its_budget() {
    let mut bpf = EbpfLoader::new().verifier_log_level(VerifierLogLevel::STATS).load(OBJECT).unwrap();
    let mut budgets = 0;
    for line in BUDGET.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (name, budget) = line.split_once(' ').expect("program and number");
        let budget: u32 = budget.trim().parse().expect("a number");
        let program: &mut SchedClassifier = bpf.program_mut(name).expect(name).try_into().unwrap();
        program.load().unwrap();
        let verified = program.info().unwrap().verified_instruction_count().expect("kernel 5.16");
        assert!(
            verified <= budget,
            "{name}: {verified} instructions verified, budget {budget}. If the growth is worth it, write the new \
             number into l4-datapath/verifier-budget.txt"
        );
        budgets += 1;
    }
    assert_eq!(budgets, bpf.programs().count(), "each program has a line in verifier-budget.txt");
}

/// Not a test of speed: prints what `DESIGN.md` section 7 asks for. `cargo test -p l4-datapath --test program cost --
/// --ignored --nocapture`, on a quiet machine, in the release profile.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_packet() {
    let mut node = Node::new();
    node.allow_all();
    node.set_quota(A, 1_000_000);
    for family in FAMILIES {
        let out = tcp(family.from(A, family.peer()), (4000, 80), SYN);
        node.passes("from_pod", A, &out);
        let data = tcp(family.from(A, family.peer()), (4000, 80), ACK);
        let back = tcp(family.to(family.peer(), A), (80, 4000), ACK);
        node.passes("to_pod", A, &back);
        println!(
            "{family:?} from_pod established {} ns",
            best(|| node.cost("from_pod", A, &data, 1_000_000))
        );
        println!("{family:?} to_pod established {} ns", best(|| node.cost("to_pod", A, &back, 1_000_000)));
        let mut new: Vec<_> = (0..2000)
            .map(|port| {
                node.cost("from_pod", A, &udp(family.from(A, family.peer()), (5000 + port, 53), b""), 1)
            })
            .collect();
        new.sort_unstable();
        println!("{family:?} from_pod new, single runs: median {} ns", new[new.len() / 2]);
        let mut known: Vec<_> = (0..2000).map(|_| node.cost("from_pod", A, &data, 1)).collect();
        known.sort_unstable();
        println!("{family:?} from_pod established, single runs: median {} ns", known[known.len() / 2]);
        node.passes("from_pod", A, &tcp(family.between(A, B), (4000, 80), SYN));
        let mut local: Vec<_> = (0..2000)
            .map(|_| node.cost("from_pod", A, &tcp(family.between(A, B), (4000, 80), ACK), 1))
            .collect();
        local.sort_unstable();
        println!("{family:?} from_pod delivered locally, single runs: median {} ns", local[local.len() / 2]);
    }
}

fn best(run: impl Fn() -> u128) -> u128 {
    (0..5).map(|_| run()).min().unwrap_or_default()
}
