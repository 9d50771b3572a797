"""Both clients over real sockets: what they send, and what they do when connections fail."""

import asyncio
import inspect
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from otel_metering.client import (
    AsyncMeteringClient,
    Check,
    Edges,
    MeteringClient,
    NewEvent,
)
from otel_metering.clock import Clock, ManualClock, SystemClock
from otel_metering.errors import ApiError, ConfigurationError, NoAnswerError, QuotaExceededError
from receiver.store.keys import Scope
from tests.e2e.up import free_ports
from tests.integration.api_harness import running_api
from tests.integration.api_stand_in import StandIn, stand_in

ROW = {
    "window_start": "2026-09-01T00:00:00Z",
    "window_end": "2026-10-01T00:00:00Z",
    "dimensions": {},
    "value": "0.000000001",
}


class Caller:
    """Calls a client of one kind, and collects what it iterates over."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.pauses: list[float] = []
        self.clock: Clock = ManualClock()

    def __call__(self, url: str, use: Callable[[Any], Any], **options: Any) -> Any:
        ids = iter(range(1_000_000))
        edges = Edges(clock=self.clock, jitter=lambda: 0.5, new_id=lambda: f"id-{next(ids)}")
        options = {"api_key": "k", "edges": edges, **options}
        if self.kind == "sync":
            with MeteringClient(url, wait=self._wait, **options) as client:
                done = use(client)
                return list(done) if inspect.isgenerator(done) else done
        return asyncio.run(self._call(url, use, options))

    async def _call(self, url: str, use: Callable[[Any], Any], options: dict[str, Any]) -> Any:
        async with AsyncMeteringClient(url, wait=self._wait_async, **options) as client:
            done = use(client)
            if inspect.isasyncgen(done):
                return [one async for one in done]
            return await done

    def _wait(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if isinstance(self.clock, ManualClock):
            self.clock.advance(seconds)

    async def _wait_async(self, seconds: float) -> None:
        self._wait(seconds)


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Caller:
    return Caller(request.param)


@pytest.fixture
def service() -> Iterator[StandIn]:
    with stand_in() as running:
        yield running


@contextmanager
def listening(behave: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[int]]]:
    """A server that does this with each connection, and the number of them."""
    accepted: list[int] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                accepted.append(1)
                behave(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", accepted
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def reset(connection: socket.socket) -> None:
    connection.recv(65_536)
    # Closing with data that was not sent, or this option, sends RST.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")


def half_an_answer(connection: socket.socket) -> None:
    connection.recv(65_536)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{")


def test_a_request_carries_the_key_and_says_who_asks(service: StandIn, call: Caller) -> None:
    service.usage = [ROW]

    usage = call(service.url, lambda client: client.usage("api.calls"), api_key="otm_a_b")

    (seen,) = service.seen
    assert seen.headers["authorization"] == "Bearer otm_a_b"
    assert seen.headers["user-agent"].startswith("otel-metering/")
    assert usage.rows[0].value == Decimal("0.000000001")
    assert usage.rows[0].window_start == datetime(2026, 9, 1, tzinfo=UTC)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_read_is_repeated_until_it_is_answered(
    service: StandIn, call: Caller, status: int
) -> None:
    service.faults.extend([(status, {}), (status, {"retry-after": "3"})])

    call(service.url, lambda client: client.usage("m"))

    assert len(service.seen) == 3
    assert call.pauses == [0.1, 3.2]


def test_events_that_are_sent_again_have_the_same_ids(service: StandIn, call: Caller) -> None:
    service.faults.extend([(0, {}), (503, {})])

    call(service.url, lambda client: client.send_events([NewEvent(meter="m"), NewEvent(meter="m")]))

    bodies = [seen.body for seen in service.asked("POST", "/events")]
    assert len(bodies) == 3
    assert bodies[0] == bodies[1] == bodies[2]
    assert [event["event_id"] for event in bodies[0]] == ["id-0", "id-1"]


def test_a_connection_that_breaks_in_the_middle_is_no_reason_to_make_two_keys(
    service: StandIn, call: Caller
) -> None:
    service.faults.append((0, {}))

    with pytest.raises(NoAnswerError, match="whether it was done is not known"):
        call(service.url, lambda client: client.create_key("n", ["query"]))

    assert len(service.seen) == 1


def test_what_was_refused_for_now_is_sent_again_even_if_it_makes_a_key(
    service: StandIn, call: Caller
) -> None:
    service.faults.append((503, {"retry-after": "1"}))

    made = call(service.url, lambda client: client.create_key("n", ["query"]))

    assert made.text == "otm_k1_secret"
    assert "otm_k1_secret" not in repr(made)


def test_nobody_listens_is_said_with_the_address_and_the_remedy(call: Caller) -> None:
    (port,) = free_ports(1)

    with pytest.raises(NoAnswerError, match=rf"127.0.0.1:{port} does not answer \(3 attempts\)"):
        call(f"http://127.0.0.1:{port}", lambda client: client.keys(), max_retries=2)

    assert call.pauses == [0.1, 0.2]


@pytest.mark.parametrize("behave", [reset, half_an_answer])
def test_a_connection_that_ends_early_is_tried_again_if_that_is_safe(
    call: Caller, behave: Callable[[socket.socket], None]
) -> None:
    with listening(behave) as (url, accepted):
        with pytest.raises(NoAnswerError, match="3 attempts"):
            call(url, lambda client: client.keys(), max_retries=2)
        assert len(accepted) == 3

        with pytest.raises(NoAnswerError, match="not known"):
            call(url, lambda client: client.create_key("n", ["query"]), max_retries=2)
        assert len(accepted) == 4


def test_a_service_that_is_silent_costs_the_timeout_and_no_more(call: Caller) -> None:
    is_done = threading.Event()

    def silent(connection: socket.socket) -> None:
        is_done.wait(30)

    with listening(silent) as (url, _):
        try:
            with pytest.raises(NoAnswerError, match=r"no whole answer within 0\.2 s"):
                call(url, lambda client: client.keys(), timeout=0.2, max_retries=0)
        finally:
            is_done.set()


def test_an_answer_that_drips_is_cut_off_at_the_timeout(call: Caller) -> None:
    is_done = threading.Event()
    call.clock = SystemClock()

    def drip(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        while not is_done.wait(0.02):
            try:
                connection.sendall(b" ")
            except OSError:
                return

    with listening(drip) as (url, _):
        try:
            with pytest.raises(NoAnswerError, match="no whole answer"):
                call(url, lambda client: client.keys(), timeout=0.3, max_retries=0)
        finally:
            is_done.set()


def test_what_is_wrong_is_not_sent_again_and_says_the_request(
    service: StandIn, call: Caller
) -> None:
    with pytest.raises(ApiError, match="there is no /events/x") as raised:
        call(service.url, lambda client: client.event("x"))

    assert (raised.value.status, raised.value.request_id) == (404, "req-404")
    assert len(service.seen) == 1


def test_lists_are_read_to_their_end(service: StandIn, call: Caller) -> None:
    entries = call(service.url, lambda client: client.iter_audit(actor="k1"))

    assert [entry.target for entry in entries] == ["key first", "key second"]
    assert service.seen[1].parameters == [("actor", "k1"), ("cursor", "second")]


def test_a_page_is_asked_for_only_when_it_is_needed(service: StandIn) -> None:
    with MeteringClient(service.url, "k") as client:
        next(client.iter_audit())

    assert len(service.seen) == 1


def test_an_export_is_lines_and_memory_stays_flat(service: StandIn, call: Caller) -> None:
    service.exported = 3

    lines = call(service.url, lambda client: client.export_events(format="csv", meter="m"))

    assert lines == [b"event_id,quantity\n", b"e0,1\n", b"e1,1\n", b"e2,1\n"]
    assert service.seen[0].parameters == [("meter", "m"), ("format", "csv")]


def test_an_export_is_asked_for_again_until_it_begins(service: StandIn, call: Caller) -> None:
    service.faults.extend([(503, {}), (0, {})])

    assert len(call(service.url, lambda client: client.export_events())) == 6
    assert len(service.seen) == 3


def test_an_export_that_breaks_off_is_an_error_and_not_an_end(
    service: StandIn, call: Caller
) -> None:
    service.exported, service.breaks_after = 100_000, 50_000

    with pytest.raises(NoAnswerError, match="broke off"):
        call(service.url, lambda client: client.export_events())

    assert len(service.seen) == 1


def test_an_export_that_is_denied_says_why(service: StandIn, call: Caller) -> None:
    service.faults.append((403, {}))

    with pytest.raises(ApiError, match="told to fail"):
        call(service.url, lambda client: client.export_events())


def test_a_reservation_that_is_asked_for_twice_is_held_once(service: StandIn, call: Caller) -> None:
    service.faults.append((504, {}))

    async def hold_async(client: AsyncMeteringClient) -> Any:
        return await client.reserve("t", "m", 4)

    def hold(client: Any) -> Any:
        return hold_async(client) if call.kind == "async" else client.reserve("t", "m", 4)

    held = call(service.url, hold)

    assert service.held == {"id-0": 4}
    assert held.reservation_id == "id-0"
    assert held.decision.allowed


@pytest.mark.parametrize(
    ("does", "state"), [("commit", "committed"), ("nothing", "released"), ("raise", "released")]
)
def test_a_block_commits_or_gives_back(
    service: StandIn, call: Caller, does: str, state: str
) -> None:
    async def use_async(client: AsyncMeteringClient) -> None:
        async with client.reserve("t", "m", 4) as held:
            if does == "commit":
                await held.commit(3)
            elif does == "raise":
                raise RuntimeError("the work failed")

    def use_sync(client: MeteringClient) -> None:
        with client.reserve("t", "m", 4) as held:
            if does == "commit":
                held.commit(3)
            elif does == "raise":
                raise RuntimeError("the work failed")

    try:
        call(service.url, use_async if call.kind == "async" else use_sync)
    except RuntimeError:
        assert does == "raise"
    else:
        assert does != "raise"

    assert service.states == {"id-0": state}
    commits = service.asked("POST", "/reservations/id-0/commit")
    assert [seen.body for seen in commits] == ([{"quantity": "3"}] if does == "commit" else [])
    assert len(service.asked("POST", "/reservations/id-0/release")) == (does != "commit")


def test_what_is_denied_is_an_error_and_nothing_is_held(service: StandIn, call: Caller) -> None:
    async def use_async(client: AsyncMeteringClient) -> None:
        async with client.reserve("t", "m", 11):
            pytest.fail("it is denied")

    def use_sync(client: MeteringClient) -> None:
        client.reserve("t", "m", 11)

    with pytest.raises(QuotaExceededError, match="10 remain"):
        call(service.url, use_async if call.kind == "async" else use_sync)

    assert service.held == {}


def test_a_release_that_fails_does_not_hide_what_the_block_raised(
    service: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    def work(client: MeteringClient) -> None:
        with client.reserve("t", "m", 1):
            service.faults.append((503, {}))
            raise RuntimeError("the work failed")

    with (
        MeteringClient(service.url, "k", max_retries=0) as client,
        pytest.raises(RuntimeError, match="the work failed"),
    ):
        work(client)

    assert "ends by itself" in caplog.text


def test_checks_quotas_keys_and_tokens_are_typed(service: StandIn, call: Caller) -> None:
    checks = [Check(tenant_id="t", meter="m"), Check(tenant_id="t", meter="m", quantity=99)]
    decisions = call(service.url, lambda client: client.validate_many(checks))
    (status,) = call(service.url, lambda client: client.iter_quota_status())
    quota = call(
        service.url,
        lambda client: client.set_quota("m", Decimal("5.50"), period="day", tenant_id="t"),
    )
    rotated = call(service.url, lambda client: client.rotate_key("k1", overlap_seconds=60))
    token = call(service.url, lambda client: client.create_token("t", ttl_seconds=60))
    deleted = call(service.url, lambda client: client.delete_quota("q1"))
    voided = call(service.url, lambda client: client.void("e1", reason="wrong"))

    assert [decision.allowed for decision in decisions] == [True, False]
    assert (status.used, status.percent, status.crossed) == (600, Decimal("59.97"), (50,))
    assert quota.limit == Decimal("5.50")
    assert service.asked("PUT", "/quotas")[0].body == {
        "tenant_id": "t",
        "meter": "m",
        "limit": "5.50",
        "period": "day",
    }
    assert (rotated.key.replaces, token.text, deleted) == ("k1", "ott_x", None)
    assert (voided.action, voided.replaced_by) == ("void", None)


def test_both_clients_can_do_the_same() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")} - {"close", "aclose"}

    assert public(MeteringClient) == public(AsyncMeteringClient)


def test_help_shows_the_arguments_and_what_they_mean() -> None:
    shown = inspect.signature(MeteringClient.usage)

    assert list(shown.parameters)[:2] == ["meter", "tenant_id"]
    assert "IANA" in (inspect.getdoc(MeteringClient.usage) or "")
    with MeteringClient("http://127.0.0.1:1", "k") as client:
        assert inspect.signature(client.usage).parameters == shown.parameters


def test_the_real_api_takes_events_and_shows_them(tmp_path: Any, call: Caller) -> None:
    with running_api(tmp_path) as api:
        key = api.key(Scope.INGEST, Scope.QUERY, Scope.ADMIN)
        events = [
            NewEvent(meter="api.calls", tenant_id="t", quantity=Decimal("0.1"), event_id="mine"),
            NewEvent(meter="api.calls", tenant_id="t"),
            NewEvent(meter="api.calls", tenant_id="t", event_id="mine"),
            NewEvent(meter="api.calls", tenant_id="not valid"),
        ]
        done = call(api.url, lambda client: client.send_events(events), api_key=key)
        made = call(
            api.url, lambda client: client.create_key("n", ["query"], tenant_id="t"), api_key=key
        )
        keys = call(api.url, lambda client: client.keys(), api_key=key)
        with pytest.raises(ApiError, match="HTTP 403"):
            call(api.url, lambda client: client.usage("m", tenant_id="other"), api_key=made.text)

    assert (done.accepted, done.duplicates) == (2, 1)
    assert [index for index, _ in done.rejected] == [3]
    assert made.key in keys


@pytest.mark.parametrize("url", ["http://a..b:80", "http://127.0.0.1:99999", "http://[::1", "x"])
def test_an_address_that_cannot_be_is_an_error_of_ours(url: str, call: Caller) -> None:
    with pytest.raises((ConfigurationError, NoAnswerError)):
        call(url, lambda client: client.keys(), max_retries=0)


def test_a_certificate_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigurationError, match="certificate_file is 'no such file'"):
        MeteringClient("https://127.0.0.1:1", "k", certificate_file="no such file")


def test_without_httpx_the_extra_is_named_and_the_sdk_works() -> None:
    code = (
        "import sys; sys.modules['httpx'] = None; import otel_metering\n"
        "from otel_metering import *\n"
        "try: otel_metering.MeteringClient\n"
        "except ImportError as error: print(error)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == (
        "the clients need httpx, which is not installed; run: pip install 'otel-metering[client]'\n"
    )
