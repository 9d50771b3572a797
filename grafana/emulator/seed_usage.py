"""Usage that is the same each time: a few tenants, meters of each aggregation, 45 days up to a moment.

It is inserted as the receiver's writer does, so the rollups are what the views make of it. For tests, which
compare with totals of the returned list, and for the previews.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

import numpy as np
import pyarrow as pa

from receiver.store import tables
from receiver.store.client import Store

DAYS: Final = 45
ADDITIVE: Final = ("", "sum", "count")
"""Aggregations whose windows add up; an old event of these stands for many measurements."""

TENANTS: Final[Mapping[str, float]] = {
    "acme": 1.0,
    "globex": 0.62,
    "initech": 0.35,
    "umbrella": 0.21,
    "hooli": 0.08,
}
"""Tenant -> how much it uses, beside the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedMeter:
    """A meter.

    Attributes:
        slug: Its name.
        aggregation: Of its definition; empty: it has none.
        unit: UCUM.
        description: What it counts.
        dimensions: Name -> values, the frequent first.
        size: A usual quantity of one event.
        places: Decimal places of it.
        by_key: Its events name who used it, which a unique count counts.
        per_day: Usual number of events of a tenant in a day.
    """

    slug: str
    aggregation: str
    unit: str
    description: str
    dimensions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    size: float = 1.0
    places: int = 0
    by_key: bool = False
    per_day: int = 4


METERS: Final = (
    SeedMeter(
        slug="llm.tokens",
        aggregation="sum",
        unit="{token}",
        description="Tokens that language models read and wrote",
        dimensions={
            "gen_ai.request.model": ("gpt-4o-mini", "claude-sonnet", "llama-3"),
            "gen_ai.token.type": ("input", "output"),
        },
        size=180,
        per_day=8,
    ),
    SeedMeter(
        slug="http.requests",
        aggregation="count",
        unit="{request}",
        description="Requests to the API",
        dimensions={"http.route": ("/v1/chat", "/v1/search", "/v1/files")},
        per_day=8,
    ),
    SeedMeter(
        slug="storage.bytes",
        aggregation="latest",
        unit="By",
        description="Bytes that are stored",
        dimensions={"region": ("eu-west", "us-east")},
        size=4.2e9,
        per_day=3,
    ),
    SeedMeter(
        slug="active.users",
        aggregation="unique_count",
        unit="{user}",
        description="People who used the product",
        by_key=True,
        per_day=6,
    ),
    SeedMeter(
        slug="job.duration",
        aggregation="p95",
        unit="s",
        description="How long jobs took",
        dimensions={"queue": ("fast", "slow")},
        size=2.4,
        places=3,
    ),
    SeedMeter(
        slug="connections.open",
        aggregation="max",
        unit="{connection}",
        description="Connections open at once",
        size=40,
        per_day=3,
    ),
    SeedMeter(slug="clicks", aggregation="", unit="", description="", per_day=4),
)
"""The last one has no definition: it is summed."""

MORE_METERS: Final = tuple(
    SeedMeter(
        slug=f"test.{aggregation}",
        aggregation=aggregation,
        unit="1",
        description=f"For the aggregation {aggregation}",
        size=20,
        places=2,
        per_day=2,
    )
    for aggregation in ("min", "avg", "p50", "p90", "p99")
)
"""The aggregations that `METERS` has none of; for tests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedUsage:
    """One event."""

    number: int
    tenant: str
    meter: str
    at: datetime
    quantity: Decimal
    observations: int
    dimensions: Mapping[str, str]
    attributes: Mapping[str, str]
    unique_key: str
    service: str

    @property
    def event_id(self) -> bytes:
        """Its identity, 16 bytes."""
        return (0x5EED << 112 | self.number << 64 | self.number).to_bytes(16, "big")


def usages(now: datetime, meters: Sequence[SeedMeter] = METERS) -> list[SeedUsage]:
    """The events up to `now` (UTC), by time. The same for the same arguments."""
    random = np.random.default_rng(20)
    found: list[SeedUsage] = []
    for tenant in TENANTS:
        for meter in meters:
            for at, measurements in _moments(now, meter, random):
                found.append(_usage(len(found), tenant, meter, at, measurements, random))
    return sorted(found, key=lambda one: (one.at, one.number))


def seed(store: Store, now: datetime, meters: Sequence[SeedMeter] = METERS) -> list[SeedUsage]:
    """Insert them, and the meters' definitions, into a migrated database; returns what was inserted."""
    inserted = usages(now, meters)
    store.insert(tables.EVENTS, to_table(inserted, now), token=f"seed-usage-{now:%Y%m%dT%H%M%S}")
    store.insert(
        tables.METER_DEFINITIONS,
        _definitions(meters, now),
        token=f"seed-meters-{now:%Y%m%dT%H%M%S}",
    )
    return inserted


