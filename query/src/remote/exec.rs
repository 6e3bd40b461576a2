//! The step of a plan that asks ClickHouse and streams its answer.
//!
//! One partition, a batch at a time, under the query's memory limit; dropping it ends the query there too. Not here: what
//! is asked.

use std::fmt;
use std::sync::Arc;

use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamDecoder;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use datafusion::common::internal_err;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
    ReplaceChildrenOptions, SendableRecordBatchStream,
};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};

use super::{Reach, RemoteLimits, restore};
use crate::error::{QueryError, external};

/// Asks one statement.
#[derive(Debug)]
pub(crate) struct RemoteExec {
    reach: Arc<Reach>,
    sql: Arc<str>,
    /// Whether its rows are the query's answer, so that the limit on rows is known there.
    is_root: bool,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl RemoteExec {
    pub(crate) fn new(reach: Arc<Reach>, sql: Arc<str>, schema: SchemaRef, is_root: bool) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        let metrics = ExecutionPlanMetricsSet::new();
        Self { reach, sql, is_root, schema, properties: Arc::new(properties), metrics }
    }
}

impl DisplayAs for RemoteExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteExec: clickhouse={}", self.sql)
    }
}

impl ExecutionPlan for RemoteExec {
    fn name(&self) -> &'static str {
        "RemoteExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() { Ok(self) } else { internal_err!("a question to ClickHouse has no inputs") }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        // A row more than may be shown tells that there are more.
        let rows_max = self.is_root.then(|| self.reach.limits.rows_max.saturating_add(1));
        let limits = RemoteLimits { timeout: self.reach.limits.timeout, rows_max };
        let answer = Answer {
            pieces: self.reach.remote.ask(self.sql.to_string(), limits),
            decoder: StreamDecoder::new(),
            rest: Buffer::from(Bytes::new()),
            reserved: MemoryConsumer::new("answer of ClickHouse").register(context.memory_pool()),
            rows: MetricBuilder::new(&self.metrics).output_rows(partition),
            bytes: MetricBuilder::new(&self.metrics).counter("bytes_scanned", partition),
            schema: Arc::clone(&self.schema),
        };
        let at_once = context.session_config().batch_size();
        let batches = stream::try_unfold(answer, |mut answer| async move {
            Ok::<_, DataFusionError>(answer.next().await?.map(|batch| (batch, answer)))
        });
        // The server's blocks are larger than what the plan was made for.
        let batches = batches.flat_map(move |batch| match batch {
            Err(error) => stream::iter(vec![Err(error)]),
            Ok(batch) => {
                let starts = (0..batch.num_rows()).step_by(at_once.max(1));
                let slices = starts.map(|start| Ok(batch.slice(start, at_once.min(batch.num_rows() - start))));
                stream::iter(slices.collect::<Vec<_>>())
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches)))
    }
}

/// An answer that is being read.
struct Answer {
    pieces: BoxStream<'static, std::result::Result<Bytes, QueryError>>,
    decoder: StreamDecoder,
    rest: Buffer,
    reserved: MemoryReservation,
    rows: Count,
    bytes: Count,
    schema: SchemaRef,
}

impl Answer {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            while !self.rest.is_empty() {
                if let Some(batch) = self.decoder.decode(&mut self.rest)? {
                    if batch.num_rows() == 0 {
                        continue;
                    }
                    let batch = restore::batch(&batch, &self.schema)?;
                    // The last one has been handed on, and is counted by whoever keeps it.
                    self.reserved.try_resize(batch.get_array_memory_size())?;
                    self.rows.add(batch.num_rows());
                    return Ok(Some(batch));
                }
            }
            match self.pieces.next().await {
                Some(Ok(piece)) => {
                    self.bytes.add(piece.len());
                    self.rest = Buffer::from(piece);
                }
                Some(Err(error)) => return Err(external(error)),
                None => {
                    self.decoder.finish()?;
                    return Ok(None);
                }
            }
        }
    }
}

/// Every batch of an answer, for those that are known to be small.
pub(crate) async fn collect(
    mut pieces: BoxStream<'static, std::result::Result<Bytes, QueryError>>,
) -> Result<Vec<RecordBatch>> {
    let mut decoder = StreamDecoder::new();
    let mut batches = Vec::new();
    while let Some(piece) = pieces.next().await {
        let mut rest = Buffer::from(piece.map_err(external)?);
        while !rest.is_empty() {
            batches.extend(decoder.decode(&mut rest)?);
        }
    }
    decoder.finish()?;
    Ok(batches)
}
