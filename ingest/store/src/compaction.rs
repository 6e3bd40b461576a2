//! Compaction: which segments are merged (a pure plan), and the streaming merge itself.
//!
//! A merge keeps the multiset of rows (I4) and their order, reads a few thousand rows of each
//! input at a time, and never crosses a day, so that retention drops whole files. Not here: the
//! commit and the swap; those are the store's.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use model::signal::Table;
use model::time::Timestamp;
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;

use crate::catalog::AttributeKinds;
use crate::config::CompactionConfig;
use crate::error::StoreError;
use crate::gather::{Gatherer, Pick};
use crate::layout::{self, Layout};
use crate::segment::{Packing, Segment, SegmentFile, SegmentMeta, SegmentWriter, Varied, Written};
use crate::sort::{MergeKey, TextNumbers};

/// Rows of one batch that is read from an input or written to the output: a merge holds two such
/// batches of each input, plus one row group.
const BATCH_ROWS: usize = 8192;

/// Segments to merge into one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merge {
    /// The inputs' numbers, oldest first.
    pub inputs: Vec<u64>,
}

/// Plans merges: size-tiered, per tenant, table and UTC day, smallest classes first. The day is
/// that of [`SegmentMeta::age_time`], by which retention goes too.
#[must_use]
pub fn plan<'a>(
    segments: impl IntoIterator<Item = &'a SegmentMeta>,
    now: Timestamp,
    config: &CompactionConfig,
) -> Vec<Merge> {
    let mut groups: BTreeMap<_, Vec<&SegmentMeta>> = BTreeMap::new();
    for segment in segments {
        let class = size_class(segment.bytes, config);
        let day = segment.age_time().day();
        groups.entry((class, segment.tenant.clone(), segment.table, day)).or_default().push(segment);
    }
    let today = now.plus_nanos(-config.day_closed_after_ns).day();
    let mut merges = Vec::new();
    for ((_, _, _, day), mut group) in groups {
        let inputs_min = if day < today { config.inputs_closed_day_min } else { config.inputs_min }.max(2);
        // Neighbours in time of arrival have the most in common.
        group.sort_unstable_by_key(|segment| (segment.seq_min, segment.id));
        let mut inputs = Vec::new();
        let mut bytes = 0;
        let mut close = |inputs: &mut Vec<u64>| {
            let inputs = std::mem::take(inputs);
            if inputs.len() >= inputs_min {
                merges.push(Merge { inputs });
            }
        };
        for segment in group {
            if inputs.len() == config.inputs_max || bytes + segment.bytes > config.output_bytes_max {
                close(&mut inputs);
                bytes = 0;
            }
            inputs.push(segment.id);
            bytes += segment.bytes;
        }
        close(&mut inputs);
    }
    merges
}

/// 0 for what is small, then one more for each factor.
pub(crate) fn size_class(bytes: u64, config: &CompactionConfig) -> u32 {
    let mut class = 0;
    let mut end = config.small_bytes.max(1);
    while bytes >= end && class < u64::BITS {
        class += 1;
        end = end.saturating_mul(config.class_factor.max(2));
    }
    class
}

/// Why a merge failed.
#[derive(Debug)]
pub(crate) enum MergeError {
    /// This input (by its place) cannot be read.
    Input(usize, StoreError),
    /// The output cannot be written.
    Output(StoreError),
}

/// One input: its reader, the batch at hand with its keys, and the next row.
struct Cursor {
    input: usize,
    reader: ParquetRecordBatchReader,
    keys: Vec<MergeKey>,
    row: usize,
    /// Where the batch at hand is in the pool.
    pooled: usize,
}

impl Cursor {
    /// The key of the next row; `None` at the end.
    fn head(&self) -> Option<MergeKey> {
        self.keys.get(self.row).copied()
    }
}

