"""The OpenTelemetry SDK for JavaScript, unmodified, sends; what it sends is counted exactly.

It shares no code with the Python SDK or with the protobuf classes that the other tests send with.
"""

import json
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.up import KEY, Up
from tests.peers.install import UnavailableError, installed, run, tool
from tests.waiting import eventually

HERE = Path(__file__).parent / "js"
PROTOCOLS = ("http/json", "http/protobuf", "grpc")
TENANTS = ("js_a", "js_b")
ROUNDS = 3

VALUES: dict[str, list[int | float]] = {
    "delta counter": [1, 2**40, 3],
    "cumulative counter": [0.125, 0.25, 7],
    "delta histogram": [0.5, 12, 300],
    "cumulative histogram": [2, 40, 9000],
    "gauge": [5, 2, 4],
    "up-down counter": [10, -3, -2],
    "span": [1, 1, 1],
    "log": [0.125, 2, 2**33],
}
"""What each tenant does in each round. The SDK adds doubles up itself, so those are sums of powers of two."""


@dataclass(frozen=True)
class Step:
    kind: str
    protocol: str
    tenant: str
    value: int | float
    number: int

    @property
    def meter(self) -> str:
        if self.kind == "span":
            return "http.requests"
        return f"{self.protocol}/{self.kind}".replace(" ", "-")

    def described(self) -> dict[str, Any]:
        """As `send.mjs` reads it."""
        attributes: dict[str, Any] = {"tenant.id": f"{self.protocol}/{self.tenant}"}
        if self.kind == "log":
            attributes["metering.event.id"] = f"{self.number}"
            attributes["metering.quantity"] = self.value
        if self.kind == "span":
            attributes["http.route"] = "/x"
        return {
            "kind": self.kind,
            "name": self.meter,
            "value": self.value,
            "integer": all(isinstance(one, int) for one in VALUES[self.kind]),
            "attributes": attributes,
        }


def steps_of(protocol: str) -> list[list[Step]]:
    return [
        [
            Step(kind, protocol, tenant, value, round_number * 1000 + number)
            for tenant in TENANTS
            for kind, values in VALUES.items()
            for number, value in enumerate(values)
        ]
        for round_number in range(ROUNDS)
    ]


def oracle(protocol: str, kind: str) -> dict[str, Decimal]:
    """Tenant -> usage: the sum; for a gauge its last value, for an up-down counter its level."""
    totals: dict[str, Decimal] = defaultdict(Decimal)
    for steps in steps_of(protocol):
        for step in steps:
            if step.kind == kind:
                before = Decimal(0) if kind == "gauge" else totals[f"{protocol}/{step.tenant}"]
                totals[f"{protocol}/{step.tenant}"] = before + Decimal(repr(step.value))
    return dict(totals)


@pytest.fixture(scope="module")
def modules() -> Path:
    """`node_modules` as the lock file says."""
    recipe = (HERE / "package.json").read_text() + (HERE / "package-lock.json").read_text()

    def install(folder: Path) -> None:
        for name in ("package.json", "package-lock.json"):
            (folder / name).write_text((HERE / name).read_text())
        npm = tool("npm", (9,), "--version")
        run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder)

    try:
        tool("node", (20, 6), "--version")
        return installed("js", recipe, install) / "node_modules"
    except UnavailableError as error:
        pytest.skip(f"the JavaScript SDK cannot be installed: {error}")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("javascript")
    meters = folder / "meters.yaml"
    levels = [Step(k, p, "", 0, 0).meter for p in PROTOCOLS for k in ("gauge", "up-down counter")]
    listed: list[dict[str, Any]] = [{"slug": slug, "aggregation": "latest"} for slug in levels]
    span = {"slug": "http.requests", "source": {"signal": "span", "kind": "server"}}
    meters.write_text(json.dumps({"meters": [*listed, {**span, "aggregation": "count"}]}))
    running = Up(folder, f"--meters={meters}")
    running.start()
    try:
        yield running
    finally:
        if running.is_running:
            running.stop()


@pytest.fixture(scope="module")
def told(
    up: Up, modules: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Protocol -> what the exporters were told, after everything was sent."""
    folder = tmp_path_factory.mktemp("sender")
    (folder / "node_modules").symlink_to(modules)
    script = folder / "send.mjs"
    script.write_text((HERE / "send.mjs").read_text())
    return {protocol: send(up, script, protocol) for protocol in PROTOCOLS}


def send(up: Up, script: Path, protocol: str) -> dict[str, Any]:
    plan = {
        "protocol": protocol,
        "endpoint": f"http://{up.grpc if protocol == 'grpc' else up.http}",
        "key": KEY,
        "rounds": [[step.described() for step in steps] for steps in steps_of(protocol)],
    }
    done = subprocess.run(
        ["node", script],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def counted(up: Up, protocol: str, kind: str) -> dict[str, Decimal]:
    """Tenant -> what the query API says."""
    answer = up.get(
        "/v1/meter/aggregates",
        meter=Step(kind, protocol, "", 0, 0).meter,
        window="total",
        group_by="tenant_id",
    )
    tenants = {row["tenant_id"]: Decimal(row["value"]) for row in answer["data"]}
    return {tenant: value for tenant, value in tenants.items() if tenant.startswith(protocol)}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_export_of_the_javascript_sdk_is_acknowledged(
    told: dict[str, dict[str, Any]], protocol: str
) -> None:
    assert told[protocol]["failures"] == []
    assert told[protocol]["exports"] >= 4 * ROUNDS


@pytest.mark.parametrize("kind", list(VALUES))
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_usage_that_the_javascript_sdk_sends_is_counted_exactly(
    up: Up,
    told: dict[str, dict[str, Any]],
    protocol: str,
    kind: str,
) -> None:
    assert told[protocol]["exports"] > 0
    expected = oracle(protocol, kind)
    eventually(lambda: counted(up, protocol, kind), lambda found: found == expected)
