//! The derived tables' part of the store: counting unflushed spans, folding deltas into segments,
//! merging these, and deriving everything anew.
//!
//! Counting holds the `derived` lock, which comes before `state`; so a snapshot that is taken under
//! both has, of every span, either its derived rows or not it at all. Folding, merging and deriving
//! anew are the compactor's work, one after the other. Not here: the rules ([`crate::derived`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;
use model::derived::{DerivedTable, RULES_VERSION};
use model::signal::Table;
use model::tenant::TenantId;
use model::time::Timestamp;

use super::{Frozen, Snapshot, State, Step, Store, lock, remove_quietly};
use crate::derived::deriver::{Deriver, EDGE_HORIZON_NS, Uncounted};
use crate::derived::manifest::{Delta, LoadedDerived, Replaced};
use crate::derived::merge::{self, MergeError};
use crate::derived::rebuild::Rebuild;
use crate::derived::rows::with_roll_ups;
use crate::derived::segment::{DerivedMeta, DerivedSegment, Writer, Written, check_footer};
use crate::error::StoreError;
use crate::lock::{DataDir, create_dir_durably, sync_dir};
use crate::manifest::Manifest;
use crate::segment::{Segment, TEMPORARY_EXTENSION, file_name};

/// Deltas of a tenant's table that become a segment: at the usual flush interval four minutes'
/// worth, so that a query meets a handful of small batches and the disk few small files.
const FOLD_DELTAS: usize = 8;

/// Rows of deltas that become a segment, however few deltas they are in: what a fold holds in
/// memory is this much and one delta more.
const FOLD_ROWS: usize = 64 * 1024;

/// Spans that a start reads into a tenant's index, the newest: more than fit in it, however small they are.
const REMEMBERED_ROWS_MAX: u64 = 1 << 20;

/// The derived tables of one tenant, as far as they are committed.
#[derive(Clone, Debug, Default)]
pub(super) struct DerivedLive {
    deltas: Vec<Arc<Delta>>,
    segments: Vec<Arc<DerivedSegment>>,
    /// They are to be derived anew.
    stale: bool,
}

/// One derived table of a [`Snapshot`].
#[derive(Clone, Debug, Default)]
pub struct DerivedSnapshot {
    /// Segments. Their files stay while this is held, unless one is set aside.
    pub segments: Vec<Arc<DerivedSegment>>,
    /// Partial rows of the finest resolution that are not in a segment yet.
    pub memory: Vec<RecordBatch>,
}

/// The derived tables of a [`Snapshot`]: exactly what its spans add up to.
#[derive(Clone, Debug, Default)]
pub struct DerivedTables {
    pub(super) tables: [DerivedSnapshot; DerivedTable::COUNT],
    pub(super) complete: bool,
}

impl DerivedTables {
    /// One table.
    #[must_use]
    pub const fn table(&self, table: DerivedTable) -> &DerivedSnapshot {
        &self.tables[table.index()]
    }

    /// False while the tables are still being derived from older spans, and so miss some.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.complete
    }
}

/// Opens the committed derived tables; what cannot be read is to be derived anew. Returns them and
/// the files that are theirs.
pub(super) fn open(
    dir: &DataDir,
    manifest: &mut Manifest,
) -> Result<(BTreeMap<TenantId, DerivedLive>, Vec<PathBuf>), StoreError> {
    let LoadedDerived { stale, deltas, segments } = manifest.load_derived()?;
    let mut live: BTreeMap<TenantId, DerivedLive> = BTreeMap::new();
    let mut files = Vec::with_capacity(segments.len());
    for delta in deltas {
        live.entry(delta.tenant.clone()).or_default().deltas.push(delta);
    }
    for meta in segments {
        let tenant = live.entry(meta.tenant.clone()).or_default();
        let path = dir.derived_dir(&meta.tenant, meta.table).join(meta.file_name());
        match check_footer(&path, &meta)? {
            Ok(()) => {
                files.push(path.clone());
                tenant.segments.push(DerivedSegment::new(meta, path));
            }
            Err(reason) => {
                tracing::error!(segment = meta.id, path = %path.display(), reason, "derived segment is damaged; its tenant's tables are derived anew");
                manifest.mark_stale(&meta.tenant, Some(meta.id))?;
                tenant.stale = true;
            }
        }
    }
    for tenant in stale {
        live.entry(tenant).or_default().stale = true;
    }
    Ok((live, files))
}

