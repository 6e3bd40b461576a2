//! Takes values out of a tree by key, and reports what is wrong, missing or unknown with its place.
//!
//! Nothing stops at the first mistake: a value that cannot be used is reported and left out, and the
//! rest is read on. Not here: which keys there are.

use std::ops::Range;
use std::time::Duration;

use super::Problem;
use super::yaml::{Node, Place, Value};
use crate::secret::{Secret, SecretSource};

/// Collects problems and the places of secrets while a tree is read.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pub(super) problems: Vec<Problem>,
    /// Bytes of the text that are secret.
    pub(super) secrets: Vec<Range<usize>>,
}

/// The entries of one mapping, being taken out.
pub(super) struct Fields<'n> {
    pub(super) path: String,
    pub(super) at: &'n Place,
    entries: Vec<(&'n str, &'n Place, &'n Node, bool)>,
    known: Vec<&'static str>,
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

impl Reader {
    pub(super) fn error(&mut self, path: &str, at: &Place, message: impl Into<String>) {
        self.problems.push(Problem::error(path, at, message.into()));
    }

    /// Opens a mapping. Nothing (`key:` alone) is an empty one.
    pub(super) fn fields<'n>(&mut self, node: &'n Node, path: &str) -> Fields<'n> {
        let mut entries: Vec<(&str, &Place, &Node, bool)> = Vec::new();
        match &node.value {
            Value::Map(map) => {
                for (key, value) in map {
                    if entries.iter().any(|(name, ..)| *name == key.text) {
                        self.error(&join(path, &key.text), &key.at, "this key stands here twice");
                    } else {
                        entries.push((&key.text, &key.at, value, false));
                    }
                }
            }
            _ if node.is_null() => {}
            _ => self.error(path, &node.at, format!("expected a mapping, found {}", node.noun())),
        }
        Fields { path: path.to_owned(), at: &node.at, entries, known: Vec::new() }
    }

    /// The items of a list, with their paths.
    pub(super) fn items<'n>(&mut self, node: &'n Node, path: &str) -> Vec<(&'n Node, String)> {
        match &node.value {
            Value::List(items) => {
                items.iter().enumerate().map(|(index, item)| (item, format!("{path}[{index}]"))).collect()
            }
            _ if node.is_null() => Vec::new(),
            _ => {
                self.error(path, &node.at, format!("expected a list, found {}", node.noun()));
                Vec::new()
            }
        }
    }

    /// A single value as text.
    pub(super) fn text(&mut self, node: &Node, path: &str) -> Option<String> {
        match &node.value {
            Value::Scalar(text, _) => Some(text.clone()),
            _ => {
                self.error(path, &node.at, format!("expected a text, found {}", node.noun()));
                None
            }
        }
    }
}

