//! References inside values: `${env:NAME}`, `${env:NAME:-default}`, `${file:/path}`, and `$$` for a
//! dollar sign.
//!
//! Expansion works on the parsed tree, scalar by scalar, so that a value can never become YAML
//! structure, and what it brings in is not searched for further references. A variable that is unset
//! or empty takes the default, as in a shell; a file loses its trailing line breaks, which editors add.

use super::Env;
use super::report::{Finding, Place, quote};
use super::yaml::{Node, Scalar, Value};
use std::io::Read;
use std::path::Path;

/// Bytes of one file of a secret. Keys and certificates stay below 16 KiB.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Bytes that references may bring into one configuration, so that a short file cannot repeat a
/// reference until memory is full.
const EXPANDED_BYTES_MAX: usize = 1 << 20;

/// Why a reference has no value: what is wrong, what is expected, what to do.
struct Unresolved {
    message: String,
    expected: &'static str,
    help: Option<String>,
}

impl Unresolved {
    fn new(message: &str, expected: &'static str) -> Self {
        Self { message: message.to_owned(), expected, help: None }
    }
}

/// Expands every value of a tree, whose source is `text`, in place.
pub(super) fn expand_tree(node: &mut Node, text: &str, env: &dyn Env, findings: &mut Vec<Finding>) {
    let mut expander = Expander { text, env, findings, bytes_left: EXPANDED_BYTES_MAX };
    expander.node(node);
}

struct Expander<'a> {
    text: &'a str,
    env: &'a dyn Env,
    findings: &'a mut Vec<Finding>,
    bytes_left: usize,
}

impl Expander<'_> {
    /// Recursion is as deep as the tree, which the parser bounds.
    fn node(&mut self, node: &mut Node) {
        match &mut node.value {
            Value::Scalar(scalar) if scalar.text.contains('$') => self.scalar(scalar, &node.at),
            Value::Scalar(_) => {}
            Value::List(items) => items.iter_mut().for_each(|item| self.node(item)),
            Value::Map(entries) => entries.iter_mut().for_each(|(_, value)| self.node(value)),
        }
    }

    fn scalar(&mut self, scalar: &mut Scalar, at: &Place) {
        let written = std::mem::take(&mut scalar.text);
        let mut rest = written.as_str();
        // Where in the source the search for the next reference begins.
        let mut cursor = at.start;
        while let Some(dollar) = rest.find('$') {
            scalar.text.push_str(&rest[..dollar]);
            rest = &rest[dollar..];
            if let Some(after) = rest.strip_prefix("$$") {
                scalar.text.push('$');
                rest = after;
                continue;
            }
            if !rest.starts_with("${") {
                scalar.text.push('$');
                rest = &rest[1..];
                continue;
            }
            let (reference, after) = match rest.find('}') {
                Some(end) => rest.split_at(end + 1),
                None => (rest, ""),
            };
            let place = self.locate(reference, at, &mut cursor);
            rest = after;
            match self.resolve(reference, scalar) {
                Ok(value) => {
                    scalar.text.push_str(&value);
                    scalar.referenced = true;
                }
                Err(problem) => {
                    scalar.broken = true;
                    let mut finding = Finding::error(place, &problem.message, problem.expected);
                    finding.help = problem.help;
                    self.findings.push(finding);
                }
            }
        }
        scalar.text.push_str(rest);
    }

    /// A reference's own bytes. Where escapes or line folding hide it in the source, the whole scalar's.
    fn locate(&self, reference: &str, at: &Place, cursor: &mut usize) -> Place {
        match self.text.get(*cursor..at.end).and_then(|raw| raw.find(reference)) {
            Some(offset) => {
                let start = *cursor + offset;
                *cursor = start + reference.len();
                Place::new(at.source, start..*cursor)
            }
            None => at.clone(),
        }
    }

    fn resolve(&mut self, reference: &str, scalar: &mut Scalar) -> Result<String, Unresolved> {
        const FORMS: &str = "expected ${env:NAME}, ${env:NAME:-default} or ${file:/path}";
        // Nothing of a malformed reference is quoted: it may be a secret with a dollar sign in it.
        let malformed = |message: &str| Unresolved {
            help: Some("write `$$` for a dollar sign that starts no reference".to_owned()),
            ..Unresolved::new(message, FORMS)
        };
        let Some(body) = reference.strip_prefix("${").and_then(|body| body.strip_suffix('}')) else {
            return Err(malformed("a reference without its closing brace"));
        };
        if body.contains("${") {
            return Err(malformed("a reference inside a reference"));
        }
        let value = if let Some(body) = body.strip_prefix("env:") {
            let (name, default) = match body.split_once(":-") {
                Some((name, default)) => (name, Some(default)),
                None => (body, None),
            };
            if !is_variable_name(name) {
                return Err(malformed("a reference to an environment variable without a proper name"));
            }
            let found = self.env.var(name);
            match (found.filter(|value| !value.is_empty() || default.is_none()), default) {
                (Some(value), _) => value,
                (None, Some(default)) => default.to_owned(),
                (None, None) => {
                    return Err(Unresolved {
                        message: format!("environment variable {} is not set", quote(name)),
                        expected: "expected a variable that is set",
                        help: Some(format!("set it, or give a default: ${{env:{name}:-...}}")),
                    });
                }
            }
        } else if let Some(path) = body.strip_prefix("file:") {
            scalar.files.push(path.to_owned());
            read_file(Path::new(path)).map_err(|(message, expected)| Unresolved::new(&message, expected))?
        } else {
            return Err(malformed("a reference of an unknown kind"));
        };
        match self.bytes_left.checked_sub(value.len()) {
            Some(left) => {
                self.bytes_left = left;
                Ok(value)
            }
            None => Err(Unresolved::new("references bring in too much", "expected at most 1 MiB in one configuration")),
        }
    }
}

fn is_variable_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Reads a file of a secret, without its trailing line breaks. The error names the file and what was
/// expected of it, and never its content.
pub(super) fn read_file(path: &Path) -> Result<String, (String, &'static str)> {
    const EXPECTED: &str = "expected a readable file of text, at most 64 KiB";
    let shown = quote(&path.to_string_lossy());
    let cannot = |error: &std::io::Error| (format!("file {shown} cannot be read: {error}"), EXPECTED);
    // Opening a pipe or a terminal would wait for somebody to write, so ask first.
    let metadata = std::fs::metadata(path).map_err(|error| cannot(&error))?;
    if !metadata.is_file() {
        return Err((format!("{shown} is not a file"), EXPECTED));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| cannot(&error))?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| cannot(&error))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err((format!("file {shown} is larger than 64 KiB"), EXPECTED));
    }
    let text = String::from_utf8(bytes).map_err(|_| (format!("file {shown} is not UTF-8 text"), EXPECTED))?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

/// Whether every user of the machine may read the file. `false` where that cannot be told.
pub(super) fn is_world_readable(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        const OTHERS_READ: u32 = 0o004;
        std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & OTHERS_READ != 0)
    }
    #[cfg(not(unix))]
    {
        let _: &Path = path;
        false
    }
}
