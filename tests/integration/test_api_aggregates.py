"""Every answer about usage equals what a few lines of Python make of the raw events, to the last digit."""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from receiver.store.keys import Scope
from tests.integration.api_harness import Api, running_api

SECOND = 1_000_000_000
EXACT = ["sum", "count", "min", "max", "avg", "latest", "unique_count"]
WINDOWS = ["minute", "hour", "day", "month", "total"]
# Around a month's end, a day's, an hour's and a minute's, and somewhere in between.
CORNERS = [
    int(datetime.fromisoformat(text).timestamp()) * SECOND
    for text in (
        "2026-01-31T23:59:59Z",
        "2026-02-01T00:00:00Z",
        "2026-02-01T01:00:00Z",
        "2026-02-01T00:01:00Z",
        "2026-02-03T00:00:00Z",
        "2026-02-17T13:37:11Z",
        "2026-03-01T00:00:00Z",
    )
]
_numbers = itertools.count()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("aggregates")) as running:
        yield running


@pytest.fixture(scope="module")
def reader(api: Api) -> httpx.Client:
    return api.client(Scope.QUERY)


@dataclass(frozen=True)
class Question:
    start: int
    end: int
    window: str
    aggregation: str
    tenant_id: str | None
    group_by: tuple[str, ...]
    filters: dict[str, list[str]]


def bucket(ns: int, window: str) -> datetime:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=ns // SECOND)
    fields = {"minute": 5, "hour": 4, "day": 3, "month": 2}[window]
    return datetime(*(list(at.timetuple()[:fields]) + [1] * (3 - fields)), tzinfo=UTC)  # type: ignore[misc,arg-type]


def bounds(ns: int, asked: Question) -> tuple[int, int]:
    if asked.window == "total":
        return asked.start, asked.end
    start = bucket(ns, asked.window)
    days = timedelta(days=32) if asked.window == "month" else timedelta(**{asked.window + "s": 1})
    end = start + days
    if asked.window == "month":
        end = end.replace(day=1)
    return (
        max(int(start.timestamp()) * SECOND, asked.start),
        min(int(end.timestamp()) * SECOND, asked.end),
    )


def shown(value: Decimal | int) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def instant(ns: int) -> str:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=ns // SECOND)
    fraction = f".{ns % SECOND:09d}".rstrip("0") if ns % SECOND else ""
    return f"{at:%Y-%m-%dT%H:%M:%S}{fraction}Z"


def aggregated(events: Sequence[dict[str, Any]], aggregation: str) -> str:
    quantities = [event["quantity"] for event in events]
    if aggregation == "avg":
        nanos = round(Fraction(sum(map(Fraction, quantities))) * 10**9 / len(quantities))
        whole, rest = divmod(abs(nanos), 10**9)
        return ("-" if nanos < 0 else "") + f"{whole}.{rest:09d}".rstrip("0").rstrip(".")
    if aggregation == "sum":
        nanos = sum(int(Fraction(quantity) * 10**9) for quantity in quantities)
        whole, rest = divmod(abs(nanos), 10**9)
        return ("-" if nanos < 0 else "") + f"{whole}.{rest:09d}".rstrip("0").rstrip(".")
    if aggregation == "latest":
        # ClickHouse orders UUIDs by their second half first.
        newest = max(
            events, key=lambda e: (e["timestamp"], e["event_id"].int % 2**64, e["event_id"].int)
        )
        return shown(newest["quantity"])
    if aggregation == "unique_count":
        return str(len({event["unique_key"] for event in events} - {""}))
    return {
        "count": str(len(events)),
        "min": shown(min(quantities)),
        "max": shown(max(quantities)),
    }[aggregation]


