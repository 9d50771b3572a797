"""Rules on the real engine: what a rule does in a while, and rows of the receiver's numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from grafana.emulator.alert_source import Source
from grafana.emulator.alerts import Alert, Simulation, duration
from receiver.store import tables
from receiver.store.client import Store
from tests.grafana.alerts.files import RULES, interval_of

NOW = datetime(2026, 11, 20, 12, 30, tzinfo=UTC)
"""A Friday."""

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True)
class Outcome:
    """What a rule did: when it fired first, after how long of being above, and for which instances."""

    first: timedelta | None
    alerts: frozenset[frozenset[tuple[str, str]]]

    @property
    def is_silent(self) -> bool:
        return self.first is None


def outcome(
    store: Store, uid: str, *, start: datetime = NOW, length: timedelta | None = None
) -> Outcome:
    """Evaluate a rule for a while, by default for twice as long as it waits."""
    rule = RULES[uid]
    interval = interval_of(uid)
    simulation = Simulation(rule, interval, Source(store))
    end = start + (length or 2 * duration(rule["for"]))
    first, seen, at = None, set(), start
    while at <= end:
        alerts = simulation.evaluate(at)
        assert not simulation.error, simulation.error
        if alerts and first is None:
            first = at - start
        seen |= {frozenset(labels_of(alert).items()) for alert in alerts}
        at += interval
    return Outcome(first, frozenset(seen))


def labels_of(alert: Alert) -> dict[str, str]:
    """Those of the row."""
    return {
        name: value for name, value in alert.labels.items() if name not in ("severity", "product")
    }


def fires(store: Store, uid: str, *instances: Mapping[str, str], **when: Any) -> None:
    """The rule fires for these instances and no others, when it has waited, and not before."""
    found = outcome(store, uid, **when)
    assert {frozenset(one.items()) for one in instances} == found.alerts
    assert found.first == duration(RULES[uid]["for"])


def silent(store: Store, uid: str, **when: Any) -> None:
    assert outcome(store, uid, **when).is_silent


class Stats:
    """Rows of pipeline_stats, one for each ten seconds up to NOW, or to `until`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._number = 0
        self._noise: list[dict[str, object]] = []

    def noise(
        self, stage: str, name: str, stat: str, reason: str, start: datetime, end: datetime
    ) -> None:
        """A large number that grows, each minute, of a receiver of its own."""
        for minute in range((end - start) // MINUTE):
            self._noise.append(
                {
                    "at": start + minute * MINUTE,
                    "instance": "noise",
                    "stage": stage,
                    "name": name,
                    "stat": stat,
                    "reason": reason,
                    "labels": [("key_id", "noise")],
                    "value": (minute + 1) * 1e9,
                }
            )

    def write_noise(self) -> None:
        schema = pa.schema(
            [
                ("at", pa.timestamp("ms", "UTC")),
                *((name, pa.string()) for name in ("instance", "stage", "name", "stat", "reason")),
                ("labels", pa.map_(pa.string(), pa.string())),
                ("value", pa.float64()),
            ]
        )
        rows = pa.Table.from_pylist(self._noise, schema)
        self._store.insert(tables.PIPELINE_STATS, rows, token=f"noise {id(self)}")

    def add(
        self,
        stage: str,
        name: str,
        value: float,
        *,
        stat: str = "delta",
        reason: str = "",
        labels: Mapping[str, str] | None = None,
        start: datetime = NOW - HOUR,
        until: datetime = NOW + HOUR,
        instance: str = "receiver-0",
        growing: float = 0.0,
    ) -> None:
        count = (until - start) // timedelta(seconds=10)
        at = [start + i * timedelta(seconds=10) for i in range(count)]
        self._number += 1
        rows = pa.table(
            {
                "at": pa.array(at, pa.timestamp("ms", "UTC")),
                "instance": [instance] * count,
                "stage": [stage] * count,
                "name": [name] * count,
                "stat": [stat] * count,
                "reason": [reason] * count,
                "labels": pa.array(
                    [list((labels or {}).items())] * count, pa.map_(pa.string(), pa.string())
                ),
                "value": pa.array([value + i * growing for i in range(count)], pa.float64()),
            }
        )
        self._store.insert(tables.PIPELINE_STATS, rows, token=f"{id(self)} {self._number} {start}")


ASKED_FOR = (
    ("edge", "in", "delta"),
    ("edge", "refused", "delta"),
    ("ingest", "in", "delta"),
    ("ingest", "out", "delta"),
    ("ingest", "refused", "delta"),
    ("ingest", "meters_stale", "value"),
    ("keys", "refused", "delta"),
    ("spool", "oldest_age", "value"),
    ("spool", "size", "value"),
    ("writer", "lag", "p99"),
)
REASONS = {"edge": "spool_full", "ingest": "duplicate", "keys": "revoked"}


def moment(at: datetime) -> str:
    return f"toDateTime64('{at:%F %T}', 6, 'UTC')"


def hours(
    store: Store,
    quantity: float,
    *,
    count: int = 20,
    tenant: str = "acme",
    meter: str = "api.calls",
    start: int,
    end: int,
    only: str = "1",
    now: datetime = NOW,
) -> None:
    """Usage in each hour from `start` to `end` hours before that of `now`; in the rollup alone."""
    store.execute(
        f"""
        INSERT INTO {tables.USAGE_HOUR} (tenant_id, meter, window_start, quantity_sum, quantity_count)
        SELECT '{tenant}', '{meter}', toDateTime('{now:%F %H}:00:00', 'UTC') - INTERVAL number HOUR AS hour,
            toDecimal128('{quantity}', 9), {count}
        FROM numbers({end}, {start - end + 1}) WHERE {only}
        """
    )
