"""The whole-process benchmark: `godseye serve` beside the agent `rotel`, both fed by the same sender.

    pipeline.py --godseye target/release/godseye [--rotel PATH] [--only decode,store,latency,memory,restart] [--quick]

The process under test runs on core 0, sender and driver on core 1. Runs of the two programs alternate; the table
gives medians, with the least and the greatest value. Every row sent is accounted for after each run, and a loss is
exit code 1. A missed floor is a number in the table and not an error. Method and meaning: README.md beside this file.
Not here: the micro-benchmarks of the decoder (cargo bench -p ingest).
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

CORE_UNDER_TEST, CORE_SENDER = 0, 1
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20

# As much in flight as a gateway sends; the same for both programs.
CONNECTIONS, IN_FLIGHT = 4, 8
# Longer than the default interval between two looks for something to merge, so that quiet means settled.
QUIET_S = 15.0
SETTLE_WITHIN_S = 300.0
READY_WITHIN_S = 300.0
WAL_BYTES = 256 * MIB
# Of both cores, before anything starts. What runs beside a benchmark is in its numbers.
BUSY_MAX = 0.10
# A sender this busy measures itself.
SENDER_BUSY_MAX = 0.90

TABLE_OF = {"spans": "spans", "logs": "logs", "metrics": "metric_points"}
# Items of one request of each fixture.
BATCH_OF = {"spans": 512, "logs": 512, "metrics": 500}


class Loss(Exception):
    """Acknowledged rows that SQL does not find, or rows that nobody sent."""


# ---- processes -----------------------------------------------------------------------------------------------------


def cpu_s(pid):
    """CPU time of a process and its ended children, user and system, in seconds."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / TICKS_PER_S


def peak_bytes(pid):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) * 1024


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def on_cores(*cores):
    return lambda: os.sched_setaffinity(0, cores)


class Process:
    """A process under test, on its own core. It is killed at the end of the `with`."""

    cores = (CORE_UNDER_TEST,)

    def __init__(self, command, env=None, **io):
        self.started = time.monotonic()
        self.child = subprocess.Popen(command, env={**os.environ, **(env or {})}, preexec_fn=on_cores(*self.cores), stdin=subprocess.DEVNULL, **io)
        self.pid = self.child.pid

    def kill(self):
        """SIGKILL, and waits until it is gone."""
        self.child.kill()
        self.child.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def cpu_s(self):
        return cpu_s(self.pid)

    def quiet(self, seconds=1.0):
        """Waits until it has done next to nothing for so long; returns the CPU time when that began."""
        deadline = time.monotonic() + SETTLE_WITHIN_S
        while time.monotonic() < deadline:
            before = self.cpu_s()
            time.sleep(seconds)
            if self.cpu_s() - before <= 0.02 * seconds:
                return before
        raise SystemExit(f"process {self.pid} did not come to rest within {SETTLE_WITHIN_S:.0f} s")


