//! The filters of `observe`, as flags; `--not` turns the next one around, so their order counts.
//!
//! A table instead of a field for each: flag, help and field of the question stand in one row.

use std::ffi::OsStr;

use abi::DropReason;
use clap::builder::{
    PossibleValue, PossibleValuesParser, Str, StringValueParser, TypedValueParser, ValueParser,
};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};
use node_api::{FlowFilter, PeerFilter};
use observe::filter::{DIRECTIONS, PROTOCOLS, TCP_FLAGS, VERDICTS, reason_name};

/// What was asked for, and what is to be left out of that.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Selection {
    pub(super) filter: FlowFilter,
    pub(super) except: Vec<FlowFilter>,
}

/// A filter that looks at one end or both.
struct PeerFlag {
    /// For either end; the others have the prefix of their side.
    name: &'static str,
    short: Option<char>,
    value: &'static str,
    help: &'static str,
    field: fn(&mut PeerFilter) -> &mut Vec<String>,
}

const PEERS: [PeerFlag; 6] = [
    PeerFlag {
        name: "pod",
        short: None,
        value: "POD",
        help: "is this pod: `[namespace/]name-prefix`, or `namespace/`",
        field: |end| &mut end.pods,
    },
    PeerFlag {
        name: "namespace",
        short: Some('n'),
        value: "NAME",
        help: "is in this namespace",
        field: |end| &mut end.namespaces,
    },
    PeerFlag {
        name: "label",
        short: Some('l'),
        value: "LABELS",
        help: "has these labels: `key=value,...`, all of them",
        field: |end| &mut end.labels,
    },
    PeerFlag {
        name: "identity",
        short: None,
        value: "ID|NAME",
        help: "has this identity: a number, or host, world, ...",
        field: |end| &mut end.identities,
    },
    PeerFlag {
        name: "ip",
        short: None,
        value: "IP|PREFIX",
        help: "is this address, or within this prefix",
        field: |end| &mut end.ips,
    },
    PeerFlag { name: "port", short: None, value: "PORT", help: "has this port", field: |end| &mut end.ports },
];

/// A part of the question that says something about one end or either.
type Side = fn(&mut FlowFilter) -> &mut PeerFilter;

/// Prefix of the flags, subject of their help.
const SIDES: [(&str, &str, Side); 3] = [
    ("", "Either end", |filter| &mut filter.either),
    ("from-", "The source", |filter| &mut filter.source),
    ("to-", "The destination", |filter| &mut filter.destination),
];

/// A filter that looks at the packet or its verdict.
struct FlowFlag {
    name: &'static str,
    alias: Option<&'static str>,
    value: &'static str,
    help: &'static str,
    /// What is accepted, or suggested.
    known: fn() -> ValueParser,
    /// Whether help leaves out what is accepted.
    hidden: bool,
    field: fn(&mut FlowFilter) -> &mut Vec<String>,
}

const FLOWS: [FlowFlag; 8] = [
    FlowFlag {
        name: "verdict",
        alias: None,
        value: "VERDICT",
        help: "What became of the packet",
        known: || one_of(&VERDICTS),
        hidden: false,
        field: |filter| &mut filter.verdicts,
    },
    FlowFlag {
        name: "drop-reason",
        alias: Some("drop-reason-desc"),
        value: "REASON",
        help: "Why it was dropped: number, text, or Hubble's name (POLICY_DENIED)",
        known: reasons,
        hidden: true,
        field: |filter| &mut filter.drop_reasons,
    },
    FlowFlag {
        name: "protocol",
        alias: None,
        value: "PROTOCOL",
        help: "IP protocol; icmp is both families, http what the L7 proxy has seen",
        known: || one_of(&PROTOCOLS),
        hidden: false,
        field: |filter| &mut filter.protocols,
    },
    FlowFlag {
        name: "tcp-flags",
        alias: None,
        value: "FLAGS",
        help: "TCP flags that are all set: `SYN,ACK`",
        known: tcp_flags,
        hidden: true,
        field: |filter| &mut filter.tcp_flags,
    },
    FlowFlag {
        name: "traffic-direction",
        alias: None,
        value: "DIRECTION",
        help: "As the endpoint that judged sees it",
        known: || one_of(&DIRECTIONS),
        hidden: false,
        field: |filter| &mut filter.directions,
    },
    FlowFlag {
        name: "http-status",
        alias: None,
        value: "STATUS",
        help: "Status of the answer: `403`, or `4+` for all of a class",
        known: || StringValueParser::new().into(),
        hidden: true,
        field: |filter| &mut filter.http_statuses,
    },
    FlowFlag {
        name: "http-method",
        alias: None,
        value: "METHOD",
        help: "Method of the request",
        known: || StringValueParser::new().into(),
        hidden: true,
        field: |filter| &mut filter.http_methods,
    },
    FlowFlag {
        name: "http-path",
        alias: None,
        value: "REGEX",
        help: "Path of the request, some part of which matches",
        known: || StringValueParser::new().into(),
        hidden: true,
        field: |filter| &mut filter.http_paths,
    },
];

