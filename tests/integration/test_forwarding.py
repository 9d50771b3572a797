"""An API process beside a receiver: which requests it hands on, and that nothing of them is lost on the way."""

import asyncio
import gzip
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi.routing import iter_route_contexts
from starlette.types import Receive, Send

from otel_metering.errors import ConfigurationError
from query_api import forwarding
from query_api.app import create_app, openapi_document
from query_api.forwarding import Forwarder
from query_api.placement import PLACES, Place
from query_api.services import Services
from receiver.store.keys import ApiKeys, Scope
from tests.e2e.up import free_ports
from tests.integration.api_harness import Api, running_api, served
from tests.integration.test_api_access import ROUTES, call
from tests.waiting import eventually

Answer = Callable[["Asked", Receive, Send], Awaitable[None]]


@dataclass
class Asked:
    """A request that the receiver got."""

    scope: Any
    body: bytes = b""
    is_whole: bool = False
    was_left: bool = False

    @property
    def headers(self) -> list[tuple[str, str]]:
        return [(name.decode(), value.decode()) for name, value in self.scope["headers"]]


@dataclass
class Receiver:
    """What stands for the receiver: it keeps what it is asked, and answers as it is told."""

    answer: Answer
    asked: list[Asked] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        asked = Asked(scope)
        self.asked.append(asked)
        while not asked.is_whole:
            message = await receive()
            if message["type"] == "http.disconnect":
                asked.was_left = True
                return
            asked.body += message.get("body", b"")
            asked.is_whole = not message.get("more_body", False)
        await self.answer(asked, receive, send)


async def answer_nothing_much(asked: Asked, receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"checks": {}}'})


@dataclass
class Pair:
    """An API process, and the receiver behind it."""

    api: Api
    receiver: Receiver
    receiver_url: str

    @contextmanager
    def answering(self, answer: Answer) -> Iterator[None]:
        self.receiver.answer = answer
        try:
            yield
        finally:
            self.receiver.answer = answer_nothing_much


@contextmanager
def beside(receiver_url: str, services: Services) -> Iterator[str]:
    """An API process in a thread; its address."""
    forwarder = Forwarder(receiver_url)
    app = create_app(
        replace(services, upstreams={"receiver": forwarder.check}), forwarder=forwarder
    )
    configuration = uvicorn.Config(
        app, log_config=None, ws="none", lifespan="off", proxy_headers=False
    )
    server = uvicorn.Server(configuration)

    async def serve(listener: socket.socket) -> None:
        await server.serve([listener])
        await forwarder.aclose()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(serve(listener)))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    receiver = Receiver(answer_nothing_much)
    with (
        served(receiver) as url,
        running_api(tmp_path_factory.mktemp("forward")) as api,
        beside(url, api.app.state.services) as own_url,
    ):
        client_side = replace(api, url=own_url, clients=[])
        yield Pair(client_side, receiver, url)
        client_side.close()


@pytest.fixture
def pair(shared: Pair) -> Pair:
    shared.receiver.asked.clear()
    return shared


def test_every_route_is_answered_in_exactly_one_place(pair: Pair) -> None:
    routes = {route.name for route in iter_route_contexts(pair.api.app.routes)}

    assert routes == set(PLACES)


