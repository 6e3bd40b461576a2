"""The read path beside ClickHouse's engine (`chdb`), over the same rows in one run.

Fills a new data directory with spans of fixture S over OTLP, waits until it is flushed and merged, copies the rows
into a MergeTree with skip indexes, and asks both the nine questions of README.md ("Reads"); then the same with logs of
fixture L and searches for a token. Not here: the write path (`pipeline.py`).
"""

import argparse
import http.client
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from pipeline import BATCH_OF, CORE_SENDER, CORE_UNDER_TEST, QUIET_S, Godseye, peak_bytes, folder_bytes, say

SPANS = 10_240_000
LOGS = 20_480_000
HOURS = 24
# Of heavy questions at once, while acknowledgements are timed.
HEAVY = 8
BESIDE_S = 20
# Spans that tell what one costs.
BESIDE_ITEMS = 2_048_000


class Server(Godseye):
    """The server with both cores, since nothing sends while it answers."""

    cores = (CORE_UNDER_TEST, CORE_SENDER)

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.door = http.client.HTTPConnection(self.http, timeout=600)

    def ask(self, sql, format="json"):
        """The answer's response, unread."""
        self.door.request("POST", f"/api/v1/sql?format={format}", sql)
        answer = self.door.getresponse()
        if answer.status != 200:
            raise SystemExit(f"{answer.status} {answer.read()[:500]!r} to {sql}")
        return answer

    def query(self, sql):
        return json.loads(self.ask(sql).read())["rows"]


def send(args, server, source, *options):
    """Runs the load generator; its report."""
    command = [args.godseye, "loadgen", "--endpoint", f"http://{server.grpc}", "--source", source, "--output", "json"]
    command += ["--connections", "4", *map(str, options)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)


