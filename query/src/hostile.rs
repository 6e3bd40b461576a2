//! The hostile statements of `tests/hostile.tsv`, written out.
//!
//! Only tests have this: the engine's own, and those of the whole process. Not here: who asks them.

/// The file: a line each, of tabs between an outcome, a piece of the message and the statement.
const TABLE: &str = include_str!("../tests/hostile.tsv");

/// Outcomes that a statement may have whose costs alone are the point.
const BOUNDED: [&str; 6] = ["answered", "cut", "bad_query", "not_allowed", "out_of_memory", "timeout"];

/// A statement, and what has to become of it.
#[derive(Debug)]
pub(crate) struct Row {
    outcome: &'static str,
    message: &'static str,
    /// As in the file, for messages.
    pub(crate) template: &'static str,
    /// As it is sent.
    pub(crate) sql: String,
}

impl Row {
    /// What is wrong with an outcome; `None` when it is as it must be.
    pub(crate) fn fault(&self, outcome: &str, message: &str) -> Option<String> {
        let expected = match self.outcome {
            "bounded" => BOUNDED.contains(&outcome),
            expected => expected == outcome,
        };
        (!expected || !message.contains(self.message)).then(|| {
            let shown: String = message.chars().take(200).collect();
            format!("{}\n  expected {} {}\n  found    {outcome} {shown}", self.template, self.outcome, self.message)
        })
    }
}

/// Every row of the file.
pub(crate) fn rows() -> Vec<Row> {
    let lines = TABLE.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let mut fields = line.splitn(3, '\t');
            let mut field = || fields.next().unwrap_or_else(|| panic!("three fields: {line}"));
            let (outcome, message, template) = (field(), field(), field());
            Row { outcome, message, template, sql: characters(&repeated(template)) }
        })
        .collect()
}

/// Writes `{{piece|n|separator}}` out.
fn repeated(template: &str) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, from)) = rest.split_once("{{") {
        let (inside, after) = from.split_once("}}").unwrap_or_else(|| panic!("an end of {{{{: {template}"));
        out.push_str(before);
        out.push_str(&pieces(inside));
        rest = after;
    }
    out + rest
}

fn pieces(inside: &str) -> String {
    // A piece may have bars of its own: the first one before a number counts.
    let split = inside.match_indices('|').find_map(|(bar, _)| {
        let (count, separator) = inside[bar + 1..].split_once('|').unwrap_or((&inside[bar + 1..], ""));
        Some((&inside[..bar], count.parse::<usize>().ok()?, separator))
    });
    let (piece, count, separator) = split.unwrap_or_else(|| panic!("a piece and a number: {inside}"));
    let numbered = |n: usize| piece.replace('#', &n.to_string()).replace('@', &(n - 1).to_string());
    (1..=count).map(numbered).collect::<Vec<_>>().join(separator)
}

/// Writes `\u{hex}` out.
fn characters(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, from)) = rest.split_once("\\u{") {
        let (code, after) = from.split_once('}').unwrap_or_else(|| panic!("an end of {from}"));
        let character = u32::from_str_radix(code, 16).ok().and_then(char::from_u32);
        out.push_str(before);
        out.push(character.unwrap_or_else(|| panic!("a character: {code}")));
        rest = after;
    }
    out + rest
}
