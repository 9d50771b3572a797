"""uvicorn and gunicorn, told to end in every way they know: each request counts once, each import too.

The rows are those of the table of servers that the OpenTelemetry SDK was measured with: under uvicorn it
loses all 20 requests, and with `gunicorn --preload` it counts what was counted before the fork three times.
"""

import http.client
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from _pytest.mark import ParameterSet

from tests.e2e.up import free_ports
from tests.integration.sdk_backend import Act, Backend, running_backend
from tests.integration.sdk_process import deliver_rest, environment
from tests.waiting import eventually

REQUESTS: Final = 20

_AT_IMPORT: Final = """
import os
import otel_metering
from otel_metering import record
otel_metering.configure(service_name="shop", retry_initial_seconds=0.05)
record("imports", 100, tenant="tenant_a")
with open(os.environ["IMPORTS_FILE"], "a") as file:
    print(os.getpid(), file=file)
"""

ASGI: Final = f"""{_AT_IMPORT}
from otel_metering.middleware.asgi import MeteringMiddleware

async def bare(scope, receive, send):
    assert scope["type"] == "http"
    record("api.calls")
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": b"done"}})

app = MeteringMiddleware(bare)
"""

WSGI: Final = f"""{_AT_IMPORT}
from wsgiref.util import setup_testing_defaults

def app(environ, start_response):
    setup_testing_defaults(environ)
    record("api.calls", tenant=environ["HTTP_X_TENANT_ID"])
    start_response("200 OK", [("content-length", "4")])
    return [b"done"]
"""

