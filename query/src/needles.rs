//! Needles: what a predicate says of single values, asked of the block filters of segments before
//! their pages are read.
//!
//! `trace_id = …`, `attributes['k'] = 'v'`, `IN`, `LIKE`, `ILIKE`, `contains`, `starts_with`,
//! `ends_with`, `has_token` and regular expressions become a [`Need`]; whatever else a predicate
//! says needs nothing. The predicate itself is still evaluated over what is read, so this is about
//! speed and never about answers. Not here: the filters (the store's), and statistics, which
//! DataFusion prunes by itself.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, InListExpr, LikeExpr, Literal};
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use model::attributes::Kind;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use regex_syntax::hir::{Hir, HirKind};
use store::Promoted;
use store::filter::keys::{self, Edge};
use store::filter::{BlockFilters, Blocks, COLUMNS, FilterError, Need};

use crate::layout::attribute_key;
use crate::source::SegmentFile;

/// The most keys that are looked up for one scan: a longer IN list is left to the scan.
const NEED_KEYS_MAX: usize = 256;

/// Memory for where filters are, shared by all queries, bytes: some tens of thousands of segments.
const CACHE_BYTES_MAX: usize = 16 << 20;

/// What rows must have for all of these predicates to hold; `None` when nothing is known of that.
pub(crate) fn needed<'a>(predicates: impl IntoIterator<Item = &'a Arc<dyn PhysicalExpr>>) -> Option<Need> {
    all(predicates.into_iter().filter_map(need_of)).filter(|need| need.keys() <= NEED_KEYS_MAX)
}

fn all(needs: impl Iterator<Item = Need>) -> Option<Need> {
    let mut needs: Vec<Need> = needs.collect();
    if needs.len() > 1 { Some(Need::All(needs)) } else { needs.pop() }
}

/// `None` as soon as one of them may be anything.
fn any(needs: impl Iterator<Item = Option<Need>>) -> Option<Need> {
    let mut needs: Vec<Need> = needs.collect::<Option<_>>()?;
    if needs.len() == 1 { needs.pop() } else { Some(Need::Any(needs)) }
}

fn need_of(expr: &Arc<dyn PhysicalExpr>) -> Option<Need> {
    if let Some(binary) = expr.downcast_ref::<BinaryExpr>() {
        let (left, right) = (binary.left(), binary.right());
        return match binary.op() {
            Operator::And => all([left, right].into_iter().filter_map(need_of)),
            Operator::Or => any([left, right].into_iter().map(need_of)),
            Operator::Eq => equal(left, right).or_else(|| equal(right, left)),
            Operator::RegexMatch => regex(left, right, false),
            Operator::RegexIMatch => regex(left, right, true),
            _ => None,
        };
    }
    if let Some(list) = expr.downcast_ref::<InListExpr>() {
        let values = (!list.negated() && list.len() <= NEED_KEYS_MAX).then(|| list.list())?;
        return any(values.iter().map(|value| equal(list.expr(), value)));
    }
    if let Some(like) = expr.downcast_ref::<LikeExpr>() {
        let pattern = (!like.negated()).then(|| text(like.pattern()))??;
        return needs(&column(like.expr())?, like_keys(pattern, like.case_insensitive()));
    }
    let call = expr.downcast_ref::<ScalarFunctionExpr>()?;
    let [searched, wanted] = call.args() else { return None };
    let (left, right) = match call.name() {
        "contains" => (Edge::Open, Edge::Open),
        "starts_with" => (Edge::End, Edge::Open),
        "ends_with" => (Edge::Open, Edge::End),
        // A token stands between what is in no token, as between the ends of a value.
        "has_token" => (Edge::End, Edge::End),
        "regexp_like" => return regex(searched, wanted, false),
        _ => return None,
    };
    needs(&column(searched)?, keys::of_literal(text(wanted)?, left, right, false))
}

/// A need, when there are keys at all.
fn needs(column: &str, keys: Vec<u64>) -> Option<Need> {
    (!keys.is_empty()).then(|| Need::Keys { column: column.to_owned(), keys })
}

fn equal(of: &Arc<dyn PhysicalExpr>, value: &Arc<dyn PhysicalExpr>) -> Option<Need> {
    let column = column(of)?;
    match value.downcast_ref::<Literal>()?.value() {
        ScalarValue::FixedSizeBinary(_, Some(id)) => needs(&column, vec![keys::of_whole(id)]),
        text => needs(&column, keys::of_value(text.try_as_str().flatten()?)),
    }
}

