//! What is wrong with a file: all of it at once, each with its place and with what to do.
//!
//! A problem names `file:line:column` and shows no source line: a DataSource's `connectionDetails`
//! may hold credentials, and a problem may be logged. Not here: how a problem is found.

use std::fmt;

/// Problems kept of one reading. A file with more is not a document with mistakes but some other file.
pub const PROBLEMS_MAX: usize = 100;

/// Characters of a quoted value that are shown.
const QUOTE_CHARS_MAX: usize = 60;

/// Where in a file something stands. Both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Which file of a reading, in the order they were given.
    pub file: usize,
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file's name as given.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, message, help } = self;
        write!(f, "{file}:{line}:{column}: {message}: {help}")
    }
}

/// Everything that is wrong, in the order of files and lines. Never empty as an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            writeln!(f, "{problem}")?;
        }
        write!(f, "{} problem{}", self.0.len(), if self.0.len() == 1 { "" } else { "s" })
    }
}

/// Collects problems while files are read.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    found: Vec<(Place, String, String)>,
}

impl Findings {
    /// Something is wrong at a place.
    pub(crate) fn add(&mut self, at: Place, message: impl Into<String>, help: impl Into<String>) {
        self.found.push((at, message.into(), help.into()));
    }

    /// How many problems there are so far.
    pub(crate) fn len(&self) -> usize {
        self.found.len()
    }

    /// `value` when nothing was wrong, else all that was, sorted and without repetitions.
    pub(crate) fn finish<T>(mut self, files: &[&str], value: T) -> Result<T, Problems> {
        if self.found.is_empty() {
            return Ok(value);
        }
        self.found.sort();
        self.found.dedup();
        let more = self.found.len().saturating_sub(PROBLEMS_MAX);
        self.found.truncate(PROBLEMS_MAX);
        let mut problems: Vec<Problem> = self
            .found
            .into_iter()
            .map(|(at, message, help)| {
                let file = files.get(at.file).copied().unwrap_or_default().to_owned();
                Problem { file, line: at.line, column: at.column, message, help }
            })
            .collect();
        if let (true, Some(last)) = (more > 0, problems.last_mut()) {
            last.help.push_str(&format!("; {more} more problems are not shown"));
        }
        Err(Problems(problems))
    }
}

/// A value in back quotes, short and printable.
pub(crate) fn quote(text: &str) -> String {
    let mut shown: String = text.chars().take(QUOTE_CHARS_MAX).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().count() > QUOTE_CHARS_MAX {
        shown.push_str("...");
    }
    format!("`{shown}`")
}

/// `a, b or c`.
pub(crate) fn one_of(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [before @ .., last] => format!("{} or {last}", before.join(", ")),
    }
}

/// ` (did you mean X?)` for the candidate that a typing mistake is likely to have meant, else nothing.
pub(crate) fn suggestion(word: &str, candidates: &[&str]) -> String {
    let word: Vec<char> = word.chars().take(64).map(|c| c.to_ascii_lowercase()).collect();
    candidates
        .iter()
        .map(|candidate| (distance(&word, candidate), candidate))
        .filter(|(cost, candidate)| *cost <= (candidate.len() / 3).max(1))
        .min()
        .map_or_else(String::new, |(_, candidate)| format!(" (did you mean `{candidate}`?)"))
}

/// Insertions, deletions, replacements and swaps of neighbours between a word and a candidate, case aside.
fn distance(word: &[char], candidate: &str) -> usize {
    let candidate: Vec<char> = candidate.chars().map(|c| c.to_ascii_lowercase()).collect();
    let mut before = vec![0; word.len() + 1];
    let mut last: Vec<usize> = (0..=word.len()).collect();
    for i in 1..=candidate.len() {
        let mut row = vec![i; word.len() + 1];
        for j in 1..=word.len() {
            let replaced = last[j - 1] + usize::from(candidate[i - 1] != word[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && candidate[i - 1] == word[j - 2] && candidate[i - 2] == word[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[word.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_sorted_and_bounded_and_say_what_to_do() {
        let mut findings = Findings::default();
        let at = |line| Place { file: 0, line, column: 3 };
        for line in (1..=PROBLEMS_MAX + 2).rev() {
            findings.add(at(line), "wrong", "do it right");
            findings.add(at(line), "wrong", "do it right");
        }
        let problems = findings.finish(&["slo.yaml"], ()).unwrap_err();
        assert_eq!(problems.0.len(), PROBLEMS_MAX);
        assert_eq!(problems.0[0].to_string(), "slo.yaml:1:3: wrong: do it right");
        assert!(problems.0[PROBLEMS_MAX - 1].help.ends_with("2 more problems are not shown"));
    }

    #[test]
    fn suggestions_are_only_close_words() {
        let keys = ["target", "targetPercent", "timeSliceTarget"];
        for (word, want) in [
            ("targt", " (did you mean `target`?)"),
            ("Target", " (did you mean `target`?)"),
            ("targetPercnt", " (did you mean `targetPercent`?)"),
            ("colour", ""),
            ("", ""),
        ] {
            assert_eq!(suggestion(word, &keys), want, "{word}");
        }
    }
}
