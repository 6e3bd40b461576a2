//! One trace drawn as a waterfall: a line per span in tree order, with a bar where it was in time.
//!
//! Pure: rows and a width in, text out. Where the rows come from and whether there is a terminal is
//! [`crate::trace`]'s business; the order and the branches are the server's, `trace(id)` in SQL.

use std::collections::HashMap;

use serde::Deserialize;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::terminal::clean;

/// Columns that a waterfall is drawn in at least; narrower terminals wrap.
pub const WIDTH_MIN: usize = 60;

/// Columns at most: past them the eye loses the line from a name to its bar.
pub const WIDTH_MAX: usize = 240;

/// The least columns of a bar's track.
const TRACK_MIN: usize = 12;

/// The most columns of a service's name, and its share of the width.
const SERVICE_MAX: usize = 20;
const SERVICE_SHARE: usize = 5;

/// Terminal colours that services take in turn. Red is for errors.
const SERVICE_COLORS: [&str; 5] = ["36", "33", "35", "34", "32"];

const RED: &str = "31";
const DIM: &str = "2";

/// A span, as `trace(id)` shows it.
#[derive(Clone, Debug, Deserialize)]
pub struct Span {
    /// Levels below a root.
    pub depth: usize,
    /// The name, with the branches that lead to it.
    pub tree: String,
    /// Start, nanoseconds since the trace's first start.
    pub offset_ns: i64,
    /// End minus start; none when the span was sent without an end.
    pub duration_ns: Option<i64>,
    /// The duration without what children cover.
    pub self_duration_ns: Option<i64>,
    /// Whether its parent is missing.
    pub is_orphan: bool,
    /// Hex.
    pub span_id: String,
    /// The service it ran in.
    pub service_name: String,
    /// Start, nanoseconds since the epoch.
    pub start_ns: i64,
    /// `UNSET`, `OK` or `ERROR`.
    pub status_code: String,
    /// What the status says, or nothing.
    pub status_message: String,
}

/// Something that happened during a span.
#[derive(Clone, Debug)]
pub struct Note {
    /// The span it belongs to, in hex.
    pub span_id: Option<String>,
    /// When, nanoseconds since the epoch.
    pub time_ns: i64,
    /// What it is.
    pub kind: NoteKind,
    /// What it says.
    pub text: String,
}

/// What a [`Note`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoteKind {
    /// A span event.
    Event,
    /// A log record.
    Log,
}

/// How to draw.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Columns of the terminal.
    pub width: usize,
    /// Whether to use colours.
    pub color: bool,
}

/// Draws a trace. Spans are in tree order; notes may come in any order.
#[must_use]
pub fn draw(trace_id: &str, spans: &[Span], notes: &[Note], view: View) -> String {
    let mut out = String::new();
    let first_start = spans.iter().map(|span| span.start_ns.saturating_sub(span.offset_ns)).min().unwrap_or(0);
    let canvas = Canvas::new(spans, view);
    canvas.summary(trace_id, spans, &mut out);
    canvas.head(&mut out);
    let mut of_span: HashMap<&str, Vec<&Note>> = spans.iter().map(|span| (span.span_id.as_str(), Vec::new())).collect();
    let mut without_span = Vec::new();
    for note in notes {
        note.span_id.as_deref().and_then(|id| of_span.get_mut(id)).unwrap_or(&mut without_span).push(note);
    }
    for span in spans {
        canvas.span(span, &mut out);
        // Of several spans with one id the first one shows what belongs to it.
        let mut below = of_span.remove(span.span_id.as_str()).unwrap_or_default();
        below.sort_by_key(|note| note.time_ns);
        below.iter().for_each(|note| canvas.note(note, span.depth, first_start, &mut out));
    }
    if !without_span.is_empty() {
        out.push_str("of no span that is here\n");
        without_span.sort_by_key(|note| note.time_ns);
        without_span.iter().for_each(|note| canvas.note(note, 0, first_start, &mut out));
    }
    if spans.iter().any(|span| span.is_orphan) {
        out.push_str("? its parent span is not here\n");
    }
    out
}

