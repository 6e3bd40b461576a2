# GodsEye: every command a person or CI types.
#
#   make demo    build and run the demo: a web shop sends, you ask SQL     (needs Rust and a C compiler)
#   make demo-clickhouse    the same with ClickHouse's own engine for storage and queries    (needs Python 3 with venv too)
#   make demo-kafka  the same through Apache Kafka: a gateway, a broker, a writer  (needs Java 17, and Maven the first time)
#   make test    every test, with real OpenTelemetry and PostgreSQL clients and a real mail server (needs Python 3 with venv too; psql, apt, Java and Maven if they are there)
#   make lint    format and clippy, warnings are errors
#   make bench   the numbers of benches/README.md
#   make soak    200 kill -9 cycles, 100,000 simulated power losses, 5,000 deaths of alerting, 50,000 damaged requests a signal
#
# Build results live outside the checkout, so that a fresh clone starts warm.
CACHE ?= $(HOME)/.cache/godseye
export CARGO_TARGET_DIR ?= $(CACHE)/target
export GODSEYE_CLIENTS_VENV ?= $(CACHE)/clients
# Debian's Alertmanager and Prometheus, and Apache Kafka, which tests fetch once.
export GODSEYE_REAL_PARTS ?= $(CACHE)/parts
# The examples of the OTLP specification; their test says so where they are absent.
export GODSEYE_OTLP_EXAMPLES ?= $(wildcard $(abspath ../shared/data/otlp-examples/examples))
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c

.PHONY: demo demo-clickhouse demo-kafka test lint bench soak tools-rust tools-python tools-psql

demo: tools-rust
	@test -x "$(CARGO_TARGET_DIR)/debug/godseye" || echo "building: about eight minutes on two cores, the first time"
	cargo build --bin godseye
	exec "$(CARGO_TARGET_DIR)/debug/godseye" demo

demo-clickhouse: tools-rust
	@test -x "$(CARGO_TARGET_DIR)/debug/godseye" || echo "building: about eight minutes on two cores, the first time"
	cargo build --bin godseye
	exec "$(CARGO_TARGET_DIR)/debug/godseye" demo --clickhouse

demo-kafka: tools-rust
	@command -v java >/dev/null || { echo "make demo-kafka needs Java 17: apt-get install openjdk-17-jre-headless"; exit 1; }
	test -d "$(GODSEYE_REAL_PARTS)"/kafka-* || command -v mvn >/dev/null || { echo "make demo-kafka fetches Kafka with Maven, once: apt-get install maven"; exit 1; }
	cargo build --bin godseye
	exec "$(CARGO_TARGET_DIR)/debug/godseye" demo --kafka

test: tools-rust tools-python tools-psql
	cargo test --workspace --features failpoints

lint: tools-rust
	@cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 || { echo "make lint needs rustfmt and clippy: rustup component add rustfmt clippy"; exit 1; }
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --features failpoints -- -D warnings

bench: tools-rust tools-python
	cargo build --release --bin godseye
	cargo bench -p ingest --bench decode
	cargo bench -p slo --bench count --bench evaluate
	"$(GODSEYE_CLIENTS_VENV)/bin/python" benches/pipeline.py --godseye "$(CARGO_TARGET_DIR)/release/godseye"
	"$(GODSEYE_CLIENTS_VENV)/bin/python" benches/alerts.py --godseye "$(CARGO_TARGET_DIR)/release/godseye"

soak: tools-rust
	GODSEYE_CRASH_CYCLES=200 cargo test --workspace --features failpoints --test crash -- --nocapture
	GODSEYE_POWER_LOSS_SEEDS=100000 cargo test --workspace --features failpoints --lib survives_any_power_cut
	GODSEYE_KILL_POINTS=5000 cargo test --workspace --features failpoints --test deaths death_at_any_byte
	GODSEYE_FUZZ_SEEDS=50000 cargo test --workspace --features failpoints --lib agree_with_prost

tools-rust:
	@command -v cargo >/dev/null || { echo "GodsEye needs Rust 1.94 or newer: https://rustup.rs"; exit 1; }
	command -v cc >/dev/null || { echo "GodsEye needs a C compiler: apt-get install build-essential"; exit 1; }

tools-python:
	@command -v python3 >/dev/null || { echo "make test needs Python 3: apt-get install python3 python3-venv"; exit 1; }
	python3 -c 'import venv, ensurepip' 2>/dev/null || { echo "make test needs Python's venv: apt-get install python3-venv"; exit 1; }
	if ! cmp -s tests/clients/requirements.txt "$(GODSEYE_CLIENTS_VENV)/requirements.txt"; then
	  rm -rf "$(GODSEYE_CLIENTS_VENV)"
	  python3 -m venv "$(GODSEYE_CLIENTS_VENV)"
	  "$(GODSEYE_CLIENTS_VENV)/bin/pip" install --quiet -r tests/clients/requirements.txt
	  cp tests/clients/requirements.txt "$(GODSEYE_CLIENTS_VENV)/requirements.txt"
	fi

tools-psql:
	@command -v psql >/dev/null || echo "psql is not installed, so its tests are left out: apt-get install postgresql-client"
