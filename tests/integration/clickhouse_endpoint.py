"""The ClickHouse endpoint on an engine of its own, in a thread of the tests."""

import asyncio
import base64
import gzip
import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from otel_metering.clock import Clock, ManualClock
from query_api.clickhouse.endpoint import Endpoint
from query_api.config import Settings
from query_api.serving import Server
from receiver.store.client import Store
from receiver.store.keys import ApiKeys, Scope
from receiver.store.migrate import migrate

ADMIN_PASSWORD = "pass word/+?"
READER = "grafana_reader"


@dataclass(frozen=True)
class Answer:
    """One answer over HTTP."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def code(self) -> int:
        """ClickHouse's number of the error; 0: there is none."""
        code = int(self.headers.get("x-clickhouse-exception-code", "0"))
        assert (self.status != 200) == (code != 0), self
        if code:
            assert self.text.startswith(f"Code: {code}. DB::Exception: ")
        return code

    @property
    def rows(self) -> list[list[Any]]:
        """Of FORMAT JSONCompactEachRow."""
        assert self.code == 0, self.text
        return [json.loads(line) for line in self.body.splitlines()]


@dataclass
class Running:
    """An endpoint that answers.

    Attributes:
        port: Where.
        store: Its engine, without the endpoint.
        keys: Its API keys.
        endpoint: The endpoint.
    """

    port: int
    store: Store
    keys: ApiKeys
    endpoint: Endpoint
    made: dict[tuple[str | None, tuple[Scope, ...]], str] = field(default_factory=dict)

    def key(self, tenant: str | None = None, *scopes: Scope) -> str:
        """A key of this tenant and these scopes, made once."""
        wanted = tenant, scopes or (Scope.QUERY,)
        if wanted not in self.made:
            self.made[wanted] = self.keys.create(name="n", scopes=wanted[1], tenant_id=tenant)[1]
        return self.made[wanted]

    def url(self) -> str:
        """For a store that goes through the endpoint."""
        password = quote(ADMIN_PASSWORD, safe="")
        return f"clickhouse://admin:{password}@127.0.0.1:{self.port}/metering"

    def ask(
        self,
        sql: str | bytes,
        *,
        user: str = READER,
        password: str | None = None,
        tenant: str | None = None,
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
        **parameters: Any,
    ) -> Answer:
        """Send a statement as a reader of this tenant, or as who is named."""
        secret = self.key(tenant) if password is None else password
        token = base64.b64encode(f"{user}:{secret}".encode()).decode()
        sent = {"Authorization": f"Basic {token}", **(headers or {})}
        body = sql.encode() if isinstance(sql, str) else sql
        if method == "GET":
            parameters, body = {"query": body.decode(), **parameters}, b""
        return self.send(method, f"/?{urlencode(parameters)}", body, sent)

    def admin(self, sql: str | bytes, **parameters: Any) -> Answer:
        """Send a statement as the administrator."""
        return self.ask(sql, user="admin", password=ADMIN_PASSWORD, **parameters)

    def rows(self, sql: str, tenant: str | None = None, **parameters: Any) -> list[list[Any]]:
        """The rows that a reader of this tenant gets."""
        return self.ask(sql, tenant=tenant, default_format="JSONCompactEachRow", **parameters).rows

    def send(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body or None, dict(headers or {}))
            response = connection.getresponse()
            raw = response.read()
        finally:
            connection.close()
        named = {name.lower(): value for name, value in response.getheaders()}
        if named.get("content-encoding") == "gzip":
            raw = gzip.decompress(raw)
        return Answer(response.status, named, raw)


@contextmanager
def running_endpoint(
    path: Path, clock: Clock | None = None, *, is_migrated: bool = True, **settings: Any
) -> Iterator[Running]:
    """Run it, with settings of the query API."""
    url, clock = f"chdb://{path}", clock or ManualClock()
    store = Store(url)
    if is_migrated:
        migrate(store, clock)
    keys = ApiKeys(store, clock)
    if is_migrated:
        keys.refresh()
    endpoint = Endpoint(
        url, keys, clock, Settings(clickhouse_admin_password=ADMIN_PASSWORD, **settings)
    )
    server = Server(endpoint.app, "127.0.0.1", 0, "the endpoint", read_timeout_seconds=30, tls=None)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(30)
    try:
        yield Running(int(server.address.rpartition(":")[2]), store, keys, endpoint)
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        endpoint.close()
        store.close()
