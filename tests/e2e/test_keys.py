"""Keys of a running service: revoked at every edge, used, rotated at the first admin key, and audited."""

import json
import urllib.error
import urllib.request
from typing import Any

import grpc
import pytest

from tests.e2e.up import KEY, Up
from tests.otlp import GRPC_METRICS, Point, metrics_request, post
from tests.waiting import eventually

BODY = metrics_request([Point("keys", 1)]).SerializeToString()
PRIVATE = KEY.rpartition("_")[2]


def api(up: Up, method: str, path: str, key: str, body: object = None) -> tuple[int, Any]:
    """Status and JSON of a request to the query API."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    request = urllib.request.Request(
        f"http://{up.api}{path}", data=data, headers=headers, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_revoked_key_stops_at_every_edge_within_five_seconds(up: Up) -> None:
    _, made = up.post("/v1/meter/keys", {"name": "n", "scopes": ["ingest", "query"]})
    key = made["key"]
    _, token = up.post("/v1/meter/tokens", {"tenant_id": "keys", "ttl_seconds": 600}, key=key)
    with grpc.insecure_channel(up.grpc) as channel:  # one connection, before and after
        export: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            GRPC_METRICS, request_serializer=None, response_deserializer=None
        )

        def over_grpc() -> str:
            try:
                export(BODY, timeout=20, metadata=(("authorization", f"Bearer {key}"),))
            except grpc.RpcError as error:
                return str(error.code().name)
            return "OK"

        def edges() -> list[object]:
            return [
                over_grpc(),
                post(up.http, "/v1/metrics", BODY, key)[0],
                api(up, "GET", "/v1/meter/meters", key)[0],
                api(up, "GET", "/v1/meter/meters", token["token"])[0],
            ]

        before = edges()
        status, _ = api(up, "DELETE", f"/v1/meter/keys/{made['key_id']}", KEY)

        assert before == ["OK", 200, 200, 200]
        assert status == 200
        refused = ["UNAUTHENTICATED", 401, 401, 401]
        eventually(edges, lambda answers: answers == refused, seconds=5)


def test_otlp_takes_no_read_token(up: Up) -> None:
    _, token = up.post("/v1/meter/tokens", {"tenant_id": "keys", "ttl_seconds": 600})

    assert post(up.http, "/v1/metrics", BODY, token["token"])[0] == 401
    assert (
        up.post("/v1/meter/events", {"tenant_id": "keys", "meter": "m"}, token["token"])[0] == 403
    )


def test_the_last_use_over_otlp_is_known_also_after_a_restart(new_up: Up) -> None:
    def last_used() -> Any:
        keys = new_up.get("/v1/meter/keys")["data"]
        return {key["key_id"]: key["last_used_at"] for key in keys}[made["key_id"]]

    new_up.start()
    _, made = new_up.post("/v1/meter/keys", {"name": "n", "scopes": ["ingest"]})
    before = last_used()
    post(new_up.http, "/v1/metrics", BODY, made["key"])
    used = last_used()
    assert new_up.stop() == 0
    new_up.start()

    assert before is None
    assert used is not None
    assert last_used() == used


def test_a_revoked_admin_key_of_the_settings_opens_nothing_after_a_restart(new_up: Up) -> None:
    new_up.start()
    _, other = new_up.post("/v1/meter/keys", {"name": "n", "scopes": ["admin"]})
    (row,) = [row for row in new_up.get("/v1/meter/audit")["data"] if row["key_id"] == "(start)"]
    api(new_up, "DELETE", "/v1/meter/keys/root", other["key"])
    assert new_up.stop() == 0

    new_up.start()

    assert (row["action"], row["target"], row["tenant_id"]) == ("key.create", "root", None)
    assert api(new_up, "GET", "/v1/meter/keys", KEY)[0] == 401
    assert api(new_up, "GET", "/v1/meter/keys", other["key"])[0] == 200
    assert any("key root, which is revoked or expired" in line for line in new_up.printed)
    assert not [line for line in new_up.printed if PRIVATE in line]


def test_an_admin_key_with_the_id_of_another_stops_the_start(new_up: Up) -> None:
    new_up.start()
    assert new_up.stop() == 0

    with pytest.raises(AssertionError):
        new_up.start(admin_key=f"otm_root_{PRIVATE[::-1]}")

    assert new_up.wait() == 1
    assert any("METERING_ADMIN_KEY: there is a key root already" in one for one in new_up.printed)


def test_the_access_log_is_a_setting(new_up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METERING_ACCESS_LOG", "true")
    monkeypatch.setenv("METERING_API_CORS_ALLOWED_ORIGINS", "https://shop.example")
    new_up.start()

    request = urllib.request.Request(
        f"http://{new_up.api}/v1/meter/meters?tenant_id=private.tenant",
        headers={"authorization": f"Bearer {KEY}", "origin": "https://shop.example"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        headers = response.headers

    assert headers["access-control-allow-origin"] == "https://shop.example"
    line = f"key=root request={headers['x-request-id']}"
    found = eventually(lambda: [one for one in new_up.printed if line in one], bool)
    assert "INFO query_api.access GET /v1/meter/meters 200 " in found[0]
    assert not [one for one in new_up.printed if PRIVATE in one or "private.tenant" in one]
