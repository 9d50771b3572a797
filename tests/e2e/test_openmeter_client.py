"""The published Python client of OpenMeter works unchanged, sync and async, against `otel-metering up`."""

import asyncio
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from corehttp.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
)
from openmeter import Client
from openmeter.aio import Client as AsyncClient
from openmeter.models import Event, MeterCreate, MeterQueryRequest, MeterUpdate, WindowSize

from tests.e2e.up import KEY, Up
from tests.waiting import eventually

DAY = datetime(2026, 3, 1, tzinfo=UTC)
NEXT_DAY = DAY + timedelta(days=1)

_numbers = itertools.count()


@pytest.fixture(scope="module")
def client(up: Up) -> Iterator[Client]:
    with Client(endpoint=f"http://{up.api}", token=KEY) as made:
        yield made


def event(
    kind: str, subject: str, data: dict[str, Any] | None, hours: float = 0, **more: Any
) -> Event:
    given: dict[str, Any] = {
        "id": f"event-{next(_numbers)}",
        "source": "tests",
        "specversion": "1.0",
        "type": kind,
        "subject": subject,
        "time": DAY + timedelta(hours=hours),
        "data": data,
        **more,
    }
    return Event(**given)


def make(client: Client, slug: str, aggregation: str = "SUM", **more: Any) -> None:
    value = {} if aggregation == "COUNT" else {"value_property": "$.tokens"}
    more.setdefault("event_type", slug)
    client.meters.create(
        MeterCreate(
            slug=slug,
            aggregation=aggregation,
            **{**value, **more},
        )
    )


def rows(client: Client, slug: str, **query: Any) -> list[tuple[Any, ...]]:
    found = client.meters.query_json(slug, from_parameter=DAY, to=NEXT_DAY, **query)
    return [
        (row.window_start.hour, row.subject, dict(row.group_by), row.value) for row in found.data
    ]


def await_rows(client: Client, slug: str, expected: list[tuple[Any, ...]], **query: Any) -> None:
    eventually(lambda: rows(client, slug, **query), lambda found: found == expected)


def test_a_meter_is_made_found_changed_and_deleted(client: Client) -> None:
    made = client.meters.create(
        MeterCreate(
            slug="life",
            event_type="prompt",
            aggregation="SUM",
            value_property="$.tokens",
            group_by={"model": "$.model"},
            description="tokens",
        )
    )
    by_slug, by_id = client.meters.get("life"), client.meters.get(made.id)
    changed = client.meters.update(
        "life", MeterUpdate(name="Life", group_by={"model": "$.model", "kind": "$['a.b']"})
    )
    listed = {meter.slug: meter for meter in client.meters.list(page_size=1000)}
    client.meters.delete("life")

    assert made.slug == "life"
    assert (made.event_type, made.aggregation, made.value_property) == ("prompt", "SUM", "$.tokens")
    assert made.group_by == {"model": "$.model"}
    assert by_slug == by_id == made
    assert (changed.name, changed.description) == ("Life", "tokens")
    assert listed["life"].group_by == {"model": "$.model", "kind": "$['a.b']"}
    with pytest.raises(ResourceNotFoundError):
        client.meters.get("life")
    assert "life" not in {meter.slug for meter in client.meters.list(page_size=1000)}
    assert "life" in {meter.slug for meter in client.meters.list(include_deleted=True)}


def test_meters_of_the_file_are_listed_and_cannot_be_made_or_changed(client: Client) -> None:
    slug = "http.requests"

    assert client.meters.get(slug).aggregation == "COUNT"
    with pytest.raises(ResourceExistsError):
        make(client, slug)
    with pytest.raises(ResourceExistsError):
        client.meters.delete(slug)


def test_a_slug_is_made_once(client: Client) -> None:
    make(client, "once")

    with pytest.raises(ResourceExistsError):
        make(client, "once")


