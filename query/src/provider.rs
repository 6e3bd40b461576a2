//! A stored table as a DataFusion scan: segments whose time range can match, read with row-group,
//! page and bloom-filter pruning, united with the batches in memory.
//!
//! Not here: what people type (`end_time`, `attributes['x']`; see [`crate::tables`]). The schema
//! is `model::schema::schema(table)`, unchanged, whatever file a row comes from.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{ArrayRef, BooleanArray, TimestampNanosecondArray, UInt64Array};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::{TreeNode as _, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, ScalarValue, Statistics};
use datafusion::config::TableParquetOptions;
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_expr::{PhysicalExpr, conjunction_opt};
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::union::UnionExec;
use model::schema::schema;
use model::signal::Table;
use object_store::ObjectMeta;
use object_store::path::Path;

use crate::layout::{AdapterFactory, attribute_key};
use crate::source::{SegmentFile, TableSnapshot};

/// Where the engine registers the local disk. No SQL can name it: there are no URL tables.
pub const SEGMENT_STORE: &str = "godseye://segments";

/// What the scans of one query touched, summed over its tables.
#[derive(Debug, Default)]
pub struct ScanCounters {
    /// Segments of the snapshot's scanned tables.
    pub segments_total: AtomicU64,
    /// Segments left out by their time range, without opening them.
    pub segments_pruned: AtomicU64,
    /// Rows in memory that the scans went over.
    pub memory_rows: AtomicU64,
    scanned: Mutex<Vec<SegmentFile>>,
}

impl ScanCounters {
    /// The segments that were opened, for checking them when reading failed.
    #[must_use]
    pub fn scanned(&self) -> Vec<SegmentFile> {
        self.scanned.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn opened(&self, segments: Vec<SegmentFile>) {
        self.scanned.lock().unwrap_or_else(PoisonError::into_inner).extend(segments);
    }
}

/// Segments as a scan of Parquet files with these columns. What else is to be known of the files
/// and of the scan, `source` and `config` add.
pub(crate) fn scan_files(
    state: &dyn Session,
    schema: &SchemaRef,
    segments: &[SegmentFile],
    projection: Option<&Vec<usize>>,
    source: impl FnOnce(ParquetSource) -> ParquetSource,
    config: impl FnOnce(FileScanConfigBuilder) -> FileScanConfigBuilder,
) -> Result<Arc<dyn ExecutionPlan>> {
    let url = ObjectStoreUrl::parse(SEGMENT_STORE)?;
    let mut files = Vec::with_capacity(segments.len());
    for segment in segments {
        files.push(PartitionedFile::new_from_meta(ObjectMeta {
            location: Path::from_absolute_path(&segment.path)
                .map_err(|error| datafusion::error::DataFusionError::ObjectStore(Box::new(error.into())))?,
            last_modified: Default::default(), // Segments never change; the cache key is the path.
            size: segment.bytes,
            e_tag: None,
            version: None,
        }));
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
        .with_parquet_file_reader_factory(Arc::new(readers))
        .with_pushdown_filters(true);
    let rows: u64 = segments.iter().map(|segment| segment.rows).sum();
    let statistics = Statistics {
        num_rows: Precision::Exact(usize::try_from(rows).unwrap_or(usize::MAX)),
        ..Statistics::new_unknown(schema)
    };
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

    /// Which segments may hold rows that match.
    fn matching(&self, state: &dyn Session, filters: &[Expr]) -> Result<Vec<bool>> {
        let all = vec![true; self.rows.segments.len()];
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
        let ranges = TimeRanges { column: self.table.time_column(), segments: &self.rows.segments };
        Ok(predicate.prune(&ranges).unwrap_or(all))
    }

    /// The filters on attributes. To the optimizer they are on a struct, which it does not push into
    /// a scan; but many files have the attribute as a plain column. The filter above the scan stays
    /// and sees to the others.
    fn attribute_predicate(&self, state: &dyn Session, filters: &[Expr]) -> Result<Option<Arc<dyn PhysicalExpr>>> {
        let df_schema = DFSchema::try_from(Arc::clone(&self.schema))?;
        let mut predicates = Vec::new();
        for filter in filters {
            let predicate = state.create_physical_expr(filter.clone(), &df_schema)?;
            let mut is_on_attribute = false;
            predicate.apply(|expr| {
                is_on_attribute |= attribute_key(expr).is_some();
                Ok(if is_on_attribute { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
            })?;
            if is_on_attribute {
                predicates.push(predicate);
            }
        }
        Ok(conjunction_opt(predicates))
    }

    fn scan_segments(
        &self,
        state: &dyn Session,
        segments: &[SegmentFile],
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let predicate = self.attribute_predicate(state, filters)?;
        scan_files(
            state,
            &self.schema,
            segments,
            projection,
            |source| match predicate {
                Some(predicate) => source.with_predicate(predicate),
                None => source,
            },
            |config| config.with_limit(limit).with_expr_adapter(Some(Arc::new(AdapterFactory(self.table)))),
        )
    }
}

struct TimeRanges<'a> {
    column: &'static str,
    segments: &'a [SegmentFile],
}

impl TimeRanges<'_> {
    fn times(&self, column: &Column, time: impl Fn(&SegmentFile) -> i64) -> Option<ArrayRef> {
        (column.name == self.column).then(|| {
            let times = self.segments.iter().map(|segment| Some(time(segment)));
            Arc::new(times.collect::<TimestampNanosecondArray>().with_timezone("UTC")) as ArrayRef
        })
    }
}

impl PruningStatistics for TimeRanges<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.times(column, |segment| segment.min_time)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.times(column, |segment| segment.max_time)
    }

