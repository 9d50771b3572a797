"""Laws of the whole API, made from its OpenAPI document, so that a new route cannot be forgotten."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.e2e.api_calls import (
    Call,
    Operation,
    plain_name,
    read_operations,
    substitutions,
    variants,
)
from tests.e2e.up import KEY, Up
from tests.waiting import eventually

SCOPES: Final = ("ingest", "query", "validate", "admin")
RANGE: Final = {"from": "2026-03-01T00:00:00Z", "to": "2026-03-02T00:00:00Z"}
A, B = "zqa.tenant", "zqb.tenant"
NAME, SECRET = "zqb", "zqsecret"
"""Whatever of tenant B can be asked for begins with the one; what can only be learnt, with the other."""

VOLATILE: Final = ("/metrics", "/v1/meter/health", "/v1/meter/audit")
"""What changes by itself."""

_NEUTRAL: Final = """
How an answer looks, not what it is about:
    from to window timezone windowTimeZone order compare fill format clientId time timestamp cursor limit
    ingestedAtFrom ingestedAtTo expires_at period enforcement anchor_day before after
Content that is only stored:
    name description reason note metadata quantity data unit actor action source specversion
    datacontenttype dataschema grace
What a meter is, which is the same for every tenant, and what only operators see:
    slug eventType eventFrom valueProperty aggregation signal scope
"""
NEUTRAL: Final = frozenset(re.findall(r"\w+", "".join(re.findall(r"^ .*\n", _NEUTRAL, re.M))))
"""Names of parameters and members that cannot say whose usage is meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A service with usage of two tenants.

    Attributes:
        up: The process.
        admin: A client with the first admin key.
        operations: What the document has.
        values: Name of a parameter or member → what tenant B has there.
        secrets: What nobody but B and operators may learn.
    """

    up: Up
    admin: httpx.Client
    operations: list[Operation]
    values: Mapping[str, str]
    secrets: frozenset[str]

    def client(self, *scopes: str, tenant_id: str) -> httpx.Client:
        """A client with a new key."""
        made = self.admin.post(
            "/v1/meter/keys", json={"name": "law", "scopes": scopes, "tenant_id": tenant_id}
        )
        headers = {"x-api-key": made.json()["key"]}
        return httpx.Client(base_url=self.admin.base_url, headers=headers, timeout=30)


@pytest.fixture(scope="module")
def world(up: Up) -> Iterator[World]:
    headers = {"x-api-key": KEY}
    with httpx.Client(base_url=f"http://{up.api}", headers=headers, timeout=30) as admin:
        document = admin.get("/openapi.json").json()
        _seed_events(admin, A, "zqa", "zqa")
        _seed_events(admin, B, NAME, SECRET)
        values = {
            **dict.fromkeys(("tenant_id", "subject", "subject_id_or_key", "tenant", "target"), B),
            **dict.fromkeys(("customer_id_or_key", "customerId", "filterCustomerId"), B),
            **dict.fromkeys(("event_id", "event_ids", "id"), f"{NAME}-event"),
            **dict.fromkeys(
                ("meter", "meters", "meter_id_or_slug", "feature_key", "type"), "zq.meter"
            ),
            **dict.fromkeys(("group_by", "group_by_key", "groupBy"), "region"),
            **dict.fromkeys(("filter", "filterGroupBy", "attribute"), f"{NAME}-region"),
            **dict.fromkeys(("attributes", "dimensions"), f"{NAME}-region"),
            "advancedMeterGroupByFilters": json.dumps({"region": {"$eq": f"{NAME}-region"}}),
            "$eq": f"{NAME}-region",
            "$in": f"{NAME}-region",
        }
        secrets = {f"{SECRET}-plan"}
        for path, seed in SEEDS.items():
            if path in document["paths"]:
                learnt, hidden = seed(admin)
                values |= learnt
                secrets |= hidden
        yield World(
            up=up,
            admin=admin,
            operations=read_operations(document),
            values=values,
            secrets=frozenset(secrets),
        )
    assert not any("request failed" in line for line in up.printed)


def _seed_events(admin: httpx.Client, tenant: str, name: str, secret: str) -> None:
    event = {
        "event_id": f"{name}-event",
        "tenant_id": tenant,
        "meter": "zq.meter",
        "quantity": "7",
        "timestamp": RANGE["from"],
        "attributes": {"region": f"{name}-region", "plan": f"{secret}-plan"},
    }
    for slug in ("zq.meter", "zq.spare"):
        meter = {
            "slug": slug,
            "eventType": slug,
            "aggregation": "SUM",
            "valueProperty": "$.quantity",
        }
        groups = {"region": "$.region", "plan": "$.plan"}
        admin.post("/api/v1/meters", json={**meter, "groupBy": groups})
    assert admin.post("/v1/meter/events", json=event).json()["accepted"] == 1
    # The same id with another quantity is a conflict, which is in quarantine.
    admin.post("/v1/meter/events", json={**event, "quantity": "8"})
    eventually(
        lambda: admin.get("/v1/meter/events", params={"tenant_id": tenant, **RANGE}).json()["data"],
        lambda found: len(found) == 1,
    )


def _seed_keys(admin: httpx.Client) -> tuple[dict[str, str], set[str]]:
    name = f"{SECRET}-key"
    made = admin.post(
        "/v1/meter/keys", json={"name": name, "scopes": ["query"], "tenant_id": B}
    ).json()
    return {"key_id": made["key_id"]}, {name}


def _seed_quotas(admin: httpx.Client) -> tuple[dict[str, str], set[str]]:
    limit = "731905717"
    quota = {"tenant_id": B, "meter": "zq.meter", "limit": limit, "period": "month"}
    made = admin.put("/v1/meter/quotas", json=quota).json()
    return {"quota_id": made["quota_id"]}, {limit}


def _seed_reservations(admin: httpx.Client) -> tuple[dict[str, str], set[str]]:
    name = f"{NAME}-reservation"
    check = {"tenant_id": B, "meter": "zq.meter", "reserve": True, "reservation_id": name}
    assert admin.post("/v1/meter/validate", json=check).json()["allowed"]
    return {"reservation_id": name}, set()


def _seed_corrections(admin: httpx.Client) -> tuple[dict[str, str], set[str]]:
    event = {"event_id": f"{NAME}-voided", "tenant_id": B, "meter": "zq.meter"}
    admin.post("/v1/meter/events", json={**event, "timestamp": RANGE["from"]})
    found = {"meter": "zq.meter", "tenant_id": B, "event_id": event["event_id"], **RANGE}
    eventually(lambda: admin.get("/v1/meter/events", params=found).json()["data"], bool)
    reason = f"{SECRET}-reason"
    admin.post(
        f"/v1/meter/events/{event['event_id']}/void",
        json={"reason": reason, "tenant_id": B, "meter": "zq.meter"},
    ).raise_for_status()
    eventually(lambda: reason in admin.get("/v1/meter/events", params=found).text, bool)
    return {}, {reason}


SEEDS: Final = {
    "/v1/meter/keys": _seed_keys,
    "/v1/meter/quotas": _seed_quotas,
    "/v1/meter/reservations/{reservation_id}": _seed_reservations,
    "/v1/meter/corrections": _seed_corrections,
}
"""If the document has the path: gives tenant B something, and says by which names it can be asked for, and
what of it is secret.