def to_table(inserted: Sequence[SeedUsage], now: datetime) -> pa.Table:
    """Rows of metering.events."""
    moments = pa.timestamp("ns", "UTC")
    texts = pa.map_(pa.string(), pa.string())
    times = pa.array([one.at for one in inserted], pa.timestamp("us", "UTC")).cast(moments)
    stored = [min(one.at + timedelta(milliseconds=350), now) for one in inserted]
    ids = pa.array([one.event_id for one in inserted], pa.binary(16))
    return pa.table(
        {
            "event_id": ids,
            "tenant_id": pa.array([one.tenant for one in inserted]),
            "meter": pa.array([one.meter for one in inserted]),
            "quantity": pa.array([one.quantity for one in inserted], pa.decimal128(38, 9)),
            "observations": pa.array([one.observations for one in inserted], pa.int64()),
            "unique_key": pa.array([one.unique_key for one in inserted]),
            "timestamp": times,
            "start_time": times,
            "dimensions": pa.array([list(one.dimensions.items()) for one in inserted], texts),
            "attributes": pa.array([list(one.attributes.items()) for one in inserted], texts),
            "service_name": pa.array([one.service for one in inserted]),
            "signal": pa.array(["metric"] * len(inserted)),
            "trace_id": pa.array([""] * len(inserted)),
            "span_id": pa.array([""] * len(inserted)),
            "stream_id": ids,
            "ingested_at": pa.array(stored, pa.timestamp("ms", "UTC")),
            "batch_id": pa.array([bytes(16)] * len(inserted), pa.binary(16)),
        }
    )


def _definitions(meters: Sequence[SeedMeter], now: datetime) -> pa.Table:
    defined = [one for one in meters if one.aggregation]
    return pa.table(
        {
            "meter": pa.array([one.slug for one in defined]),
            "origin": pa.array(["file"] * len(defined)),
            "description": pa.array([one.description for one in defined]),
            "aggregation": pa.array([one.aggregation for one in defined]),
            "unit": pa.array([one.unit for one in defined]),
            "group_by": pa.array([list(one.dimensions) for one in defined], pa.list_(pa.string())),
            "is_deleted": pa.array([False] * len(defined)),
            "updated_at": pa.array(
                [now - timedelta(days=DAYS)] * len(defined), pa.timestamp("us", "UTC")
            ),
        }
    )


def _moments(
    now: datetime, meter: SeedMeter, random: np.random.Generator
) -> Iterator[tuple[datetime, int]]:
    """When, and for how many measurements an event stands: the older, the more, and the rarer they are."""
    step = 86400 / meter.per_day
    begin = (now - timedelta(days=DAYS)).replace(hour=0, minute=0, second=0, microsecond=0)
    at = begin
    while at < now:
        age = now - at
        parts = 36 if age <= timedelta(hours=3) else 6 if age <= timedelta(hours=51) else 1
        moment = at + timedelta(milliseconds=int(random.uniform(0, step / parts) * 1000))
        if moment < now:
            yield moment, 180 // parts
        at += timedelta(seconds=step / parts)


def _usage(
    number: int,
    tenant: str,
    meter: SeedMeter,
    at: datetime,
    measurements: int,
    random: np.random.Generator,
) -> SeedUsage:
    weight = TENANTS[tenant]
    dimensions = {
        name: values[min(int(random.exponential(0.8)), len(values) - 1)]
        for name, values in meter.dimensions.items()
    }
    busy = _busy(at) * weight
    observations = 1
    amount = meter.size * busy * random.lognormal(0, 0.25)
    if meter.aggregation in ADDITIVE:
        observations = max(1, round(measurements * busy * random.lognormal(0, 0.15)))
        amount = meter.size * observations * random.uniform(0.8, 1.2)
    elif meter.aggregation == "latest":
        amount = meter.size * weight * _growth(at) * random.uniform(0.99, 1.01)
    if meter.size == 1:
        amount = observations
    step = Decimal(1).scaleb(-meter.places)
    user = f"user-{int(random.integers(1, max(2, round(40 * weight))))}"
    return SeedUsage(
        number=number,
        tenant=tenant,
        meter=meter.slug,
        at=at.astimezone(UTC),
        quantity=max(Decimal(str(amount)).quantize(step), step),
        observations=observations,
        dimensions=dimensions,
        attributes={**dimensions, "enduser.id": user, "deployment.environment": "production"},
        unique_key=user if meter.by_key else "",
        service="gateway" if meter.slug.startswith(("http", "llm")) else "worker",
    )


def _growth(at: datetime) -> float:
    """Slowly more: a third in a hundred days."""
    return 1 + (at - datetime(2026, 1, 1, tzinfo=UTC)).days % 100 / 300


def _busy(at: datetime) -> float:
    """More by day than by night, less on Sundays."""
    cycle = 0.65 - 0.35 * math.cos((at.hour + at.minute / 60 - 2) / 12 * math.pi)
    return cycle * (0.6 if at.weekday() == 6 else 1.0) * _growth(at)
