"""A running service counts what is sent to it: `/metrics`, and `metering.pipeline_stats` after a stop."""

import contextlib
import http.client
import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.e2e.up import KEY, Up
from tests.otlp import Point, call, logs_request, metrics_request, post, spans_request
from tests.prometheus import Samples, by, parse, total
from tests.waiting import eventually

PREFIX = "otel_metering_receiver_"
LIMIT = 100_000
STATS = """
import json, sys
from receiver.store.client import Store
store = Store(sys.argv[1])
print(json.dumps([list(row) for row in store.query(
    "SELECT stage, name, stat, reason, sum(value) FROM metering.pipeline_stats "
    "GROUP BY stage, name, stat, reason")]))
store.close()
"""


def metrics_of(up: Up) -> Samples:
    request = urllib.request.Request(
        f"http://{up.api}/metrics", headers={"authorization": f"Bearer {KEY}"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return parse(response.read().decode())


def stats_of(data_dir: Path) -> dict[tuple[str, str, str, str], float]:
    """(stage, name, statistic, reason) -> sum, from the files of a service that has stopped."""
    url = f"chdb://{(data_dir / 'clickhouse').resolve()}"
    program = [sys.executable, "-c", STATS, url]
    printed = subprocess.run(program, check=True, timeout=60, capture_output=True, text=True).stdout
    return {tuple(row[:4]): row[4] for row in json.loads(printed)}


def send_everything(up: Up) -> None:
    """Six good requests, and one of each kind of bad one."""
    good = metrics_request([Point("tenant_a", n) for n in range(1, 11)]).SerializeToString()
    no_meter = metrics_request([Point("tenant_a", 1)], scope="app").SerializeToString()
    nobody = metrics_request([Point("x", 1)], scope="app")
    nobody.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points[0].ClearField(
        "attributes"
    )
    spans = spans_request([{"tenant.id": "tenant_a"}] * 3).SerializeToString()
    logs = logs_request([{"tenant.id": "tenant_a", "metering.quantity": 2}]).SerializeToString()
    call(up.grpc, good, KEY)
    assert post(up.http, "/v1/metrics", good, KEY)[0] == 200
    assert post(up.http, "/v1/metrics", no_meter, KEY)[0] == 200
    assert post(up.http, "/v1/metrics", nobody.SerializeToString(), KEY)[0] == 200
    assert post(up.http, "/v1/traces", spans, KEY)[0] == 200
    assert post(up.http, "/v1/logs", logs, KEY)[0] == 200
    with pytest.raises(grpc.RpcError):
        call(up.grpc, good, "otm_x_" + "0" * 64)
    assert post(up.http, "/v1/metrics", good, None)[0] == 401
    assert post(up.http, "/v1/metrics", good[:-3], KEY)[0] == 400
    assert post(up.http, "/v1/nothing", good, KEY)[0] == 404
    assert post(up.http, "/v1/logs", b"{}", KEY, {"content-type": "text/plain"})[0] == 415
    connection = http.client.HTTPConnection(up.http, timeout=10)
    connection.request("GET", "/v1/metrics")
    assert connection.getresponse().status == 405
    connection.close()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        assert post(up.http, "/v1/metrics", bytes(LIMIT + 1), KEY)[0] == 413


def send_as_bound(up: Up) -> str:
    """Two points of a key that is bound, one of them of another tenant; and events. Returns its id."""
    _, made = up.post(
        "/v1/meter/keys", {"name": "b", "scopes": ["ingest"], "tenant_id": "tenant_b"}
    )
    mixed = metrics_request([Point("tenant_b", 1), Point("tenant_a", 1)]).SerializeToString()
    assert post(up.http, "/v1/metrics", mixed, made["key"])[0] == 200
    events = [{"meter": "api.calls", "event_id": str(n)} for n in (1, 1, 2)]
    assert up.post("/v1/meter/events", events, made["key"])[1]["accepted"] == 2
    key_id: Any = made["key_id"]
    return str(key_id)


# Of the items above. Spans of a server are usage of http.requests (meters.yaml).
ACCEPTED = 10 + 3 + 1 + 1 + 2
REFUSED = {
    "duplicate": 10 + 1,
    "ignored": 1,
    "quarantined.no_meter": 1,
    "quarantined.tenant_not_allowed": 1,
}
REASONS = {
    "unauthenticated": 2,
    "malformed_payload": 1,
    "unknown_path": 1,
    "unsupported_media_type": 1,
    "method_not_allowed": 1,
    "payload_too_large": 1,
}
REQUESTS_OUT = 6 + 1 + 1


def test_in_is_out_and_refused_in_every_stage_and_in_the_table(
    new_up: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METERING_MAX_REQUEST_BYTES", str(LIMIT))
    new_up.start()
    send_everything(new_up)
    key_id = send_as_bound(new_up)

    def is_stored(samples: Samples) -> bool:
        return total(samples, f"{PREFIX}writer_out_total") == ACCEPTED + 2

    samples = eventually(lambda: metrics_of(new_up), is_stored)

    assert by(samples, f"{PREFIX}edge_refused_total", "reason") == REASONS
    assert total(samples, f"{PREFIX}edge_out_total") == REQUESTS_OUT
    assert total(samples, f"{PREFIX}edge_in_total") == REQUESTS_OUT + sum(REASONS.values())
    assert total(samples, f"{PREFIX}edge_in_total", transport="grpc") == 2
    assert total(samples, f"{PREFIX}edge_in_total", transport="api") == 1
    # Handed on: what an edge acknowledged, ingest acknowledged; ingest alone finds what is no OTLP.
    assert total(samples, f"{PREFIX}ingest_requests_out_total") == REQUESTS_OUT
    assert total(samples, f"{PREFIX}ingest_requests_in_total") == REQUESTS_OUT + 1
    assert total(samples, f"{PREFIX}ingest_out_total") == ACCEPTED
    assert by(samples, f"{PREFIX}ingest_refused_total", "reason") == REFUSED
    assert total(samples, f"{PREFIX}ingest_in_total") == ACCEPTED + sum(REFUSED.values())
    assert by(samples, f"{PREFIX}ingest_tenant_refused_total", "key_id") == {key_id: 1}
    assert by(samples, f"{PREFIX}writer_out_total", "table") == {
        "events": ACCEPTED,
        "quarantine": 2,
    }
    assert total(samples, f"{PREFIX}writer_in_total") == ACCEPTED + 2
    assert total(samples, f"{PREFIX}spool_in_total") == ACCEPTED + 2
    assert total(samples, f"{PREFIX}edge_ack_duration_seconds_count") == REQUESTS_OUT
    assert total(samples, f"{PREFIX}writer_lag_seconds_count") == ACCEPTED + 2
    assert total(samples, f"{PREFIX}ingest_ids") == ACCEPTED + 2
    assert total(samples, f"{PREFIX}spool_entries") == 0

    assert new_up.stop() == 0
    stats = stats_of(new_up.data_dir)
    for stage, name, expected in [
        ("edge", "refused", REASONS),
        ("ingest", "refused", REFUSED),
        ("ingest", "out", {"": ACCEPTED}),
        ("ingest", "in", {"": ACCEPTED + sum(REFUSED.values())}),
        ("edge", "out", {"": REQUESTS_OUT}),
        ("edge", "in", {"": REQUESTS_OUT + sum(REASONS.values())}),
        ("writer", "out", {"": ACCEPTED + 2}),
    ]:
        found = {key[3]: value for key, value in stats.items() if key[:3] == (stage, name, "delta")}
        assert found == expected, (stage, name)
    assert stats["writer", "lag", "count", ""] == ACCEPTED + 2
    assert stats["edge", "ack_duration", "p99", ""] > 0


def test_numbers_need_a_key_unless_they_are_public(
    new_up: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METERING_METRICS_PUBLIC", "true")
    new_up.start()

    status, body, headers = get(new_up.api, "/metrics")

    assert status == 200
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert ("otel_metering_receiver_spool_entries", frozenset()) in parse(body)
    assert get(new_up.api, "/v1/meter/quarantine")[0] == 401


def get(address: str, path: str) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    body = response.read().decode()
    connection.close()
    return response.status, body, headers
