//! Filters as they are written into segments and read from them.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{Field, Schema};
use model::attributes::Kind;
use model::schema::schema;
use model::signal::Table;
use model::tenant::TenantId;
use proptest::prelude::*;

use super::*;
use crate::filter::keys::{Edge, of_literal, of_value, of_whole};
use crate::layout::{Layout, Promoted};
use crate::segment::{Packing, SegmentWriter, Varied, read};
use crate::testing::random_batch;

/// A merged segment of logs with these bodies, written so many rows at a time.
struct Logs {
    dir: tempfile::TempDir,
    rows: RecordBatch,
}

impl Logs {
    fn new(bodies: &[&str], rows_at_once: usize) -> Self {
        let columns = schema(Table::Logs);
        let random = random_batch(Table::Logs, bodies.len(), 1);
        let mut arrays = random.columns().to_vec();
        arrays[columns.index_of("body").unwrap()] = Arc::new(StringArray::from(bodies.to_vec()));
        let rows = RecordBatch::try_new(columns, arrays).unwrap();
        let logs = Self { dir: tempfile::tempdir().unwrap(), rows };
        let (layout, tenant) = (Layout::of_table(Table::Logs), TenantId::default_tenant());
        let mut writer =
            SegmentWriter::create(&logs.path(), &layout, &tenant, Packing::MERGE, &Varied::default()).unwrap();
        for at in (0..bodies.len()).step_by(rows_at_once) {
            writer.write(&logs.rows.slice(at, rows_at_once.min(bodies.len() - at))).unwrap();
        }
        writer.finish().unwrap();
        logs
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("logs.parquet")
    }

    fn filters(&self) -> BlockFilters {
        BlockFilters::open(&self.path()).unwrap().unwrap()
    }

    fn blocks(&self, column: &str, keys: Vec<u64>) -> Blocks {
        self.filters().blocks(&Need::Keys { column: column.to_owned(), keys }).unwrap()
    }
}

fn holds(blocks: &Blocks, row: usize) -> bool {
    blocks.row_ranges().iter().any(|range| range.contains(&row))
}

#[test]
fn every_row_is_found_and_most_others_are_not() {
    const ROWS: usize = 70 * BLOCK_ROWS + 77;
    let bodies: Vec<String> =
        (0..ROWS).map(|row| format!("request {} took 12 ms", (row as u64).wrapping_mul(0x9e37_79b9_7f4a))).collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    let logs = Logs::new(&bodies, 10_000);
    let path = logs.path();
    let read = read(&path, Table::Logs, 1 << 20).unwrap().map(|batch| batch.unwrap().num_rows());
    assert_eq!(read.sum::<usize>(), ROWS, "what is between row groups is in nobody's way");
    let traces = logs.rows.column_by_name("trace_id").unwrap().as_fixed_size_binary();
    let mut chosen = 0;
    let step = 1777;
    for row in (0..ROWS).step_by(step) {
        let blocks = logs.blocks("body", of_value(bodies[row]));
        assert_eq!(blocks.total(), 71);
        assert!(holds(&blocks, row), "{}", bodies[row]);
        chosen += blocks.chosen();
        if traces.is_valid(row) {
            assert!(holds(&logs.blocks("trace_id", vec![of_whole(traces.value(row))]), row));
        }
    }
    let others = (chosen - ROWS.div_ceil(step)) as f64 / (ROWS / step * 70) as f64;
    assert!(others < 0.06, "{others} of the other blocks would be read in vain");
    // In all blocks, in none, and in no filter.
    assert_eq!(logs.blocks("body", of_literal("took ", Edge::Open, Edge::Open, false)).chosen(), 71);
    assert_eq!(logs.blocks("body", of_literal(" took ", Edge::Open, Edge::Open, false)).chosen(), 71);
    assert_eq!(logs.blocks("nowhere", vec![1]).chosen(), 71);
    let needs = |needs: &[&str]| {
        needs.iter().map(|need| Need::Keys { column: "body".to_owned(), keys: of_value(need) }).collect::<Vec<_>>()
    };
    let filters = logs.filters();
    let (first, last) = (bodies[3], bodies[ROWS - 1]);
    let any = filters.blocks(&Need::Any(needs(&[first, last]))).unwrap();
    assert!(holds(&any, 3) && holds(&any, ROWS - 1));
    assert!(filters.blocks(&Need::All(needs(&[first, last]))).unwrap().chosen() <= 3);
    let last = filters.blocks(&Need::All(needs(&[last]))).unwrap();
    assert_eq!(last.row_ranges().last().cloned(), Some(70 * BLOCK_ROWS..ROWS));
}

#[test]
fn a_block_is_a_page_of_each_column() {
    let bodies = vec!["x"; 3 * BLOCK_ROWS];
    let logs = Logs::new(&bodies, BLOCK_ROWS);
    let file = fs::File::open(logs.path()).unwrap();
    let metadata = parquet::file::metadata::ParquetMetaDataReader::new()
        .with_page_index_policy(parquet::file::metadata::PageIndexPolicy::Required)
        .parse_and_finish(&file)
        .unwrap();
    for (group, columns) in metadata.offset_index().unwrap().iter().enumerate() {
        for (column, index) in columns.iter().enumerate() {
            let starts: BTreeSet<i64> = index.page_locations().iter().map(|page| page.first_row_index).collect();
            let name = metadata.row_group(group).column(column).column_path().string();
            for block in 0..3 {
                let start = (block * BLOCK_ROWS) as i64;
                assert!(starts.contains(&start) || name.contains("list"), "{name}: {starts:?}");
            }
        }
    }
}

