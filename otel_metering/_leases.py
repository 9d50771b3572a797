"""Units of quotas that are reserved ahead from the query API, and spent at the speed of memory.

`_lease_book` has the rules. Here are what it needs around it: a lock, the network, and a thread that reserves
before units run out, keeps what is still needed and gives back what is not.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, NamedTuple, Protocol

from otel_metering._config import Settings
from otel_metering._guard import Problem, absorb, problems
from otel_metering._lease_book import Account, Ask, Book, Denial, Lease, Told
from otel_metering._quantity import to_text
from otel_metering._quota_api import MAX_SECONDS, MAX_TOGETHER, Question, QuotaApi
from otel_metering.clock import Clock, SystemClock
from otel_metering.errors import InvalidUsageError, QuotaExceededError, UnavailableError

_TICK_SECONDS: Final = 0.25
_MAX_TICK_SECONDS: Final = 2.0
_SHARE_OF_TIME: Final = 20
"""The thread rests so many times as long as it worked, within these bounds."""

_RELEASED_TOGETHER: Final = 200
"""Then it looks again what is more urgent."""

_DOWN_SECONDS: Final = 1.0
_MAX_DOWN_SECONDS: Final = 5.0
"""How long a service that does not answer is not asked again."""

_MAX_TTL_SECONDS: Final = 86_400
"""What the service takes."""


class Grant(NamedTuple):
    """Units that a call may use.

    Attributes:
        reservation_id: What the usage has to name as `metering.reservation.id`; None: no quota holds it.
        nanos: How much, in 10**-9 units.
    """

    reservation_id: str | None
    nanos: int


class Delivery(Protocol):
    """What became of usage."""

    def flush(self) -> bool:
        """Hand over everything recorded so far; False: not now."""
        ...

    def is_all_delivered(self) -> bool:
        """Whether the receiver has everything that was handed over; False: or nobody can say now."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What leases are made with.

    Attributes:
        settings: In force.
        delivery: What became of usage.
        clock: Of all times.
        new_id: A text that never was before.
    """

    settings: Settings
    delivery: Delivery
    clock: Clock
    new_id: Callable[[], str]


class Wanted(NamedTuple):
    """What is asked for an account."""

    meter: str
    tenant: str
    account: Account
    ask: Ask

    def question(self, lease_id: str, ttl_seconds: int) -> Question:
        """To the service."""
        return Question(
            meter=self.meter,
            tenant=self.tenant,
            ask=self.ask,
            lease_id=lease_id,
            ttl_seconds=ttl_seconds,
        )


class Leases:
    """The leases of this process. Any thread."""

    def __init__(self) -> None:
        self._desk: Desk | None = None
        self._api: QuotaApi | None = None
        self._now: Callable[[], float] = SystemClock().monotonic
        self._ttl_seconds = 1
        self._forget_all()

    def _forget_all(self) -> None:
        # Re-entrant: a signal handler may take units while its thread does.
        self._lock = threading.Condition(threading.RLock())
        self._book = Book()
        self._accounts = self._book.accounts
        # Who asks for an account right now.
        self._asking: dict[Account, int] = {}
        self._down_until = 0.0
        self._failures = 0
        # Reservations that hold nothing we want, and when they end by themselves.
        self._unwanted: dict[str, float] = {}
        # What was used by the time of the last flush; confirmed once all of it is delivered.
        self._flushed: dict[Lease, int] = {}
        self._wake = threading.Event()
        self._is_resting = False
        self._thread: threading.Thread | None = None

    def start(self, desk: Desk) -> None:
        """Enforce quotas from now on; leases stay, unless it is another service that is asked.

        Raises:
            ConfigurationError: A certificate or key cannot be used.
        """
        api = QuotaApi(desk.settings, desk.clock)
        with self._lock:
            before, self._desk, self._api = self._desk, desk, api
            self._now = desk.clock.monotonic
            self._ttl_seconds = min(max(int(desk.settings.lease_seconds), 1), _MAX_TTL_SECONDS)
            if before is not None and before.settings.api_url != desk.settings.api_url:
                self._book.all_back()  # of the other; they end by themselves
                self._accounts = self._book.accounts

    def stop(self, timeout_seconds: float, *, is_delivered: bool) -> None:
        """Enforce nothing any more, and give back what can be given back in time.

        Args:
            timeout_seconds: At most.
            is_delivered: Whether the receiver has all usage. If not, leases are left to end by
                themselves: what is on its way is held until then.
        """
        with self._lock:
            desk, self._desk = self._desk, None
            names = [one.lease_id for one in self._book.all_back()] if is_delivered else []
            names += self._unwanted
            self._lock.notify_all()
            self._thread = None
            self._wake.set()
            self._forget_all()
        if desk is None or self._api is None:
            return
        self._api.hurry(timeout_seconds / 2)
        until = self._now() + timeout_seconds
        with suppress(UnavailableError, InvalidUsageError):
            for name in names:
                if self._now() >= until:
                    return
                self._api.release(name)

    def after_fork_in_child(self) -> None:
        """Leases are the parent's, as are locks that its threads hold, and its connections."""
        self._forget_all()
        if self._api is not None:
            self._api.disconnect()

    def take(self, meter: str, tenant: str | None, nanos: int) -> Grant:
        """Take units for a call; asks the query API if no lease has them.

        Before `configure` and after `shutdown` everything is allowed, as nothing is counted.

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
        if grant.reservation_id is None:
            return
        with self._lock:
            lease = self._book.leases.get(grant.reservation_id)
            if lease is not None:
                lease.settle(grant.nanos, used_nanos)

    def _give_back(self, taking: asyncio.Future[Grant]) -> None:
        if not taking.cancelled() and taking.exception() is None:
            self.settle(taking.result(), 0)

    def _take_at_once(self, meter: str, tenant: str | None, nanos: int) -> Grant | None:
        account = self._accounts.get((meter, tenant))  # type: ignore[arg-type] # None is not there
        if account is None:
            return None
        with self._lock:
            now = self._now()
            lease = account.take(nanos, now)
            if lease is None:
                if now >= account.free_until:
                    return None
                account.asked_at = now
                return Grant(None, nanos)
        return Grant(lease.lease_id, nanos)

    def _ask_and_take(self, meter: str, tenant: str | None, nanos: int) -> Grant:
        if self._desk is None or nanos <= 0:
            return Grant(None, nanos)
        if tenant is None:
            return self._unchecked(
                nanos, f"usage of {meter} has no tenant whose quota could be asked"
            )
        give_up_at = self._now() + 3 * MAX_SECONDS
        me = threading.get_ident()
        while True:
            with self._lock:
                now = self._now()
                account = self._accounts.setdefault((meter, tenant), Account(now))
                found = account.decide(nanos, now)
                if isinstance(found, Denial):
                    break
                if not isinstance(found, Ask):
                    return Grant(None if found is None else found.lease_id, nanos)
                if now < self._down_until or now >= give_up_at:
                    return self._without_answer(account, nanos, now)
                if self._asking.get(account, me) != me:
                    self._lock.wait(give_up_at - now)
                    continue
                self._asking[account] = me
            self._ensure_thread()
            if not self._ask([Wanted(meter, tenant, account, found)]):
                with self._lock:
                    return self._without_answer(account, nanos, self._now())
        raise _denied(Wanted(meter, tenant, account, Ask(nanos=nanos, is_look=True)), found.told)

    def _without_answer(self, account: Account, nanos: int, now: float) -> Grant:
        lease = account.take(nanos, now, even_closing=True)
        if lease is not None:
            return Grant(lease.lease_id, nanos)
        return self._unchecked(nanos, "the query API gives no answer about quotas")

    def _unchecked(self, nanos: int, why: str) -> Grant:
        problems.report(Problem.UNCHECKED_CALLS, why)
        if self._desk is not None and self._desk.settings.quota_fail_mode == "closed":
            raise QuotaExceededError(
                f"{why}, and quota_fail_mode is closed",
                reason="state_unavailable",
                remaining=None,
                resets_at=None,
            )
        return Grant(None, nanos)

    def _ask(self, wanted: Sequence[Wanted]) -> bool:
        """Ask, and note what is answered; False: there is no answer."""
        desk, api, sent_at = self._desk, self._api, self._now()
        try:
            if desk is None or api is None:
                return False
            questions = [one.question(desk.new_id(), self._ttl_seconds) for one in wanted]
            try:
                answers = api.ask(questions)
            except (UnavailableError, InvalidUsageError) as error:
                self._note_failure(error)
                if isinstance(error, UnavailableError):
                    # Whether it is held is not known.
                    ends_at = sent_at + self._ttl_seconds
                    held = [one.lease_id for one in questions if not one.ask.is_look]
                    self._unwanted |= dict.fromkeys(held, ends_at)
                return False
            for one, question, told in zip(wanted, questions, answers, strict=True):
                self._note(one, question, told, sent_at)
            return True
        finally:
            with self._lock:
                for one in wanted:
                    self._asking.pop(one.account, None)
                self._lock.notify_all()

    def _note(self, wanted: Wanted, question: Question, told: Told, sent_at: float) -> None:
        with self._lock:
            self._note_success()
            lease_id, ttl_seconds = question.lease_id, question.ttl_seconds
            lease = wanted.account.told(wanted.ask, told, lease_id, sent_at, ttl_seconds)
            if lease is not None:
                self._book.leases[lease_id] = lease
            elif told.is_allowed and not wanted.ask.is_look:
                self._unwanted[lease_id] = sent_at + ttl_seconds

    def _note_success(self) -> None:
        if self._failures:
            self._failures, self._down_until = 0, 0.0
            problems.settle(Problem.UNCHECKED_CALLS)

    def _note_failure(self, error: Exception) -> None:
        if not isinstance(error, UnavailableError):
            problems.report(Problem.UNCHECKED_CALLS, error, count=0)
            return
        with self._lock:
            pause = min(_DOWN_SECONDS * 2.0 ** min(self._failures, 10), _MAX_DOWN_SECONDS)
            self._failures += 1
            self._down_until = self._now() + pause
        problems.report(Problem.UNCHECKED_CALLS, error, count=0)

    def _ensure_thread(self) -> None:
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    thread = threading.Thread(
                        target=self._run, name="otel-metering-leases", daemon=True
                    )
                    self._thread = thread
                    # RuntimeError: the interpreter ends, and nobody needs the thread.
                    with suppress(RuntimeError):
                        thread.start()
        if self._is_resting:
            self._wake.set()

    def _run(self) -> None:
        wake = self._wake
        while self._thread is threading.current_thread():
            began = self._now()
            try:
                self._tick()
            except Exception as error:  # noqa: BLE001 -- top of the loop: a fault must not end it
                problems.report(Problem.INTERNAL_ERRORS, error)
            with self._lock:
                has_work = self._accounts or self._book.leases or self._unwanted
                self._is_resting = not has_work
            worked = self._now() - began
            pause = min(max(_TICK_SECONDS, _SHARE_OF_TIME * worked), _MAX_TICK_SECONDS)
            wake.wait(pause if has_work else None)
            wake.clear()

    def _tick(self) -> None:
        desk, api = self._desk, self._api
        if desk is None or api is None:
            return
        self._confirm(desk.delivery)
        with self._lock:
            now = self._now()
            for lease in self._book.tend(now):
                self._unwanted[lease.lease_id] = lease.ends_at
            for name, ends_at in list(self._unwanted.items()):
                if now >= ends_at:
                    del self._unwanted[name]
            if now < self._down_until:
                return
            waning = self._book.waning(now, self._ttl_seconds)
        try:
            self._extend(api, waning)
            self._refill()
            self._release(api)
        except (UnavailableError, InvalidUsageError) as error:
            self._note_failure(error)

    def _confirm(self, delivery: Delivery) -> None:
        """Find out what was delivered: all that was used before a flush, once nothing waits any more."""
        if self._flushed:
            if delivery.is_all_delivered():
                with self._lock:
                    for lease, used in self._flushed.items():
                        lease.delivered = used
                self._flushed = {}
            return
        with self._lock:
            unconfirmed = self._book.unconfirmed(self._now())
        if unconfirmed and delivery.flush():
            self._flushed = unconfirmed

    def _extend(self, api: QuotaApi, waning: Sequence[Lease]) -> None:
        for lease in waning:
            sent_at = self._now()
            is_held = api.extend(lease.lease_id, self._ttl_seconds)
            with self._lock:
                if is_held:
                    lease.renew(sent_at, self._ttl_seconds)
                else:
                    self._book.drop(lease)

    def _refill(self) -> None:
        with self._lock:
            now = self._now()
            wanted = [
                Wanted(meter, tenant, account, ask)
                for (meter, tenant), account in self._accounts.items()
                if account not in self._asking and (ask := account.refill(now)) is not None
            ][:MAX_TOGETHER]
            for one in wanted:
                self._asking[one.account] = threading.get_ident()
        if wanted:
            self._ask(wanted)

    def _release(self, api: QuotaApi) -> None:
        for name in list(self._unwanted)[:_RELEASED_TOGETHER]:
            api.release(name)
            self._unwanted.pop(name, None)


def _denied(wanted: Wanted, told: Told) -> QuotaExceededError:
    remaining = None if told.remaining is None else Decimal(to_text(told.remaining))
    left = "" if remaining is None else f"; {remaining:f} remain"
    until = "" if told.resets_at is None else f" until {told.resets_at.isoformat()}"
    problems.report(Problem.DENIED_CALLS, "a quota denied a call, as it should")
    return QuotaExceededError(
        f"tenant {wanted.tenant} may not use {to_text(wanted.ask.nanos)} of {wanted.meter}: "
        f"{told.reason}{left}{until}",
        reason=told.reason,
        remaining=remaining,
        resets_at=told.resets_at,
    )


leases = Leases()
"""Of this process."""
