"""Asks a running godseye in PostgreSQL's protocol with psycopg 3, after sdk.py has exported to it as service `shop`.

Prints every answer that is not as expected, and exits 1 when there is one. Not here: psql (see postgres.rs).
"""

import argparse
import datetime
import decimal
import sys
import threading

import psycopg

UTC = datetime.timezone.utc
T0 = datetime.datetime(2026, 11, 21, 9, 59, 30, tzinfo=UTC)
TRACE = "0af7651916cd43dd0000000100000001"

# Statement, parameters, rows. Asked in text and in binary, and once more as a prepared statement.
ANSWERS = [
    ("SELECT 1, -2::int, 'it''s', NULL, true, false", (), [(1, -2, "it's", None, True, False)]),
    ("SELECT count(*) FROM spans", (), [(6,)]),
    (
        "SELECT name, kind, start_time, duration_ns, status_code FROM spans WHERE duration_ns > %s AND service_name = %s"
        " ORDER BY duration_ns DESC LIMIT %s",
        (1000, "shop", 1),
        [("POST /cart/{id}", "SERVER", T0, 50_000_000, "OK")],
    ),
    ("SELECT count(*) FROM spans WHERE trace_id = %s", (TRACE,), [(4,)]),
    ("SELECT DISTINCT trace_id FROM spans WHERE trace_id IN (%s, %s)", (TRACE, "0" * 31 + "1"), [(TRACE,)]),
    ("SELECT name FROM spans WHERE name = ANY(%s) ORDER BY 1", (["cut", "charge", "no such"],), [("charge",), ("cut",)]),
    ("SELECT count(*) FROM spans WHERE span_id = ANY(%s)", (["b7ad000100000001", "b7ad000100000002"],), [(2,)]),
    ("SELECT parent_span_id FROM spans WHERE name = %s", ("cut",), [(None,)]),
    ("SELECT attributes FROM spans WHERE name = %s", ("cut",), [({"d": 4, "e": 5},)]),
    ("SELECT attributes['int'], attributes['double'], attributes['bool.true'], attributes['text.empty'] FROM spans"
     " WHERE attributes['int'] = %s", (42,), [(42, 0.1, True, "")]),
    ("SELECT count(*) FROM spans WHERE attributes['double'] = %s AND attributes['bool.true'] = %s", (0.1, True), [(1,)]),
    ("SELECT count(*) FROM spans WHERE start_time >= %s AND start_time < %s", (T0, T0 + datetime.timedelta(hours=1)), [(6,)]),
    ("SELECT bucket_counts, explicit_bounds FROM metric_histograms WHERE metric_name = %s", ("shop.latency",), [([1, 2, 1], [10.0, 100.0])]),
    ("SELECT positive FROM metric_histograms WHERE metric_name = %s AND scale = %s", ("shop.wait", 3), [({"offset": -1, "bucket_counts": [1] + [0] * 7 + [1] + [0] * 7 + [1] + [0] * 15},)]),
    ("SELECT received, rejected FROM ingest_ledger WHERE signal = %s", ("traces",), [(6, 0)]),
    ("SELECT body FROM logs WHERE severity_number = %s AND body LIKE %s", (9, "%cart%"), [("cart opened",)]),
    ("SELECT %s::int + 1, %s::text, %s::float8, %s::bool, %s::timestamptz, %s::date",
     (41, "a'b\\c", 1.5, False, T0, datetime.date(2026, 3, 4)), [(42, "a'b\\c", 1.5, False, T0, datetime.date(2026, 3, 4))]),
    ("SELECT %s::bigint, %s::bigint, %s::bigint", (2**63 - 1, -(2**63), None), [(2**63 - 1, -(2**63), None)]),
    ("SELECT %s::int8[], %s::text[]", ([1, -2, None], ["a b", 'q"', "", "x,{y}"]), [([1, -2, None], ["a b", 'q"', "", "x,{y}"])]),
    ("SELECT CAST(%s AS DECIMAL(20, 4)), CAST('0.05' AS DECIMAL(9, 2)), CAST('10000' AS DECIMAL(9, 0))",
     (decimal.Decimal("-12345.6789"),), [(decimal.Decimal("-12345.6789"), decimal.Decimal("0.05"), decimal.Decimal("10000"))]),
    ("SELECT INTERVAL '1 day 2 hours', DATE '1969-12-31', TIME '03:04:05.5', X'00ff', TIMESTAMP '1969-12-31 23:59:59.5'", (), [
        (datetime.timedelta(days=1, hours=2), datetime.date(1969, 12, 31), datetime.time(3, 4, 5, 500_000), b"\0\xff", datetime.datetime(1969, 12, 31, 23, 59, 59, 500_000))]),
    ("SELECT 1e300, CAST('NaN' AS DOUBLE) <> 1, CAST(1.5 AS REAL)", (), [(1e300, True, 1.5)]),
    ("SELECT 'x' || %s, length(%s)", ("é☕", "é☕"), [("xé☕", 2)]),
    ("SELECT column_name, data_type FROM information_schema.columns WHERE table_name = %s AND ordinal_position <= %s ORDER BY ordinal_position",
     ("logs", 2), [("time", "timestamp with time zone"), ("observed_time", "timestamp with time zone")]),
]