def fill(args, source, items, data_dir, log, hours=1):
    """Sends so many items, in as many bursts as there are hours, an hour apart and the last one now."""
    say(f"sending {items:,} {source}")
    with Server(args.godseye, data_dir, log=log) as server:
        batches = -(-items // hours // BATCH_OF[source])
        items = batches * BATCH_OF[source] * hours
        for hour in range(hours):
            options = ["--items", batches * BATCH_OF[source], "--seconds", 0, "--distinct-batches", batches]
            send(args, server, source, *options, "--seed", hour + 1, "--ago", 3600 * (hours - 1 - hour))
        server.settled()
        rows = server.query(f"SELECT count(*) FROM {source}")[0][0]
    if rows != items:
        raise SystemExit(f"{rows} rows of {items}")


def span_questions(server):
    """(name, our SQL, ClickHouse's SQL): the constants are taken from the data, never the newest or first row."""
    one = server.query("SELECT hex(trace_id), start_time, attributes['enduser.id'], attributes['url.path'] FROM spans "
                       "WHERE service_name = 'service-07' ORDER BY start_time LIMIT 1 OFFSET 200000")
    if not one:
        one = server.query("SELECT hex(trace_id), start_time, attributes['enduser.id'], attributes['url.path'] FROM spans "
                           "WHERE service_name = 'service-07' LIMIT 1")
    trace, at, user, path = one[0]
    piece = path[path.rindex("/"):]
    first = server.query("SELECT min(start_time) FROM spans")[0][0]
    ch = lambda text: f"parseDateTime64BestEffort('{text}', 9, 'UTC')"
    hour = ("start_time >= TIMESTAMP '{0}' AND start_time < TIMESTAMP '{0}' + INTERVAL '1 hour'".format(first),
            f"ts >= {ch(first)} AND ts < {ch(first)} + INTERVAL 1 HOUR")
    around = ("start_time BETWEEN TIMESTAMP '{0}' - INTERVAL '5 seconds' AND TIMESTAMP '{0}' + INTERVAL '5 seconds'".format(at),
              f"ts BETWEEN {ch(at)} - INTERVAL 5 SECOND AND {ch(at)} + INTERVAL 5 SECOND")
    window = ("start_time >= TIMESTAMP '{0}' AND start_time < TIMESTAMP '{0}' + INTERVAL '5 minutes'".format(at),
              f"ts >= {ch(at)} AND ts < {ch(at)} + INTERVAL 5 MINUTE")
    return [
        ("RED of all services, one hour",
         f"SELECT service_name, count(*), count(*) FILTER (WHERE status_code = 'ERROR'), approx_percentile_cont(duration_ns, 0.99) FROM spans WHERE {hour[0]} GROUP BY 1",
         f"SELECT service, count(), countIf(status = 'ERROR'), quantile(0.99)(duration) FROM s WHERE {hour[1]} GROUP BY 1"),
        ("p99 by route, one service",
         "SELECT attributes['http.route'], approx_percentile_cont(duration_ns, 0.99) FROM spans WHERE service_name = 'service-07' GROUP BY 1",
         "SELECT route, quantile(0.99)(duration) FROM s WHERE service = 'service-07' GROUP BY 1"),
        ("trace by id, no time hint",
         f"SELECT span_id, parent_span_id, service_name, name, start_time, duration_ns, status_code FROM spans WHERE trace_id = '{trace}'",
         f"SELECT hex(span_id), hex(parent), service, name, ts, duration, status FROM s WHERE trace_id = unhex('{trace}')"),
        ("trace by id, ±5 s",
         f"SELECT span_id, parent_span_id, service_name, name, start_time, duration_ns, status_code FROM spans WHERE trace_id = '{trace}' AND {around[0]}",
         f"SELECT hex(span_id), hex(parent), service, name, ts, duration, status FROM s WHERE trace_id = unhex('{trace}') AND {around[1]}"),
        ("ten busiest users of a service",
         "SELECT attributes['enduser.id'], count(*) FROM spans WHERE service_name = 'service-07' GROUP BY 1 ORDER BY 2 DESC LIMIT 10",
         "SELECT user, count() FROM s WHERE service = 'service-07' GROUP BY 1 ORDER BY 2 DESC LIMIT 10"),
        ("path contains",
         f"SELECT count(*) FROM spans WHERE attributes['url.path'] LIKE '%{piece}%'",
         f"SELECT count() FROM s WHERE path LIKE '%{piece}%'"),
        ("one user's spans",
         f"SELECT service_name, start_time, duration_ns FROM spans WHERE attributes['enduser.id'] = '{user}'",
         f"SELECT service, ts, duration FROM s WHERE user = '{user}'"),
        ("five minutes of one service, 10 s buckets",
         f"SELECT date_bin(INTERVAL '10 seconds', start_time), count(*), count(*) FILTER (WHERE status_code = 'ERROR') FROM spans WHERE service_name = 'service-07' AND {window[0]} GROUP BY 1",
         f"SELECT toStartOfInterval(ts, INTERVAL 10 SECOND), count(), countIf(status = 'ERROR') FROM s WHERE service = 'service-07' AND {window[1]} GROUP BY 1"),
        ("newest 100 errors",
         "SELECT start_time, service_name, name, hex(trace_id), duration_ns FROM spans WHERE status_code = 'ERROR' ORDER BY start_time DESC LIMIT 100",
         "SELECT ts, service, name, hex(trace_id), duration FROM s WHERE status = 'ERROR' ORDER BY ts DESC LIMIT 100"),
    ]


def log_questions(server):
    """As span_questions: a token of one log record, one that a tenth of them has, and text within and around tokens."""
    body = server.query("SELECT body FROM logs WHERE service_name = 'service-07' AND starts_with(body, 'order ') "
                        "AND length(body) > 40 ORDER BY time LIMIT 1 OFFSET 5000")[0][0]
    rare = body.split(" ")[1]
    return [
        ("rare token",
         f"SELECT time, service_name, body FROM logs WHERE has_token(body, '{rare}')",
         f"SELECT ts, service, body FROM l WHERE hasToken(body, '{rare}')"),
        ("frequent token",
         "SELECT count(*) FROM logs WHERE has_token(body, 'deadline')",
         "SELECT count() FROM l WHERE hasToken(body, 'deadline')"),
        ("frequent token, newest 100",
         "SELECT time, service_name, body FROM logs WHERE has_token(body, 'deadline') ORDER BY time DESC LIMIT 100",
         "SELECT ts, service, body FROM l WHERE hasToken(body, 'deadline') ORDER BY ts DESC LIMIT 100"),
        ("rare text with LIKE",
         f"SELECT time, service_name, body FROM logs WHERE body LIKE '%order {rare} accepted%'",
         f"SELECT ts, service, body FROM l WHERE body LIKE '%order {rare} accepted%'"),
        ("token that is nowhere",
         "SELECT count(*) FROM logs WHERE has_token(body, 'a1b2c3d4e5')",
         "SELECT count() FROM l WHERE hasToken(body, 'a1b2c3d4e5')"),
    ]


SPANS_PEER = ("""CREATE TABLE s (
        service LowCardinality(String), ts DateTime64(9, 'UTC') CODEC(DoubleDelta, ZSTD(1)), duration Int64 CODEC(T64, ZSTD(1)),
        name LowCardinality(String) CODEC(ZSTD(1)), status LowCardinality(String) CODEC(ZSTD(1)),
        trace_id FixedString(16) CODEC(ZSTD(1)), span_id FixedString(8) CODEC(ZSTD(1)), parent FixedString(8) CODEC(ZSTD(1)),
        route LowCardinality(String) CODEC(ZSTD(1)), path String CODEC(ZSTD(1)), user String CODEC(ZSTD(1)),
        INDEX i_trace trace_id TYPE bloom_filter(0.01) GRANULARITY 1,
        INDEX i_user user TYPE bloom_filter(0.01) GRANULARITY 1,
        INDEX i_path path TYPE ngrambf_v1(4, 32768, 2, 0) GRANULARITY 1
    ) ENGINE = MergeTree ORDER BY (service, ts)""",
    """SELECT service_name AS service, start_time AS ts, duration_ns AS duration, name, status_code AS status,
            hex(trace_id) AS trace_id, hex(span_id) AS span_id, coalesce(hex(parent_span_id), '0000000000000000') AS parent,
            attributes['http.route'] AS route, attributes['url.path'] AS path, attributes['enduser.id'] AS user FROM spans""",
    "s SELECT service, ts, duration, name, status, unhex(trace_id), unhex(span_id), unhex(parent), route, path, user")

LOGS_PEER = ("""CREATE TABLE l (
        service LowCardinality(String), ts DateTime64(9, 'UTC') CODEC(DoubleDelta, ZSTD(1)), severity LowCardinality(String) CODEC(ZSTD(1)),
        body String CODEC(ZSTD(1)), trace_id FixedString(16) CODEC(ZSTD(1)), user String CODEC(ZSTD(1)),
        INDEX i_body body TYPE tokenbf_v1(32768, 3, 0) GRANULARITY 1
    ) ENGINE = MergeTree ORDER BY (service, ts)""",
    """SELECT service_name AS service, time AS ts, severity_text AS severity, body, coalesce(hex(trace_id), '') AS trace_id,
            coalesce(attributes['enduser.id'], '') AS user FROM logs""",
    "l SELECT service, ts, severity, body, toFixedString(unhex(trace_id), 16), user")


def peer(args, server, folder, description, rows):
    """A MergeTree with the rows, in the same order, with skip indexes on what is searched for."""
    from chdb import session

    create, export_rows, insert = description
    clickhouse = session.Session(os.path.join(folder, "chdb"))
    clickhouse.query(f"SET max_threads = {args.threads}")
    clickhouse.query("CREATE DATABASE IF NOT EXISTS b ENGINE = Atomic")
    clickhouse.query("USE b")
    clickhouse.query(create)
    say("copying the rows")
    export = os.path.join(folder, "rows.parquet")
    with open(export, "wb") as file:
        shutil.copyfileobj(server.ask(export_rows, "parquet&limit=100000000"), file, 1 << 20)
    clickhouse.query(f"INSERT INTO {insert} FROM file('{export}', Parquet)")
    table = insert.split(" ")[0]
    clickhouse.query(f"OPTIMIZE TABLE {table} FINAL")
    copied = int(str(clickhouse.query(f"SELECT count() FROM {table}")))
    if copied != rows:
        raise SystemExit(f"the peer has {copied} rows of {rows}")
    os.remove(export)
    return clickhouse


def best(ask, repeats):
    """Milliseconds: (least, median) after one warm-up."""
    ask()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        ask()
        times.append((time.perf_counter() - started) * 1e3)
    return min(times), statistics.median(times)


def compare(args, server, clickhouse, asked):
    print("| question | godseye, ms (median) | chdb, ms (median) | ratio |\n| --- | --- | --- | --- |")
    ratios = []
    for name, ours, theirs in asked:
        least, median = best(lambda: server.query(ours), args.repeats)
        if clickhouse is None:
            print(f"| {name} | {least:.1f} ({median:.1f}) | | |", flush=True)
            continue
        mine, other = len(server.query(ours)), len(str(clickhouse.query(theirs, "TSV")).splitlines())
        if mine != other:
            raise SystemExit(f"{name}: {mine} rows, and {other} of the peer")
        their_least, their_median = best(lambda: clickhouse.query(theirs, "TSV"), args.repeats)
        ratios.append(least / their_least)
        print(f"| {name} | {least:.1f} ({median:.1f}) | {their_least:.1f} ({their_median:.1f}) | {ratios[-1]:.2f} |", flush=True)
    if ratios:
        print(f"\ngeometric mean of the ratios: {math.exp(statistics.fmean(map(math.log, ratios))):.2f}")


def beside(args, data_dir, log, questions):
    """The questions while telemetry comes in at half of what the machine takes, and acknowledgements while heavy ones run."""
    with Server(args.godseye, data_dir, log=log) as server:
        say("idle, then beside ingest")
        asked = [(name, ours) for name, ours, _ in questions(server)]
        # Before there are more rows, and after: the questions beside ingest see more and more of them.
        medians = lambda: {name: best(lambda: server.query(ours), args.repeats)[1] for name, ours in asked}
        idle = medians()
        # The rate at which receiving, storing and merging would take all of both cores, for ever.
        used = server.quiet()
        sent = send(args, server, "spans", "--items", BESIDE_ITEMS, "--seconds", 0, "--distinct-batches", 1000)["items_acked"]
        full = len(Server.cores) * sent / (server.settled() - used)
        server.door.close()
        half = ["--rate", full / 2, "--distinct-batches", 1000]
        reports = []
        load = lambda seconds: threading.Thread(target=lambda: reports.append(send(args, server, "spans", "--seconds", seconds, *half)))
        sending = load(BESIDE_S)
        sending.start()
        time.sleep(2)
        busy = {}
        while len(busy) < len(asked) and sending.is_alive():
            name, ours = asked[len(busy)]
            busy[name] = best(lambda: server.query(ours), args.repeats)[1]
        sending.join()
        server.settled()
        # The server has closed a connection that was idle meanwhile; this opens another one.
        server.door.close()
        idle_after = medians()
        ratios = {name: took / statistics.fmean([idle[name], idle_after[name]]) for name, took in busy.items()}
        print("| question | beside ingest, against idle |\n| --- | --- |")
        for name, ratio in ratios.items():
            print(f"| {name} | {ratio:.2f} |")
        print(f"\ngeometric mean: {math.exp(statistics.fmean(map(math.log, ratios.values()))):.2f} at {full / 2:,.0f} spans/s", flush=True)
        say("acknowledgements beside heavy questions")
        over = threading.Event()
        answered = [0] * HEAVY

        def ask(number):
            door = http.client.HTTPConnection(server.http, timeout=600)
            # Each of its own, so that none is answered from what another has read.
            sql = f"SELECT attributes['http.route'], name, approx_percentile_cont(duration_ns, 0.99) FROM spans WHERE duration_ns > {number} GROUP BY 1, 2"
            while not over.is_set():
                try:
                    door.request("POST", "/api/v1/sql", sql)
                    answer = door.getresponse()
                    text = answer.read()
                except (OSError, http.client.HTTPException):
                    # The server is ended while some are asked.
                    if over.is_set():
                        return
                    raise
                if answer.status != 200:
                    raise SystemExit(f"a heavy question: {answer.status} {text[:500]!r}")
                answered[number] += 1

        # The caches of the nine are no part of it, and neither are the threads' first answers.
        askers = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(HEAVY)]
        for asker in askers:
            asker.start()
        time.sleep(2)
        sending = load(BESIDE_S)
        sending.start()
        sending.join()
        over.set()
        latency = reports[-1]["latency"]
        print(f"acknowledgements at {full / 2:,.0f} spans/s beside {HEAVY} heavy questions: p50 {latency['p50_ms']:.1f} ms, p99 {latency['p99_ms']:.1f} ms; "
              f"{sum(answered)} answers; peak memory of the server: {peak_bytes(server.pid) >> 20} MiB\n", flush=True)


