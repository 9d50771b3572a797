"""GET /v1/meter/events/export at size: `python -m bench.export --events 10000000`.

Fills a data directory of `otel-metering up` with events by INSERT ... SELECT, exports all of them through
the API as lines of JSON and as CSV, and looks at the memory of the server all the while. Beside it, what one
page of the list costs before and after.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from otel_metering.clock import SystemClock
from receiver.store.client import Store
from receiver.store.migrate import migrate

KEY = "otm_root_" + "0123456789abcdef" * 4
BATCH = 500_000
MIB = 2**20

# A year of 1,000 tenants and 10 meters; ids of kind ONCE, which a start has not to remember.
FILL = """
INSERT INTO metering.events (event_id, tenant_id, meter, quantity, timestamp, start_time, dimensions,
    attributes, service_name, signal, ingested_at)
SELECT
    reinterpretAsUUID(bitOr(reinterpretAsUInt128(generateUUIDv4()), toUInt128(3))),
    concat('tenant_', toString(cityHash64(number) % 1000)),
    concat('meter_', toString(cityHash64(number, 1) % 10)),
    toDecimal128(cityHash64(number, 2) % 1000000, 9) / 100,
    toDateTime64('2025-11-01', 9, 'UTC') + (cityHash64(number, 3) % 31000000),
    toDateTime64(0, 9, 'UTC'),
    map('region', ['eu', 'us', 'ap'][cityHash64(number, 4) % 3 + 1]),
    map('region', ['eu', 'us', 'ap'][cityHash64(number, 4) % 3 + 1], 'plan', 'pro',
        'request.id', hex(cityHash64(number, 5)), 'metering.event.id', toString(number)),
    'bench', 'event', now64(3)
FROM numbers({first}, {count})
"""
CORRECT = """
INSERT INTO metering.event_corrections (event_id, tenant_id, meter, timestamp, quantity, observations,
    dimensions, action, reason, corrected_at)
SELECT event_id, tenant_id, meter, timestamp, quantity, observations, dimensions, 'void', 'bench', now64(3)
FROM metering.events WHERE cityHash64(event_id) % 1000 = 0
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--port", type=int, default=28_431)
    parser.add_argument("--fill", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fill:
        fill(Path(arguments.fill[0]), int(arguments.fill[1]))
        return
    table = Table(title="Export of all events")
    for column in (
        "events",
        "format",
        "seconds",
        "events/s",
        "MB",
        "RSS before",
        "highest",
        "after",
    ):
        table.add_column(column, justify="right")
    for count in arguments.events:
        for row in measure(count, arguments.port):
            table.add_row(*row)
    Console().print(table)


def measure(count: int, port: int) -> list[list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        command = [sys.executable, "-m", "bench.export", "--fill", folder, str(count)]
        subprocess.run(command, check=True)
        server = subprocess.Popen(
            [
                Path(sys.executable).with_name("otel-metering"),
                "up",
                f"--data-dir={data}",
                f"--otlp-grpc-port={port + 1}",
                f"--otlp-http-port={port + 2}",
                f"--api-port={port}",
                "--clickhouse-port=-1",
            ],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "METERING_ADMIN_KEY": KEY},
        )
        try:
            assert server.stdout is not None
            while not server.stdout.readline().startswith("ready"):
                assert server.poll() is None
            threading.Thread(target=server.stdout.read, daemon=True).start()
            return [export(server.pid, port, count, kind) for kind in ("ndjson", "csv")]
        finally:
            server.terminate()
            server.wait()


def export(pid: int, port: int, count: int, kind: str) -> list[str]:
    before, highest, size, lines = resident(pid), 0, 0, 0
    began = said = time.perf_counter()
    asked = {"from": "2020-01-01", "to": "2030-01-01", "format": kind}
    url = f"http://127.0.0.1:{port}/v1/meter/events/export"
    headers = {"x-api-key": KEY}
    with httpx.stream("GET", url, params=asked, headers=headers, timeout=120) as response:
        assert response.status_code == 200
        for piece in response.iter_raw():
            size, lines = size + len(piece), lines + piece.count(b"\n")
            now = time.perf_counter()
            if now - said > 0.2:
                rss = resident(pid)
                highest = max(highest, rss)
                if now - said > 5:
                    print(
                        f"{kind} {now - began:6.1f} s {lines:>12,} events {rss / MIB:8.0f} MiB",
                        flush=True,
                    )
                    said = now
    seconds = time.perf_counter() - began
    assert lines == count + (kind == "csv"), lines
    after = resident(pid)
    memory = [f"{value / MIB:.0f} MiB" for value in (before, max(highest, after), after)]
    return [
        f"{count:,}",
        kind,
        f"{seconds:.1f}",
        f"{count / seconds:,.0f}",
        f"{size / 1e6:,.0f}",
        *memory,
    ]


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    pages: Any = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def fill(data: Path, count: int) -> None:
    store = Store(f"chdb://{(data / 'clickhouse').resolve()}")
    migrate(store, SystemClock())
    # Rollups are no part of an export.
    store.execute("DETACH TABLE metering.usage_minute_view")
    for first in range(0, count, BATCH):
        some = min(BATCH, count - first)
        store.execute(FILL.replace("{first}", str(first)).replace("{count}", str(some)))
    store.execute(CORRECT)
    store.close()


if __name__ == "__main__":
    main()