# Statement, SQLSTATE, a part of the message, a part of the hint.
REFUSED = [
    ("SELEC 1", "42601", "syntax error", None),
    ("SELECT nothing FROM spans", "42703", "nothing", None),
    ("SELECT * FROM nothing", "42P01", "nothing", None),
    ("SELECT nothing(1)", "42883", "nothing", None),
    ("SELECT 1 / 0", "22012", "zero", None),
    ("SELECT CAST('x' AS BIGINT)", "22P02", "x", None),
    ("SELECT * FROM spans WHERE trace_id = 'zz'", "22P02", "is not an id", "LIKE"),
    ("INSERT INTO spans VALUES (1)", "25006", "only reads", "SELECT"),
    ("DROP TABLE spans", "25006", "only reads", "SELECT"),
    ("CREATE TABLE x AS SELECT 1", "25006", "only reads", "SELECT"),
    ("COPY spans TO '/tmp/x'", "0A000", "COPY is not available", "format=csv"),
    ("COPY (SELECT 1) TO STDOUT", "0A000", "COPY is not available", "format=csv"),
    ("DECLARE c CURSOR FOR SELECT 1", "0A000", "cursors", "drivers"),
    ("SET no_such_setting = 1", "42704", "no_such_setting", None),
    ("SELECT * FROM (" * 40 + "SELECT 1" + ")" * 40, "0A000", "nested", None),
    ("SELECT '" + "x" * 70_000 + "'", "54000", "over the limit", None),
]

# Six self-joined lists of a hundred: nobody lives to see the end.
# Eight billion pairs, of which either side is small: it takes minutes and next to no memory, however fast the machine.
FOR_EVER = "WITH t AS (SELECT column1 AS x FROM (VALUES " + ", ".join(f"({n})" for n in range(500)) + "))," \
    " u AS (SELECT a.x FROM t a JOIN t b ON a.x % 2 = b.x % 2) SELECT count(*) FROM u a JOIN u b ON a.x % 2 = b.x % 2"

wrong = []


def expect(what, found, expected):
    if found != expected or repr(found) != repr(expected):
        wrong.append(f"{what}\n  expected {expected!r}\n  found    {found!r}")


def refused(what, ask):
    """The error that `ask` ends in."""
    try:
        found = ask()
    except psycopg.Error as error:
        return error
    wrong.append(f"{what}\n  expected an error\n  found    {found!r}")
    return psycopg.Error()


def check_answers(connection):
    for sql, parameters, rows in ANSWERS:
        for how in ({"binary": False}, {"binary": True}, {"binary": True, "prepare": True}):
            prepare = how.get("prepare")
            try:
                with connection.cursor(binary=how["binary"]) as cursor:
                    found = cursor.execute(sql, parameters, prepare=prepare).fetchall()
            except psycopg.Error as error:
                found = error
            expect(f"{sql} {parameters} {how}", found, rows)


