"""What Kafka between receivers and store costs: items per CPU-second of gateway and writer together, against one process.

    cargo run --release -p fixtures -- kafka --port 9092 --dir /tmp/kafka &
    kafka.py --godseye target/release/godseye --brokers 127.0.0.1:9092 [--items 4000000] [--runs 3] [--source spans]

Everything is durable: the gateway acknowledges after the delivery report, the writer stores with fdatasync, flushes and
merges until nothing is left to do. Both run on core 0, as the one process does; sender, brokers and driver on core 1.
CPU time of the brokers is not counted. Runs alternate; the table gives medians, with the least and the greatest value.
Every acknowledged row is accounted for after each run, and a loss is exit code 1. The sender, the accounting and what
settled means are pipeline.py's.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
import uuid

from pipeline import BUSY_MAX, CORE_SENDER, SETTLE_WITHIN_S, TABLE_OF, Godseye, Loss, Sender, check_acked, check_stored, core_busy, say, warn

# Of the embedded rate: what the project promises, and what it wants.
FLOOR, GOAL = 0.4, 0.6


def config(folder, role, args, run):
    """A configuration file with topics and a group of one run's own."""
    topics = ", ".join(f"{signal}: {run}-{signal}" for signal in ("traces", "metrics", "logs", "profiles"))
    path = os.path.join(folder, f"{run}-{role}.yaml")
    with open(path, "w") as file:
        file.write(f"role: {role}\nkafka:\n  brokers: \"{args.brokers}\"\n  group: {run}\n  dead_letters: {run}-dead\n")
        file.write(f"  key: {args.key}\n  topics: {{ {topics} }}\n")
    return path


def until_stored(writer, table, rows):
    deadline = time.monotonic() + SETTLE_WITHIN_S
    while writer.sql(f"SELECT count(*) FROM {table}")[0][0] < rows:
        if time.monotonic() > deadline:
            raise Loss(f"the writer does not have {rows} rows after {SETTLE_WITHIN_S:.0f} s")
        time.sleep(0.2)


def through_kafka(args, folder, number):
    run = f"bench-{uuid.uuid4().hex[:8]}-{number}"
    table = TABLE_OF[args.source]
    with Godseye(args.godseye, os.path.join(folder, run), config(folder, "writer", args, run)) as writer:
        with Godseye(args.godseye, os.path.join(folder, "none"), config(folder, "gateway", args, run)) as gateway:
            before = gateway.quiet(), writer.quiet()
            report = Sender(args.godseye, gateway.grpc, args.source, items=args.items).report()
            check_acked(report)
            of_gateway = gateway.quiet() - before[0]
            until_stored(writer, table, report["items_acked"])
            of_writer = writer.settled() - before[1]
        check_stored(writer, report, [table])
    return report["items_acked"], of_gateway, of_writer


def embedded(args, folder, number):
    with Godseye(args.godseye, os.path.join(folder, f"embedded-{number}")) as server:
        before = server.quiet()
        report = Sender(args.godseye, server.grpc, args.source, items=args.items).report()
        check_acked(report)
        used = server.settled() - before
        check_stored(server, report, [TABLE_OF[args.source]])
    return report["items_acked"], used


def row(name, values, unit):
    middle = statistics.median(values)
    print(f"| {name} | {middle:,.2f} {unit} | {min(values):,.2f} – {max(values):,.2f} |")
    return middle


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--godseye", required=True)
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--items", type=int, default=4_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--source", choices=sorted(TABLE_OF), default="spans")
    parser.add_argument("--key", choices=["none", "resource", "trace"], default="resource")
    args = parser.parse_args()
    os.sched_setaffinity(0, (CORE_SENDER,))
    if (busy := core_busy()) > BUSY_MAX:
        warn(f"the machine is {busy:.0%} busy before anything starts")
    alone, both, gateways, writers = [], [], [], []
    with tempfile.TemporaryDirectory(prefix="godseye-kafka-") as folder:
        try:
            for number in range(args.runs):
                items, used = embedded(args, folder, number)
                alone.append(items / used / 1e3)
                say(f"embedded: {alone[-1]:,.0f} thousand {args.source} a CPU-second")
                items, of_gateway, of_writer = through_kafka(args, folder, number)
                both.append(items / (of_gateway + of_writer) / 1e3)
                gateways.append(of_gateway / items * 1e6)
                writers.append(of_writer / items * 1e6)
                say(f"through Kafka: {both[-1]:,.0f} thousand; gateway {of_gateway:.1f} s, writer {of_writer:.1f} s")
        except Loss as loss:
            raise SystemExit(f"LOSS: {loss}") from None
    print(f"| {args.source}, {args.items:,} each, key {args.key} | median | least – greatest |")
    print("| --- | --- | --- |")
    one = row("embedded", alone, "k/CPU-s")
    two = row("gateway + writer", both, "k/CPU-s")
    row("of it the gateway", gateways, "µs an item")
    row("of it the writer", writers, "µs an item")
    print(f"\nratio {two / one:.2f}: floor {FLOOR}, goal {GOAL}")


if __name__ == "__main__":
    sys.exit(main())
