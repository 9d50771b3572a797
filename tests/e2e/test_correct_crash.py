"""kill -9 at random moments while events are voided and corrected: every window is exact in the end."""

import random
import threading
import urllib.error
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from http.client import HTTPException
from typing import Any

import pytest

from receiver.store import tables
from receiver.store.client import Store
from tests.e2e.up import Up
from tests.oracle import FORMATS, Usage, totals
from tests.waiting import eventually

WORKERS = 6
METER = "calls.corrected"
Windows = dict[tuple[str, str, str], tuple[Decimal, int]]


class Worker:
    """Sends, voids and corrects events of a tenant of its own, each until it is acknowledged."""

    def __init__(self, up: Up, seed: int) -> None:
        self._up = up
        self._chance = random.Random(seed)
        self._tenant = f"w{seed}"
        self._sent: list[dict[str, Any]] = []
        self.counted: dict[str, Usage] = {}
        self.done: dict[str, int] = {"void": 0, "correct": 0, "again": 0}

    def run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            what = [self._send, self._again, self._void, self._correct]
            self._chance.choices(what, [4, 1, 3, 4])[0]()

    def _send(self) -> None:
        batch: list[dict[str, Any]] = []
        for _ in range(self._chance.randrange(1, 6)):
            event_id, at = f"e{len(self._sent) + len(batch)}", self._moment()
            quantity = self._quantity()
            batch.append(
                {
                    "tenant_id": self._tenant,
                    "meter": METER,
                    "event_id": event_id,
                    "quantity": str(quantity),
                    "timestamp": at.isoformat(),
                }
            )
            self.counted[event_id] = self._usage(at, quantity)
        self._until(lambda: self._up.post("/v1/meter/events", batch)[0] == 202)
        self._sent += batch

    def _again(self) -> None:
        """The sender repeats itself: also what was voided or corrected since."""
        if self._sent:
            batch = self._chance.choices(self._sent, k=5)
            self._until(lambda: self._up.post("/v1/meter/events", batch)[0] == 202)
            self.done["again"] += 1

    def _void(self) -> None:
        event_id = self._any()
        if event_id is not None:
            self._make(event_id, "void", {})
            del self.counted[event_id]

    def _correct(self) -> None:
        event_id = self._any()
        if event_id is not None:
            at, quantity = self._moment(), self._quantity()
            self._make(
                event_id, "correct", {"quantity": str(quantity), "timestamp": at.isoformat()}
            )
            self.counted[event_id] = self._usage(at, quantity)

    def _make(self, event_id: str, action: str, more: dict[str, Any]) -> None:
        body = {
            "reason": f"{self._chance.random()}",
            "tenant_id": self._tenant,
            "meter": METER,
            **more,
        }

        def ask() -> bool:
            status, answer = self._up.post(f"/v1/meter/events/{event_id}/{action}", body)
            # 404: acknowledged, and not in the database after three seconds.
            assert status in (200, 404, 503), answer
            return status == 200

        self._until(ask)
        self.done[action] += 1

    def _until(self, ask: Callable[[], bool]) -> None:
        pause = threading.Event()
        while True:
            try:
                if ask():
                    return
            except (OSError, HTTPException, ValueError, urllib.error.URLError):
                pass  # nobody listens, or the answer was cut off
            pause.wait(0.05)

    def _usage(self, at: datetime, quantity: Decimal) -> Usage:
        return Usage(self._tenant, METER, int(at.timestamp()) * 10**9, quantity)

    def _any(self) -> str | None:
        known = [one["event_id"] for one in self._sent if one["event_id"] in self.counted]
        return self._chance.choice(known) if known else None

    def _quantity(self) -> Decimal:
        return Decimal(self._chance.randrange(1, 10**9)).scaleb(-self._chance.randrange(10))

    def _moment(self) -> datetime:
        day, second = self._chance.choice([30, 31]), self._chance.randrange(60)
        hour, minute = self._chance.choice([0, 23]), self._chance.randrange(60)
        return datetime(2026, self._chance.choice([3, 5]), day, hour, minute, second, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seed", "kills"),
    [(1, 6), pytest.param(2, 150, marks=[pytest.mark.long, pytest.mark.timeout(1800)])],
)
def test_kill_9_while_events_are_corrected_keeps_every_window_exact(
    new_up: Up, seed: int, kills: int
) -> None:
    up, chance, moment = new_up, random.Random(seed), threading.Event()
    workers = [Worker(up, seed * 100 + i) for i in range(WORKERS)]
    stopping = threading.Event()

    up.start()
    with ThreadPoolExecutor(WORKERS) as threads:
        running = [threads.submit(worker.run, stopping) for worker in workers]
        for _ in range(kills):
            moment.wait(chance.uniform(0.0, 1.5))
            up.kill()
            up.start()
        stopping.set()
    for one in running:
        one.result()

    assert all(sum(worker.done[what] for worker in workers) > 5 for what in workers[0].done)
    usages = [usage for worker in workers for usage in worker.counted.values()]
    for window in FORMATS:
        expected = totals(usages, window)
        eventually(
            lambda window=window: counted(up, window),  # type: ignore[misc]
            lambda found, expected=expected: found == expected,  # type: ignore[misc]
            seconds=60,
        )
    assert up.stop() == 0
    compare(up, usages)


def counted(up: Up, window: str) -> dict[tuple[str, str, str], Decimal]:
    """What the query API says of windows that have events; of each the sum is above zero."""
    return {key: total for key, total in up.totals([METER], window).items() if total}


def compare(up: Up, usages: list[Usage]) -> None:
    """By SQL: sum and count of raw events without those that were corrected, and of each rollup."""
    with closing(Store(f"chdb://{up.data_dir / 'clickhouse'}")) as store:
        for (window, shown), table in zip(FORMATS.items(), tables.ROLLUPS, strict=True):
            sums = totals(usages, window)
            counts = totals((one._replace(quantity=Decimal(1)) for one in usages), window)
            expected = {key: (sums[key], int(counts[key])) for key in sums}
            sql_format = shown.replace(":%M", ":%i").replace("%S", "%s")
            raw = (
                "SELECT tenant_id, meter, formatDateTime(timestamp, {format:String}, 'UTC'), "
                f"sum(quantity), toInt64(sum(observations)) FROM {tables.EVENTS} WHERE event_id NOT IN "
                f"(SELECT event_id FROM {tables.EVENT_CORRECTIONS}) GROUP BY 1, 2, 3"
            )
            rolled = (
                "SELECT tenant_id, meter, formatDateTime(window_start, {format:String}, 'UTC'), "
                f"sum(quantity_sum), toInt64(sum(quantity_count)) FROM {table} GROUP BY 1, 2, 3"
            )
            for sql in (raw, rolled):
                found: Windows = {
                    (tenant, meter, start): (total, count)
                    for tenant, meter, start, total, count in store.query(
                        sql, {"format": sql_format}
                    )
                    if count or total
                }
                assert found == expected, (window, sql)
