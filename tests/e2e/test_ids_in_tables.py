"""What variables of dashboards are made of is restricted when it is written, on every way in.

Grafana writes a variable into SQL as it is, or with quotes escaped and backslashes not. So no tenant id, meter, key
id or quota id in the tables may hold a quote, a backslash, a line feed, or what begins a variable or a macro.
Each way in is tried with hostile ids, and with a good one to see that it is a way in.
"""

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from otel_metering.clock import SystemClock
from otel_metering.errors import MeteringError
from receiver.meters_yaml import read_text
from receiver.store.audit import AT_START
from receiver.store.client import Store
from receiver.store.keys import ApiKeys, Scope
from tests.e2e.up import KEY, Up
from tests.otlp import (
    Point,
    Value,
    key_values,
    logs_request,
    metrics_request,
    post,
    spans_request,
)
from tests.waiting import eventually

HOSTILE = [
    "a'b",
    'a"b',
    "a`b",
    "a\\",
    "a\\' OR 1=1 -- ",
    "a\nb",
    "a\n",
    "\ta",
    "a b",
    "a,b",
    "a;b",
    "(a)",
    "{a}",
    "$a",
    "${tenant}",
    "${tenant:raw}",
    "[[tenant]]",
    "$__all",
    "$__timeFilter(x)",
    "a%27",
    "ä",
    "a" * 129,
]

SAFE = re.compile(r"[A-Za-z0-9_.:@/-]{1,128}", re.ASCII)

READ = {
    # Every column that a dashboard may make a variable of -> whether it may be empty.
    "events": {"tenant_id": False, "meter": False},
    "event_corrections": {"tenant_id": False, "meter": False},
    "usage_minute": {"tenant_id": False, "meter": False},
    "usage_hour": {"tenant_id": False, "meter": False},
    "usage_day": {"tenant_id": False, "meter": False},
    "usage_month": {"tenant_id": False, "meter": False},
    "quotas": {"ifNull(tenant_id, '')": True, "meter": False, "quota_id": False},
    "quota_usage": {"tenant_id": False, "meter": False, "quota_id": False},
    "meters": {"slug": False},
    "meter_definitions": {"meter": False},
    "api_keys": {"key_id": False, "tenant_id": True, "replaces": True},
    "api_key_use": {"key_id": False},
    "audit_log": {"key_id": False, "tenant_id": True},
    "pipeline_stats": {"labels['key_id']": True, "labels['transport']": True, "reason": True},
    "quarantine": {"reason": False, "key_id": False},
}

SDK = """
import json, sys
import otel_metering
otel_metering.configure(service_name="shop", flush_interval_seconds=0.1)
for one in json.load(sys.stdin):
    otel_metering.record("sdk.calls", tenant=one)
    otel_metering.record(one, tenant="sdk")
    otel_metering.record("sdk.events", tenant=one, event_id="1")
assert otel_metering.flush(20)
otel_metering.shutdown()
"""


Way = Callable[[Up, Sequence[str]], object]
JSON = "application/json"


def otlp(up: Up, path: str, request: Any) -> None:
    body = request.SerializeToString()
    status, answer, _ = post(up.http, f"/v1/{path}", body, KEY)
    assert status == 200, answer


