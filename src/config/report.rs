//! What is wrong, where, and how it is shown: `file:line:column`, the source line and a caret.
//!
//! Two steps keep secrets out. Whoever finds a problem writes a [`Finding`], which only points into a
//! [`Source`]; turning it into a [`Diagnostic`] copies the line with every secret in it masked. The
//! text of messages is the finder's duty: it must not quote what came from a reference or from `auth`.

use super::mask;
use super::secret::MASK;
use std::fmt;
use std::ops::Range;

/// Diagnostics reported at once. A file with more is not a configuration with mistakes in it but some
/// other file, and a screenful says so as well as a megabyte.
pub(super) const DIAGNOSTICS_MAX: usize = 100;

/// Characters of a source line that are shown, around the caret.
const LINE_CHARS_MAX: usize = 120;

/// Characters of a quoted value.
const QUOTE_CHARS_MAX: usize = 60;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can be used, and somebody should look.
    Warning,
}

/// One problem, ready to be shown: nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file's name as given, or the flag or environment variable.
    pub source: String,
    /// Line and column, both from 1, the column in characters. `None` if the whole source is meant.
    pub position: Option<(usize, usize)>,
    /// What is wrong.
    pub message: String,
    /// What is expected, shown beside the caret.
    pub expected: String,
    /// What to do about it, if there is something to say.
    pub help: Option<String>,
    excerpt: Option<Excerpt>,
}

/// A source line as shown, with the caret's place in it, in characters.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Excerpt {
    line: String,
    /// Flags and environment variables have no line number.
    numbered: bool,
    caret: usize,
    width: usize,
}

/// Everything that is wrong with a configuration, at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Report {
    /// The problems, in the order of their sources and lines. At least one is an error.
    pub diagnostics: Vec<Diagnostic>,
}

/// Bytes of a source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) source: usize,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Place {
    pub(super) fn new(source: usize, range: Range<usize>) -> Self {
        Self { source, start: range.start, end: range.end }
    }
}

/// A problem that still points into its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    pub(super) at: Place,
    pub(super) message: String,
    pub(super) expected: String,
    pub(super) help: Option<String>,
    /// Where the thing that this one repeats stands; its line is named.
    pub(super) first: Option<Place>,
}

impl Finding {
    pub(super) fn error(at: Place, message: &str, expected: &str) -> Self {
        let (message, expected) = (message.to_owned(), expected.to_owned());
        Self { severity: Severity::Error, at, message, expected, help: None, first: None }
    }

    pub(super) fn warning(at: Place, message: &str, expected: &str) -> Self {
        Self { severity: Severity::Warning, ..Self::error(at, message, expected) }
    }

    pub(super) fn help(mut self, help: &str) -> Self {
        self.help = Some(help.to_owned());
        self
    }
}

/// A text that values come from: the file, or one flag or environment variable.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) name: String,
    pub(super) text: String,
    /// Whether lines have numbers.
    pub(super) is_file: bool,
    /// Bytes never to be shown, sorted and disjoint.
    pub(super) masked: Vec<Range<usize>>,
}

impl Source {
    pub(super) fn new(name: &str, text: &str, is_file: bool) -> Self {
        Self { name: name.to_owned(), text: text.to_owned(), is_file, masked: Vec::new() }
    }

    /// The line around a byte: its number from 1 and its bytes, without the line break.
    fn line_at(&self, offset: usize) -> (usize, Range<usize>) {
        let bytes = self.text.as_bytes();
        let offset = offset.min(bytes.len());
        let (mut number, mut start, mut at) = (1, 0, 0);
        // YAML breaks lines at \n, \r\n and a lone \r.
        while at < offset {
            let is_break = bytes[at] == b'\n' || (bytes[at] == b'\r' && bytes.get(at + 1) != Some(&b'\n'));
            at += 1;
            if is_break {
                number += 1;
                start = at;
            }
        }
        let length = bytes[start..].iter().position(|b| matches!(b, b'\n' | b'\r')).unwrap_or(bytes.len() - start);
        (number, start..start + length)
    }