A route with a new name in its path, query or body needs its value here, or its name in `NEUTRAL`.
"""


def test_every_name_in_the_document_is_known_here(world: World) -> None:
    known = world.values.keys() | NEUTRAL
    unknown = {
        (one.id, name)
        for one in world.operations
        for name in (*one.path_names, *map(plain_name, one.query_names), *one.body_names)
        if name not in known
    }

    assert unknown == set(), "say in SEEDS what tenant B has there, or that it is NEUTRAL"


def test_a_key_of_tenant_b_learns_every_secret(world: World) -> None:
    """Else the law of isolation below would hold because there is nothing to see."""
    found = set()
    with world.client("admin", tenant_id=B) as own:
        for operation in world.operations:
            if operation.method == "GET":
                answer = replace(operation.call(world.values), query=_range(operation)).send(own)
                found |= {secret for secret in world.secrets if secret in answer.text}

    assert found == world.secrets


@pytest.mark.parametrize("scope", SCOPES)
def test_a_key_of_tenant_a_gets_nothing_of_tenant_b(world: World, scope: str) -> None:
    """Whatever it calls, with the names of B in any place; and B has afterwards what it had."""
    before = _state(world)
    with world.client(scope, tenant_id=A) as other:
        for operation in world.operations:
            for call in variants(operation, world.values):
                _check_hidden(world, call, call.send(other))
            if operation.method == "GET":
                ranged = replace(operation.call(world.values), query=_range(operation))
                _check_hidden(world, ranged, ranged.send(other))

    assert _state(world) == before


def _check_hidden(world: World, call: Call, answer: httpx.Response) -> None:
    assert answer.status_code < 500, (str(call), answer.text)
    for secret in world.secrets:
        assert secret not in answer.text, str(call)
    if call.method == "GET" and answer.is_success:
        shown = answer.text
        for _, value in call.query:
            shown = shown.replace(json.dumps(value), "")
        assert NAME not in shown, str(call)


def _range(operation: Operation) -> tuple[tuple[str, str], ...]:
    given = {**RANGE, "meter": "zq.meter"}
    return tuple((name, given[name]) for name in operation.query_names if name in given)


def _state(world: World) -> dict[str, Any]:
    """What tenant B sees of itself."""
    found = {}
    with world.client("admin", tenant_id=B) as own:
        for operation in world.operations:
            if operation.method != "GET" or operation.path in VOLATILE:
                continue
            answer = replace(operation.call(world.values), query=_range(operation)).send(own)
            found[operation.path] = _stable(answer) if answer.is_success else answer.status_code
    return found


def _stable(answer: httpx.Response) -> Any:
    """An answer without the keys that these tests make, and the times at which keys were used."""
    if not answer.headers.get("content-type", "").startswith("application/json"):
        return answer.text
    body = answer.json()
    if isinstance(body, dict) and isinstance(body.get("data"), list):
        rows = [row for row in body["data"] if row.get("name") != "law"]
        return [{k: v for k, v in row.items() if k != "last_used_at"} for row in rows]
    return body


INJECTIONS: Final = (
    "'",
    '"',
    "`",
    "\\",
    "\\'",
    "' OR 1=1 --",
    "'; DROP TABLE metering.events; --",
    "/* */ # --",
    "{tenant_id:String}",
    "{x:Identifier}",
    "%s %(x)s {} {0}",
    "$$ @@x ?",
    "a\0b",
    "\n\r\t",
    "\u202e\u0000\uffff\U0001f600",
    "x" * 10_000,
    "",
    "NULL",
    "-1",
    "1e999",
)


def test_no_text_in_any_place_reaches_the_database_as_sql(world: World) -> None:
    """Never a failure of ours, and nobody's usage changes."""
    before = _usage(world)
    # What would change usage if it were asked for rightly is asked about nothing.
    values = {**world.values, "event_id": f"{NAME}-nothing", "reservation_id": f"{NAME}-none"}
    for operation in world.operations:
        for text in INJECTIONS:
            for call in _with_text(operation, text, values):
                answer = call.send(world.admin)
                assert answer.status_code < 500, (str(call)[:500], answer.text[:500])

    assert _usage(world) == before


