//! Requests of several tenants, decoded together into the entries of one group of the log.
//!
//! Whoever feeds the log does this in the same way: the pipeline behind the receivers, and the reader of Kafka's
//! topics. Not here: when a group ends, and who is told.

use std::collections::BTreeMap;

use model::ledger::LedgerDelta;
use model::signal::{Signal, Table};
use model::tenant::TenantId;
use model::time::Timestamp;
use store::Entry;
use store::record::{self, LogEntryMeta, RecordError};

use crate::decode::{DecodeError, Decoder, SeriesGate};

/// Decoders that are kept for the next group, so that they begin with the room and the attribute shapes of the last
/// one. More tenants than these in one group are rare.
const SPARE_DECODERS_MAX: usize = 4;

/// A group that is being gathered. Once finished it is as new.
#[derive(Debug, Default)]
pub struct Gather {
    tenants: BTreeMap<TenantId, Gathered>,
    spare: Vec<Decoder>,
}

/// What one tenant has in it.
#[derive(Debug)]
struct Gathered {
    decoder: Decoder,
    deltas: BTreeMap<Signal, LedgerDelta>,
}

impl Gather {
    /// Decodes one request and adds its rows and counts.
    ///
    /// # Errors
    /// [`DecodeError`] when the body is not the message it should be; nothing is added then.
    pub fn decode(
        &mut self,
        signal: Signal,
        tenant: &TenantId,
        body: &[u8],
        now: Timestamp,
        gate: &mut dyn SeriesGate,
    ) -> Result<LedgerDelta, DecodeError> {
        let gathered = self
            .tenants
            .entry(tenant.clone())
            .or_insert_with(|| Gathered { decoder: self.spare.pop().unwrap_or_default(), deltas: BTreeMap::new() });
        let delta = gathered.decoder.decode(signal, body, now, gate)?;
        gathered.deltas.entry(signal).or_default().merge(&delta);
        Ok(delta)
    }

    /// Rows so far.
    #[must_use]
    pub fn rows(&self) -> usize {
        let of = |gathered: &Gathered| Table::ALL.into_iter().map(|table| gathered.decoder.rows(table)).sum::<usize>();
        self.tenants.values().map(of).sum()
    }

    /// Throws away what was gathered, with its decoders: one that panicked is not used again.
    pub fn clear(&mut self) {
        self.tenants.clear();
    }

    /// The log's entries: one for each tenant and table, with the ledger line of each signal on the first of its tables.
    /// Without `encode` they have no bytes, for a log that keeps none.
    ///
    /// # Errors
    /// [`RecordError`]; the group is gone then.
    pub fn finish(&mut self, now: Timestamp, encode: bool) -> Result<Vec<Entry>, RecordError> {
        let minute = now.floor_minute().0;
        let mut entries = Vec::new();
        for (tenant, mut gathered) in std::mem::take(&mut self.tenants) {
            let meta = |table: Table, deltas: &mut BTreeMap<Signal, LedgerDelta>| LogEntryMeta {
                tenant: tenant.clone(),
                table,
                minute,
                ledger: deltas.remove(&table.signal()).unwrap_or_default(),
            };
            let batches = gathered.decoder.finish();
            if self.spare.len() < SPARE_DECODERS_MAX {
                self.spare.push(gathered.decoder);
            }
            for (table, batch) in batches {
                let meta = meta(table, &mut gathered.deltas);
                let encoded = if encode { record::encode(&meta, Some(&batch))? } else { Vec::new() };
                entries.push(Entry { meta, batch: Some(batch), encoded });
            }
            // Signals of which every item was refused still count in the ledger.
            for table in Table::ALL {
                if gathered.deltas.get(&table.signal()).is_some_and(|delta| !delta.is_empty()) {
                    let meta = meta(table, &mut gathered.deltas);
                    let encoded = record::encode(&meta, None)?;
                    entries.push(Entry { meta, batch: None, encoded });
                }
            }
        }
        Ok(entries)
    }
}
