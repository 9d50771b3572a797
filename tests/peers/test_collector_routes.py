"""The shipped Collector: what is usage goes to the receiver, the rest to the backend; whose usage it is survives."""

import json
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path

import grpc
import pytest

from tests.conformance.test_tls import Pki
from tests.e2e.up import KEY, Up, free_ports
from tests.otlp import (
    GRPC_METRICS,
    NOON,
    Data,
    Point,
    call,
    data_request,
    logs_request,
    metrics_request,
    post,
    spans_request,
)
from tests.peers.collector.backend import Backend
from tests.peers.collector.process import (
    GATEWAY,
    OTHER_TOKEN,
    SIDECAR,
    TENANT_HEADER,
    TLS,
    TOKEN,
    Collector,
    validate,
)
from tests.waiting import eventually

pytestmark = [pytest.mark.peers, pytest.mark.timeout(900)]

Start = Callable[..., Collector]
SETTINGS = {
    "metering_endpoint": "https://metering:4318",
    "backend_endpoint": "https://backend:4318",
}
TOTAL = {"window": "total", "from": "2020-01-01T00:00:00Z", "to": "2030-01-01T00:00:00Z"}
METERS = ("api.calls", "http.requests", "llm.tokens", "jobs", "mails")


@pytest.fixture
def start(program: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts Collectors, which are ended with the test."""
    started: list[Collector] = []

    def one(*config: Path, **arguments: str) -> Collector:
        made = Collector(program, tmp_path / f"collector{len(started)}", config, **arguments)
        started.append(made)
        made.start()
        return made

    yield one
    for each in started:
        if each.is_running:
            each.kill()


def usage(up: Up, tenant_prefix: str = "") -> dict[tuple[str, str], Decimal]:
    """(tenant, meter) -> sum, of the tenants whose names begin so; the prefix is taken off."""
    return {
        (row["tenant_id"].removeprefix(tenant_prefix), meter): Decimal(row["value"])
        for meter in METERS
        for row in up.get("/v1/meter/aggregates", meter=meter, group_by="tenant_id", **TOTAL)[
            "data"
        ]
        if row["tenant_id"].startswith(tenant_prefix)
    }


def telemetry(tenant: str, first_id: int) -> list[tuple[str, bytes]]:
    """(path, body): what meters.yaml and the SDK's conventions meter, and what they do not."""
    whose = {"tenant.id": tenant}
    tokens = [
        Data("histogram", 12, 3, attributes=whose),
        Data("histogram", 30, 1, attributes=whose),
    ]
    metrics = [
        metrics_request([Point(tenant, 2), Point(tenant, 5, at_ns=NOON + 1)]),
        data_request(tokens, name="gen_ai.client.token.usage", scope="shop.llm"),
        data_request([Data("gauge", 7)], name="process.memory.usage", scope="shop.runtime"),
    ]
    spans = [
        spans_request([whose, whose], first_id=first_id),
        spans_request([{}], first_id=first_id + 10, kind=3, name="SELECT products"),
        spans_request(
            [{**whose, "metering.quantity": 4}], first_id=first_id + 20, kind=1, name="jobs"
        ),
    ]
    logs = [
        logs_request([{**whose, "metering.quantity": 9}], event_name="mails"),
        logs_request([{"level": "info"}], event_name="started"),
    ]
    signals = (("metrics", metrics), ("traces", spans), ("logs", logs))
    return [
        (f"/v1/{name}", one.SerializeToString()) for name, requests in signals for one in requests
    ]


METERED = {"api.calls": 7, "llm.tokens": 42, "http.requests": 2, "jobs": 4, "mails": 9}


def send(address: str, requests: list[tuple[str, bytes]], key: str, **headers: str) -> None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    for path, body in requests:
        assert post(address, path, body, key, headers=named)[0] == 200


@pytest.mark.parametrize(
    "config", [GATEWAY, TENANT_HEADER, TLS, SIDECAR], ids=["gateway", "header", "tls", "sidecar"]
)
@pytest.mark.parametrize("protocol", ["otlp_http", "otlp_grpc"])
def test_every_variant_is_valid(
    program: Path, tmp_path: Path, config: tuple[Path, ...], protocol: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a token\n")
    names = ("metering_key_file", "tokens_file", "cert_file", "key_file")
    files = dict.fromkeys(names, str(secret))
    chosen = {"metering": f"{protocol}/metering", "backend": f"{protocol}/backend"}

    assert validate(program, config, {**SETTINGS, **files, **chosen}) == ""


@pytest.mark.parametrize("missing", ["metering_endpoint", "backend_endpoint", "metering_key_file"])
def test_a_gateway_that_is_told_too_little_does_not_start(
    program: Path, tmp_path: Path, missing: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a token\n")
    settings = {**SETTINGS, "metering_key_file": str(secret), "tokens_file": str(secret)}
    del settings[missing]

    assert "Error" in validate(program, GATEWAY, settings)


def test_a_gateway_says_nothing_of_old_names_when_it_starts(start: Start, new_up: Up) -> None:
    new_up.start()
    gateway = start(*GATEWAY, to=f"http://{new_up.http}")

    printed = gateway.log.read_text().lower()

    assert "deprecat" not in printed
    assert '"level":"error"' not in printed
    assert post(gateway.health, "/", b"", None)[0] == 200
    assert '"level":"warn"' not in printed, printed


def test_usage_reaches_the_receiver_as_if_sent_directly_and_the_rest_reaches_the_backend(
    start: Start, new_up: Up
) -> None:
    new_up.start()
    with Backend() as backend:
        gateway = start(
            *GATEWAY,
            to=f"http://{new_up.http}",
            backend="otlp_http/backend",
            backend_endpoint=backend.url,
        )

        send(gateway.http, telemetry("collected_acme", 100), TOKEN)
        send(new_up.http, telemetry("direct_acme", 200), KEY)

        expected = {("acme", meter): Decimal(value) for meter, value in METERED.items()}
        eventually(lambda: usage(new_up, "direct_"), lambda found: found == expected)
        eventually(lambda: usage(new_up, "collected_"), lambda found: found == expected)
        spans = {"GET /products", "SELECT products", "jobs"}
        others = {"process.memory.usage", "gen_ai.client.token.usage", "started"}
        eventually(lambda: set(backend.got), lambda got: got == spans | others)
    assert new_up.get("/v1/meter/quarantine")["data"] == []


def test_usage_alone_is_acknowledged_while_the_backend_is_down_and_its_queue_is_full(
    start: Start, new_up: Up, tmp_path: Path
) -> None:
    new_up.start()
    short = tmp_path / "short.yaml"
    queue = {"queue_size": 3, "num_consumers": 1, "batch": {"min_size": 1, "max_size": 3}}
    short.write_text(json.dumps({"exporters": {"otlp_http/backend": {"sending_queue": queue}}}))
    gateway = start(
        *GATEWAY,
        short,
        to=f"http://{new_up.http}",
        backend="otlp_http/backend",
        backend_endpoint=f"http://127.0.0.1:{free_ports(1)[0]}",
    )
    [*_, (path, spans)] = [one for one in telemetry("acme", 1) if one[0] == "/v1/traces"]
    eventually(lambda: post(gateway.http, path, spans, TOKEN)[0], lambda status: status == 503)

    points = metrics_request([Point("acme", 2)]).SerializeToString()
    records = logs_request([{"tenant.id": "acme", "metering.quantity": 9}], event_name="mails")
    send(gateway.http, [("/v1/metrics", points), ("/v1/logs", records.SerializeToString())], TOKEN)

    expected = {
        "api.calls": 2,
        "mails": 9,
        "jobs": 4,
    }  # those refused spans were usage all the same
    eventually(
        lambda: usage(new_up),
        lambda found: found == {("acme", meter): Decimal(n) for meter, n in expected.items()},
    )


def test_the_tenant_is_that_of_the_trusted_header_also_after_a_restart_from_disk(
    start: Start, new_up: Up
) -> None:
    new_up.start()
    gateway = start(*TENANT_HEADER, to=f"http://{new_up.http}")
    new_up.kill()  # so that all of it waits on disk, and is merged into one request
    send(gateway.http, telemetry("a_liar", 100), TOKEN, x_tenant_id="acme")
    send(gateway.http, telemetry("a_liar", 200), OTHER_TOKEN, x_tenant_id="globex")
    send(gateway.http, telemetry("a_liar", 300), TOKEN)
    claimed = metrics_request([Point("a_liar", 11)], resource={"tenant.id": "a_liar"})
    metadata = (("authorization", f"Bearer {TOKEN}"), ("x-tenant-id", "initech"))
    _call(gateway.grpc, claimed.SerializeToString(), metadata)

    gateway.kill()
    new_up.start()
    gateway.start()

    expected = {
        (tenant, meter): Decimal(value)
        for tenant in ("acme", "globex")
        for meter, value in METERED.items()
    }
    expected["initech", "api.calls"] = Decimal(11)
    eventually(lambda: usage(new_up), lambda found: found == expected)
    reasons = eventually(_quarantined(new_up), lambda found: len(found) == 8)
    assert {reason for _, reason in reasons} == {"no_tenant"}
    assert {tenant for tenant, _ in reasons} == {""}


def test_the_key_of_a_sidecar_says_whose_usage_it_is_also_after_a_restart_from_disk(
    start: Start, new_up: Up
) -> None:
    new_up.start()
    request = {"name": "sidecar", "scopes": ["ingest"], "tenant_id": "acme"}
    status, made = new_up.post("/v1/meter/keys", request)
    assert status == 201
    sidecar = start(*SIDECAR, to=f"http://{new_up.http}", key=made["key"])
    new_up.kill()
    silent = spans_request([{}, {}, {}])
    send(sidecar.http, [("/v1/traces", silent.SerializeToString())], "")
    send(sidecar.http, telemetry("globex", 100), "")

    sidecar.kill()
    new_up.start()
    sidecar.start()

    eventually(
        lambda: usage(new_up), lambda found: found == {("acme", "http.requests"): Decimal(3)}
    )
    reasons = eventually(_quarantined(new_up), lambda found: len(found) == 8)
    assert {reason for _, reason in reasons} == {"tenant_not_allowed"}


def test_without_a_token_nothing_is_taken(start: Start, new_up: Up) -> None:
    new_up.start()
    gateway = start(*GATEWAY, to=f"http://{new_up.http}")
    body = metrics_request([Point("acme", 2)]).SerializeToString()

    assert post(gateway.http, "/v1/metrics", body, None)[0] == 401
    assert post(gateway.http, "/v1/metrics", body, "otm_wrong")[0] == 401
    with pytest.raises(grpc.RpcError) as refused:
        call(gateway.grpc, body, None)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_senders_use_tls_where_the_gateway_has_a_certificate(
    start: Start, new_up: Up, tmp_path: Path
) -> None:
    new_up.start()
    pki = Pki(tmp_path)
    gateway = start(
        *TLS,
        to=f"http://{new_up.http}",
        cert_file=str(pki.path("one.crt")),
        key_file=str(pki.path("one.key")),
    )
    body = metrics_request([Point("acme", 2)]).SerializeToString()
    trusted = grpc.ssl_channel_credentials(pki.path("ca.crt").read_bytes())
    metadata = (("authorization", f"Bearer {TOKEN}"),)

    with pytest.raises(grpc.RpcError):
        _call(gateway.grpc, body, metadata)
    _call(gateway.grpc, body, metadata, trusted)

    expected = {("acme", "api.calls"): Decimal(2)}
    eventually(lambda: usage(new_up), lambda found: found == expected)


def _call(
    address: str,
    body: bytes,
    metadata: tuple[tuple[str, str], ...],
    credentials: grpc.ChannelCredentials | None = None,
) -> None:
    made = (
        grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)
    )
    with made as channel:
        export: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(GRPC_METRICS)
        export(body, timeout=10, metadata=metadata)


def _quarantined(up: Up) -> Callable[[], list[tuple[str, str]]]:
    def ask() -> list[tuple[str, str]]:
        rows: list[Mapping[str, str]] = up.get("/v1/meter/quarantine")["data"]
        return [(row["tenant_id"], row["reason"]) for row in rows]

    return ask
