//! YAML text to a tree in which every key and value knows its bytes in the source.
//!
//! The tree keeps scalars as written, without guessing types: the schema knows what a value should
//! be, so `no`, `0x10` and `1e3` never turn into something else on the way. Duplicate keys stay in,
//! for the reader to report them all. Input is hostile until proven otherwise: size, nesting and
//! the number of nodes (aliases expanded) are bounded, and nothing here recurses.

use super::report::{Finding, Place};
use granit_parser::{Event, Parser, ScalarStyle, Span, Tag};
use std::collections::HashMap;

/// Nesting of mappings and lists. The schema needs 5; the rest is for values that are wrong.
const DEPTH_MAX: usize = 32;

/// Values and keys in one file, aliases counted as often as they are used. A generous configuration
/// has a thousand; an alias bomb reaches this at once.
const NODES_MAX: usize = 20_000;

/// A long text counts as one more value for so many bytes, so that an alias to it is no bomb either.
const TEXT_BYTES_PER_NODE: usize = 256;

/// A value with its place.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) at: Place,
    pub(super) value: Value,
}

/// What YAML can hold. The trees are at most [`DEPTH_MAX`] deep.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A scalar as text.
#[derive(Clone, Debug)]
pub(super) struct Scalar {
    pub(super) text: String,
    /// Written without quotes, so that an empty text or `null` means "no value".
    pub(super) plain: bool,
    /// Whether part of the text came from outside the file, and so must not be shown.
    pub(super) referenced: bool,
    /// The files parts of the text were read from.
    pub(super) files: Vec<String>,
    /// A reference in it could not be resolved, which has been reported.
    pub(super) broken: bool,
}

/// A mapping's key with its place.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) text: String,
    pub(super) at: Place,
}

impl Scalar {
    /// A scalar as it stands in the file.
    pub(super) fn new(text: String, plain: bool) -> Self {
        Self { text, plain, referenced: false, files: Vec::new(), broken: false }
    }

    /// Whether this is YAML's "no value".
    pub(super) fn is_null(&self) -> bool {
        self.plain && !self.referenced && matches!(self.text.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }
}

impl Value {
    /// What a person calls it.
    pub(super) fn noun(&self) -> &'static str {
        match self {
            Self::Scalar(scalar) if scalar.is_null() => "nothing",
            Self::Scalar(_) => "a single value",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

/// A mapping or list that is still open.
struct Frame {
    at: Place,
    anchor: usize,
    nodes_before: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map(Vec<(Key, Node)>, Option<Key>),
}

struct Builder<'a> {
    source: usize,
    text: &'a str,
    stack: Vec<Frame>,
    anchors: HashMap<usize, (Node, usize)>,
    root: Option<Node>,
    nodes: usize,
    findings: &'a mut Vec<Finding>,
}

/// Signals that the rest of the document cannot be used; the reason is among the findings.
struct Stop;

/// Parses `text`, which is source number `source` of the report. `None` if it is not usable YAML,
/// with at least one finding saying why; an empty document is an empty mapping.
pub(super) fn parse(source: usize, text: &str, findings: &mut Vec<Finding>) -> Option<Node> {
    let options = granit_parser::options! {
        emit_comments: false,
        // The scanner reads ahead of our own limit, which names the reason better; this is its backstop.
        flow_nesting_limit: 4 * DEPTH_MAX,
        block_nesting_limit: 4 * DEPTH_MAX,
    };
    let mut builder =
        Builder { source, text, stack: Vec::new(), anchors: HashMap::new(), root: None, nodes: 0, findings };
    let mut documents = 0;
    for item in Parser::new_from_str_with_options(text, options) {
        let (event, span) = match item {
            Ok(item) => item,
            Err(error) => {
                let start = error.marker().byte_offset().unwrap_or(text.len());
                let at = Place::new(source, start..start + 1);
                builder.findings.push(Finding::error(at, "this is not valid YAML", &error.kind().to_string()));
                return None;
            }
        };
        if matches!(event, Event::DocumentStart(..)) {
            documents += 1;
            if documents > 1 {
                builder.findings.push(
                    Finding::error(builder.place(&span), "a second YAML document", "expected one document")
                        .help("remove the `---` line"),
                );
                return None;
            }
        }
        if builder.event(event, &span).is_err() {
            return None;
        }
    }
    let empty = Node { at: Place::new(source, 0..0), value: Value::Map(Vec::new()) };
    match builder.root {
        Some(Node { value: Value::Scalar(scalar), .. }) if scalar.is_null() => Some(empty),
        Some(root) => Some(root),
        None => Some(empty),
    }
}

impl Builder<'_> {
    fn place(&self, span: &Span) -> Place {
        let range = span.byte_range().unwrap_or(self.text.len()..self.text.len());
        Place::new(self.source, range)
    }

