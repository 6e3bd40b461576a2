//! A stored table as a DataFusion scan: segments whose time range can match, of them the blocks
//! whose filters can, read with row-group, page and bloom-filter pruning, united with the batches in
//! memory.
//!
//! Not here: what people type (`end_time`, `attributes['x']`; see [`crate::tables`]). The schema
//! is `model::schema::schema(table)`, unchanged, whatever file a row comes from.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, TimestampNanosecondArray, UInt64Array};
use arrow::compute::{max, min};
use arrow::datatypes::{SchemaRef, TimestampNanosecondType};
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::{TreeNode as _, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, ScalarValue, Statistics};
use datafusion::config::TableParquetOptions;
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::physical_plan::parquet::{
    CachedParquetFileReaderFactory, ParquetFileReaderFactory, ParquetRowSelection,
};
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, FileSource as _, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_expr::{PhysicalExpr, conjunction_opt};
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricBuilder};
use datafusion::physical_plan::union::UnionExec;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use model::schema::schema;
use model::signal::Table;
use object_store::ObjectMeta;
use object_store::path::Path;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, RowSelection};
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData};
use store::filter::Blocks;

use crate::layout::{AdapterFactory, attribute_key};
use crate::needles::{FilterCache, blocks_of, needed};
use crate::source::{SegmentFile, TableSnapshot};

/// Where the engine registers the local disk. No SQL can name it: there are no URL tables.
pub const SEGMENT_STORE: &str = "godseye://segments";

/// What the scans of one query touched, summed over its tables.
#[derive(Debug, Default)]
pub struct ScanCounters {
    /// Segments of the snapshot's scanned tables.
    pub segments_total: AtomicU64,
    /// Segments left out by their time range or their block filters.
    pub segments_pruned: AtomicU64,
    /// Blocks of rows whose filters were asked.
    pub blocks_total: AtomicU64,
    /// Blocks of rows left out by their filters.
    pub blocks_pruned: AtomicU64,
    /// Rows in memory that the scans went over.
    pub memory_rows: AtomicU64,
    scanned: Mutex<Vec<SegmentFile>>,
    cut: Mutex<Vec<&'static str>>,
}

impl ScanCounters {
    /// The segments that were opened, for checking them when reading failed.
    #[must_use]
    pub fn scanned(&self) -> Vec<SegmentFile> {
        self.scanned.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tables that have more rows than a query reads.
    pub(crate) fn cut_tables(&self) -> Vec<&'static str> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn cut(&self, table: &'static str) {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner).push(table);
    }

    pub(crate) fn opened(&self, segments: Vec<SegmentFile>) {
        self.scanned.lock().unwrap_or_else(PoisonError::into_inner).extend(segments);
    }
}

/// The footer and the page index of a file, read and cached together. By itself DataFusion caches
/// footers and reads the page index for each query, and not at all where only blocks are chosen.
#[derive(Debug)]
struct WithPageIndex(CachedParquetFileReaderFactory);