def check_refusals(connection):
    for sql, state, message, hint in REFUSED:
        shown = sql[:80]
        for prepare in (False, True):
            error = refused(shown, lambda: connection.execute(sql, prepare=prepare))
            expect(f"{shown}: state, prepared {prepare}: {error}", error.sqlstate, state)
            expect(f"{shown}: message: {error}", message in (error.diag.message_primary or ""), True)
            expect(f"{shown}: hint: {error.diag.message_hint}", hint is None or hint in (error.diag.message_hint or ""), True)
    expect("after errors it goes on", connection.execute("SELECT 1").fetchall(), [(1,)])


def check_session(dsn):
    with psycopg.connect(dsn, application_name="checks", options="-c statement_timeout=20s -c search_path=public") as session:
        info = session.info
        expect("the server's version", info.server_version, 150000)
        expect("encoding and zone", (info.encoding, str(info.timezone)), ("utf-8", "UTC"))
        expect("what was set at the start", session.execute("SHOW application_name").fetchall(), [("checks",)])
        expect("the timeout set at the start", session.execute("SHOW statement_timeout").fetchall(), [("20s",)])
        expect("in a transaction", info.transaction_status.name, "INTRANS")
        expect("an error fails it", refused("an error", lambda: session.execute("SELECT 1 / 0")).sqlstate, "22012")
        expect("and what follows is ignored", refused("a failed one", lambda: session.execute("SELECT 1")).sqlstate, "25P02")
        session.rollback()
        with session.transaction():
            with session.transaction():  # A savepoint.
                expect("nested", session.execute("SELECT 2").fetchall(), [(2,)])
        session.execute("SET TIME ZONE 'Europe/Berlin'")
        expect("times stay in UTC", session.execute("SHOW timezone").fetchall(), [("UTC",)])
        session.execute("SET godseye.rows_max = 10")
        many = "SELECT a.x FROM (VALUES (1), (2), (3), (4)) a(x), (VALUES (1), (2), (3), (4)) b(x)"
        error = refused("more rows than the limit", lambda: session.execute(many))
        expect("a limit is an error", (error.sqlstate, "rows_max" in (error.diag.message_hint or "")), ("54000", True))
        session.rollback()
        session.execute("RESET ALL")
        expect("and no limit is none", len(session.execute(many).fetchall()), 16)
    with psycopg.connect(dsn, autocommit=True) as session:
        with session.pipeline():
            cursors = [session.execute("SELECT %s::int", (number,)) for number in range(20)]
        expect("a pipeline", [cursor.fetchall() for cursor in cursors], [[(number,)] for number in range(20)])
        streamed = [row[0] for row in session.cursor().stream("SELECT column1 FROM (VALUES (3), (1), (2)) ORDER BY 1")]
        expect("row by row", streamed, [1, 2, 3])


def check_stopping(dsn):
    with psycopg.connect(dsn, autocommit=True) as session:
        timer = threading.Timer(0.5, session.cancel)
        timer.start()
        error = refused("cancelled", lambda: session.execute(FOR_EVER))
        expect(f"a cancelled query: {error}", (error.sqlstate, "user request" in str(error)), ("57014", True))
        timer.join()
        session.execute("SET statement_timeout = '300ms'")
        error = refused("timed out", lambda: session.execute(FOR_EVER))
        expect(f"a query over its time: {error}", (error.sqlstate, "300 ms" in str(error)), ("57014", True))
        expect("after it", session.execute("SELECT 1").fetchall(), [(1,)])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dsn", required=True)
    dsn = parser.parse_args().dsn
    with psycopg.connect(dsn, autocommit=True) as connection:
        check_answers(connection)
        check_refusals(connection)
    check_session(dsn)
    check_stopping(dsn)
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)


main()
