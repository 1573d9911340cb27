//! `bench SUITE`: measures, prints a table and writes `target/bench/SUITE.json`. `make bench-l4`, `make bench-auth`
//! and `make bench-l7` call it. The id of a row begins with its suite.

mod machine;
mod results;

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use conformance::bench::plan::{Plan, Selection};
use conformance::bench::report::{self, Row};
use conformance::bench::{auth, edit_to_live, l7, observe, program, run, socket_lb, tc, verifier};

use machine::Machine;
use results::Results;

const USAGE: &str = "\
usage: bench l4|auth|l7 [OPTION]…
  --only ID       rows with this id, or whose id begins with it: l4.tc, l4.tc.rr; may be given again
  --quick         everything once and short, judging nothing; written to SUITE-quick.json
  --rounds N      rounds of each comparison, at least 5 for a figure that counts (default 7)
  --list          the groups of rows, without measuring
  --markdown      what was measured last, as tables, without measuring
  --fill FILE     the same into a page, between its <!-- begin ID --> and <!-- end -->: docs/performance.md";

/// What can be measured in one go.
const SUITES: [&str; 3] = ["l4", "auth", "l7"];

/// Rows by what they are about, in the order of the report.
const GROUPS: [Group; 17] = [
    Group {
        id: "l4.verifier",
        what: "instructions and stack of each program, against its budget",
        measure: verifier::measure,
    },
    Group {
        id: "l4.program",
        what: "nanoseconds of a packet: test runs, and in place",
        measure: program::measure,
    },
    Group {
        id: "l4.tc",
        what: "two workloads with policy, against routed and direct veth",
        measure: tc::measure,
    },
    Group {
        id: "l4.socket_lb",
        what: "calling a service, against nft, iptables and no service",
        measure: socket_lb::measure,
    },
    Group { id: "l4.observe", what: "observation on, against off", measure: observe::measure },
    Group {
        id: "l4.edit_to_live",
        what: "from a file to the first packet judged anew",
        measure: edit_to_live::measure,
    },
    Group { id: "l4.run", what: "starting workloads, against ip netns by hand", measure: run::measure },
    Group {
        id: "auth.first",
        what: "first connections: unproven, proven ahead, and without authentication",
        measure: auth::first::measure,
    },
    Group {
        id: "auth.steady",
        what: "established connections that depend on a proof, against those that do not",
        measure: auth::steady::measure,
    },
    Group {
        id: "auth.revocation",
        what: "from the withdrawal to the last word that arrives",
        measure: auth::revocation::measure,
    },
    Group {
        id: "l7.rps",
        what: "requests for each second of the proxy's CPU, against Envoy, HAProxy and nginx",
        measure: l7::rps::measure,
    },
    Group { id: "l7.user", what: "user time and instructions of a request", measure: l7::user::measure },
    Group { id: "l7.denied", what: "from a request to its 403", measure: l7::denied::measure },
    Group { id: "l7.rules", what: "a thousand path rules, against one", measure: l7::rules::measure },
    Group {
        id: "l7.memory",
        what: "private memory: idle, many rules, idle connections",
        measure: l7::memory::measure,
    },
    Group {
        id: "l7.edit_to_live",
        what: "from a file to the first request judged anew, under load",
        measure: l7::edit::measure,
    },
    Group { id: "l7.neighbour", what: "a tenant beside one that floods", measure: l7::neighbour::measure },
];

struct Group {
    id: &'static str,
    what: &'static str,
    measure: fn(&Plan) -> Vec<Row>,
}

struct Order {
    suite: &'static str,
    wanted: Wanted,
}

