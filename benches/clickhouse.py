"""What ClickHouse costs as storage, beside an agent that exports to it: `rotel`.

    cargo build -p fixtures
    clickhouse.py --godseye target/release/godseye --fixtures target/debug/fixtures [--only sink,server,pushdown]

* sink: rows per CPU-second from OTLP/gRPC to inserts that an HTTP server reads and throws away; everything else that our
  process asks (its schema) goes to a real engine. Both programs insert as they do by default.
* server: CPU time of the real engine per row, for the bodies that our process sent, and for the same rows as RowBinary, into
  tables with all their indexes, and into none (the `Null` engine), which leaves only reading the format; and for `rotel` and
  our process from end to end, each into its own tables.
* pushdown: what a question takes through us beyond the same question in ClickHouse's SQL by hand, over the same HTTP.

Process under test and engine run on core 0, each alone there; senders, sink and driver on core 1. Runs alternate. Not here:
whether rows arrive once, which is `tests/clickhouse.rs`'s; the sender and what settled means are pipeline.py's.
"""

import argparse
import contextlib
import http.client
import http.server
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

from pipeline import BATCH_OF, BUSY_MAX, CORE_SENDER, CORE_UNDER_TEST, Godseye, Process, Rotel, Sender, check_acked, core_busy, cpu_s, free_port, on_cores, say, warn

FLOOR_SINK, FLOOR_SERVER, FLOOR_PUSHDOWN_MS = 1.5, 0.5, 30
# Requests of an insert that are kept, for the engine to read again.
RECORDED = 4
STORED_WITHIN_S = 300


