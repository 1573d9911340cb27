//! Text → documents, each a tree of nodes with their places.

use std::collections::BTreeMap;
use std::rc::Rc;

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};

use super::{Finding, Severity};

/// Deepest nesting; far beyond any policy, well below what a recursive walk can bear.
pub(super) const MAX_DEPTH: usize = 64;
/// Most nodes of one file, aliases counted each time they are used ("billion laughs").
pub(super) const MAX_NODES: usize = 200_000;

/// Line and column of a node, both from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Place {
    /// Line.
    pub(crate) line: usize,
    /// Column.
    pub(crate) column: usize,
}

impl From<&Span> for Place {
    fn from(span: &Span) -> Self {
        Self { line: span.start.line(), column: span.start.col() + 1 }
    }
}

/// A value and where it stands.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Node {
    /// Where it begins.
    pub(crate) place: Place,
    /// What it is.
    pub(crate) value: Value,
}

/// What a node is.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Value {
    /// A scalar; `plain` ones (without quotes) may be numbers, booleans or null.
    Scalar {
        /// After YAML's escapes.
        text: String,
        /// Written without quotes.
        plain: bool,
    },
    /// A sequence.
    List(Vec<Rc<Node>>),
    /// A mapping, in the order written: key, its place, value.
    Mapping(Vec<(String, Place, Rc<Node>)>),
}

/// One YAML document of a file.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    /// Position in the file, from 0; empty documents count.
    pub(crate) position: usize,
    /// Its tree, or why there is none.
    pub(crate) root: Result<Rc<Node>, Finding>,
}

/// The documents of a text that are not empty. A document with a syntax error does not hide those after it.
pub(crate) fn documents(text: &str) -> Vec<Document> {
    let mut parser = Parser::new_from_str(text);
    let mut budget = MAX_NODES;
    let mut found = Vec::new();
    let mut position = 0;
    loop {
        match document(&mut parser, &mut budget) {
            Ok(Step::End) => return found,
            Ok(Step::Empty) => {}
            Ok(Step::Tree(root)) => found.push(Document { position, root: Ok(root) }),
            Err(finding) => {
                found.push(Document { position, root: Err(finding) });
                if budget == 0 || !matches!(parser.proceed_next_document(), Ok(true)) {
                    return found;
                }
            }
        }
        position += 1;
    }
}

enum Step {
    End,
    Empty,
    Tree(Rc<Node>),
}

type Events<'a> = Parser<'a, StrInput<'a>>;

fn document(parser: &mut Events<'_>, budget: &mut usize) -> Result<Step, Finding> {
    let mut builder = Builder { open: Vec::new(), anchors: BTreeMap::new(), root: None, budget };
    loop {
        let Some(event) = parser.next_event() else { return Ok(Step::End) };
        let (event, span) = event.map_err(|error| syntax(&error))?;
        match event {
            Event::StreamEnd => return Ok(Step::End),
            Event::DocumentEnd => break,
            event => builder.take(event, Place::from(&span))?,
        }
    }
    Ok(match builder.root {
        Some(root) if !root.is_null() => Step::Tree(root),
        _ => Step::Empty,
    })
}

fn syntax(error: &ScanError) -> Finding {
    let place = Place { line: error.marker().line(), column: error.marker().col() + 1 };
    // The parser quotes the character it met as it is; a terminal must not.
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    let reason: String = error.info().chars().map(shown).collect();
    problem(place, format!("no valid YAML: {reason}"))
}

fn problem(place: Place, message: String) -> Finding {
    Finding {
        severity: Severity::Error,
        line: place.line,
        column: place.column,
        path: String::new(),
        message,
    }
}

fn too_deep(place: Place) -> Finding {
    problem(place, format!("nested deeper than {MAX_DEPTH} levels"))
}

/// A collection whose end has not been seen.
struct Open {
    place: Place,
    anchor: usize,
    value: Value,
    /// In a mapping: the key whose value comes next.
    key: Option<(String, Place)>,
    /// In a mapping: the keys so far and their lines.
    keys: BTreeMap<String, usize>,
}

struct Builder<'a> {
    open: Vec<Open>,
    anchors: BTreeMap<usize, Rc<Node>>,
    root: Option<Rc<Node>>,
    budget: &'a mut usize,
}

