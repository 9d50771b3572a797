"""Read tokens over the API: what they open, and that no route forgets what they do not."""

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx
import pytest

from query_api.app import create_app
from query_api.auth import Reader
from receiver.store.keys import Scope
from tests.integration.api_harness import Api, running_api

TOKENS = "/v1/meter/tokens"
ORIGIN = "https://shop.example"
OPEN = {"/v1/meter/health"}
OWN, OTHER_METER, OTHER_TENANT = "own.meter", "other.meter", "foreign.meter"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    origins = [ORIGIN, "https://*.portal.example"]
    with running_api(tmp_path_factory.mktemp("tokens"), cors_origins=origins) as running:
        at = running.clock.ns - 1
        usage = [("tenant_a", OWN), ("tenant_a", OTHER_METER), ("tenant_b", OTHER_TENANT)]
        running.insert(
            [
                {"event_id": UUID(int=i), "tenant_id": tenant, "meter": meter, "timestamp": at}
                for i, (tenant, meter) in enumerate(usage)
            ]
        )
        yield running


def token(api: Api, *, key: str | None = None, **body: Any) -> str:
    asked = {"tenant_id": "tenant_a", "ttl_seconds": 60, **body}
    headers = {"x-api-key": key or api.key(Scope.QUERY)}
    answer = api.client().post(TOKENS, json=asked, headers=headers)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["token"])


def bearing(api: Api, text: str) -> httpx.Client:
    client = api.client()
    client.headers["authorization"] = f"Bearer {text}"
    return client


def meters_of(client: httpx.Client) -> list[str]:
    answer = client.get("/v1/meter/meters")
    assert answer.status_code == 200, answer.text
    return [meter["slug"] for meter in answer.json()["data"] if meter["events"]]


def test_a_token_reads_its_tenant(api: Api) -> None:
    client = bearing(api, token(api))

    events = client.get("/v1/meter/events").json()["data"]

    assert {event["tenant_id"] for event in events} == {"tenant_a"}
    assert meters_of(client) == [OTHER_METER, OWN]
    assert client.get("/v1/meter/events", params={"tenant_id": "tenant_b"}).status_code == 403


def test_a_token_restricted_to_meters_reads_these(api: Api) -> None:
    client = bearing(api, token(api, meters=[OWN]))

    def status(**parameters: Any) -> int:
        return client.get("/v1/meter/aggregates", params=parameters).status_code

    assert client.get("/v1/meter/events", params={"meter": OWN}).json()["data"]
    assert meters_of(client) == [OWN]
    assert status(meter=OWN) == 200
    assert status(meter=OTHER_METER) == 403
    assert status(meter=[OWN, OTHER_METER]) == 403
    assert client.get("/v1/meter/events").status_code == 403


def test_no_route_forgets_the_meters_of_a_token(api: Api) -> None:
    """From the document, so that a new route is asked too: nothing of another meter or tenant."""
    client = bearing(api, token(api, meters=[OWN]))
    reads = 0
    for path, operations in api.app.openapi()["paths"].items():
        for method, operation in operations.items():
            if path in OPEN:
                continue
            for asked in (OWN, OTHER_METER, OTHER_TENANT, None):
                target = path
                for parameter in operation.get("parameters", ()):
                    value = asked or str(UUID(int=1))
                    target = target.replace("{" + parameter["name"] + "}", value)
                parameters = {} if asked is None else {"meter": asked}
                answer = client.request(method, target, params=parameters)
                where = f"{method} {target} {parameters}: {answer.status_code} {answer.text}"
                assert answer.status_code in {200, 400, 403, 404}, where
                if answer.status_code == 200:
                    reads += 1
                    assert OTHER_METER not in answer.text, where
                    assert OTHER_TENANT not in answer.text, where
                    assert "tenant_b" not in answer.text, where
    assert reads >= 3


def test_a_route_that_does_not_ask_for_a_meter_takes_no_restricted_token(api: Api) -> None:
    """A parameter that nothing reads would be no restriction."""
    app = create_app(api.app.state.services)

    async def without(principal: Reader) -> str:
        return principal.key_id

    async def with_meter(principal: Reader, meter: str) -> str:
        return f"{principal.key_id} {meter}"

    app.add_api_route("/without", without)
    app.add_api_route("/with", with_meter)
    restricted, whole = token(api, meters=[OWN]), token(api)

    async def status(path: str, text: str) -> int:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            headers = {"authorization": f"Bearer {text}"}
            return (await client.get(path, params={"meter": OWN}, headers=headers)).status_code

    assert asyncio.run(status("/with", restricted)) == 200
    assert asyncio.run(status("/without", restricted)) == 403
    assert asyncio.run(status("/without", whole)) == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/meter/events", {"meter": OWN}),
        ("POST", TOKENS, {"ttl_seconds": 60}),
        ("POST", "/v1/meter/keys", {"name": "n", "scopes": ["query"]}),
        ("GET", "/v1/meter/keys", None),
        ("GET", "/v1/meter/audit", None),
        ("POST", "/v1/meter/quarantine/discard", {"name": "x"}),
        ("GET", "/metrics", None),
    ],
)
def test_a_token_only_reads_usage(api: Api, method: str, path: str, body: object) -> None:
    for text in (token(api), token(api, key=api.key(Scope.ADMIN)), token(api, meters=[OWN])):
        assert bearing(api, text).request(method, path, json=body).status_code == 403