def call(up: Up, method: str, path: str, body: object, kind: str = JSON) -> int:
    request = urllib.request.Request(
        f"http://{up.api}{path}",
        data=json.dumps(body).encode(),
        headers={"authorization": f"Bearer {KEY}", "content-type": kind},
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def cloud_event(subject: str, kind: str) -> dict[str, object]:
    return {
        "id": "1",
        "source": "tests",
        "specversion": "1.0",
        "type": kind,
        "subject": subject,
        "data": {"quantity": 1},
    }


def quota(**how: object) -> dict[str, object]:
    return {"tenant_id": "q", "meter": "calls", "limit": "1", "period": "month", **how}


def of_resource(tenant: str) -> Any:
    request = logs_request([ONE], event_name="of.resource")
    request.resource_logs[0].resource.attributes.extend(key_values({"tenant.id": tenant}))
    return request


ONE: dict[str, Value] = {"metering.quantity": 1}
EVENTS = "/v1/meter/events"
CLOUD = "/api/v1/events"
KIND = "application/cloudevents+json"
RESERVE = {"quantity": "1", "reserve": True, "reservation_id": "r"}


def each(method: str, path: str, body: Callable[[str], object], kind: str = JSON) -> Way:
    """A way that takes one at a time."""

    def send(up: Up, ids: Sequence[str]) -> None:
        for one in ids:
            call(up, method, path, body(one), kind)

    return send


def each_otlp(path: str, request: Callable[[str], Any]) -> Way:
    """The same over OTLP."""

    def send(up: Up, ids: Sequence[str]) -> None:
        for one in ids:
            otlp(up, path, request(one))

    return send


WAYS: dict[str, Way] = {
    "OTLP, attribute of a point": lambda up, ids: otlp(
        up, "metrics", metrics_request([Point(one, 1) for one in ids])
    ),
    "OTLP, attribute of a resource": each_otlp("logs", of_resource),
    "OTLP, name of a metric": lambda up, ids: otlp(
        up, "metrics", metrics_request([Point("otlp", 1, meter=one) for one in ids])
    ),
    "OTLP, attribute of a span": lambda up, ids: otlp(
        up, "traces", spans_request([{"tenant.id": one, **ONE} for one in ids], name="shop.view")
    ),
    "OTLP, name of a span": each_otlp(
        "traces", lambda one: spans_request([{"tenant.id": "otlp", **ONE}], name=one)
    ),
    "OTLP, attribute of a log record": lambda up, ids: otlp(
        up, "logs", logs_request([{"tenant.id": one, **ONE} for one in ids])
    ),
    "OTLP, name of a log record": each_otlp(
        "logs", lambda one: logs_request([{"tenant.id": "otlp", **ONE}], event_name=one)
    ),
    "JSON, tenant": lambda up, ids: call(
        up, "POST", EVENTS, [{"tenant_id": one, "meter": "calls"} for one in ids]
    ),
    "JSON, meter": lambda up, ids: call(
        up, "POST", EVENTS, [{"tenant_id": "json", "meter": one} for one in ids]
    ),
    "CloudEvents, subject": each("POST", CLOUD, lambda one: cloud_event(one, "calls"), KIND),
    "CloudEvents, type": each("POST", CLOUD, lambda one: cloud_event("ce", one), KIND),
    "key, tenant": each(
        "POST",
        "/v1/meter/keys",
        lambda one: {"name": "n", "scopes": ["ingest"], "tenant_id": one},
    ),
    "quota, tenant": each("PUT", "/v1/meter/quotas", lambda one: quota(tenant_id=one)),
    "quota, meter": each("PUT", "/v1/meter/quotas", lambda one: quota(meter=one)),
    "meter made by API": each(
        "POST",
        "/api/v1/meters",
        lambda one: {"slug": one, "aggregation": "COUNT", "eventType": "t"},
    ),
    "reservation, tenant": each(
        "POST", "/v1/meter/validate", lambda one: {"tenant_id": one, "meter": "calls", **RESERVE}
    ),
}

SEEN_IN = {
    # way -> where the good one has to be found
    "OTLP, name of a metric": "SELECT meter FROM metering.events",
    "OTLP, name of a span": "SELECT meter FROM metering.events",
    "OTLP, name of a log record": "SELECT meter FROM metering.events",
    "JSON, meter": "SELECT meter FROM metering.events",
    "CloudEvents, type": "SELECT meter FROM metering.events",
    "key, tenant": "SELECT tenant_id FROM metering.api_keys",
    "quota, tenant": "SELECT tenant_id FROM metering.quota_usage",
    "quota, meter": "SELECT meter FROM metering.quotas",
    "meter made by API": "SELECT meter FROM metering.meter_definitions",
    "reservation, tenant": "",
}
USED = "SELECT tenant_id FROM metering.events"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The tables, after everything was tried."""
    folder = tmp_path_factory.mktemp("ids")
    up = Up(folder)
    with pytest.MonkeyPatch.context() as settings:
        settings.setenv("METERING_QUOTA_USAGE_SECONDS", "0.2")
        up.start()
    for number, way in enumerate(WAYS.values()):
        way(up, [*HOSTILE, f"good-{number}"])
    sdk = subprocess.run(
        [sys.executable, "-c", SDK],
        input=json.dumps([*HOSTILE, "good-sdk"]).encode(),
        env={
            **{name: value for name, value in os.environ.items() if "PYTEST" not in name},
            "METERING_ENDPOINT": f"http://{up.http}",
            "METERING_API_KEY": KEY,
            "METERING_SPOOL_DIR": str(folder / "sdk"),
        },
        check=False,
        timeout=120,
        capture_output=True,
    )
    assert sdk.returncode == 0, sdk.stderr
    # Sent again, they are refused again.
    assert call(up, "POST", "/v1/meter/quarantine/replay", {}) in {200, 202, 400, 422}
    eventually(lambda: definitions(up), lambda slugs: any(one.startswith("good-") for one in slugs))
    assert up.stop() == 0
    opened = Store(f"chdb://{folder / 'clickhouse'}")
    yield opened
    opened.close()


def definitions(up: Up) -> list[str]:
    return [meter["slug"] for meter in up.get("/api/v1/meters")]


def test_no_id_in_the_tables_can_leave_a_literal(store: Store) -> None:
    for table, columns in READ.items():
        for column, may_be_empty in columns.items():
            found = store.query(f"SELECT DISTINCT {column} FROM metering.{table}")
            # Who is no key stands there in parentheses.
            for text in {row[0] for row in found} - {AT_START}:
                assert SAFE.fullmatch(text) or (may_be_empty and text == ""), (table, column, text)


def test_each_way_in_is_one(store: Store) -> None:
    for number, way in enumerate(WAYS):
        sql = SEEN_IN.get(way, USED)
        if sql:
            assert f"good-{number}" in {row[0] for row in store.query(sql)}, way
    assert "good-sdk" in {row[0] for row in store.query(USED)}
    assert "good-sdk" in {row[0] for row in store.query("SELECT meter FROM metering.events")}


def test_quarantine_keeps_what_was_sent_so_no_variable_may_be_made_of_it(store: Store) -> None:
    found = {row[0] for row in store.query("SELECT tenant_id FROM metering.quarantine")}

    assert {"a'b", "a\\", "${tenant}"} <= found


@pytest.mark.parametrize("one", HOSTILE)
def test_meters_yaml_and_keys_take_no_such_name(store: Store, one: str) -> None:
    with pytest.raises(MeteringError):
        read_text(f"meters:\n- slug: {json.dumps(one)}\n".encode(), "meters.yaml")
    keys = ApiKeys(store, SystemClock())
    keys.refresh()
    with pytest.raises(MeteringError):
        keys.create(name="n", scopes=[Scope.INGEST], key=f"otm_{one}_{'0' * 64}")
    with pytest.raises(MeteringError):
        keys.create(name="n", scopes=[Scope.INGEST], tenant_id=one)