/// What is too much for a filter excludes nothing, and takes no more memory than its bound.
#[test]
fn too_many_keys_exclude_nothing() {
    let huge: String = (0..5 * BLOCK_ROWS).map(|word| format!("w{word} ")).collect();
    let mut bodies = vec!["plain"; 4 * BLOCK_ROWS];
    bodies[BLOCK_ROWS + 5] = &huge;
    let logs = Logs::new(&bodies, BLOCK_ROWS);
    let key = |text: &str| of_literal(text, Edge::End, Edge::End, false);
    assert_eq!(logs.blocks("body", key("plain")).chosen(), 4);
    let found = logs.blocks("body", key("w40959"));
    assert!(found.chosen() == 1 && holds(&found, BLOCK_ROWS + 5));
    // A section of which most is too much has no filter.
    let bodies = vec![huge.as_str(), "plain"];
    let logs = Logs::new(&bodies, 1);
    assert_eq!(logs.blocks("body", key("nowhere")).chosen(), 1);
    assert_eq!(logs.filters().directory.filters[1].sections, [None]);
}

/// Whatever byte is damaged, no row goes missing: it is noticed, or it does not matter.
#[test]
fn damage_hides_no_row() {
    let bodies: Vec<String> = (0..300).map(|row| format!("order {} lost", row * 7919)).collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    let logs = Logs::new(&bodies, 300);
    let good = fs::read(logs.path()).unwrap();
    let (at, buckets) = logs.filters().directory.filters[1].sections[0].unwrap();
    let section = at as usize..at as usize + buckets as usize * (BUCKET_BYTES + CHECKSUM_BYTES);
    let find = |text: &str| good.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
    let directory = find("{\"version\":1,\"block_rows\"");
    let directory = directory..directory + logs.filters().directory.to_json().len();
    let need = |row: usize| Need::Keys { column: "body".to_owned(), keys: of_value(bodies[row]) };
    let mut noticed = 0;
    for byte in section.chain(directory) {
        for bit in [0, 3, 7] {
            let mut bad = good.clone();
            bad[byte] ^= 1 << bit;
            fs::write(logs.path(), bad).unwrap();
            match BlockFilters::open(&logs.path()) {
                Ok(Some(filters)) => {
                    for row in (byte % 7..300).step_by(37) {
                        match filters.blocks(&need(row)) {
                            Ok(blocks) => assert!(blocks.total() == 1 && blocks.chosen() == 1, "byte {byte}"),
                            Err(FilterError::Damaged { .. }) => noticed += 1,
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
                Ok(None) => {}
                Err(FilterError::Damaged { .. }) => noticed += 1,
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(noticed > 1000, "{noticed}");
}

#[test]
fn only_texts_that_hardly_repeat_are_filtered() {
    let pair = |key: &str, kind: Kind| Promoted { key: key.to_owned(), kind };
    let pairs = [("alike", Kind::String), ("mixed", Kind::String), ("number", Kind::Int), ("varied", Kind::String)];
    let mut fields = schema(Table::Logs).fields().to_vec();
    for (key, kind) in pairs {
        let pair = pair(key, kind);
        let field = Field::new(pair.column_name(), pair.data_type(), true);
        // Rows have `mixed` with another kind, too: its column is not all there is to know.
        let whole = (key != "mixed").then(|| ("godseye.whole".to_owned(), "true".to_owned()));
        fields.push(Arc::new(field.with_metadata(whole.into_iter().collect())));
    }
    let layout = Layout::of_schema(Table::Logs, &Schema::new(fields)).unwrap();
    let varied =
        Varied::of_pairs([pair("mixed", Kind::String), pair("number", Kind::Int), pair("varied", Kind::String)]);
    let directory = FilterBuilder::new(&layout, &varied).finish(|_| Ok::<u64, ()>(0)).unwrap();
    let columns: Vec<&str> = directory.filters.iter().map(|filter| filter.column.as_str()).collect();
    assert_eq!(columns, ["trace_id", "body", "attributes:string:varied"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn no_row_is_hidden(
        bodies in prop::collection::vec("(cart|pay|[a-c0-9]{0,8}|[ /_é超]){0,8}", 1..60),
        needle in "[a-c0-9 /é]{0,9}",
    ) {
        let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
        let logs = Logs::new(&bodies, 7);
        let literal = logs.blocks("body", of_literal(&needle, Edge::Open, Edge::Open, false));
        prop_assert!(literal.chosen() == 1 || bodies.iter().all(|body| !body.contains(&needle)));
        let value = logs.blocks("body", of_value(&needle));
        prop_assert!(value.chosen() == 1 || bodies.iter().all(|body| *body != needle));
        prop_assert!(bodies.iter().all(|body| logs.blocks("body", of_value(body)).chosen() == 1));
    }
}
