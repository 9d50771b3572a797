"""Five weeks of use of language models: some tenants, models, and both types of tokens."""

import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from grafana.emulator.sickness import Sickness
from receiver.store import tables
from receiver.store.client import Store

TOKENS: Final = "gen_ai.tokens"
CACHED: Final = "gen_ai.tokens.cache_read"
EXPORTED: Final = "llm.tokens"
UNDEFINED: Final = "gpu.secnods"
"""A meter that nobody defined, by a slip of the pen."""

MODEL: Final = "gen_ai.request.model"
TYPE: Final = "gen_ai.token.type"

DAYS: Final = 35
SPIKE: Final = 10

_TEXT_MAP: Final = pa.map_(pa.string(), pa.string())
_SPACE: Final = uuid.UUID("6f0c9a52-6d5e-4a4e-8a36-4d2f6c1f7b11")


class Series(NamedTuple):
    """Who uses how much of what: tokens in ten minutes at the mean of a day."""

    tenant: str
    meter: str
    model: str
    tokens_in: int
    tokens_out: int


SERIES: Final = (
    Series("acme", TOKENS, "claude-opus-4-5", 21_000, 5_200),
    Series("acme", TOKENS, "claude-haiku-4-5", 64_000, 9_100),
    Series("acme", CACHED, "claude-opus-4-5", 14_000, 0),
    Series("globex", TOKENS, "gpt-5", 38_000, 11_000),
    Series("globex", TOKENS, "claude-sonnet-4-5", 30_500, 8_400),
    Series("globex", TOKENS, "text-embedding-3-large", 12_000, 0),
    Series("initech", TOKENS, "gpt-5-mini", 25_000, 6_000),
    Series("umbrella", EXPORTED, "gemini-2.5-pro", 9_000, 3_100),
    Series("hooli", TOKENS, "mistral-large", 4_000, 1_500),
)


@dataclass(frozen=True, slots=True)
class Event:
    """One event; times in milliseconds since the epoch."""

    tenant: str
    meter: str
    model: str
    type: str
    quantity: int
    observations: int
    at_ms: int
    ingested_ms: int

    @property
    def id(self) -> uuid.UUID:
        """The same at every run."""
        text = (
            f"{self.tenant} {self.meter} {self.model} {self.type} {self.at_ms} {self.ingested_ms}"
        )
        return uuid.uuid5(_SPACE, text)

    @property
    def dimensions(self) -> list[tuple[str, str]]:
        """What its meter groups by."""
        return [(MODEL, self.model), (TYPE, self.type)] if self.model else []


class Correction(NamedTuple):
    """An event that does not count any more, and the one that counts instead; None: none."""

    event: Event
    reason: str
    replaced_by: Event | None
    at_ms: int


def events(now: datetime, sick: Collection[Sickness] = ()) -> list[Event]:
    """Every event that was ever admitted, oldest first."""
    made = [
        event
        for series in SERIES
        for moment, minutes in _moments(now)
        for event in _at(series, moment, minutes, now, sick)
    ]
    made += _odd(now, sick)
    made += [one.replaced_by for one in corrections(made, now) if one.replaced_by]
    return sorted(made, key=lambda event: (event.at_ms, event.tenant, event.meter, event.model))


def corrections(made: Sequence[Event], now: datetime) -> list[Correction]:
    """What was corrected of `made`: a day ago one event of hooli was voided, another one halved."""
    until = _ms(now - timedelta(hours=26))
    since = _ms(now - timedelta(hours=30))
    mine = [one for one in made if one.tenant == "hooli" and since <= one.at_ms < until]
    mine.sort(key=lambda event: (event.at_ms, event.type))
    void, wrong = mine[0], mine[-1]
    right = Event(
        wrong.tenant,
        wrong.meter,
        wrong.model,
        wrong.type,
        wrong.quantity // 2,
        1,
        wrong.at_ms + 1,
        _ms(now - timedelta(hours=25)),
    )
    at_ms = _ms(now - timedelta(hours=25))
    return [
        Correction(void, "sent by a test", None, at_ms),
        Correction(wrong, "counted twice by the proxy", right, at_ms),
    ]