class Godseye(Process):
    """`godseye serve` on a data directory. Ready when this returns; `ready_s` is how long that took."""

    def __init__(self, binary, data_dir, config=None, discard=False, log=None, flags=()):
        command = [binary, "serve", "--data-dir", data_dir, "--log-level", "warn"]
        command += ["--otlp-grpc", "127.0.0.1:0", "--otlp-http", "127.0.0.1:0", "--http", "127.0.0.1:0", "--pg", "127.0.0.1:0"]
        if config:
            command += ["--config", config]
        command += flags
        env = {"GODSEYE_READY_JSON": "1"} | ({"GODSEYE_BENCH_DISCARD": "1"} if discard else {})
        super().__init__(command, env, stdout=subprocess.PIPE, stderr=log)
        self.data_dir = data_dir
        watchdog = threading.Timer(READY_WITHIN_S, self.child.kill)
        watchdog.start()
        for line in self.child.stdout:
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if event.get("event") == "ready":
                    break
        else:
            watchdog.cancel()
            raise SystemExit(f"godseye ended with {self.child.wait()} and was never ready")
        self.ready_s = time.monotonic() - self.started
        watchdog.cancel()
        self.grpc, self.otlp_http, self.http = event["otlp_grpc"], event["otlp_http"], event["http"]
        # Reads to the end, so that the process never blocks on a full pipe.
        threading.Thread(target=self.child.stdout.read, daemon=True).start()

    def sql(self, statement):
        request = urllib.request.Request(f"http://{self.http}/api/v1/sql", statement.encode(), {"content-type": "text/plain"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["rows"]

    def metrics(self):
        """Every sample of /metrics by name, summed over its labels."""
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=30) as response:
            text = response.read().decode()
        sums = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    def settled(self):
        """Waits until everything is flushed and nothing is left to merge. Returns the CPU time when that began."""
        deadline = time.monotonic() + SETTLE_WITHIN_S
        state, since, cpu = None, time.monotonic(), self.cpu_s()
        while time.monotonic() < deadline:
            numbers = self.metrics()
            now = tuple(numbers.get(f"godseye_store_{name}", 0.0) for name in ("memtable_rows", "flushes_total", "compactions_total", "segments", "segment_bytes"))
            if now != state or now[0] > 0:
                state, since, cpu = now, time.monotonic(), self.cpu_s()
            elif time.monotonic() - since >= QUIET_S:
                failures = numbers.get("godseye_store_flush_failures_total", 0) + numbers.get("godseye_store_compaction_failures_total", 0)
                if failures:
                    raise Loss(f"{failures:.0f} flushes or merges failed")
                return cpu
            time.sleep(1.0)
        raise SystemExit(f"godseye did not settle within {SETTLE_WITHIN_S:.0f} s: {state}")

    def segment_bytes(self):
        return folder_bytes(os.path.join(self.data_dir, "segments"))


class Rotel(Process):
    """`rotel start` with its blackhole exporter and otherwise its defaults."""

    def __init__(self, binary):
        ports = free_port(), free_port()
        command = [binary, "start", "--exporter", "blackhole"]
        command += ["--otlp-grpc-endpoint", f"127.0.0.1:{ports[0]}", "--otlp-http-endpoint", f"127.0.0.1:{ports[1]}"]
        super().__init__(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.grpc = f"127.0.0.1:{ports[0]}"
        deadline = time.monotonic() + READY_WITHIN_S
        while self.child.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", ports[0]), 1):
                return
            time.sleep(0.02)
        raise SystemExit(f"rotel at {binary} does not listen")


class Sender:
    """`godseye loadgen` on its own core."""

    def __init__(self, binary, to, source, items=0, seconds=0.0, rate=0.0, distinct=64, seed=1):
        command = [binary, "loadgen", "--endpoint", f"http://{to}", "--source", source, "--output", "json"]
        command += ["--items", str(items), "--seconds", str(seconds), "--rate", str(rate), "--seed", str(seed)]
        command += ["--distinct-batches", str(distinct), "--connections", str(CONNECTIONS), "--in-flight", str(IN_FLIGHT)]
        self.child = subprocess.Popen(command, preexec_fn=on_cores(CORE_SENDER), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self.samples = []
        self.sampling = threading.Thread(target=self._sample, daemon=True)
        self.sampling.start()

    def _sample(self):
        with contextlib.suppress(OSError, ValueError, IndexError):
            while self.child.poll() is None:
                self.samples.append((time.monotonic(), cpu_s(self.child.pid)))
                time.sleep(0.05)

    def interrupt(self):
        """Ends the load; what was sent is still reported."""
        self.child.send_signal(signal.SIGINT)

    def report(self):
        """Waits for the end. `busy` is the part of its core that it used while it sent, preparation excluded."""
        output, _ = self.child.communicate()
        self.sampling.join()
        try:
            report = json.loads(output)
        except ValueError:
            raise SystemExit(f"the sender failed with {self.child.returncode}: {output!r}") from None
        end, wall = self.samples[-1][0], report["wall_ms"] / 1e3
        first = next((sample for sample in self.samples if sample[0] >= end - wall), self.samples[0])
        report["busy"] = (self.samples[-1][1] - first[1]) / max(end - first[0], 0.05)
        if report["busy"] > SENDER_BUSY_MAX:
            warn(f"the sender used {report['busy']:.0%} of its core: rates of wall time are its own")
        return report


# ---- helpers -------------------------------------------------------------------------------------------------------


def warn(text):
    print(f"warning: {text}", file=sys.stderr, flush=True)


def say(text):
    print(text, file=sys.stderr, flush=True)


def folder_bytes(folder):
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            # A file may be merged away between listing and looking.
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(where, name)).st_size
    return total


def check_stored(server, report, tables):
    """Every acknowledged row is there, and none that nobody sent. Returns the rows found."""
    found = sum(server.sql(f"SELECT count(*) FROM {table}")[0][0] for table in tables)
    acked, sent = report["items_acked"], report["items_sent"]
    # A code that leaves no doubt stored nothing; after any other failure a retry may store a second copy.
    in_doubt = [code for code in report["errors"] if not code.startswith("grpc 8 ")]
    least, most = acked, sent * 5 if in_doubt else acked
    if not least <= found <= most:
        raise Loss(f"{acked} rows were acknowledged, {sent} sent, and SQL finds {found} (errors: {report['errors']})")
    received, stored, rejected = server.sql("SELECT sum(received), sum(stored), sum(rejected) FROM ingest_ledger")[0]
    if stored != found or received != stored + rejected:
        raise Loss(f"the ledger says received {received}, stored {stored}, rejected {rejected}; SQL finds {found} rows")
    if report["items_rejected"] or rejected:
        raise Loss(f"valid rows were rejected: {rejected}")
    return found


def check_acked(report):
    if report["items_acked"] != report["items_sent"] or report["items_rejected"]:
        raise Loss(f"{report['items_sent']} items were sent and {report['items_acked']} acknowledged: {report['errors']}")


def core_busy(seconds=2.0):
    """The part of all cores that something used."""

    def read():
        with open("/proc/stat") as file:
            fields = [int(field) for field in file.readline().split()[1:9]]
        return sum(fields), fields[3] + fields[4]

    (total, idle), _, (total_after, idle_after) = read(), time.sleep(seconds), read()
    return 1.0 - (idle_after - idle) / max(total_after - total, 1)


def sync_ms(folder, writes=64):
    """Median and 99th percentile of a 256 KiB append and its fdatasync, in milliseconds."""
    times = []
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _ in range(writes):
            started = time.perf_counter()
            os.write(file.fileno(), b"x" * (256 << 10))
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times), sorted(times)[int(len(times) * 0.99)]


def mount_of(path):
    """Device and file system that hold a path."""
    path, best = os.path.realpath(path), ("", "", "")
    with open("/proc/mounts") as file:
        for line in file:
            device, point, kind = line.split()[:3]
            if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) > len(best[1]):
                best = (device, point, kind)
    return best[0], best[2]


