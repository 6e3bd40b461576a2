//! Block filters: which blocks of a segment's rows may hold a value, so that the few rows of a user,
//! a trace or a rare word are found without decoding the pages of all others.
//!
//! A segment has, for some columns, a small split-block Bloom filter for every
//! [`BLOCK_ROWS`] rows, which are a page of each column. What is hashed into them, and what a
//! predicate asks for, are *keys* ([`keys`]). A filter never says that a block lacks a key that
//! is there; the predicate itself is still evaluated over what is left.
//!
//! **On disk.** The filters of [`SECTION_BLOCKS`] blocks of one column are a section, and all of
//! them have the same number of buckets of 32 bytes. A section is stored bucket by bucket, not
//! filter by filter: bucket 0 of every block, a checksum, bucket 1 of every block, and so on. A key
//! is in one bucket, whose number is the same in all blocks, so looking it up in 64 blocks
//! (half a million rows) is one read of two kilobytes, and nothing has to be kept in memory.
//! Sections are written between row groups, where readers of Parquet do not look; where they are is
//! in the file's metadata ([`METADATA_FILTERS`]).
//!
//! Not here: SQL (the query crate's), and statistics, which prune what is sorted or alike.

mod build;
pub mod keys;
mod read;

use serde::{Deserialize, Serialize};

pub(crate) use build::FilterBuilder;
pub use read::{BlockFilters, Blocks, FilterError, Need};

/// Rows of a block.
pub const BLOCK_ROWS: usize = 8192;

/// Blocks of a section, one bit of a word each.
pub const SECTION_BLOCKS: usize = 64;

/// Columns of a table that have filters, beside promoted ones: ids that are looked up, and text that is
/// searched.
pub const COLUMNS: [&str; 2] = ["trace_id", "body"];

/// The key of the filters' [`Directory`] in a file's metadata.
pub const METADATA_FILTERS: &str = "godseye.block_filters";

/// The version of [`Directory`], of what it points at, and of what keys are.
const VERSION: u32 = 1;

/// Bytes of a bucket.
const BUCKET_BYTES: usize = 32;

/// Bytes of the checksum after the buckets of one number.
const CHECKSUM_BYTES: usize = 4;

/// Where a file's filters are, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Directory {
    version: u32,
    block_rows: usize,
    rows: u64,
    filters: Vec<ColumnFilters>,
}

/// The sections of one column, from the first row on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ColumnFilters {
    /// The column's name in the file.
    column: String,
    /// Offset in the file and number of buckets; `None` where there is too much for a filter.
    sections: Vec<Option<(u64, u32)>>,
}

/// The bucket of a key. The upper half of a key says which, the lower half which bits.
fn bucket_of(key: u64, buckets: u32) -> usize {
    usize::try_from(((key >> 32) * u64::from(buckets)) >> 32).expect("a bucket's number has 32 bits")
}

/// The bits of a key in its bucket: one in each of eight words, as in Parquet's own Bloom filters.
fn bits_of(key: u64) -> [u32; 8] {
    const SALT: [u32; 8] =
        [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947, 0x5c6b_fb31];
    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    let low = key as u32;
    SALT.map(|salt| 1 << (low.wrapping_mul(salt) >> 27))
}

/// The checksum of the buckets of one number. What the directory says of them is in it, so that a
/// damaged directory shows as well as damaged buckets do.
fn checksum(column: &str, section: usize, blocks: usize, buckets: u32, bucket: usize, bytes: &[u8]) -> [u8; 4] {
    let mut sum = crc32c::crc32c(column.as_bytes());
    for number in [section as u64, blocks as u64, u64::from(buckets), bucket as u64] {
        sum = crc32c::crc32c_append(sum, &number.to_le_bytes());
    }
    crc32c::crc32c_append(sum, bytes).to_le_bytes()
}

/// Blocks of a section of a file with so many blocks.
fn blocks_of_section(blocks: usize, section: usize) -> usize {
    (blocks - section * SECTION_BLOCKS).min(SECTION_BLOCKS)
}

#[cfg(test)]
mod tests;