    fn stop(&mut self, at: Place, message: &str, expected: &str) -> Stop {
        self.findings.push(Finding::error(at, message, expected));
        Stop
    }

    fn event(&mut self, event: Event<'_>, span: &Span) -> Result<(), Stop> {
        let at = self.place(span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let quoted_by_tag = self.tag(tag.as_deref(), span);
                let plain = style == ScalarStyle::Plain && !quoted_by_tag;
                let size = 1 + text.len() / TEXT_BYTES_PER_NODE;
                self.count(size, &at)?;
                if let Some(Frame { content: Content::Map(_, key @ None), .. }) = self.stack.last_mut() {
                    *key = Some(Key { text: text.into_owned(), at });
                    return Ok(());
                }
                let scalar = Scalar::new(text.into_owned(), plain);
                let node = Node { at, value: Value::Scalar(scalar) };
                if anchor != 0 {
                    self.anchors.insert(anchor, (node.clone(), size));
                }
                self.add(node)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.tag(tag.as_deref(), span);
                self.open(at, anchor, Content::List(Vec::new()))
            }
            Event::MappingStart(_, anchor, tag) => {
                self.tag(tag.as_deref(), span);
                self.open(at, anchor, Content::Map(Vec::new(), None))
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(frame) = self.stack.pop() else {
                    return Ok(());
                };
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
                let Some((node, size)) = self.anchors.get(&anchor) else {
                    return Err(self.stop(at, "an alias inside the value it names", "this would never end"));
                };
                // Counted before it is copied, so that a bomb costs nothing.
                let (size, node) = (*size, if self.nodes + size <= NODES_MAX { Some(node.clone()) } else { None });
                self.count(size, &at)?;
                node.map_or(Ok(()), |node| self.add(node))
            }
            _ => Ok(()),
        }
    }

    /// Refuses tags the core schema does not know. Returns whether the tag makes a plain scalar text.
    fn tag(&mut self, tag: Option<&Tag>, span: &Span) -> bool {
        match tag.map(Tag::core_suffix) {
            None => false,
            Some(Some(core)) if matches!(core, "str" | "int" | "float" | "bool" | "null" | "seq" | "map") => {
                core == "str"
            }
            Some(_) => {
                let at = self.place(&span.tag_span().unwrap_or(*span));
                self.findings.push(Finding::error(at, "a YAML tag", "tags are not used here: remove it"));
                false
            }
        }
    }

    fn count(&mut self, added: usize, at: &Place) -> Result<(), Stop> {
        self.nodes += added;
        if self.nodes > NODES_MAX {
            let expected = format!("expected at most {NODES_MAX}, with aliases counted at every use");
            return Err(self.stop(at.clone(), "too many values in one file", &expected));
        }
        Ok(())
    }

    fn open(&mut self, at: Place, anchor: usize, content: Content) -> Result<(), Stop> {
        if let Some(Frame { content: Content::Map(_, None), .. }) = self.stack.last() {
            return Err(self.stop(at, "a mapping or list used as a key", "expected a key that is plain text"));
        }
        if self.stack.len() >= DEPTH_MAX {
            let expected = format!("expected at most {DEPTH_MAX} levels");
            return Err(self.stop(at, "nested too deeply", &expected));
        }
        let nodes_before = self.nodes;
        self.count(1, &at)?;
        self.stack.push(Frame { at, anchor, nodes_before, content });
        Ok(())
    }

    fn add(&mut self, node: Node) -> Result<(), Stop> {
        match self.stack.last_mut().map(|frame| &mut frame.content) {
            None => self.root = Some(node),
            Some(Content::List(items)) => items.push(node),
            Some(Content::Map(entries, key)) => match key.take() {
                Some(key) => entries.push((key, node)),
                None => {
                    return Err(self.stop(node.at, "an alias used as a key", "expected a key that is plain text"));
                }
            },
        }
        Ok(())
    }
}