def day(args):
    """Service map and RED of a day, from the derived tables."""
    with tempfile.TemporaryDirectory(prefix="godseye-reads-", dir=args.work_dir) as folder:
        data_dir = args.day_dir or os.path.join(folder, "data")
        with open(os.path.join(folder, "godseye.log"), "w") as log:
            if not os.path.isdir(data_dir):
                fill(args, "spans", args.spans, data_dir, log, HOURS)
            with Server(args.godseye, data_dir, log=log) as server:
                print("| derived tables, one day | ms (median) |\n| --- | --- |")
                for name, sql in DAY_QUESTIONS:
                    least, median = best(lambda: server.query(sql), args.repeats)
                    print(f"| {name} | {least:.1f} ({median:.1f}) |", flush=True)
                print()


DAY_QUESTIONS = [
    ("RED of all services",
     "SELECT service_name, sum(count) AS requests, sum(errors) AS errors, quantile(0.99, duration) AS p99 FROM span_metrics "
     "WHERE kind = 'SERVER' AND time >= now() - INTERVAL '1 day' GROUP BY 1 ORDER BY 2 DESC"),
    ("service map",
     "SELECT client, server, connection_type, sum(count) AS requests, sum(errors) AS errors, quantile(0.99, duration) AS p99 "
     "FROM service_edges WHERE time >= now() - INTERVAL '1 day' GROUP BY 1, 2, 3 ORDER BY 4 DESC"),
]