/// A length of time for people: `124 ms`, `1.24 s`, `2m 5s`.
fn duration(nanos: i64) -> String {
    let mut text = String::new();
    query::write_duration(nanos, &mut text);
    text
}

/// How many of something: `1 span`, `2 spans`.
fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Exactly so many columns of a text: cut with an ellipsis, or filled with spaces.
fn fitted(text: &str, width: usize) -> String {
    let mut out = cut(text, width);
    out.push_str(&" ".repeat(width.saturating_sub(out.width())));
    out
}

/// At most so many columns of a text.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        // One column is for the ellipsis.
        if used + 1 > width {
            break;
        }
        out.push(c);
    }
    if width > 0 {
        out.push('…');
    }
    out
}

/// Where each column of the picture is.
struct Canvas {
    name: usize,
    service: usize,
    duration: usize,
    own: usize,
    track: usize,
    total_ns: i64,
    colors: Option<HashMap<String, &'static str>>,
}

impl Canvas {
    fn new(spans: &[Span], view: View) -> Self {
        let width = view.width.clamp(WIDTH_MIN, WIDTH_MAX);
        let widest = |texts: &mut dyn Iterator<Item = usize>, least: usize| texts.max().unwrap_or(0).max(least);
        let service = widest(&mut spans.iter().map(|span| clean(&span.service_name).width()), 7)
            .min(SERVICE_MAX.min(width / SERVICE_SHARE));
        let shown = |nanos: Option<i64>| nanos.map_or(0, |nanos| duration(nanos).width());
        let duration = widest(&mut spans.iter().map(|span| shown(span.duration_ns)), 8);
        let own = widest(&mut spans.iter().map(|span| shown(span.self_duration_ns)), 8);
        // Two columns for the mark, and gaps between the five others.
        let rest = width.saturating_sub(2 + service + duration + own + 7);
        let name = widest(&mut spans.iter().map(|span| clean(&span.tree).width()), 4);
        let name = name.min(rest.saturating_sub(TRACK_MIN).min(rest * 6 / 10).max(8));
        let track = rest.saturating_sub(name).max(TRACK_MIN);
        let end = |span: &Span| span.offset_ns.saturating_add(span.duration_ns.unwrap_or(0).max(0));
        let total_ns = spans.iter().map(end).max().unwrap_or(0).max(1);
        let colors = view.color.then(|| {
            let mut colors = HashMap::new();
            for span in spans {
                let next = SERVICE_COLORS[colors.len() % SERVICE_COLORS.len()];
                colors.entry(span.service_name.clone()).or_insert(next);
            }
            colors
        });
        Self { name, service, duration, own, track, total_ns, colors }
    }

