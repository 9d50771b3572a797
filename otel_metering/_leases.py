"""Units of quotas that are reserved ahead from the query API, and spent at the speed of memory.

A call takes units from a lease of its tenant and meter, records its usage under the lease's name, and settles.
Only where no lease has them it waits for an answer.
"""

import asyncio
import threading
from decimal import Decimal
from typing import Final, NamedTuple

from otel_metering._guard import Problem, absorb, problems
from otel_metering._lease_book import Account, Ask, Denial, Told
from otel_metering._lease_keeper import Desk, Keeper, Wanted
from otel_metering._quantity import to_text
from otel_metering._quota_api import MAX_SECONDS, QuotaApi
from otel_metering.clock import SystemClock
from otel_metering.errors import QuotaExceededError

_new: Final = tuple.__new__
"""Makes a named tuple in half the time."""

_WAIT_SECONDS: Final = 3 * MAX_SECONDS
"""A call that waits for others to ask gives up then."""

_PIECES_SECONDS: Final = 2.0
"""A call that is denied while this process holds enough, in pieces, waits so long for them to be given back."""


class Grant(NamedTuple):
    """Units that a call may use.

    Attributes:
        reservation_id: What the usage has to name as `metering.reservation.id`; None: no quota holds it.
        nanos: How much, in 10**-9 units.
    """

    reservation_id: str | None
    nanos: int