def oracle(events: Sequence[dict[str, Any]], asked: Question) -> list[dict[str, Any]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        dimensions = event["dimensions"]
        if (
            asked.start <= event["timestamp"] < asked.end
            and asked.tenant_id in {None, event["tenant_id"]}
            and all(dimensions.get(name, "") in values for name, values in asked.filters.items())
        ):
            names = [
                event["tenant_id"] if name == "tenant_id" else dimensions.get(name, "")
                for name in asked.group_by
            ]
            groups[(*bounds(event["timestamp"], asked), *names)].append(event)
    answer = []
    for (start, end, *names), found in sorted(groups.items()):
        by = dict(zip(asked.group_by, names, strict=True))
        tenant_id = by.pop("tenant_id", asked.tenant_id)
        row = {
            "window_start": instant(start),
            "window_end": instant(end),
            "dimensions": by,
            "value": aggregated(found, asked.aggregation),
        }
        answer.append(row if tenant_id is None else {**row, "tenant_id": tenant_id})
    return answer


def ask(reader: httpx.Client, meter: str, asked: Question) -> dict[str, Any]:
    parameters: list[tuple[str, str]] = [
        ("meter", meter),
        ("from", instant(asked.start)),
        ("to", instant(asked.end)),
        ("window", asked.window),
        ("aggregation", asked.aggregation),
        *(("group_by", name) for name in asked.group_by),
        *((f"filter[{k}]", value) for k, values in asked.filters.items() for value in values),
        *([("tenant_id", asked.tenant_id)] if asked.tenant_id else []),
    ]
    response = reader.get("/v1/meter/aggregates", params=parameters)  # type: ignore[arg-type]  # a list is fine
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


moments = st.one_of(
    st.sampled_from(CORNERS),
    st.builds(
        lambda corner, offset: corner + offset,
        st.sampled_from(CORNERS),
        st.integers(-120 * SECOND, 120 * SECOND) | st.sampled_from([-1, 1, -SECOND, 60 * SECOND]),
    ),
    st.integers(CORNERS[0] - 40 * 86_400 * SECOND, CORNERS[-1] + 40 * 86_400 * SECOND),
)
texts = st.sampled_from(["", "eu", "us", "it's \\ \t\n{x:String} ü"])
events = st.fixed_dictionaries(
    {
        "event_id": st.uuids(),
        "tenant_id": st.sampled_from(["tenant_a", "tenant_b"]),
        "quantity": st.decimals(
            -(2**63), 2**63 - 1, places=9, allow_nan=False, allow_infinity=False
        )
        | st.sampled_from([Decimal(1), Decimal("0.1"), Decimal("-0.000000001")]),
        "timestamp": moments,
        "unique_key": texts,
        "dimensions": st.dictionaries(st.sampled_from(["region", "o'dd \\"]), texts, max_size=2),
    }
)
questions = st.builds(
    lambda edges, **others: Question(start=edges[0], end=edges[1], **others),
    edges=st.lists(moments, min_size=2, max_size=2, unique=True).map(sorted),
    window=st.sampled_from(WINDOWS),
    aggregation=st.sampled_from(EXACT),
    tenant_id=st.sampled_from([None, "tenant_a"]),
    group_by=st.lists(
        st.sampled_from(["tenant_id", "region", "o'dd \\"]), unique=True, max_size=3
    ).map(tuple),
    filters=st.dictionaries(
        st.sampled_from(["region", "o'dd \\"]), st.lists(texts, min_size=1, max_size=2), max_size=2
    ),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    first=st.lists(events, min_size=1, max_size=30),
    second=st.lists(events, max_size=10),
    asked=st.lists(questions, min_size=8, max_size=8),
)
def test_every_answer_equals_the_oracle(
    api: Api,
    reader: httpx.Client,
    first: list[dict[str, Any]],
    second: list[dict[str, Any]],
    asked: list[Question],
) -> None:
    meter = f"meter.{next(_numbers)}"
    for block in filter(None, (first, second)):
        api.insert([{**event, "meter": meter} for event in block])

    answers = [ask(reader, meter, question)["data"] for question in asked]

    assert answers == [oracle(first + second, question) for question in asked]


@pytest.mark.parametrize(
    ("window", "start", "end", "table"),
    [
        ("total", "2026-01-01", "2026-03-01", "metering.usage_month"),
        ("day", "2026-01-01", "2026-03-01", "metering.usage_day"),
        ("hour", "2026-01-01", "2026-03-01", "metering.usage_hour"),
        ("total", "2026-01-02", "2026-01-09", "metering.usage_day"),
        ("total", "2026-01-02T05:00:00Z", "2026-01-02T07:00:00Z", "metering.usage_hour"),
        ("total", "2026-01-02T05:07:00Z", "2026-01-02T05:09:00Z", "metering.usage_minute"),
        ("total", "2026-01-02T05:07:00.5Z", "2026-01-02T05:08:00Z", "metering.events"),
    ],
)
def test_the_coarsest_table_that_answers_exactly_is_read(
    reader: httpx.Client, window: str, start: str, end: str, table: str
) -> None:
    parameters = {"meter": "api.calls", "window": window, "from": start, "to": end}

    answer = reader.get("/v1/meter/aggregates", params=parameters).json()

    assert answer["table"] == table


@pytest.mark.parametrize(("percentile", "low", "high"), [("p50", 480, 520), ("p99", 980, 1000)])
def test_a_percentile_merges_rollups_and_edges(
    api: Api, reader: httpx.Client, percentile: str, low: int, high: int
) -> None:
    start = CORNERS[0]
    rows = [
        {
            "event_id": UUID(int=i),
            "tenant_id": "tenant_p",
            "meter": "latency",
            "quantity": i,
            "timestamp": start + (i * 7919 % 1000) * 60 * SECOND,
        }
        for i in range(1000)
    ]
    api.insert(rows)
    question = Question(start - 1, start + 10**15, "total", percentile, "tenant_p", (), {})

    value = Decimal(ask(reader, "latency", question)["data"][0]["value"])

    assert low <= value <= high


def test_a_percentile_of_one_event_is_its_quantity(api: Api, reader: httpx.Client) -> None:
    row = {"event_id": UUID(int=1), "tenant_id": "tenant_q", "meter": "latency2", "quantity": "0.1"}
    api.insert([{**row, "timestamp": CORNERS[0]}])
    question = Question(CORNERS[0], CORNERS[1], "total", "p95", "tenant_q", (), {})

    answer = ask(reader, "latency2", question)

    assert answer["data"][0]["value"] == "0.1"


def test_the_definition_of_the_meter_decides_what_is_not_asked(
    api: Api, reader: httpx.Client
) -> None:
    at = api.clock.ns - SECOND
    rows = [{"event_id": UUID(int=i), "tenant_id": "tenant_d", "quantity": 7} for i in range(3)]
    api.insert([{**row, "meter": "requests", "timestamp": at} for row in rows])

    answer = reader.get("/v1/meter/aggregates", params={"meter": "requests"}).json()

    assert (answer["aggregation"], answer["window"], answer["unit"]) == ("count", "total", "")
    assert [row["value"] for row in answer["data"]] == ["3"]


def test_a_range_without_events_has_no_rows(reader: httpx.Client) -> None:
    answer = reader.get("/v1/meter/aggregates", params={"meter": "never.seen"}).json()

    assert answer["data"] == []


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({}, "meter"),
        ({"meter": "a b"}, "rename it"),
        ({"meter": "api.calls", "group_by": "color"}, "plan, region"),
        ({"meter": "requests", "filter[color]": "red"}, "its dimensions: none"),
        ({"meter": "api.calls", "tenant": "tenant_a"}, "'tenant' is unknown"),
        ({"meter": "api.calls", "window": "week"}, "'minute', 'hour'"),
        ({"meter": "api.calls", "aggregation": "median"}, "'sum', 'count'"),
        ({"meter": "api.calls", "from": "yesterday"}, "RFC 3339"),
        ({"meter": "api.calls", "from": "2026-01-02", "to": "2026-01-02"}, "is empty"),
        ({"meter": ["a", "b"]}, "given twice"),
    ],
)
def test_a_request_that_cannot_be_answered_says_why(
    reader: httpx.Client, parameters: dict[str, Any], said: str
) -> None:
    response = reader.get("/v1/meter/aggregates", params=parameters)

    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"
    assert said in response.json()["detail"]


