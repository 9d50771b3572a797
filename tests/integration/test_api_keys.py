"""Keys over the API: rotation, rate, last use; and the audit log of every administrative change."""

from collections.abc import Iterator
from typing import Any

import pytest

from receiver.store.api_key import key_id_of
from receiver.store.keys import Scope
from tests.integration.api_harness import Api, running_api

KEYS = "/v1/meter/keys"
AUDIT = "/v1/meter/audit"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("keys")) as running:
        yield running


def audited(api: Api, **parameters: Any) -> list[dict[str, Any]]:
    """What the audit log has, newest first."""
    answer = api.client(Scope.ADMIN).get(AUDIT, params=parameters)
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()["data"]
    return rows


def test_a_key_is_rotated_with_an_overlap(api: Api) -> None:
    admin, anonymous = api.client(Scope.ADMIN), api.client()
    old = admin.post(KEYS, json={"name": "n", "scopes": ["query"], "tenant_id": "tenant_a"}).json()

    answer = admin.post(f"{KEYS}/{old['key_id']}/rotate", json={"overlap_seconds": 2})
    new = answer.json()
    again = admin.post(f"{KEYS}/{old['key_id']}/rotate", json={})

    def status(key: str) -> int:
        return anonymous.get("/v1/meter/meters", headers={"x-api-key": key}).status_code

    assert answer.status_code == 201
    assert (new["name"], new["scopes"], new["tenant_id"]) == ("n", ["query"], "tenant_a")
    assert (new["replaces"], new["rotated_to"]) == (old["key_id"], None)
    assert (again.status_code, again.json()["title"]) == (409, "It contradicts what is there")
    assert new["key_id"] in again.json()["detail"]
    assert (status(old["key"]), status(new["key"])) == (200, 200)
    api.clock.advance(2)
    api.keys.refresh()
    assert (status(old["key"]), status(new["key"])) == (401, 200)
    listed = {key["key_id"]: key for key in admin.get(KEYS).json()["data"]}
    assert listed[old["key_id"]]["rotated_to"] == new["key_id"]


@pytest.mark.parametrize("seconds", [-1, 2_592_001, "soon", 1.5])
def test_an_overlap_has_bounds(api: Api, seconds: object) -> None:
    key = api.keys.create(name="n", scopes=[Scope.QUERY])[0]

    answer = api.client(Scope.ADMIN).post(
        f"{KEYS}/{key.key_id}/rotate", json={"overlap_seconds": seconds}
    )

    assert answer.status_code == 400
    assert "overlap_seconds" in answer.json()["detail"]


def test_an_administrator_of_a_tenant_rotates_only_keys_of_it(api: Api) -> None:
    admin = api.client(Scope.ADMIN, tenant_id="tenant_b")
    own = api.keys.create(name="n", scopes=[Scope.QUERY], tenant_id="tenant_b")[0]
    for other in (
        api.keys.create(name="n", scopes=[Scope.QUERY], tenant_id="tenant_a")[0],
        api.keys.create(name="n", scopes=[Scope.QUERY])[0],
    ):
        assert admin.post(f"{KEYS}/{other.key_id}/rotate", json={}).status_code == 404

    made = admin.post(f"{KEYS}/{own.key_id}/rotate", json={})

    assert (made.status_code, made.json()["tenant_id"]) == (201, "tenant_b")


def test_beyond_its_rate_a_key_is_told_when_to_come_back(api: Api) -> None:
    made = api.client(Scope.ADMIN).post(
        KEYS, json={"name": "n", "scopes": ["query"], "rate_limit_per_second": 3}
    )
    client, headers = api.client(), {"x-api-key": made.json()["key"]}

    def ask() -> Any:
        return client.get("/v1/meter/meters", headers=headers)

    answers = [ask() for _ in range(4)]
    other = api.client(Scope.QUERY).get("/v1/meter/meters")
    api.clock.advance(1)
    later = [ask().status_code for _ in range(3)]

    assert made.json()["rate_limit_per_second"] == 3
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    refused = answers[-1]
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["content-type"] == "application/problem+json"
    assert "rate_limit_per_second of 3" in refused.json()["detail"]
    assert other.status_code == 200
    assert later == [200, 200, 200]


def test_the_last_use_of_a_key_is_shown(api: Api) -> None:
    admin = api.client(Scope.ADMIN)
    made = admin.post(KEYS, json={"name": "n", "scopes": ["query"]}).json()

    def last_used() -> Any:
        listed = {key["key_id"]: key for key in admin.get(KEYS).json()["data"]}
        return listed[made["key_id"]]["last_used_at"]

    before = last_used()
    api.client().get("/v1/meter/meters", headers={"x-api-key": made["key"]})

    assert (made["last_used_at"], before) == (None, None)
    assert last_used().startswith("2026-09-21T14:13:")


def test_keys_are_listed_page_by_page(api: Api) -> None:
    admin = api.client(Scope.ADMIN)
    for _ in range(3):
        api.keys.create(name="n", scopes=[Scope.QUERY])
    whole = [key["key_id"] for key in admin.get(KEYS).json()["data"]]

    pages: list[list[str]] = []
    more: dict[str, str] = {}
    while True:
        page = admin.get(KEYS, params={"limit": 2, **more}).json()
        pages.append([key["key_id"] for key in page["data"]])
        if page["next_cursor"] is None:
            break
        more = {"cursor": page["next_cursor"]}

    assert [one for page in pages for one in page] == whole
    assert {len(page) for page in pages[:-1]} == {2}
    assert admin.get(KEYS, params={"cursor": "x"}).status_code == 400


