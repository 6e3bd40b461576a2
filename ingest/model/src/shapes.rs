//! The attribute shapes a column has seen, as a tree: how the decoder finds a row's shape without
//! hashing it and without reading its keys again.
//!
//! A node is one attribute behind the attributes before it, so a path from the root is a shape.
//! Instrumentation sends the same keys in the same order, so the child taken last is nearly always
//! the next one, and comparing the bytes of a key with those of a key already checked replaces
//! checking it. The tree is a cache and bounded: a row that leaves it is merely slower.
//!
//! Not here: values, and how a shape is stored ([`crate::attributes`]).

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::attributes::Kind;
use crate::columns::same;
use crate::limits::ATTRIBUTES_MAX;
use crate::wire::{Reader, Run, put_bytes, put_varint};

/// Nodes of a tree. Services have tens of shapes of tens of attributes; a node takes 128 bytes.
const NODES_MAX: usize = 4096;

/// Bytes of all keys of a tree.
const KEY_BYTES_MAX: usize = 128 << 10;

/// Children of a node, since they are tried one by one.
const CHILDREN_MAX: usize = 16;

/// Where a row's shape is in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At(u32);

/// No attribute yet.
pub(crate) const ROOT: At = At(0);

/// Past what the tree holds.
pub(crate) const OUTSIDE: At = At(u32::MAX);

const NO_KEY: i32 = -1;

/// Keys are compared by this many bytes at once where there are as many in view; longer ones in
/// two steps.
const HEAD: usize = 32;

#[derive(Debug)]
struct Node {
    /// The first bytes of the prefix, the rest zero, and which of them count.
    head: [u64; HEAD / 8],
    mask: [u64; HEAD / 8],
    parent: u32,
    depth: u32,
    /// The child that was taken last, and the first of them; 0 when there is none.
    recent_child: u32,
    first_child: u32,
    next_sibling: u32,
    kind: Kind,
    /// The bytes before the value in a `KeyValue` as everyone encodes it: `0x0a length key 0x12`.
    prefix_start: u32,
    prefix_len: u32,
    key_len: u32,
    /// The dictionary key of the shape that ends here, if a row of the batch had it.
    dictionary_key: i32,
    /// The hash of the key and the kind.
    hash: u64,
}

#[inline(always)]
fn words(bytes: &[u8; HEAD]) -> [u64; HEAD / 8] {
    let (words, _rest) = bytes.as_chunks::<8>();
    let word = |index: usize| u64::from_ne_bytes(words[index]);
    [word(0), word(1), word(2), word(3)]
}

/// A value as nearly all are: the only field of its `AnyValue`, which is the last of its
/// `KeyValue`. Text is not checked yet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Plain<'a> {
    String(&'a [u8]),
    Bool(bool),
    Int(i64),
    Double(f64),
}

impl<'a> Plain<'a> {
    /// Reads what follows the key's `0x12`; `None` when it is another kind, anything else than plain,
    /// or damaged.
    fn parse(rest: &'a [u8], kind: Kind) -> Option<Self> {
        let mut reader = Reader::new(rest);
        if reader.varint().ok()? != reader.remaining() as u64 {
            return None;
        }
        let value = match (kind, reader.varint().ok()?) {
            (Kind::String, 0x0a) => Self::String(reader.bytes().ok()?),
            (Kind::Bool, 0x10) => Self::Bool(reader.varint().ok()? != 0),
            (Kind::Int, 0x18) => Self::Int(reader.varint().ok()?.cast_signed()),
            (Kind::Double, 0x21) => Self::Double(f64::from_bits(reader.fixed64().ok()?)),
            _ => return None,
        };
        reader.is_empty().then_some(value)
    }
}

/// The values that are nearly all there are. Text is not checked yet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Usual<'a> {
    Text(Run<'a>),
    Int(i64),
}

/// The tree. Everything in it was checked before it was added.
#[derive(Debug)]
pub(crate) struct Shapes {
    nodes: Vec<Node>,
    prefixes: Vec<u8>,
}