def measure(args, source, items, data_dir, questions, description):
    with tempfile.TemporaryDirectory(prefix="godseye-reads-", dir=args.work_dir) as folder:
        data_dir = data_dir or os.path.join(folder, "data")
        with open(os.path.join(folder, "godseye.log"), "w") as log:
            if not os.path.isdir(data_dir):
                fill(args, source, items, data_dir, log)
            segments = folder_bytes(os.path.join(data_dir, "segments"))
            with Server(args.godseye, data_dir, log=log) as server:
                asked = [question for question in questions(server) if not args.only or args.only in question[0]]
                clickhouse = None if args.no_peer else peer(args, server, folder, description, items)
            # A new process, so that its peak is that of the questions.
            with Server(args.godseye, data_dir, log=log) as server:
                compare(args, server, clickhouse, asked)
                print(f"bytes on disk, {source}: {segments / items:.1f} each; peak memory of the server: {peak_bytes(server.pid) >> 20} MiB\n")
            if clickhouse is not None:
                clickhouse.close()
            if source == "spans" and args.beside:
                beside(args, data_dir, log, questions)


def main():
    parser = argparse.ArgumentParser(description="the read path beside chdb, in one run")
    parser.add_argument("--godseye", required=True, help="the release binary")
    parser.add_argument("--spans", type=int, default=SPANS, help="0 leaves them out")
    parser.add_argument("--logs", type=int, default=LOGS, help="0 leaves them out")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2, help="of the peer; the server takes one a core")
    parser.add_argument("--work-dir", default="/var/tmp")
    parser.add_argument("--data-dir", help="keep the server's data of spans there, or use what an earlier run left")
    parser.add_argument("--logs-dir", help="the same for logs")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--day-dir", help="the same for spans of a day")
    parser.add_argument("--no-day", dest="day", action="store_false", help="leave out the derived tables")
    parser.add_argument("--no-beside", dest="beside", action="store_false", help="leave out what is asked while telemetry comes in; it adds rows to --data-dir")
    parser.add_argument("--only", help="questions whose name contains this")
    args = parser.parse_args()
    if args.spans:
        measure(args, "spans", args.spans, args.data_dir, span_questions, SPANS_PEER)
    if args.spans and args.day:
        day(args)
    if args.logs:
        measure(args, "logs", args.logs, args.logs_dir, log_questions, LOGS_PEER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