    fn paint(&self, text: &str, code: &str) -> String {
        if self.colors.is_some() { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    fn summary(&self, trace_id: &str, spans: &[Span], out: &mut String) {
        let mut services: Vec<&str> = spans.iter().map(|span| span.service_name.as_str()).collect();
        services.sort_unstable();
        services.dedup();
        let errors = spans.iter().filter(|span| span.status_code == "ERROR").count();
        out.push_str(&format!(
            "trace {}: {} of {}, {}",
            clean(trace_id),
            counted(spans.len(), "span"),
            counted(services.len(), "service"),
            duration(self.total_ns)
        ));
        if errors > 0 {
            let errors = format!(", {}", counted(errors, "error"));
            out.push_str(&self.paint(&errors, RED));
        }
        out.push_str("\n\n");
    }

    fn head(&self, out: &mut String) {
        let total = duration(self.total_ns);
        let scale = format!("0{total:>width$}", width = self.track.saturating_sub(1));
        let line = format!(
            "  {}  {}  {:>d$}  {:>o$} {}",
            fitted("span", self.name),
            fitted("service", self.service),
            "duration",
            "self",
            scale,
            d = self.duration,
            o = self.own
        );
        out.push_str(&self.paint(line.trim_end(), DIM));
        out.push('\n');
    }

    /// The column of the track that a time is in.
    fn column(&self, offset_ns: i64) -> usize {
        let column = i128::from(offset_ns.max(0)) * self.track as i128 / i128::from(self.total_ns);
        usize::try_from(column).unwrap_or(usize::MAX).min(self.track - 1)
    }

    fn bar(&self, span: &Span) -> String {
        let start = self.column(span.offset_ns);
        let mut bar = " ".repeat(start);
        let Some(nanos) = span.duration_ns.map(|nanos| nanos.max(0)) else {
            // Nobody knows where it ends.
            bar.push('▷');
            return bar;
        };
        let end = self.column(span.offset_ns.saturating_add(nanos).saturating_sub(1)).max(start);
        // Less than half of a column looks like less than one.
        let is_sliver = i128::from(nanos) * self.track as i128 * 2 < i128::from(self.total_ns);
        bar.push_str(&if is_sliver { "▏".to_owned() } else { "█".repeat(end - start + 1) });
        bar
    }

    fn span(&self, span: &Span, out: &mut String) {
        let failed = span.status_code == "ERROR";
        let color = match &self.colors {
            Some(colors) => colors.get(&span.service_name).copied().unwrap_or(DIM),
            None => "",
        };
        let mark = match (failed, span.is_orphan) {
            (true, _) => "✗ ",
            (false, true) => "? ",
            (false, false) => "  ",
        };
        let time = |nanos: Option<i64>| nanos.map_or_else(|| "–".to_owned(), duration);
        let right = |text: String, width: usize| format!("{}{text}", " ".repeat(width.saturating_sub(text.width())));
        let (name, service) = (fitted(&clean(&span.tree), self.name), fitted(&clean(&span.service_name), self.service));
        let bar = self.bar(span);
        let line = format!(
            "{}{}  {}  {}  {} {}",
            if failed { self.paint(mark, RED) } else { mark.to_owned() },
            if failed { self.paint(&name, RED) } else { name },
            self.paint(&service, color),
            right(time(span.duration_ns), self.duration),
            right(time(span.self_duration_ns), self.own),
            self.paint(&bar, if failed { RED } else { color }),
        );
        out.push_str(line.trim_end());
        out.push('\n');
        if !span.status_message.is_empty() {
            let text = self.beside_track(span.depth, "!", &span.status_message);
            out.push_str(&self.paint(text.trim_end(), if failed { RED } else { DIM }));
            out.push('\n');
        }
    }

    /// A line below a span, as wide as what is before the track.
    fn beside_track(&self, depth: usize, sign: &str, text: &str) -> String {
        let indent = (2 + 3 * depth).min(2 + self.name / 2);
        let width = 2 + self.name + 2 + self.service + 2 + self.duration + 2 + self.own;
        fitted(&format!("{}{sign} {}", " ".repeat(indent), clean(text)), width)
    }

    fn note(&self, note: &Note, depth: usize, first_start: i64, out: &mut String) {
        let offset_ns = note.time_ns.saturating_sub(first_start);
        let sign = match note.kind {
            NoteKind::Event => "◆",
            NoteKind::Log => "≡",
        };
        let sooner = if offset_ns < 0 { "" } else { "+" };
        let text = format!("{sooner}{}  {}", duration(offset_ns), note.text);
        let place = " ".repeat(self.column(offset_ns));
        let line = format!("{} {place}{sign}", self.beside_track(depth, sign, &text));
        out.push_str(&self.paint(&line, DIM));
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;
    const T0: i64 = 1_772_323_200_000_000_000;

    fn span(depth: usize, tree: &str, service: &str, offset_ms: i64, duration_ms: i64, own_ms: i64, id: u8) -> Span {
        Span {
            depth,
            tree: tree.to_owned(),
            offset_ns: offset_ms * MS,
            duration_ns: Some(duration_ms * MS),
            self_duration_ns: Some(own_ms * MS),
            is_orphan: false,
            span_id: format!("{id:016x}"),
            service_name: service.to_owned(),
            start_ns: T0 + offset_ms * MS,
            status_code: "UNSET".to_owned(),
            status_message: String::new(),
        }
    }

    fn shop() -> Vec<Span> {
        vec![
            span(0, "GET /checkout", "web", 0, 124, 14, 1),
            span(1, "├─ SELECT cart", "cart", 2, 20, 20, 2),
            Span {
                status_code: "ERROR".to_owned(),
                status_message: "card\u{1b}[31m declined".to_owned(),
                ..span(1, "└─ POST /pay", "payment", 30, 90, 89, 3)
            },
            Span { duration_ns: Some(1000), ..span(2, "   └─ cache 読み込み", "payment", 31, 0, 0, 4) },
            Span {
                duration_ns: None,
                self_duration_ns: None,
                is_orphan: true,
                ..span(0, "ship", "a service whose name is long", 124, 0, 0, 5)
            },
        ]
    }

    fn notes() -> Vec<Note> {
        let note = |id: Option<u8>, at: i64, kind, text: &str| Note {
            span_id: id.map(|id| format!("{id:016x}")),
            time_ns: T0 + at * MS,
            kind,
            text: text.to_owned(),
        };
        vec![
            note(Some(3), 119, NoteKind::Log, "ERROR card declined: insufficient funds, and a long story about it"),
            note(Some(3), 118, NoteKind::Event, "exception  exception.message=declined"),
            note(Some(9), -1, NoteKind::Log, "INFO of another span"),
            note(None, 60, NoteKind::Log, "INFO of the trace"),
        ]
    }

    const NARROW: &str = "\
trace 5b8e: 5 spans of 4 services, 124 ms, 1 error

  span         service       duration      self 0     124 ms
  GET /check…  web             124 ms     14 ms ████████████
  ├─ SELECT …  cart             20 ms     20 ms ███
✗ └─ POST /p…  payment          90 ms     89 ms   ██████████
     ! card·[31m declined
     └─ cach…  payment           1 µs       0 s    ▏
? ship         a service w…         –         –            ▷
? its parent span is not here
";

    const WIDE: &str = "\
trace 5b8e: 5 spans of 4 services, 124 ms, 1 error

  span                  service               duration      self 0                            124 ms
  GET /checkout         web                     124 ms     14 ms ███████████████████████████████████
  ├─ SELECT cart        cart                     20 ms     20 ms ███████
✗ └─ POST /pay          payment                  90 ms     89 ms         ██████████████████████████
     ! card·[31m declined
     ◆ +118 ms  exception  exception.message=declined                                             ◆
     ≡ +119 ms  ERROR card declined: insufficient funds, and a …                                  ≡
     └─ cache 読み込み  payment                   1 µs       0 s         ▏
? ship                  a service whose nam…         –         –                                   ▷
of no span that is here
  ≡ -1 ms  INFO of another span                                  ≡
  ≡ +60 ms  INFO of the trace                                                    ≡
? its parent span is not here
";

    const POINT: &str = "\
trace 5b8e: 1 span of 1 service, 1 ns

  span   service  duration      self 0                  1 ns
  GET /  web           0 s       0 s ▏
";

    #[test]
    fn traces_as_waterfalls() {
        for (what, spans, notes, width, expected) in [
            ("narrow", shop(), vec![], 60, NARROW),
            ("with events and logs", shop(), notes(), 100, WIDE),
            ("no time at all, and no room", vec![span(0, "GET /", "web", 0, 0, 0, 1)], vec![], 10, POINT),
        ] {
            let found = draw("5b8e", &spans, &notes, View { width, color: false });
            assert_eq!(found, expected, "{what}\n{found}");
        }
    }

    #[test]
    fn colours_change_nothing_but_colour() {
        let colored = draw("5b8e", &shop(), &notes(), View { width: 100, color: true });
        assert!(colored.contains("\u{1b}[31m✗ \u{1b}[0m"), "{colored}");
        let mut parts = colored.split('\u{1b}');
        let mut plain = parts.next().unwrap().to_owned();
        parts.for_each(|part| plain.push_str(part.split_once('m').unwrap().1));
        assert_eq!(plain, WIDE);
    }
}
