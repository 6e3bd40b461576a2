//! Needles through SQL: blocks are left out, and no answer changes, over merged segments, flushed ones
//! and memory at once. The oracle is the same rows in memory, where nothing is left out.

use std::fs;
use std::sync::Arc;

use arrow::array::{RecordBatch, StringArray};
use model::signal::Table;
use model::tenant::TenantId;
use model::value::Value;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use store::Store;

use crate::engine::Engine;
use crate::error::ErrorKind;
use crate::stored::tests::{append, open};
use crate::testing::{SECOND, T0, attributes, batch, ids, texts, times};
use crate::tests::ask;

const ROWS: usize = 12_000;

/// Numbers without a pattern that a filter could like or dislike.
fn number(row: usize, salt: u64) -> u64 {
    let mixed = (row as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt.wrapping_mul(0xd1b5_4a32_d192_ed03);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 20
}

fn trace(row: usize) -> [u8; 16] {
    let mut id = [7; 16];
    id[..8].copy_from_slice(&number(row / 3, 9).to_be_bytes());
    id
}

fn body(row: usize) -> Option<String> {
    let n = number(row, 1);
    Some(match n % 9 {
        0 => format!("order {} accepted for user-{:06}", n % 100_000_000, n % 200_000),
        1 => format!("Connection to db-{}.bench refused after {} ms: Timeout", n % 8, n % 900),
        2 => format!("größe {} überschritten: ſkala {}", n % 10_000, n % 7),
        3 => format!("{}/cart/{}/items?q=100%_{}", ["GET ", "", "post"][row % 3], n % 1_000_000, n % 10),
        4 => "heartbeat".to_owned(),
        5 => String::new(),
        6 => format!("超时 {} 毫秒 {:x}", n % 5000, n),
        7 => return None,
        _ => format!("id={n:016x} state='it''s {}' \\ {}", n % 4, "x".repeat(row % 90)),
    })
}

fn logs(part: usize) -> RecordBatch {
    let rows = part * ROWS..(part + 1) * ROWS;
    let bodies: Vec<Option<String>> = rows.clone().map(body).collect();
    let users: Vec<String> = rows.clone().map(|row| format!("user-{:06}", number(row, 2) % 200_000)).collect();
    let paths: Vec<String> = rows.clone().map(|row| format!("/api/v1/Cart/{}", number(row, 3) % 1_000_000)).collect();
    let addresses: Vec<String> = rows
        .clone()
        .map(|row| number(row, 4))
        .map(|n| format!("10.{}.{}.{}", n % 256, n / 256 % 256, n / 65_536 % 256))
        .collect();
    let attributes_of: Vec<Vec<(&str, Value<'_>)>> = (0..ROWS)
        .map(|row| {
            let mixed = if part == 1 && row % 2 == 0 { Value::Int(row as i64) } else { Value::String(&users[row]) };
            vec![
                ("user", Value::String(&users[row])),
                ("path", Value::String(&paths[row])),
                ("address", Value::String(&addresses[row])),
                ("mixed", mixed),
            ]
        })
        .collect();
    let attributes_of: Vec<&[(&str, Value<'_>)]> = attributes_of.iter().map(Vec::as_slice).collect();
    let traces: Vec<Option<[u8; 16]>> = rows.clone().map(|row| (row % 4 != 0).then(|| trace(row))).collect();
    batch(
        Table::Logs,
        ROWS,
        &[
            ("time", times(&rows.clone().map(|row| T0 + row as i64 * SECOND / 100).collect::<Vec<_>>())),
            ("service_name", texts(&rows.map(|row| ["cart", "pay"][row % 2]).collect::<Vec<_>>())),
            ("body", Arc::new(StringArray::from(bodies))),
            ("trace_id", ids(&traces)),
            ("attributes", attributes(&attributes_of)),
        ],
    )
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A piece of a text, by characters.
fn piece(text: &str, from: usize, length: usize) -> String {
    let count = text.chars().count().max(1);
    text.chars().skip(from % count).take(length).collect()
}

fn as_like(text: &str) -> String {
    text.replace('\\', r"\\").replace('%', r"\%").replace('_', r"\_")
}

/// Predicates about a row that is there, and about what is like it but not there.
fn predicates(seed: usize) -> Vec<String> {
    let row = number(seed, 5) as usize % (5 * ROWS);
    let text = body(row).unwrap_or_else(|| "nothing 123456".to_owned());
    let (from, length) = (number(seed, 6) as usize, 1 + number(seed, 7) as usize % 24);
    let some = piece(&text, from, length);
    let user = format!("user-{:06}", number(row, 2) % 200_000);
    let path = format!("/api/v1/Cart/{}", number(row, 3) % 1_000_000);
    let token =
        text.split(|char: char| char.is_ascii() && !char.is_ascii_alphanumeric()).find(|token| !token.is_empty());
    let token = quoted(token.unwrap_or("heartbeat"));
    vec![
        format!("body LIKE {}", quoted(&format!("%{}%", as_like(&some)))),
        format!("body LIKE {}", quoted(&format!("{}%", as_like(&piece(&text, 0, length + 8))))),
        format!("body LIKE {}", quoted(&format!("%{}_%{}", as_like(&some), as_like(&piece(&text, from + 30, 40))))),
        format!("body ILIKE {}", quoted(&format!("%{}%", as_like(&some.to_uppercase())))),
        format!("body ILIKE {}", quoted(&format!("%{}", as_like(&text.to_lowercase())))),
        format!("contains(body, {})", quoted(&some)),
        format!("starts_with(body, {}) OR ends_with(body, {})", quoted(&piece(&text, 0, 14)), quoted(&some)),
        format!("has_token(body, {token})"),
        format!("body = {} OR has_token(body, {token})", quoted(&some)),
        format!("body IN ({}, {}, '')", quoted(&text), quoted(&some)),
        format!("body ~ {}", quoted(&format!("{}.*", regex::escape(&some)))),
        format!("body ~* {}", quoted(&format!("({}|zzz 99)", regex::escape(&some.to_lowercase())))),
        format!("body ~ {}", quoted(&format!("^.*({})+$", regex::escape(&piece(&text, from, 99))))),
        format!("NOT contains(body, {}) AND attributes['user'] = {}", quoted(&some), quoted(&user)),
        format!("attributes['user'] = {}", quoted(&user)),
        format!("attributes['user'] IN ({}, 'user-x', {})", quoted(&user), quoted(&user.to_uppercase())),
        format!("attributes['mixed'] = {}", quoted(&user)),
        format!("attributes['mixed'] = '{}'", row % ROWS),
        format!("attributes['path'] LIKE {}", quoted(&format!("%{}%", &path[path.len() / 2..]))),
        format!("attributes['path'] ILIKE {}", quoted(&format!("%{}", path[7..].to_uppercase()))),
        format!("attributes['address'] = '10.{}.7.7' OR attributes['user'] = {}", row % 256, quoted(&user)),
        format!("trace_id = '{}'", hex::encode(trace(row))),
        format!("trace_id = '{}' AND body IS NOT NULL", hex::encode(trace(row + 5 * ROWS))),
    ]
}

/// Three parts merged, one flushed, one in memory; and all of them in memory.
fn stores(folders: &[tempfile::TempDir; 2]) -> (Arc<Store>, Engine, Engine) {
    let (memory, in_memory) = open(folders[0].path());
    let (store, engine) = open(folders[1].path());
    for part in 0..5 {
        let rows = logs(part);
        append(&memory, Table::Logs, rows.clone(), 0);
        append(&store, Table::Logs, rows, 0);
        if part < 4 {
            store.flush_all().unwrap();
        }
        if part == 2 {
            while store.compact_once().unwrap() {}
            assert_eq!(store.segments().len(), 1);
        }
    }
    (store, engine, in_memory)
}

fn folders() -> [tempfile::TempDir; 2] {
    [(); 2].map(|()| tempfile::tempdir().unwrap())
}

fn rows_where(engine: &Engine, predicate: &str) -> (String, crate::engine::QueryStats) {
    let sql = format!(
        "SELECT time, body, hex(trace_id), attributes['user'] FROM logs WHERE {predicate} ORDER BY time LIMIT 2000"
    );
    let answer = ask(engine, &sql).unwrap_or_else(|error| panic!("{sql}\n{error:?}"));
    (answer.rows, answer.stats)
}

#[test]
fn filters_never_change_an_answer() {
    let folders = folders();
    let (store, engine, in_memory) = stores(&folders);
    let mut pruned = 0;
    let mut check = |seeds: std::ops::Range<usize>, what: &str| {
        for predicate in seeds.flat_map(predicates) {
            let (found, stats) = rows_where(&engine, &predicate);
            assert_eq!(found, rows_where(&in_memory, &predicate).0, "{what}: {predicate}");
            assert!(stats.blocks_pruned <= stats.blocks_total, "{stats:?}");
            pruned += stats.blocks_pruned;
        }
    };
    check(0..8, "a merged segment, a flushed one, and memory");
    store.flush_all().unwrap();
    while store.compact_once().unwrap() {}
    check(8..12, "merged");
    assert!(pruned > 200, "{pruned}");
}

#[test]
fn blocks_without_the_needle_are_not_read() {
    let folders = folders();
    let (_store, engine, _) = stores(&folders);
    // Of the merged segment and of the flushed one.
    const BLOCKS: u64 = (3 * ROWS as u64).div_ceil(8192) + (ROWS as u64).div_ceil(8192);
    let row = (0..ROWS).find(|row| body(*row).is_some_and(|body| body.starts_with("order"))).unwrap();
    let order = body(row).unwrap();
    let number = order.split(' ').nth(1).unwrap();
    let user = format!("user-{:06}", number_of_user(row));
    for (predicate, least) in [
        (format!("trace_id = '{}'", hex::encode(trace(1))), BLOCKS - 3),
        (format!("attributes['user'] = '{user}'"), BLOCKS - 3),
        (format!("has_token(body, '{number}')"), BLOCKS - 2),
        (format!("body LIKE '%order {number}%'"), BLOCKS - 2),
        (format!("body ~ 'order {number} [a-z]+'"), BLOCKS - 2),
        (format!("contains(body, '{}')", &order[..order.len() - 2]), BLOCKS - 2),
        ("has_token(body, 'nowhere')".to_owned(), BLOCKS),
        ("trace_id = '00000000000000000000000000000001'".to_owned(), BLOCKS),
        // These are everywhere, or filters say nothing of them.
        ("has_token(body, 'heartbeat')".to_owned(), 0),
        ("contains(body, 'eartbea')".to_owned(), 0),
    ] {
        let (_, stats) = rows_where(&engine, &predicate);
        let known = if predicate.contains("eartbea'") { 0 } else { BLOCKS };
        assert_eq!(stats.blocks_total, known, "{predicate}");
        assert!(stats.blocks_pruned >= least && (least > 0 || stats.blocks_pruned == 0), "{predicate}: {stats:?}");
        // A segment without a block that may match is not opened at all.
        let pruned = if least == BLOCKS { 2..=2 } else { 0..=u64::from(least > 0) };
        assert!(pruned.contains(&stats.segments_pruned), "{predicate}: {stats:?}");
        assert_eq!(stats.segments_scanned, 2 - stats.segments_pruned, "{predicate}: {stats:?}");
        // The unflushed part is read; of the others, blocks.
        let most = ROWS as u64 + (BLOCKS - least) * 8192;
        assert!(stats.rows_scanned <= most, "{predicate}: {stats:?}");
    }
    let sql = format!("EXPLAIN ANALYZE SELECT time FROM logs WHERE has_token(body, '{number}')");
    let plan = ask(&engine, &sql).unwrap().rows;
    assert!(plan.contains("blocks_pruned_filters=5 total"), "{plan}");
}

fn number_of_user(row: usize) -> u64 {
    number(row, 2) % 200_000
}

#[test]
fn damaged_filters_cost_nothing_but_speed() {
    let folders = folders();
    let (store, engine, in_memory) = stores(&folders);
    let mut registry = Registry::default();
    engine.register(&mut registry);
    let snapshot = store.snapshot(&TenantId::default_tenant());
    let merged = snapshot.table(Table::Logs).segments.iter().find(|segment| segment.meta().level > 0).unwrap();
    let mut bytes = fs::read(merged.path()).unwrap();
    let directory = b"{\"version\":1,\"block_rows\":8192";
    let at = bytes.windows(directory.len()).position(|window| window == directory).unwrap();
    // Offsets of all sections are one digit off.
    let end = at + bytes[at..].iter().position(|byte| *byte == 0).unwrap_or(400).min(400);
    for byte in &mut bytes[at + directory.len()..end] {
        if *byte == b'1' {
            *byte = b'2';
        }
    }
    fs::write(merged.path(), bytes).unwrap();
    for predicate in [format!("trace_id = '{}'", hex::encode(trace(1))), "has_token(body, 'Timeout')".to_owned()] {
        let (found, stats) = rows_where(&engine, &predicate);
        assert_eq!(found, rows_where(&in_memory, &predicate).0, "{predicate}");
        // Those of the flushed segment still say what they know.
        let flushed = (ROWS as u64).div_ceil(8192);
        assert_eq!((stats.blocks_total, stats.warnings.len()), (flushed, 0), "{predicate}");
    }
    let mut metrics = String::new();
    encode(&mut metrics, &registry).unwrap();
    let damaged = "godseye_query_block_filters_damaged_total 1";
    assert!(metrics.lines().any(|line| line == damaged), "counted once, not for each query\n{metrics}");
}

#[test]
fn has_token_wants_a_token() {
    let folders = folders();
    let (store, engine) = open(folders[0].path());
    append(&store, Table::Logs, logs(0).slice(0, 10), 0);
    for (sql, expected) in [
        (
            "SELECT has_token('order 4711 lost', '4711'), has_token('order 47110', '4711'), has_token('a', 'A')",
            "[true,false,false]",
        ),
        ("SELECT has_token(NULL, 'a'), has_token('a', NULL)", "[null,null]"),
        ("SELECT has_token('die größe', 'größe')", "[true]"),
        ("SELECT count(*) FROM logs WHERE has_token(service_name, service_name)", "[10]"),
    ] {
        assert_eq!(ask(&engine, sql).unwrap().rows, expected, "{sql}");
    }
    for (sql, message) in [
        ("SELECT has_token('a b', 'a b')", "`a b` is not a token"),
        ("SELECT count(*) FROM logs WHERE has_token(body, '')", "`` is not a token"),
        ("SELECT has_token('a')", "expects a text and a token"),
        ("SELECT has_token(1, 'a')", "expects a text and a token"),
    ] {
        let error = ask(&engine, sql).map(|answer| answer.rows).unwrap_err();
        assert!(error.kind == ErrorKind::BadQuery && error.to_string().contains(message), "{sql}: {error:?}");
    }
}
