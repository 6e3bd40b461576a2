//! YAML with places: documents as trees in which every key and value knows its line and column.
//!
//! Scalars stay as written; whoever reads one says what it should be, so `no`, `1M` and `0x10` never
//! turn into something else. Input is hostile until proven otherwise: size, nesting and the number of
//! values (aliases expanded) are bounded, and nothing here recurses. Not here: what a document means.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, Span};

use crate::report::{Findings, Place, one_of, quote, suggestion};

/// Nesting of mappings and lists. OpenSLO needs nine.
const DEPTH_MAX: usize = 64;

/// Values and keys in one file, aliases counted as often as they are used: ten thousand SLOs in one file.
const NODES_MAX: usize = 1_000_000;

/// A long text counts as one more value for so many bytes, so that an alias to it is no bomb either.
const TEXT_BYTES_PER_NODE: usize = 256;

/// A value with its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) at: Place,
    pub(crate) value: Value,
}

/// What YAML can hold.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A scalar as text.
#[derive(Clone, Debug)]
pub(crate) struct Scalar {
    pub(crate) text: String,
    /// Written without quotes, so that an empty text or `null` means "no value".
    pub(crate) plain: bool,
}

/// A mapping's key with its place.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) text: String,
    pub(crate) at: Place,
}

impl Node {
    /// Whether this is YAML's "no value".
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar)
            if scalar.plain && matches!(scalar.text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What a person calls it.
    pub(crate) fn noun(&self) -> &'static str {
        match &self.value {
            _ if self.is_null() => "nothing",
            Value::Scalar(_) => "a single value",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

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
    file: usize,
    stack: Vec<Frame>,
    anchors: HashMap<usize, (Node, usize)>,
    documents: Vec<Node>,
    nodes: usize,
    findings: &'a mut Findings,
}

/// The rest of the file cannot be used; why is among the findings.
struct Stop;

/// The documents of a text, which is file number `file` of the reading; empty documents are left out.
/// What is not YAML is a finding, and what came before it is still returned.
pub(crate) fn parse(file: usize, text: &str, findings: &mut Findings) -> Vec<Node> {
    let options = granit_parser::options! {
        emit_comments: false,
        // The scanner reads ahead of our own limit, which names the reason better; this is its backstop.
        flow_nesting_limit: 4 * DEPTH_MAX,
        block_nesting_limit: 4 * DEPTH_MAX,
    };
    let mut builder =
        Builder { file, stack: Vec::new(), anchors: HashMap::new(), documents: Vec::new(), nodes: 0, findings };
    for item in Parser::new_from_str_with_options(text, options) {
        match item {
            Ok((event, span)) => {
                if builder.event(event, &span).is_err() {
                    break;
                }
            }
            Err(error) => {
                let marker = error.marker();
                let at = Place { file, line: marker.line().max(1), column: marker.col() + 1 };
                builder.findings.add(at, "this is not valid YAML", error.kind().to_string());
                break;
            }
        }
    }
    builder.documents
}

impl Builder<'_> {
    fn place(&self, span: &Span) -> Place {
        Place { file: self.file, line: span.start.line().max(1), column: span.start.col() + 1 }
    }

    fn stop(&mut self, at: Place, message: &str, help: &str) -> Stop {
        self.findings.add(at, message, help);
        Stop
    }

    fn event(&mut self, event: Event<'_>, span: &Span) -> Result<(), Stop> {
        let at = self.place(span);
        match event {
            Event::DocumentStart(..) => self.anchors.clear(),
            Event::Scalar(text, style, anchor, _) => {
                let size = 1 + text.len() / TEXT_BYTES_PER_NODE;
                self.count(size, at)?;
                if let Some(Frame { content: Content::Map(_, key @ None), .. }) = self.stack.last_mut() {
                    *key = Some(Key { text: text.into_owned(), at });
                    return Ok(());
                }
                let scalar = Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain };
                let node = Node { at, value: Value::Scalar(scalar) };
                if anchor != 0 {
                    self.anchors.insert(anchor, (node.clone(), size));
                }
                return self.add(node);
            }
            Event::SequenceStart(_, anchor, _) => return self.open(at, anchor, Content::List(Vec::new())),
            Event::MappingStart(_, anchor, _) => return self.open(at, anchor, Content::Map(Vec::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(frame) = self.stack.pop() else { return Ok(()) };
                let value = match frame.content {
                    Content::List(items) => Value::List(items),
                    Content::Map(entries, _) => Value::Map(entries),
                };
                let node = Node { at: frame.at, value };
                if frame.anchor != 0 {
                    self.anchors.insert(frame.anchor, (node.clone(), self.nodes - frame.nodes_before));
                }
                return self.add(node);
            }
            Event::Alias(anchor) => {
                let Some((node, size)) = self.anchors.get(&anchor) else {
                    return Err(self.stop(at, "an alias inside the value it names", "write the value out"));
                };
                // Counted before it is copied, so that a bomb costs nothing.
                let size = *size;
                let node = (self.nodes + size <= NODES_MAX).then(|| node.clone());
                self.count(size, at)?;
                return node.map_or(Ok(()), |node| self.add(node));
            }
            _ => {}
        }
        Ok(())
    }

    fn count(&mut self, added: usize, at: Place) -> Result<(), Stop> {
        self.nodes += added;
        if self.nodes > NODES_MAX {
            let help = format!("split the file: at most {NODES_MAX} are read, aliases counted at every use");
            return Err(self.stop(at, "too many values in one file", &help));
        }
        Ok(())
    }

    fn open(&mut self, at: Place, anchor: usize, content: Content) -> Result<(), Stop> {
        if let Some(Frame { content: Content::Map(_, None), .. }) = self.stack.last() {
            return Err(self.stop(at, "a mapping or list used as a key", "write a key that is plain text"));
        }
        if self.stack.len() >= DEPTH_MAX {
            return Err(self.stop(at, "nested too deeply", &format!("use at most {DEPTH_MAX} levels")));
        }
        let nodes_before = self.nodes;
        self.count(1, at)?;
        self.stack.push(Frame { at, anchor, nodes_before, content });
        Ok(())
    }

    fn add(&mut self, node: Node) -> Result<(), Stop> {
        match self.stack.last_mut().map(|frame| &mut frame.content) {
            None if node.is_null() => {}
            None => self.documents.push(node),
            Some(Content::List(items)) => items.push(node),
            Some(Content::Map(entries, key)) => match key.take() {
                Some(key) => entries.push((key, node)),
                None => {
                    return Err(self.stop(node.at, "an alias used as a key", "write a key that is plain text"));
                }
            },
        }
        Ok(())
    }
}

