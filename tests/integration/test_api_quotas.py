"""Quotas, checks and reservations over HTTP: shapes, errors, tenants."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx
import pytest
from pydantic import BaseModel

from query_api.quota_schemas import (
    CheckAnswer,
    ChecksAnswer,
    Quota,
    QuotasAnswer,
    ReservationAnswer,
    StatusAnswer,
)
from receiver.store.keys import Scope
from tests.integration.api_harness import Api, running_api

QUOTAS, VALIDATE = "/v1/meter/quotas", "/v1/meter/validate"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("quotas")) as running:
        yield running


@pytest.fixture
def client(api: Api) -> httpx.Client:
    found = api.client(Scope.ADMIN)
    for quota in found.get(QUOTAS).json()["data"]:
        found.delete(f"{QUOTAS}/{quota['quota_id']}")
    return found


def put(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"meter": "api.calls", "limit": "10", "period": "lifetime", **fields}
    response = client.put(QUOTAS, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def ask(client: httpx.Client, tenant: str, quantity: object = "1", **fields: Any) -> Any:
    body = {"tenant_id": tenant, "meter": "api.calls", "quantity": quantity, **fields}
    response = client.post(VALIDATE, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def pass_time(api: Api, seconds: float) -> None:
    api.clock.advance(seconds)
    api.keys.refresh()


def assert_exactly(model: type[BaseModel], answer: Any) -> None:
    """The answer is one of `model`, and has no field that the document does not know."""
    model.model_validate(answer, extra="forbid")


def test_answers_are_those_of_the_document(api: Api, client: httpx.Client) -> None:
    quota = put(client, tenant_id="shape", filter={"region": ["eu"]}, thresholds=[100, 50, 50])
    in_eu = {"dimensions": {"region": "eu"}}
    held = ask(client, "shape", reserve=True, reservation_id="shape-1", **in_eu)

    assert_exactly(Quota, quota)
    assert quota["thresholds"] == [50, 100]
    assert_exactly(QuotasAnswer, client.get(QUOTAS).json())
    assert_exactly(StatusAnswer, client.get(f"{QUOTAS}/status").json())
    assert_exactly(CheckAnswer, held)
    assert_exactly(CheckAnswer, ask(client, "nobody"))
    both = client.post(VALIDATE, json=[{"tenant_id": "shape", "meter": "m"}] * 2).json()
    assert_exactly(ChecksAnswer, both)
    assert len(both["data"]) == 2
    assert_exactly(ReservationAnswer, client.get("/v1/meter/reservations/shape-1").json())


def test_a_tenants_own_quota_stands_in_place_of_the_default(client: httpx.Client) -> None:
    default = put(client, limit="5")
    own = put(client, limit="7", tenant_id="special")

    assert ask(client, "special", "6")["quota_id"] == own["quota_id"]
    assert ask(client, "special", "6")["allowed"]
    other = ask(client, "common", "6")
    assert (other["allowed"], other["reason"], other["limit"]) == (False, "limit_exceeded", "5")
    assert other["quota_id"] == default["quota_id"]

    client.delete(f"{QUOTAS}/{own['quota_id']}")
    assert not ask(client, "special", "6")["allowed"]


def test_grace_is_allowed_and_said_and_soft_denies_nothing(client: httpx.Client) -> None:
    put(client, tenant_id="graceful", grace="2.5")
    put(client, tenant_id="soft", enforcement="soft")

    def answer(tenant: str, quantity: str) -> tuple[bool, str]:
        found = ask(client, tenant, quantity)
        return found["allowed"], found["reason"]

    assert answer("graceful", "10") == (True, "ok")
    assert answer("graceful", "12.5") == (True, "within_grace")
    assert answer("graceful", "12.500000001") == (False, "limit_exceeded")
    assert answer("soft", "11") == (True, "soft_limit_exceeded")


def test_the_first_quota_that_denies_is_named_else_the_one_with_least_left(
    client: httpx.Client,
) -> None:
    put(client, tenant_id="two", limit="10", period="month")
    day = put(client, tenant_id="two", limit="4", period="day")

    assert ask(client, "two", "3")["quota_id"] == day["quota_id"]
    assert not ask(client, "two", "5", reserve=True)["allowed"]
    # What was denied by one is held for none.
    assert ask(client, "two", "4")["reserved"] == "0"


def test_usage_in_the_database_counts_and_the_status_shows_it(
    api: Api, client: httpx.Client
) -> None:
    put(client, tenant_id="user", thresholds=[50, 80])
    rows = [("eu", "2.5"), ("us", "4")]
    api.insert(
        [
            {
                "event_id": UUID(int=900 + i),
                "tenant_id": "user",
                "timestamp": api.clock.ns,
                "quantity": quantity,
                "dimensions": {"region": region},
            }
            for i, (region, quantity) in enumerate(rows)
        ]
    )

    found = client.get(f"{QUOTAS}/status", params={"tenant_id": "user"}).json()["data"]

    assert [(one["used"], one["remaining"], one["percent"], one["crossed"]) for one in found] == [
        ("6.5", "3.5", "65", [50])
    ]
    assert found[0]["resets_at"] is None
    assert ask(client, "user", "3.5")["allowed"]
    assert not ask(client, "user", "3.6")["allowed"]


def test_a_commit_records_the_usage_once_and_frees_the_rest(api: Api, client: httpx.Client) -> None:
    put(client, tenant_id="committer")
    ask(client, "committer", "8", reserve=True, reservation_id="c1")
    path = "/v1/meter/reservations/c1/commit"

    answers = [client.post(path, json={"quantity": 2.5}).json() for _ in range(2)]

    assert [answer["state"] for answer in answers] == ["committed", "committed"]
    events = [one for one in api.ledger.events if one.tenant_id == "committer"]
    assert [(str(one.quantity), one.event_id) for one in events] == [
        ("2.500000000", "reservation/c1")
    ]
    assert ask(client, "committer", "10")["reserved"] == "0"


def test_units_are_free_two_seconds_after_their_time(api: Api, client: httpx.Client) -> None:
    put(client, tenant_id="late")
    ask(client, "late", "10", reserve=True, reservation_id="l1", ttl_seconds=5)
    pass_time(api, 5)
    state = client.get("/v1/meter/reservations/l1").json()["state"]
    before = ask(client, "late")["allowed"]
    extended = client.post("/v1/meter/reservations/l1/extend", json={"ttl_seconds": 5})
    pass_time(api, 2)

    assert (state, before, extended.status_code) == ("expired", False, 409)
    assert ask(client, "late", "10")["allowed"]


def test_the_same_id_of_two_tenants_must_be_told_apart(client: httpx.Client) -> None:
    for tenant in ("twin_a", "twin_b"):
        ask(client, tenant, reserve=True, reservation_id="twin")
    path = "/v1/meter/reservations/twin"

    assert client.get(path).status_code == 409
    assert client.get(path, params={"tenant_id": "twin_b"}).json()["tenant_id"] == "twin_b"


def test_a_key_of_a_tenant_reaches_its_own_alone(api: Api, client: httpx.Client) -> None:
    default, own = put(client), put(client, tenant_id="mine")
    other = put(client, tenant_id="theirs")
    ask(client, "theirs", reserve=True, reservation_id="theirs-1")
    bound = api.client(Scope.ADMIN, tenant_id="mine")

    visible = {one["quota_id"] for one in bound.get(QUOTAS).json()["data"]}

    assert visible == {default["quota_id"], own["quota_id"]}
    assert bound.get(f"{QUOTAS}/{other['quota_id']}").status_code == 404
    assert bound.delete(f"{QUOTAS}/{other['quota_id']}").status_code == 404
    assert bound.delete(f"{QUOTAS}/{default['quota_id']}").status_code == 403
    assert bound.get("/v1/meter/reservations/theirs-1").status_code == 404
    assert bound.post(VALIDATE, json={"meter": "api.calls"}).json()["allowed"]
    refused = bound.post(VALIDATE, json={"meter": "api.calls", "tenant_id": "theirs"})
    assert refused.status_code == 403
    assert put(bound)["tenant_id"] == "mine"
    statuses = bound.get(f"{QUOTAS}/status").json()["data"]
    assert {one["tenant_id"] for one in statuses} == {"mine"}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"limit": "-1"}, "limit is -1"),
        ({"limit": "1.0000000001"}, "nine|9"),
        ({"limit": "many"}, "limit is 'many'"),
        ({"limit": "NaN"}, "NaN"),
        ({"grace": "-1"}, "grace is -1"),
        ({"anchor_day": 3}, "anchor_day is 3"),
        ({"anchor_day": 32, "period": "month"}, "1 to 31"),
        ({"timezone": "Mars/Olympus"}, "Mars/Olympus"),
        ({"filter": {"colour": ["red"]}}, "plan, region"),
        ({"filter": {"region": []}}, "0 values"),
        ({"thresholds": [0]}, "thresholds has 0"),
        ({"meter": "no meter"}, "no meter"),
        ({"tenant_id": "no tenant"}, "no tenant"),
        ({"period": "decade"}, "period"),
        ({"lmit": "1"}, "lmit"),
    ],
)
def test_a_quota_that_cannot_be_is_refused_with_the_remedy(
    client: httpx.Client, fields: dict[str, Any], says: str
) -> None:
    body = {"meter": "api.calls", "limit": "10", "period": "day", **fields}

    response = client.put(QUOTAS, json=body)

    assert response.status_code == 400
    assert any(part in response.json()["detail"] for part in says.split("|"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tenant_id": None}, "tenant_id is missing"),
        ({"tenant_id": 5}, "tenant_id is not a string"),
        ({"tenant_id": "a b"}, "'a b'"),
        ({"meter": None}, "meter is missing"),
        ({"quantity": "-1"}, "below 0"),
        ({"quantity": -1}, "-1"),
        ({"quantity": "1e99"}, "1E+99"),
        ({"quantity": 10**70}, "quantity"),
        ({"quantity": 0.0000000001}, "decimal places"),
        ({"quantity": True}, "quantity is no number"),
        ({"quantity": "x"}, "'x'"),
        ({"dimensions": []}, None),
        ({"dimensions": [1]}, "dimensions is not an object"),
        ({"dimensions": {"region": 1}}, "'region'"),
        ({"reserve": "yes"}, "reserve"),
        ({"reserve": True, "quantity": 0}, "quantity is 0"),
        ({"reserve": True, "ttl_seconds": 0}, "1 to 86400"),
        ({"reserve": True, "ttl_seconds": 1.5}, "ttl_seconds is 1.5"),
        ({"reserve": True, "reservation_id": "a/b"}, "'a/b'"),
        ({"reserve": True, "reservation_id": 7}, "'7'"),
        ({"reservation_id": "a"}, "reserve is not true"),
        ({"lease": True}, "reserve is not true"),
        ({"tennant_id": "x"}, "tennant_id"),
    ],
)
def test_a_check_that_cannot_be_is_refused_with_the_remedy(
    client: httpx.Client, fields: dict[str, Any], says: str | None
) -> None:
    body = {"tenant_id": "tenant_a", "meter": "api.calls", **fields}
    response = client.post(VALIDATE, json=body)

    assert response.status_code == (200 if says is None else 400), response.text
    assert says is None or says in response.json()["detail"]
    listed = client.post(VALIDATE, json=[{"tenant_id": "a", "meter": "m"}, body])
    assert says is None or listed.json()["detail"].startswith("check 1: ")


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"5", 400), (b"[5]", 400), (b"{", 400), (b'{"a": NaN}', 400), (b"[" * 9_999, 400), (b"\xff", 400)],
)  # fmt: skip
def test_what_is_no_check_is_refused(client: httpx.Client, body: bytes, status: int) -> None:
    assert client.post(VALIDATE, content=body).status_code == status


def test_too_many_checks_are_refused(client: httpx.Client) -> None:
    response = client.post(VALIDATE, json=[{"tenant_id": "a", "meter": "m"}] * 1_001)

    assert response.status_code == 413
    assert "1000" in response.json()["detail"]


def test_pages_of_quotas_have_each_once(client: httpx.Client) -> None:
    made = {put(client, tenant_id=f"page_{i}")["quota_id"] for i in range(5)}
    found, cursor = [], None
    while True:
        page = client.get(QUOTAS, params={"limit": 2, **({"cursor": cursor} if cursor else {})})
        found += [one["quota_id"] for one in page.json()["data"]]
        cursor = page.json()["next_cursor"]
        if cursor is None:
            break

    assert found == sorted(made)