@pytest.mark.parametrize("text", ["\ud800", "a\ud800b"], ids=["alone", "inside"])
def test_half_a_surrogate_in_a_body_is_no_failure_of_ours(world: World, text: str) -> None:
    for operation in world.operations:
        for call in _with_text(operation, text, world.values):
            if call.body is not None and not call.query and text not in call.places.values():
                answer = call.send(world.admin)
                assert answer.status_code < 500, (str(call.body), answer.text)


def test_texts_are_stored_as_they_are(world: World) -> None:
    texts = {f"n{i}": text for i, text in enumerate(INJECTIONS) if len(text) < 1_000}
    sent = {"tenant_id": "zqc.tenant", "meter": "zq.texts", "timestamp": RANGE["from"]}
    world.admin.post("/v1/meter/events", json={**sent, "attributes": texts})

    def stored() -> list[dict[str, str]]:
        answer = world.admin.get("/v1/meter/events", params={"meter": "zq.texts", **RANGE})
        return [row["attributes"] for row in answer.json()["data"]]

    eventually(stored, lambda found: found == [texts])


def _with_text(operation: Operation, text: str, values: Mapping[str, str]) -> Iterator[Call]:
    # Whoever may change meters changes one that nothing here depends on.
    plain = operation.call({**values, "meter_id_or_slug": "zq.spare"})
    for name in operation.path_names:
        yield replace(plain, places={**plain.places, name: text})
    required = {"meter": "zq.meter"} if "meter" in operation.query_names else {}
    short = text[:4_000]
    for name in operation.query_names:
        yield replace(plain, query=tuple({**required, name: short}.items()))
        if "[" in name:
            named = f"{plain_name(name)}[{short}]"
            yield replace(plain, query=tuple({**required, named: short}.items()))
    for media_type, example in operation.bodies[:1]:
        for name in sorted(operation.body_names):
            yield replace(plain, media_type=media_type, body=substitutions(example, name, text))


def _usage(world: World) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for tenant in (A, B):
        query = {"meter": "zq.meter", "tenant_id": tenant, "group_by": "region", **RANGE}
        found[tenant] = (
            world.admin.get("/v1/meter/aggregates", params=query).json()["data"],
            world.admin.get("/v1/meter/events", params={"tenant_id": tenant, **RANGE}).json(),
            world.admin.get("/api/v1/meters/zq.meter").json(),
        )
    return found


CHECKS: Final = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)


def test_every_answer_has_the_shape_that_is_documented(
    world: World, request: pytest.FixtureRequest
) -> None:
    """No 5xx either, whatever of the documented shapes is sent."""
    is_long = request.config.getoption("--long")
    schema = schemathesis.openapi.from_url(f"{world.admin.base_url}/openapi.json")
    headers = {"x-api-key": KEY}
    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()

        @settings(
            max_examples=400 if is_long else 40,
            derandomize=not is_long,
            database=None,
            deadline=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=st.one_of(operation.as_strategy()))
        def check(case: schemathesis.Case[Any]) -> None:
            case.call_and_validate(headers=headers, checks=list(CHECKS), timeout=30)

        check()