/// Reads the fields of one mapping: each at most once, and none that is not asked for.
pub(crate) struct Fields<'a> {
    /// What the mapping is, for messages: `SLO `checkout`` and the like.
    pub(crate) owner: String,
    /// The mapping's place, where a missing field is reported.
    pub(crate) at: Place,
    entries: Vec<(&'a Key, &'a Node, bool)>,
    asked: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// The fields of a node; a finding, and no fields, when it is no mapping.
    pub(crate) fn new(owner: &str, node: &'a Node, findings: &mut Findings) -> Option<Self> {
        let Value::Map(entries) = &node.value else {
            findings.add(node.at, format!("{owner} is {}", node.noun()), "write a mapping of fields");
            return None;
        };
        let mut fields = Self {
            owner: owner.to_owned(),
            at: node.at,
            entries: Vec::with_capacity(entries.len()),
            asked: Vec::new(),
        };
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for (key, value) in entries {
            if let Some(line) = seen.insert(&key.text, key.at.line) {
                let help = format!("remove one of them: the first is on line {line}");
                findings.add(key.at, format!("{} is there twice in {owner}", quote(&key.text)), help);
                continue;
            }
            fields.entries.push((key, value, false));
        }
        Some(fields)
    }

    /// The node of a field; `None` when it is absent or has no value.
    pub(crate) fn node(&mut self, name: &'static str) -> Option<&'a Node> {
        if !self.asked.contains(&name) {
            self.asked.push(name);
        }
        let entry = self.entries.iter_mut().find(|(key, ..)| key.text == name)?;
        entry.2 = true;
        (!entry.1.is_null()).then_some(entry.1)
    }

    /// As [`Fields::node`], and a finding when it is absent.
    pub(crate) fn required(&mut self, name: &'static str, help: &str, findings: &mut Findings) -> Option<&'a Node> {
        let node = self.node(name);
        if node.is_none() {
            findings.add(self.at, format!("{} has no `{name}`", self.owner), help);
        }
        node
    }

    /// A field that is text.
    pub(crate) fn text(&mut self, name: &'static str, findings: &mut Findings) -> Option<(Place, &'a str)> {
        let node = self.node(name)?;
        text_of(name, node, findings)
    }

    /// A field that is text and has to be there.
    pub(crate) fn required_text(
        &mut self,
        name: &'static str,
        help: &str,
        findings: &mut Findings,
    ) -> Option<(Place, &'a str)> {
        let node = self.required(name, help, findings)?;
        text_of(name, node, findings)
    }

    /// A field that is `true` or `false`.
    pub(crate) fn flag(&mut self, name: &'static str, findings: &mut Findings) -> Option<bool> {
        let (at, text) = self.text(name, findings)?;
        match text {
            "true" | "True" | "TRUE" => Some(true),
            "false" | "False" | "FALSE" => Some(false),
            _ => {
                findings.add(at, format!("`{name}` is {}", quote(text)), "write true or false");
                None
            }
        }
    }

    /// A field that is a finite number.
    pub(crate) fn number(&mut self, name: &'static str, findings: &mut Findings) -> Option<(Place, f64)> {
        let (at, text) = self.text(name, findings)?;
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Some((at, number)),
            _ => {
                findings.add(at, format!("`{name}` is {}", quote(text)), "write a number");
                None
            }
        }
    }

    /// A field that is one of a few words; the index of the word.
    pub(crate) fn choice(
        &mut self,
        name: &'static str,
        words: &[&'static str],
        findings: &mut Findings,
    ) -> Option<usize> {
        let (at, text) = self.text(name, findings)?;
        let found = words.iter().position(|word| *word == text);
        if found.is_none() {
            let help = format!("write {}{}", one_of(words), suggestion(text, words));
            findings.add(at, format!("`{name}` is {}", quote(text)), help);
        }
        found
    }

    /// A field that is a list.
    pub(crate) fn list(&mut self, name: &'static str, findings: &mut Findings) -> Option<(Place, &'a [Node])> {
        let node = self.node(name)?;
        match &node.value {
            Value::List(items) => Some((node.at, items)),
            _ => {
                findings.add(node.at, format!("`{name}` is {}", node.noun()), "write a list");
                None
            }
        }
    }

    /// A field that maps names to texts, such as labels.
    pub(crate) fn texts(&mut self, name: &'static str, findings: &mut Findings) -> Vec<(&'a Key, &'a str)> {
        let Some(node) = self.node(name) else { return Vec::new() };
        let Value::Map(entries) = &node.value else {
            findings.add(node.at, format!("`{name}` is {}", node.noun()), "write a mapping of names to texts");
            return Vec::new();
        };
        let mut found: Vec<(&Key, &str)> = Vec::new();
        for (key, value) in entries {
            if found.iter().any(|(other, _)| other.text == key.text) {
                findings.add(key.at, format!("{} is there twice in `{name}`", quote(&key.text)), "remove one of them");
            } else if let Some((_, text)) = text_of(&key.text, value, findings) {
                found.push((key, text));
            }
        }
        found
    }

    /// Every field that was not asked for is a finding.
    pub(crate) fn finish(self, findings: &mut Findings) {
        for (key, _, used) in &self.entries {
            if !used {
                let hint = suggestion(&key.text, &self.asked);
                let help = format!("it has {}{hint}", one_of(&self.asked));
                findings.add(key.at, format!("{} has no field {}", self.owner, quote(&key.text)), help);
            }
        }
    }
}

/// A node as text.
pub(crate) fn text_of<'a>(name: &str, node: &'a Node, findings: &mut Findings) -> Option<(Place, &'a str)> {
    match &node.value {
        Value::Scalar(scalar) => Some((node.at, &scalar.text)),
        _ => {
            findings.add(node.at, format!("{} is {}", quote(name), node.noun()), "write a single value");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<Node>, Vec<String>) {
        let mut findings = Findings::default();
        let documents = parse(0, text, &mut findings);
        let problems = findings.finish(&["f"], ()).err().map(|problems| problems.0).unwrap_or_default();
        (documents, problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn documents_keep_their_places_and_empty_ones_are_left_out() {
        let (documents, problems) = read("---\n---\na: 1\n---\n- x\n-   {b: ~}\n");
        assert_eq!(problems, Vec::<String>::new());
        let lines: Vec<_> = documents.iter().map(|node| (node.at.line, node.at.column)).collect();
        assert_eq!(lines, [(3, 1), (5, 1)]);
        let Value::List(items) = &documents[1].value else { panic!("a list") };
        assert_eq!((items[1].at.line, items[1].at.column), (6, 5));
    }

    #[test]
    fn hostile_input_is_refused_with_its_place() {
        let nested = format!("{}{}", "[".repeat(100), "]".repeat(100));
        let bomb =
            (1..40).fold("a0: &a0 [x, x]\n".to_owned(), |text, n| format!("{text}a{n}: &a{n} [*a{0}, *a{0}]\n", n - 1));
        for (text, want) in [
            ("a: [1", "not valid YAML"),
            ("a: &x [*x]", "alias"),
            ("{a: 1}: 2", "used as a key"),
            (nested.as_str(), "nested too deeply"),
            (bomb.as_str(), "too many values"),
        ] {
            let (_, problems) = read(text);
            assert!(problems.len() == 1 && problems[0].contains(want), "{want}: {problems:?}");
        }
    }

    #[test]
    fn fields_are_each_there_once_and_known() {
        let (documents, _) = read("good: 1\ngood: 2\nbda: 3\nflag: maybe\nlist: 4\nword: gree\nn: 1e400\n");
        let mut findings = Findings::default();
        let mut fields = Fields::new("thing", &documents[0], &mut findings).unwrap();
        assert_eq!(fields.text("good", &mut findings).unwrap().1, "1");
        assert_eq!(fields.text("bad", &mut findings), None);
        assert_eq!(fields.flag("flag", &mut findings), None);
        assert!(fields.list("list", &mut findings).is_none());
        assert_eq!(fields.choice("word", &["green", "red"], &mut findings), None);
        assert_eq!(fields.number("n", &mut findings), None);
        fields.required("must", "write it", &mut findings);
        fields.finish(&mut findings);
        let problems = findings.finish(&["f"], ()).unwrap_err();
        let lines: Vec<_> = problems.0.iter().map(|problem| (problem.line, problem.help.as_str())).collect();
        assert_eq!(
            lines,
            [
                (1, "write it"),
                (2, "remove one of them: the first is on line 1"),
                (3, "it has good, bad, flag, list, word, n or must (did you mean `bad`?)"),
                (4, "write true or false"),
                (5, "write a list"),
                (6, "write green or red (did you mean `green`?)"),
                (7, "write a number"),
            ]
        );
    }
}
