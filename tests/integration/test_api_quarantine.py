"""Quarantine by API, on the real engine: filters, pages, resolutions, and what a replay leaves alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import httpx
import pyarrow as pa
import pytest

from query_api.services import Fate, Held, Resubmitted
from receiver.store import tables
from receiver.store.keys import Scope
from tests.integration.api_harness import Api, running_api

PATH = "/v1/meter/quarantine"
HOUR_MS = 3_600_000
UTC_MS, UTC_NS = pa.timestamp("ms", "UTC"), pa.timestamp("ns", "UTC")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("quarantine")) as running:
        yield running


@dataclass
class Through:
    """Stands for ingest: the fate of each payload, and what was sent."""

    fates: dict[bytes, Fate] = field(default_factory=dict)
    sent: list[Held] = field(default_factory=list)

    def __call__(self, items: Sequence[Held], *, is_dry: bool) -> Sequence[Resubmitted]:
        if not is_dry:
            self.sent += items
        fates = [self.fates.get(item.payload, Fate.REPLAYED) for item in items]
        return [Resubmitted(fate=fate, detail=f"it is {fate}") for fate in fates]


@pytest.fixture
def api(shared: Api) -> Iterator[Api]:
    before = shared.app.state.services
    yield shared
    shared.app.state.services = before
    for table in (tables.QUARANTINE, tables.QUARANTINE_RESOLVED):
        shared.store.execute(f"TRUNCATE TABLE {table}")


@pytest.fixture
def through(api: Api) -> Through:
    made = Through()
    api.app.state.services = replace(api.app.state.services, resubmit=made)
    return made


@pytest.fixture
def client(api: Api) -> httpx.Client:
    return api.client(Scope.ADMIN)


def put(api: Api, count: int, first: int = 0, **columns: Any) -> list[str]:
    """Items number `first` and so on, an hour apart, the last one now; returns their ids."""
    numbers = range(first, first + count)
    now_ms = api.clock.ns // 1_000_000
    api.inserts += 1
    table = {
        "event_id": pa.array([UUID(int=n).bytes for n in numbers], pa.binary(16)),
        "reason": pa.repeat(columns.get("reason", "no_meter"), count),
        "detail": pa.repeat("why", count),
        "signal": pa.repeat(columns.get("signal", "metric"), count),
        "name": pa.repeat(columns.get("name", "cost"), count),
        "tenant_id": pa.repeat(columns.get("tenant_id", "tenant_a"), count),
        # The later an item arrived, the older is its usage.
        "timestamp": pa.array([api.clock.ns - n * 1_000 for n in numbers], UTC_NS),
        "attributes": pa.array(
            [[("n", str(n))] for n in numbers], pa.map_(pa.string(), pa.string())
        ),
        "service_name": pa.repeat("shop", count),
        "payload": pa.array([payload(n) for n in numbers], pa.binary()),
        "key_id": pa.repeat(columns.get("key_id", "nobody"), count),
        "ingested_at": pa.array(
            [now_ms - 1 - (first + count - 1 - n) * HOUR_MS for n in numbers], UTC_MS
        ),
        "batch_id": pa.array([bytes(16)] * count, pa.binary(16)),
    }
    api.store.insert(tables.QUARANTINE, pa.table(table), token=f"quarantine-{api.inserts}")
    return [str(UUID(int=n)) for n in numbers]


def payload(n: int) -> bytes:
    return bytes([0, 255, n % 256, 39, 92])


def key_id(api: Api, tenant_id: str | None = None) -> str:
    return api.keys.create(name="k", scopes=[Scope.INGEST], tenant_id=tenant_id)[0].key_id


def ids(client: httpx.Client, **parameters: Any) -> list[str]:
    response = client.get(PATH, params=parameters)
    assert response.status_code == 200, response.text
    return [item["event_id"] for item in response.json()["data"]]


def post(client: httpx.Client, what: str, **body: Any) -> dict[str, Any]:
    response = client.post(f"{PATH}/{what}", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_an_item_is_shown_as_it_was_kept(api: Api, client: httpx.Client) -> None:
    (one,) = put(api, 1, 7, signal="log", key_id="k1")

    (shown,) = client.get(PATH).json()["data"]

    assert shown == {
        "event_id": one,
        "reason": "no_meter",
        "detail": "why",
        "signal": "log",
        "name": "cost",
        "tenant_id": "tenant_a",
        "timestamp": "2026-09-21T14:13:19.999993Z",
        "attributes": {"n": "7"},
        "service_name": "shop",
        "key_id": "k1",
        "ingested_at": "2026-09-21T14:13:19.999Z",
        "resolution": None,
    }


def test_pages_show_each_item_once_while_items_arrive_and_go(
    api: Api, client: httpx.Client
) -> None:
    first = put(api, 10)
    page = client.get(PATH, params={"limit": 4}).json()
    found = [item["event_id"] for item in page["data"]]
    put(api, 3, 100)
    post(client, "discard", event_ids=[first[9], first[0]])
    while page["next_cursor"]:
        page = client.get(PATH, params={"limit": 4, "cursor": page["next_cursor"]}).json()
        found += [item["event_id"] for item in page["data"]]

    assert [one for one in found if one in first] == first[:0:-1]
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("name", "value"),
    [("reason", "no_tenant"), ("tenant_id", "tenant_b"), ("signal", "span"), ("name", "it's \\ %")],
)
def test_each_filter_filters(api: Api, client: httpx.Client, name: str, value: str) -> None:
    put(api, 3)
    others = put(api, 2, 50, **{name: value})

    assert sorted(ids(client, **{name: value})) == others
    groups = client.get(f"{PATH}/summary", params={name: value}).json()["data"]
    assert [group["items"] for group in groups] == [2]
    assert post(client, "discard", **{name: value})["discarded"] == 2
    assert len(ids(client)) == 3


def test_the_range_is_that_of_arrival_and_ids_are_found_whenever_they_arrived(
    api: Api, client: httpx.Client
) -> None:
    old = put(api, 24 * 60)  # sixty days, one an hour
    assert len(ids(client, limit=1000, **{"from": "2026-09-21T10:00:00Z"})) == 5
    assert ids(client, to="2026-07-25", **{"from": "2026-07-23"})[-1:] == [old[0]]

    assert post(client, "discard", event_ids=[old[0], old[-1]])["discarded"] == 2


def test_the_summary_counts_groups(api: Api, client: httpx.Client) -> None:
    put(api, 3)
    put(api, 5, 10, reason="no_tenant", signal="span", name="GET /")
    post(client, "discard", event_ids=put(api, 1, 20))

    data = client.get(f"{PATH}/summary").json()["data"]

    counted = [(g["items"], g["reason"], g["signal"], g["name"]) for g in data]
    assert counted == [(5, "no_tenant", "span", "GET /"), (3, "no_meter", "metric", "cost")]
    assert data[0]["last_at"] == "2026-09-21T14:13:19.999Z"
    assert data[0]["first_at"] == "2026-09-21T10:13:19.999Z"


def test_a_replay_sends_what_was_kept_as_the_key_that_sent_it_oldest_usage_first(
    api: Api, through: Through, client: httpx.Client
) -> None:
    bound, free = key_id(api, "tenant_b"), key_id(api)
    api.keys.revoke(bound)
    put(api, 3, key_id=bound)
    put(api, 2, 10, key_id=free)

    answer = post(client, "replay")

    assert (answer["matched"], answer["replayed"], answer["next_cursor"]) == (5, 5, None)
    assert [item.payload for item in through.sent] == [payload(n) for n in (11, 10, 2, 1, 0)]
    assert [item.bound_tenant for item in through.sent] == [None, None, *["tenant_b"] * 3]
    assert {item.key_id for item in through.sent} == {bound, free}
    assert ids(client) == []
    assert post(client, "replay")["matched"] == 0


def test_what_is_refused_again_stays_and_what_counted_before_goes(
    api: Api, through: Through, client: httpx.Client
) -> None:
    items = put(api, 4, key_id=key_id(api))
    stranger = put(api, 1, 10)
    through.fates = {payload(1): Fate.QUARANTINED, payload(2): Fate.DUPLICATE}
    through.fates[payload(3)] = Fate.IGNORED

    answer = post(client, "replay", note="meters corrected")

    refusals = {one.pop("event_id"): one.pop("detail") for one in answer.pop("refusals")}
    assert answer == {
        "dry_run": False,
        "matched": 5,
        "replayed": 1,
        "duplicates": 1,
        "still_quarantined": 1,
        "ignored": 1,
        "unknown_key": 1,
        "next_cursor": None,
    }
    assert refusals.keys() == {items[1], items[3], *stranger}
    assert refusals[items[1]] == "it is quarantined"
    assert "unknown_key" in refusals[stranger[0]]
    assert set(ids(client)) == {items[1], items[3], *stranger}
    resolved = client.get(PATH, params={"include_resolved": True}).json()["data"]
    notes = {item["event_id"]: item["resolution"] for item in resolved if item["resolution"]}
    assert notes.keys() == {items[0], items[2]}
    assert notes[items[0]]["note"] == "meters corrected"


def test_an_event_of_the_json_api_whose_id_is_used_stays(
    api: Api, through: Through, client: httpx.Client
) -> None:
    items = put(api, 1, key_id=key_id(api), signal="event", reason="conflict")

    answer = post(client, "replay")

    assert (answer["matched"], answer["still_quarantined"]) == (1, 1)
    assert "event_id" in answer["refusals"][0]["detail"]
    assert through.sent == []
    assert ids(client, signal="event") == items


def test_a_dry_run_changes_nothing(api: Api, through: Through, client: httpx.Client) -> None:
    put(api, 3, key_id=key_id(api))

    assert post(client, "replay", dry_run=True)["replayed"] == 3
    assert post(client, "discard", dry_run=True, name="cost")["discarded"] == 3

    assert through.sent == []
    assert len(ids(client)) == 3


def test_when_the_receiver_takes_no_more_what_it_took_is_marked_and_the_rest_can_be_repeated(
    api: Api, through: Through, client: httpx.Client
) -> None:
    put(api, 5, key_id=key_id(api))
    through.fates = {payload(0): Fate.UNAVAILABLE, payload(1): Fate.UNAVAILABLE}

    response = client.post(f"{PATH}/replay", json={})

    assert response.status_code == 503
    assert len(ids(client)) == 2
    through.fates = {}
    assert post(client, "replay")["replayed"] == 2
    assert ids(client) == []


def test_many_items_are_read_in_pieces_and_a_limit_leaves_a_cursor(
    api: Api, through: Through, client: httpx.Client
) -> None:
    put(api, 700, key_id=key_id(api))

    first = post(client, "replay", limit=600)
    rest = post(client, "replay", limit=600, cursor=first["next_cursor"])

    assert (first["replayed"], rest["replayed"], rest["next_cursor"]) == (600, 100, None)
    assert len(through.sent) == 700


def test_the_cursor_leads_past_items_that_stay(
    api: Api, through: Through, client: httpx.Client
) -> None:
    put(api, 4, key_id=key_id(api))
    through.fates = {payload(n): Fate.QUARANTINED for n in (3, 2)}

    first = post(client, "replay", limit=2)
    rest = post(client, "replay", limit=2, cursor=first["next_cursor"])

    assert (first["still_quarantined"], rest["replayed"]) == (2, 2)


@pytest.mark.parametrize(
    ("what", "body", "said"),
    [
        ("discard", {}, "say which items"),
        ("discard", {"limit": 5, "note": "all"}, "say which items"),
        ("replay", {"tenant": "tenant_a"}, "tenant"),
        ("replay", {"event_ids": ["7"]}, "event_ids"),
        ("replay", {"signal": "trace"}, "signal"),
        ("replay", {"limit": 10_001}, "limit"),
        ("replay", {"cursor": "x"}, "cursor"),
    ],
)
def test_a_wrong_request_is_a_problem_and_changes_nothing(
    api: Api, through: Through, client: httpx.Client, what: str, body: dict[str, Any], said: str
) -> None:
    put(api, 2, key_id=key_id(api))

    response = client.post(f"{PATH}/{what}", json=body)

    assert response.status_code == 400
    assert said in response.json()["detail"]
    assert len(ids(client)) == 2


def test_a_wrong_parameter_is_a_problem(client: httpx.Client) -> None:
    for path in (PATH, f"{PATH}/summary"):
        response = client.get(path, params={"tenant": "tenant_a"})
        assert response.status_code == 400
        assert "tenant_id" in response.json()["detail"]


def test_without_a_receiver_nothing_is_replayed(api: Api, client: httpx.Client) -> None:
    put(api, 1, key_id=key_id(api))

    assert client.post(f"{PATH}/replay", json={}).status_code == 503
    assert len(ids(client)) == 1
