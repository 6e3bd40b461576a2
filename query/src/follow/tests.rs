//! Following over a real store: what comes is what a query with the same predicate gives, and what is missing is
//! counted.

use super::*;
use crate::stored::tests::{append, open};
use crate::testing::{SECOND, T0, attributes, batch, times};
use crate::tests::{ask, logs, spans};
use model::value::Value;

fn tenant() -> TenantId {
    TenantId::default_tenant()
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
}

/// Everything until the end: rows as JSON lines, and how many were dropped.
async fn to_the_end(mut following: Following) -> (String, u64) {
    let (mut rows, mut first, mut dropped) = (String::new(), true, 0);
    while let Some(news) = following.next().await {
        match news.unwrap() {
            News::Rows(batch) => crate::render::rows_json(&batch, &mut first, &mut rows).unwrap(),
            News::Dropped(count) => dropped += count,
        }
    }
    (rows.trim_start().replace(",\n", "\n"), dropped)
}

const PREDICATES: &[(Table, &str)] = &[
    (Table::Spans, "true"),
    (Table::Spans, "service_name = 'pay' AND status_code = 'ERROR'"),
    (Table::Spans, "trace_id = '5b8efff798038103d269b633813fc60c'"),
    (Table::Spans, "attributes['http.route'] = '/cart' OR attributes['http.response.status_code'] >= 500"),
    (Table::Spans, "attributes['mixed'] > 6"),
    (Table::Spans, "attributes['never'] IS NOT NULL"),
    (Table::Spans, "resource_attributes['k8s.pod.name'] LIKE 'cart%' AND end_time > start_time"),
    (Table::Spans, "duration_ns BETWEEN 10 AND 30 AND name IN ('query', 'POST /pay')"),
    (Table::Spans, "spans.duration_ns >= duration('20ns') -- a comment"),
    (Table::Logs, "severity_number >= 17"),
    (Table::Logs, "body LIKE '%declined%'"),
    (Table::Logs, "attributes['code'] = 'E1' OR body IS NULL"),
    (Table::Logs, "false"),
];

/// Each predicate twice: following an empty table, where every kind of attribute is new, and one with rows.
#[test]
fn what_comes_is_what_a_query_gives() {
    let folder = tempfile::tempdir().unwrap();
    let (store, engine) = open(folder.path());
    let follow = |when: &'static str| {
        PREDICATES
            .iter()
            .map(|(table, predicate)| {
                // One follower's place is free again when it is dropped, and there are more rows here than places.
                let following = block_on(engine.follow(&tenant(), *table, Some(predicate)));
                (when, *table, *predicate, following.unwrap())
            })
            .collect::<Vec<_>>()
    };
    let before = follow("before the first row");
    for (table, rows) in [(Table::Spans, spans()), (Table::Logs, logs())] {
        for row in 0..rows.num_rows() {
            append(&store, table, rows.slice(row, 1), 0);
        }
    }
    let expected = |table: Table, predicate: &str| {
        let predicate = predicate.split("--").next().unwrap();
        let order = if table == Table::Spans { "start_time" } else { "time" };
        ask(&engine, &format!("SELECT * FROM {table} WHERE {predicate} ORDER BY {order}")).unwrap().rows
    };
    let other = TenantId::new("other").unwrap();
    let elsewhere = block_on(engine.follow(&other, Table::Spans, None)).unwrap();
    store.close().unwrap();
    let mut found = 0;
    for (when, table, predicate, following) in before {
        let (rows, dropped) = block_on(to_the_end(following));
        assert_eq!((rows.as_str(), dropped), (expected(table, predicate).as_str(), 0), "{when}: {predicate}");
        found += usize::from(!rows.is_empty());
    }
    assert!(found + 2 >= PREDICATES.len(), "only two predicates hold for nothing, found {found} that hold");
    assert_eq!(block_on(to_the_end(elsewhere)), (String::new(), 0), "a tenant sees its own rows (I13)");
}

/// A predicate keeps its meaning when the attribute it reads changes its type under it.
#[test]
fn an_attribute_may_change_its_type() {
    let folder = tempfile::tempdir().unwrap();
    let (store, engine) = open(folder.path());
    let following = block_on(engine.follow(&tenant(), Table::Spans, Some("attributes['n'] >= 10"))).unwrap();
    let values = [
        Value::Int(9),
        Value::Int(10),
        Value::Double(9.5),
        Value::Double(10.5),
        Value::String("11"),
        Value::String("x"),
    ];
    let all: Vec<_> = values
        .iter()
        .enumerate()
        .map(|(row, value)| {
            let time = times(&[T0 + row as i64 * SECOND]);
            batch(Table::Spans, 1, &[("start_time", time), ("attributes", attributes(&[&[("n", *value)]]))])
        })
        .collect();
    for rows in &all {
        append(&store, Table::Spans, rows.clone(), 0);
    }
    store.close().unwrap();
    let (rows, _) = block_on(to_the_end(following));
    let expected = ask(&engine, "SELECT * FROM spans WHERE attributes['n'] >= 10 ORDER BY start_time").unwrap().rows;
    assert_eq!((rows.as_str(), rows.lines().count()), (expected.as_str(), 3));
}

