"""Leases against the real query API: what a call is told, and what the service holds meanwhile."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from otel_metering._config import Settings, read_settings
from otel_metering._guard import problems
from otel_metering._lease_book import IDLE_SECONDS
from otel_metering._lease_keeper import Desk
from otel_metering._leases import Grant, Leases
from otel_metering._quota_api import QuotaApi
from otel_metering.errors import QuotaExceededError
from receiver.store.keys import Scope
from tests.integration.api_harness import Api, running_api
from tests.waiting import eventually

UNIT = 10**9
TTL = 300
NOWHERE = "http://127.0.0.1:9"
"""The discard port, where nobody listens."""

_names = count()


@dataclass
class Deliveries:
    """Usage that is delivered when a test says so."""

    is_delivered: bool = False

    def flush(self) -> bool:
        return True

    def is_all_delivered(self) -> bool:
        return self.is_delivered


@dataclass
class Quotas:
    """A service with a quota, and the leases of one process."""

    api: Api
    admin: httpx.Client
    made: list[Leases]
    folder: Path
    deliveries: Deliveries

    def put(self, tenant: str, limit: int, **fields: Any) -> None:
        body = {"tenant_id": tenant, "meter": "api.calls", "limit": str(limit), **fields}
        answer = self.admin.put("/v1/meter/quotas", json={"period": "lifetime", **body})
        assert answer.status_code == 200, answer.text

    def settings(self, **how: Any) -> Settings:
        key = self.api.key(Scope.VALIDATE)
        self.api.keys.refresh()
        return read_settings(
            **{
                "service_name": "shop",
                "api_url": self.api.url,
                "api_key": key,
                "spool_dir": self.folder,
                "lease_seconds": TTL,
                **how,
            }
        )

    def leases(self, **how: Any) -> Leases:
        made = Leases()
        made.start(
            Desk(
                settings=self.settings(**how),
                delivery=self.deliveries,
                clock=self.api.clock,
                new_id=lambda: f"lease-{next(_names)}",
            )
        )
        self.made.append(made)
        return made

    def status(self, tenant: str, name: str) -> Decimal:
        """A number of the answer to a check."""
        body = {"tenant_id": tenant, "meter": "api.calls", "quantity": "0"}
        answer = self.admin.post("/v1/meter/validate", json=body)
        assert answer.status_code == 200, answer.text
        return Decimal(answer.json()[name])

    def pass_time(self, seconds: float) -> None:
        self.api.clock.advance(seconds)
        self.api.keys.refresh()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("leases")) as running:
        yield running


@pytest.fixture
def quotas(api: Api, tmp_path: Path) -> Iterator[Quotas]:
    problems.reset()
    found = Quotas(api, api.client(Scope.ADMIN, Scope.VALIDATE), [], tmp_path, Deliveries())
    api.keys.refresh()
    yield found
    for one in found.made:
        one.stop(1.0, is_delivered=True)
    problems.reset()


def unchecked() -> int:
    return problems.counts()["unchecked_calls"]


def test_a_quota_is_used_up_to_its_last_unit_and_the_denial_says_why(quotas: Quotas) -> None:
    quotas.put("exact", 1_000, period="month")
    leases = quotas.leases()

    for _ in range(1_000):
        leases.settle(leases.take("api.calls", "exact", UNIT), UNIT)
    with pytest.raises(QuotaExceededError) as denied:
        leases.take("api.calls", "exact", UNIT)

    assert denied.value.reason == "limit_exceeded"
    assert denied.value.remaining == 0
    now = datetime.fromtimestamp(quotas.api.clock.now_ns() // 10**9, UTC)
    following = (now.year, now.month + 1) if now.month < 12 else (now.year + 1, 1)
    assert denied.value.resets_at == datetime(*following, 1, tzinfo=UTC)
    assert problems.counts()["denied_calls"] == 1
    assert unchecked() == 0


def test_fractions_of_units_are_exact(quotas: Quotas) -> None:
    quotas.put("fractions", 1)
    leases = quotas.leases()

    assert leases.take("api.calls", "fractions", UNIT - 1).nanos == UNIT - 1
    assert leases.take("api.calls", "fractions", 1).nanos == 1
    with pytest.raises(QuotaExceededError):
        leases.take("api.calls", "fractions", 1)


def test_processes_and_threads_together_never_have_more_than_the_limit(quotas: Quotas) -> None:
    quotas.put("many", 500)
    some = [quotas.leases() for _ in range(3)]
    granted: list[int] = []

    def use(leases: Leases, units: int) -> None:
        try:
            while True:
                granted.append(leases.take("api.calls", "many", units * UNIT).nanos // UNIT)
        except QuotaExceededError:
            return

    threads = [
        threading.Thread(target=use, args=(leases, 1 + number % 3))
        for leases in some
        for number in range(6)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()

    # Pieces of a lease may be left that are too small for who asked.
    assert 480 <= sum(granted) <= 500
    assert quotas.status("many", "reserved") <= 500


def test_without_a_quota_everything_is_allowed_and_nothing_is_held(quotas: Quotas) -> None:
    leases = quotas.leases()

    assert leases.take("api.calls", "free", 10**6 * UNIT) == Grant(None, 10**6 * UNIT)
    assert unchecked() == 0
    quotas.put("free", 5)
    assert quotas.status("free", "reserved") == 0


def test_a_soft_quota_allows_beyond_its_limit(quotas: Quotas) -> None:
    quotas.put("soft", 5, enforcement="soft")
    leases = quotas.leases()

    grants = [leases.take("api.calls", "soft", UNIT) for _ in range(50)]

    assert all(one.reservation_id is not None for one in grants)


def test_a_hard_quota_behind_a_soft_one_that_is_used_up_still_denies(quotas: Quotas) -> None:
    quotas.put("both", 5, enforcement="soft")
    quotas.put("both", 20, period="month")
    leases = quotas.leases()

    for _ in range(20):
        leases.take("api.calls", "both", UNIT)
    with pytest.raises(QuotaExceededError):
        leases.take("api.calls", "both", UNIT)


def test_what_is_not_used_is_given_back_at_the_end(quotas: Quotas) -> None:
    quotas.put("end", 10)
    leases = quotas.leases()
    leases.settle(leases.take("api.calls", "end", 8 * UNIT), 0)
    assert quotas.status("end", "reserved") == 8

    leases.stop(1.0, is_delivered=True)

    assert quotas.status("end", "reserved") == 0
    assert leases.take("api.calls", "end", 100 * UNIT) == Grant(None, 100 * UNIT)  # not enforced


def test_what_may_not_be_delivered_is_not_given_back_at_the_end(quotas: Quotas) -> None:
    quotas.put("late", 10)
    leases = quotas.leases()
    leases.settle(leases.take("api.calls", "late", 8 * UNIT), 3 * UNIT)

    leases.stop(1.0, is_delivered=False)

    assert quotas.status("late", "reserved") == 8


def test_idle_units_are_given_back_once_the_used_ones_are_delivered(quotas: Quotas) -> None:
    quotas.put("idle", 10)
    leases = quotas.leases()
    leases.settle(leases.take("api.calls", "idle", 8 * UNIT), 3 * UNIT)

    quotas.pass_time(IDLE_SECONDS + 1)
    # It ticks, and would have asked: what another has asked for shows it.
    leases.take("api.calls", "nobody", UNIT)
    assert quotas.status("idle", "reserved") == 8

    quotas.deliveries.is_delivered = True
    eventually(lambda: quotas.status("idle", "reserved"), lambda held: held == 0)


def test_a_lease_is_held_on_while_its_usage_is_on_its_way(quotas: Quotas) -> None:
    quotas.put("slow", 10)
    leases = quotas.leases()
    grant = leases.take("api.calls", "slow", 10 * UNIT)
    leases.settle(grant, 10 * UNIT)
    path = f"/v1/meter/reservations/{grant.reservation_id}"

    for _ in range(4):
        before = quotas.admin.get(path).json()["expires_at"]
        quotas.pass_time(TTL * 0.6)
        eventually(
            lambda: quotas.admin.get(path).json()["expires_at"],
            lambda found, before=before: found > before,  # type: ignore[misc] # bound now
        )

    assert quotas.status("slow", "reserved") == 10


def test_an_open_process_allows_what_nobody_can_be_asked_about(quotas: Quotas) -> None:
    leases = quotas.leases(api_url=NOWHERE)

    assert leases.take("api.calls", "tenant_a", 5 * UNIT) == Grant(None, 5 * UNIT)
    assert leases.take("api.calls", None, 5 * UNIT) == Grant(None, 5 * UNIT)
    assert unchecked() == 2


def test_a_closed_process_denies_what_nobody_can_be_asked_about(quotas: Quotas) -> None:
    leases = quotas.leases(api_url=NOWHERE, quota_fail_mode="closed")

    for tenant in ("tenant_a", None):
        with pytest.raises(QuotaExceededError) as denied:
            leases.take("api.calls", tenant, UNIT)
        assert denied.value.reason == "state_unavailable"
    assert unchecked() == 2


@pytest.mark.parametrize("mode", ["open", "closed"])
def test_a_key_that_may_not_ask_is_no_answer(quotas: Quotas, mode: str) -> None:
    leases = quotas.leases(api_key="otm_wrong", quota_fail_mode=mode)

    if mode == "open":
        assert leases.take("api.calls", "tenant_a", UNIT) == Grant(None, UNIT)
    else:
        with pytest.raises(QuotaExceededError):
            leases.take("api.calls", "tenant_a", UNIT)
    assert unchecked() == 1


def test_what_was_reserved_is_spent_while_the_service_is_away_but_not_beyond_its_time(
    quotas: Quotas,
) -> None:
    quotas.put("away", 1_000)
    leases = quotas.leases(quota_fail_mode="closed")
    leases.settle(leases.take("api.calls", "away", 50 * UNIT), 0)
    keeper = leases._keeper
    assert keeper is not None
    keeper.api.close()
    keeper.api = QuotaApi(quotas.settings(api_url=NOWHERE), quotas.api.clock)

    assert leases.take("api.calls", "away", UNIT).reservation_id is not None
    quotas.pass_time(TTL * 0.75)
    with pytest.raises(QuotaExceededError) as denied:
        leases.take("api.calls", "away", UNIT)
    assert denied.value.reason == "state_unavailable"


def test_a_service_that_is_back_is_asked_again(quotas: Quotas) -> None:
    quotas.put("back", 10)
    leases = quotas.leases(quota_fail_mode="closed")
    keeper = leases._keeper
    assert keeper is not None
    reachable, keeper.api = keeper.api, QuotaApi(quotas.settings(api_url=NOWHERE), quotas.api.clock)
    for _ in range(3):
        with pytest.raises(QuotaExceededError):
            leases.take("api.calls", "back", UNIT)

    keeper.api = reachable
    quotas.pass_time(6)

    assert leases.take("api.calls", "back", UNIT).reservation_id is not None


class SlowService:
    """Answers a check that allows, when a test says so."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.may_answer = threading.Event()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if "validate" in self.path:
                    service.asked.append(body)
                    service.may_answer.wait(20)
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

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.may_answer.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def slow_service() -> Iterator[SlowService]:
    service = SlowService()
    yield service
    service.close()