impl State {
    fn derived_mut(&mut self, tenant: &TenantId) -> &mut DerivedLive {
        self.derived.entry(tenant.clone()).or_default()
    }

    /// Replaces deltas and segments of a tenant; returns the segments that went.
    fn replace_derived(
        &mut self,
        tenant: &TenantId,
        replaced: &Replaced,
        outputs: &[Arc<DerivedSegment>],
    ) -> Vec<Arc<DerivedSegment>> {
        let live = self.derived_mut(tenant);
        live.deltas.retain(|delta| !replaced.deltas.contains(&delta.id));
        let gone = live.segments.extract_if(.., |segment| replaced.segments.contains(&segment.meta().id)).collect();
        live.segments.extend(outputs.iter().map(Arc::clone));
        gone
    }

    /// Adds what a flush committed.
    pub(super) fn add_deltas(&mut self, deltas: &[Arc<Delta>]) {
        for delta in deltas {
            self.derived_mut(&delta.tenant).deltas.push(Arc::clone(delta));
        }
    }

    /// Batches of spans that are not counted yet, those of the frozen memtable first.
    fn uncounted(&self, deriver: &Deriver, only: Option<&TenantId>) -> Vec<Uncounted> {
        let frozen = self.frozen[Table::Spans.index()].as_ref().map(|frozen| &frozen.memtable);
        let frozen = frozen.map(|memtable| (self.spans_frozen - 1, memtable));
        let mut uncounted = Vec::new();
        for (number, memtable) in frozen.into_iter().chain([(self.spans_frozen, &self.active[Table::Spans.index()])]) {
            for (tenant, rows) in
                memtable.tenants().iter().filter(|(tenant, _)| only.is_none_or(|only| only == *tenant))
            {
                let counted = deriver.counted(tenant, number);
                if rows.batches().len() > counted {
                    let batches = rows.batches()[counted..].to_vec();
                    uncounted.push(Uncounted { tenant: tenant.clone(), memtable: number, batches });
                }
            }
        }
        uncounted
    }

    /// The segments whose spans may still be part of a call, oldest first.
    fn remembered(&self, tenant: &TenantId, now: Timestamp) -> Vec<Arc<Segment>> {
        let Some(live) = self.live.get(&(tenant.clone(), Table::Spans)) else { return Vec::new() };
        let since = now.plus_nanos(-EDGE_HORIZON_NS);
        let mut segments: Vec<_> =
            live.segments.iter().filter(|segment| segment.meta().created_at >= since).map(Arc::clone).collect();
        segments.sort_by_key(|segment| std::cmp::Reverse(segment.meta().created_at));
        let mut rows = 0;
        segments.retain(|segment| {
            let fits = rows < REMEMBERED_ROWS_MAX;
            rows += segment.meta().rows;
            fits
        });
        segments.reverse();
        segments
    }
}

impl Store {
    /// As [`Store::snapshot`], with the derived tables of the same instant. Counts what is not
    /// counted yet, so it takes some 100 ns for each span that came within the last half second.
    #[must_use]
    pub fn snapshot_with_derived(&self, tenant: &TenantId) -> Snapshot {
        let now = self.config.clock.now();
        let mut deriver = lock(&self.derived);
        let ((captured, published_seq), uncounted, remembered, live) = {
            let state = lock(&self.state);
            let uncounted = state.uncounted(&deriver, Some(tenant));
            let remembered =
                if uncounted.is_empty() || deriver.knows(tenant) { Vec::new() } else { state.remembered(tenant, now) };
            let live = state.derived.get(tenant).cloned().unwrap_or_default();
            ((Self::capture(&state, tenant), state.published_seq), uncounted, remembered, live)
        };
        if self.config.derived {
            self.count(&mut deriver, uncounted, BTreeMap::from([(tenant.clone(), remembered)]), now);
        }
        let mut derived = DerivedTables { complete: self.config.derived && !live.stale, ..DerivedTables::default() };
        for segment in live.segments {
            derived.tables[segment.meta().table.index()].segments.push(segment);
        }
        for delta in live.deltas {
            derived.tables[delta.table.index()].memory.push(delta.rows.clone());
        }
        for table in DerivedTable::ALL {
            derived.tables[table.index()].memory.extend(deriver.rows(tenant, table));
        }
        drop(deriver);
        Snapshot { derived: Some(Arc::new(derived)), ..Self::assemble(tenant, captured, published_seq) }
    }

