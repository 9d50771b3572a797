"""CloudEvents over HTTP, and the surface that is compatible with OpenMeter, on the real engine."""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from otel_metering.contract.meter import Aggregation, MeterDefinition, Meters
from receiver.store.keys import Scope
from receiver.store.meters import ApiMeters
from tests.integration.api_harness import METERS, Api, running_api

EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "1",
    "source": "/svc",
    "type": "api.calls",
    "subject": "tenant_a",
    "data": {"quantity": 3, "region": "eu"},
}
METER = {"slug": "made", "eventType": "prompt", "aggregation": "MAX", "valueProperty": "$.tokens"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("openmeter")) as running:
        yield running


def made(api: Api) -> ApiMeters:
    found = api.app.state.services.made_meters
    assert isinstance(found, ApiMeters)
    return found


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/cloudevents+json", EVENT),
        ("application/cloudevents-batch+json; charset=utf-8", [EVENT]),
    ],
)
def test_cloudevents_are_taken_as_usage(api: Api, content_type: str, body: Any) -> None:
    answer = api.client(Scope.INGEST).post(
        "/v1/meter/events", content=json.dumps(body), headers={"content-type": content_type}
    )

    assert answer.status_code == 202
    assert answer.json()["rejected"] == []
    sent = api.ledger.events[-1]
    assert (sent.event_id, sent.tenant_id, sent.meter) == ("/svc 1", "tenant_a", "api.calls")
    assert sent.quantity == 3
    assert sent.attributes == {"region": "eu"}


def test_a_binary_cloudevent_is_in_headers_and_body(api: Api) -> None:
    answer = api.client(Scope.INGEST).post(
        "/v1/meter/events",
        json={"quantity": 4},
        headers={
            "ce-specversion": "1.0",
            "CE-ID": "binary%20one",
            "ce-source": "/svc",
            "ce-type": "api.calls",
            "ce-subject": "tenant_a",
            "ce-plan": "pro%C3%A9",
        },
    )

    assert answer.json() == {"accepted": 1, "duplicates": 0, "rejected": []}
    sent = api.ledger.events[-1]
    assert (sent.event_id, sent.quantity) == ("/svc binary one", Decimal(4))
    assert sent.attributes == {"plan": "pro\u00e9"}


def test_a_wrong_cloudevent_costs_its_neighbours_nothing(api: Api) -> None:
    batch = [{**EVENT, "id": ""}, {**EVENT, "id": "2"}, {**EVENT, "id": "3", "subject": "refused"}]

    answer = api.client(Scope.INGEST).post(
        "/v1/meter/events",
        content=json.dumps(batch),
        headers={"content-type": "application/cloudevents-batch+json"},
    )

    assert answer.json()["accepted"] == 1
    assert [one["index"] for one in answer.json()["rejected"]] == [0, 2]


def test_another_event_format_is_415(api: Api) -> None:
    for path in ("/v1/meter/events", "/api/v1/events"):
        answer = api.client(Scope.INGEST).post(
            path, content=b"x", headers={"content-type": "application/cloudevents+avro"}
        )
        assert answer.status_code == 415
        assert "send application/cloudevents+json" in answer.json()["detail"]


def test_a_made_meter_is_known_to_aggregates_and_elsewhere_after_a_refresh(api: Api) -> None:
    admin = api.client(Scope.ADMIN)
    groups = {"model": "$.model"}
    assert admin.post("/api/v1/meters", json={**METER, "groupBy": groups}).status_code == 201
    elsewhere = ApiMeters(api.store, api.clock)
    elsewhere.refresh()

    assert elsewhere.find("made") == made(api).find("made")
    assert elsewhere.with_those_of(METERS).find("made") == MeterDefinition(
        slug="made", aggregation=Aggregation.MAX, group_by=("model",)
    )
    api.clock.advance(1)
    assert admin.delete("/api/v1/meters/made").status_code == 204
    elsewhere.refresh()
    assert elsewhere.find("made") is None
    assert elsewhere.with_those_of(METERS).definitions == METERS.definitions
    assert admin.post("/api/v1/meters", json=METER).status_code == 201