    /// A byte range's line as shown, and its line and column as counted in the source.
    fn excerpt(&self, range: Range<usize>) -> (Excerpt, (usize, usize)) {
        let mut offset = range.start.min(self.text.len());
        // Past the end means: at the end of the last line that says something.
        if offset == self.text.len() {
            offset = self.text.trim_end().len();
        }
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let (number, line) = self.line_at(offset);
        let start = offset.clamp(line.start, line.end);
        let end = range.end.clamp(start, line.end);
        let column = self.text[line.start..start].chars().count() + 1;
        let part = self.around(start, &line);

        let mut shown = String::from(if part.start > line.start { "..." } else { "" });
        let (mut caret, mut caret_end) = (None, 0);
        let mut after_blank = true;
        for (index, character) in self.text[part.clone()].char_indices() {
            let at = part.start + index;
            let mask = self.mask_at(at);
            // Comments are not shown: they may hold a value that was tried before, or half of one.
            if character == '#' && after_blank && (at == start || at >= end) {
                break;
            }
            after_blank = matches!(character, ' ' | '\t');
            // A mask is pushed once, at its first character here.
            let is_first = mask.is_none_or(|masked| at == masked.start.max(part.start));
            if at >= start && caret.is_none() {
                let inside = mask.is_some() && !is_first;
                caret = Some(shown.chars().count() - if inside { MASK.len() } else { 0 });
            }
            match mask {
                Some(_) if is_first => shown.push_str(MASK),
                Some(_) => {}
                None => shown.push(printable(character)),
            }
            if at < end {
                caret_end = shown.chars().count();
            }
        }
        let caret = caret.unwrap_or(shown.chars().count());
        let width = caret_end.saturating_sub(caret).max(1);
        if part.end < line.end {
            shown.push_str("...");
        }
        (Excerpt { line: shown, numbered: self.is_file, caret, width }, (number, column))
    }

    /// The mask a byte is under.
    fn mask_at(&self, at: usize) -> Option<&Range<usize>> {
        let next = self.masked.partition_point(|masked| masked.end <= at);
        self.masked.get(next).filter(|masked| masked.contains(&at))
    }

    /// The part of a line that is shown: all of it, or what surrounds `start` if it is long.
    fn around(&self, start: usize, line: &Range<usize>) -> Range<usize> {
        if self.text[line.clone()].chars().nth(LINE_CHARS_MAX).is_none() {
            return line.clone();
        }
        let before = self.text[line.start..start].char_indices().rev().nth(LINE_CHARS_MAX / 2);
        let from = before.map_or(line.start, |(index, _)| line.start + index);
        let after = self.text[from..line.end].char_indices().nth(LINE_CHARS_MAX);
        from..after.map_or(line.end, |(index, _)| from + index)
    }

    fn diagnose(&self, finding: Finding) -> Diagnostic {
        let Finding { severity, at, message, expected, help, first } = finding;
        let first = first.filter(|first| first.source == at.source);
        let help = help.or_else(|| first.map(|first| format!("the first is on line {}", self.line_at(first.start).0)));
        let whole = self.text.trim().is_empty();
        let (excerpt, position) = if whole {
            (None, None)
        } else {
            let (excerpt, position) = self.excerpt(at.start..at.end);
            (Some(excerpt), self.is_file.then_some(position))
        };
        Diagnostic { severity, source: self.name.clone(), position, message, expected, help, excerpt }
    }
}

/// A terminal must show a file, not obey it: no escapes, no right-to-left overrides, and tabs one
/// column wide so that the caret stays true.
fn printable(character: char) -> char {
    match character {
        '\t' => ' ',
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => '?',
        c if c.is_control() => '?',
        c => c,
    }
}

/// A value in back quotes, short and printable.
pub(super) fn quote(text: &str) -> String {
    let mut shown: String = text.chars().take(QUOTE_CHARS_MAX).map(printable).collect();
    if text.chars().count() > QUOTE_CHARS_MAX {
        shown.push_str("...");
    }
    format!("`{shown}`")
}

