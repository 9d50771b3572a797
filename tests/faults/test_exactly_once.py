"""Any seed: a Collector that crashes, a receiver that is killed, a database that fails, and exact totals.

A batch of seeds shares one receiver and one data directory; each seed has a Collector and tenants of its
own. `--seeds N` says how many seeds there are, `--seed S` runs one of them alone.
"""

import random
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from tests.e2e.up import KEY, REPOSITORY, Up
from tests.faults import usage
from tests.faults.collector import Collector
from tests.faults.transport import Transports
from tests.faults.usage import Made
from tests.oracle import FORMATS, Usage, totals
from tests.waiting import eventually

BATCH = 25
"""Seeds that share a receiver."""

AT_ONCE = 6
"""Collectors that run side by side."""

MAX_DEATHS = 3
"""Times that the receiver of a batch dies; after that it may live."""

Totals = dict[tuple[str, str, str], Decimal]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    one, count = metafunc.config.getoption("--seed"), metafunc.config.getoption("--seeds")
    seeds = range(count) if one is None else [one]
    batches = [seeds[i : i + BATCH] for i in range(0, len(seeds), BATCH)]
    metafunc.parametrize("seeds", batches, ids=[f"seeds_{b[0]}_to_{b[-1]}" for b in batches])


class Faulty(Up):
    """A receiver that breaks by a seed, and is started again whenever it died."""

    def __init__(self, data_dir: Path, seed: str) -> None:
        super().__init__(data_dir)
        self._seed = seed
        self._chance = random.Random(f"kill {seed}")
        self.lives = 0
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep)
        self._error: Exception | None = None

    def command(self) -> list[str]:
        ports = ",".join(address.partition(":")[2] for address in (self.grpc, self.http, self.api))
        seed = f"{self._seed} {self.lives}"
        calm = ["calm"] if self.lives >= MAX_DEATHS else []
        return [
            sys.executable,
            "-m",
            "tests.faults.server",
            *(str(self.data_dir), ports, seed),
            *calm,
        ]

    @contextmanager
    def kept_alive(self) -> Iterator[None]:
        """Start it, and again after each death, until the end of the block; then it has died often enough."""
        self.start()
        self._keeper.start()
        try:
            yield
        finally:
            self._stopping.set()
            self._keeper.join()
        self.check()
        self.kill()
        self.lives += MAX_DEATHS
        self.start()

    def check(self) -> None:
        """Raise why it was not started again: nobody would ever be answered."""
        if self._error is not None:
            raise self._error

    def _keep(self) -> None:
        try:
            while not self._stopping.is_set():
                self._stopping.wait(0.02)
                if self.is_running and self.lives < MAX_DEATHS and self._chance.random() < 0.005:
                    self.kill()
                if not self.is_running:
                    self.lives += 1
                    if self._chance.random() < 0.3:
                        self._die_young()
                    self.start()
        except Exception as error:  # noqa: BLE001 - raised in the thread of the test
            self._error = error

    def _die_young(self) -> None:
        """Start it, and kill it before, or just when, it is ready."""
        young = subprocess.Popen(
            self.command(), cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._stopping.wait(self._chance.uniform(0.3, 2.0))
        young.kill()
        young.wait()


@pytest.mark.timeout(600)
def test_totals_are_exact_whatever_crashes_is_cut_off_or_sent_again(
    tmp_path: Path, seeds: Sequence[int]
) -> None:
    made = {seed: usage.make(seed) for seed in seeds}
    up = Faulty(tmp_path, f"{seeds[0]}")
    try:
        with up.kept_alive():
            deliver(up, made)
        deliver(
            up, made, every=4
        )  # a queue from a backup: all of this is in the database or on its way
        compare(up, made)
        compare_with_raw(up, made)
        assert up.stop() == 0

    except BaseException as error:
        error.add_note("the receiver printed last:\n" + "".join(up.printed[-100:]))
        raise
    finally:
        if up.is_running:
            up.kill()


def deliver(up: Faulty, made: dict[int, Made], every: int = 1) -> None:
    """Each seed (each n-th request of it) by a Collector of its own, some of them side by side."""
    with closing(Transports(up.grpc, up.http, KEY)) as transports:

        def send(signal: str, message: Message, chance: random.Random) -> bool:
            up.check()
            return transports.send(signal, message, chance)

        def run(seed: int) -> None:
            try:
                Collector(seed, made[seed].requests[::every], send).run()
            except BaseException as error:
                error.add_note(how_to_repeat([seed], made))
                raise

        with ThreadPoolExecutor(AT_ONCE) as threads:
            for one in [threads.submit(run, seed) for seed in made]:
                one.result()


def compare(up: Up, made: dict[int, Made]) -> None:
    """Every window of every meter, through the query API: first by when it is so, then by seed."""
    usages = [each for one in made.values() for each in one.usages]
    expected = {window: totals(usages, window) for window in FORMATS}
    meters = [name for name in usage.METERS if name not in usage.CUMULATIVE_METERS]
    failed: dict[int, list[str]] = defaultdict(list)
    for window in FORMATS:
        found: Totals = {}

        def ask(window: str = window, found: Totals = found) -> Totals:
            found.clear()
            found.update(up.totals(meters, window))
            return found

        try:
            eventually(ask, lambda so_far, window=window: so_far == expected[window], seconds=30)  # type: ignore[misc]
        except AssertionError:
            for seed, difference in differences(expected[window], found):
                failed[seed].append(f"{window} {difference}")
    if usage.CUMULATIVE:
        for seed, difference in cumulative_differences(up, made):
            failed[seed].append(difference)
    assert not failed, report(failed, made)


def compare_with_raw(up: Up, made: dict[int, Made]) -> None:
    """The events themselves add up to the same, and there are as many of them as the rollups counted."""
    delta = [event for event in raw_events(up) if event["meter"] not in usage.CUMULATIVE_METERS]
    usages = [each for one in made.values() for each in one.usages]
    found = totals(
        (
            Usage(
                event["tenant_id"],
                event["meter"],
                0,
                # Of a span that is counted its duration is kept.
                Decimal(1) if event["signal"] == "span" else Decimal(event["quantity"]),
            )
            for event in delta
        ),
        "month",
    )
    expected = totals((each._replace(at_ns=0) for each in usages), "month")
    failed: dict[int, list[str]] = defaultdict(list)
    for seed, difference in differences(expected, found):
        failed[seed].append(f"raw {difference}")
    assert not failed, report(failed, made)
    assert len(delta) == len(usages)
    meters = [name for name in usage.METERS if name not in usage.CUMULATIVE_METERS]
    assert sum(count_of(up, meter) for meter in meters) == len(delta)


def raw_events(up: Up) -> Iterator[dict[str, Any]]:
    within = {"from": "2020-01-01T00:00:00Z", "to": "2030-01-01T00:00:00Z", "limit": 1000}
    cursor: dict[str, str] = {}
    while True:
        page = up.get("/v1/meter/events", **within, **cursor)
        yield from page["data"]
        if page["next_cursor"] is None:
            return
        cursor = {"cursor": page["next_cursor"]}


def count_of(up: Up, meter: str) -> int:
    answer = up.get(
        "/v1/meter/aggregates",
        meter=meter,
        window="month",
        aggregation="count",
        **{"from": "2020-01-01T00:00:00Z", "to": "2030-01-01T00:00:00Z"},
    )
    return sum(int(row["value"]) for row in answer["data"])


def differences(expected: Totals, found: Totals) -> Iterator[tuple[int, str]]:
    for key in sorted(expected.keys() | found.keys()):
        if expected.get(key) != found.get(key):
            seed = int(key[0].removeprefix("s").partition(".")[0])
            yield seed, f"{key}: expected {expected.get(key)}, found {found.get(key)}"


def cumulative_differences(up: Up, made: dict[int, Made]) -> Iterator[tuple[int, str]]:
    """Of cumulative sums only the total is certain: which window gets what depends on the order."""
    expected = {
        (*key, ""): value for one in made.values() for key, value in one.cumulative.items() if value
    }
    found: Totals = {}

    def ask() -> Totals:
        found.clear()
        for (tenant, meter, _), value in up.totals(usage.CUMULATIVE_METERS, "month").items():
            found[tenant, meter, ""] = found.get((tenant, meter, ""), Decimal(0)) + value
        return {key: value for key, value in found.items() if value}

    try:
        eventually(ask, lambda so_far: so_far == expected, seconds=30)
    except AssertionError:
        yield from differences(expected, found)


def report(failed: dict[int, list[str]], made: dict[int, Made]) -> str:
    lines = [f"{len(failed)} of {len(made)} seeds failed: {sorted(failed)}"]
    for seed, found in sorted(failed.items()):
        lines += [f"seed {seed}:", *(f"  {one}" for one in found[:8])]
    return "\n".join([*lines, how_to_repeat(sorted(failed), made)])


def how_to_repeat(seeds: Sequence[int], made: dict[int, Made]) -> str:
    first, last = min(made), max(made)
    return (
        f"repeat seed {seeds[0]} alone:     python -m pytest tests/faults/test_exactly_once.py --seed {seeds[0]}\n"
        f"or with its neighbours: python -m pytest tests/faults/test_exactly_once.py "
        f"--seeds {last + 1} -k seeds_{first}_to_{last}"
    )