impl Builder<'_> {
    fn take(&mut self, event: Event<'_>, place: Place) -> Result<(), Finding> {
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let plain = style == ScalarStyle::Plain;
                let node = Node { place, value: Value::Scalar { text: text.into_owned(), plain } };
                self.finish(Rc::new(node), anchor)
            }
            Event::SequenceStart(_, anchor, _) => self.begin(Value::List(Vec::new()), place, anchor),
            Event::MappingStart(_, anchor, _) => self.begin(Value::Mapping(Vec::new()), place, anchor),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(open) => {
                    let node = Node { place: open.place, value: open.value };
                    self.finish(Rc::new(node), open.anchor)
                }
                None => Ok(()),
            },
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some(node) => {
                    self.spend(node.size(), place)?;
                    if self.open.len() + node.depth() > MAX_DEPTH {
                        return Err(too_deep(place));
                    }
                    self.finish(node, 0)
                }
                None => Err(problem(place, "alias of an anchor that is not complete here".to_owned())),
            },
            _ => Ok(()),
        }
    }

    fn begin(&mut self, value: Value, place: Place, anchor: usize) -> Result<(), Finding> {
        if self.open.len() >= MAX_DEPTH {
            return Err(too_deep(place));
        }
        self.open.push(Open { place, anchor, value, key: None, keys: BTreeMap::new() });
        Ok(())
    }

    fn spend(&mut self, nodes: usize, place: Place) -> Result<(), Finding> {
        *self.budget = self.budget.saturating_sub(nodes);
        match *self.budget {
            0 => Err(problem(place, format!("more than {MAX_NODES} values in one file"))),
            _ => Ok(()),
        }
    }

    fn finish(&mut self, node: Rc<Node>, anchor: usize) -> Result<(), Finding> {
        self.spend(1, node.place)?;
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        match self.open.last_mut() {
            None => {
                self.root = Some(node);
                Ok(())
            }
            Some(Open { value: Value::List(items), .. }) => {
                items.push(node);
                Ok(())
            }
            Some(Open { value: Value::Mapping(entries), key, keys, .. }) => match key.take() {
                Some((name, place)) => {
                    entries.push((name, place, node));
                    Ok(())
                }
                None => {
                    *key = Some(mapping_key(keys, &node)?);
                    Ok(())
                }
            },
            Some(Open { value: Value::Scalar { .. }, .. }) => Ok(()),
        }
    }
}

fn mapping_key(keys: &mut BTreeMap<String, usize>, node: &Node) -> Result<(String, Place), Finding> {
    let Value::Scalar { text, plain } = &node.value else {
        return Err(problem(node.place, format!("found {} as a key, expected a name", node.kind())));
    };
    if *plain && text == "<<" {
        let message = "merge keys (<<) are not read; write the fields out, or use an alias as a value";
        return Err(problem(node.place, message.to_owned()));
    }
    if let Some(first) = keys.insert(text.clone(), node.place.line) {
        return Err(problem(node.place, format!("{text}: given twice, first on line {first}")));
    }
    Ok((text.clone(), node.place))
}

impl Node {
    /// A plain scalar that means nothing: `null`, `~`, or no text.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What it is, for "found …".
    pub(crate) fn kind(&self) -> String {
        match &self.value {
            _ if self.is_null() => "nothing".to_owned(),
            Value::Scalar { text, .. } => quoted(text),
            Value::List(_) => "a list".to_owned(),
            Value::Mapping(_) => "a mapping".to_owned(),
        }
    }

    fn size(&self) -> usize {
        match &self.value {
            Value::Scalar { .. } => 1,
            Value::List(items) => items.iter().fold(1, |sum, item| sum.saturating_add(item.size())),
            Value::Mapping(entries) => {
                entries.iter().fold(1, |sum, (.., item)| sum.saturating_add(item.size()))
            }
        }
    }

    fn depth(&self) -> usize {
        match &self.value {
            Value::Scalar { .. } => 0,
            Value::List(items) => 1 + items.iter().map(|item| item.depth()).max().unwrap_or(0),
            Value::Mapping(entries) => 1 + entries.iter().map(|(.., item)| item.depth()).max().unwrap_or(0),
        }
    }
}

/// In quotes, escaped, and cut to what fits a line of a report.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((cut, _)) => format!("{:?}…", text.get(..cut).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}
