//! No program takes more of the verifier than its budget, which is reviewed when it grows. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "what fails here fails the test")]

mod measure;

/// One test, for [`measure::measure`] takes the process's descriptors away.
#[test]
fn no_program_takes_more_of_the_verifier_than_its_budget() {
    let (measured, budgets) = (measure::measure(), measure::budgets());
    let names = |all: &[measure::Verified]| all.iter().map(|one| one.program.clone()).collect::<Vec<_>>();
    assert_eq!(names(&measured), names(&budgets), "each program has a line in verifier-budget.txt");
    for (measured, budget) in measured.iter().zip(&budgets) {
        let within = measured.instructions <= budget.instructions
            && measured.stack <= budget.stack
            && measured.function <= budget.function;
        assert!(
            within,
            "took {measured:?}\nhas  {budget:?}\nIf the growth is worth it, write the new number into \
             l4-datapath/verifier-budget.txt"
        );
    }
}