/// Merges sorted segments of one tenant and table into a file.
///
/// `kinds` are those of all of them; `between_batches` is called where the work can pause.
pub(crate) fn merge(
    inputs: &[Arc<Segment>],
    kinds: &AttributeKinds,
    path: &Path,
    mut between_batches: impl FnMut(),
) -> Result<Written, MergeError> {
    let first = inputs.first().expect("a plan has inputs").meta();
    let table = first.table;
    let mut files = Vec::with_capacity(inputs.len());
    for (input, segment) in inputs.iter().enumerate() {
        files.push(SegmentFile::open(segment.path(), table).map_err(|error| MergeError::Input(input, error))?);
    }
    let counts: Vec<Vec<u64>> = files.iter().map(SegmentFile::promoted_counts).collect();
    let known = files.iter().zip(&counts).zip(inputs);
    let known = known.map(|((file, counts), input)| (file.layout(), &counts[..], input.meta().rows));
    let layout = layout::merged(table, known, kinds);
    let varied = Varied::of_files(files.iter());
    let writer = SegmentWriter::create(path, &layout, &first.tenant, Packing::MERGE, &varied);
    let mut output = Output { layout, writer: writer.map_err(MergeError::Output)? };
    let mut numbers = TextNumbers::default();
    let mut pool: Vec<(usize, RecordBatch)> = Vec::new();
    let mut cursors = Vec::with_capacity(inputs.len());
    for (input, file) in files.iter().enumerate() {
        let reader = file.rows(BATCH_ROWS).map_err(|error| MergeError::Input(input, error))?;
        let mut cursor = Cursor { input, reader, keys: Vec::new(), row: 0, pooled: 0 };
        if refill(&mut cursor, &mut pool, &mut numbers, table)? {
            cursors.push(cursor);
        }
    }
    let mut picked: Vec<Pick> = Vec::with_capacity(BATCH_ROWS);
    while !cursors.is_empty() {
        let (least, bound) = least_two(&cursors, &numbers);
        // Rows of the least input go out until another's next row comes before them.
        loop {
            let cursor = &mut cursors[least];
            picked.push((cursor.pooled, cursor.row));
            cursor.row += 1;
            if picked.len() == BATCH_ROWS {
                output.write(&mut picked, &mut pool, &mut cursors, &files)?;
                between_batches();
            }
            let cursor = &mut cursors[least];
            if cursor.head().is_none() && !refill(cursor, &mut pool, &mut numbers, table)? {
                cursors.remove(least);
                break;
            }
            let head = cursors[least].head().expect("refilled");
            if bound.is_some_and(|bound| numbers.compare(head, bound).is_gt()) {
                break;
            }
        }
    }
    output.write(&mut picked, &mut pool, &mut cursors, &files)?;
    output.writer.finish().map_err(MergeError::Output)
}

/// The cursor with the least next row, and the next row of the runner-up.
fn least_two(cursors: &[Cursor], numbers: &TextNumbers) -> (usize, Option<MergeKey>) {
    let mut least = 0;
    let mut bound: Option<MergeKey> = None;
    let head = |index: usize| cursors[index].head().expect("a cursor at its end is removed");
    for index in 1..cursors.len() {
        let candidate = if numbers.compare(head(index), head(least)).is_lt() {
            std::mem::replace(&mut least, index)
        } else {
            index
        };
        let key = head(candidate);
        if bound.is_none_or(|bound| numbers.compare(key, bound).is_lt()) {
            bound = Some(key);
        }
    }
    (least, bound)
}

/// Reads the next batch of an input; `false` at its end.
fn refill(
    cursor: &mut Cursor,
    pool: &mut Vec<(usize, RecordBatch)>,
    numbers: &mut TextNumbers,
    table: Table,
) -> Result<bool, MergeError> {
    for batch in cursor.reader.by_ref() {
        let failed = |error: StoreError| MergeError::Input(cursor.input, error);
        let batch = batch.map_err(StoreError::arrow("read a segment")).map_err(failed)?;
        if batch.num_rows() > 0 {
            cursor.keys = numbers.keys(table, &batch).map_err(failed)?;
            cursor.row = 0;
            cursor.pooled = pool.len();
            pool.push((cursor.input, batch));
            return Ok(true);
        }
    }
    Ok(false)
}