/// The flag that turns the next filter around.
const NOT: &str = "not";

fn one_of<T>(known: &[(&'static str, T)]) -> ValueParser {
    PossibleValuesParser::new(known.iter().map(|(name, _)| *name)).into()
}

/// Any text, with names for a shell to complete; the agent says what it does not understand.
#[derive(Clone)]
struct Suggesting(fn() -> Vec<String>);

impl TypedValueParser for Suggesting {
    type Value = String;

    fn parse_ref(
        &self,
        command: &Command,
        argument: Option<&Arg>,
        value: &OsStr,
    ) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new((self.0)().into_iter().map(PossibleValue::new)))
    }
}

fn reasons() -> ValueParser {
    ValueParser::new(Suggesting(|| DropReason::ALL.iter().map(|reason| reason_name(*reason)).collect()))
}

fn tcp_flags() -> ValueParser {
    ValueParser::new(Suggesting(|| TCP_FLAGS.iter().map(|(name, _)| (*name).to_owned()).collect()))
}

fn arguments() -> Vec<Arg> {
    let mut arguments = vec![
        Arg::new(NOT)
            .long(NOT)
            .action(ArgAction::Append)
            .num_args(0)
            .default_missing_value("true")
            .help("Leave out what the next filter matches")
            .help_heading("Filters"),
    ];
    arguments.extend(FLOWS.iter().map(FlowFlag::argument));
    arguments.extend(
        PEERS.iter().flat_map(|flag| SIDES.iter().map(|(prefix, who, _)| flag.argument(prefix, who))),
    );
    arguments
}

impl FlowFlag {
    fn argument(&self) -> Arg {
        let argument = filter(self.name, self.value, "Filters").help(self.help).value_parser((self.known)());
        match self.alias {
            Some(alias) => argument.visible_alias(alias),
            None => argument,
        }
        .ignore_case(true)
        // Thirty would hide the other flags.
        .hide_possible_values(self.hidden)
    }
}

impl PeerFlag {
    fn argument(&self, prefix: &str, who: &str) -> Arg {
        let name = format!("{prefix}{}", self.name);
        let argument =
            filter(name, self.value, "Filters by who is at an end").help(format!("{who} {}", self.help));
        match self.short {
            Some(short) if prefix.is_empty() => argument.short(short),
            _ => argument,
        }
    }
}

fn filter(name: impl Into<Str>, value: &'static str, heading: &'static str) -> Arg {
    let name = name.into();
    let argument = Arg::new(name.clone()).long(name).value_name(value).help_heading(heading);
    argument.action(ArgAction::Append).num_args(1)
}

impl clap::Args for Selection {
    fn augment_args(command: Command) -> Command {
        command.args(arguments())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Selection {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given: Vec<(usize, Given)> = positions(matches, NOT).map(|at| (at, Given::Not)).collect();
        for flag in FLOWS {
            let values = values(matches, flag.name);
            given.extend(values.map(|(at, value)| (at, Given::Flow(flag.field, value))));
        }
        for flag in PEERS {
            for (prefix, _, side) in SIDES {
                let values = values(matches, &format!("{prefix}{}", flag.name));
                given.extend(values.map(|(at, value)| (at, Given::Peer(side, flag.field, value))));
            }
        }
        given.sort_by_key(|(at, _)| *at);
        Self::of(given.into_iter().map(|(_, given)| given))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// A flag of the command line.
enum Given {
    Not,
    Flow(fn(&mut FlowFilter) -> &mut Vec<String>, String),
    Peer(Side, fn(&mut PeerFilter) -> &mut Vec<String>, String),
}

fn positions<'a>(matches: &'a ArgMatches, name: &str) -> impl Iterator<Item = usize> + use<'a> {
    matches.indices_of(name).into_iter().flatten()
}

fn values<'a>(matches: &'a ArgMatches, name: &str) -> impl Iterator<Item = (usize, String)> + use<'a> {
    let values = matches.get_many::<String>(name).into_iter().flatten().cloned();
    positions(matches, name).zip(values)
}

impl Selection {
    /// In the order in which they were given.
    fn of(given: impl Iterator<Item = Given>) -> Result<Self, clap::Error> {
        let mut selection = Self::default();
        let mut not = false;
        for given in given {
            let mut exception = FlowFilter::default();
            let filter = if not { &mut exception } else { &mut selection.filter };
            match given {
                Given::Not => {
                    not = true;
                    continue;
                }
                Given::Flow(field, value) => field(filter).push(value),
                Given::Peer(side, field, value) => field(side(filter)).push(value),
            }
            if std::mem::take(&mut not) {
                selection.except.push(exception);
            }
        }
        if not {
            let message = "--not: expected a filter after it, as in `--not --port 53`\n";
            return Err(clap::Error::raw(ErrorKind::MissingRequiredArgument, message));
        }
        Ok(selection)
    }
}
