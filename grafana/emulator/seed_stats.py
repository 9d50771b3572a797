"""A day of what the receiver counts of itself: every number that docs/pipeline_stats.md names, by minute."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from grafana.emulator.sickness import Sickness
from receiver.store import tables
from receiver.store.client import Store

INSTANCE: Final = "receiver-0"
SICK_MINUTES: Final = 20
"""How long sick states have lasted."""

SPOOL_MAX_BYTES: Final = 17_179_869_184
"""Default of METERING_MAX_SPOOL_BYTES."""

Minutes = NDArray[np.float64]


class Stat(NamedTuple):
    """One column of numbers: all of a row of pipeline_stats but its time and value."""

    stage: str
    name: str
    stat: str
    reason: str = ""
    labels: tuple[tuple[str, str], ...] = ()


Stats = dict[Stat, Minutes]
"""The numbers of each minute, the last of which ends now; NaN, and zero of a counter: no row."""

_EDGES: Final = (("grpc", "metric", 0.6), ("http", "metric", 0.3), ("api", "event", 0.1))
_KEYS: Final = (
    ("collector", "grpc", 0.6),
    ("checkout", "http", 0.3),
    ("mobile-gateway", "api", 0.1),
    ("grafana", "clickhouse", 0.2),
)
"""Whose requests these are, as shares of those of the edges; the last one reads."""
_TABLES: Final = ("events", "quarantine", "event_corrections")


def stats(now: datetime, sick: Collection[Sickness] = (), *, hours: int = 26) -> Stats:
    """Every number of the last `hours`, as `metering.pipeline_stats` has them if each row is a minute."""
    course = _Course(now, frozenset(sick), hours * 60)
    made: Stats = {}
    edge_out = _edge(made, course)
    stored = _ingest(made, course, edge_out)
    _spool(made, course, stored)
    _writer(made, course, stored)
    _keys(made, course)
    _quota(made, course)
    if Sickness.STATS_SILENT in sick:
        for values in made.values():
            values[-SICK_MINUTES:] = np.nan
    return made


def seed_stats(
    store: Store, now: datetime, *, sick: Collection[Sickness] = (), hours: int = 26
) -> None:
    """Write them."""
    # They are kept for 90 days by the clock of the machine, which need not be `now`.
    store.execute(f"SYSTEM STOP TTL MERGES {tables.PIPELINE_STATS}")
    store.insert(
        tables.PIPELINE_STATS, _rows(stats(now, sick, hours=hours), now), token=f"stats {now}"
    )


class _Course:
    """How a day goes."""

    def __init__(self, now: datetime, sick: frozenset[Sickness], minutes: int) -> None:
        self.sick = sick
        self.length = minutes
        of_day = (now.hour * 60 + now.minute + np.arange(minutes) - minutes + 1) % 1_440
        self.wave: Minutes = 1 + 0.5 * np.sin((of_day / 60 - 8) / 24 * 2 * np.pi)
        if Sickness.NOTHING_INGESTED in sick:
            self.wave[-SICK_MINUTES:] = 0
        self._random = np.random.default_rng(6)

    def _noise(self) -> Minutes:
        return np.asarray(self._random.uniform(0.9, 1.1, self.length), np.float64)

    def has(self, one: Sickness) -> bool:
        return one in self.sick

    def count(self, mean: float) -> Minutes:
        """Whole numbers around `mean`, by the hour of the day."""
        return np.round(mean * self.wave * self._noise())

    def level(self, mean: float) -> Minutes:
        """Numbers around `mean`, at any hour."""
        return np.asarray(mean * self._noise(), np.float64)

    def now_and_then(self, every: int) -> Minutes:
        """1 in one minute of so many."""
        return np.asarray(np.arange(self.length) % every == every // 2, np.float64)

    def late(self, healthy: Minutes, sick: Minutes | float) -> Minutes:
        """`healthy`, but `sick` in the last minutes."""
        made = healthy.copy()
        made[-SICK_MINUTES:] = sick if isinstance(sick, float) else sick[-SICK_MINUTES:]
        return made

    def grown(self, to: float) -> Minutes:
        """From nothing to `to` in the last minutes."""
        minutes = np.clip(np.arange(self.length) - self.length + 1 + SICK_MINUTES, 0, None)
        return np.asarray(minutes * (to / SICK_MINUTES), np.float64)


def _edge(made: Stats, course: _Course) -> Minutes:
    total = np.zeros(course.length)
    for transport, signal, share in _EDGES:
        labels = (("signal", signal), ("transport", transport))
        arrived = course.count(1_200 * share)
        refused = {"unauthenticated": course.now_and_then(180) * np.sign(arrived)}
        if course.has(Sickness.REFUSALS):
            for reason in ("malformed_payload", "spool_full"):
                none = np.zeros(course.length)
                refused[reason] = course.late(none, np.ceil(arrived * 0.06))
        out = arrived - sum(refused.values())
        made[Stat("edge", "in", "delta", "", labels)] = arrived
        made[Stat("edge", "out", "delta", "", labels)] = out
        for reason, count in refused.items():
            made[Stat("edge", "refused", "delta", reason, labels)] = count
        of = (("transport", transport),)
        made[Stat("edge", "connections", "value", "", of)] = np.round(course.level(40 * share))
        _durations(made, Stat("edge", "ack_duration", "", "", of), out, course.level(0.012))
        total += out
    return total


def _durations(made: Stats, of: Stat, count: Minutes, typical: Minutes) -> None:
    """A distribution: percentiles and a sum around `typical` seconds."""
    factors = {"p50": 1.0, "p95": 2.4, "p99": 4.1, "max": 6.5}
    there = np.where(count > 0, 1.0, np.nan)
    made[of._replace(stat="count")] = count * there
    made[of._replace(stat="sum")] = count * typical * 1.2 * there
    for stat, factor in factors.items():
        made[of._replace(stat=stat)] = typical * factor * there


def _ingest(made: Stats, course: _Course, edge_out: Minutes) -> Minutes:
    made[Stat("ingest", "requests_in", "delta")] = edge_out
    made[Stat("ingest", "requests_out", "delta")] = edge_out.copy()
    arrived = edge_out * 20
    refused = {
        "duplicate": np.floor(arrived * 0.002),
        "unchanged": np.floor(arrived * 0.005),
        "ignored": np.floor(arrived * 0.01),
    }
    if course.has(Sickness.DUPLICATES):
        refused["duplicate"] = course.late(refused["duplicate"], np.floor(arrived * 0.5))
    for reason, count in quarantined(course.sick, course.length).items():
        refused[f"quarantined.{reason}"] = count
    if course.has(Sickness.TENANT_REFUSED):
        denied = refused["quarantined.tenant_not_allowed"]
        labels = (("key_id", "acme-portal"),)
        made[Stat("ingest", "tenant_refused", "delta", "", labels)] = denied
    out = arrived - sum(refused.values())
    made[Stat("ingest", "in", "delta")] = arrived
    made[Stat("ingest", "out", "delta")] = np.maximum(out, 0)
    for reason, count in refused.items():
        made[Stat("ingest", "refused", "delta", reason)] = count
    for name in ("corrections_in", "corrections_out"):
        made[Stat("ingest", name, "delta")] = course.now_and_then(700)
    made[Stat("ingest", "meters_reloads", "delta")] = course.now_and_then(course.length)
    stale = float(course.has(Sickness.METERS_STALE))
    made[Stat("ingest", "meters_stale", "value")] = course.late(np.zeros(course.length), stale)
    ids = np.round(4_000_000 + np.cumsum(np.maximum(out, 0)))
    made[Stat("ingest", "ids", "value")] = ids
    made[Stat("ingest", "ids_size", "value")] = ids * 24
    made[Stat("ingest", "streams", "value")] = np.round(course.level(1_800))
    return np.maximum(out, 0)


def quarantined(sick: Collection[Sickness], length: int) -> Mapping[str, Minutes]:
    """Reason -> items that went into quarantine in each minute."""
    found = {"no_tenant": np.zeros(length)}
    last = SICK_MINUTES // 2
    if Sickness.QUARANTINE_GROWING in sick:
        found["no_tenant"][-SICK_MINUTES:] = 2
    for one, reason, count in (
        (Sickness.CONFLICTS, "conflict", 5),
        (Sickness.TENANT_REFUSED, "tenant_not_allowed", 4),
    ):
        if one in sick:
            found[reason] = np.zeros(length)
            found[reason][-last] = count
    return found


def _spool(made: Stats, course: _Course, stored: Minutes) -> None:
    made[Stat("spool", "in", "delta")] = stored
    size, age = course.level(180_000), course.level(0.4)
    entries = np.round(course.level(14))
    if course.has(Sickness.SPOOL_FILLING):
        size = course.late(size, course.grown(SPOOL_MAX_BYTES * 15 / 16))
        age = course.late(age, course.grown(SICK_MINUTES * 60))
        entries = course.late(entries, np.round(course.grown(240_000)))
    made[Stat("spool", "entries", "value")] = entries
    made[Stat("spool", "size", "value")] = size
    made[Stat("spool", "oldest_age", "value")] = age


def _writer(made: Stats, course: _Course, stored: Minutes) -> None:
    is_failing = course.has(Sickness.WRITER_FAILING)
    none = np.zeros(course.length)
    failed = course.late(none, stored) if is_failing else none
    if course.has(Sickness.SPOOL_FILLING):
        stored = course.late(stored, 0.0)
    for table, rows in zip(_TABLES, (stored, none, course.now_and_then(700)), strict=True):
        labels = (("table", table),)
        attempts = rows + (failed if table == "events" else 0)
        made[Stat("writer", "in", "delta", "", labels)] = attempts
        made[Stat("writer", "out", "delta", "", labels)] = rows
    made[Stat("writer", "refused", "delta", "unavailable", (("table", "events"),))] = failed
    batches = np.where(stored > 0, np.round(course.level(100)), 0)
    made[Stat("writer", "batches", "delta")] = batches
    for name in ("failures", "retries"):
        made[Stat("writer", name, "delta")] = np.where(failed > 0, batches, 0)
    lag = course.level(0.6)
    if course.has(Sickness.WRITER_LAG):
        lag = course.late(lag, course.level(60.0))
    _durations(made, Stat("writer", "lag", ""), stored, lag)


def _keys(made: Stats, course: _Course) -> None:
    for key_id, transport, share in _KEYS:
        labels = (("key_id", key_id), ("transport", transport))
        shown = course.count(1_200 * share)
        refused = course.now_and_then(400) * (key_id == "mobile-gateway") * np.sign(shown)
        made[Stat("keys", "in", "delta", "", labels)] = shown
        made[Stat("keys", "out", "delta", "", labels)] = shown - refused
        made[Stat("keys", "refused", "delta", "scope", labels)] = refused
    late = course.late(np.zeros(course.length), 6.0)
    for one, key_id, reason in (
        (Sickness.REVOKED_KEY_USED, "contractor", "revoked"),
        (Sickness.UNKNOWN_KEYS, "", "unknown"),
    ):
        if course.has(one):
            labels = (("key_id", key_id), ("transport", "http"))
            made[Stat("keys", "in", "delta", "", labels)] = late.copy()
            made[Stat("keys", "refused", "delta", reason, labels)] = late.copy()


def _quota(made: Stats, course: _Course) -> None:
    made[Stat("quota", "loads", "delta")] = course.now_and_then(90) * 3
    made[Stat("quota", "corrections", "delta")] = course.now_and_then(course.length)


def _rows(made: Stats, now: datetime) -> pa.Table:
    now_ms = round(now.timestamp() * 1_000)
    parts = []
    for stat, values in made.items():
        there = ~np.isnan(values) & ((values != 0) | (stat.stat != "delta"))
        places = np.flatnonzero(there)
        at_ms = now_ms - (len(values) - 1 - places) * 60_000
        parts.append((stat, at_ms, values[places]))
    lengths = [len(values) for _, _, values in parts]
    numbers = np.repeat(np.arange(len(parts)), lengths)
    texts = {
        "stage": [stat.stage for stat, _, _ in parts],
        "name": [stat.name for stat, _, _ in parts],
        "stat": [stat.stat for stat, _, _ in parts],
        "reason": [stat.reason for stat, _, _ in parts],
    }
    labels = pa.array(
        [list(stat.labels) for stat, _, _ in parts], pa.map_(pa.string(), pa.string())
    )
    at = pa.array(np.concatenate([at_ms for _, at_ms, _ in parts]).astype(np.int64))
    return pa.table(
        {
            "at": at.cast(pa.timestamp("ms", "UTC")),
            "instance": pa.repeat(INSTANCE, len(numbers)),
            **{name: pa.array(column).take(pa.array(numbers)) for name, column in texts.items()},
            "labels": labels.take(pa.array(numbers)),
            "value": pa.array(np.concatenate([values for _, _, values in parts])),
        }
    )
