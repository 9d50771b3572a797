"""gRPC -> visible in `usage_minute`: generator, receiver and engine together on one machine."""

import json
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

import grpc

from bench.load import EXPORT, Shape, requests

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Run:
    """One measurement."""

    points: int
    acknowledged_seconds: float
    visible_seconds: float
    generator_cpu_seconds: float
    cpu_seconds: dict[str, float]


def run(shape: Shape, points: int) -> Run:
    """Send `points` and wait until every one is in `usage_minute`."""
    key = f"otm_bench_{secrets.token_hex(32)}"
    with tempfile.TemporaryDirectory() as folder:
        server = _start("bench.server", folder, key)
        try:
            addresses = json.loads(line_of(server))
            load = _start(
                "bench.load",
                addresses["grpc"],
                key,
                str(shape.points_per_request),
                str(shape.in_flight),
                str(points),
            )
            assert line_of(load).strip() == "prepared"
            before = ask(server)
            began = time.perf_counter()
            tell(load)
            seconds, generator_cpu = (float(word) for word in line_of(load).split())
            while visible(addresses["api"], key) != points:
                assert time.perf_counter() - began < 300, "not visible after five minutes"
                time.sleep(POLL_SECONDS)
            seconds_visible = time.perf_counter() - began
            after = ask(server)
            load.wait()
        finally:
            server.terminate()
            server.wait()
    used = {name: after[name] - before.get(name, 0.0) for name in after}
    return Run(points, seconds, seconds_visible, generator_cpu, used)


def idle_lags(samples: int) -> list[float]:
    """Seconds from an acknowledgement to visible in `usage_minute`, one request at a time."""
    key, shape = f"otm_bench_{secrets.token_hex(32)}", Shape(50, 1)
    bodies = requests(shape, samples * shape.points_per_request)
    lags = []
    with tempfile.TemporaryDirectory() as folder:
        server = _start("bench.server", folder, key)
        try:
            addresses = json.loads(line_of(server))
            with grpc.insecure_channel(addresses["grpc"]) as channel:
                export = channel.unary_unary(EXPORT)
                for number, body in enumerate(bodies, 1):
                    export(body, metadata=(("authorization", f"Bearer {key}"),))
                    began = time.perf_counter()
                    while visible(addresses["api"], key) != number * shape.points_per_request:
                        time.sleep(POLL_SECONDS / 5)
                    lags.append(time.perf_counter() - began)
        finally:
            server.terminate()
            server.wait()
    return lags


def _start(module: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line_of(process: "subprocess.Popen[str]") -> str:
    """The next line that it prints."""
    assert process.stdout is not None
    return process.stdout.readline()


def tell(process: "subprocess.Popen[str]") -> None:
    """Write it a line."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def ask(process: "subprocess.Popen[str]") -> dict[str, float]:
    """CPU seconds by thread of a `bench.server`."""
    tell(process)
    answer: dict[str, float] = json.loads(line_of(process))
    return answer


def visible(api: str, key: str, meter: str = "api.calls") -> int:
    """How many events of `meter` are in `usage_minute`."""
    query = urllib.parse.urlencode(
        {
            "meter": meter,
            "aggregation": "count",
            "window": "minute",
            "limit": "100000",
            "from": "2026-09-01T00:00:00Z",
            "to": "2026-10-01T00:00:00Z",
        }
    )
    request = urllib.request.Request(
        f"{api}/v1/meter/aggregates?{query}", headers={"authorization": f"Bearer {key}"}
    )
    with urllib.request.urlopen(request) as response:
        answer: dict[str, Any] = json.load(response)
    return sum(int(row["value"]) for row in answer["data"])


def is_listening(address: str) -> bool:
    """Whether somebody accepts connections there."""
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True
