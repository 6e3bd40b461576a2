//! Ten million rows through the router in every format, in memory that their number has nothing to do with.
//!
//! A test of its own in a process of its own, since it looks at what the process holds.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use arrow::array::AsArray as _;
use arrow::buffer::Buffer;
use arrow::datatypes::Int64Type;
use arrow::ipc::reader::StreamDecoder;
use axum::body::Body;
use dashboards::auth::Authenticator;
use dashboards::{Deps, Doors, Export, Readiness, ReadyState};
use http::Request;
use http_body_util::BodyExt as _;
use model::attributes::Kinds;
use model::ledger::LedgerLine;
use model::signal::{Signal, Table};
use model::tenant::TenantId;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use query::source::{Container, ObservedKinds, SegmentFile, Snapshot, Source};
use tower::ServiceExt as _;

/// Lines of the ledger; joined with itself it gives their square.
const LINES: u64 = 3_163;
const ROWS: u64 = LINES * LINES;

/// What the process may hold more than before the exports, bytes: one writer, one encoder, the batches between the
/// engine and them, and what allocators keep. The answers have up to 600 MB.
const GROWTH_BYTES_MAX: u64 = 192 << 20;

/// A chunk of an answer, bytes: 256 KiB of rows, or a row group of Parquet.
const CHUNK_BYTES_MAX: usize = 16 << 20;

struct Ledger;

impl ObservedKinds for Ledger {
    fn kinds(&self, _table: Table, _container: Container, _key: &str) -> Kinds {
        Kinds::default()
    }
}

impl Source for Ledger {
    fn snapshot(&self, _tenant: &TenantId) -> Snapshot {
        Snapshot::new(Arc::new(Self))
    }

    fn ledger(&self, _tenant: &TenantId) -> Result<Vec<LedgerLine>, String> {
        let line = |items| LedgerLine { minute: 0, signal: Signal::Traces, reason: None, items };
        Ok((0..LINES).map(line).collect())
    }

    fn verify(&self, _segment: &SegmentFile) -> Result<(), String> {
        Ok(())
    }

    fn quarantine(&self, _segment: &SegmentFile, _why: &str) -> Result<(), String> {
        Ok(())
    }
}

struct Ready;

impl Readiness for Ready {
    fn state(&self) -> ReadyState {
        ReadyState::Ready
    }
}

fn doors() -> Doors {
    let doors = Doors::new(Deps {
        readiness: Arc::new(Ready),
        authenticator: Arc::new(Authenticator::default()),
        limits: query::Limits::default(),
        export: Export::default(),
        send_timeout: Duration::from_secs(60),
        reload: Arc::new(|| Ok(())),
    });
    let config = query::EngineConfig { threads: 2, ..query::EngineConfig::default() };
    let engine = query::Engine::new(config, Arc::new(Ledger)).unwrap();
    doors.open(Arc::new(engine), Arc::new(prometheus_client::registry::Registry::default()));
    doors
}

/// What the process held at most so far, bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
}

/// Counts rows and adds numbers up, chunk by chunk.
enum Counter {
    Lines { rows: u64, sum: u64, line: Vec<u8>, head: u64 },
    Arrow { rows: u64, sum: u64, decoder: StreamDecoder },
    Parquet(std::fs::File),
}

impl Counter {
    fn add(&mut self, chunk: &[u8]) {
        match self {
            Self::Lines { rows, sum, line, head } => {
                for byte in chunk {
                    if *byte != b'\n' {
                        line.push(*byte);
                        continue;
                    }
                    if *head > 0 {
                        *head -= 1;
                    } else {
                        let digits: Vec<u8> = line.iter().copied().filter(u8::is_ascii_digit).collect();
                        *sum += std::str::from_utf8(&digits).unwrap().parse::<u64>().unwrap();
                        *rows += 1;
                    }
                    line.clear();
                }
            }
            Self::Arrow { rows, sum, decoder } => {
                let mut buffer = Buffer::from(chunk.to_vec());
                while let Some(batch) = decoder.decode(&mut buffer).unwrap() {
                    *rows += batch.num_rows() as u64;
                    *sum += batch.column(0).as_primitive::<Int64Type>().values().iter().sum::<i64>().cast_unsigned();
                }
            }
            Self::Parquet(file) => std::io::Write::write_all(file, chunk).unwrap(),
        }
    }