def run(main: Callable[[], Any]) -> Any:
    return asyncio.run(main())


def test_the_event_loop_goes_on_while_a_coroutine_waits_for_an_answer(
    quotas: Quotas, slow_service: SlowService
) -> None:
    leases = quotas.leases(api_url=slow_service.url)

    async def main() -> Grant:
        waiting = asyncio.ensure_future(leases.take_async("api.calls", "tenant_a", UNIT))
        await asyncio.to_thread(eventually, lambda: slow_service.asked, bool)
        slow_service.may_answer.set()
        return await waiting

    assert run(main).reservation_id is not None


def test_units_that_a_cancelled_coroutine_waited_for_are_given_back(
    quotas: Quotas, slow_service: SlowService
) -> None:
    leases = quotas.leases(api_url=slow_service.url)

    def held() -> list[tuple[int, int]]:
        """What each lease has, and has given out."""
        keeper = leases._keeper
        assert keeper is not None
        return [(one.left, one.out) for one in keeper.book.leases.values()]

    async def main() -> None:
        waiting = asyncio.ensure_future(leases.take_async("api.calls", "tenant_a", UNIT))
        await asyncio.to_thread(eventually, lambda: slow_service.asked, bool)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        slow_service.may_answer.set()
        await asyncio.to_thread(eventually, held, lambda units: units == [(UNIT, 0)])

    run(main)


def test_calls_that_wait_for_the_same_units_ask_once(
    quotas: Quotas, slow_service: SlowService
) -> None:
    leases = quotas.leases(api_url=slow_service.url)
    threads = [
        threading.Thread(target=leases.take, args=("api.calls", "tenant_a", UNIT)) for _ in range(8)
    ]
    for one in threads:
        one.start()
    eventually(lambda: slow_service.asked, lambda found: len(found) == 1, every=0.2)
    slow_service.may_answer.set()
    for one in threads:
        one.join()

    looks = [one for one in slow_service.asked if not one.get("reserve")]
    assert len(looks) == 1


def test_a_fault_of_ours_ends_no_call(quotas: Quotas, monkeypatch: pytest.MonkeyPatch) -> None:
    leases = quotas.leases()
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # under pytest it would be raised

    unhashable: Any = []
    assert leases.take("api.calls", unhashable, UNIT) == Grant(None, UNIT)
    assert problems.counts()["internal_errors"] == 1