/// The column with filters that an expression shows as it is, if a file has it.
fn column(expr: &Arc<dyn PhysicalExpr>) -> Option<String> {
    if let Some(column) = expr.downcast_ref::<Column>() {
        return COLUMNS.contains(&column.name()).then(|| column.name().to_owned());
    }
    // Where the key has values of other kinds, too, the file's column is not all there is to know, and
    // it has no filter. Where it is of another kind, its column has another name.
    let (key, data_type) = attribute_key(expr)?;
    (*data_type == DataType::Utf8).then(|| Promoted { key: key.to_owned(), kind: Kind::String }.column_name())
}

fn text(expr: &Arc<dyn PhysicalExpr>) -> Option<&str> {
    expr.downcast_ref::<Literal>()?.value().try_as_str().flatten()
}

/// The keys of what a LIKE pattern has between its wildcards.
fn like_keys(pattern: &str, any_case: bool) -> Vec<u64> {
    let mut found = Vec::new();
    let (mut literal, mut left) = (String::new(), Edge::End);
    let mut chars = pattern.chars();
    let mut end = |literal: &mut String, left: Edge, right: Edge| {
        found.extend(keys::of_literal(literal, left, right, any_case));
        literal.clear();
    };
    while let Some(char) = chars.next() {
        match char {
            '%' | '_' => {
                end(&mut literal, left, Edge::Open);
                left = Edge::Open;
            }
            // A backslash at the end stands for itself.
            '\\' => literal.push(chars.next().unwrap_or(char)),
            _ => literal.push(char),
        }
    }
    end(&mut literal, left, Edge::End);
    found.truncate(keys::NEEDLE_KEYS_MAX);
    found
}

fn regex(of: &Arc<dyn PhysicalExpr>, pattern: &Arc<dyn PhysicalExpr>, any_case: bool) -> Option<Need> {
    let column = column(of)?;
    // A pattern that is wrong is told of by who runs it.
    let pattern = regex_syntax::ParserBuilder::new().case_insensitive(any_case).build().parse(text(pattern)?).ok()?;
    literals(&pattern, &column)
}

/// What every match of a pattern contains. Letters that match in any case are no literals.
fn literals(pattern: &Hir, column: &str) -> Option<Need> {
    match pattern.kind() {
        HirKind::Literal(literal) => {
            let literal = std::str::from_utf8(&literal.0).ok()?;
            needs(column, keys::of_literal(literal, Edge::Open, Edge::Open, false))
        }
        HirKind::Capture(capture) => literals(&capture.sub, column),
        HirKind::Repetition(repetition) if repetition.min > 0 => literals(&repetition.sub, column),
        HirKind::Concat(parts) => all(parts.iter().filter_map(|part| literals(part, column))),
        HirKind::Alternation(parts) => any(parts.iter().map(|part| literals(part, column))),
        _ => None,
    }
}

/// Where the filters of segments are, for all queries.
#[derive(Debug, Default)]
pub(crate) struct FilterCache {
    entries: Mutex<Entries>,
    damaged: Counter,
}

#[derive(Debug, Default)]
struct Entries {
    // By path, since numbers are only unique within one store. `None`: there are none, or they are damaged.
    filters: HashMap<PathBuf, Entry>,
    bytes: usize,
    uses: u64,
}

#[derive(Debug)]
struct Entry {
    filters: Option<Arc<BlockFilters>>,
    bytes: usize,
    used: u64,
}