impl Default for Shapes {
    fn default() -> Self {
        let root = Node {
            head: [0; HEAD / 8],
            mask: [0; HEAD / 8],
            parent: 0,
            depth: 0,
            recent_child: 0,
            first_child: 0,
            next_sibling: 0,
            // No plain value is absent, so the root never looks like a child.
            kind: Kind::Absent,
            prefix_start: 0,
            prefix_len: 0,
            key_len: 0,
            dictionary_key: NO_KEY,
            hash: 0,
        };
        Self { nodes: vec![root], prefixes: Vec::new() }
    }
}

impl Shapes {
    /// The child that a `KeyValue` leads to, and its value, when the child taken last fits and the
    /// value is an integer or text of up to 125 bytes: a short cut through [`Shapes::follow`].
    #[inline(always)]
    pub(crate) fn follow_usual<'a>(&self, at: At, key_value: Run<'a>) -> Option<(At, Usual<'a>)> {
        let recent = self.nodes.get(at.0 as usize)?.recent_child;
        let child = self.nodes.get(recent as usize)?;
        let rest = key_value.from(child.prefix_len as usize)?;
        if !self.has_prefix(child, key_value) {
            return None;
        }
        let value = match child.kind {
            Kind::String => {
                let text = rest.from(3)?;
                let length = text.len();
                let usual = length < 126 && rest.chunk() == Some(&[length as u8 + 2, 0x0a, length as u8]);
                if usual { Usual::Text(text) } else { return None }
            }
            Kind::Int => {
                let mut reader = Reader::new(rest.bytes());
                let (length, left) = (reader.varint().ok()?, reader.remaining() as u64);
                let usual = length == left && reader.varint() == Ok(0x18);
                let value = reader.varint().ok()?.cast_signed();
                if usual && reader.is_empty() { Usual::Int(value) } else { return None }
            }
            _ => return None,
        };
        Some((At(recent), value))
    }

    #[inline(always)]
    fn has_prefix(&self, child: &Node, key_value: Run<'_>) -> bool {
        let Some(head) = key_value.chunk::<HEAD>() else {
            return same(&key_value.bytes()[..child.prefix_len as usize], self.prefix(child));
        };
        let head = words(head);
        let differ = (0..HEAD / 8).fold(0, |all, word| all | (head[word] ^ child.head[word]) & child.mask[word]);
        differ == 0
            && (child.prefix_len as usize <= HEAD
                || key_value.bytes()[..child.prefix_len as usize] == *self.prefix(child))
    }

    /// The child that a `KeyValue` leads to, and its value, when the tree knows the key behind this
    /// place and the value is plain.
    pub(crate) fn follow<'a>(&mut self, at: At, key_value: Run<'a>) -> Option<(At, Plain<'a>)> {
        let node = self.nodes.get(at.0 as usize)?;
        if let Some(value) = self.matches(node.recent_child, key_value) {
            return Some((At(node.recent_child), value));
        }
        let mut child = node.first_child;
        while child != 0 {
            if let Some(value) = self.matches(child, key_value) {
                self.nodes[at.0 as usize].recent_child = child;
                return Some((At(child), value));
            }
            child = self.nodes[child as usize].next_sibling;
        }
        None
    }

    #[inline]
    fn matches<'a>(&self, child: u32, key_value: Run<'a>) -> Option<Plain<'a>> {
        let child = &self.nodes[child as usize];
        let rest = key_value.from(child.prefix_len as usize)?;
        if self.has_prefix(child, key_value) { Plain::parse(rest.bytes(), child.kind) } else { None }
    }

    /// The child for a checked key and the kind of its value; it is added when it is new.
    /// `None` when the tree does not take it.
    pub(crate) fn step(&mut self, at: At, key: &str, kind: Kind) -> Option<At> {
        let mut child = self.nodes.get(at.0 as usize)?.first_child;
        let mut children = 0;
        while child != 0 {
            let node = &self.nodes[child as usize];
            if node.kind == kind && self.key(node) == key.as_bytes() {
                self.nodes[at.0 as usize].recent_child = child;
                return Some(At(child));
            }
            children += 1;
            child = node.next_sibling;
        }
        if children == CHILDREN_MAX {
            return None;
        }
        self.add(at, key, kind)
    }

    fn add(&mut self, at: At, key: &str, kind: Kind) -> Option<At> {
        let parent = &self.nodes[at.0 as usize];
        if self.nodes.len() == NODES_MAX
            || self.prefixes.len() + key.len() > KEY_BYTES_MAX
            || parent.depth as usize == ATTRIBUTES_MAX
        {
            return None;
        }
        let (depth, next_sibling) = (parent.depth + 1, parent.first_child);
        let small = |number: usize| u32::try_from(number).expect("KEY_BYTES_MAX and NODES_MAX bound it");
        let prefix_start = self.prefixes.len();
        put_bytes(&mut self.prefixes, 1, key.as_bytes());
        self.prefixes.push(0x12);
        let prefix = &self.prefixes[prefix_start..];
        let (mut head, mut mask) = ([0; HEAD], [0; HEAD]);
        for (index, byte) in prefix.iter().take(HEAD).enumerate() {
            (head[index], mask[index]) = (*byte, u8::MAX);
        }
        let index = small(self.nodes.len());
        self.nodes.push(Node {
            head: words(&head),
            mask: words(&mask),
            parent: at.0,
            depth,
            recent_child: 0,
            first_child: 0,
            next_sibling,
            kind,
            prefix_start: small(prefix_start),
            prefix_len: small(prefix.len()),
            key_len: small(key.len()),
            dictionary_key: NO_KEY,
            hash: hash_key(key, kind),
        });
        let parent = &mut self.nodes[at.0 as usize];
        parent.first_child = index;
        parent.recent_child = index;
        Some(At(index))
    }

    fn prefix(&self, node: &Node) -> &[u8] {
        &self.prefixes[node.prefix_start as usize..][..node.prefix_len as usize]
    }

    fn key(&self, node: &Node) -> &[u8] {
        let end = (node.prefix_start + node.prefix_len) as usize - 1;
        &self.prefixes[end - node.key_len as usize..end]
    }

    /// How many attributes lead here; `None` outside the tree.
    #[inline]
    pub(crate) fn depth(&self, at: At) -> Option<usize> {
        self.nodes.get(at.0 as usize).map(|node| node.depth as usize)
    }

    /// The hash of the key and kind that lead here; 0 outside the tree.
    #[inline]
    pub(crate) fn hash(&self, at: At) -> u64 {
        self.nodes.get(at.0 as usize).map_or(0, |node| node.hash)
    }

    /// The dictionary key of the shape that ends here, if it has one.
    #[inline]
    pub(crate) fn dictionary_key(&self, at: At) -> Option<i32> {
        self.nodes.get(at.0 as usize).map(|node| node.dictionary_key).filter(|key| *key != NO_KEY)
    }

    /// Remembers the dictionary key of the shape that ends here.
    pub(crate) fn set_dictionary_key(&mut self, at: At, key: i32) {
        if let Some(node) = self.nodes.get_mut(at.0 as usize) {
            node.dictionary_key = key;
        }
    }

    /// Appends the shape that ends here: kind and key of every attribute on the way.
    pub(crate) fn write(&self, at: At, out: &mut Vec<u8>) {
        let mut path = Vec::new();
        let mut index = at.0;
        while let Some(node) = self.nodes.get(index as usize).filter(|node| node.depth > 0) {
            path.push(node);
            index = node.parent;
        }
        for node in path.into_iter().rev() {
            write_entry(self.key(node), node.kind, out);
        }
    }

    /// Forgets dictionary keys, which belong to one batch, and a tree that is nearly full of what
    /// may never come again.
    pub(crate) fn end_batch(&mut self) {
        if self.nodes.len() > NODES_MAX / 2 || self.prefixes.len() > KEY_BYTES_MAX / 2 {
            *self = Self::default();
        }
        self.nodes.iter_mut().for_each(|node| node.dictionary_key = NO_KEY);
    }
}

/// Appends one entry of a shape as it is stored.
pub(crate) fn write_entry(key: &[u8], kind: Kind, out: &mut Vec<u8>) {
    out.push(kind as u8);
    put_varint(out, key.len() as u64);
    out.extend_from_slice(key);
}

/// The hash of a key and a kind.
pub(crate) fn hash_key(key: &str, kind: Kind) -> u64 {
    xxh3_64_with_seed(key.as_bytes(), kind as u64)
}