def test_every_change_of_a_key_is_audited(api: Api) -> None:
    admin = api.client(Scope.ADMIN)
    actor = key_id_of(admin.headers["x-api-key"])
    body = {"name": "n", "scopes": ["query", "ingest"], "tenant_id": "tenant_a"}
    made = admin.post(KEYS, json=body, headers={"x-request-id": "first"}).json()
    api.clock.advance(1)
    new = admin.post(
        f"{KEYS}/{made['key_id']}/rotate", json={}, headers={"x-request-id": "second"}
    ).json()
    api.clock.advance(1)
    admin.delete(f"{KEYS}/{new['key_id']}", headers={"x-request-id": "third"})
    admin.delete(f"{KEYS}/{new['key_id']}", headers={"x-request-id": "changes nothing"})
    api.clock.advance(1)
    admin.post("/v1/meter/tokens", json={"tenant_id": "tenant_a", "ttl_seconds": 60})
    api.clock.advance(1)
    selection = {"name": "x", "event_ids": ["00000000-0000-0000-0000-000000000001"]}
    for action in ("replay", "discard"):
        admin.post(f"/v1/meter/quarantine/{action}", json={**selection, "dry_run": True})
        admin.post(f"/v1/meter/quarantine/{action}", json={**selection, "note": "why"})
        api.clock.advance(1)
    api.keys.refresh()

    rows = audited(api, actor=actor)[::-1]

    assert [(row["action"], row["target"], row["tenant_id"]) for row in rows] == [
        ("key.create", made["key_id"], "tenant_a"),
        ("key.rotate", made["key_id"], "tenant_a"),
        ("key.revoke", new["key_id"], "tenant_a"),
        ("token.create", actor, "tenant_a"),
        ("quarantine.replay", "quarantine", None),
        ("quarantine.discard", "quarantine", None),
    ]
    assert [row["request_id"] for row in rows[:3]] == ["first", "second", "third"]
    assert {row["key_id"] for row in rows} == {actor}
    assert rows[0]["details"] == {"name": "n", "scopes": "ingest, query"}
    assert rows[1]["details"]["rotated_to"] == new["key_id"]
    assert rows[4]["details"] == {"name": "x", "event_ids": "1", "note": "why"}


def test_a_change_that_cannot_be_audited_is_not_made(api: Api) -> None:
    admin = api.client(Scope.ADMIN)
    key = api.keys.create(name="n", scopes=[Scope.QUERY])[0]
    before = api.keys.list()
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", KEYS, {"json": {"name": "n", "scopes": ["query"]}}),
        ("POST", f"{KEYS}/{key.key_id}/rotate", {"json": {}}),
        ("DELETE", f"{KEYS}/{key.key_id}", {}),
        ("POST", "/v1/meter/tokens", {"json": {"tenant_id": "tenant_a", "ttl_seconds": 60}}),
        ("POST", "/v1/meter/quarantine/replay", {"json": {}}),
        ("POST", "/v1/meter/quarantine/discard", {"json": {"name": "x"}}),
    ]

    api.store.execute("RENAME TABLE metering.audit_log TO metering.elsewhere")
    try:
        statuses = [admin.request(method, path, **more).status_code for method, path, more in calls]
    finally:
        api.store.execute("RENAME TABLE metering.elsewhere TO metering.audit_log")

    assert statuses == [500] * 6
    api.keys.refresh()
    assert api.keys.list() == before
    assert [admin.request(method, path, **more).is_success for method, path, more in calls] == (
        [True] * 6
    )


def test_an_administrator_of_a_tenant_sees_the_audit_of_that_tenant_alone(api: Api) -> None:
    admin = api.client(Scope.ADMIN)
    for tenant_id in ("tenant_c", "tenant_d", None):
        admin.post(KEYS, json={"name": "n", "scopes": ["query"], "tenant_id": tenant_id})
    bound = api.client(Scope.ADMIN, tenant_id="tenant_c")

    assert {row["tenant_id"] for row in bound.get(AUDIT).json()["data"]} == {"tenant_c"}
    assert bound.get(AUDIT, params={"tenant_id": "tenant_d"}).status_code == 403


def test_the_audit_is_filtered_and_read_page_by_page(api: Api) -> None:
    admin = api.client(Scope.ADMIN)
    target = admin.post(KEYS, json={"name": "n", "scopes": ["query"]}).json()["key_id"]
    admin.delete(f"{KEYS}/{target}")
    api.clock.advance(1)
    api.keys.refresh()

    assert {row["action"] for row in audited(api, target=target)} == {"key.create", "key.revoke"}
    assert [row["target"] for row in audited(api, target=target, action="key.revoke")] == [target]
    assert audited(api, target=target, to="2026-01-01") == []
    assert audited(api, actor="nobody") == []

    whole = audited(api, limit=1000)
    pages: list[dict[str, Any]] = []
    more: dict[str, str] = {}
    while True:
        # What happens between two pages moves nothing.
        admin.post(KEYS, json={"name": "later", "scopes": ["query"]})
        page = admin.get(AUDIT, params={"limit": 3, **more}).json()
        pages += page["data"]
        if page["next_cursor"] is None:
            break
        more = {"cursor": page["next_cursor"]}
    assert [row for row in pages if row["details"].get("name") != "later"] == whole