impl ParquetFileReaderFactory for WithPageIndex {
    fn create_reader(
        &self,
        partition: usize,
        file: PartitionedFile,
        metadata_size_hint: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<Box<dyn AsyncFileReader + Send>> {
        let reader = self.0.create_reader(partition, file, metadata_size_hint, metrics)?;
        Ok(Box::new(PageIndexReader(reader)))
    }
}

struct PageIndexReader(Box<dyn AsyncFileReader + Send>);

impl AsyncFileReader for PageIndexReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, parquet::errors::Result<Bytes>> {
        self.0.get_bytes(range)
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, parquet::errors::Result<Vec<Bytes>>> {
        self.0.get_byte_ranges(ranges)
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, parquet::errors::Result<Arc<ParquetMetaData>>> {
        let options = options.cloned().unwrap_or_default().with_page_index_policy(PageIndexPolicy::Optional);
        async move { self.0.get_metadata(Some(&options)).await }.boxed()
    }
}

/// The rows of a file that blocks are.
fn selection(blocks: &Blocks, rows: u64) -> ParquetRowSelection {
    let rows = usize::try_from(rows).unwrap_or(usize::MAX);
    ParquetRowSelection::new(RowSelection::from_consecutive_ranges(blocks.row_ranges().into_iter(), rows))
}

/// Segments as a scan of Parquet files with these columns, and of each segment all rows or those of
/// some blocks. What else is to be known of the files and of the scan, `source` and `config` add.
pub(crate) fn scan_files(
    state: &dyn Session,
    schema: &SchemaRef,
    segments: &[SegmentFile],
    blocks: &[Option<Blocks>],
    projection: Option<&Vec<usize>>,
    source: impl FnOnce(ParquetSource) -> ParquetSource,
    config: impl FnOnce(FileScanConfigBuilder) -> FileScanConfigBuilder,
) -> Result<Arc<dyn ExecutionPlan>> {
    let url = ObjectStoreUrl::parse(SEGMENT_STORE)?;
    let mut files = Vec::with_capacity(segments.len());
    for (index, segment) in segments.iter().enumerate() {
        let file = PartitionedFile::new_from_meta(ObjectMeta {
            location: Path::from_absolute_path(&segment.path)
                .map_err(|error| datafusion::error::DataFusionError::ObjectStore(Box::new(error.into())))?,
            last_modified: Default::default(), // Segments never change; the cache key is the path.
            size: segment.bytes,
            e_tag: None,
            version: None,
        });
        files.push(match blocks.get(index).and_then(Option::as_ref) {
            Some(blocks) => file.with_extension(selection(blocks, segment.rows)),
            None => file,
        });
    }
    let options = state.config_options();
    let parquet = TableParquetOptions { global: options.execution.parquet.clone(), ..TableParquetOptions::default() };
    let runtime = state.runtime_env();
    let readers = CachedParquetFileReaderFactory::new(
        runtime.object_store(url.clone())?,
        runtime.cache_manager.get_file_metadata_cache(),
    );
    let parquet = ParquetSource::new(Arc::clone(schema))
        .with_table_parquet_options(parquet)
        .with_parquet_file_reader_factory(Arc::new(WithPageIndex(readers)))
        .with_pushdown_filters(true);
    let rows: u64 = segments.iter().map(|segment| segment.rows).sum();
    let rows = Precision::Exact(usize::try_from(rows).unwrap_or(usize::MAX));
    let is_part = blocks.iter().any(Option::is_some);
    let num_rows = if is_part { rows.to_inexact() } else { rows };
    let statistics = Statistics { num_rows, ..Statistics::new_unknown(schema) };
    let partitions = state.config().target_partitions();
    let builder = FileScanConfigBuilder::new(url, Arc::new(source(parquet)))
        .with_file_groups(FileGroup::new(files).split_files(partitions))
        .with_statistics(statistics)
        .with_projection_indices(projection.cloned())?;
    Ok(DataSourceExec::from_data_source(config(builder).build()))
}

/// One stored table of one snapshot.
#[derive(Debug)]
pub struct PhysicalTable {
    table: Table,
    schema: SchemaRef,
    rows: TableSnapshot,
    counters: Arc<ScanCounters>,
}

impl PhysicalTable {
    /// The table's rows in a snapshot.
    #[must_use]
    pub fn new(table: Table, rows: TableSnapshot, counters: Arc<ScanCounters>) -> Self {
        Self { table, schema: schema(table), rows, counters }
    }

    /// Which of these, each with its least and greatest time, may hold rows that match.
    fn matching(&self, state: &dyn Session, filters: &[Expr], times: &[Times]) -> Result<Vec<bool>> {
        let all = vec![true; times.len()];
        let Some(predicate) = conjunction(filters.iter().cloned()) else {
            return Ok(all);
        };
        let df_schema = DFSchema::try_from(Arc::clone(&self.schema))?;
        let predicate = state.create_physical_expr(predicate, &df_schema)?;
        // A predicate that cannot be used for pruning is no error.
        let Some(predicate) =
            PruningPredicateBuilder::new().with_file_schema(Arc::clone(&self.schema)).build(predicate)
        else {
            return Ok(all);
        };
        let ranges = TimeRanges { column: self.table.time_column(), times };
        Ok(predicate.prune(&ranges).unwrap_or(all))
    }

