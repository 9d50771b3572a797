"""Keys, scopes and tenants on every route; problems, health and the document."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel

from otel_metering.errors import UnavailableError
from query_api.aggregates_schemas import AggregatesAnswer
from query_api.event_schemas import EventsAnswer
from query_api.schemas import (
    AdmissionAnswer,
    HealthAnswer,
    MetersAnswer,
)
from receiver.store.keys import Scope
from tests.integration.api_harness import METRICS, Api, running_api

EVENT = {"tenant_id": "tenant_a", "meter": "api.calls"}
VOID = {"reason": "wrong", "tenant_id": "tenant_a"}
QUOTA = {**EVENT, "limit": "10", "period": "day"}
NEW_KEY = {"name": "new", "scopes": ["query"], "tenant_id": "tenant_a"}
NEW_TOKEN = {"tenant_id": "tenant_a", "ttl_seconds": 60}
CLOUD_EVENT = {
    "specversion": "1.0",
    "id": "1",
    "source": "s",
    "type": "api.calls",
    "subject": "tenant_a",
}
NEW_METER = {"slug": "made", "eventType": "made", "aggregation": "COUNT"}
METER, SUBJECT, FEATURE = "{meter_id_or_slug}", "{subject_id_or_key}", "{feature_key}"
# method, path, arguments, the scope it needs, and its answer if asked about another tenant
ROUTES: list[tuple[str, str, dict[str, Any], Scope, int]] = [
    ("POST", "/v1/meter/events", {"json": EVENT}, Scope.INGEST, 202),
    ("GET", "/v1/meter/events", {"params": {"tenant_id": "tenant_a"}}, Scope.QUERY, 403),
    ("GET", "/v1/meter/events/export", {"params": {"tenant_id": "tenant_a"}}, Scope.QUERY, 403),
    ("GET", "/v1/meter/events/{event_id}", {"params": {**EVENT}}, Scope.QUERY, 404),
    ("POST", "/v1/meter/events/{event_id}/void", {"json": VOID}, Scope.ADMIN, 404),
    (
        "POST",
        "/v1/meter/events/{event_id}/correct",
        {"json": {**VOID, "quantity": "1"}},
        Scope.ADMIN,
        404,
    ),
    ("GET", "/v1/meter/corrections", {"params": {"tenant_id": "tenant_a"}}, Scope.QUERY, 403),
    ("GET", "/v1/meter/aggregates", {"params": {**EVENT}}, Scope.QUERY, 403),
    ("GET", "/v1/meter/meters", {"params": {"tenant_id": "tenant_a"}}, Scope.QUERY, 403),
    ("PUT", "/v1/meter/quotas", {"json": QUOTA}, Scope.ADMIN, 403),
    ("GET", "/v1/meter/quotas", {"params": {"tenant_id": "tenant_a"}}, Scope.QUERY, 403),
    ("GET", "/v1/meter/quotas/status", {"params": {"tenant_id": "tenant_a"}}, Scope.QUERY, 403),
    ("GET", "/v1/meter/quotas/{quota_id}", {}, Scope.QUERY, 404),
    ("DELETE", "/v1/meter/quotas/{quota_id}", {}, Scope.ADMIN, 404),
    ("POST", "/v1/meter/validate", {"json": EVENT}, Scope.VALIDATE, 403),
    ("GET", "/v1/meter/reservations/{reservation_id}", {}, Scope.VALIDATE, 404),
    (
        "POST",
        "/v1/meter/reservations/{reservation_id}/commit",
        {"json": {"quantity": "1"}},
        Scope.VALIDATE,
        404,
    ),
    (
        "POST",
        "/v1/meter/reservations/{reservation_id}/extend",
        {"json": {"ttl_seconds": 9}},
        Scope.VALIDATE,
        404,
    ),
    ("POST", "/v1/meter/reservations/{reservation_id}/release", {}, Scope.VALIDATE, 404),
    ("POST", "/v1/meter/keys", {"json": NEW_KEY}, Scope.ADMIN, 403),
    ("GET", "/v1/meter/keys", {}, Scope.ADMIN, 200),
    ("DELETE", "/v1/meter/keys/{key_id}", {}, Scope.ADMIN, 404),
    ("POST", "/v1/meter/keys/{key_id}/rotate", {}, Scope.ADMIN, 404),
    ("POST", "/v1/meter/tokens", {"json": NEW_TOKEN}, Scope.QUERY, 403),
    ("GET", "/v1/meter/audit", {"params": {"tenant_id": "tenant_a"}}, Scope.ADMIN, 403),
    ("GET", "/v1/meter/quarantine", {}, Scope.ADMIN, 403),
    ("GET", "/v1/meter/quarantine/summary", {}, Scope.ADMIN, 403),
    ("POST", "/v1/meter/quarantine/replay", {"json": {}}, Scope.ADMIN, 403),
    ("POST", "/v1/meter/quarantine/discard", {"json": {"name": "x"}}, Scope.ADMIN, 403),
    ("GET", "/metrics", {}, Scope.QUERY, 403),
    ("POST", "/api/v1/events", {"json": CLOUD_EVENT}, Scope.INGEST, 400),
    ("GET", "/api/v1/events", {"params": {"subject": "tenant_a"}}, Scope.QUERY, 200),
    ("GET", "/api/v1/meters", {}, Scope.QUERY, 200),
    ("POST", "/api/v1/meters", {"json": NEW_METER}, Scope.ADMIN, 403),
    ("GET", f"/api/v1/meters/{METER}", {}, Scope.QUERY, 404),
    ("PUT", f"/api/v1/meters/{METER}", {"json": {}}, Scope.ADMIN, 403),
    ("DELETE", f"/api/v1/meters/{METER}", {}, Scope.ADMIN, 403),
    ("GET", f"/api/v1/meters/{METER}/query", {"params": {"subject": "tenant_a"}}, Scope.QUERY, 404),
    ("POST", f"/api/v1/meters/{METER}/query", {"json": {}}, Scope.QUERY, 404),
    ("GET", f"/api/v1/meters/{METER}/subjects", {}, Scope.QUERY, 404),
    ("GET", f"/api/v1/meters/{METER}/group-by/{{group_by_key}}/values", {}, Scope.QUERY, 404),
    ("GET", "/api/v1/subjects", {}, Scope.QUERY, 200),
    ("GET", f"/api/v1/subjects/{SUBJECT}", {}, Scope.QUERY, 403),
    ("GET", f"/api/v1/subjects/{SUBJECT}/entitlements/{FEATURE}/value", {}, Scope.QUERY, 403),
    (
        "GET",
        f"/api/v1/customers/{{customer_id_or_key}}/entitlements/{FEATURE}/value",
        {},
        Scope.QUERY,
        403,
    ),
]
OPEN = {"/v1/meter/health", "/docs", "/docs/oauth2-redirect", "/openapi.json", "/"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("access")) as running:
        yield running


def call(client: httpx.Client, method: str, path: str, arguments: dict[str, Any]) -> httpx.Response:
    return client.request(method, re.sub(r"\{\w+\}", "0123456789ab", path), **arguments)


def test_the_table_of_this_test_has_every_route(api: Api) -> None:
    documented = {
        (method.upper(), path)
        for path, methods in api.app.openapi()["paths"].items()
        for method in methods
    }

    assert documented == {(m, path) for m, path, *_ in ROUTES} | {("GET", "/v1/meter/health")}


def test_every_route_but_the_open_ones_refuses_without_a_key(api: Api) -> None:
    client = api.client()
    routes = {
        (method, (route.path or "").replace(":path}", "}"))
        for route in iter_route_contexts(api.app.routes)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert {path for _, path in routes} == OPEN | {path for _, path, *_ in ROUTES}

    statuses = {
        (method, path): call(client, method, path, {}).status_code
        for method, path in routes
        if path not in OPEN
    }

    assert set(statuses.values()) == {401}, statuses


@pytest.mark.parametrize(("method", "path", "arguments", "scope", "_other"), ROUTES)
def test_a_route_needs_its_scope(
    api: Api, method: str, path: str, arguments: dict[str, Any], scope: Scope, _other: int
) -> None:
    wrong = [other for other in Scope if other not in {scope, Scope.ADMIN}]

    refused = call(api.client(*wrong), method, path, arguments)
    granted = call(api.client(scope), method, path, arguments)

    assert refused.status_code == 403
    assert f"scope {scope}" in refused.json()["detail"]
    assert granted.status_code in {200, 201, 202, 204, 404}


@pytest.mark.parametrize(("method", "path", "arguments", "scope", "status"), ROUTES)
def test_a_bound_key_reaches_no_other_tenant(
    api: Api, method: str, path: str, arguments: dict[str, Any], scope: Scope, status: int
) -> None:
    client = api.client(scope, tenant_id="tenant_b")

    response = call(client, method, path, arguments)

    assert response.status_code == status
    if status == 202:
        assert response.json()["accepted"] == 0
    if status == 200:
        assert "tenant_a" not in response.text
    if path == "/v1/meter/keys" and status == 200:
        assert {key["tenant_id"] for key in response.json()["data"]} == {"tenant_b"}


def test_metrics_may_be_public(api: Api) -> None:
    before = api.app.state.services
    api.app.state.services = replace(before, is_metrics_public=True)
    try:
        response = api.client().get("/metrics")
    finally:
        api.app.state.services = before

    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert response.text == METRICS


def test_a_process_without_a_receiver_has_no_metrics(api: Api) -> None:
    before = api.app.state.services
    api.app.state.services = replace(before, metrics=None)
    try:
        response = api.client(Scope.QUERY).get("/metrics")
    finally:
        api.app.state.services = before

    assert response.status_code == 404
    assert "no receiver" in response.json()["detail"]


def test_a_bound_key_reads_its_tenant_without_naming_it(api: Api) -> None:
    at = api.clock.ns - 1
    ids = enumerate(["tenant_y", "tenant_z"])
    api.insert([{"event_id": UUID(int=i), "tenant_id": name, "timestamp": at} for i, name in ids])
    reader = api.client(Scope.QUERY, tenant_id="tenant_z")

    events = reader.get("/v1/meter/events").json()["data"]
    totals = reader.get("/v1/meter/aggregates", params={"meter": "api.calls"}).json()["data"]
    meters = reader.get("/v1/meter/meters").json()["data"]

    assert [event["tenant_id"] for event in events] == ["tenant_z"]
    assert [(total["tenant_id"], total["value"]) for total in totals] == [("tenant_z", "1")]
    assert sum(meter["events"] for meter in meters) == 1


def test_a_key_is_taken_as_a_bearer_or_in_its_header(api: Api) -> None:
    key = api.key(Scope.QUERY)
    client = api.client()

    def status(headers: dict[str, str]) -> int:
        return client.get("/v1/meter/meters", headers=headers).status_code

    assert status({"authorization": f"Bearer {key}"}) == 200
    assert status({"x-api-key": key}) == 200
    assert status({"authorization": "Bearer otm_x_y"}) == 401
    assert status({"authorization": "Basic abc"}) == 401
    assert status({"x-api-key": key[:-1]}) == 401


def test_when_keys_cannot_be_checked_nobody_is_told_no(api: Api) -> None:
    client = api.client(Scope.QUERY)

    api.clock.advance(6)
    try:
        response = client.get("/v1/meter/meters")
    finally:
        api.keys.refresh()

    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_a_key_lives_from_creation_to_revocation(api: Api) -> None:
    admin = api.client(Scope.ADMIN)
    anonymous = api.client()

    made = admin.post("/v1/meter/keys", json={**NEW_KEY, "expires_at": "2030-01-01T00:00:00Z"})
    key = made.json()
    headers = {"x-api-key": key["key"]}
    before = anonymous.get("/v1/meter/meters", headers=headers).status_code
    revoked = [admin.delete(f"/v1/meter/keys/{key['key_id']}") for _ in range(2)]
    after = anonymous.get("/v1/meter/meters", headers=headers).status_code
    listed = admin.get("/v1/meter/keys")

    assert (made.status_code, before, after) == (201, 200, 401)
    assert key["scopes"] == ["query"]
    assert key["tenant_id"] == "tenant_a"
    assert key["expires_at"] == "2030-01-01T00:00:00Z"
    assert [response.status_code for response in revoked] == [200, 200]
    assert revoked[0].json() == revoked[1].json()
    shown = {row["key_id"]: row for row in listed.json()["data"]}
    assert shown[key["key_id"]] == revoked[0].json()
    assert key["key"] not in listed.text


def test_a_bound_administrator_stays_within_its_tenant(api: Api) -> None:
    admin = api.client(Scope.ADMIN, tenant_id="tenant_b")
    other = api.keys.create(name="other", scopes=[Scope.QUERY], tenant_id="tenant_a")[0]
    unbound = api.keys.create(name="unbound", scopes=[Scope.QUERY])[0]

    made = admin.post("/v1/meter/keys", json={"name": "own", "scopes": ["admin"]})

    assert made.json()["tenant_id"] == "tenant_b"
    for key in (other, unbound):
        assert admin.delete(f"/v1/meter/keys/{key.key_id}").status_code == 404
    assert {key["tenant_id"] for key in admin.get("/v1/meter/keys").json()["data"]} == {"tenant_b"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"name": "x", "scopes": []}, "scopes"),
        ({"name": "", "scopes": ["query"]}, "name"),
        ({"name": "x", "scopes": ["root"]}, "'ingest', 'query'"),
        ({"name": "x", "scopes": ["query"], "tenant": "a"}, "tenant"),
        ({"name": "x", "scopes": ["query"], "tenant_id": "a b"}, "rename it"),
        ({"name": "x", "scopes": ["query"], "expires_at": "2020-01-01T00:00:00Z"}, "is past"),
        ({"name": "x", "scopes": ["query"], "expires_at": "2030-01-01T00:00:00"}, "timezone"),
    ],
)
def test_a_key_that_cannot_be_made_says_why(api: Api, body: dict[str, Any], said: str) -> None:
    response = api.client(Scope.ADMIN).post("/v1/meter/keys", json=body)

    assert response.status_code == 400
    assert said in response.json()["detail"]


def test_health_runs_every_check_and_needs_no_key(api: Api) -> None:
    client = api.client()

    def fail() -> str:
        raise UnavailableError("the disk is full")

    fine = client.get("/v1/meter/health")
    api.checks["disk"] = fail
    try:
        failed = client.get("/v1/meter/health")
    finally:
        del api.checks["disk"]

    store = {"status": "ok", "detail": "1 row"}
    assert (fine.status_code, fine.json()) == (200, {"status": "ok", "checks": {"store": store}})
    assert failed.status_code == 503
    assert failed.json()["checks"] == {
        "store": store,
        "disk": {"status": "failed", "detail": "the disk is full"},
    }


def test_whatever_goes_wrong_is_a_problem_without_internals(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(*_: object) -> None:
        raise RuntimeError("secret")

    client = api.client(Scope.ADMIN)
    with api.submitting(break_down):
        internal = client.post("/v1/meter/events", json=EVENT)
    responses = [internal, client.get("/nowhere"), client.put("/v1/meter/events")]

    assert [response.status_code for response in responses] == [500, 404, 405]
    for response in responses:
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json().keys() == {
            "type",
            "title",
            "status",
            "detail",
            "request_id",
        }
        assert response.json()["status"] == response.status_code
    assert "secret" not in internal.text
    assert any(record.message == "request failed" for record in caplog.records)


def test_answers_have_the_shapes_that_are_documented(api: Api) -> None:
    client = api.client(Scope.ADMIN)
    paths: dict[str, type[BaseModel]] = {
        "/v1/meter/events": EventsAnswer,
        "/v1/meter/aggregates?meter=api.calls&group_by=tenant_id": AggregatesAnswer,
        "/v1/meter/meters": MetersAnswer,
        "/v1/meter/health": HealthAnswer,
    }

    for path, model in paths.items():
        model.model_validate_json(client.get(path).text, extra="forbid")
    sent = client.post("/v1/meter/events", json=[EVENT, {}])
    AdmissionAnswer.model_validate_json(sent.text, extra="forbid")


def test_the_document_explains_keys_filters_and_problems(api: Api) -> None:
    client = api.client()

    document = client.get("/openapi.json").json()
    docs = client.get("/docs")

    assert docs.status_code == 200
    assert client.get("/").headers["location"] == "/docs"
    assert document["components"]["securitySchemes"].keys() == {"HTTPBearer", "APIKeyHeader"}
    operation = document["paths"]["/v1/meter/aggregates"]["get"]
    assert {"filter", "from", "to", "group_by"} <= {
        item["name"] for item in operation["parameters"]
    }
    assert {"400", "401", "403", "413", "503"} <= operation["responses"].keys()
    assert "Problem" in document["components"]["schemas"]
    sending = document["paths"]["/v1/meter/events"]["post"]["requestBody"]["content"]
    assert sending["application/json"]["examples"].keys() == {"one", "many"}