def test_an_answer_beyond_the_limit_is_refused_not_cut(api: Api, reader: httpx.Client) -> None:
    # Straight into one rollup: 100,001 groups through all views would take a quarter of a minute.
    api.store.execute(
        "INSERT INTO metering.usage_month (tenant_id, meter, window_start, dimensions, quantity_sum) "
        "SELECT 'tenant_l', 'many', toDateTime('2026-01-01', 'UTC'), map('n', toString(number)), 1 "
        "FROM numbers(100001)"
    )
    parameters = {"meter": "many", "from": "2026-01-01", "to": "2026-02-01", "group_by": "n"}

    response = reader.get("/v1/meter/aggregates", params=parameters)

    assert response.status_code == 413
    assert "100000 rows" in response.json()["detail"]
    assert reader.get("/v1/meter/aggregates", params={**parameters, "filter[n]": "7"}).json()[
        "data"
    ] == [
        {
            "window_start": "2026-01-01T00:00:00Z",
            "window_end": "2026-02-01T00:00:00Z",
            "dimensions": {"n": "7"},
            "value": "1",
        }
    ]


def test_meters_are_those_defined_and_those_used(api: Api, reader: httpx.Client) -> None:
    at = api.clock.ns - SECOND
    api.insert(
        [{"event_id": UUID(int=1), "tenant_id": "tenant_m", "meter": "new", "timestamp": at}]
    )

    meters = reader.get("/v1/meter/meters", params={"tenant_id": "tenant_m"}).json()["data"]

    assert [(meter["slug"], meter["events"], meter["is_defined"]) for meter in meters] == [
        ("api.calls", 0, True),
        ("new", 1, False),
        ("requests", 0, True),
    ]