    /// The batches in memory that may hold rows that match, in as many parts as there are threads. Rows that came last are
    /// in memory, so a question about an earlier time goes over none of them.
    fn memory(&self, state: &dyn Session, filters: &[Expr]) -> Result<Vec<Vec<RecordBatch>>> {
        let column = self.schema.index_of(self.table.time_column())?;
        let times = self.rows.memory.iter().map(|batch| {
            let times = batch.column(column).as_primitive_opt::<TimestampNanosecondType>()?;
            Some(Times { min: min(times)?, max: max(times)?, rows: batch.num_rows() as u64 })
        });
        // A batch of which this cannot be told, such as one without rows, may hold anything.
        let times: Vec<Times> = times.map(|times| times.unwrap_or(Times::ALL)).collect();
        let matching = self.matching(state, filters, &times)?;
        let kept = self.rows.memory.iter().zip(matching).filter(|(_, keep)| *keep).map(|(batch, _)| batch);
        let rows: usize = kept.clone().map(RecordBatch::num_rows).sum();
        let part_rows = rows.div_ceil(state.config().target_partitions().max(1)).max(1);
        let mut parts = vec![Vec::new()];
        let mut in_part = 0;
        for batch in kept {
            if in_part >= part_rows {
                parts.push(Vec::new());
                in_part = 0;
            }
            in_part += batch.num_rows();
            parts.last_mut().expect("there is one").push(batch.clone());
        }
        Ok(parts)
    }

    /// The filters as they are evaluated.
    fn predicates(&self, state: &dyn Session, filters: &[Expr]) -> Result<Vec<Arc<dyn PhysicalExpr>>> {
        let df_schema = DFSchema::try_from(Arc::clone(&self.schema))?;
        filters.iter().map(|filter| state.create_physical_expr(filter.clone(), &df_schema)).collect()
    }

    /// The filters on attributes. To the optimizer they are on a struct, which it does not push into
    /// a scan; but many files have the attribute as a plain column. The filter above the scan stays
    /// and sees to the others.
    fn attribute_predicate(predicates: &[Arc<dyn PhysicalExpr>]) -> Result<Option<Arc<dyn PhysicalExpr>>> {
        let mut on_attributes = Vec::new();
        for predicate in predicates {
            let mut is_on_attribute = false;
            predicate.apply(|expr| {
                is_on_attribute |= attribute_key(expr).is_some();
                Ok(if is_on_attribute { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
            })?;
            if is_on_attribute {
                on_attributes.push(Arc::clone(predicate));
            }
        }
        Ok(conjunction_opt(on_attributes))
    }

    /// The blocks of each segment that may have what the predicates need, and only segments that
    /// have such blocks.
    async fn with_blocks(
        &self,
        state: &dyn Session,
        segments: Vec<SegmentFile>,
        predicates: &[Arc<dyn PhysicalExpr>],
    ) -> (Vec<SegmentFile>, Vec<Option<Blocks>>) {
        let cache = state.config().get_extension::<FilterCache>();
        let (Some(cache), Some(need)) = (cache, needed(predicates)) else { return (segments, Vec::new()) };
        if !segments.iter().any(|segment| segment.filters) {
            return (segments, Vec::new());
        }
        let blocks = blocks_of(cache, &segments, need, state.config().target_partitions()).await;
        let of = |count: fn(&Blocks) -> usize| blocks.iter().flatten().map(count).sum::<usize>() as u64;
        let total = of(Blocks::total);
        self.counters.blocks_total.fetch_add(total, Ordering::Relaxed);
        self.counters.blocks_pruned.fetch_add(total - of(Blocks::chosen), Ordering::Relaxed);
        let found = segments.into_iter().zip(blocks);
        found.filter(|(_, blocks)| blocks.as_ref().is_none_or(|blocks| blocks.chosen() > 0)).unzip()
    }

    fn scan_segments(
        &self,
        state: &dyn Session,
        (segments, blocks): (&[SegmentFile], &[Option<Blocks>]),
        projection: Option<&Vec<usize>>,
        predicates: &[Arc<dyn PhysicalExpr>],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let predicate = Self::attribute_predicate(predicates)?;
        let of = |count: fn(&Blocks) -> usize| blocks.iter().flatten().map(count).sum::<usize>();
        let (total, chosen) = (of(Blocks::total), of(Blocks::chosen));
        scan_files(
            state,
            &self.schema,
            segments,
            blocks,
            projection,
            |source| {
                if total > 0 {
                    let shown = MetricBuilder::new(source.metrics()).pruning_metrics("blocks_pruned_filters", 0);
                    shown.add_pruned(total - chosen);
                    shown.add_matched(chosen);
                }
                match predicate {
                    Some(predicate) => source.with_predicate(predicate),
                    None => source,
                }
            },
            |config| config.with_limit(limit).with_expr_adapter(Some(Arc::new(AdapterFactory(self.table)))),
        )
    }
}

/// The least and the greatest time of some rows, and how many they are.
#[derive(Clone, Copy)]
struct Times {
    min: i64,
    max: i64,
    rows: u64,
}

impl Times {
    /// Any time.
    const ALL: Self = Self { min: i64::MIN, max: i64::MAX, rows: 0 };
}

struct TimeRanges<'a> {
    column: &'static str,
    times: &'a [Times],
}

impl TimeRanges<'_> {
    fn times(&self, column: &Column, time: impl Fn(&Times) -> i64) -> Option<ArrayRef> {
        (column.name == self.column).then(|| {
            let times = self.times.iter().map(|times| Some(time(times)));
            Arc::new(times.collect::<TimestampNanosecondArray>().with_timezone("UTC")) as ArrayRef
        })
    }
}

impl PruningStatistics for TimeRanges<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.times(column, |times| times.min)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.times(column, |times| times.max)
    }

