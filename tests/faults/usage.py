"""Usage made up from a seed, and what it adds up to: nothing of the product is used here.

Each seed has tenants of its own, so that many seeds can share one receiver.
"""

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal

from google.protobuf.message import Message
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    AGGREGATION_TEMPORALITY_DELTA,
    Metric,
    NumberDataPoint,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.oracle import Usage
from tests.otlp import SCOPE, Value, key_values

CUMULATIVE = True
"""Whether sums of cumulative temporality are made."""

SECOND = 10**9
BEGIN_NS = 1_780_268_400 * SECOND
"""23:00 on the last day of May 2026: an hour later everything is in other windows of every width."""

METRICS, SPANS, LOGS = "metrics", "traces", "logs"

CUMULATIVE_METERS = ("f.cumulative",)
METERS = ("f.ints", "f.decimals", "f.scaled", "orders", "http.requests", *CUMULATIVE_METERS)


@dataclass(frozen=True)
class Item:
    """A data point, span or log record, with the headers it is sent under."""

    signal: str
    resource: Resource
    scope: InstrumentationScope
    metric: Metric | None
    leaf: Message


Request = tuple[Item, ...]
"""What one export of one application holds: items of one signal."""


@dataclass
class Made:
    """What a seed stands for.

    Attributes:
        requests: In the order in which they were exported.
        usages: What counts, each piece once; of cumulative sums nothing is here.
        cumulative: (tenant, meter) -> exact sum, over all time.
    """

    requests: list[Request] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)
    cumulative: dict[tuple[str, str], Decimal] = field(default_factory=lambda: defaultdict(Decimal))


def make(seed: int, exports: int = 12) -> Made:
    """Several applications, each with several streams, that export `exports` times."""
    chance, made = random.Random(f"usage {seed}"), Made()
    applications = [_Application(seed, number, chance, made) for number in range(2)]
    for _ in range(exports):
        for application in applications:
            made.requests += application.export()
    return made


class _Application:
    """Makes one resource's telemetry, interval after interval."""

    def __init__(self, seed: int, number: int, chance: random.Random, made: Made) -> None:
        self._chance, self._made = chance, made
        self._name = f"app_{seed}_{number}"
        self._tenants = [f"s{seed}.t{i}" for i in range(3)]
        self._resource = Resource(
            attributes=key_values({"service.name": "shop", "service.instance.id": self._name})
        )
        self._scope = InstrumentationScope(name=SCOPE)
        self._now = BEGIN_NS + chance.randrange(1800) * SECOND
        self._number = 0
        self._streams = [
            _Cumulative(self._tenants[i % 3], f"r{i}", chance, self._now) for i in range(4)
        ]

    def export(self) -> Iterator[Request]:
        """One interval: a request of metrics, and now and then one of spans and one of logs."""
        begin, self._now = self._now, self._now + self._chance.randrange(1, 500) * SECOND
        points = list(self._delta_points(begin))
        if CUMULATIVE:
            points += self._cumulative_points()
        yield tuple(points)
        if self._chance.random() < 0.4:
            yield tuple(self._spans())
        if self._chance.random() < 0.4:
            yield tuple(self._logs())

    def _delta_points(self, begin: int) -> Iterator[Item]:
        for meter in ("f.ints", "f.decimals", "f.scaled"):
            for tenant in self._tenants:
                for region in self._chance.sample(["eu", "us", "ap"], self._chance.randrange(3)):
                    attributes: dict[str, Value] = {"tenant.id": tenant, "region": region}
                    point = NumberDataPoint(start_time_unix_nano=begin, time_unix_nano=self._now)
                    quantity = self._set_value(meter, point, attributes)
                    point.attributes.extend(key_values(attributes))
                    self._made.usages.append(Usage(tenant, meter, self._now, quantity))
                    yield self._point(meter, AGGREGATION_TEMPORALITY_DELTA, point)

    def _set_value(
        self, meter: str, point: NumberDataPoint, attributes: dict[str, Value]
    ) -> Decimal:
        number = self._chance.randrange(1, 10**6)
        if meter == "f.ints":
            point.as_int = number
            return Decimal(number)
        if meter == "f.decimals":
            point.as_double = number / 100
            return Decimal(repr(number / 100))
        attributes["metering.quantity.scale"] = 3
        point.as_int = number
        return Decimal(number) / 1000

    def _cumulative_points(self) -> Iterator[Item]:
        for stream in self._streams:
            point, increase = stream.next(self._now)
            self._made.cumulative[stream.tenant, "f.cumulative"] += increase
            yield self._point("f.cumulative", AGGREGATION_TEMPORALITY_CUMULATIVE, point)

    def _point(self, meter: str, temporality: int, point: NumberDataPoint) -> Item:
        metric = Metric(name=meter, unit="1")
        metric.sum.is_monotonic = True
        metric.sum.aggregation_temporality = temporality  # type: ignore[assignment]  # any number
        return Item(METRICS, self._resource, self._scope, metric, point)

    def _spans(self) -> Iterator[Item]:
        for _ in range(self._chance.randrange(1, 8)):
            tenant = self._chance.choice(self._tenants)
            at_ns = self._now + self._chance.randrange(SECOND)
            span = Span(
                trace_id=self._chance.randbytes(16),
                span_id=self._chance.randbytes(8),
                name="GET /products",
                kind=Span.SPAN_KIND_SERVER,
                start_time_unix_nano=at_ns - 5_000_000,
                end_time_unix_nano=at_ns,
                attributes=key_values({"tenant.id": tenant, "http.route": "/products"}),
            )
            self._made.usages.append(Usage(tenant, "http.requests", at_ns, Decimal(1)))
            yield Item(SPANS, self._resource, self._scope, None, span)

    def _logs(self) -> Iterator[Item]:
        for _ in range(self._chance.randrange(1, 8)):
            self._number += 1
            tenant, quantity = self._chance.choice(self._tenants), self._chance.randrange(1, 50)
            attributes: dict[str, Value] = {
                "tenant.id": tenant,
                "metering.event.id": f"{self._name}-{self._number}",
                "metering.quantity": quantity,
            }
            record = LogRecord(
                time_unix_nano=self._now, event_name="orders", attributes=key_values(attributes)
            )
            self._made.usages.append(Usage(tenant, "orders", self._now, Decimal(quantity)))
            yield Item(LOGS, self._resource, self._scope, None, record)


class _Cumulative:
    """One stream of a cumulative monotonic sum, with restarts.

    What counts is, for each start, the greatest value; of a start that is not known (the first point's
    start is its time) without the value of that point (data model, "Resets and Gaps").
    """

    def __init__(self, tenant: str, region: str, chance: random.Random, begin_ns: int) -> None:
        self.tenant = tenant
        self._chance = chance
        self._attributes = key_values({"tenant.id": tenant, "region": region})
        self._start_ns, self._value, self._begins_unknown = begin_ns, 0, chance.random() < 0.3

    def next(self, now_ns: int) -> tuple[NumberDataPoint, Decimal]:
        """A point, and by how much it raises the total."""
        if self._chance.random() < 0.15:
            self._start_ns, self._value = now_ns - SECOND // 2, 0
            self._begins_unknown = self._chance.random() < 0.3
        increase = self._chance.randrange(1000)
        self._value += increase
        if self._begins_unknown:
            self._start_ns, self._begins_unknown, increase = now_ns, False, 0
        point = NumberDataPoint(
            start_time_unix_nano=self._start_ns,
            time_unix_nano=now_ns,
            as_int=self._value,
            attributes=self._attributes,
        )
        return point, Decimal(increase)
