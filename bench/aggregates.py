"""How fast usage is read: `python -m bench.aggregates --events 10000000 --events 100000000`.

Events over a year for 1,000 tenants, in bursts of ten that share a minute, a tenant and a region. Each question is asked of the API (routes, checks and JSON included; no network), once answered from
rollups and once from the events alone, in the same engine and the same run. The data is kept in `--path`
and taken again by the next run.
"""

import argparse
import asyncio
import itertools
import json
import random
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from otel_metering.clock import SystemClock
from otel_metering.contract.event import Admission
from otel_metering.contract.meter import MeterDefinition, Meters
from query_api.app import create_app
from query_api.quota_state import QuotaSettings, QuotaState
from query_api.services import Services
from query_api.usage_source import Source
from receiver.pending import Pending
from receiver.store.client import Store
from receiver.store.keys import ApiKeys, Scope
from receiver.store.migrate import migrate

TENANTS = 1_000
METER = "api.calls"
YEAR = datetime(2025, 1, 1, tzinfo=UTC)
SECONDS = 365 * 86_400
CHUNK = 1_000_000
BURST = 10
"""Events of one tenant and region in one minute."""
RAW_SECONDS = 20.0
"""How long one question is asked of the events: some take seconds."""

QUESTIONS: dict[str, dict[str, Any]] = {
    "one tenant by day": {"window": "day", "tenant": True},
    "one tenant by day, Asia/Kolkata, ragged": {
        "window": "day",
        "tenant": True,
        "timezone": "Asia/Kolkata",
        "shift": timedelta(hours=7, minutes=13, seconds=11),
    },
    "one tenant by day and region": {"window": "day", "tenant": True, "group_by": "region"},
    "all tenants, top 20": {"window": "total", "group_by": "tenant_id", "top": "20"},
    "all tenants by region": {"window": "total", "group_by": "region"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, action="append")
    parser.add_argument("--path", type=Path, default=Path("bench-data"))
    parser.add_argument("--times", type=int, default=200, help="how often each question is asked")
    parser.add_argument("--only-generate", action="store_true")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(asyncio.run(_measure(arguments.path, arguments.part, arguments.times))))
        return
    sizes = arguments.events or [10_000_000, 100_000_000]
    for size in sizes:
        _generate(_folder(arguments.path, size), size)
    if arguments.only_generate:
        return
    figures = {size: _in_a_process(arguments.path, size, arguments.times) for size in sizes}
    _report(figures)


def _folder(path: Path, size: int) -> Path:
    return path.resolve() / f"events-{size}"


def _generate(folder: Path, size: int) -> None:
    """Store `size` events through the views, in the order of time, as they would have come."""
    if (folder / "done").exists():
        return
    command = [
        sys.executable,
        "-c",
        "from bench.aggregates import fill; fill(*__import__('sys').argv[1:])",
    ]
    subprocess.run([*command, str(folder), str(size)], check=True)


def fill(folder: str, size: str) -> None:
    count = int(size)
    store = Store(f"chdb://{folder}/clickhouse")
    migrate(store, SystemClock())
    ((first,),) = store.query("SELECT count() FROM metering.events")
    began = time.perf_counter()
    for start in range(int(first), count, CHUNK):
        store.execute(
            "INSERT INTO metering.events (event_id, tenant_id, meter, quantity, timestamp, start_time, "
            f"dimensions, attributes, service_name, signal, ingested_at) WITH intDiv(number, {BURST}) AS burst "
            f"SELECT generateUUIDv4(), concat('tenant_', toString(sipHash64(burst) % {TENANTS})), '{METER}', "
            "toDecimal128(1 + sipHash64(number, 1) % 1000, 9) / 8, "
            f"fromUnixTimestamp64Nano(toInt64({int(YEAR.timestamp())} + 60 * "
            f"intDiv(burst * {SECONDS // 60}, {count // BURST}) + number % 60) * 1000000000, 'UTC') AS at, at, "
            "map('region', ['eu', 'us', 'ap'][sipHash64(burst, 2) % 3 + 1]) AS d, d, 'bench', 'metric', "
            f"fromUnixTimestamp64Milli(toInt64(toUnixTimestamp(at)) * 1000) FROM numbers({start}, {CHUNK}) "
            f"SETTINGS max_threads = 1, max_insert_block_size = {CHUNK}, min_insert_block_size_rows = {CHUNK}"
        )
        done = start + CHUNK
        rate = (done - int(first)) / (time.perf_counter() - began)
        print(f"{done:,} of {count:,} events, {rate:,.0f}/s", file=sys.stderr, flush=True)
    for table in ("events", "usage_minute", "usage_hour", "usage_day", "usage_month"):
        store.execute(f"OPTIMIZE TABLE metering.{table} FINAL")
    store.close()
    (Path(folder) / "done").touch()