GUNICORN_CONFIGURATION: Final = """
def post_worker_init(worker):
    # From here on a worker understands signals; gunicorn kills one that was told to end before.
    with open("workers", "a") as file:
        print(worker.pid, file=file)
"""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A row.

    Attributes:
        command: After `python -m`; `{port}` is put in.
        number: The signal that ends it.
        imports: How many processes import the application; None: as many as it turns out.
    """

    command: str
    number: signal.Signals
    imports: int | None

    def __str__(self) -> str:
        """What stands in the list of tests."""
        shown = self.command
        for part in (
            " app:app",
            " --port {port}",
            " -b 127.0.0.1:{port}",
            " --graceful-timeout 10",
        ):
            shown = shown.replace(part, "")
        return f"{shown} {self.number.name}"


UVICORN: Final = "uvicorn --port {port} app:app"
GUNICORN: Final = "gunicorn -b 127.0.0.1:{port} --graceful-timeout 10 app:app"


def long(row: Server) -> ParameterSet:
    """A row that differs from another by its signal alone."""
    return pytest.param(row, marks=pytest.mark.long)


SERVERS = [
    Server(command=UVICORN, number=signal.SIGTERM, imports=1),
    Server(command=UVICORN, number=signal.SIGINT, imports=1),
    Server(command=f"{UVICORN} --workers 2", number=signal.SIGTERM, imports=2),
    Server(command=f"{UVICORN} --workers 2", number=signal.SIGINT, imports=2),
    Server(command=f"{GUNICORN} -w2 -k sync", number=signal.SIGTERM, imports=2),
    long(Server(command=f"{GUNICORN} -w2 -k sync", number=signal.SIGINT, imports=2)),
    Server(command=f"{GUNICORN} -w2 -k sync", number=signal.SIGQUIT, imports=2),
    Server(command=f"{GUNICORN} -w2 -k gthread --threads 4", number=signal.SIGTERM, imports=2),
    long(Server(command=f"{GUNICORN} -w2 -k gthread --threads 4", number=signal.SIGINT, imports=2)),
    long(
        Server(command=f"{GUNICORN} -w2 -k gthread --threads 4", number=signal.SIGQUIT, imports=2)
    ),
    Server(command=f"{GUNICORN} -w2 -k sync --preload", number=signal.SIGTERM, imports=1),
    long(Server(command=f"{GUNICORN} -w2 -k sync --preload", number=signal.SIGQUIT, imports=1)),
    Server(command=f"{GUNICORN} -w2 -k gthread --preload", number=signal.SIGTERM, imports=1),
    Server(command=f"{GUNICORN} -w2 --max-requests 5", number=signal.SIGTERM, imports=None),
    Server(command=f"{GUNICORN} -w2 --max-requests 5 --preload", number=signal.SIGTERM, imports=1),
    Server(command=f"{GUNICORN} -w2 -k gevent", number=signal.SIGTERM, imports=2),
    long(Server(command=f"{GUNICORN} -w2 -k gevent", number=signal.SIGINT, imports=2)),
    Server(command=f"{GUNICORN} -w2 -k gevent --preload", number=signal.SIGTERM, imports=1),
]


class Running:
    """A server at work, in a folder of its own."""

    def __init__(self, command: str, folder: Path, backend: Backend) -> None:
        (self._port,) = free_ports(1)
        self._imports = folder / "imports"
        self._log = folder / "log"
        self.app = folder / "app.py"
        self.app.write_text(ASGI if command.startswith("uvicorn") else WSGI)
        self._workers = folder / "workers"
        self._imports.touch()
        self._workers.touch()
        self._wanted_workers = 2 if command.startswith("gunicorn") else 0
        (folder / "gunicorn.conf.py").write_text(GUNICORN_CONFIGURATION)
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command.format(port=self._port).split()],
                cwd=folder,
                env=environment(
                    backend.endpoint,
                    folder / "spool",
                    PYTHONPATH=f"{folder}:{Path(__file__).parents[2]}",
                    PYTHONDONTWRITEBYTECODE="1",
                    IMPORTS_FILE=str(self._imports),
                ),
                stdout=log,
                stderr=log,
            )

    def imports(self) -> int:
        """How many processes imported the application."""
        return len(self._imports.read_text().splitlines())

    def serve(self, count: int, *, after_imports: int = 1) -> None:
        """Once so many processes imported the application, send requests; each is answered."""
        eventually(self.imports, lambda imports: imports >= after_imports, seconds=40)
        eventually(
            lambda: len(self._workers.read_text().splitlines()),
            lambda workers: workers >= self._wanted_workers,
            seconds=40,
        )
        eventually(self._listens, bool, seconds=40)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: self._ask(), range(count)))
        assert answers == [200] * count, self._log.read_text()

    def end(self, number: signal.Signals) -> None:
        """Send the signal, and wait until the processes have ended."""
        self.process.send_signal(number)
        self.process.wait(30)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port)).close()
        except ConnectionRefusedError:
            return False
        return True

    def _ask(self) -> int:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)) as client:
            client.request("GET", "/", headers={"x-tenant-id": "tenant_a"})
            return client.getresponse().status


Start = Callable[[str], Running]


@pytest.fixture
def backend() -> Iterator[Backend]:
    with running_backend() as backend:
        yield backend


@pytest.fixture
def start(backend: Backend, tmp_path: Path) -> Iterator[Start]:
    """Starts a server; it is killed at the end of the test, if it still runs."""
    started: list[Running] = []

    def start(command: str) -> Running:
        started.append(Running(command, tmp_path, backend))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()


def totals_of(requests: int, imports: int) -> dict[tuple[str, object], int]:
    return {("api.calls", "tenant_a"): requests, ("imports", "tenant_a"): 100 * imports}


@pytest.mark.parametrize("row", SERVERS, ids=str)
def test_a_server_that_is_told_to_end_has_delivered_each_request_and_each_import_once(
    row: Server, start: Start, backend: Backend, tmp_path: Path
) -> None:
    server = start(row.command)
    server.serve(REQUESTS, after_imports=row.imports or 1)
    server.end(row.number)

    assert row.imports in (None, server.imports())
    assert backend.totals() == totals_of(REQUESTS, server.imports())
    deliver_rest(backend.endpoint, tmp_path / "spool")
    assert backend.totals() == totals_of(REQUESTS, server.imports())


def test_a_server_that_reloads_has_delivered_what_it_counted_before(
    start: Start, backend: Backend, tmp_path: Path
) -> None:
    server = start(f"{UVICORN} --reload --reload-delay 0.05")
    server.serve(REQUESTS)
    server.app.write_text(f"{ASGI}\nimport this\n")
    server.serve(REQUESTS, after_imports=2)
    server.end(signal.SIGTERM)

    assert backend.totals() == totals_of(2 * REQUESTS, 2)


@pytest.mark.parametrize("kind", ["sync", "gthread"])
def test_a_hanging_receiver_does_not_cost_a_server_its_usage(
    kind: str, start: Start, backend: Backend, tmp_path: Path
) -> None:
    backend.script = [Act.HANG_UNREAD] * 999
    command = GUNICORN.replace("--graceful-timeout 10", "--graceful-timeout 3")
    server = start(f"{command} -w2 -k {kind}")
    server.serve(REQUESTS, after_imports=2)
    began = time.monotonic()
    server.end(signal.SIGTERM)
    assert time.monotonic() - began < 6
    assert backend.totals() == {}

    backend.script = []
    deliver_rest(backend.endpoint, tmp_path / "spool")

    assert backend.totals() == totals_of(REQUESTS, 2)
