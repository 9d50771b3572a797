"""Every answer about usage equals what plain Python makes of the raw events, to the last digit.

Events come late, out of order and in two blocks; some are corrected; ranges begin and end at any
nanosecond; windows are of zones and days on which clocks are changed. And what rollups answer, the events
alone answer too, to the last row.
"""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from receiver.store.keys import Scope
from tests.integration.api_harness import Api, running_api
from tests.integration.usage_oracle import (
    SECOND,
    Event,
    Question,
    answer,
    grouped,
    instant,
    percentile_bounds,
)

EXAMPLES = int(os.environ.get("METERING_TEST_EXAMPLES", "25"))
EXACT = ["sum", "count", "min", "max", "avg", "latest", "unique_count"]
WINDOWS = ["minute", "15m", "hour", "day", "week", "month", "total"]
DAY = 86_400 * SECOND
_numbers = itertools.count()

CORNERS = {
    "UTC": ["2026-01-31T23:59:59Z", "2026-02-01T00:00:00Z", "2026-02-01T00:01:00Z"],
    "Asia/Kathmandu": ["2026-01-31T18:15:00Z", "2026-02-01T00:00:00Z"],
    "Asia/Kolkata": ["2026-02-28T18:30:00Z", "2026-03-01T00:00:00Z"],
    # The clock is put forward, and back.
    "Europe/Berlin": ["2026-03-29T01:00:00Z", "2026-03-28T23:00:00Z", "2026-03-31T22:00:00Z"],
    "Europe/Paris": ["2026-10-25T01:00:00Z", "2026-10-24T22:00:00Z", "2026-10-31T23:00:00Z"],
    # By half an hour.
    "Australia/Lord_Howe": ["2026-04-04T15:00:00Z", "2026-04-04T14:00:00Z"],
    "Australia/LHI": ["2026-10-03T15:30:00Z", "2026-10-03T13:30:00Z"],
    # At one minute past midnight, to the day before.
    "America/St_Johns": ["2010-11-07T02:31:00Z", "2010-11-07T02:30:00Z", "2010-11-07T03:30:00Z"],
    # At midnight, to one o'clock.
    "America/Sao_Paulo": ["2017-10-15T03:00:00Z", "2017-10-16T02:00:00Z"],
    # A day is left out.
    "Pacific/Apia": ["2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z", "2011-12-29T10:00:00Z"],
    # 44 minutes and 30 seconds behind UTC, and then not.
    "Africa/Monrovia": ["1972-01-07T00:44:30Z", "1972-01-01T00:44:30Z"],
}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("aggregates")) as running:
        yield running


@pytest.fixture(scope="module")
def reader(api: Api) -> httpx.Client:
    return api.client(Scope.QUERY)


@dataclass(frozen=True)
class Scene:
    events: list[Event]
    late: list[Event]
    questions: list[Question]


def moments(zone: str) -> st.SearchStrategy[int]:
    corners = [int(datetime.fromisoformat(text).timestamp()) * SECOND for text in CORNERS[zone]]
    return st.one_of(
        st.sampled_from(corners),
        st.builds(
            int.__add__,
            st.sampled_from(corners),
            st.integers(-120 * SECOND, 120 * SECOND)
            | st.sampled_from([-1, 1, -SECOND, 60 * SECOND, -900 * SECOND, 3_600 * SECOND]),
        ),
        st.builds(int.__add__, st.sampled_from(corners), st.integers(-2 * DAY, 2 * DAY)),
        st.builds(int.__add__, st.sampled_from(corners), st.integers(-33 * DAY, 33 * DAY)),
    ).map(lambda ns: max(ns, 0))


texts = st.sampled_from(["", "eu", "eu-1", "us", "it's \\ \t\n{x:String} ü"])
values = st.lists(texts, min_size=1, max_size=2, unique=True)
places = st.sampled_from(["region", "o'dd \\"])


def usage(zone: str) -> st.SearchStrategy[Event]:
    return st.fixed_dictionaries(
        {
            "event_id": st.uuids(),
            "tenant_id": st.sampled_from(["tenant_a", "tenant_b"]),
            "quantity": st.decimals(
                -(2**63), 2**63 - 1, places=9, allow_nan=False, allow_infinity=False
            )
            | st.sampled_from([Decimal(1), Decimal("0.1"), Decimal("-0.000000001")]),
            "observations": st.sampled_from([1, 1, 1, 7, -1, 0]),
            "timestamp": moments(zone),
            "unique_key": texts,
            "dimensions": st.dictionaries(places, texts, max_size=2),
            "attributes": st.dictionaries(st.just("color"), texts, max_size=1),
            "is_corrected": st.integers(0, 5).map(lambda i: i == 0),
        }
    )


def questions(zone: str, aggregations: list[str]) -> st.SearchStrategy[Question]:
    conditions = st.tuples(
        st.sampled_from(["filter[region]", "filter[o'dd \\]", "attribute[color]"]),
        st.sampled_from(["is", "prefix", "not"]),
    )
    return st.builds(
        lambda edges, **others: Question(start=edges[0], end=edges[1], zone=zone, **others),
        edges=st.lists(moments(zone), min_size=2, max_size=2, unique=True).map(sorted),
        window=st.sampled_from(WINDOWS),
        aggregation=st.sampled_from(aggregations),
        tenant_id=st.sampled_from([None, "tenant_a"]),
        group_by=st.lists(
            st.sampled_from(["tenant_id", "region", "o'dd \\"]), unique=True, max_size=3
        ).map(tuple),
        filters=st.just({}) | st.dictionaries(conditions, values, max_size=2),
    )


