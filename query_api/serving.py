"""HTTP servers on one event loop, and the wait for their end."""

import asyncio
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn

from otel_metering.errors import ConfigurationError
from receiver.http_connection import KEEP_ALIVE_SECONDS, bounded_connection
from receiver.tls import CHECK_SECONDS, Tls

STOP_GRACE_SECONDS: Final = 5.0
"""How long a request that has begun may take to end."""

BACKLOG: Final = 1_024
"""Connections that wait to be accepted."""


def stop_signals() -> asyncio.Event:
    """From now on SIGTERM and SIGINT set this event, on the loop that runs."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    return stopping


async def until(stopping: asyncio.Event, tls: Tls | None) -> None:
    """Wait for the end, and take over certificates that change."""
    while not stopping.is_set():
        try:
            async with asyncio.timeout(None if tls is None else CHECK_SECONDS):
                await stopping.wait()
        except TimeoutError:
            if tls is not None:
                tls.reload()


class Server:
    """One uvicorn server on this loop, which leaves signals to others."""

    def __init__(
        self,
        app: Any,  # noqa: ANN401 - uvicorn's type
        host: str,
        port: int,
        name: str,
        *,
        read_timeout_seconds: float,
        tls: ssl.SSLContext | None,
        trusts_proxies: bool = True,
    ) -> None:
        self._host, self._port, self._name = host, port, name
        self._scheme = "http" if tls is None else "https"
        self._server = _QuietServer(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                lifespan="off",
                http=bounded_connection(read_timeout_seconds),
                ws="none",
                proxy_headers=trusts_proxies,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                ssl_context_factory=None if tls is None else lambda _configuration, _default: tls,
                timeout_graceful_shutdown=int(STOP_GRACE_SECONDS),
            )
        )
        self._task: asyncio.Task[None] | None = None
        self._socket: socket.socket | None = None

    @property
    def address(self) -> str:
        """http://host:port, or https."""
        return f"{self._scheme}://{self._host}:{self._port}"

    def count(self) -> int:
        """How many connections are open."""
        return len(self._server.server_state.connections)

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigurationError: The address cannot be listened on.
        """
        try:
            family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
            address = (self._host, self._port)
            self._socket = socket.create_server(address, family=family, backlog=BACKLOG)
        except OSError as error:
            raise ConfigurationError(
                f"{self._name} cannot listen on {self._host}:{self._port}: {error.strerror}; "
                "choose another port"
            ) from error
        self._port = self._socket.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve([self._socket]))
        await self._server.is_listening.wait()

    async def stop(self) -> None:
        """Refuse new connections, and let requests that run end."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        if self._socket is not None:
            self._socket.close()


class _QuietServer(uvicorn.Server):
    def __init__(self, configuration: uvicorn.Config) -> None:
        super().__init__(configuration)
        self.is_listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self.is_listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield
