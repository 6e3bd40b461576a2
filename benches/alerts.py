"""Alerting of the whole process: how fast a page is, what held alerts cost, what counting SLIs costs ingest.

    alerts.py --godseye target/release/godseye [--only latency,held,counting] [--quick]

`latency`: an error step in the OTLP stream until a webhook has it, each trial with an SLO of its own. `held`: alerts
that fire, of which some change every second; CPU and memory of the process. `counting`: CPU of a stored span with
SLOs and without, runs alternating. A missed floor is a number in the table and no error; a page that does not come is
exit code 1. Method and meaning: README.md beside this file. Not here: one evaluation round of 10,000 SLOs
(`cargo bench -p slo --bench evaluate`).
"""

import argparse
import http.client
import http.server
import json
import os
import random
import statistics
import tempfile
import threading
import time

from pipeline import CORE_SENDER, CORE_UNDER_TEST, Godseye, MIB, Sender, check_acked, core_busy, cpu_s, peak_bytes, say, warn

BUSY_MAX = 0.10
# Nobody waits for a page that long.
PAGE_WITHIN_S = 60.0
# Alerts in one request, as Prometheus sends them by the hundreds.
POST_ALERTS = 1_000


class Failed(Exception):
    """A page did not come, or an answer was no success."""


class Server(Godseye):
    """The server with flags of its own, on the given cores."""

    def __init__(self, binary, data_dir, *flags, cores=(CORE_UNDER_TEST,)):
        self.cores = cores
        super().__init__(binary, data_dir, flags=flags)


class Hook(http.server.ThreadingHTTPServer):
    """A webhook receiver that notes when it first heard of each alert, by one label."""

    daemon_threads = True

    def __init__(self, label):
        self.label, self.heard, self.news, self.messages = label, {}, threading.Condition(), 0
        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def wait(self, value):
        """When an alert with this value of the label was first told."""
        with self.news:
            if not self.news.wait_for(lambda: value in self.heard, PAGE_WITHIN_S):
                raise Failed(f"no page about {value} within {PAGE_WITHIN_S:.0f} s")
            return self.heard[value]


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body, now = self.rfile.read(int(self.headers["content-length"])), time.monotonic()
        alerts = json.loads(body)["alerts"]
        with self.server.news:
            self.server.messages += 1
            for alert in alerts:
                if alert["status"] == "firing":
                    self.server.heard.setdefault(alert["labels"].get(self.server.label), now)
            self.server.news.notify_all()
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def post(door, path, document):
    # A connection that was idle for long is closed by the server: each message has one of its own.
    door.close()
    door.request("POST", path, json.dumps(document), {"content-type": "application/json"})
    answer = door.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise Failed(f"{answer.status} to {path}: {body[:300]!r}")


def write(folder, name, text):
    path = os.path.join(folder, name)
    with open(path, "w") as file:
        file.write(text)
    return path


def routing(folder, hook, group_by, group_interval="5m"):
    return write(
        folder,
        "alertmanager.yml",
        f"route: {{receiver: hook, group_by: [{group_by}], group_wait: 0s, group_interval: {group_interval}}}\n"
        f"receivers: [{{name: hook, webhook_configs: [{{url: '{hook.url}', send_resolved: true}}]}}]\n",
    )


SLO = """---
apiVersion: openslo/v1
kind: SLO
metadata: {{name: {name}}}
spec:
  service: {service}
  indicator:
    metadata: {{name: {name}}}
    spec:
      ratioMetric:
        bad: {{metricSource: {{type: godseye, spec: {{table: spans, where: "{bad}"}}}}}}
        total: {{metricSource: {{type: godseye, spec: {{table: spans, service: {service}, where: "{total}"}}}}}}
  timeWindow: [{{duration: 30d, isRolling: true}}]
  budgetingMethod: Occurrences
  objectives: [{{target: {target}}}]
"""


# ---- latency -------------------------------------------------------------------------------------------------------