def scenes(aggregations: list[str]) -> st.SearchStrategy[Scene]:
    return st.sampled_from(sorted(CORNERS)).flatmap(
        lambda zone: st.builds(
            Scene,
            events=st.lists(usage(zone), min_size=1, max_size=30),
            late=st.lists(usage(zone), max_size=10),
            questions=st.lists(questions(zone, aggregations), min_size=12, max_size=12),
        )
    )


def stored(api: Api, scene: Scene) -> tuple[str, list[Event]]:
    """A new meter that has the events of a scene, and those that it should count."""
    meter = f"meter.{next(_numbers)}"
    for block in filter(None, (scene.events, scene.late)):
        api.insert([{**event, "meter": meter} for event in block])
    events = [*scene.events, *scene.late]
    api.correct([{**event, "meter": meter} for event in events if event["is_corrected"]])
    return meter, events


def ask(reader: httpx.Client, meter: str, asked: Question, source: str = "auto") -> dict[str, Any]:
    parameters: list[tuple[str, Any]] = [
        ("meter", meter),
        ("from", instant(asked.start)),
        ("to", instant(asked.end)),
        ("window", asked.window),
        ("timezone", asked.zone),
        ("aggregation", asked.aggregation),
        ("source", source),
        *(("group_by", name) for name in asked.group_by),
        *(
            (name if operator == "is" else f"{name}[{operator}]", value)
            for (name, operator), given in asked.filters.items()
            for value in given
        ),
        *([("tenant_id", asked.tenant_id)] if asked.tenant_id else []),
        *([("fill", "zero"), ("limit", "100000")] if asked.is_filled else []),
    ]
    response = reader.get("/v1/meter/aggregates", params=parameters)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


suite = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@suite
@given(scene=scenes(EXACT))
def test_every_answer_equals_the_oracle_with_and_without_rollups(
    api: Api, reader: httpx.Client, scene: Scene
) -> None:
    meter, events = stored(api, scene)
    expected = [answer(events, question) for question in scene.questions]

    from_rollups = [ask(reader, meter, question)["data"] for question in scene.questions]
    from_events = [ask(reader, meter, question, "events") for question in scene.questions]

    assert from_rollups == expected
    assert [found["data"] for found in from_events] == expected
    assert {found["table"] for found in from_events} == {"metering.events"}


@settings(suite, max_examples=max(EXAMPLES // 4, 1))
@given(scene=scenes(["p50", "p90", "p95", "p99"]))
def test_percentiles_of_few_are_the_same_with_and_without_rollups(
    api: Api, reader: httpx.Client, scene: Scene
) -> None:
    # A digest of under a hundred measurements joins none of them (at 1 % precision none may be joined), so
    # its answer does not depend on how they were spread over rows.
    meter, events = stored(api, scene)

    for question in scene.questions:
        found = ask(reader, meter, question)["data"]

        assert found == ask(reader, meter, question, "events")["data"]
        groups = sorted(grouped(events, question).items(), key=lambda item: item[0])
        assert len(found) == len(groups)
        for row, (_, group) in zip(found, groups, strict=True):
            low, high = percentile_bounds(group, int(question.aggregation[1:]))
            assert low <= float(row["value"]) <= high


@settings(suite, max_examples=max(EXAMPLES // 4, 1))
@given(scene=scenes(EXACT))
def test_filled_windows_are_those_of_the_calendar(
    api: Api, reader: httpx.Client, scene: Scene
) -> None:
    meter, events = stored(api, scene)

    for question in scene.questions[:6]:
        end = min(
            question.end,
            question.start + (2 * 3_600 * SECOND if question.window == "minute" else 3 * DAY),
        )
        filled = Question(**{**vars(question), "end": end, "is_filled": True})

        assert ask(reader, meter, filled)["data"] == answer(events, filled)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu"])
def test_a_year_is_cut_up_right_to_its_last_window(
    api: Api, reader: httpx.Client, zone: str
) -> None:
    start = int(datetime.fromisoformat("2025-06-15T00:00:00Z").timestamp()) * SECOND
    meter = f"year.{zone}"
    # Every seven hours and eleven minutes: at any time of the day, and of the hour.
    usage = [
        {
            "event_id": UUID(int=i + 1),
            "tenant_id": "t",
            "quantity": Decimal(i + 1),
            "observations": 1,
            "timestamp": start + i * 25_860 * SECOND,
            "unique_key": "",
            "dimensions": {},
            "attributes": {},
            "is_corrected": False,
        }
        for i in range(1_300)
    ]
    api.insert([{**event, "meter": meter} for event in usage])

    for window in ("15m", "hour", "day", "week", "month"):
        # 15 minutes of a year are fewer than the limit of windows.
        asked = Question(start=start, end=start + 395 * DAY, window=window, zone=zone)
        rows = pages(reader, meter, asked)

        assert rows == answer(usage, asked), window


def pages(reader: httpx.Client, meter: str, asked: Question) -> list[dict[str, Any]]:
    parameters = {
        "meter": meter,
        "from": instant(asked.start),
        "to": instant(asked.end),
        "window": asked.window,
        "timezone": asked.zone,
    }
    answer = reader.get("/v1/meter/aggregates", params=parameters).json()
    rows: list[dict[str, Any]] = answer["data"]
    while answer["next_cursor"]:
        more = {**parameters, "cursor": answer["next_cursor"]}
        answer = reader.get("/v1/meter/aggregates", params=more).json()
        rows += answer["data"]
    return rows
