"""What a process owes to its leases when it forks, ends, or is configured anew."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from receiver.store.keys import Scope
from tests.integration.api_harness import Api, running_api
from tests.integration.sdk_backend import Backend, running_backend

NOWHERE = "http://127.0.0.1:9"
"""The discard port, where nobody listens."""

PRELUDE = """
    import multiprocessing, os, sys
    import otel_metering
    from otel_metering._leases import leases
    UNIT = 10**9

    def use(units, tenant="tenant_a"):
        grant = leases.take("api.calls", tenant, units * UNIT)
        named = {"metering.reservation.id": grant.reservation_id}
        otel_metering.record("api.calls", units, tenant=tenant, attributes=named)
        leases.settle(grant, units * UNIT)
        return grant.reservation_id

    otel_metering.configure(service_name="shop", retry_initial_seconds=0.05, timeout_seconds=1)
"""


@dataclass
class World:
    """A query API with a quota of 1,000 for `tenant_a`, and a receiver that only keeps what it gets."""

    api: Api
    admin: httpx.Client
    backend: Backend
    folder: Path

    def run(self, program: str, *, endpoint: str | None = None, api_url: str | None = None) -> str:
        """What `program` prints; it ends well."""
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(program)],
            env={
                **{name: value for name, value in os.environ.items() if "PYTEST" not in name},
                "METERING_ENDPOINT": endpoint or self.backend.endpoint,
                "METERING_API_URL": api_url or self.api.url,
                "METERING_API_KEY": self.api.key(Scope.VALIDATE),
                "METERING_SPOOL_DIR": str(self.folder),
            },
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    def held(self) -> int:
        body = {"tenant_id": "tenant_a", "meter": "api.calls", "quantity": "0"}
        answer = self.admin.post("/v1/meter/validate", json=body)
        assert answer.status_code == 200, answer.text
        return int(Decimal(answer.json()["reserved"]))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("leases")) as running:
        yield running


@pytest.fixture
def world(api: Api, tmp_path: Path) -> Iterator[World]:
    admin = api.client(Scope.ADMIN, Scope.VALIDATE)
    api.keys.refresh()
    body = {"tenant_id": "tenant_a", "meter": "api.calls", "limit": "1000", "period": "lifetime"}
    assert admin.put("/v1/meter/quotas", json=body).status_code == 200
    with running_backend() as backend:
        found = World(api, admin, backend, tmp_path)
        yield found
    api.clock.advance(600)  # whatever is still held ends
    api.keys.refresh()


def test_what_is_left_is_given_back_when_the_process_ends(world: World) -> None:
    world.run("use(3); leases.settle(leases.take('api.calls', 'tenant_a', 500 * UNIT), 0)")

    assert world.backend.total("api.calls") == 3
    # What was used is held no longer either: here nobody counts what the receiver gets.
    assert world.held() <= 3


def test_what_was_not_delivered_stays_held_when_the_process_ends(world: World) -> None:
    world.run(
        "leases.settle(leases.take('api.calls', 'tenant_a', 50 * UNIT), 0); use(3)",
        endpoint=NOWHERE,
    )

    assert world.held() >= 50


def test_a_forked_child_has_leases_of_its_own(world: World) -> None:
    program = """
        leases.settle(leases.take("api.calls", "tenant_a", 40 * UNIT), 0)
        mine = use(1)

        def work():
            his = use(1)
            os.write(1, b"own\\n" if his != mine else b"the parent's\\n")

        children = [multiprocessing.get_context("fork").Process(target=work) for _ in range(3)]
        for one in children: one.start()
        for one in children: one.join()
        print("still" if use(1) == mine else "lost", flush=True)
    """

    assert sorted(world.run(program).split()) == ["own", "own", "own", "still"]
    assert world.backend.total("api.calls") == 5
    assert world.held() <= 5


def test_leases_outlive_another_configuration(world: World) -> None:
    program = """
        leases.settle(leases.take("api.calls", "tenant_a", 40 * UNIT), 0)
        before = use(1)
        otel_metering.configure(service_name="shop", timeout_seconds=1)
        print("still" if use(1) == before else "lost")
    """

    assert world.run(program) == "still\n"
    assert world.backend.total("api.calls") == 2


def test_before_configure_and_after_shutdown_nothing_is_enforced(world: World) -> None:
    program = """
        otel_metering.shutdown()
        print(leases.take("api.calls", "tenant_a", 10**6 * UNIT).reservation_id)
    """

    assert world.run(program) == "None\n"


class Hanging(BaseHTTPRequestHandler):
    """Allows every check, and answers nothing else."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if "validate" not in self.path:
            threading.Event().wait(30)
        found = {
            "allowed": True,
            "reason": "ok",
            "enforcement": "hard",
            "remaining": "5",
            "resets_at": None,
        }
        content = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_service_that_hangs_does_not_hold_up_the_end(world: World) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hanging)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        printed = world.run(
            """
            import atexit, time
            for tenant in range(20):
                leases.settle(leases.take("api.calls", f"t{tenant}", 5 * UNIT), 0)
            print(time.monotonic())
            """,
            api_url=f"http://127.0.0.1:{server.server_address[1]}",
        )
        # Of the same clock: all processes of a machine share it.
        assert time.monotonic() - float(printed) < 10
    finally:
        server.shutdown()
        server.server_close()
