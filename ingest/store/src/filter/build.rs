//! Building the filters of a segment while its rows are written.

use arrow::array::{Array, AsArray, FixedSizeBinaryArray, RecordBatch, StringArray};
use arrow::datatypes::DataType;
use model::attributes::Kind;

use super::{
    BLOCK_ROWS, BUCKET_BYTES, CHECKSUM_BYTES, COLUMNS, ColumnFilters, Directory, SECTION_BLOCKS, VERSION, bits_of,
    bucket_of, checksum, keys,
};
use crate::layout::Layout;
use crate::segment::Varied;

/// The most columns of a file with filters: it bounds what a hostile choice of attributes adds to
/// merges and to files.
const FILTERED_MAX: usize = 24;

/// The most distinct keys of a block in a filter, four a row. A block of more, such as one of long
/// stack traces without repetition, has a filter that excludes nothing.
const BLOCK_KEYS_MAX: usize = 4 * BLOCK_ROWS;

/// The most keys of a section, all columns together: 32 MiB while a merge holds them.
const SECTION_KEYS_MAX: usize = 4 << 20;

/// Bits of a filter for each distinct key of the fullest block of its section. Of the blocks that
/// lack a key, one in about twenty is read in vain; half of that would cost a third more space.
const BITS_PER_KEY: f64 = 7.0;

/// Places for keys that were seen lately: what repeats is hashed, but not kept twice.
const RECENT: usize = 2048;

/// Bits of the bitmap that estimates how many keys of a block are distinct.
const ESTIMATE_BITS: usize = 1 << 16;

/// Collects keys and makes sections of them.
pub(crate) struct FilterBuilder {
    columns: Vec<ColumnKeys>,
    rows: u64,
    rows_in_block: usize,
    blocks_in_section: usize,
    sections: usize,
    keys_in_section: usize,
}

/// The keys of one column.
struct ColumnKeys {
    /// Where the file has it.
    index: usize,
    filters: ColumnFilters,
    /// Of the blocks of this section that are done; `None` has too many.
    done: Vec<Option<Vec<u64>>>,
    open: OpenBlock,
}

/// The keys of a block that is not full of rows yet.
struct OpenBlock {
    keys: Vec<u64>,
    recent: Box<[u64; RECENT]>,
    overfull: bool,
}

impl OpenBlock {
    fn new() -> Self {
        Self { keys: Vec::new(), recent: Box::new([0; RECENT]), overfull: false }
    }

    #[inline]
    fn keep(&mut self, key: u64) {
        #[expect(clippy::cast_possible_truncation, reason = "any of its bits will do")]
        let place = &mut self.recent[key as usize % RECENT];
        // A key of zero is kept each time.
        if *place == key && key != 0 || self.overfull {
            return;
        }
        *place = key;
        self.keys.push(key);
        if self.keys.len() == 2 * BLOCK_KEYS_MAX {
            self.count();
        }
    }

    /// Counts distinct keys where there are too many to take them all for that.
    fn count(&mut self) {
        if self.keys.len() <= BLOCK_KEYS_MAX {
            return;
        }
        self.keys.sort_unstable();
        self.keys.dedup();
        if self.keys.len() > BLOCK_KEYS_MAX {
            self.overfull = true;
            self.keys = Vec::new();
        }
    }

    fn finish(&mut self) -> Option<Vec<u64>> {
        self.recent.fill(0);
        self.count();
        let keys = std::mem::take(&mut self.keys);
        (!std::mem::replace(&mut self.overfull, false)).then_some(keys)
    }
}

impl FilterBuilder {
    /// For a file of this layout. Of promoted columns, texts that hardly repeat have filters where
    /// the column is all there is to know of its key; others prune by statistics and dictionaries.
    pub(crate) fn new(layout: &Layout, varied: &Varied) -> Self {
        let base = COLUMNS.iter().filter_map(|name| layout.schema().index_of(name).ok());
        let promoted = layout.promoted().iter().enumerate().filter_map(|(index, pair)| {
            let is_searched = pair.kind == Kind::String && layout.is_whole(index) && varied.contains(pair);
            is_searched.then(|| layout.promoted_column(index))
        });
        let columns = base.chain(promoted).take(FILTERED_MAX).map(|index| ColumnKeys {
            index,
            filters: ColumnFilters { column: layout.schema().field(index).name().clone(), sections: Vec::new() },
            done: Vec::new(),
            open: OpenBlock::new(),
        });
        Self {
            columns: columns.collect(),
            rows: 0,
            rows_in_block: 0,
            blocks_in_section: 0,
            sections: 0,
            keys_in_section: 0,
        }
    }

    /// Whether there is nothing to filter.
    pub(crate) const fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Rows that the open block still takes.
    pub(crate) const fn room(&self) -> usize {
        BLOCK_ROWS - self.rows_in_block
    }

    /// Whether a block has just ended.
    pub(crate) const fn is_between_blocks(&self) -> bool {
        self.rows_in_block == 0
    }