class Engine:
    """`fixtures clickhouse` on a folder: ClickHouse's engine behind its HTTP interface, on the core under test."""

    def __init__(self, binary, folder):
        command = [binary, "clickhouse", "--port", "0", "--dir", folder]
        self.child = subprocess.Popen(command, preexec_fn=on_cores(CORE_UNDER_TEST), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for line in self.child.stdout:
            if found := re.search(r"http://([\w.]+:\d+)", line):
                self.host = found.group(1)
                break
        else:
            raise SystemExit("the engine does not start")
        with open(f"/proc/{self.child.pid}/task/{self.child.pid}/children") as file:
            children = file.read().split()
        # The engine is a child where the fixtures start one; it is the process itself otherwise.
        self.pid = int(children[0]) if children else self.child.pid
        self.door = http.client.HTTPConnection(self.host, timeout=600)

    def ask(self, sql, body=None, **settings):
        query = urllib.parse.urlencode({"query": sql, **settings})
        self.door.request("POST", f"/?{query}", body if body is not None else b"")
        answer = self.door.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{sql[:300]}: {answer.status} {data[:500]!r}")
        return data

    def number(self, sql):
        return int(self.ask(sql).decode().strip())

    def quiet(self):
        """The CPU time when it has done next to nothing for a second: merges go on after an insert."""
        while True:
            before = cpu_s(self.pid)
            time.sleep(1)
            if cpu_s(self.pid) - before <= 0.03:
                return before

    def stop(self):
        self.child.terminate()
        self.child.wait()


class Sink:
    """Reads inserts and throws them away; asks an engine everything else. Keeps some bodies of inserts of spans."""

    def __init__(self, engine=None):
        self.bytes, self.inserts, self.recorded = 0, 0, []
        self.bodies_of = re.compile(r"INSERT INTO \S*(spans|otel_traces)\S* .*FORMAT")
        sink = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def body(self):
                if self.headers.get("transfer-encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("content-length") or 0))
                pieces = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    pieces.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(pieces)

            def do_POST(self):
                body = self.body()
                query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query).get("query", [""])[0]
                data = b""
                status = 200
                if "INSERT INTO" in query and "FORMAT" in query or body.startswith(b"INSERT INTO"):
                    sink.inserts += 1
                    sink.bytes += len(body)
                    if len(sink.recorded) < RECORDED and sink.bodies_of.search(query):
                        sink.recorded.append((query, body))
                elif engine:
                    door = http.client.HTTPConnection(engine.host, timeout=600)
                    headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "transfer-encoding", "content-length", "connection")}
                    door.request("POST", self.path, body, headers)
                    answer = door.getresponse()
                    status, data = answer.status, answer.read()
                    door.close()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.host = "127.0.0.1:%d" % self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class Exporter(Rotel):
    """`rotel` with its ClickHouse exporter."""

    def __init__(self, binary, host, database):
        ports = free_port(), free_port()
        command = [binary, "start", "--exporter", "clickhouse", "--clickhouse-exporter-endpoint", f"http://{host}"]
        command += ["--clickhouse-exporter-database", database, "--clickhouse-exporter-async-insert", "false"]
        command += ["--otlp-grpc-endpoint", f"127.0.0.1:{ports[0]}", "--otlp-http-endpoint", f"127.0.0.1:{ports[1]}"]
        Process.__init__(self, command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.grpc = f"127.0.0.1:{ports[0]}"
        deadline = time.monotonic() + 60
        while self.child.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                http.client.HTTPConnection(self.grpc, timeout=1).connect()
                return
            time.sleep(0.02)
        raise SystemExit(f"rotel at {binary} does not listen")


def ours(args, folder, name, host, **options):
    flags = ["--storage", "clickhouse", "--clickhouse-url", f"http://{host}"]
    return Godseye(args.godseye, os.path.join(folder, name), flags=flags, log=sys.stderr if args.verbose else subprocess.DEVNULL, **options)


def send(args, to):
    report = Sender(args.godseye, to, "spans", items=args.items, distinct=-(-args.items // BATCH_OF["spans"])).report()
    check_acked(report)
    return report["items_acked"]


def until_inserted(server, rows):
    deadline = time.monotonic() + STORED_WITHIN_S
    while server.metrics().get("godseye_clickhouse_rows_total", 0) < rows:
        if time.monotonic() > deadline:
            raise SystemExit(f"{rows} rows are not inserted after {STORED_WITHIN_S} s")
        time.sleep(0.2)


def sink_runs(args, folder, engine):
    """Rows per CPU-second of each program, and bodies of our inserts."""
    rates = {"ours": [], "rotel": []}
    recorded = []
    for number in range(args.runs):
        sink = Sink()
        with Exporter(args.rotel, sink.host, "otel") as rotel:
            before = rotel.quiet(0.5)
            rows = send(args, rotel.grpc)
            rates["rotel"].append(rows / (rotel.quiet() - before))
        say(f"rotel: {rates['rotel'][-1]:,.0f} rows a CPU-second, {sink.inserts} inserts, {sink.bytes / rows:.0f} B a row")
        sink = Sink(engine)
        with ours(args, folder, f"sink-{number}", sink.host) as server:
            before = server.quiet(0.5)
            rows = send(args, server.grpc)
            until_inserted(server, rows)
            rates["ours"].append(rows / (server.quiet() - before))
        say(f"ours: {rates['ours'][-1]:,.0f} rows a CPU-second, {sink.inserts} inserts, {sink.bytes / rows:.0f} B a row")
        recorded = sink.recorded or recorded
    middle = {name: statistics.median(values) for name, values in rates.items()}
    ratio = middle["ours"] / middle["rotel"]
    print("\n| OTLP/gRPC → inserts into a sink | rows per CPU-second | least – greatest |\n| --- | --- | --- |")
    for name, values in rates.items():
        print(f"| {name} | {middle[name]:,.0f} | {min(values):,.0f} – {max(values):,.0f} |")
    print(f"\nratio {ratio:.2f} (floor {FLOOR_SINK}, goal 3)\n", flush=True)
    return recorded


def server_formats(args, engine, recorded):
    """CPU time of the engine per row, by format, for rows that our process sent."""
    if not recorded:
        raise SystemExit("no insert of spans was recorded: run sink as well")
    statement = recorded[0][0]
    target = re.search(r"INSERT INTO (\S+)", statement).group(1)
    columns = re.search(r"\((.*)\) FORMAT", statement).group(1)
    into = {}
    for name in ("arrow", "rowbinary"):
        engine.ask(f"CREATE TABLE bench_{name} AS {target}")
        engine.ask(f"CREATE TABLE bench_{name}_null AS {target} ENGINE = Null")
        into[name] = (f"bench_{name}", f"bench_{name}_null")
    engine.ask(f"CREATE TABLE bench_rows AS {target}")
    bodies = {"arrow": [], "rowbinary": []}
    rows = 0
    for _, body in recorded:
        engine.ask("TRUNCATE TABLE bench_rows")
        engine.ask(f"INSERT INTO bench_rows ({columns}) FORMAT ArrowStream", body)
        rows += engine.number("SELECT count() FROM bench_rows")
        bodies["arrow"].append(body)
        bodies["rowbinary"].append(engine.ask(f"SELECT {columns} FROM bench_rows FORMAT RowBinary"))
    used = {}
    for number in range(args.runs):
        for name, format in (("arrow", "ArrowStream"), ("rowbinary", "RowBinary")):
            for kind, table in zip(("table", "format alone"), into[name]):
                before = engine.quiet()
                for body in bodies[name]:
                    engine.ask(f"INSERT INTO {table} ({columns}) FORMAT {format}", body)
                used.setdefault((kind, name), []).append((engine.quiet() - before) / rows * 1e6)
    print("| the engine's CPU time, µs a row | ArrowStream, as we send it | RowBinary | ratio |\n| --- | --- | --- | --- |")
    for kind in ("table", "format alone"):
        arrow, binary = (statistics.median(used[kind, name]) for name in ("arrow", "rowbinary"))
        print(f"| {kind} | {arrow:.2f} | {binary:.2f} | {arrow / binary:.2f} |")
    print(f"\nbytes a row: {sum(map(len, bodies['arrow'])) / rows:.0f} and {sum(map(len, bodies['rowbinary'])) / rows:.0f}; {rows} rows in {len(recorded)} inserts\n", flush=True)


def server_whole(args, folder, engine):
    """The same from end to end: what each program makes the engine do for the same spans."""
    used = {"ours": [], "rotel": []}
    config = os.path.join(folder, "otel.yaml")
    with open(config, "w") as file:
        file.write("storage: { clickhouse: { database: forrotel, otel_tables: true } }\n")
    # Makes the tables that the exporter writes.
    with ours(args, folder, "forrotel", engine.host, config=config):
        pass
    for number in range(args.runs):
        before, had = engine.quiet(), engine.number("SELECT count() FROM forrotel.otel_traces")
        with Exporter(args.rotel, engine.host, "forrotel") as rotel:
            rows = send(args, rotel.grpc)
            rotel.quiet()
        stored = engine.number("SELECT count() FROM forrotel.otel_traces") - had
        if stored != rows:
            say(f"rotel: {rows} rows were acknowledged and {stored} stored")
        used["rotel"].append((engine.quiet() - before) / max(stored, 1) * 1e6)
        before = engine.quiet()
        with ours(args, folder, f"whole-{number}", engine.host) as server:
            rows = send(args, server.grpc)
            until_inserted(server, rows)
            used["ours"].append((engine.quiet() - before) / rows * 1e6)
        say(f"engine: {used['ours'][-1]:.2f} µs a row for ours, {used['rotel'][-1]:.2f} for rotel")
    middle = {name: statistics.median(values) for name, values in used.items()}
    print(f"| the engine's CPU time, µs a row, end to end | ours | rotel | ratio |\n| --- | --- | --- | --- |\n"
          f"| spans | {middle['ours']:.2f} | {middle['rotel']:.2f} | {middle['ours'] / middle['rotel']:.2f} |\n\n"
          f"(floor {FLOOR_SERVER}, goal 0.2)\n", flush=True)


# Ours, and what a person would type into ClickHouse for it.
QUESTIONS = [
    ("count", "SELECT count(*) FROM spans", "SELECT count() FROM {t}"),
    ("RED by service",
     "SELECT service_name, count(*) AS n, count(*) FILTER (WHERE status_code = 'ERROR') AS e, avg(duration_ns) AS d FROM spans GROUP BY 1 ORDER BY 2 DESC",
     "SELECT service_name, count() AS n, countIf(status_code = 'ERROR') AS e, avg(duration_ns) AS d FROM {t} GROUP BY 1 ORDER BY 2 DESC"),
    ("an attribute",
     "SELECT attributes['http.request.method'] AS m, count(*) AS n FROM spans GROUP BY 1 ORDER BY 2 DESC",
     "SELECT attributes.strings['http.request.method'] AS m, count() AS n FROM {t} GROUP BY 1 ORDER BY 2 DESC"),
    ("newest ten", "SELECT hex(trace_id), name, duration_ns FROM spans WHERE service_name = 'service-07' ORDER BY start_time DESC LIMIT 10",
     "SELECT lower(hex(trace_id)), name, duration_ns FROM {t} WHERE service_name = 'service-07' ORDER BY start_time DESC LIMIT 10"),
    ("a minute by ten seconds",
     "SELECT time_bucket('10s', start_time) AS t, count(*) AS n FROM spans WHERE service_name = 'service-07' GROUP BY 1 ORDER BY 1 LIMIT 100",
     "SELECT toStartOfInterval(start_time, INTERVAL 10 SECOND) AS t, count() AS n FROM {t} WHERE service_name = 'service-07' GROUP BY 1 ORDER BY 1 LIMIT 100"),
]


def pushdown(args, folder, engine):
    table = "godseye.spans"
    with ours(args, folder, "pushdown", engine.host) as server:
        if engine.number(f"SELECT count() FROM {table}") < args.items:
            until_inserted(server, send(args, server.grpc))
        engine.quiet()
        door = http.client.HTTPConnection(server.http, timeout=600)

        def through():
            door.request("POST", "/api/v1/sql", ask)
            answer = door.getresponse()
            data = answer.read()
            if answer.status != 200:
                raise SystemExit(f"{ask}: {data[:500]!r}")
            return len(json.loads(data)["rows"])

        def timed(what):
            began = time.perf_counter()
            what()
            return (time.perf_counter() - began) * 1e3

        print("| question | through us, ms | by hand, ms | more |\n| --- | --- | --- | --- |")
        more = []
        for name, ask, hand in QUESTIONS:
            hand = hand.format(t=table) + " FORMAT TSV"
            through(), engine.ask(hand)
            pairs = [(timed(through), timed(lambda: engine.ask(hand))) for _ in range(args.repeats)]
            one, two = (statistics.median(times) for times in zip(*pairs))
            more.append(one - two)
            print(f"| {name} | {one:.1f} | {two:.1f} | {one - two:.1f} |", flush=True)
        print(f"\nmost {max(more):.1f} ms, median {statistics.median(more):.1f} ms more (floor {FLOOR_PUSHDOWN_MS}, goal 10)\n", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--godseye", required=True, help="the release binary")
    parser.add_argument("--fixtures", required=True, help="the fixtures' binary")
    parser.add_argument("--rotel", help="the agent; the one of this Python by default")
    parser.add_argument("--items", type=int, default=1_024_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", default="sink,server,pushdown")
    parser.add_argument("--work-dir", default="/var/tmp")
    parser.add_argument("--verbose", action="store_true", help="our log")
    args = parser.parse_args()
    if not args.rotel:
        import rotel
        args.rotel = os.path.join(os.path.dirname(rotel.__file__), "rotel-agent")
    only = set(args.only.split(","))
    os.sched_setaffinity(0, (CORE_SENDER,))
    if (busy := core_busy()) > BUSY_MAX:
        warn(f"the machine is {busy:.0%} busy before anything starts")
    with tempfile.TemporaryDirectory(prefix="godseye-clickhouse-", dir=args.work_dir) as folder:
        engine = Engine(args.fixtures, os.path.join(folder, "engine"))
        try:
            recorded = sink_runs(args, folder, engine) if only & {"sink", "server"} else []
            if "server" in only:
                server_formats(args, engine, recorded)
                server_whole(args, folder, engine)
            if "pushdown" in only:
                pushdown(args, folder, engine)
        finally:
            engine.stop()


if __name__ == "__main__":
    sys.exit(main())