    fn num_containers(&self) -> usize {
        self.segments.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        (column.name == self.column).then(|| Arc::new(UInt64Array::from(vec![0; self.segments.len()])) as ArrayRef)
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(self.segments.iter().map(|segment| Some(segment.rows)).collect::<UInt64Array>()))
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
        let memory: usize = self.rows.memory.iter().map(arrow::array::RecordBatch::num_rows).sum();
        let segments: u64 = self.rows.segments.iter().map(|segment| segment.rows).sum();
        let rows = usize::try_from(segments).unwrap_or(usize::MAX).saturating_add(memory);
        let memory: usize = self.rows.memory.iter().map(arrow::array::RecordBatch::get_array_memory_size).sum();
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
        let matching = self.matching(state, filters)?;
        let segments: Vec<SegmentFile> = self
            .rows
            .segments
            .iter()
            .zip(&matching)
            .filter(|(_, keep)| **keep)
            .map(|(segment, _)| segment.clone())
            .collect();
        let total = self.rows.segments.len();
        self.counters.segments_total.fetch_add(total as u64, Ordering::Relaxed);
        self.counters.segments_pruned.fetch_add((total - segments.len()) as u64, Ordering::Relaxed);
        let memory_rows: usize = self.rows.memory.iter().map(arrow::array::RecordBatch::num_rows).sum();
        self.counters.memory_rows.fetch_add(memory_rows as u64, Ordering::Relaxed);

        let mut inputs: Vec<Arc<dyn ExecutionPlan>> = Vec::with_capacity(2);
        if !segments.is_empty() {
            inputs.push(self.scan_segments(state, &segments, projection, filters, limit)?);
            self.counters.opened(segments);
        }
        if memory_rows > 0 || inputs.is_empty() {
            let batches = [self.rows.memory.clone()];
            inputs.push(MemorySourceConfig::try_new_exec(&batches, Arc::clone(&self.schema), projection.cloned())?);
        }
        match (inputs.pop(), inputs.pop()) {
            (Some(only), None) => Ok(only),
            (Some(memory), Some(files)) => UnionExec::try_new(vec![files, memory]),
            _ => datafusion::common::internal_err!("a scan without an input"),
        }
    }
}