def spans(service, count, is_error):
    now = time.time_ns()
    made = [
        {
            "traceId": f"{random.getrandbits(128) | 1:032x}",
            "spanId": f"{random.getrandbits(64) | 1:016x}",
            "name": "GET /",
            "kind": 2,
            "startTimeUnixNano": str(now - 1_000_000),
            "endTimeUnixNano": str(now),
            "status": {"code": 2 if is_error else 1},
        }
        for _ in range(count)
    ]
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": made}]}]}


def latency(args, folder):
    """Seconds from the first failing request of a service to the webhook, one trial after the other."""
    hook = Hook("slo")
    names = [f"trial-{number}" for number in range(args.trials)]
    text = "".join(SLO.format(name=name, service=name, bad="status_code = 'ERROR'", total="kind = 'SERVER'", target=0.999) for name in names)
    flags = "--slos", write(folder, "latency.yaml", text), "--alertmanager-config", routing(folder, hook, "slo")
    found = []
    with Server(args.godseye, os.path.join(folder, "latency"), *flags) as server:
        # Other telemetry streams in meanwhile.
        load = Sender(args.godseye, server.grpc, "spans", seconds=args.trials * 2.0 + 30.0, rate=args.rate)
        door = http.client.HTTPConnection(server.otlp_http, timeout=30)
        for name in names:
            post(door, "/v1/traces", spans(name, 1_000, False))
        for name in names:
            # At any moment between two evaluations.
            time.sleep(random.uniform(0.2, 1.2))
            started = time.monotonic()
            post(door, "/v1/traces", spans(name, 100, True))
            found.append(hook.wait(name) - started)
        load.interrupt()
        load.report()
    found.sort()
    return {"p50 s": statistics.median(found), "p99 s": found[min(len(found) - 1, int(len(found) * 0.99))], "trials": len(found)}


# ---- held ----------------------------------------------------------------------------------------------------------


def alert(number, ends_s, started):
    return {
        "labels": {
            "alertname": f"Alert{number % 50}",
            "service": f"service-{number % 1_000}",
            "instance": f"10.0.{number >> 8 & 255}.{number & 255}:{number}",
            "severity": "critical" if number % 10 == 0 else "warning",
        },
        "annotations": {"summary": f"instance {number} is unwell", "runbook_url": "https://runbooks.example.org/unwell"},
        "startsAt": stamp(started),
        "endsAt": stamp(ends_s),
    }