class Leases:
    """The leases of this process. Any thread."""

    def __init__(self) -> None:
        self._keeper: Keeper | None = None
        # Of the keeper, for the calls that need nothing else of it.
        self._accounts: dict[tuple[str, str], Account] = {}
        self._lock = threading.RLock()
        self._now = SystemClock().monotonic

    def start(self, desk: Desk) -> None:
        """Enforce quotas from now on; leases stay, unless it is another service that is asked.

        Raises:
            ConfigurationError: A certificate or key cannot be used.
        """
        api, before = QuotaApi(desk.settings, desk.clock), self._keeper
        if before is not None and before.desk.settings.api_url == desk.settings.api_url:
            before.api.close()
            before.desk, before.api = desk, api
            return
        self._use(Keeper(desk, api))
        if before is not None:
            # Leases of another service end by themselves.
            before.stop(0.0, is_delivered=False)

    def stop(self, timeout_seconds: float, *, is_delivered: bool) -> None:
        """Enforce nothing any more, and give back what can be given back in time; see `Keeper.stop`."""
        keeper, self._keeper = self._keeper, None
        self._accounts = {}
        if keeper is not None:
            keeper.stop(timeout_seconds, is_delivered=is_delivered)

    def after_fork_in_child(self) -> None:
        """Leases are the parent's, as are locks that its threads hold, and its connections."""
        if self._keeper is not None:
            self._keeper.api.disconnect()
            self._use(Keeper(self._keeper.desk, self._keeper.api))

    def take(self, meter: str, tenant: str | None, nanos: int) -> Grant:
        """Take units for a call; asks the query API if no lease has them.

        Before `configure` and after `shutdown` everything is allowed: nobody can be asked.

        Args:
            meter: Its slug.
            tenant: None: nobody can be asked.
            nanos: How much, in 10**-9 units.

        Raises:
            QuotaExceededError: The quota denies them; or nobody can be asked, and the fail mode is closed.
        """
        try:
            return self._take_at_once(meter, tenant, nanos) or self._ask_and_take(
                meter, tenant, nanos
            )
        except QuotaExceededError:
            raise
        except Exception as error:  # noqa: BLE001 -- no fault of ours may end a call
            absorb(error)
            return self._unchecked(nanos, f"a fault: {error}")

    async def take_async(self, meter: str, tenant: str | None, nanos: int) -> Grant:
        """As `take`, without holding up the event loop."""
        granted = self._take_at_once(meter, tenant, nanos)
        if granted is not None:
            return granted
        loop = asyncio.get_running_loop()
        taking = loop.run_in_executor(None, self.take, meter, tenant, nanos)
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            # The thread goes on, and what it gets is nobody's.
            taking.add_done_callback(self._give_back)
            raise

    def settle(self, grant: Grant, used_nanos: int) -> None:
        """The call is over, and what it used was recorded; 0 gives everything back."""
        keeper = self._keeper
        if grant.reservation_id is None or keeper is None:
            return
        with keeper.lock:
            lease = keeper.book.leases.get(grant.reservation_id)
            if lease is not None:
                lease.settle(grant.nanos, used_nanos)

    def _give_back(self, taking: asyncio.Future[Grant]) -> None:
        if not taking.cancelled() and taking.exception() is None:
            self.settle(taking.result(), 0)

    def _take_at_once(self, meter: str, tenant: str | None, nanos: int) -> Grant | None:
        account = self._accounts.get((meter, tenant))  # type: ignore[arg-type] # None is not there
        if account is None:
            return None
        now = self._now()
        with self._lock:
            lease = account.take(nanos, now)
        if lease is not None:
            return _new(Grant, (lease.lease_id, nanos))
        if now >= account.free_until:
            return None
        account.asked_at = now
        return _new(Grant, (None, nanos))

    def _use(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._accounts, self._lock = keeper.book.accounts, keeper.lock
        self._now = keeper.desk.clock.monotonic

    def _ask_and_take(self, meter: str, tenant: str | None, nanos: int) -> Grant:
        keeper = self._keeper
        if keeper is None or nanos <= 0:
            return Grant(None, nanos)
        if tenant is None:
            return self._unchecked(
                nanos, f"usage of {meter} has no tenant whose quota could be asked"
            )
        accounts, began = keeper.book.accounts, self._now()
        give_up_at, patient_until = began + _WAIT_SECONDS, began + _PIECES_SECONDS
        while True:
            with keeper.lock:
                now = self._now()
                account = accounts.setdefault((meter, tenant), Account(now))
                found = account.decide(nanos, now)
                if isinstance(found, Denial):
                    if (
                        now < patient_until
                        and account.would_have(nanos)
                        and not keeper.is_down(now)
                    ):
                        keeper.hurry(patient_until)
                        keeper.answered.wait(patient_until - now)
                        continue
                    raise _denied(meter, tenant, nanos, found.told)
                if not isinstance(found, Ask):
                    return Grant(None if found is None else found.lease_id, nanos)
                if keeper.is_down(now) or now >= give_up_at:
                    return self._without_answer(account, nanos)
                if not keeper.begin(account):
                    keeper.answered.wait(give_up_at - now)
                    continue
            keeper.ensure_thread()
            if not keeper.ask([Wanted(meter, tenant, account, found)]):
                with keeper.lock:
                    return self._without_answer(account, nanos)

    def _without_answer(self, account: Account, nanos: int) -> Grant:
        lease = account.take(nanos, self._now(), even_closing=True)
        if lease is not None:
            return Grant(lease.lease_id, nanos)
        return self._unchecked(nanos, "the query API gives no answer about quotas")

    def _unchecked(self, nanos: int, why: str) -> Grant:
        problems.report(Problem.UNCHECKED_CALLS, why)
        keeper = self._keeper
        if keeper is None or keeper.desk.settings.quota_fail_mode == "open":
            return Grant(None, nanos)
        raise QuotaExceededError(
            f"{why}, and quota_fail_mode is closed",
            reason="state_unavailable",
            remaining=None,
            resets_at=None,
        )


def _denied(meter: str, tenant: str, nanos: int, told: Told) -> QuotaExceededError:
    remaining = None if told.remaining is None else Decimal(to_text(told.remaining))
    left = "" if remaining is None else f"; {remaining:f} remain"
    until = "" if told.resets_at is None else f" until {told.resets_at.isoformat()}"
    problems.report(Problem.DENIED_CALLS, "a quota denied a call, as it should")
    return QuotaExceededError(
        f"tenant {tenant} may not use {to_text(nanos)} of {meter}: {told.reason}{left}{until}",
        reason=told.reason,
        remaining=remaining,
        resets_at=told.resets_at,
    )


leases = Leases()
"""Of this process."""