def counted(now: datetime, sick: Collection[Sickness] = ()) -> list[Event]:
    """Every event that counts: without those that were corrected."""
    made = events(now, sick)
    gone = {one.event.id for one in corrections(made, now)}
    return [event for event in made if event.id not in gone]


def seed_llm(store: Store, now: datetime, *, sick: Collection[Sickness] = ()) -> None:
    """Write the definitions of the meters, the events and the corrections of some of them."""
    _define(store, now)
    made = events(now, sick)
    store.insert(tables.EVENTS, _event_rows(made), token=f"llm {now}")
    corrected = corrections(made, now)
    store.insert(tables.EVENT_CORRECTIONS, _correction_rows(corrected), token=f"corrections {now}")


def _moments(now: datetime) -> Iterator[tuple[datetime, int]]:
    """(moment, minutes until the next): two hours apart, in the last eight days one, in the last ten minutes."""
    hour = now.replace(minute=0, second=0, microsecond=0)
    moment = hour - timedelta(days=DAYS)
    while moment <= now:
        age = hour - moment
        minutes = 120 if age > timedelta(days=8) else 60 if age > timedelta(days=1) else 10
        yield moment, minutes
        moment += timedelta(minutes=minutes)


def _at(
    series: Series, moment: datetime, minutes: int, now: datetime, sick: Collection[Sickness]
) -> Iterator[Event]:
    at = moment + timedelta(minutes=minutes / 2, seconds=7)
    if at > now - timedelta(minutes=1) or _is_silent(series, at, now, sick):
        return
    for kind, tokens in (("input", series.tokens_in), ("output", series.tokens_out)):
        if not tokens:
            continue
        quantity = round(tokens * minutes / 10 * _wave(at) * _noise(series, kind, at))
        if _is_spike(series, at, now, sick):
            quantity *= SPIKE
        calls = max(quantity // 900, 1) if series.meter == EXPORTED else 1
        delay = 400 + at.minute * 37
        at_ms = _ms(at)
        yield Event(
            series.tenant, series.meter, series.model, kind, quantity, calls, at_ms, at_ms + delay
        )


def _is_silent(series: Series, at: datetime, now: datetime, sick: Collection[Sickness]) -> bool:
    has_stopped = Sickness.USAGE_STOPPED in sick and series.tenant == "initech"
    nobody = Sickness.NOTHING_INGESTED in sick and at > now - timedelta(minutes=20)
    return nobody or (has_stopped and at > now - timedelta(hours=3))


def _is_spike(series: Series, at: datetime, now: datetime, sick: Collection[Sickness]) -> bool:
    spikes = Sickness.USAGE_SPIKE in sick and series.tenant == "globex"
    return spikes and at > now - timedelta(hours=1)


def _odd(now: datetime, sick: Collection[Sickness]) -> Iterator[Event]:
    """Events that ought not to be."""
    arrived = _ms(now - timedelta(minutes=6))
    if Sickness.UNDEFINED_METER in sick:
        for i in range(4):
            yield Event("globex", UNDEFINED, "", "", 30, 1, arrived - i * 60_000, arrived)
    if Sickness.FUTURE_EVENTS in sick:
        for i in range(5):
            ahead = arrived + 7_200_000 + i * 1_000
            yield Event("initech", TOKENS, "gpt-5-mini", "input", 100, 1, ahead, arrived)
    if Sickness.LATE_EVENTS in sick:
        for i in range(8):
            late = arrived - 20 * 3_600_000 - i * 1_000
            yield Event("acme", TOKENS, "claude-opus-4-5", "input", 100, 1, late, arrived)


def _wave(at: datetime) -> float:
    """A day's course: less at night, most in the afternoon (UTC); quieter at weekends."""
    day = 1 + 0.55 * np.sin((at.hour + at.minute / 60 - 8) / 24 * 2 * np.pi)
    return float(day) * (0.7 if at.weekday() >= 5 else 1.0)


def _noise(series: Series, kind: str, at: datetime) -> float:
    """0.85 to 1.15, the same at every run."""
    seed = uuid.uuid5(_SPACE, f"{series.tenant} {series.model} {kind} {at}").int
    return 0.85 + (seed % 1_000) / 1_000 * 0.3


def _define(store: Store, now: datetime) -> None:
    told = (
        (TOKENS, "Tokens of model calls, counted from their spans"),
        (CACHED, "Input tokens that came from a cache; they are among gen_ai.tokens"),
        (EXPORTED, "OpenTelemetry GenAI semantic conventions"),
    )
    rows = pa.table(
        {
            "meter": [slug for slug, _ in told],
            "origin": ["file"] * len(told),
            "description": [text for _, text in told],
            "aggregation": ["sum"] * len(told),
            "unit": ["{token}"] * len(told),
            "group_by": [[MODEL, TYPE]] * len(told),
            "is_deleted": [False] * len(told),
            "updated_at": _times([_ms(now - timedelta(days=DAYS))] * len(told), "us"),
        }
    )
    store.insert(tables.METER_DEFINITIONS, rows, token=f"llm meters {now}")


def _event_rows(made: Sequence[Event]) -> pa.Table:
    at = _times([event.at_ms for event in made], "ns")
    dimensions = pa.array([event.dimensions for event in made], _TEXT_MAP)
    none = pa.repeat("", len(made))
    return pa.table(
        {
            "event_id": _uuids([event.id for event in made]),
            "tenant_id": [event.tenant for event in made],
            "meter": [event.meter for event in made],
            "quantity": _decimals([event.quantity for event in made]),
            "observations": [event.observations for event in made],
            "unique_key": none,
            "timestamp": at,
            "start_time": at,
            "dimensions": dimensions,
            "attributes": dimensions,
            "service_name": pa.repeat("assistant", len(made)),
            "signal": pa.repeat("metric", len(made)),
            "trace_id": none,
            "span_id": none,
            "stream_id": _uuids([uuid.uuid5(_SPACE, str(event.dimensions)) for event in made]),
            "ingested_at": _times([event.ingested_ms for event in made], "ms"),
            "batch_id": _uuids([_SPACE] * len(made)),
        }
    )


def _correction_rows(corrected: Sequence[Correction]) -> pa.Table:
    of = [one.event for one in corrected]
    zero = uuid.UUID(int=0)
    return pa.table(
        {
            "event_id": _uuids([event.id for event in of]),
            "tenant_id": [event.tenant for event in of],
            "meter": [event.meter for event in of],
            "timestamp": _times([event.at_ms for event in of], "ns"),
            "quantity": _decimals([event.quantity for event in of]),
            "observations": [event.observations for event in of],
            "dimensions": pa.array([event.dimensions for event in of], _TEXT_MAP),
            "action": ["correct" if one.replaced_by else "void" for one in corrected],
            "reason": [one.reason for one in corrected],
            "replaced_by": _uuids(
                [one.replaced_by.id if one.replaced_by else zero for one in corrected]
            ),
            "key_id": ["platform"] * len(of),
            "corrected_at": _times([one.at_ms for one in corrected], "ms"),
            "batch_id": _uuids([_SPACE] * len(of)),
        }
    )


def _uuids(of: Sequence[uuid.UUID]) -> pa.Array:
    return pa.array([one.bytes for one in of], pa.binary(16))


def _decimals(of: Sequence[int]) -> pa.Array:
    return pa.array([Decimal(one) for one in of], pa.decimal128(38, 9))


def _times(of: Sequence[int], unit: str) -> pa.Array:
    return pa.array(of, pa.int64()).cast(pa.timestamp("ms", "UTC")).cast(pa.timestamp(unit, "UTC"))


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1_000)