    /// Counts every span that is not counted yet.
    pub(super) fn count_spans(&self) {
        if !self.config.derived {
            return;
        }
        let now = self.config.clock.now();
        let mut deriver = lock(&self.derived);
        let (uncounted, remembered) = {
            let state = lock(&self.state);
            let uncounted = state.uncounted(&deriver, None);
            let unknown: BTreeSet<&TenantId> =
                uncounted.iter().map(|uncounted| &uncounted.tenant).filter(|tenant| !deriver.knows(tenant)).collect();
            let remembered: BTreeMap<_, _> =
                unknown.into_iter().map(|tenant| (tenant.clone(), state.remembered(tenant, now))).collect();
            (uncounted, remembered)
        };
        self.count(&mut deriver, uncounted, remembered, now);
        self.metrics.derived_index_bytes.set(crate::metrics::gauge(deriver.index_bytes() as u64));
    }

    fn count(
        &self,
        deriver: &mut Deriver,
        uncounted: Vec<Uncounted>,
        mut remembered: BTreeMap<TenantId, Vec<Arc<Segment>>>,
        now: Timestamp,
    ) {
        for uncounted in uncounted {
            if !deriver.knows(&uncounted.tenant) {
                let segments = remembered.remove(&uncounted.tenant).unwrap_or_default();
                deriver.remember(&uncounted.tenant, now, &segments);
            }
            deriver.count(uncounted, now);
        }
        self.metrics.derived_callees_unpaired.inc_by(deriver.take_unpaired());
    }

    /// What the frozen memtable of spans adds to the derived tables.
    ///
    /// # Errors
    /// Only when they are not to be derived, and that cannot be noted.
    pub(super) fn deltas_of(&self, frozen: &Frozen) -> Result<Vec<Arc<Delta>>, StoreError> {
        if !self.config.derived {
            self.mark_underived(frozen)?;
            return Ok(Vec::new());
        }
        self.count_spans();
        let memtable = lock(&self.state).spans_frozen - 1;
        let now = self.config.clock.now();
        let deriver = lock(&self.derived);
        let mut deltas = Vec::new();
        for tenant in frozen.memtable.tenants().keys() {
            let Some(partials) = deriver.partials(tenant, memtable) else { continue };
            for table in DerivedTable::ALL {
                if let Some(rows) = partials.batch(table) {
                    let id = self.next_segment_id.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    deltas.push(Arc::new(Delta { id, tenant: tenant.clone(), table, created_at: now, rows }));
                }
            }
        }
        Ok(deltas)
    }

    /// Notes of tenants whose spans are flushed without being counted that their tables miss some.
    fn mark_underived(&self, frozen: &Frozen) -> Result<(), StoreError> {
        let unmarked: Vec<TenantId> = {
            let state = lock(&self.state);
            let is_marked = |tenant: &TenantId| state.derived.get(tenant).is_some_and(|live| live.stale);
            frozen.memtable.tenants().keys().filter(|tenant| !is_marked(tenant)).cloned().collect()
        };
        for tenant in unmarked {
            let mut manifest = lock(&self.manifest);
            manifest.mark_stale(&tenant, None)?;
            lock(&self.state).derived_mut(&tenant).stale = true;
        }
        Ok(())
    }

    /// One piece of work on the derived tables, if there is any; whether there was. The compactor's.
    ///
    /// # Errors
    /// Everything stays as it is then, and the piece is tried again.
    pub fn tend_derived(&self) -> Result<bool, StoreError> {
        Ok(self.fold_once()? || self.merge_derived_once()? || (self.config.derived && self.rebuild_step()?))
    }

    /// Has the derived tables of a tenant derived anew from its spans, by the compactor, in the
    /// background. Queries see the present ones until then. The wish outlives the process.
    ///
    /// # Errors
    /// When the manifest cannot be written.
    pub fn rebuild_derived(&self, tenant: &TenantId) -> Result<(), StoreError> {
        let mut manifest = lock(&self.manifest);
        manifest.mark_stale(tenant, None)?;
        lock(&self.state).derived_mut(tenant).stale = true;
        drop(manifest);
        self.compactor.wake();
        Ok(())
    }