def test_the_file_wins_over_a_meter_that_was_made(api: Api) -> None:
    api.client(Scope.ADMIN).post("/api/v1/meters", json={**METER, "slug": "both"})
    in_file = MeterDefinition(slug="both", unit="{x}")

    merged = made(api).with_those_of(Meters((in_file,)))

    assert merged.find("both") is in_file
    assert [one.slug for one in merged.definitions].count("both") == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"slug": "no good"}, "slug 'no good'"),
        ({"aggregation": "P99"}, "aggregation"),
        ({"aggregation": "COUNT"}, "leave it out"),
        ({"valueProperty": None}, "SUM needs it"),
        ({"valueProperty": "$.a[*]"}, "wildcards"),
        ({"groupBy": {"a": "b"}}, "does not begin with $"),
        ({"groupBy": {"subject": "$.a"}}, "a meaning of its own"),
        ({"groupBy": {"a b": "$.a"}}, "groupBy 'a b'"),
        ({"eventType": ""}, "eventType"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_meter_that_cannot_be_made_says_why(api: Api, change: dict[str, Any], said: str) -> None:
    body = {**METER, "slug": "wrong", "aggregation": "SUM", **change}

    answer = api.client(Scope.ADMIN).post("/api/v1/meters", json=body)

    assert answer.status_code == 400
    assert said in answer.json()["detail"]


def test_a_bound_administrator_makes_no_meters(api: Api) -> None:
    bound = api.client(Scope.ADMIN, tenant_id="tenant_a")

    assert bound.post("/api/v1/meters", json={**METER, "slug": "mine"}).status_code == 403


@pytest.mark.parametrize(
    ("used", "has_access", "balance", "overage"),
    [("80", True, 20.0, 0.0), ("100", False, 0.0, 0.0), ("120.5", False, 0.0, 20.5)],
)
def test_an_entitlement_is_where_a_tenant_stands_in_its_quota(
    api: Api, used: str, has_access: bool, balance: float, overage: float
) -> None:
    tenant_id = f"entitled_{used}"
    usage = {"event_id": uuid4(), "timestamp": api.clock.ns, "quantity": used}
    api.insert([{**usage, "tenant_id": tenant_id}])
    quota = {"tenant_id": tenant_id, "meter": "api.calls", "limit": "100", "period": "lifetime"}
    assert api.client(Scope.ADMIN).put("/v1/meter/quotas", json=quota).status_code == 200
    client = api.client(Scope.QUERY)

    value = client.get(f"/api/v1/subjects/{tenant_id}/entitlements/api.calls/value")
    other = client.get("/api/v1/customers/tenant_b/entitlements/api.calls/value")

    assert value.json() == {
        "hasAccess": has_access,
        "balance": balance,
        "usage": float(used),
        "overage": overage,
        "totalAvailableGrantAmount": 100.0,
    }
    assert (other.status_code, "no quota" in other.json()["detail"]) == (404, True)


def test_values_are_numbers_with_all_of_their_digits(api: Api) -> None:
    quantity = "9007199254740993.123456789"
    api.insert(
        [
            {
                "event_id": UUID(int=1),
                "tenant_id": "exact",
                "timestamp": api.clock.ns,
                "quantity": quantity,
                "dimensions": {"region": "eu"},
            }
        ]
    )

    answer = api.client(Scope.QUERY, tenant_id="exact").get("/api/v1/meters/api.calls/query")

    assert f'"value":{quantity}}}' in answer.text


def test_a_query_says_what_it_cannot_answer(api: Api) -> None:
    client = api.client(Scope.QUERY)

    def said(**query: Any) -> str:
        answer = client.get("/api/v1/meters/api.calls/query", params=query)
        assert answer.status_code == 400
        return str(answer.json()["detail"])

    assert "no dimension 'colour'" in said(groupBy="colour")
    assert "no dimension 'colour'" in said(**{"filterGroupBy[colour]": "red"})
    assert "use subject" in said(filterCustomerId="c1")
    assert "'tenant' is unknown" in said(tenant="a")
    assert "windowSize" in said(windowSize="WEEK")
    assert "is empty" in said(**{"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"})


def test_a_bound_key_names_no_other_subject(api: Api) -> None:
    bound = api.client(Scope.QUERY, tenant_id="tenant_b")

    answer = bound.get("/api/v1/meters/api.calls/query", params={"subject": "tenant_a"})

    assert answer.status_code == 403