enum Wanted {
    Measure { plan: Plan, only: bool },
    List,
    Markdown,
    Fill(PathBuf),
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Order { suite, wanted } = match order(&arguments) {
        Ok(order) => order,
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let done = match wanted {
        Wanted::Measure { plan, only } => measure(suite, &plan, only),
        Wanted::List => {
            groups(suite).for_each(|group| println!("{:18} {}", group.id, group.what));
            Ok(true)
        }
        Wanted::Markdown => Results::read(&file(suite, false)).map(|results| {
            print!("{}", results.markdown());
            true
        }),
        Wanted::Fill(page) => fill(suite, &page).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn order(arguments: &[String]) -> Result<Order, String> {
    let mut words = arguments.iter().map(String::as_str);
    let name = words.next().unwrap_or_default();
    let suite = SUITES.into_iter().find(|suite| *suite == name).ok_or("which benchmark?")?;
    let order = |wanted| Ok(Order { suite, wanted });
    let (mut only, mut quick, mut rounds) = (Vec::new(), false, None);
    while let Some(word) = words.next() {
        match word {
            "--only" => only.push(words.next().ok_or("--only: of what id?")?),
            "--quick" => quick = true,
            "--rounds" => {
                let number =
                    words.next().and_then(|word| word.parse::<usize>().ok()).filter(|number| *number > 0);
                rounds = Some(number.ok_or("--rounds: how many?")?);
            }
            "--list" => return order(Wanted::List),
            "--markdown" => return order(Wanted::Markdown),
            "--fill" => return order(Wanted::Fill(words.next().ok_or("--fill: which file?")?.into())),
            other => return Err(format!("{other}: unknown")),
        }
    }
    if let Some(id) = only.iter().find(|id| !groups(suite).any(|group| is_within(id, group.id))) {
        return Err(format!("--only {id}: no row of this id; --list tells the groups"));
    }
    let plan = Plan {
        rounds: rounds.unwrap_or(if quick { 1 } else { 7 }),
        seconds_per_run: if quick { 0.03 } else { 0.4 },
        selected: Selection::new(only.iter().copied()),
        quick,
    };
    order(Wanted::Measure { plan, only: !only.is_empty() })
}

fn groups(suite: &str) -> impl Iterator<Item = &'static Group> {
    GROUPS.iter().filter(move |group| is_within(group.id, suite))
}

fn is_within(id: &str, group: &str) -> bool {
    id == group
        || id.strip_prefix(group).is_some_and(|rest| rest.starts_with('.'))
        || group.starts_with(&format!("{id}."))
}

/// Whether everything could be measured. A promise that is not kept is told, not an error.
fn measure(suite: &str, plan: &Plan, only: bool) -> io::Result<bool> {
    let (machine, path) = (Machine::this(), file(suite, plan.quick));
    println!("{machine}");
    let mut results = Results::default();
    if only && path.exists() {
        results = Results::read(&path)?;
    }
    let mut complete = true;
    for group in groups(suite) {
        let begin = Instant::now();
        let Ok(rows) = catch_unwind(AssertUnwindSafe(|| (group.measure)(plan))) else {
            eprintln!("{}: could not be measured, see above", group.id);
            complete = false;
            continue;
        };
        if rows.is_empty() {
            continue;
        }
        report::print(&rows, &mut io::stdout().lock())?;
        eprintln!("{}: {:.0} s", group.id, begin.elapsed().as_secs_f64());
        results.replace(group.id, &plan.selected, &rows, &machine);
        results.write(&path)?;
    }
    println!("written to {}", path.display());
    Ok(complete)
}

fn fill(suite: &str, page: &Path) -> io::Result<()> {
    let results = Results::read(&file(suite, false))?;
    fs::write(page, results.fill(&fs::read_to_string(page)?))
}

/// Beside the directory of the profile.
fn file(suite: &str, quick: bool) -> PathBuf {
    let this = std::env::current_exe().unwrap_or_default();
    let target = this.ancestors().nth(2).map_or_else(|| PathBuf::from("target"), PathBuf::from);
    target.join("bench").join(format!("{suite}{}.json", if quick { "-quick" } else { "" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(words: &str) -> Result<Plan, String> {
        let arguments: Vec<_> = words.split_whitespace().map(str::to_owned).collect();
        match order(&arguments)?.wanted {
            Wanted::Measure { plan, .. } => Ok(plan),
            Wanted::List | Wanted::Markdown | Wanted::Fill(_) => Err("no measurement".to_owned()),
        }
    }

    #[test]
    fn rows_are_chosen_by_id_or_group() {
        let plan = plan("l4 --only l4.tc --only l4.program.new --rounds 9").expect("it is right");
        assert!(plan.selected.wants("l4.tc.rr") && plan.selected.wants("l4.program.new"));
        assert!(!plan.selected.wants("l4.program.established"));
        assert_eq!((plan.rounds, plan.quick), (9, false));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for words in [
            "",
            "l8",
            "l4 --only",
            "auth --only l4.tc",
            "l4 --only l4.nothing",
            "l4 --only l4.tcx",
            "l4 --rounds 0",
            "l4 --fast",
        ] {
            assert!(plan(words).is_err(), "{words}");
        }
    }
}
