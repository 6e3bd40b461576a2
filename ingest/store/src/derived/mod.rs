//! `span_metrics` and `service_edges`: what is derived from spans as they come in.
//!
//! Derived rows are partial sums. The spans of a memtable are counted once, in the order they were
//! acknowledged; what they add is in memory while they are, and is committed to the manifest in the
//! transaction that commits their segment. So at any instant, and after a crash at any instant, the
//! derived tables are the sums over exactly the spans that are there. The README has the reasons.
//!
//! # Layout
//! - [`spans`]: what is read of a batch; [`names`], [`columns`]: texts and measures while counting
//! - [`metrics`], [`edges`]: the two folds over batches; [`deriver`]: both, for all tenants
//! - [`rows`]: adding up rows that are Arrow already
//! - [`segment`], [`merge`], [`manifest`]: files of such rows, and the manifest's part of them
//! - [`stored`], [`rebuild`]: reading spans back, and deriving everything anew

mod columns;
pub(crate) mod deriver;
mod edges;
pub(crate) mod manifest;
pub(crate) mod merge;
mod metrics;
mod names;
pub(crate) mod rebuild;
pub(crate) mod rows;
pub(crate) mod segment;
mod spans;
mod stored;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

/// Hashes words: a folded multiplication for each. The inputs are ids and small numbers that this
/// process gave out; where a sender chooses them, the seed is unknown to it.
#[inline]
fn mix(seed: u64, words: &[u64]) -> u64 {
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    words.iter().fold(seed ^ SPREAD, |hash, word| {
        let product = u128::from(hash ^ word) * u128::from(SPREAD | 1);
        #[expect(clippy::cast_possible_truncation, reason = "the halves are folded")]
        let (low, high) = (product as u64, (product >> 64) as u64);
        low ^ high
    })
}
