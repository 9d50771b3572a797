"""Protobuf, JSON and gRPC of the same data store the same rows (OTLP specification: encodings of one model).

The cases are pairwise over what a metric may be; each is sent over each transport for a tenant of its own,
and then the rows of the tenants are compared. Nothing here says what the rows should be.
"""

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    KeyValue,
    KeyValueList,
)
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

from receiver.store import tables
from receiver.store.client import Store
from tests.conformance.pairwise import Case, pairwise
from tests.conformance.wire import OK, TRANSPORTS, Request, send
from tests.e2e.up import Up
from tests.otlp import NOON, key_values, logs_request, spans_request

TYPES = ("gauge", "sum", "histogram", "exponential_histogram", "summary")

VALUES: dict[str, AnyValue] = {
    "text": AnyValue(string_value="Köln 🚲"),
    "empty_text": AnyValue(string_value=""),
    "bool": AnyValue(bool_value=False),
    "int": AnyValue(int_value=-(2**63)),
    "double": AnyValue(double_value=0.1),
    "not_finite": AnyValue(double_value=float("-inf")),
    "bytes": AnyValue(bytes_value=b"\xff\xfe\0"),
    "array": AnyValue(
        array_value=ArrayValue(
            values=[AnyValue(int_value=1), AnyValue(), AnyValue(bool_value=True)]
        )
    ),
    "map": AnyValue(
        kvlist_value=KeyValueList(values=[KeyValue(key="k", value=AnyValue(string_value="v"))])
    ),
    "nothing": AnyValue(),
}

OPTIONS = {
    "type": TYPES,
    "temporality": ("0", "1", "2"),
    "monotonic": ("no", "yes"),
    "value": ("int", "double", "large_int", "negative", "none"),
    "start": ("zero", "before", "equal", "after"),
    "time": ("given", "zero"),
    "flags": ("0", "1"),
    "attribute": (*VALUES, "none"),
    "exemplars": ("no", "yes"),
    "scope": ("otel_metering", "other", "none"),
    "resource": ("yes", "none"),
    "compression": ("none", "gzip", "deflate", "zstd"),
}

CASES = pairwise(OPTIONS)

START = {"zero": 0, "before": NOON - 10**9, "equal": NOON, "after": NOON + 10**9}

METERS = "meters:\n" + "".join(
    f"  - {{slug: of.{name}, aggregation: {aggregation}, "
    f"source: {{signal: metric, name: of.{name}, scope: other}}}}\n"
    for name, aggregation in zip(TYPES, ("max", "sum", "sum", "max", "sum"), strict=True)
)


def metrics_of(case: Case, tenant: str) -> ExportMetricsServiceRequest:
    request = ExportMetricsServiceRequest()
    of_resource = request.resource_metrics.add()
    if case["resource"] == "yes":
        of_resource.resource.attributes.extend(key_values({"service.name": "shop"}))
    of_scope = of_resource.scope_metrics.add()
    if case["scope"] != "none":
        of_scope.scope.name = case["scope"]
        of_scope.scope.attributes.extend(key_values({"s": 1}))
    metric = of_scope.metrics.add(name=f"of.{case['type']}", unit="1", description="a metric")
    data = getattr(metric, case["type"])
    if case["type"] not in ("gauge", "summary"):
        data.aggregation_temporality = int(case["temporality"])
    if case["type"] == "sum":
        data.is_monotonic = case["monotonic"] == "yes"
    for number in (1, 2):
        point = data.data_points.add(
            start_time_unix_nano=START[case["start"]],
            time_unix_nano=NOON + number if case["time"] == "given" else 0,
            flags=int(case["flags"]),
            attributes=key_values({"tenant.id": tenant}),
        )
        if case["attribute"] != "none":
            point.attributes.append(KeyValue(key="a", value=VALUES[case["attribute"]]))
        _set_value(point, case["type"], case["value"], number)
        if case["exemplars"] == "yes" and case["type"] != "summary":
            point.exemplars.add(
                time_unix_nano=NOON, as_int=7, trace_id=bytes(range(16)), span_id=bytes(range(8))
            )
    return request


def _set_value(point: Any, kind: str, value: str, number: int) -> None:
    if value == "none":
        return
    if kind in ("gauge", "sum"):
        match value:
            case "double":
                point.as_double = 0.1 * number
            case "large_int":
                point.as_int = 2**53 + number
            case "negative":
                point.as_int = -number
            case _:
                point.as_int = number
        return
    point.count = 2**53 + number if value == "large_int" else number
    point.sum = {"double": 0.1, "negative": -1.5}.get(value, 3.0) * number
    match point:
        case pb.HistogramDataPoint():
            point.bucket_counts.extend([0, number, 0])
            point.explicit_bounds.extend([0.5, 10])
            point.min, point.max = 0.0, 2.5
        case pb.ExponentialHistogramDataPoint():
            point.scale, point.zero_count, point.zero_threshold = -2, 1, 0.25
            point.positive.offset = -3
            point.positive.bucket_counts.extend([1, 0, 300])
            point.max = 2.5
        case pb.SummaryDataPoint():
            point.quantile_values.add(quantile=0.5, value=1.5)
        case _:
            raise AssertionError(kind)


