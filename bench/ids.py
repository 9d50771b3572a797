"""The memory of seen ids at size: `python -m bench.ids --ids 100000000`.

Builds it of random ids, asks it, lets it grow at the rate of live traffic, and loads it from a database with
as many rows (the events table alone: rollups are no part of a start). Two processes, because of their memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from otel_metering.clock import SystemClock
from otel_metering.spool import open_spool
from receiver.identity import Ids, Kind, Words, mark_words
from receiver.load import load_seen_ids
from receiver.seen import Owner, SeenIds
from receiver.store.client import Store

BYTES_PER_ID = 20
SECOND = 10**9
NOW = 1_790_000_000 * SECOND
PER_SECOND = 100_000
"""Ids a second, in the times of the ids: 100 million are a quarter of an hour."""

QUESTION = 50_000
MICRO_BATCH = 16_000
GROWTH = 3_000_000
AFTER = NOW + GROWTH * SECOND // PER_SECOND + SECOND
"""The present, when it has grown."""
CHANCE = np.random.default_rng(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ids", type=int, default=100_000_000)
    parser.add_argument("--part", choices=["memory", "start"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        part = memory if arguments.part == "memory" else start
        print(json.dumps(part(arguments.ids)))
        return
    table = Table(title=f"{arguments.ids:,} ids")
    table.add_column("measurement")
    table.add_column("figure", justify="right")
    for name in ("memory", "start"):
        command = [sys.executable, "-m", "bench.ids", "--ids", str(arguments.ids), "--part", name]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        for label, figure in json.loads(answer).items():
            table.add_row(label, figure)
    Console(width=110).print(table)


def memory(count: int) -> dict[str, str]:
    """Built directly of full runs, as a start leaves it."""
    before = _resident()
    seen = SeenIds((count + 2 * GROWTH) * BYTES_PER_ID, _never)
    begins = NOW - count * SECOND // PER_SECOND
    kept: list[tuple[Words, Words, int]] = []
    left, began, cpu = count, time.perf_counter(), time.process_time()
    while left:
        size = min(left, seen.max_run_ids)
        first, second = _words(size, Kind.POINT)
        times = (
            begins + (left - size) * SECOND // PER_SECOND,
            begins + left * SECOND // PER_SECOND,
        )
        seen.load_timed(first, second, times)
        some = CHANCE.integers(0, size, QUESTION // 8)
        kept.append((first[some], second[some], times[0]))
        left -= size
    del first, second
    figures = {
        "built of random ids (sorting)": f"{time.perf_counter() - began:.1f} s, "
        f"{time.process_time() - cpu:.1f} s of CPU",
        "memory, as it counts itself": _mib(seen.byte_count),
        "memory, resident": _mib(_resident() - before),
        "runs": str(len(seen._timed)),
    }
    present = lambda size: _ids(*_words(size, Kind.POINT), AFTER)  # noqa: E731
    late = lambda: _ids(*_words(QUESTION, Kind.POINT), begins, count * SECOND // PER_SECOND)  # noqa: E731
    spans = lambda: _ids(*_words(QUESTION, Kind.SPAN), AFTER)  # noqa: E731
    hits = _ids(
        np.concatenate([first for first, _, _ in kept]),
        np.concatenate([second for _, second, _ in kept]),
        0,
        times=np.concatenate([np.full(len(first), at, np.int64) for first, _, at in kept]),
    )
    figures |= _growth(seen)
    figures |= {
        f"find {QUESTION:,} new points, present": _timed(seen, lambda: present(QUESTION)),
        f"find {MICRO_BATCH:,} new points, present": _timed(seen, lambda: present(MICRO_BATCH)),
        f"find {QUESTION:,} new points, of any time in it": _timed(seen, late),
        f"find {QUESTION:,} new spans (every run is asked)": _timed(seen, spans),
        f"find {len(hits):,} points that are in it": _timed(seen, lambda: hits),
    }
    assert not seen.find(hits, _nobody).is_new.any()
    return figures | _explicit(count // 10)


def _growth(seen: SeenIds) -> dict[str, str]:
    """Three million more ids in micro-batches, as fast as they are asked for and remembered."""
    pauses, asked, now = [], [], NOW
    began = time.perf_counter()
    for number in range(GROWTH // MICRO_BATCH):
        now += MICRO_BATCH * SECOND // PER_SECOND
        ids = _ids(*_words(MICRO_BATCH, Kind.POINT), now)
        asked.append(_seconds(lambda ids=ids: seen.find(ids, _nobody)))
        pauses.append(_seconds(lambda ids=ids, n=number, now=now: seen.add(ids, n, now)))
    seconds = time.perf_counter() - began
    merging = time.perf_counter()
    while seen._is_merging:
        time.sleep(0.01)
    return {
        f"live: find {MICRO_BATCH:,}, median / longest": _median_and_longest(asked),
        f"live: add {MICRO_BATCH:,}, median / longest pause": _median_and_longest(pauses),
        "live: ids a second, find + add + making them": f"{GROWTH / seconds:,.0f}",
        "merges still running after that": f"{time.perf_counter() - merging:.2f} s",
    }


def _explicit(count: int) -> dict[str, str]:
    seen = SeenIds(max(count * 60, 2**26), _never)
    left = count
    while left:
        size = min(left, seen.max_run_ids)
        seen.load_explicit(*_words(size, Kind.EXPLICIT), CHANCE.integers(0, 9, size, np.uint64))
        left -= size
    ask = lambda: _ids(*_words(QUESTION, Kind.EXPLICIT), NOW)  # noqa: E731
    return {
        f"find {QUESTION:,} new explicit ids of {count:,}": _timed(seen, ask),
        f"memory of {count:,} explicit ids": _mib(seen.byte_count),
    }


def start(count: int) -> dict[str, str]:
    """Load from a database with `count` rows, half of it fitting and all of it fitting."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"chdb://{folder}/engine")
        _fill(store, count)
        spool = open_spool(Path(folder) / "spool.db")
        cpu = time.process_time()
        engine = _seconds(lambda: _stream(store))
        cpu = time.process_time() - cpu
        figures["engine alone: stream event_id"] = f"{engine:.1f} s, {cpu:.1f} s of CPU"
        for label, max_bytes in (("half of the ids fit", count * 10), ("all fit", count * 22)):
            began, cpu = time.perf_counter(), time.process_time()
            seen = load_seen_ids(store, spool, SystemClock(), max_bytes=max_bytes)
            figures[f"start, {label}"] = (
                f"{time.perf_counter() - began:.1f} s, {time.process_time() - cpu:.1f} s of CPU, "
                f"{len(seen):,} ids, {_mib(seen.byte_count)}"
            )
            del seen
        figures["resident at most, engine included"] = _mib(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        spool.close()
        store.close()
    return figures


def _fill(store: Store, count: int) -> None:
    migrations = files("receiver.store").joinpath("migrations")
    store.execute("CREATE DATABASE metering")
    for name in ("0002_events.sql", "0012_explicit_ids.sql"):
        store.execute(migrations.joinpath(name).read_text(encoding="utf-8").split(";\n")[0])
    step, begins = 5_000_000, NOW - count * SECOND // PER_SECOND
    for first in range(0, count, step):
        # An id's word is stored with its bytes in reverse: the kind is in bits 56 and 57.
        store.execute(
            "INSERT INTO metering.events (event_id, tenant_id, meter, quantity, timestamp) SELECT "
            "reinterpretAsUUID(concat(reinterpretAsFixedString(rand64(1)), "
            "reinterpretAsFixedString(bitAnd(rand64(2), bitNot(bitShiftLeft(toUInt64(3), 56)))))), "
            "'tenant_' || toString(number % 50), 'api.calls', 1, "
            f"fromUnixTimestamp64Nano(toInt64({begins} + number * {SECOND // PER_SECOND})) "
            f"FROM numbers({first}, {min(step, count - first)})"
        )


def _stream(store: Store) -> int:
    sql = "SELECT reinterpretAsUInt128(event_id) FROM metering.events"
    return sum(batch.num_rows for batch in store.stream(sql))


def _words(size: int, kind: Kind) -> tuple[Words, Words]:
    first, second = (CHANCE.integers(0, 2**64, size, dtype=np.uint64) for _ in range(2))
    return first, mark_words(second, kind)


def _ids(first: Words, second: Words, at_ns: int, spread_ns: int = 1, times: Any = None) -> Ids:
    if times is None:
        times = at_ns + CHANCE.integers(0, spread_ns, len(first))
    return Ids(first=first, second=second, time_ns=times, content=np.zeros(len(first), np.uint64))


def _timed(seen: SeenIds, ids: Callable[[], Ids]) -> str:
    times = []
    for _ in range(15):
        asked = ids()
        # Of CPU: it is one thread, and other work on the machine says nothing about it.
        began = time.thread_time()
        seen.find(asked, _nobody)
        times.append(time.thread_time() - began)
    return f"{_median_and_longest(times)} of CPU, {min(times) * 1e3:.1f} ms at best"


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _median_and_longest(seconds: Sequence[float]) -> str:
    return f"{np.median(seconds) * 1e3:.1f} / {max(seconds) * 1e3:.1f} ms"


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _nobody(places: Any) -> Sequence[Owner]:
    raise AssertionError


def _never(ids: Ids, owners: Sequence[Owner]) -> Any:
    raise AssertionError


if __name__ == "__main__":
    main()