def version(command):
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


class Bench:
    """The arguments, and what was measured: name → list of numbers."""

    def __init__(self, args, folder):
        self.args, self.folder = args, folder
        self.results, self.notes = {}, []
        self.counter = 0

    def add(self, name, value):
        self.results.setdefault(name, []).append(value)

    def median(self, name):
        return statistics.median(self.results[name]) if self.results.get(name) else None

    def data_dir(self):
        self.counter += 1
        return os.path.join(self.folder, f"data-{self.counter}")

    def godseye(self, data_dir, **options):
        return Godseye(self.args.godseye, data_dir, log=self.log, **options)

    def send(self, to, source, **options):
        return Sender(self.args.sender or self.args.godseye, to, source, **options)

    # ---- the measurements

    def per_cpu_s(self, process, name, source, items, settle):
        """Sends so many items and adds items per CPU-second until the process has settled."""
        before = process.quiet(0.5)
        report = self.send(process.grpc, source, items=items, distinct=-(-items // BATCH_OF[source])).report()
        used = settle() - before
        self.add(name, report["items_acked"] / used)
        self.add(f"{name} busy", report["busy"])
        say(f"  {name}: {report['items_acked']} in {used:.2f} CPU-s = {report['items_acked'] / used:,.0f}/CPU-s, {report['acked_per_second']:,.0f}/s, p99 {report['latency']['p99_ms']:.1f} ms, sender {report['busy']:.0%}")
        return report

    def rotel_run(self, source, items):
        with Rotel(self.args.rotel) as rotel:
            check_acked(self.per_cpu_s(rotel, f"rotel {source}", source, items, rotel.quiet))
            self.add("rotel peak", peak_bytes(rotel.pid) / MIB)

    def decode_run(self, source, items):
        data_dir = self.data_dir()
        with self.godseye(data_dir, discard=True) as server:
            check_acked(self.per_cpu_s(server, f"decode {source}", source, items, server.quiet))
        shutil.rmtree(data_dir)

    def store_run(self, source, items, derived=True):
        data_dir = self.data_dir()
        config, name = None, f"store {source}"
        if not derived:
            config, name = os.path.join(self.folder, "underived.yaml"), f"store {source} alone"
            with open(config, "w") as file:
                file.write("storage: { derived: false }\n")
        with self.godseye(data_dir, config=config) as server:
            report = self.per_cpu_s(server, name, source, items, server.settled)
            rows = check_stored(server, report, [TABLE_OF[source]])
            if derived:
                self.add(f"bytes {source}", server.segment_bytes() / rows)
                self.add(f"store {source} peak", peak_bytes(server.pid) / MIB)
        shutil.rmtree(data_dir)

    def throughput(self, decode, store):
        """A B A B: rotel, ours without storage, ours with storage, and again."""
        for source, items, rounds in [("spans", self.args.items, self.args.rounds), ("logs", self.args.items, 1), ("metrics", self.args.items * 2, 1)]:
            for round_number in range(rounds):
                say(f"{source}, round {round_number + 1} of {rounds}")
                self.rotel_run(source, items)
                if decode:
                    self.decode_run(source, items)
                if store:
                    self.store_run(source, items)
                    if source == "spans":
                        self.store_run(source, items, derived=False)

    def latency(self):
        """The greatest rate first, then half of it with latencies from the moment each request was due."""
        data_dir = self.data_dir()
        with self.godseye(data_dir) as server:
            report = self.send(server.grpc, "spans", seconds=self.args.seconds, distinct=2000).report()
            check_stored(server, report, ["spans"])
        shutil.rmtree(data_dir)
        full = report["acked_per_second"]
        self.add("full rate", full)
        self.add("full p99", report["latency"]["p99_ms"])
        say(f"full load: {full:,.0f} spans/s of wall time, p99 {report['latency']['p99_ms']:.1f} ms, sender {report['busy']:.0%}")
        for _ in range(self.args.latency_rounds):
            data_dir = self.data_dir()
            with self.godseye(data_dir) as server:
                report = self.send(server.grpc, "spans", seconds=self.args.seconds, rate=full / 2, distinct=2000).report()
                check_stored(server, report, ["spans"])
            shutil.rmtree(data_dir)
            if report["unsent_items"] > full / 20:
                self.notes.append(f"half load was not reached: {report['unsent_items']} spans were never sent")
            for name in ("p50_ms", "p99_ms", "p999_ms", "max_ms"):
                self.add(f"half {name}", report["latency"][name])
            say(f"half load: {report['acked_per_second']:,.0f} spans/s, p50 {report['latency']['p50_ms']:.1f} ms, p99 {report['latency']['p99_ms']:.1f} ms, max {report['latency']['max_ms']:.1f} ms")

    def memory(self):
        """All signals as fast as they are acknowledged."""
        data_dir = self.data_dir()
        with self.godseye(data_dir) as server:
            report = self.send(server.grpc, "mixed", seconds=self.args.memory_seconds, distinct=1000).report()
            self.add("peak", peak_bytes(server.pid) / MIB)
            check_stored(server, report, TABLE_OF.values())
            say(f"all signals: {report['acked_per_second']:,.0f} items/s, peak {self.results['peak'][-1]:.0f} MiB, {report['retries']} retries")
        shutil.rmtree(data_dir)

    def restart(self):
        """Kills the server under full load once its log is large enough, and starts it again."""
        config = os.path.join(self.folder, "restart.yaml")
        with open(config, "w") as file:
            # Nothing is flushed before the log is large enough.
            file.write("storage:\n  memtable: { flush_interval: 1h, flush_bytes: 1GiB, max_bytes: 8GiB }\n")
        data_dir = self.data_dir()
        wal = os.path.join(data_dir, "wal")
        with self.godseye(data_dir, config=config) as server:
            sender = self.send(server.grpc, "mixed", seconds=self.args.restart_seconds, distinct=1000)
            while folder_bytes(wal) < self.args.wal_bytes and sender.child.poll() is None:
                time.sleep(0.02)
            server.kill()
            sender.interrupt()
            report = sender.report()
        size = folder_bytes(wal)
        if size < self.args.wal_bytes:
            self.notes.append(f"the write-ahead log grew to {size / MIB:.0f} MiB only, not {self.args.wal_bytes / MIB:.0f} MiB")
        with self.godseye(data_dir, config=config) as server:
            self.add("ready", server.ready_s)
            self.add("ready wal", size / MIB)
            self.add("ready peak", peak_bytes(server.pid) / MIB)
            rows = check_stored(server, report, TABLE_OF.values())
            say(f"restart: {size / MIB:.0f} MiB of log, ready in {server.ready_s:.2f} s, peak {self.results['ready peak'][-1]:.0f} MiB, {rows} rows of {report['items_acked']} acknowledged")
        shutil.rmtree(data_dir)

    # ---- the table

    def ratio(self, ours, theirs):
        """Ratio of medians, with the least and the greatest ratio of a round."""
        if not (self.results.get(ours) and self.results.get(theirs)):
            return None
        rounds = [mine / other for mine, other in zip(self.results[ours], self.results[theirs])]
        return self.median(ours) / self.median(theirs), min(rounds), max(rounds), len(rounds)

    def table(self):
        lines = ["| what | measured | floor | goal | |", "| --- | --- | --- | --- | --- |"]

        def verdict(value, floor, goal, less):
            better = (lambda limit: value <= limit) if less else (lambda limit: value >= limit)
            return "goal" if better(goal) else "floor" if better(floor) else "**missed**"

        def row(what, shown, value=None, floor=None, goal=None, less=False, unit=""):
            limits = ("", "", "") if floor is None else (f"{floor:g}{unit}", f"{goal:g}{unit}", verdict(value, floor, goal, less))
            lines.append(f"| {what} | {shown} | {limits[0]} | {limits[1]} | {limits[2]} |")

        def row_ratio(what, ours, theirs, floor=None, goal=None):
            if found := self.ratio(ours, theirs):
                middle, least, greatest, runs = found
                shown = f"{middle:.2f}× ({least:.2f} … {greatest:.2f}, n={runs}): {self.median(ours):,.0f} against {self.median(theirs):,.0f}"
                row(what, shown, middle, floor, goal, unit="×")

        def row_number(what, name, unit, floor=None, goal=None, digits=1):
            if values := self.results.get(name):
                middle = self.median(name)
                shown = f"{middle:,.{digits}f}{unit} ({min(values):,.{digits}f} … {max(values):,.{digits}f}, n={len(values)})"
                row(what, shown, middle, floor, goal, less=True, unit=unit)

        row_ratio("receive and decode, spans per CPU-second against rotel", "decode spans", "rotel spans", 2, 3)
        row_ratio("durable, stored, compacted, spans per CPU-second against rotel", "store spans alone", "rotel spans", 0.8, 1.5)
        row_ratio("the same with span_metrics and service_edges derived, the default", "store spans", "rotel spans")
        row_number("p99 acknowledgement at half load, durable", "half p99_ms", " ms", 50, 25)
        row_number("peak memory at full load, all signals", "peak", " MiB", 768, 512, 0)
        row_number(f"restart after kill -9, {self.median('ready wal') or 0:.0f} MiB of log: time to ready", "ready", " s", 5, 2, 2)
        for source in ("logs", "metrics"):
            row_ratio(f"receive and decode, {source} per CPU-second against rotel", f"decode {source}", f"rotel {source}")
            row_ratio(f"durable, stored, compacted, {source} per CPU-second against rotel", f"store {source}", f"rotel {source}")
        row_number("spans per second of wall time at full load, durable", "full rate", "/s", digits=0)
        row_number("p99 acknowledgement at full load, durable", "full p99", " ms")
        row_number("p99.9 acknowledgement at half load, durable", "half p999_ms", " ms")
        for source, unit in (("spans", "span"), ("logs", "log record"), ("metrics", "sample")):
            row_number(f"bytes on disk per {unit}, compacted", f"bytes {source}", " B")
        row_number("peak memory, spans alone", "store spans peak", " MiB", digits=0)
        row_number("peak memory while replaying", "ready peak", " MiB", digits=0)
        row_number("peak memory of rotel", "rotel peak", " MiB", digits=0)
        return "\n".join(lines)


def machine(args, folder):
    """The facts a number means nothing without."""
    with open("/proc/cpuinfo") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown")
    with open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) // MIB
    device, kind = mount_of(folder)
    median, p99 = sync_ms(folder)
    return [
        f"date: {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}",
        f"machine: {model}, {os.cpu_count()} cores, {memory} GiB, Linux {platform.release()}",
        f"disk: {kind} on {device}; 256 KiB append and fdatasync takes {median:.1f} ms, p99 {p99:.1f} ms",
        f"godseye: {version([args.godseye, '--version'])}; peer: {args.rotel_release}, which calls itself {version([args.rotel, '--version'])}",
        f"load: {CONNECTIONS} gRPC connections × {IN_FLIGHT} requests in flight, no compression; core {CORE_UNDER_TEST} under test, core {CORE_SENDER} sends",
    ]


def find_rotel(args):
    """The agent of the wheel in this Python, unless it is named; its binary is not on any PATH."""
    import importlib.metadata
    import importlib.util

    args.rotel_release = "rotel"
    if args.rotel is None:
        found = importlib.util.find_spec("rotel")
        if found is None:
            raise SystemExit("this Python has no rotel: run `make bench`, or name its binary with --rotel")
        args.rotel = os.path.join(os.path.dirname(found.origin), "rotel-agent")
        args.rotel_release = f"rotel {importlib.metadata.version('rotel')} from PyPI"
    for name, path in (("godseye", args.godseye), ("rotel", args.rotel)):
        if not os.access(path, os.X_OK):
            raise SystemExit(f"--{name} {path}: not an executable file")


def main():
    parser = argparse.ArgumentParser(description="godseye beside rotel, in one run")
    parser.add_argument("--godseye", required=True, help="the release binary")
    parser.add_argument("--sender", help="the binary whose loadgen sends (default: --godseye)")
    parser.add_argument("--rotel", help="the peer (default: the one of this Python's wheel)")
    parser.add_argument("--only", default="decode,store,latency,memory,restart", help="what to measure, by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, default=1_024_000, help="spans and logs per run; twice as many samples")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each latency run")
    parser.add_argument("--memory-seconds", type=float, default=60.0)
    parser.add_argument("--work-dir", default="/var/tmp", help="on the disk to measure")
    parser.add_argument("--json", help="write every number there")
    parser.add_argument("--quick", action="store_true", help="checks this script; its numbers mean nothing")
    parser.add_argument("--allow-busy", action="store_true", help="measure although the machine is not idle")
    args = parser.parse_args()
    find_rotel(args)
    args.latency_rounds, args.restart_seconds, args.wal_bytes = 3, 240.0, WAL_BYTES
    if args.quick:
        args.rounds, args.items, args.seconds, args.memory_seconds = 1, 51_200, 3.0, 3.0
        args.latency_rounds, args.restart_seconds, args.wal_bytes = 1, 20.0, 4 * MIB
    only = set(args.only.split(","))
    if unknown := only - {"decode", "store", "latency", "memory", "restart"}:
        raise SystemExit(f"--only: unknown {', '.join(sorted(unknown))}")
    if not {CORE_UNDER_TEST, CORE_SENDER} <= os.sched_getaffinity(0):
        raise SystemExit("two cores are needed: one for the process under test, one for the sender")
    os.sched_setaffinity(0, {CORE_SENDER})
    if mount_of(args.work_dir)[1] in ("tmpfs", "ramfs"):
        raise SystemExit(f"--work-dir {args.work_dir} is memory: an fdatasync there proves nothing")
    busy = core_busy()
    if busy > BUSY_MAX and not args.allow_busy:
        raise SystemExit(f"the machine is {busy:.0%} busy: stop what runs, or take useless numbers with --allow-busy")

    with tempfile.TemporaryDirectory(prefix="godseye-bench-", dir=args.work_dir) as folder:
        facts = machine(args, folder)
        bench = Bench(args, folder)
        failed = None
        with open(os.path.join(folder, "godseye.log"), "w") as bench.log:
            try:
                if only & {"decode", "store"}:
                    bench.throughput("decode" in only, "store" in only)
                for name in ("latency", "memory", "restart"):
                    if name in only:
                        getattr(bench, name)()
            except Loss as loss:
                failed = f"rows were lost: {loss}"
        with open(os.path.join(folder, "godseye.log")) as log:
            complaints = log.read().strip()
    if args.quick:
        facts.append("quick: too short to mean anything")
    if busy > BUSY_MAX:
        facts.append(f"the machine was {busy:.0%} busy with something else: not for publication")
    print("\n".join(f"* {fact}" for fact in facts))
    print(f"\n{bench.table()}")
    for note in bench.notes:
        print(f"\nnote: {note}")
    if complaints:
        print(f"\ngodseye logged:\n{complaints[-4000:]}", file=sys.stderr)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"facts": facts, "results": bench.results, "notes": bench.notes, "failed": failed}, file, indent=1)
    if failed:
        print(f"\n{failed}")
        return 1
    print("\nzero loss: every item was acknowledged, and after every run that stores, SQL found each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
