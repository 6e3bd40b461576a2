//! The program's own log: structured lines on standard error, text for people or JSON for programs.
//!
//! Text fields are escaped by the formatter, so telemetry that ends up in a message cannot forge a
//! line (control characters, ANSI). The level can be changed while the program runs.

use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Registry, fmt, reload};

use crate::config::{Log, LogFormat, LogLevel};

/// Changes the level of the running log.
#[derive(Clone, Debug)]
pub struct LevelHandle(reload::Handle<EnvFilter, Registry>);

impl LevelHandle {
    /// Sets the least severe level that is written.
    pub fn set(&self, level: LogLevel) {
        // It fails only when the subscriber is gone, which is when nobody logs any more.
        drop(self.0.reload(filter(level)));
    }
}

/// Our own code at the level asked for; libraries speak up only when something is wrong.
fn filter(level: LogLevel) -> EnvFilter {
    let mut directives = "warn".to_owned();
    for own in ["godseye", "ingest", "store", "query", "dashboards", "fixtures", "model"] {
        directives.push_str(&format!(",{own}={}", level.name()));
    }
    EnvFilter::builder().with_default_directive(LevelFilter::WARN.into()).parse_lossy(directives)
}

/// Starts the log. A second call changes nothing, as tests may start several servers.
#[must_use]
pub fn init(log: &Log, terminal: bool) -> LevelHandle {
    let (filter, handle) = reload::Layer::new(filter(log.level));
    let registry = Registry::default().with(filter);
    match log.format {
        LogFormat::Text => {
            drop(registry.with(fmt::layer().with_writer(std::io::stderr).with_ansi(terminal)).try_init());
        }
        LogFormat::Json => {
            drop(registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).try_init());
        }
    }
    LevelHandle(handle)
}