def test_otlp_takes_no_token(api: Api) -> None:
    assert api.keys.authenticate(token(api)) is None


def test_a_token_ends_in_time_and_with_its_key(api: Api) -> None:
    key = api.keys.create(name="n", scopes=[Scope.QUERY])
    first, second = (bearing(api, token(api, key=key[1], ttl_seconds=s)) for s in (2, 60))
    assert meters_of(first)

    api.clock.advance(2)
    api.keys.refresh()
    after = first.get("/v1/meter/meters")
    assert meters_of(second)
    api.keys.revoke(key[0].key_id)

    assert after.status_code == 401
    assert second.get("/v1/meter/meters").status_code == 401


def test_a_token_does_not_outlive_its_key_and_says_when_it_ends(api: Api) -> None:
    admin = api.client(Scope.ADMIN)
    body = {"name": "n", "scopes": ["query"], "expires_at": "2026-09-21T15:00:00Z"}
    key = admin.post("/v1/meter/keys", json=body).json()["key"]

    answer = api.client().post(
        TOKENS, json={"tenant_id": "t", "ttl_seconds": 86_400}, headers={"x-api-key": key}
    )

    assert answer.json()["expires_at"] == "2026-09-21T15:00:00Z"


@pytest.mark.parametrize(
    ("bound", "body", "status", "said"),
    [
        (None, {}, 400, "tenant_id is missing"),
        ("tenant_a", {"tenant_id": "tenant_b"}, 403, "bound to tenant 'tenant_a'"),
        ("tenant_a", {}, 201, ""),
        (None, {"tenant_id": "tenant_a", "ttl_seconds": 86_401}, 400, "ttl_seconds"),
        (None, {"tenant_id": "tenant_a", "meters": []}, 400, "meters"),
        (None, {"tenant_id": "tenant_a", "meters": ["a b"]}, 400, "meters"),
        (None, {"tenant_id": "tenant_a", "meters": ["m"] * 21}, 400, "meters"),
    ],
)
def test_who_may_make_which_token(
    api: Api, bound: str | None, body: dict[str, Any], status: int, said: str
) -> None:
    client = api.client(Scope.QUERY, tenant_id=bound)

    answer = client.post(TOKENS, json={"ttl_seconds": 60, **body})

    assert answer.status_code == status
    assert said in answer.json().get("detail", "")


def test_tokens_share_the_rate_of_the_key_that_made_them(api: Api) -> None:
    key = api.keys.create(name="n", scopes=[Scope.QUERY], rate_limit_per_second=3)[1]
    texts = [token(api, key=key), token(api, key=key)]

    statuses = [bearing(api, text).get("/v1/meter/meters").status_code for text in texts]

    assert statuses == [200, 429]


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        (ORIGIN, True),
        ("https://a.portal.example", True),
        ("https://evil.example", False),
        ("https://evil.example/.portal.example", False),
        ("https://shop.example.evil.example", False),
        ("http://shop.example", False),
    ],
)
def test_pages_of_allowed_origins_may_read(api: Api, origin: str, is_allowed: bool) -> None:
    asked = {
        "access-control-request-method": "GET",
        "access-control-request-headers": "authorization",
    }
    client = api.client()

    preflight = client.options("/v1/meter/aggregates", headers={"origin": origin, **asked})
    read = bearing(api, token(api)).get("/v1/meter/meters", headers={"origin": origin})
    refused = client.get("/v1/meter/meters", headers={"origin": origin})

    allowed = origin if is_allowed else None
    assert preflight.is_success == is_allowed
    for answer in (preflight, read, refused):
        assert answer.headers.get("access-control-allow-origin") == allowed
        assert "access-control-allow-credentials" not in answer.headers
        assert answer.headers["x-request-id"]
    assert read.status_code == 200


def test_pages_may_not_write(api: Api) -> None:
    headers = {"origin": ORIGIN, "access-control-request-method": "POST"}

    assert api.client().options("/v1/meter/events", headers=headers).status_code == 400