/// The file that is written.
struct Output {
    layout: Layout,
    writer: SegmentWriter,
}

impl Output {
    /// Writes the picked rows and lets go of batches that no cursor is in any more. Each batch of
    /// the pool comes with its input.
    fn write(
        &mut self,
        picked: &mut Vec<Pick>,
        pool: &mut Vec<(usize, RecordBatch)>,
        cursors: &mut [Cursor],
        files: &[SegmentFile],
    ) -> Result<(), MergeError> {
        if picked.is_empty() {
            return Ok(());
        }
        let sources: Vec<(&Layout, &RecordBatch)> =
            pool.iter().map(|(input, batch)| (files[*input].layout(), batch)).collect();
        let merged = Gatherer::new(&sources, &self.layout).and_then(|gatherer| gatherer.gather(picked));
        picked.clear();
        let kept = cursors
            .iter_mut()
            .enumerate()
            .map(|(index, cursor)| std::mem::replace(&mut cursor.pooled, index))
            .map(|pooled| pool[pooled].clone())
            .collect();
        *pool = kept;
        merged.and_then(|merged| self.writer.write(&merged)).map_err(MergeError::Output)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::segment::read;
    use crate::sort::{is_sorted, sorted_batch};
    use crate::testing::{kinds_of, laid_out, random_batch, row_multiset};
    use arrow::compute::concat_batches;
    use model::schema::schema;
    use model::tenant::TenantId;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const DAY: i64 = 86_400_000_000_000;

    /// A segment of so many bytes on day 100.
    pub(crate) fn meta(id: u64, bytes: u64) -> SegmentMeta {
        SegmentMeta {
            id,
            tenant: TenantId::default_tenant(),
            table: Table::Spans,
            format_version: 1,
            rows: 1,
            bytes,
            min_time: Timestamp(100 * DAY),
            max_time: Timestamp(100 * DAY + 1),
            seq_min: id,
            seq_max: id,
            level: 0,
            created_at: Timestamp(100 * DAY + 2),
            checksum: 0,
        }
    }

    fn config() -> CompactionConfig {
        CompactionConfig {
            inputs_min: 4,
            inputs_max: 6,
            small_bytes: 100,
            class_factor: 4,
            output_bytes_max: 5000,
            ..CompactionConfig::default()
        }
    }

    #[test]
    fn plans_merge_what_is_alike() {
        let open = Timestamp(100 * DAY + 10);
        let closed = Timestamp(101 * DAY + 3600 * Timestamp::NANOS_PER_SECOND);
        for (what, sizes, now, expected) in [
            ("nothing", &[][..], open, &[][..]),
            ("too few", &[10, 20, 30], open, &[]),
            ("enough", &[10, 20, 30, 40], open, &[&[0, 1, 2, 3][..]]),
            ("too few of each class", &[10, 10, 10, 100, 100, 100], open, &[]),
            ("classes stay apart", &[10, 100, 10, 100, 10, 100, 10, 399], open, &[&[0, 2, 4, 6], &[1, 3, 5, 7]]),
            ("at most so many", &[1; 11], open, &[&[0, 1, 2, 3, 4, 5], &[6, 7, 8, 9, 10]]),
            ("the rest is too few", &[1; 8], open, &[&[0, 1, 2, 3, 4, 5]]),
            ("too large together", &[1600, 1600, 1600, 1600], open, &[]),
            ("fewer do on a closed day", &[10, 20], closed, &[&[0, 1]]),
            ("one never does", &[10, 1000], closed, &[]),
            ("too large stays", &[9000, 9000], closed, &[]),
        ] {
            let segments: Vec<SegmentMeta> =
                sizes.iter().enumerate().map(|(id, bytes)| meta(id as u64, *bytes)).collect();
            let merges = plan(&segments, now, &config());
            assert_eq!(merges.iter().map(|merge| &merge.inputs[..]).collect::<Vec<_>>(), expected, "{what}");
        }
    }

    proptest! {
        #[test]
        fn plans_never_cross_a_border(seeds in prop::collection::vec((0_u64..3, 0_usize..2, 0_i64..3, 1_u64..2000), 0..60), now in 99_i64..104) {
            let segments: Vec<SegmentMeta> = seeds.iter().enumerate().map(|(id, (tenant, table, day, bytes))| {
                let mut segment = meta(id as u64, *bytes);
                segment.tenant = TenantId::new(&format!("t{tenant}")).unwrap();
                segment.table = Table::ALL[*table];
                segment.max_time = Timestamp((100 + day) * DAY);
                segment.created_at = Timestamp(i64::MAX);
                segment
            }).collect();
            let config = config();
            let mut used = BTreeSet::new();
            for merge in plan(&segments, Timestamp(now * DAY), &config) {
                let inputs: Vec<&SegmentMeta> = merge.inputs.iter().map(|id| &segments[*id as usize]).collect();
                prop_assert!(inputs.len() >= 2 && inputs.len() <= config.inputs_max);
                prop_assert!(inputs.iter().map(|input| input.bytes).sum::<u64>() <= config.output_bytes_max);
                let border = |segment: &SegmentMeta| (segment.tenant.clone(), segment.table, segment.age_time().day());
                prop_assert!(inputs.iter().all(|input| border(input) == border(inputs[0])));
                for id in merge.inputs {
                    prop_assert!(used.insert(id), "an input in two merges");
                }
            }
        }
    }

    fn write_segment(dir: &Path, table: Table, id: u64, batch: &RecordBatch) -> Arc<Segment> {
        let path = dir.join(format!("{id}.parquet"));
        let tenant = TenantId::default_tenant();
        // Every other input is as version 1 wrote it.
        let layout = if id.is_multiple_of(2) {
            layout::choose(table, [batch], &kinds_of([batch]))
        } else {
            Layout::of_table(table)
        };
        let sorted = laid_out(&sorted_batch(table, [batch]), &layout);
        let mut writer = SegmentWriter::create(&path, &layout, &tenant, Packing::FLUSH, &Varied::default()).unwrap();
        writer.write(&sorted).unwrap();
        writer.finish().unwrap();
        let meta = SegmentMeta { table, ..meta(id, 1) };
        Segment::new(meta, kinds_of([batch]), path)
    }

    fn check_merge(table: Table, sizes: &[usize], seed: u64) {
        let dir = tempfile::tempdir().unwrap();
        let batches: Vec<RecordBatch> =
            sizes.iter().enumerate().map(|(input, rows)| random_batch(table, *rows, seed + input as u64)).collect();
        let inputs: Vec<Arc<Segment>> = batches
            .iter()
            .enumerate()
            .map(|(input, batch)| write_segment(dir.path(), table, input as u64, batch))
            .collect();
        let path = dir.path().join("merged");
        let written = merge(&inputs, &kinds_of(&batches), &path, || {}).unwrap();
        let merged: Vec<RecordBatch> = read(&path, table, 1000).unwrap().map(|batch| batch.unwrap()).collect();
        assert_eq!(written.rows as usize, sizes.iter().sum::<usize>());
        assert_eq!(row_multiset(table, &merged), row_multiset(table, &batches));
        assert!(is_sorted(table, &concat_batches(&schema(table), &merged).unwrap()));
    }

    #[test]
    fn merges_of_every_table_keep_rows_and_order() {
        for table in Table::ALL {
            check_merge(table, &[300, 1, 0, 120, 500], 1);
        }
    }

    #[test]
    fn merges_larger_than_a_batch_keep_rows_and_order() {
        check_merge(Table::Logs, &[9000, 20_000, 8192], 7);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn merges_keep_the_multiset_of_rows(table in 0_usize..5, sizes in prop::collection::vec(0_usize..60, 1..7), seed in 0_u64..1000) {
            check_merge(Table::ALL[table], &sizes, seed);
        }
    }
}
