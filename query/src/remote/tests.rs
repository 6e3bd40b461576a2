//! What is written for small expressions: whatever runs there is compared with the engine by the workspace's
//! `tests/clickhouse.rs`.