    fn num_containers(&self) -> usize {
        self.times.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        (column.name == self.column).then(|| Arc::new(UInt64Array::from(vec![0; self.times.len()])) as ArrayRef)
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(self.times.iter().map(|times| Some(times.rows)).collect::<UInt64Array>()))
    }

    fn contained(&self, _column: &Column, _values: &std::collections::HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

#[async_trait]
impl TableProvider for PhysicalTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // Inexact: pruning leaves rows that do not match, and a filter above (which the optimizer
        // moves into the Parquet scan where it can) drops them.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    fn statistics(&self) -> Option<Statistics> {
        let memory: usize = self.rows.memory.iter().map(RecordBatch::num_rows).sum();
        let segments: u64 = self.rows.segments.iter().map(|segment| segment.rows).sum();
        let rows = usize::try_from(segments).unwrap_or(usize::MAX).saturating_add(memory);
        let memory: usize = self.rows.memory.iter().map(RecordBatch::get_array_memory_size).sum();
        let segments: u64 = self.rows.segments.iter().map(|segment| crate::bounds::in_memory(segment.bytes)).sum();
        let bytes = usize::try_from(segments).unwrap_or(usize::MAX).saturating_add(memory);
        Some(Statistics {
            num_rows: Precision::Exact(rows),
            total_byte_size: Precision::Inexact(bytes),
            ..Statistics::new_unknown(&self.schema)
        })
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let of = |segment: &SegmentFile| Times { min: segment.min_time, max: segment.max_time, rows: segment.rows };
        let times: Vec<Times> = self.rows.segments.iter().map(of).collect();
        let matching = self.matching(state, filters, &times)?;
        let segments: Vec<SegmentFile> = self
            .rows
            .segments
            .iter()
            .zip(&matching)
            .filter(|(_, keep)| **keep)
            .map(|(segment, _)| segment.clone())
            .collect();
        let predicates = self.predicates(state, filters)?;
        let (segments, blocks) = self.with_blocks(state, segments, &predicates).await;
        let total = self.rows.segments.len();
        self.counters.segments_total.fetch_add(total as u64, Ordering::Relaxed);
        self.counters.segments_pruned.fetch_add((total - segments.len()) as u64, Ordering::Relaxed);
        let memory = self.memory(state, filters)?;
        let memory_rows: usize = memory.iter().flatten().map(RecordBatch::num_rows).sum();
        self.counters.memory_rows.fetch_add(memory_rows as u64, Ordering::Relaxed);

        let mut inputs: Vec<Arc<dyn ExecutionPlan>> = Vec::with_capacity(2);
        if !segments.is_empty() {
            inputs.push(self.scan_segments(state, (&segments, &blocks), projection, &predicates, limit)?);
            self.counters.opened(segments);
        }
        if memory_rows > 0 || inputs.is_empty() {
            inputs.push(MemorySourceConfig::try_new_exec(&memory, Arc::clone(&self.schema), projection.cloned())?);
        }
        match (inputs.pop(), inputs.pop()) {
            (Some(only), None) => Ok(only),
            (Some(memory), Some(files)) => UnionExec::try_new(vec![files, memory]),
            _ => datafusion::common::internal_err!("a scan without an input"),
        }
    }
}