impl<'n> Fields<'n> {
    /// The path of one of the keys.
    pub(super) fn path_of(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// Takes a value that is there and not nothing.
    pub(super) fn take(&mut self, key: &'static str) -> Option<&'n Node> {
        self.known.push(key);
        let entry = self.entries.iter_mut().find(|(name, ..)| *name == key)?;
        entry.3 = true;
        (!entry.2.is_null()).then_some(entry.2)
    }

    pub(super) fn text(&mut self, reader: &mut Reader, key: &'static str) -> Option<String> {
        let node = self.take(key)?;
        reader.text(node, &self.path_of(key))
    }

    /// A text that must be there.
    pub(super) fn required(&mut self, reader: &mut Reader, key: &'static str) -> Option<String> {
        let text = self.text(reader, key).filter(|text| !text.is_empty());
        if text.is_none() {
            reader.error(&self.path, self.at, format!("`{key}` is missing"));
        }
        text
    }

    /// A text that must not be shown, or `KEY_file`, the file that holds it.
    pub(super) fn secret(
        &mut self,
        reader: &mut Reader,
        key: &'static str,
        file_key: &'static str,
    ) -> Option<SecretSource> {
        let inline = self.take(key).and_then(|node| {
            reader.secrets.push(node.at.bytes.clone());
            Some((reader.text(node, &self.path_of(key))?, node))
        });
        let file = if file_key.is_empty() { None } else { self.take(file_key) };
        match (inline, file) {
            (Some(_), Some(file)) => {
                let message = format!("`{key}` and `{file_key}` exclude each other");
                reader.error(&self.path_of(file_key), &file.at, message);
                None
            }
            (Some((text, _)), None) => Some(SecretSource::Inline(Secret::new(text))),
            (None, Some(file)) => {
                reader.text(file, &self.path_of(file_key)).map(|path| SecretSource::File(path.into()))
            }
            (None, None) => None,
        }
    }

    pub(super) fn flag(&mut self, reader: &mut Reader, key: &'static str) -> Option<bool> {
        let node = self.take(key)?;
        let text = reader.text(node, &self.path_of(key))?;
        match text.as_str() {
            "true" | "True" | "TRUE" | "yes" | "on" => Some(true),
            "false" | "False" | "FALSE" | "no" | "off" => Some(false),
            _ => {
                reader.error(&self.path_of(key), &node.at, "expected true or false");
                None
            }
        }
    }

    pub(super) fn number(&mut self, reader: &mut Reader, key: &'static str) -> Option<u64> {
        let node = self.take(key)?;
        let text = reader.text(node, &self.path_of(key))?;
        let number = text.parse().ok();
        if number.is_none() {
            reader.error(&self.path_of(key), &node.at, "expected a whole number");
        }
        number
    }

    pub(super) fn duration(&mut self, reader: &mut Reader, key: &'static str) -> Option<Duration> {
        let node = self.take(key)?;
        let text = reader.text(node, &self.path_of(key))?;
        let duration = super::parse_duration(&text);
        if duration.is_none() {
            let message = "expected a duration such as 30s, 5m, 1h30m or 4d";
            reader.error(&self.path_of(key), &node.at, message);
        }
        duration
    }

    /// A list of texts; a single text is a list of one where Alertmanager takes it so.
    pub(super) fn texts(&mut self, reader: &mut Reader, key: &'static str) -> Vec<String> {
        let Some(node) = self.take(key) else {
            return Vec::new();
        };
        let items = reader.items(node, &self.path_of(key));
        items.into_iter().filter_map(|(item, path)| reader.text(item, &path)).collect()
    }

    /// A mapping of texts to texts.
    pub(super) fn pairs(&mut self, reader: &mut Reader, key: &'static str) -> Vec<(String, String)> {
        let Some(node) = self.take(key) else {
            return Vec::new();
        };
        let path = self.path_of(key);
        let mut fields = reader.fields(node, &path);
        let entries = std::mem::take(&mut fields.entries);
        entries
            .into_iter()
            .filter_map(|(name, _, value, _)| Some((name.to_owned(), reader.text(value, &join(&path, name))?)))
            .collect()
    }

    /// The list of things under a key, each read by `read`.
    pub(super) fn list<T>(
        &mut self,
        reader: &mut Reader,
        key: &'static str,
        mut read: impl FnMut(&mut Reader, &'n Node, &str) -> Option<T>,
    ) -> Vec<T> {
        let Some(node) = self.take(key) else {
            return Vec::new();
        };
        let items = reader.items(node, &self.path_of(key));
        items.into_iter().filter_map(|(item, path)| read(reader, item, &path)).collect()
    }

    /// Says that these keys may be there, and that nothing is made of them; returns those that are.
    pub(super) fn ignored(&mut self, keys: &[&'static str]) -> Vec<(&'static str, &'n Place)> {
        let mut found = Vec::new();
        for key in keys {
            self.known.push(key);
            if let Some(entry) = self.entries.iter_mut().find(|(name, ..)| name == key) {
                entry.3 = true;
                found.push((*key, entry.1));
            }
        }
        found
    }

    /// Reports the keys nobody took.
    pub(super) fn finish(self, reader: &mut Reader) {
        for (name, at, _, taken) in &self.entries {
            if !taken {
                let help =
                    closest(name, &self.known).map_or(String::new(), |known| format!(", did you mean `{known}`?"));
                reader.error(&join(&self.path, name), at, format!("unknown key `{}`{help}", shorten(name)));
            }
        }
    }
}

/// Characters of an unknown key that are shown.
const KEY_CHARS_MAX: usize = 60;

fn shorten(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(KEY_CHARS_MAX).collect()
}

/// The known key closest to an unknown one, if at most a third of it is wrong.
fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word = word.to_ascii_lowercase().replace('-', "_");
    if word.len() > KEY_CHARS_MAX {
        return None;
    }
    known
        .iter()
        .map(|candidate| (distance(&word, candidate), *candidate))
        .filter(|(cost, candidate)| *cost <= (candidate.len() / 3).max(1))
        .min()
        .map(|(_, candidate)| candidate)
}

/// How many insertions, deletions and replacements turn `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