def test_events_are_summed_by_window_subject_and_group(client: Client) -> None:
    make(client, "sums", group_by={"model": "$.model", "region": "$['deep'].region"})
    sent = [
        event("sums", "acme", {"tokens": 1, "model": "m1", "deep": {"region": "eu"}}),
        event("sums", "acme", {"tokens": "2.5", "model": "m1", "deep": {"region": "us"}}, 1),
        event("sums", "acme", {"tokens": 0.25, "model": "m2"}, 1.5),
        event("sums", "other", {"tokens": 8, "model": "m2"}, 2),
    ]
    client.events.ingest_event(sent[0])
    client.events.ingest_events(sent[1:3])
    client.events.ingest_events_json(sent[3])
    client.events.ingest_events_json(sent)  # all of them once more: they count no second time

    await_rows(client, "sums", [(0, None, {}, 11.75)])
    assert rows(client, "sums", window_size=WindowSize.HOUR) == [
        (0, None, {}, 1),
        (1, None, {}, 2.75),
        (2, None, {}, 8),
    ]
    assert rows(client, "sums", subject=["acme"]) == [(0, "acme", {}, 3.75)]
    assert rows(client, "sums", subject=["other", "acme"], window_size=WindowSize.DAY) == [
        (0, "acme", {}, 3.75),
        (0, "other", {}, 8),
    ]
    assert rows(client, "sums", group_by=["subject", "model"]) == [
        (0, "acme", {"model": "m1"}, 3.5),
        (0, "acme", {"model": "m2"}, 0.25),
        (0, "other", {"model": "m2"}, 8),
    ]
    assert rows(client, "sums", filter_group_by={"model": "m1", "region": "us"}) == [
        (0, None, {}, 2.5)
    ]
    assert rows(client, "sums", params={"filterGroupBy[model]": "m2"}) == [(0, None, {}, 8.25)]
    assert client.meters.list_subjects("sums") == ["acme", "other"]
    assert client.meters.list_group_by_values("sums", "region", from_parameter=DAY) == ["eu", "us"]
    # Two of its classes have one name, and type checkers see the other one.
    subjects: Any = client.subjects
    assert {"acme", "other"} <= {subject.key for subject in subjects.list()}
    assert subjects.get("acme").key == "acme"


def test_a_query_may_be_a_body(client: Client) -> None:
    make(client, "bodies", group_by={"model": "$.model"})
    client.events.ingest_events(
        [event("bodies", "acme", {"tokens": n, "model": f"m{n}"}) for n in (1, 2, 4)]
    )
    request = MeterQueryRequest(
        from_property=DAY,
        to=NEXT_DAY,
        window_size="DAY",
        subject=["acme"],
        filter_group_by={"model": ["m1", "m4"]},
        group_by=["model"],
    )

    def values() -> list[Any]:
        found = client.meters.query("bodies", request)
        assert (found.from_property, found.to, found.window_size) == (DAY, NEXT_DAY, "DAY")
        return [(row.subject, row.group_by["model"], row.value) for row in found.data]

    eventually(values, lambda found: found == [("acme", "m1", 1), ("acme", "m4", 4)])


def test_a_query_may_be_answered_as_csv(client: Client) -> None:
    make(client, "tables", group_by={"model": "$.model"})
    client.events.ingest_event(event("tables", "acme", {"tokens": "0.5", "model": 'a "b", c'}))
    await_rows(client, "tables", [(0, None, {}, 0.5)])

    text = client.meters.query_csv(
        "tables", from_parameter=DAY, to=NEXT_DAY, window_size="DAY", group_by=["subject", "model"]
    )

    assert text.splitlines() == [
        "window_start,window_end,subject,model,value",
        '2026-03-01T00:00:00Z,2026-03-02T00:00:00Z,acme,"a ""b"", c",0.5',
    ]
    whole = client.meters.query_csv_post("tables").splitlines()[1]
    assert whole.startswith("2026-03-01T00:00:00Z,")  # the first month with usage
    assert whole.endswith(",,0.5")


@pytest.mark.parametrize(
    ("aggregation", "value"),
    [
        ("SUM", 10),
        ("COUNT", 4),
        ("MIN", 1),
        ("MAX", 5),
        ("AVG", 2.5),
        ("LATEST", 3),
        ("UNIQUE_COUNT", 3),
    ],
)
def test_every_aggregation_is_that_of_its_values(
    client: Client, aggregation: str, value: float
) -> None:
    slug = f"by_{aggregation}"
    make(client, slug, aggregation)
    client.events.ingest_events(
        [event(slug, "acme", {"tokens": str(n)}, i) for i, n in enumerate((1, 5, 1, 3))]
    )

    await_rows(client, slug, [(0, None, {}, value)])


def test_one_event_feeds_every_meter_of_its_type(client: Client) -> None:
    make(client, "in_tokens", value_property="$.in", event_type="fan")
    make(client, "out_tokens", value_property="$.out", event_type="fan")
    make(client, "calls", "COUNT", event_type="fan", group_by={"model": "$.model"})
    client.events.ingest_event(event("fan", "acme", {"in": 3, "out": 5, "model": "m"}, id="fanned"))

    await_rows(client, "in_tokens", [(0, None, {}, 3)])
    await_rows(client, "out_tokens", [(0, None, {}, 5)])
    await_rows(client, "calls", [(0, "acme", {"model": "m"}, 1)], group_by=["subject", "model"])
    (listed,) = client.events.list(id="fanned", from_parameter=DAY)
    assert listed.event.data == {"in": "3", "out": "5", "model": "m"}


def test_an_event_without_a_meter_is_usage_of_the_meter_named_like_its_type(
    client: Client, up: Up
) -> None:
    client.events.ingest_event(event("never.made", "acme", {"quantity": 2, "region": "eu"}))
    client.events.ingest_event(event("never.made", "acme", None))

    up.eventually_totals({("acme", "never.made", "2026-03-01T00:00:00Z"): 3}, "day")  # type: ignore[dict-item]