def stamp(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def held(args, folder):
    """CPU of one core, and the peak of memory, while alerts fire and some change every second: half of these end, and
    half, ended before, begin anew."""
    hook = Hook("instance")
    flags = "--alertmanager-config", routing(folder, hook, "alertname, service")
    with Server(args.godseye, os.path.join(folder, "held"), *flags) as server:
        door = http.client.HTTPConnection(server.http, timeout=60)
        path, began = "/alertmanager/api/v2/alerts", time.time() - 60

        def send(numbers, ends_s):
            for at in range(0, len(numbers), POST_ALERTS):
                post(door, path, [alert(number, ends_s, began) for number in numbers[at : at + POST_ALERTS]])

        filling = time.monotonic()
        send(range(args.alerts), began + 86_400)
        say(f"{args.alerts:,} alerts in {time.monotonic() - filling:.1f} s")
        # The first messages are on their way.
        time.sleep(args.settle_seconds)
        half, cursor, ended = args.changes // 2, 0, []
        cpu, started = cpu_s(server.pid), time.monotonic()
        for second in range(args.held_seconds):
            ending = [(cursor + number) % args.alerts for number in range(half)]
            cursor += half
            send(ending, time.time() - 1)
            if ended:
                send(ended, time.time() + 86_400)
            ended = ending
            time.sleep(max(0.0, started + second + 1 - time.monotonic()))
        wall = time.monotonic() - started
        if wall > args.held_seconds * 1.1:
            warn(f"{args.held_seconds} s of changes took {wall:.0f} s: they came too fast for it")
        used = (cpu_s(server.pid) - cpu) / wall
        active = server.metrics().get("godseye_alerting_alerts", 0.0)
        return {"CPU of one core": used, "peak MiB": peak_bytes(server.pid) / MIB, "alerts": active, "messages": hook.messages}


# ---- counting ------------------------------------------------------------------------------------------------------


def documents(godseye, folder, count):
    """SLOs about the services, and their routes, that the load generator has."""
    with Server(godseye, os.path.join(folder, "probe")) as server:
        Sender(godseye, server.grpc, "spans", items=20_000).report()
        pairs = server.sql("SELECT service_name, name FROM spans GROUP BY 1, 2 ORDER BY 1, 2")
    made = []
    for number in range(count):
        service, name = pairs[number % len(pairs)]
        # Errors, and latencies of different bounds, of the service's every request or of one kind of it. Kept, as most
        # SLOs are at most times: what alerts cost is another question.
        bad = "status_code = 'ERROR'" if number % 3 == 0 else f"duration_ns > {(number % 97 + 20) * 50_000_000}"
        total = "duration_ns >= 0" if number % 2 == 0 else "name = '" + name.replace("'", "''") + "'"
        made.append(SLO.format(name=f"slo-{number}", service=json.dumps(service), bad=bad, total=total.replace('"', '\\"'), target=0.8))
    return write(folder, "counting.yaml", "".join(made))


def counting(args, folder):
    """CPU nanoseconds of a span from the socket to a merged segment, with SLOs and without."""
    slos = documents(args.godseye, folder, args.slos)
    results = {"with": [], "without": []}
    for number in range(args.rounds):
        for name, flags in (("without", ()), ("with", ("--slos", slos))):
            with Server(args.godseye, os.path.join(folder, f"{name}-{number}"), *flags) as server:
                time.sleep(3.0)
                cpu = cpu_s(server.pid)
                time.sleep(args.settle_seconds / 2)
                # Evaluation goes on without spans: what it takes while nothing is sent is no cost of ingest.
                idle = (cpu_s(server.pid) - cpu) / (args.settle_seconds / 2)
                cpu = cpu_s(server.pid)
                report = Sender(args.godseye, server.grpc, "spans", items=args.items, seed=number + 1).report()
                check_acked(report)
                # Flushed, merged and evaluated for the same time, however long each takes.
                time.sleep(args.settle_seconds)
                used = cpu_s(server.pid) - cpu - idle * args.settle_seconds
                results[name].append(used / args.items * 1e9)
    without, with_slos = (statistics.median(results[name]) for name in ("without", "with"))
    return {"ns a span": without, "ns a span with SLOs": with_slos, "added": with_slos / without - 1, "SLOs": args.slos}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--godseye", required=True, help="the release binary")
    parser.add_argument("--only", default="latency,held,counting", help="parts, separated by commas")
    parser.add_argument("--quick", action="store_true", help="check the script: the numbers mean nothing")
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--rate", type=float, default=5_000.0, help="other spans a second while pages are timed")
    parser.add_argument("--alerts", type=int, default=100_000)
    parser.add_argument("--changes", type=int, default=1_000, help="alerts that change a second")
    parser.add_argument("--held-seconds", type=int, default=60)
    parser.add_argument("--slos", type=int, default=1_000)
    parser.add_argument("--items", type=int, default=2_048_000, help="spans of one run of counting")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settle-seconds", type=float, default=30.0)
    args = parser.parse_args()
    if args.quick:
        args.trials, args.alerts, args.held_seconds, args.items, args.rounds, args.settle_seconds = 5, 20_000, 10, 102_400, 1, 5.0
    busy = core_busy()
    if busy > BUSY_MAX:
        warn(f"something uses {busy:.0%} of this machine: its numbers are in the table")
    # The driver keeps off the core of the process under test.
    os.sched_setaffinity(0, {CORE_SENDER})
    parts = {"latency": latency, "held": held, "counting": counting}
    for name in args.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = parts[name](args, folder)
            except Failed as failed:
                raise SystemExit(f"{name}: {failed}") from None
        print(f"{name}: " + ", ".join(f"{what} {value:,.3f}" if isinstance(value, float) else f"{what} {value:,}" for what, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