def _in_a_process(path: Path, size: int, times: int) -> dict[str, Any]:
    """The engine allows one data folder for each process."""
    command = [sys.executable, "-m", "bench.aggregates", "--path", str(path), "--part", str(size)]
    command += ["--times", str(times)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


async def _measure(path: Path, size: int, times: int) -> dict[str, Any]:
    store = Store(f"chdb://{_folder(path, size)}/clickhouse")
    clock = SystemClock()
    migrate(store, clock)
    keys = ApiKeys(store, clock)
    keys.start()
    _, key = keys.create(name="bench", scopes=[Scope.QUERY])

    def meters() -> Meters:
        return Meters((MeterDefinition(slug=METER, group_by=("region",)),))

    source = Source(
        name="bench",
        store=store,
        at_rest=lambda _: nullcontext(Pending(number=0, events=None)),
        meters=meters,
    )
    services = Services(
        store=store,
        keys=keys,
        clock=clock,
        meters=meters,
        quota_state=QuotaState(
            QuotaSettings(journal=path / f"quota-{size}.db"),
            store=store,
            meters=meters,
            source=source,
            clock=clock,
        ),
        submit=lambda _events, _principal: Admission(accepted=0, duplicates=0, rejected=()),
        checks={},
    )
    transport = httpx.ASGITransport(create_app(services))
    chance = random.Random(1)
    found: dict[str, Any] = {"rows": _row_counts(store)}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://bench", headers={"x-api-key": key}, timeout=600
    ) as client:
        for name, question in QUESTIONS.items():
            rollups = await _ask(client, question, chance, times, "auto", 3_600.0)
            events = await _ask(client, question, chance, times, "events", RAW_SECONDS)
            found[name] = {"rollups": rollups, "events": events}
    keys.stop()
    store.close()
    return found


def _row_counts(store: Store) -> dict[str, int]:
    tables = ("events", "usage_minute", "usage_hour", "usage_day", "usage_month")
    return {name: store.query(f"SELECT count() FROM metering.{name}")[0][0] for name in tables}


async def _ask(
    client: httpx.AsyncClient,
    question: dict[str, Any],
    chance: random.Random,
    times: int,
    source: str,
    seconds: float,
) -> dict[str, Any]:
    """Milliseconds of answers to `question`, each about another tenant and another month."""
    took: list[float] = []
    table = ""
    end = time.perf_counter() + seconds
    for number in itertools.count():
        if number >= 5 + times or (number > 8 and time.perf_counter() > end):
            break
        parameters = _parameters(question, chance) | {"source": source}
        began = time.perf_counter()
        answer = await client.get("/v1/meter/aggregates", params=parameters)
        if number >= 5:  # the first fill caches
            took.append((time.perf_counter() - began) * 1_000)
        assert answer.status_code == 200, answer.text
        table = answer.json()["table"]
    took.sort()
    return {
        "p50": statistics.median(took),
        "p99": took[min(len(took) - 1, round(len(took) * 0.99))],
        "times": len(took),
        "table": table,
    }


def _parameters(question: dict[str, Any], chance: random.Random) -> dict[str, str]:
    month = chance.randrange(1, 12)
    start = YEAR.replace(month=month) + question.get("shift", timedelta())
    end = YEAR.replace(month=month + 1) + question.get("shift", timedelta())
    parameters = {
        "meter": METER,
        "from": start.isoformat().replace("+00:00", "Z"),
        "to": end.isoformat().replace("+00:00", "Z"),
        **{k: v for k, v in question.items() if k in {"window", "group_by", "top", "timezone"}},
    }
    if question.get("tenant"):
        parameters["tenant_id"] = f"tenant_{chance.randrange(TENANTS)}"
    return parameters


def _report(figures: dict[int, dict[str, Any]]) -> None:
    console = Console()
    for size, found in figures.items():
        rows = ", ".join(f"{name} {count:,}" for name, count in found.pop("rows").items())
        table = Table(title=f"{size:,} events over a year, {TENANTS:,} tenants (ms)", caption=rows)
        for heading in (
            "a month",
            "table",
            "p50",
            "p99",
            "events p50",
            "events p99",
            "times faster",
        ):
            table.add_column(
                heading, justify="left" if heading in {"a month", "table"} else "right"
            )
        for name, both in found.items():
            quick, raw = both["rollups"], both["events"]
            table.add_row(
                name,
                quick["table"].removeprefix("metering."),
                f"{quick['p50']:.1f}",
                f"{quick['p99']:.1f}",
                f"{raw['p50']:.1f}",
                f"{raw['p99']:.1f}",
                f"{raw['p50'] / quick['p50']:.1f}",
            )
        console.print(table)


if __name__ == "__main__":
    main()