def test_events_are_listed_as_they_were_sent(client: Client) -> None:
    make(client, "listing", group_by={"model": "$.model"})
    sent = event(
        "listing", "lister.one", {"tokens": 7, "model": "m"}, id="listed-1", source="https://a b/%"
    )
    client.events.ingest_event(sent)
    client.events.ingest_event(event("listing", "lister.two", {"tokens": 8}, 1, id="listed-2"))

    def ids(**filters: Any) -> list[str]:
        found = client.events.list(from_parameter=DAY, to=NEXT_DAY, **filters)
        return [one.event.id for one in found]

    eventually(lambda: ids(subject="lister"), lambda found: found == ["listed-2", "listed-1"])
    assert ids(subject="lister.one") == ["listed-1"]
    assert ids(id="sted-2") == ["listed-2"]
    assert ids(subject="lister", limit=1) == ["listed-2"]
    assert ids(subject="lister", ingested_at_from=datetime(2020, 1, 1, tzinfo=UTC)) != []
    assert ids(subject="lister", ingested_at_to=datetime(2020, 1, 1, tzinfo=UTC)) == []
    (listed,) = client.events.list(subject="lister.one", from_parameter=DAY)
    assert (listed.event.id, listed.event.source) == ("listed-1", "https://a b/%")
    assert (listed.event.type, listed.event.subject) == ("listing", "lister.one")
    assert listed.event.time == sent.time
    assert listed.event.data == {"tokens": "7", "model": "m"}
    assert listed.ingested_at > DAY


def test_what_a_meter_cannot_take_is_refused_with_its_reason_and_the_rest_counts(
    client: Client,
) -> None:
    make(client, "refusing")
    good, bad = event("refusing", "acme", {"tokens": 1}), event("refusing", "acme", {"other": 1})

    with pytest.raises(HttpResponseError) as alone:
        client.events.ingest_event(bad)
    with pytest.raises(HttpResponseError) as batch:
        client.events.ingest_events([bad, good, event("refusing", "acme", {"tokens": "many"})])

    assert alone.value.status_code == batch.value.status_code == 400
    problem: Any = alone.value.model
    assert "event 0, meter refusing: data has nothing at valueProperty $.tokens" in problem.detail
    described: Any = batch.value.model
    assert described.detail.startswith("2 of 3 events were refused, the rest is stored: event 0")
    assert "event 2, meter refusing: valueProperty $.tokens: quantity 'many'" in described.detail
    await_rows(client, "refusing", [(0, None, {}, 1)])


def test_errors_are_those_that_the_client_knows(client: Client, up: Up) -> None:
    with pytest.raises(ResourceNotFoundError) as missing:
        client.meters.query_json("no_such_meter")
    with (
        Client(endpoint=f"http://{up.api}", token="otm_wrong_" + "0" * 64) as stranger,
        pytest.raises(ClientAuthenticationError) as unknown,
    ):
        stranger.meters.list()
    with pytest.raises(ResourceNotFoundError) as no_quota:
        client.customer_entitlement.get_customer_entitlement_value("acme", "http.requests")
    with pytest.raises(HttpResponseError) as wrong:
        make(client, "wrong", value_property="$..tokens")

    assert "make it with POST /api/v1/meters" in missing.value.model.detail  # type: ignore[union-attr]
    assert unknown.value.status_code == 401
    assert no_quota.value.status_code == 404
    assert wrong.value.status_code == 400
    assert "descendants" in wrong.value.model.detail  # type: ignore[union-attr]


def test_windows_are_of_the_time_zone(client: Client) -> None:
    make(client, "zoned")
    client.events.ingest_events(
        [event("zoned", "acme", {"tokens": 1}, hour) for hour in (18.2, 18.3, 23)]
    )
    kathmandu = {"window_size": WindowSize.DAY, "window_time_zone": "Asia/Kathmandu"}  # UTC+05:45

    await_rows(client, "zoned", [(0, None, {}, 1), (18, None, {}, 2)], **kathmandu)


def test_the_async_client_works_as_well(up: Up, client: Client) -> None:
    async def talk() -> list[Any]:
        async with AsyncClient(endpoint=f"http://{up.api}", token=KEY) as other:
            await other.meters.create(
                MeterCreate(
                    slug="asynchronous",
                    event_type="asynchronous",
                    aggregation="SUM",
                    value_property="$.tokens",
                )
            )
            await other.events.ingest_events(
                [event("asynchronous", "acme", {"tokens": n}) for n in range(3)]
            )
            while True:
                found = await other.meters.query_json("asynchronous", subject=["acme"])
                if found.data:
                    text = await other.meters.query_csv("asynchronous", from_parameter=DAY)
                    listed = await other.events.list(from_parameter=DAY, limit=100)
                    return [found.data[0].value, text.count("\n"), bool(listed)]
                await asyncio.sleep(0.05)

    assert asyncio.run(asyncio.wait_for(talk(), 30)) == [3, 2, True]