    /// Sets a derived segment aside: its file moves to `quarantine/`, and its tenant's tables are
    /// derived anew. Returns whether it was read until now.
    ///
    /// # Errors
    /// When the manifest cannot be written; the segment is read further then.
    pub fn quarantine_derived(&self, segment: &DerivedSegment, why: &str) -> Result<bool, StoreError> {
        let meta = segment.meta();
        let mut manifest = lock(&self.manifest);
        if !manifest.lists_derived(meta.id)? {
            return Ok(false);
        }
        manifest.mark_stale(&meta.tenant, Some(meta.id))?;
        let replaced = Replaced { deltas: Vec::new(), segments: vec![meta.id] };
        let mut state = lock(&self.state);
        state.replace_derived(&meta.tenant, &replaced, &[]);
        state.derived_mut(&meta.tenant).stale = true;
        drop(state);
        drop(manifest);
        tracing::error!(segment = meta.id, path = %segment.path().display(), reason = why, "derived segment is set aside; its tenant's tables are derived anew");
        let to = self.dir.quarantine().join(format!("{}-{}-{}", meta.tenant, meta.table, meta.file_name()));
        if let Err(error) = std::fs::rename(segment.path(), &to) {
            tracing::warn!(path = %segment.path().display(), %error, "cannot move a derived segment to the quarantine");
        }
        self.compactor.wake();
        Ok(true)
    }

    /// Whether a tenant's committed rows must stay as they are: they are being replaced.
    fn is_rebuilding(&self, tenant: &TenantId) -> bool {
        lock(&self.rebuild).as_ref().is_some_and(|rebuild| rebuild.tenant == *tenant)
    }

