"""The SDK's chaos against the real receiver, with totals from the query API."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.e2e.up import KEY, Up
from tests.integration.sdk_backend import Act
from tests.integration.sdk_chaos import METERS, Worker, faults, run_and_kill, shortfalls
from tests.integration.sdk_process import DURABILITIES, deliver_rest
from tests.waiting import eventually


class _Proxy(ThreadingHTTPServer):
    """Passes requests on to the receiver, or does what `faults` says instead."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, target: str, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self.faults = faults(seed)
        self.lock = threading.Lock()
        self.stopped = threading.Event()

    def next_fault(self) -> Act | int:
        with self.lock:
            return next(self.faults)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of the test."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        fault = self.server.next_fault()
        if fault is Act.HANG_UNREAD:
            self.server.stopped.wait(30)
            self.close_connection = True
            return
        status, answer = (503, b"") if fault == 503 else self._pass_on(body)
        if fault is Act.LOSE_ANSWER:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _pass_on(self, body: bytes) -> tuple[int, bytes]:
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        with closing(http.client.HTTPConnection(self.server.target, timeout=30)) as receiver:
            receiver.request("POST", self.path, body, headers)
            response = receiver.getresponse()
            return response.status, response.read()

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""


@contextmanager
def flaky_proxy(target: str, seed: int) -> Iterator[str]:
    """The URL of a proxy that fails as the chaos test's receiver does."""
    with _Proxy(target, seed) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.stopped.set()
            server.shutdown()
            thread.join()


@pytest.mark.long
@pytest.mark.parametrize("durability", DURABILITIES)
def test_the_query_api_has_what_killed_processes_had_flushed(
    durability: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METERING_API_KEY", KEY)
    up = Up(tmp_path / "data")
    up.start()
    try:
        with flaky_proxy(up.http, seed=1) as endpoint:
            workers = run_and_kill(1, 12, durability, endpoint, tmp_path / "spool")
            deliver_rest(endpoint, tmp_path / "spool", api_key=KEY)
        # All is acknowledged, so all of it is about to be seen.
        eventually(
            lambda: shortfalls(workers, durability, _totals(up, workers)), lambda found: not found
        )
    finally:
        up.stop()


def _totals(up: Up, workers: list[Worker]) -> dict[tuple[str, str], int]:
    totals = {(meter, worker.name): 0 for meter in METERS for worker in workers}
    for (tenant, meter, _), units in up.totals(METERS, "day").items():
        totals[meter, tenant] += int(units)
    return totals