/// Sorts findings by place, drops repetitions and masks the secrets of their source lines.
pub(super) fn diagnose(mut findings: Vec<Finding>, sources: &[Source]) -> Vec<Diagnostic> {
    findings.sort_by(|a, b| a.at.cmp(&b.at).then(a.severity.cmp(&b.severity)));
    let mut unique: Vec<Finding> = Vec::new();
    for finding in findings {
        if !unique.iter().rev().take_while(|earlier| earlier.at == finding.at).any(|earlier| *earlier == finding) {
            unique.push(finding);
        }
    }
    let errors_in_all = unique.iter().filter(|finding| finding.severity == Severity::Error).count();
    if unique.len() > DIAGNOSTICS_MAX && errors_in_all > 0 {
        // Warnings must not push the errors out.
        unique.retain(|finding| finding.severity == Severity::Error);
    }
    let dropped = unique.len().saturating_sub(DIAGNOSTICS_MAX);
    unique.truncate(DIAGNOSTICS_MAX);
    let mut diagnostics: Vec<Diagnostic> =
        unique.into_iter().filter_map(|finding| Some(sources.get(finding.at.source)?.diagnose(finding))).collect();
    if dropped > 0
        && let Some(last) = diagnostics.last_mut()
    {
        let more = format!("{dropped} more problems are not shown");
        last.help = Some(last.help.take().map_or(more.clone(), |help| format!("{help}; {more}")));
    }
    diagnostics
}

/// A diagnostic about a source that could not even be read.
pub(super) fn unreadable(name: &str, message: &str, expected: &str) -> Diagnostic {
    Source::new(name, "", true).diagnose(Finding::error(Place::new(0, 0..0), message, expected))
}

/// Marks what must be masked in a source whose tree is known, or else guesses generously.
pub(super) fn mask_source(source: &mut Source, tree: Option<&super::yaml::Node>) {
    source.masked = match tree {
        Some(tree) => mask::of_tree(tree, &source.text),
        None => mask::of_text(&source.text),
    };
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        writeln!(f, "{severity}: {}", self.message)?;
        let number = match (self.position, &self.excerpt) {
            (Some((line, _)), Some(excerpt)) if excerpt.numbered => line.to_string(),
            _ => String::new(),
        };
        let gutter = " ".repeat(number.len());
        match self.position {
            Some((line, column)) => writeln!(f, "{gutter}--> {}:{line}:{column}", self.source)?,
            None => writeln!(f, "{gutter}--> {}", self.source)?,
        }
        match &self.excerpt {
            Some(excerpt) => {
                writeln!(f, "{gutter} |")?;
                writeln!(f, "{number} | {}", excerpt.line.trim_end())?;
                let (space, carets) = (" ".repeat(excerpt.caret), "^".repeat(excerpt.width));
                writeln!(f, "{}", format!("{gutter} | {space}{carets} {}", self.expected).trim_end())?;
            }
            None if !self.expected.is_empty() => writeln!(f, "{gutter} = {}", self.expected)?,
            None => {}
        }
        if let Some(help) = &self.help {
            writeln!(f, "{gutter} = help: {help}")?;
        }
        Ok(())
    }
}

impl Report {
    /// How many of the diagnostics are errors, and how many warnings.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let errors = self.diagnostics.iter().filter(|d| d.severity == Severity::Error).count();
        (errors, self.diagnostics.len() - errors)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in &self.diagnostics {
            writeln!(f, "{diagnostic}")?;
        }
        let plural = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
        let (errors, warnings) = self.counts();
        match (errors, warnings) {
            (errors, 0) => write!(f, "{}", plural(errors, "error")),
            (0, warnings) => write!(f, "{}", plural(warnings, "warning")),
            (errors, warnings) => write!(f, "{}, {}", plural(errors, "error"), plural(warnings, "warning")),
        }
    }
}
