"""What stops a start (Go: TestGRPCNewPortAlreadyUsed, TestHTTPNewPortAlreadyUsed)."""

import socket
from contextlib import suppress

import pytest

from tests.e2e.up import Up
from tests.waiting import eventually


def refused_start(up: Up) -> str:
    """What is printed by a start that does not come to be."""
    with suppress(AssertionError):
        up.start()
    eventually(lambda: up.is_running, lambda is_running: not is_running)
    return "".join(up.printed)


@pytest.mark.parametrize("edge", ["grpc", "http", "api"])
def test_a_port_that_is_taken_stops_the_start_and_is_named(new_up: Up, edge: str) -> None:
    address = getattr(new_up, edge)
    host, _, port = address.partition(":")
    with socket.create_server((host, int(port))):
        assert f"cannot listen on {address}" in refused_start(new_up)


def test_without_tls_the_addresses_are_plain(up: Up) -> None:
    printed = "".join(up.printed)

    assert f"OTLP/HTTP   http://{up.http}" in printed
    assert f"query API   http://{up.api}" in printed