    /// Takes the next rows of the file, no more than there is room for. When they end a section,
    /// its bytes are given to `write`, which says at which offset of the file they begin.
    pub(crate) fn add<E>(&mut self, batch: &RecordBatch, write: impl FnMut(&[u8]) -> Result<u64, E>) -> Result<(), E> {
        for column in &mut self.columns {
            let array = batch.column(column.index);
            let open = &mut column.open;
            match array.data_type() {
                DataType::Utf8 => texts(array.as_string(), open),
                DataType::FixedSizeBinary(_) => ids(array.as_fixed_size_binary(), open),
                // No other type is filtered; a block without keys would be wrong for it.
                _ => open.overfull = true,
            }
        }
        self.rows += batch.num_rows() as u64;
        self.rows_in_block += batch.num_rows();
        if self.rows_in_block >= BLOCK_ROWS { self.end_block(write) } else { Ok(()) }
    }

    /// Ends the last section. The directory is for the file's metadata.
    pub(crate) fn finish<E>(mut self, write: impl FnMut(&[u8]) -> Result<u64, E>) -> Result<Directory, E> {
        if self.rows_in_block > 0 {
            self.blocks_in_section += 1;
            self.take_block();
        }
        if self.blocks_in_section > 0 {
            self.end_section(write)?;
        }
        let filters = self.columns.into_iter().map(|column| column.filters).collect();
        Ok(Directory { version: VERSION, block_rows: BLOCK_ROWS, rows: self.rows, filters })
    }

    fn end_block<E>(&mut self, write: impl FnMut(&[u8]) -> Result<u64, E>) -> Result<(), E> {
        self.rows_in_block = 0;
        self.blocks_in_section += 1;
        self.take_block();
        if self.blocks_in_section == SECTION_BLOCKS { self.end_section(write) } else { Ok(()) }
    }

    fn take_block(&mut self) {
        for column in &mut self.columns {
            let keys = column.open.finish().filter(|keys| self.keys_in_section + keys.len() <= SECTION_KEYS_MAX);
            self.keys_in_section += keys.as_ref().map_or(0, Vec::len);
            column.done.push(keys);
        }
    }

    fn end_section<E>(&mut self, mut write: impl FnMut(&[u8]) -> Result<u64, E>) -> Result<(), E> {
        for column in &mut self.columns {
            let blocks = std::mem::take(&mut column.done);
            let section = match encode(&column.filters.column, self.sections, &blocks) {
                Some((buckets, bytes)) => Some((write(&bytes)?, buckets)),
                None => None,
            };
            column.filters.sections.push(section);
        }
        self.sections += 1;
        self.blocks_in_section = 0;
        self.keys_in_section = 0;
        Ok(())
    }
}

impl Directory {
    /// As the file's metadata has it.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and names can be written")
    }
}

fn texts(array: &StringArray, open: &mut OpenBlock) {
    for text in array.iter().flatten() {
        keys::of_text(text.as_bytes(), |key| open.keep(key));
    }
}

fn ids(array: &FixedSizeBinaryArray, open: &mut OpenBlock) {
    let mut last: Option<&[u8]> = None;
    for id in array.iter().flatten() {
        // Rows of one trace are often neighbours.
        if last != Some(id) {
            open.keep(keys::of_whole(id));
            last = Some(id);
        }
    }
}

/// The number of buckets and the bytes of a section; `None` when its filters would say nothing.
fn encode(column: &str, section: usize, blocks: &[Option<Vec<u64>>]) -> Option<(u32, Vec<u8>)> {
    if blocks.iter().filter(|keys| keys.is_none()).count() * 2 > blocks.len() {
        return None;
    }
    let most = blocks.iter().flatten().map(|keys| distinct(keys)).fold(0.0, f64::max);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
    let buckets = ((most * BITS_PER_KEY / (BUCKET_BYTES * 8) as f64).ceil() as u32).max(1);
    let row_bytes = blocks.len() * BUCKET_BYTES + CHECKSUM_BYTES;
    let mut bytes = vec![0; buckets as usize * row_bytes];
    let mut filter = vec![[0_u32; 8]; buckets as usize];
    for (block, keys) in blocks.iter().enumerate() {
        match keys {
            Some(keys) => {
                filter.fill([0; 8]);
                for key in keys {
                    let bucket = &mut filter[bucket_of(*key, buckets)];
                    bucket.iter_mut().zip(bits_of(*key)).for_each(|(word, bit)| *word |= bit);
                }
            }
            None => filter.fill([u32::MAX; 8]),
        }
        for (bucket, row) in filter.iter().zip(bytes.chunks_mut(row_bytes)) {
            for (word, out) in bucket.iter().zip(row[block * BUCKET_BYTES..].chunks_mut(4)) {
                out.copy_from_slice(&word.to_le_bytes());
            }
        }
    }
    for (bucket, row) in bytes.chunks_mut(row_bytes).enumerate() {
        let (lanes, sum) = row.split_at_mut(row_bytes - CHECKSUM_BYTES);
        sum.copy_from_slice(&checksum(column, section, blocks.len(), buckets, bucket, lanes));
    }
    Some((buckets, bytes))
}

/// About how many of these are distinct: from how many bits of a bitmap they leave untouched.
fn distinct(keys: &[u64]) -> f64 {
    let mut bitmap = [0_u64; ESTIMATE_BITS / 64];
    for key in keys {
        let bit = (key >> 48) as usize;
        bitmap[bit / 64] |= 1 << (bit % 64);
    }
    let untouched = bitmap.iter().map(|word| word.count_zeros()).sum::<u32>().max(1);
    let all = ESTIMATE_BITS as f64;
    // Never fewer than what is certain.
    (all * (all / f64::from(untouched)).ln()).max(all - f64::from(untouched))
}