def spans_of(case: Case, tenant: str) -> Request:
    request = spans_request([{"tenant.id": tenant, "metering.quantity": "1.5"}], name="work")
    span = request.resource_spans[0].scope_spans[0].spans[0]
    # Of its own in each case: a span counts once.
    number = CASES.index(case) + 1
    span.trace_id, span.span_id = number.to_bytes(16, "big"), number.to_bytes(8, "big")
    span.parent_span_id = b"\xab" * 8
    span.status.code, span.status.message = 2, "it failed"  # type: ignore[assignment]  # a number
    span.events.add(name="e", time_unix_nano=NOON, attributes=key_values({"x": 1}))
    span.links.add(trace_id=b"\1" * 16, span_id=b"\2" * 8)
    if case["time"] == "zero":
        span.end_time_unix_nano = 0
    if case["attribute"] != "none":
        span.attributes.append(KeyValue(key="a", value=VALUES[case["attribute"]]))
    return request


def logs_of(case: Case, tenant: str) -> Request:
    request = logs_request([{"tenant.id": tenant, "metering.quantity": "2"}], event_name="work")
    record = request.resource_logs[0].scope_logs[0].log_records[0]
    record.severity_number, record.severity_text = 9, "INFO"  # type: ignore[assignment]  # a number
    record.observed_time_unix_nano = NOON + 5
    record.trace_id, record.span_id, record.flags = b"\3" * 16, b"\4" * 8, 1
    if case["time"] == "zero":
        record.time_unix_nano = 1  # before 2000: set aside
    if case["attribute"] != "none":
        record.body.CopyFrom(VALUES[case["attribute"]])
        record.attributes.append(KeyValue(key="a", value=VALUES[case["attribute"]]))
    return request


SIGNALS: dict[str, Callable[[Case, str], Request]] = {
    "m": metrics_of,
    "s": spans_of,
    "l": logs_of,
}

Rows = dict[str, list[str]]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rows]:
    """What was stored of every tenant, without what has to differ."""
    folder = tmp_path_factory.mktemp("same_rows")
    meters = folder / "meters.yaml"
    meters.write_text(METERS)
    up = Up(folder / "data", f"--meters={meters}")
    up.start()
    try:
        for number, case in enumerate(CASES):
            for letter, make in SIGNALS.items():
                for transport in TRANSPORTS:
                    request = make(case, tenant_of(letter, number, transport))
                    answer = send(up, transport, request, compression=case["compression"])
                    assert answer.code == OK, (case, transport, answer)
        assert up.stop() == 0
    finally:
        if up.is_running:
            up.kill()
    store = Store(f"chdb://{(folder / 'data' / 'clickhouse').resolve()}")
    try:
        yield {**_read(store, tables.EVENTS), **_read(store, tables.QUARANTINE)}
    finally:
        store.close()


def tenant_of(letter: str, number: int, transport: str) -> str:
    return f"{letter}{number:03d}{TRANSPORTS.index(transport)}"


def _read(store: Store, table: str) -> Rows:
    if table == tables.EVENTS:
        columns = (
            "meter, quantity, unique_key, timestamp, start_time, dimensions, attributes, "
            "service_name, signal, trace_id, span_id"
        )
    else:
        columns = "reason, detail, signal, name, timestamp, attributes, service_name, hex(payload), key_id"
    found: Rows = {}
    for tenant, *row in store.query(f"SELECT tenant_id, {columns} FROM {table}"):
        of_case = f"{table} {tenant}"
        # Each tenant has as many letters, so that also the sizes in a payload are the same.
        shown = repr(row).replace(tenant, "TENANT").replace(tenant.encode().hex().upper(), "TENANT")
        found.setdefault(of_case, []).append(shown)
    return {key: sorted(shown) for key, shown in found.items()}


def test_every_pair_of_options_occurs_in_a_case() -> None:
    for (first, a_values), (second, b_values) in combinations(OPTIONS.items(), 2):
        found = {(case[first], case[second]) for case in CASES}
        assert found == {(a, b) for a in a_values for b in b_values}
    assert len(CASES) < 100


@pytest.mark.parametrize("letter", SIGNALS)
@pytest.mark.parametrize("number", range(len(CASES)))
def test_every_transport_stores_the_same_rows(rows: Rows, number: int, letter: str) -> None:
    for table in (tables.EVENTS, tables.QUARANTINE):
        of_transport = [
            rows.get(f"{table} {tenant_of(letter, number, transport)}", [])
            for transport in TRANSPORTS
        ]
        assert of_transport[1] == of_transport[0], "protobuf over HTTP, and gRPC"
        assert of_transport[2] == of_transport[0], "JSON, and gRPC"


def test_the_cases_are_stored_as_usage_and_set_aside(rows: Rows) -> None:
    kinds = {(key.split()[0], key.split()[1][0]) for key in rows}

    assert kinds == {
        (table, letter) for table in (tables.EVENTS, tables.QUARANTINE) for letter in SIGNALS
    }