def test_a_route_that_nobody_has_placed_stops_the_start(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(PLACES, "send_events")  # type: ignore[arg-type]

    with pytest.raises(ConfigurationError, match="/v1/meter/events"):
        create_app(pair.api.app.state.services, forwarder=Forwarder("http://127.0.0.1:1"))


@pytest.mark.parametrize(("method", "path", "arguments", "_scope", "_other"), ROUTES)
def test_the_receiver_is_asked_what_the_table_says(
    pair: Pair, method: str, path: str, arguments: dict[str, Any], _scope: Scope, _other: int
) -> None:
    (place,) = {
        PLACES[route.name or ""]
        for route in iter_route_contexts(pair.api.app.routes)
        if (route.path or "").replace(":path}", "}") == path
        and method in (route.methods or ())
        and route.name in PLACES
    }

    answer = call(pair.api.client(Scope.ADMIN), method, path, arguments)

    assert (answer.content == b'{"checks": {}}') == (place is not Place.HERE)
    assert [asked.scope["method"] for asked in pair.receiver.asked] == [method] * (
        place is not Place.HERE
    )


def test_the_document_is_the_same(pair: Pair) -> None:
    assert pair.api.client().get("/openapi.json").json() == openapi_document()


def test_a_request_arrives_as_it_was_sent(pair: Pair) -> None:
    headers = [
        ("authorization", "Bearer of bad news"),
        ("x-api-key", "key"),
        ("accept", "a/b"),
        ("cookie", "c=1"),
        ("x-twice", "1"),
        ("x-twice", "2"),
        ("x-request-id", "one"),
        ("x-forwarded-for", "192.0.2.7"),
        ("x-forwarded-for", "192.0.2.8"),
        ("via", "1.1 edge"),
        # Of the connection, by name or by `Connection`.
        ("connection", "keep-alive, x-mine"),
        ("x-mine", "not for others"),
        ("te", "trailers"),
        ("proxy-authorization", "secret"),
        ("origin", "https://shop.example"),
    ]
    target = "/v1/meter/events/a%2Fb%20c%C3%A9/void?a=1&a=%262&empty"
    with httpx.Client(headers={"user-agent": "me"}) as client:
        answer = client.post(pair.api.url + target, headers=headers, content=b"{\x00}")

    (asked,) = pair.receiver.asked
    assert answer.status_code == 200
    assert asked.scope["method"] == "POST"
    assert asked.scope["raw_path"] + b"?" + asked.scope["query_string"] == target.encode()
    assert asked.body == b"{\x00}"
    expected = [
        ("accept", "a/b"),
        ("accept-encoding", httpx.Client().headers["accept-encoding"]),
        ("authorization", "Bearer of bad news"),
        ("content-length", "3"),
        ("cookie", "c=1"),
        ("host", pair.receiver_url.removeprefix("http://")),
        ("user-agent", "me"),
        ("via", "1.1 edge, 1.1 otel-metering-api"),
        ("x-api-key", "key"),
        ("x-forwarded-for", "192.0.2.7, 192.0.2.8, 127.0.0.1"),
        ("x-request-id", "one"),
        ("x-twice", "1"),
        ("x-twice", "2"),
    ]
    assert sorted(asked.headers) == expected


@pytest.mark.parametrize("size", [0, 10, 1_000_000])
@pytest.mark.parametrize("has_length", [True, False])
def test_an_answer_arrives_as_it_was_given(pair: Pair, size: int, has_length: bool) -> None:
    content = gzip.compress(bytes(range(10)) * (size // 10), mtime=0) if size else b""

    async def answer(asked: Asked, receive: Receive, send: Send) -> None:
        headers = [(b"content-encoding", b"gzip"), (b"retry-after", b"7"), (b"x-twice", b"1")]
        headers += [(b"x-twice", b"2"), (b"keep-alive", b"timeout=9"), (b"x-request-id", b"other")]
        if has_length:
            headers.append((b"content-length", str(len(content)).encode()))
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        half = len(content) // 2
        for piece in (content[:half], content[half:]):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    with pair.answering(answer), httpx.Client() as client:
        request = client.build_request("GET", f"{pair.api.url}/metrics")
        request.headers["x-request-id"] = "mine"
        response = client.send(request, stream=True)
        received = b"".join(response.iter_raw())

    assert (response.status_code, received) == (429, content)
    assert response.headers["retry-after"] == "7"
    assert response.headers["content-encoding"] == "gzip"
    assert response.headers.get_list("x-twice") == ["1", "2"]
    assert response.headers.get_list("x-request-id") == ["mine"]
    assert "keep-alive" not in response.headers
    for one in ("date", "server"):
        assert len(response.headers.get_list(one)) == 1


def test_a_body_goes_through_in_pieces(pair: Pair) -> None:
    def pieces() -> Iterator[bytes]:
        for i in range(64):
            yield bytes([i]) * 50_000

    answer = pair.api.client().post("/v1/meter/events", content=pieces())

    assert answer.status_code == 200
    assert pair.receiver.asked[0].body == b"".join(pieces())


def test_a_body_beyond_the_limit_is_refused_and_never_whole_at_the_receiver(pair: Pair) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(17):
            yield bytes(2**20)

    for content in (pieces(), b"".join(pieces())):
        answer = pair.api.client().post("/v1/meter/events", content=content)

        assert answer.status_code == 413
        assert "16777216 bytes" in answer.json()["detail"]
    eventually(lambda: pair.receiver.asked, lambda asked: all(one.was_left for one in asked))


def test_a_client_that_goes_away_takes_its_request_along(pair: Pair) -> None:
    left = threading.Event()

    async def wait(asked: Asked, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    with pair.answering(wait):
        with pytest.raises(httpx.ReadTimeout):
            pair.api.client().get("/metrics", timeout=0.3)

        assert left.wait(5)


def test_a_connection_to_the_receiver_is_used_again(pair: Pair) -> None:
    ports = set()

    async def note(asked: Asked, receive: Receive, send: Send) -> None:
        ports.add(asked.scope["client"])
        await answer_nothing_much(asked, receive, send)

    with pair.answering(note):
        for _ in range(20):
            assert pair.api.client().post("/v1/meter/validate", content=b"{}").status_code == 200

    assert len(ports) == 1


def test_a_receiver_that_is_away_is_named_and_the_request_is_welcome_again(pair: Pair) -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    services = pair.api.app.state.services
    with beside(url, services) as away, httpx.Client() as client:
        answer = client.post(f"{away}/v1/meter/events", content=b"{}")
        read = client.get(
            f"{away}/v1/meter/meters", headers={"x-api-key": pair.api.key(Scope.QUERY)}
        )

    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "1"
    assert url in answer.json()["detail"]
    assert "nothing was done" in answer.json()["detail"]
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert read.status_code == 200


@pytest.mark.parametrize("is_late", [True, False])
def test_a_receiver_that_had_the_request_and_does_not_answer_is_no_503(
    pair: Pair, is_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(forwarding._TIMEOUT, "read", 0.2)
    connections: list[socket.socket] = []

    def take(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.recv(65_536)
        connections.append(connection)
        if not is_late:
            connection.sendall(b"HTTP/1.1 202 Accepted\r\ncontent-length: 100\r\n\r\nhalf")
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=take, args=(listener,))
        thread.start()
        services = pair.api.app.state.services
        with (
            served(create_app(services, forwarder=Forwarder(url))) as api,
            httpx.Client() as client,
        ):
            answer = client.post(f"{api}/v1/meter/events", content=b"{}")
        thread.join()
        connections[0].close()

    assert answer.status_code == 502
    assert "whether the request was done is unknown" in answer.json()["detail"]


def test_a_request_that_comes_round_is_refused(pair: Pair) -> None:
    headers = {"via": "1.1 edge, 1.1 otel-metering-api"}

    answer = pair.api.client().get("/metrics", headers=headers)

    assert answer.status_code == 503
    assert "METERING_RECEIVER_URL" in answer.json()["detail"]
    assert not pair.receiver.asked


def test_a_key_that_the_receiver_made_is_known_when_its_answer_is_here(pair: Pair) -> None:
    elsewhere = ApiKeys(pair.api.store, pair.api.clock)
    made: list[str] = []

    async def make(asked: Asked, receive: Receive, send: Send) -> None:
        _, text = await asyncio.to_thread(
            elsewhere.create, name="made elsewhere", scopes=[Scope.QUERY]
        )
        made.append(text)
        await answer_nothing_much(asked, receive, send)

    with pair.answering(make):
        pair.api.client().post("/v1/meter/keys", content=b"{}")
    headers = {"x-api-key": made[0]}

    assert pair.api.client().get("/v1/meter/meters", headers=headers).status_code == 200


def test_health_names_the_receiver_and_is_well_without_it(pair: Pair) -> None:
    (port,) = free_ports(1)
    shown = []
    for url in (pair.receiver_url, f"http://127.0.0.1:{port}"):
        with beside(url, pair.api.app.state.services) as api:
            shown.append(httpx.get(f"{api}/v1/meter/health"))

    well, away = (answer.json()["checks"]["receiver"] for answer in shown)
    assert [answer.status_code for answer in shown] == [200, 200]
    assert well == {"status": "ok", "detail": f"{pair.receiver_url} answers"}
    assert away["status"] == "failed"
    assert f"127.0.0.1:{port} does not answer" in away["detail"]


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8081", "ftp://host", "http://", "http://host/path", "http://u:p@host"]
)
def test_what_is_no_address_of_a_receiver_is_said(url: str) -> None:
    with pytest.raises(ConfigurationError, match="METERING_RECEIVER_URL"):
        Forwarder(url)
