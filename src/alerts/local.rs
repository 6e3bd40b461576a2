//! A store and a query engine in this process, without a server around them: for tests of rules and for backtests of
//! what a stopped server has left.
//!
//! Not here: what is asked.

use std::path::Path;
use std::sync::Arc;

use ingest::pipeline::{Log, Pipeline, PipelineConfig};
use model::time::Clock;
use prometheus_client::registry::Registry;
use store::{ReplayProgress, Store, StoreConfig};

use super::ask::Asker;
use super::tables::Watched;

/// One store, with what answers questions about it.
pub(super) struct Local {
    pub(super) store: Arc<Store>,
    pub(super) asker: Asker,
    registry: Registry,
}

impl Local {
    /// Opens a data directory, as a server would: its log is replayed, and nobody else may have it open.
    pub(super) fn open(folder: &Path) -> Result<Self, String> {
        let mut registry = Registry::default();
        // What reads segments names them by their whole path.
        let folder = std::path::absolute(folder).map_err(|error| error.to_string())?;
        let mut config = StoreConfig::new(folder);
        // Nothing is merged or expired here: what is there is asked.
        config.memtable_bytes_max = u64::MAX;
        let metrics = store::Metrics::new(&mut registry);
        let store = Store::open(config, &ReplayProgress::default(), metrics).map_err(|error| error.to_string())?;
        let source = Arc::new(query::StoreSource::new(Arc::clone(&store)));
        let engine = query::Engine::offering(query::EngineConfig::default(), source, Watched::default().tables());
        let engine = engine.map_err(|error| error.to_string())?;
        let asker = Asker::new(Arc::new(engine), query::Limits::default());
        Ok(Self { store, asker, registry })
    }

    /// Starts what takes telemetry in.
    pub(super) fn pipeline(&mut self) -> Result<Pipeline, String> {
        let log: Arc<dyn Log> = Arc::<Store>::clone(&self.store);
        let failed = |error| tracing::error!(%error, "the log failed");
        Pipeline::start(&PipelineConfig::default(), log, &Clock::System, &mut self.registry, failed)
            .map_err(|error| error.to_string())
    }
}