    fn fold_once(&self) -> Result<bool, StoreError> {
        let due = {
            let state = lock(&self.state);
            let mut due = None;
            'tenants: for (tenant, live) in &state.derived {
                if self.is_rebuilding(tenant) {
                    continue;
                }
                for table in DerivedTable::ALL {
                    let deltas: Vec<_> =
                        live.deltas.iter().filter(|delta| delta.table == table).map(Arc::clone).collect();
                    let rows: usize = deltas.iter().map(|delta| delta.rows.num_rows()).sum();
                    if deltas.len() >= FOLD_DELTAS || rows >= FOLD_ROWS {
                        due = Some((tenant.clone(), table, deltas));
                        break 'tenants;
                    }
                }
            }
            due
        };
        let Some((tenant, table, deltas)) = due else { return Ok(false) };
        let created_at = deltas.iter().map(|delta| delta.created_at).max().unwrap_or_default();
        let rows = deltas.iter().map(|delta| &delta.rows);
        let levels = with_roll_ups(table, rows).map_err(StoreError::arrow("add up derived rows"))?;
        let output = self.write_derived(&tenant, table, created_at, |writer| {
            levels.iter().try_for_each(|rows| writer.write(rows))
        })?;
        let replaced = Replaced { deltas: deltas.iter().map(|delta| delta.id).collect(), segments: Vec::new() };
        self.commit_derived(&tenant, output.into_iter().collect(), &replaced)
    }

    fn merge_derived_once(&self) -> Result<bool, StoreError> {
        let mut inputs: Vec<Arc<DerivedSegment>> = {
            let state = lock(&self.state);
            let live = state.derived.iter().filter(|(tenant, _)| !self.is_rebuilding(tenant));
            live.flat_map(|(_, live)| live.segments.iter().map(Arc::clone)).collect()
        };
        let metas = inputs.iter().map(|segment| segment.meta());
        let plan = merge::plan(metas, self.config.clock.now(), &self.config.compaction).unwrap_or_default();
        inputs.retain(|segment| plan.contains(&segment.meta().id));
        let Some(first) = inputs.first().map(|segment| segment.meta()) else { return Ok(false) };
        let bytes: u64 = inputs.iter().map(|segment| segment.meta().bytes).sum();
        if self.dir.free_bytes().saturating_sub(self.config.wal_min_free_bytes) < bytes {
            tracing::warn!(needed = bytes, "no room to merge derived segments");
            return Ok(false);
        }
        let created_at = inputs.iter().map(|segment| segment.meta().created_at).max().unwrap_or_default();
        let mut unreadable = None;
        let written = self.write_derived(&first.tenant, first.table, created_at, |writer| {
            merge::merge(&inputs, first.table, writer).map_err(|error| match error {
                MergeError::Input(input, error) => {
                    unreadable = Some(input);
                    error
                }
                MergeError::Output(error) => error,
            })
        });
        let output = match written {
            Ok(output) => output,
            Err(error) => {
                if let Some(segment) = unreadable.map(|input| &inputs[input])
                    && !segment.verify()
                {
                    self.quarantine_derived(segment, &error.to_string())?;
                }
                return Err(error);
            }
        };
        let segments = inputs.iter().map(|segment| segment.meta().id).collect();
        let replaced = Replaced { deltas: Vec::new(), segments };
        self.commit_derived(&first.tenant, output.into_iter().collect(), &replaced)
    }

    /// Replaces what was read by what was written. Always true: when something that was read is
    /// gone, there may be other work.
    fn commit_derived(
        &self,
        tenant: &TenantId,
        outputs: Vec<Arc<DerivedSegment>>,
        replaced: &Replaced,
    ) -> Result<bool, StoreError> {
        let metas: Vec<&DerivedMeta> = outputs.iter().map(|segment| segment.meta()).collect();
        let mut manifest = lock(&self.manifest);
        let missing = match manifest.commit_derived(&metas, replaced) {
            Ok(missing) => missing,
            // The answer may be lost and the commit done all the same.
            Err(error) => match metas.first().map(|meta| manifest.lists_derived(meta.id)).transpose() {
                Ok(Some(true)) => Replaced::default(),
                Ok(_) => {
                    outputs.iter().for_each(|segment| segment.make_obsolete());
                    return Err(error);
                }
                // Unknown: keep the file; the next start knows.
                Err(_) => return Err(error),
            },
        };
        if !missing.is_empty() {
            outputs.iter().for_each(|segment| segment.make_obsolete());
            lock(&self.state).replace_derived(tenant, &missing, &[]);
            return Ok(true);
        }
        self.reach(Step::DerivedAfterCommit)?;
        let gone = lock(&self.state).replace_derived(tenant, replaced, &outputs);
        drop(manifest);
        gone.iter().for_each(|segment| segment.make_obsolete());
        Ok(true)
    }

    /// Writes a derived segment under its final name, durably; `None` when it would have no rows.
    fn write_derived(
        &self,
        tenant: &TenantId,
        table: DerivedTable,
        created_at: Timestamp,
        write: impl FnOnce(&mut Writer) -> Result<(), StoreError>,
    ) -> Result<Option<Arc<DerivedSegment>>, StoreError> {
        let dir = self.dir.derived_dir(tenant, table);
        create_dir_durably(&dir)?;
        let id = self.next_segment_id.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = dir.join(file_name(id));
        let temporary = path.with_extension(TEMPORARY_EXTENSION);
        let named = Writer::create(&temporary, table, tenant).and_then(|mut writer| {
            write(&mut writer)?;
            let written = writer.finish()?;
            self.reach(Step::DerivedBeforeCommit)?;
            if written.rows > 0 {
                std::fs::rename(&temporary, &path).map_err(StoreError::io("rename", &temporary))?;
                sync_dir(&dir)?;
            } else {
                remove_quietly(&temporary);
            }
            Ok(written)
        });
        let Written { rows, bytes, min_time, max_time, checksum } = match named {
            Ok(written) => written,
            Err(error) => {
                if !error.is_stop() {
                    remove_quietly(&temporary);
                    remove_quietly(&path);
                }
                return Err(error);
            }
        };
        if rows == 0 {
            return Ok(None);
        }
        let meta = DerivedMeta {
            id,
            tenant: tenant.clone(),
            table,
            rules_version: RULES_VERSION,
            rows,
            bytes,
            min_time,
            max_time,
            created_at,
            checksum,
        };
        Ok(Some(DerivedSegment::new(meta, path)))
    }

    /// One step of deriving a tenant's tables anew: a segment counted or a slice of time derived.
    fn rebuild_step(&self) -> Result<bool, StoreError> {
        let running = lock(&self.rebuild).take();
        let Some(mut rebuild) = running.or_else(|| self.next_rebuild()) else { return Ok(false) };
        match self.advance(&mut rebuild) {
            Ok(true) => {}
            Ok(false) => {
                *lock(&self.rebuild) = Some(rebuild);
                return Ok(true);
            }
            Err(error) => {
                if !error.is_stop() {
                    // It begins again, with what is readable.
                    rebuild.outputs.iter().for_each(|segment| segment.make_obsolete());
                }
                if let Some(segment) = rebuild.unreadable.take()
                    && !self.verify(&segment)
                {
                    self.quarantine(segment.meta().id, &error.to_string())?;
                }
                return Err(error);
            }
        }
        Ok(true)
    }

    /// The next tenant whose tables are to be derived anew, with what they are to replace.
    fn next_rebuild(&self) -> Option<Rebuild> {
        // Under both locks spans and their derived rows are those of one instant.
        let deriver = lock(&self.derived);
        let state = lock(&self.state);
        let (tenant, live) = state.derived.iter().find(|(_, live)| live.stale)?;
        let (tenant, live) = (tenant.clone(), live.clone());
        let sources: Vec<_> =
            state.live.get(&(tenant.clone(), Table::Spans)).map_or(Vec::new(), |live| live.segments.to_vec());
        drop((state, deriver));
        tracing::info!(%tenant, segments = sources.len(), "deriving span_metrics and service_edges anew");
        let replaced = Replaced {
            deltas: live.deltas.iter().map(|delta| delta.id).collect(),
            segments: live.segments.iter().map(|segment| segment.meta().id).collect(),
        };
        Some(Rebuild::new(tenant, sources, replaced, self.seed))
    }

    /// Does one step; whether it was the last.
    fn advance(&self, rebuild: &mut Rebuild) -> Result<bool, StoreError> {
        if let Some(partials) = rebuild.step()? {
            for table in DerivedTable::ALL {
                let Some(rows) = partials.batch(table) else { continue };
                let levels = with_roll_ups(table, [&rows]).map_err(StoreError::arrow("add up derived rows"))?;
                let output = self.write_derived(&rebuild.tenant, table, rebuild.created_at, |writer| {
                    levels.iter().try_for_each(|rows| writer.write(rows))
                })?;
                rebuild.outputs.extend(output);
            }
        }
        if !rebuild.is_done() {
            return Ok(false);
        }
        let metas: Vec<&DerivedMeta> = rebuild.outputs.iter().map(|segment| segment.meta()).collect();
        let mut manifest = lock(&self.manifest);
        // Doing it again changes nothing, so an answer that is lost does no harm.
        manifest.commit_rebuild(&rebuild.tenant, &metas, &rebuild.replaced)?;
        self.reach(Step::DerivedAfterCommit)?;
        let mut state = lock(&self.state);
        let gone = state.replace_derived(&rebuild.tenant, &rebuild.replaced, &rebuild.outputs);
        state.derived_mut(&rebuild.tenant).stale = false;
        drop(state);
        drop(manifest);
        gone.iter().for_each(|segment| segment.make_obsolete());
        self.metrics.derived_rebuilds.inc();
        tracing::info!(tenant = %rebuild.tenant, segments = rebuild.outputs.len(), "span_metrics and service_edges are derived anew");
        Ok(true)
    }

    /// Removes derived rows that are past the retention of traces; returns how many files and deltas.
    pub(super) fn expire_derived(&self, now: Timestamp) -> Result<usize, StoreError> {
        let keep = self.config.retention_of(Table::Spans.signal());
        let is_expired = |age: Timestamp| age.plus_nanos(keep) < now;
        let mut manifest = lock(&self.manifest);
        let mut by_tenant: BTreeMap<TenantId, Replaced> = BTreeMap::new();
        for (tenant, live) in &lock(&self.state).derived {
            let deltas: Vec<u64> =
                live.deltas.iter().filter(|delta| is_expired(delta.age_time())).map(|delta| delta.id).collect();
            let segments = live.segments.iter().map(|segment| segment.meta());
            let segments: Vec<u64> = segments.filter(|meta| is_expired(meta.age_time())).map(|meta| meta.id).collect();
            let expired = Replaced { deltas, segments };
            if !expired.is_empty() {
                by_tenant.insert(tenant.clone(), expired);
            }
        }
        let mut removed = 0;
        for (tenant, replaced) in &by_tenant {
            manifest.remove_derived(replaced)?;
            let gone = lock(&self.state).replace_derived(tenant, replaced, &[]);
            gone.iter().for_each(|segment| segment.make_obsolete());
            removed += replaced.len();
        }
        Ok(removed)
    }
}