#[test]
fn what_is_no_predicate_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (_store, engine) = open(folder.path());
    for (predicate, kind, part) in [
        ("", ErrorKind::BadQuery, "syntax error in the predicate"),
        ("name =", ErrorKind::BadQuery, "syntax error in the predicate"),
        ("true UNION SELECT * FROM logs", ErrorKind::BadQuery, "expected its end, found UNION"),
        ("true ORDER BY name", ErrorKind::BadQuery, "expected its end, found ORDER"),
        ("true; DROP TABLE spans", ErrorKind::BadQuery, "expected its end, found ;"),
        ("true) OR (true", ErrorKind::BadQuery, "expected its end, found )"),
        ("name IN (SELECT name FROM spans)", ErrorKind::Refused, "cannot have a subquery"),
        ("EXISTS (SELECT 1)", ErrorKind::Refused, "cannot have a subquery"),
        ("duration_ns = (SELECT 1)", ErrorKind::Refused, "cannot have a subquery"),
        ("count(*) > 1", ErrorKind::Refused, "cannot have an aggregate"),
        ("row_number() OVER () > 1", ErrorKind::Refused, "cannot have a window function"),
        ("nothing = 1", ErrorKind::BadQuery, "nothing"),
        ("name", ErrorKind::BadQuery, ""),
        ("repeat(name, 9) = 'x'", ErrorKind::Refused, "repeat is not available"),
        ("trace_id = 'zz'", ErrorKind::BadQuery, "is not an id"),
    ] {
        let error = block_on(engine.follow(&tenant(), Table::Spans, Some(predicate))).expect_err(predicate);
        assert!(error.kind == kind && error.message.contains(part), "{predicate}: {error:?}");
    }
    let long = format!("name = 'x' {}", "OR name = 'y' ".repeat(600));
    let error = block_on(engine.follow(&tenant(), Table::Spans, Some(&long))).expect_err("a long chain");
    assert_eq!(error.kind, ErrorKind::Refused);
}

#[test]
fn a_predicate_that_fails_over_a_row_ends_with_its_error() {
    let folder = tempfile::tempdir().unwrap();
    let (store, engine) = open(folder.path());
    let mut following = block_on(engine.follow(&tenant(), Table::Spans, Some("1 / (duration_ns - 10) > 0"))).unwrap();
    append(&store, Table::Spans, spans(), 0);
    let error = block_on(following.next()).unwrap().unwrap_err();
    assert!(error.kind == ErrorKind::BadQuery && error.message.contains("Divide by zero"), "{error:?}");
    assert!(block_on(following.next()).is_none());
}

#[test]
fn places_are_bounded_and_come_back() {
    let places = Arc::<Places>::default();
    let names: Vec<TenantId> = (0..3).map(|n| TenantId::new(&format!("t{n}")).unwrap()).collect();
    let mut taken: Vec<Place> = (0..FOLLOWERS_OF_TENANT_MAX).map(|_| places.take(&names[0]).unwrap()).collect();
    let refused = |tenant: &TenantId| places.take(tenant).err().map(|error| (error.kind, error.message));
    let (kind, message) = refused(&names[0]).unwrap();
    assert!(kind == ErrorKind::Busy && message.contains("16 followers of this tenant"), "{message}");
    taken.extend((0..FOLLOWERS_MAX - FOLLOWERS_OF_TENANT_MAX).map(|_| places.take(&names[1]).unwrap()));
    let (kind, message) = refused(&names[2]).unwrap();
    assert!(kind == ErrorKind::Busy && message.contains("32 followers are there"), "{message}");
    taken.remove(0);
    assert!(refused(&names[2]).is_none());
    drop(taken);
    assert!(places.taken.lock().unwrap().is_empty());
    assert_eq!(places.followers.get(), 0);
}

#[test]
fn rows_come_at_a_pace() {
    let start = Instant::now();
    let mut pace = Pace::new(start);
    for (at_ms, rows, allowed) in [
        (0, 10, 10),
        (999, ROWS_PER_SECOND_MAX, ROWS_PER_SECOND_MAX - 10),
        (999, 1, 0),
        (1000, 1, 1),
        (5000, 3 * ROWS_PER_SECOND_MAX, ROWS_PER_SECOND_MAX),
        (5999, 1, 0),
        (6000, 1, 1),
    ] {
        assert_eq!(pace.take(start + Duration::from_millis(at_ms), rows), allowed, "{rows} rows at {at_ms} ms");
    }
}

/// Whoever does not read learns how much it missed, and gets what comes afterwards.
#[test]
fn a_reader_that_stalls_is_told_what_it_missed() {
    let folder = tempfile::tempdir().unwrap();
    let (store, engine) = open(folder.path());
    let following = block_on(engine.follow(&tenant(), Table::Spans, None)).unwrap();
    let groups = store::follow::QUEUE_BATCHES_MAX as u64 + 200;
    for _ in 0..groups {
        append(&store, Table::Spans, spans().slice(0, 1), 0);
    }
    store.close().unwrap();
    let (rows, dropped) = block_on(to_the_end(following));
    assert!(dropped > 0, "{} rows came", rows.lines().count());
    assert_eq!(rows.lines().count() as u64 + dropped, groups, "every row is shown or counted");
}