impl FilterCache {
    /// Adds its metric to a registry.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "block_filters_damaged",
            "Segments whose block filters are not used since they are damaged",
            self.damaged.clone(),
        );
    }

    /// The blocks of a segment that may hold what is needed; `None` when its filters do not say.
    /// Reads some kilobytes of it.
    fn blocks(&self, segment: &SegmentFile, need: &Need) -> Option<Blocks> {
        if !segment.filters {
            return None;
        }
        let filters = match self.get(&segment.path) {
            Some(known) => known?,
            None => {
                let filters = self.usable(segment, BlockFilters::open(&segment.path)).flatten().map(Arc::new);
                self.put(&segment.path, filters.clone());
                filters?
            }
        };
        let blocks = self.usable(segment, filters.blocks(need));
        if blocks.is_none() {
            self.put(&segment.path, None);
        }
        blocks
    }

    /// A segment can be read without its filters.
    fn usable<T>(&self, segment: &SegmentFile, read: Result<T, FilterError>) -> Option<T> {
        match read {
            Ok(read) => Some(read),
            Err(error) => {
                tracing::warn!(segment = segment.name(), %error, "block filters are not used: queries read more of it");
                self.damaged.inc();
                None
            }
        }
    }

    fn get(&self, path: &Path) -> Option<Option<Arc<BlockFilters>>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.uses += 1;
        let uses = entries.uses;
        let entry = entries.filters.get_mut(path)?;
        entry.used = uses;
        Some(entry.filters.clone())
    }

    fn put(&self, path: &Path, filters: Option<Arc<BlockFilters>>) {
        let bytes = size_of::<Entry>()
            + 2 * path.as_os_str().len()
            + filters.as_ref().map_or(0, |filters| filters.memory_bytes());
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let used = entries.uses;
        entries.bytes += bytes;
        if let Some(replaced) = entries.filters.insert(path.to_owned(), Entry { filters, bytes, used }) {
            entries.bytes -= replaced.bytes;
        }
        if entries.bytes > CACHE_BYTES_MAX {
            // Half of it goes at once, so that this is not done for each newcomer.
            let mut uses: Vec<u64> = entries.filters.values().map(|entry| entry.used).collect();
            uses.sort_unstable();
            let newer_than = uses[uses.len() / 2];
            entries.filters.retain(|_, entry| entry.used > newer_than);
            entries.bytes = entries.filters.values().map(|entry| entry.bytes).sum();
        }
    }
}

/// The blocks of each segment that may hold what is needed, looked up on so many threads at once.
/// `None` for a segment whose filters do not say.
pub(crate) async fn blocks_of(
    cache: Arc<FilterCache>,
    segments: &[SegmentFile],
    need: Need,
    threads: usize,
) -> Vec<Option<Blocks>> {
    let need = Arc::new(need);
    let share = segments.len().div_ceil(threads.max(1)).max(1);
    let tasks: Vec<_> = segments
        .chunks(share)
        .map(|segments| {
            let (cache, need, segments) = (Arc::clone(&cache), Arc::clone(&need), segments.to_vec());
            let count = segments.len();
            let look_up = move || -> Vec<Option<Blocks>> {
                segments.iter().map(|segment| cache.blocks(segment, &need)).collect()
            };
            (tokio::task::spawn_blocking(look_up), count)
        })
        .collect();
    let mut found = Vec::with_capacity(segments.len());
    for (task, count) in tasks {
        // A defect in there must cost nothing but speed.
        found.extend(task.await.unwrap_or_else(|_| vec![None; count]));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn like_patterns_give_the_keys_of_what_is_between_wildcards() {
        let keys = |literal: &str, left, right| keys::of_literal(literal, left, right, false);
        let (end, open) = (Edge::End, Edge::Open);
        for (pattern, expected) in [
            ("%/cart/4711%", keys("/cart/4711", open, open)),
            ("/cart/%", keys("/cart/", end, open)),
            ("%.html", keys(".html", open, end)),
            ("plain text", keys("plain text", end, end)),
            ("a_b%", vec![]),
            ("%", vec![]),
            ("", vec![]),
            (r"%100\% of abc def%", keys("100% of abc def", open, open)),
            (r"%\_abc\_%", keys("_abc_", open, open)),
            (r"abc\", keys(r"abc\", end, end)),
            ("% first %_% second %", [keys(" first ", open, open), keys(" second ", open, open)].concat()),
        ] {
            assert_eq!(like_keys(pattern, false), expected, "{pattern}");
        }
        assert!(like_keys(&"abc%".repeat(100), false).len() <= keys::NEEDLE_KEYS_MAX);
    }

    #[test]
    fn regular_expressions_need_what_all_matches_contain() {
        let keys = |literal: &str| needs("body", keys::of_literal(literal, Edge::Open, Edge::Open, false));
        for (pattern, any_case, expected) in [
            ("order 4711 lost", false, keys("order 4711 lost")),
            ("order (4711|4712 ) lost", false, keys(" lost").or_else(|| keys("order "))),
            ("( abc | def )x?", false, Some(Need::Any(vec![keys(" abc ").unwrap(), keys(" def ").unwrap()]))),
            ("( abc |x)", false, None),
            ("( abc )+", false, keys(" abc ")),
            ("( abc )*", false, None),
            (" abc ", true, None),
            ("(?i) abc ", false, None),
            (r"\w+", false, None),
            ("(", false, None),
            ("", false, None),
        ] {
            let hir = regex_syntax::ParserBuilder::new().case_insensitive(any_case).build().parse(pattern);
            let found = hir.ok().and_then(|hir| literals(&hir, "body"));
            assert_eq!(found, expected, "{pattern}");
        }
    }
}