    fn end(self) -> (u64, u64) {
        match self {
            Self::Lines { rows, sum, line, .. } => {
                assert!(line.is_empty(), "the last line ends");
                (rows, sum)
            }
            Self::Arrow { rows, sum, mut decoder } => {
                decoder.finish().unwrap();
                (rows, sum)
            }
            Self::Parquet(file) => {
                let (mut rows, mut sum) = (0, 0);
                for batch in ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap() {
                    let batch = batch.unwrap();
                    rows += batch.num_rows() as u64;
                    sum += batch.column(0).as_primitive::<Int64Type>().values().iter().sum::<i64>().cast_unsigned();
                }
                (rows, sum)
            }
        }
    }
}

#[tokio::test]
async fn ten_million_rows_go_out_in_bounded_memory() {
    let doors = doors();
    let sql = format!(
        "SELECT CAST(a.received * {LINES} + b.received AS BIGINT) AS n, b.signal
         FROM ingest_ledger a JOIN ingest_ledger b ON a.signal = b.signal"
    );
    let before = peak_memory();
    for (format, encoding) in [("csv", "identity"), ("ndjson", "gzip"), ("arrow", "zstd"), ("parquet", "identity")] {
        let request = Request::post(format!("/api/v1/sql?format={format}&limit={ROWS}"))
            .header("accept-encoding", encoding)
            .body(Body::from(sql.clone()))
            .unwrap();
        let response = tokio::time::timeout(Duration::from_secs(60), doors.router().oneshot(request)).await;
        let response = response.unwrap().unwrap();
        assert_eq!(response.status(), 200, "{format}");
        let mut counter = match format {
            "csv" => Counter::Lines { rows: 0, sum: 0, line: Vec::new(), head: 1 },
            "ndjson" => Counter::Lines { rows: 0, sum: 0, line: Vec::new(), head: 0 },
            "arrow" => Counter::Arrow { rows: 0, sum: 0, decoder: StreamDecoder::new() },
            _ => Counter::Parquet(tempfile::tempfile().unwrap()),
        };
        let mut decoder = Decoder::new(encoding);
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let chunk = frame.unwrap().into_data().unwrap();
            assert!(chunk.len() <= CHUNK_BYTES_MAX, "{format}: a chunk of {} bytes", chunk.len());
            counter.add(&decoder.decode(&chunk));
        }
        counter.add(&decoder.finish());
        assert_eq!(counter.end(), (ROWS, ROWS * (ROWS - 1) / 2), "{format}");
        let growth = peak_memory() - before;
        assert!(growth <= GROWTH_BYTES_MAX, "{format}: the process held {} MiB more", growth >> 20);
    }
}

/// Decodes an answer chunk by chunk, as its client would.
enum Decoder {
    Identity,
    Gzip(Box<flate2::write::GzDecoder<Vec<u8>>>),
    Zstd(zstd::stream::write::Decoder<'static, Vec<u8>>),
}

impl Decoder {
    fn new(encoding: &str) -> Self {
        match encoding {
            "gzip" => Self::Gzip(Box::new(flate2::write::GzDecoder::new(Vec::new()))),
            "zstd" => Self::Zstd(zstd::stream::write::Decoder::new(Vec::new()).unwrap()),
            _ => Self::Identity,
        }
    }

    fn decode(&mut self, chunk: &[u8]) -> Vec<u8> {
        match self {
            Self::Identity => chunk.to_vec(),
            Self::Gzip(decoder) => {
                std::io::Write::write_all(decoder, chunk).unwrap();
                std::mem::take(decoder.get_mut())
            }
            Self::Zstd(decoder) => {
                std::io::Write::write_all(decoder, chunk).unwrap();
                std::mem::take(decoder.get_mut())
            }
        }
    }

    fn finish(self) -> Vec<u8> {
        match self {
            Self::Identity => Vec::new(),
            Self::Gzip(decoder) => decoder.finish().unwrap(),
            Self::Zstd(mut decoder) => {
                std::io::Write::flush(&mut decoder).unwrap();
                std::mem::take(decoder.get_mut())
            }
        }
    }
}
