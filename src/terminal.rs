//! Tables for people: rows of an answer, drawn to fit a terminal.
//!
//! Not here: machine formats; the server writes those itself.

use serde_json::Value;
use unicode_width::UnicodeWidthStr as _;

/// A cell is cut at this many characters, since one stack trace would push everything else away.
const CELL_CHARS_MAX: usize = 60;

/// Draws the answer of `POST /api/v1/sql` as a table, with a line that says how much it took.
#[must_use]
pub fn table(answer: &Value) -> String {
    let columns = answer["columns"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows = answer["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    let heads: Vec<String> = columns.iter().map(|column| cell(&column["name"])).collect();
    let numeric: Vec<bool> =
        columns.iter().map(|column| matches!(column["type"].as_str(), Some("bigint" | "double" | "integer"))).collect();
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.as_array().map(Vec::as_slice).unwrap_or_default().iter().map(cell).collect())
        .collect();
    let widths: Vec<usize> = heads
        .iter()
        .enumerate()
        .map(|(index, head)| {
            cells.iter().filter_map(|row| row.get(index)).chain([head]).map(|text| text.width()).max().unwrap_or(0)
        })
        .collect();
    let mut out = String::new();
    rule(&mut out, &widths, ['┌', '┬', '┐']);
    line(&mut out, &heads, &widths, &vec![false; widths.len()]);
    rule(&mut out, &widths, ['├', '┼', '┤']);
    for row in &cells {
        line(&mut out, row, &widths, &numeric);
    }
    rule(&mut out, &widths, ['└', '┴', '┘']);
    out.push_str(&summary(answer, rows.len()));
    out
}

/// Draws the answer as one line per cell, uncut, with the lines of a text below each other.
#[must_use]
pub(crate) fn expanded(answer: &Value) -> String {
    let columns = answer["columns"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows = answer["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    let heads: Vec<String> = columns.iter().map(|column| cell(&column["name"])).collect();
    let width = heads.iter().map(|head| head.width()).max().unwrap_or(0);
    let mut out = String::new();
    for (index, row) in rows.iter().enumerate() {
        out.push_str(&format!("── row {} ──\n", index + 1));
        for (head, value) in heads.iter().zip(row.as_array().map(Vec::as_slice).unwrap_or_default()) {
            let text = match value {
                Value::Null => "∅".to_owned(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let mut head = format!("{head}{}", " ".repeat(width - head.width()));
            for line in text.split('\n') {
                out.push_str(&format!("{head} │ {}\n", clean(line)));
                head = " ".repeat(width);
            }
        }
    }
    out.push_str(&summary(answer, rows.len()));
    out
}

fn summary(answer: &Value, rows: usize) -> String {
    let stats = &answer["stats"];
    let mut out = format!("{rows} row{}", if rows == 1 { "" } else { "s" });
    if let Some(elapsed_ms) = stats["elapsed_ms"].as_f64() {
        out.push_str(&format!(" in {elapsed_ms:.0} ms"));
    }
    if let Some(scanned) = scanned(stats) {
        out.push_str(&scanned);
    }
    for warning in stats["warnings"].as_array().map(Vec::as_slice).unwrap_or_default() {
        out.push_str(&format!("\nwarning: {}", cell(warning)));
    }
    out.push('\n');
    out
}

/// What the answer took: rows and bytes read, segments read and there, memory. `None` from a server that does not tell.
fn scanned(stats: &Value) -> Option<String> {
    let number = |name: &str| stats[name].as_u64();
    let (rows, bytes) = (number("rows_scanned")?, number("bytes_scanned")?);
    let (read, all) = (number("segments_scanned")?, number("segments_total")?);
    let mut out = format!("; read {rows} rows, {} from {read} of {all} segments", size(bytes));
    if let Some(peak) = number("memory_peak_bytes") {
        out.push_str(&format!("; memory {}", size(peak)));
    }
    Some(out)
}

/// A size as people say it.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut shown = bytes as f64;
    let mut unit = "B";
    for larger in UNITS {
        if shown < 1024.0 {
            break;
        }
        shown /= 1024.0;
        unit = larger;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{shown:.1} {unit}") }
}

/// One cell: text as it is but for control characters, which could redraw the terminal.
fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => return "∅".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut out = clean(&text);
    if out.chars().count() > CELL_CHARS_MAX {
        out = out.chars().take(CELL_CHARS_MAX - 1).collect();
        out.push('…');
    }
    out
}

/// Text without characters that could redraw the terminal or reorder the line.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || is_bidi(c) { '·' } else { c }).collect()
}

/// Characters that reorder the line they stand in.
const fn is_bidi(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn rule(out: &mut String, widths: &[usize], [left, middle, right]: [char; 3]) {
    out.push(left);
    for (index, width) in widths.iter().enumerate() {
        if index > 0 {
            out.push(middle);
        }
        out.push_str(&"─".repeat(width + 2));
    }
    out.push(right);
    out.push('\n');
}

fn line(out: &mut String, cells: &[String], widths: &[usize], right: &[bool]) {
    out.push('│');
    for (index, width) in widths.iter().enumerate() {
        let text = cells.get(index).map_or("", String::as_str);
        let padding = " ".repeat(width - text.width());
        if right[index] {
            out.push_str(&format!(" {padding}{text} │"));
        } else {
            out.push_str(&format!(" {text}{padding} │"));
        }
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_fits_its_cells_and_shows_no_control_characters() {
        let answer = json!({
            "columns": [{"name": "service", "type": "text"}, {"name": "n", "type": "bigint"}],
            "rows": [["cart\u{1b}[2J", 5], [null, 1234]],
            "stats": {
                "elapsed_ms": 12.4, "rows_scanned": 5000, "bytes_scanned": 1_572_864, "segments_total": 3,
                "segments_scanned": 2, "memory_peak_bytes": 900, "warnings": ["a segment was set aside"],
            },
        });
        let expected = "\
┌──────────┬──────┐
│ service  │ n    │
├──────────┼──────┤
│ cart·[2J │    5 │
│ ∅        │ 1234 │
└──────────┴──────┘
2 rows in 12 ms; read 5000 rows, 1.5 MiB from 2 of 3 segments; memory 900 B
warning: a segment was set aside
";
        assert_eq!(table(&answer), expected);
    }

    #[test]
    fn a_row_per_cell_shows_all_of_a_text() {
        let answer = json!({
            "columns": [{"name": "body", "type": "text"}, {"name": "n", "type": "bigint"}],
            "rows": [[format!("panic\u{1b}[2J\n  at {}", "x".repeat(80)), 5]],
        });
        let expected = format!("── row 1 ──\nbody │ panic·[2J\n     │   at {}\nn    │ 5\n1 row\n", "x".repeat(80));
        assert_eq!(expanded(&answer), expected);
    }
}
