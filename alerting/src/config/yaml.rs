//! YAML text to a tree in which every value knows its line, column and bytes.
//!
//! Scalars stay as written: the reader knows what a value should be, so nothing is guessed. Size,
//! nesting and the number of values (aliases counted at every use) are bounded. Not here: what keys
//! mean, which is the reader's.

use std::collections::HashMap;
use std::ops::Range;

use granit_parser::{Event, Parser, ScalarStyle, Span};

use super::Problem;

/// Nesting of mappings and lists. A routing tree of 20 levels needs 45.
const DEPTH_MAX: usize = 64;

/// Values in one file, aliases counted as often as they are used. The largest configurations people
/// publish have some ten thousand.
const NODES_MAX: usize = 200_000;

/// Bytes of one file. Ten thousand routes fit.
const TEXT_BYTES_MAX: usize = 4 << 20;

/// A place in the text: line and column from 1, and the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) bytes: Range<usize>,
}

/// A value with its place.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) at: Place,
    pub(super) value: Value,
}

/// What YAML can hold.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Text, and whether it stands without quotes.
    Scalar(String, bool),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A mapping's key.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) text: String,
    pub(super) at: Place,
}

impl Node {
    /// Whether this is YAML's "no value".
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(text, true) if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What a person calls it.
    pub(super) fn noun(&self) -> &'static str {
        match &self.value {
            _ if self.is_null() => "nothing",
            Value::Scalar(..) => "a single value",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

enum Content {
    List(Vec<Node>),
    Map(Vec<(Key, Node)>, Option<Key>),
}

struct Frame {
    at: Place,
    anchor: usize,
    nodes_before: usize,
    content: Content,
}

struct Builder<'a> {
    text: &'a str,
    stack: Vec<Frame>,
    anchors: HashMap<usize, (Node, usize)>,
    root: Option<Node>,
    nodes: usize,
}

fn place(text: &str, span: &Span) -> Place {
    let bytes = span.byte_range().unwrap_or(text.len()..text.len());
    Place { line: span.start.line(), column: span.start.col() + 1, bytes }
}

/// Parses one document. An empty one is nothing.
pub(super) fn parse(text: &str) -> Result<Option<Node>, Problem> {
    let start = Place { line: 1, column: 1, bytes: 0..0 };
    if text.len() > TEXT_BYTES_MAX {
        let message = format!("the file has {} bytes, at most {TEXT_BYTES_MAX} are read", text.len());
        return Err(Problem::error("", &start, message));
    }
    let options = granit_parser::options! {
        emit_comments: false,
        flow_nesting_limit: 4 * DEPTH_MAX,
        block_nesting_limit: 4 * DEPTH_MAX,
    };
    let mut builder = Builder { text, stack: Vec::new(), anchors: HashMap::new(), root: None, nodes: 0 };
    let mut documents = 0;
    for item in Parser::new_from_str_with_options(text, options) {
        let (event, span) = item.map_err(|error| {
            let marker = error.marker();
            let offset = marker.byte_offset().unwrap_or(text.len());
            let at = Place { line: marker.line(), column: marker.col() + 1, bytes: offset..offset };
            Problem::error("", &at, format!("this is not valid YAML: {}", error.kind()))
        })?;
        if matches!(event, Event::DocumentStart(..)) {
            documents += 1;
            if documents > 1 {
                let message = "a second YAML document: expected one, remove the `---` line".to_owned();
                return Err(Problem::error("", &place(text, &span), message));
            }
        }
        builder.event(event, &span)?;
    }
    Ok(builder.root.filter(|root| !root.is_null()))
}

impl Builder<'_> {
    fn event(&mut self, event: Event<'_>, span: &Span) -> Result<(), Problem> {
        let refuse = |at: &Place, message: &str| Err(Problem::error("", at, message.to_owned()));
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let at = place(self.text, span);
                self.count(1, &at)?;
                if let Some(Frame { content: Content::Map(_, key @ None), .. }) = self.stack.last_mut() {
                    *key = Some(Key { text: text.into_owned(), at });
                    return Ok(());
                }
                let node = Node { at, value: Value::Scalar(text.into_owned(), style == ScalarStyle::Plain) };
                if anchor != 0 {
                    self.anchors.insert(anchor, (node.clone(), 1));
                }
                self.add(node)
            }
            Event::SequenceStart(_, anchor, _) => self.open(span, anchor, Content::List(Vec::new())),
            Event::MappingStart(_, anchor, _) => self.open(span, anchor, Content::Map(Vec::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(mut frame) = self.stack.pop() else {
                    return Ok(());
                };
                frame.at.bytes.end = place(self.text, span).bytes.end.max(frame.at.bytes.end);
                let value = match frame.content {
                    Content::List(items) => Value::List(items),
                    Content::Map(entries, _) => Value::Map(entries),
                };
                let node = Node { at: frame.at, value };
                if frame.anchor != 0 {
                    self.anchors.insert(frame.anchor, (node.clone(), self.nodes - frame.nodes_before));
                }
                self.add(node)
            }
            Event::Alias(anchor) => {
                let at = place(self.text, span);
                let Some(size) = self.anchors.get(&anchor).map(|(_, size)| *size) else {
                    return refuse(&at, "an alias inside of the value it names never ends");
                };
                // Counted before it is copied, so that a bomb costs nothing.
                self.count(size, &at)?;
                let node = self.anchors[&anchor].0.clone();
                self.add(node)
            }
            _ => Ok(()),
        }
    }

    fn count(&mut self, added: usize, at: &Place) -> Result<(), Problem> {
        self.nodes += added;
        if self.nodes > NODES_MAX {
            let message = format!("too many values: expected at most {NODES_MAX}, aliases counted at every use");
            return Err(Problem::error("", at, message));
        }
        Ok(())
    }

    fn open(&mut self, span: &Span, anchor: usize, content: Content) -> Result<(), Problem> {
        let at = place(self.text, span);
        if let Some(Frame { content: Content::Map(_, None), .. }) = self.stack.last() {
            return Err(Problem::error("", &at, "a mapping or list is no key: expected plain text".to_owned()));
        }
        if self.stack.len() >= DEPTH_MAX {
            return Err(Problem::error("", &at, format!("nested too deeply: expected at most {DEPTH_MAX} levels")));
        }
        let nodes_before = self.nodes;
        self.count(1, &at)?;
        self.stack.push(Frame { at, anchor, nodes_before, content });
        Ok(())
    }

    fn add(&mut self, node: Node) -> Result<(), Problem> {
        match self.stack.last_mut().map(|frame| &mut frame.content) {
            None => self.root = Some(node),
            Some(Content::List(items)) => items.push(node),
            Some(Content::Map(entries, key)) => match key.take() {
                Some(key) => entries.push((key, node)),
                None => {
                    return Err(Problem::error("", &node.at, "an alias is no key: expected plain text".to_owned()));
                }
            },
        }
        Ok(())
    }
}
