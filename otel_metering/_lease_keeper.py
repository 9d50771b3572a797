"""Asks about quotas for all accounts of a process: at once for a call that waits, and ahead of need.

`_lease_book` has the rules. Here are what it needs around it: a lock, the network, and a thread that reserves
before units run out, keeps what is still needed and gives back what is not.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from otel_metering._config import Settings
from otel_metering._guard import Problem, problems
from otel_metering._lease_book import Account, Ask, Book, Key, Lease, Told
from otel_metering._quota_api import MAX_TOGETHER, Question, QuotaApi
from otel_metering.clock import Clock
from otel_metering.errors import InvalidUsageError, UnavailableError

_TICK_SECONDS: Final = 0.25
_MAX_TICK_SECONDS: Final = 2.0
_HURRIED_TICK_SECONDS: Final = 0.01
_SHARE_OF_TIME: Final = 20
"""The thread rests so many times as long as it worked, within these bounds."""

_TENDED_TOGETHER: Final = 100
"""Accounts that are looked after under one lock: some hundred microseconds, for which calls may wait."""

_RELEASED_TOGETHER: Final = 200
"""Then it looks again what is more urgent."""

_DOWN_SECONDS: Final = 1.0
_MAX_DOWN_SECONDS: Final = 5.0
"""How long a service that does not answer is not asked again."""

_MAX_TTL_SECONDS: Final = 86_400
"""What the service takes."""


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

    @property
    def key(self) -> Key:
        """Of the account."""
        return self.meter, self.tenant

    def question(self, lease_id: str, ttl_seconds: int) -> Question:
        """To the service."""
        return Question(
            meter=self.meter,
            tenant=self.tenant,
            ask=self.ask,
            lease_id=lease_id,
            ttl_seconds=ttl_seconds,
        )


class Keeper:
    """The book of a process, and all that is asked for it. Any thread.

    Attributes:
        lock: Held while the book is used. Re-entrant: a signal handler may take units while its thread
            does.
        answered: Of the same lock; notified when something was answered.
        book: The leases.
        desk: What they are made with.
    """

    def __init__(self, desk: Desk, api: QuotaApi) -> None:
        self.lock = threading.RLock()
        self.answered = threading.Condition(self.lock)
        self.book = Book()
        self.desk = desk
        self.api = api
        # Who asks for an account right now.
        self._asking: dict[Account, int] = {}
        self._down_until = 0.0
        self._failures = 0
        # Reservations that hold nothing we want, and when they end by themselves.
        self._unwanted: dict[str, float] = {}
        # Of those, whose pieces they are, and how much.
        self._returning: dict[str, tuple[Account, int]] = {}
        self._hurried_until = 0.0
        # What was used by the time of the last flush; confirmed once all of it is delivered.
        self._flushed: dict[Lease, int] = {}
        self._wake = threading.Event()
        self._is_resting = False
        self._is_stopping = False
        self._thread: threading.Thread | None = None

    @property
    def _ttl_seconds(self) -> int:
        return min(max(int(self.desk.settings.lease_seconds), 1), _MAX_TTL_SECONDS)

    def is_down(self, now: float) -> bool:
        """Whether the service did not answer a moment ago."""
        return now < self._down_until

    def begin(self, account: Account) -> bool:
        """Whether the caller may ask for it now: nobody else does. Under the lock; `ask` must follow."""
        me = threading.get_ident()
        if self._asking.get(account, me) != me:
            return False
        self._asking[account] = me
        return True

    def ask(self, wanted: Sequence[Wanted]) -> bool:
        """Ask, and note what is answered; False: there is no answer."""
        sent_at = self._now()
        try:
            questions = [one.question(self.desk.new_id(), self._ttl_seconds) for one in wanted]
            try:
                answers = self.api.ask(questions)
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
            with self.lock:
                for one in wanted:
                    self._asking.pop(one.account, None)
                self.answered.notify_all()

    def stop(self, timeout_seconds: float, *, is_delivered: bool) -> None:
        """End the thread, and give back what can be given back in time.

        Args:
            timeout_seconds: At most, and one request.
            is_delivered: Whether the receiver has all usage. If not, leases are left to end by
                themselves: what is on its way is held until then.
        """
        self._is_stopping = True
        self._wake.set()
        with self.lock:
            names = [one.lease_id for one in self.book.all_back()] if is_delivered else []
            names += list(self._unwanted)
            self.answered.notify_all()
        self.api.hurry(timeout_seconds / 2)
        until = self._now() + timeout_seconds
        with suppress(UnavailableError, InvalidUsageError):
            for name in names:
                if self._now() >= until:
                    break
                self.api.release(name)
        self.api.close()

    def hurry(self, until: float) -> None:
        """A call waits until then for units that are to be given back. Under the lock."""
        self._hurried_until = max(self._hurried_until, until)
        self.ensure_thread()
        self._wake.set()

    def ensure_thread(self) -> None:
        """Have the thread, and have it awake."""
        with self.lock:
            if self._thread is None and not self._is_stopping:
                thread = threading.Thread(
                    target=self._run, name="otel-metering-leases", daemon=True
                )
                self._thread = thread
                # RuntimeError: the interpreter ends, and nobody needs the thread.
                with suppress(RuntimeError):
                    thread.start()
        if self._is_resting:
            self._wake.set()

    def _now(self) -> float:
        return self.desk.clock.monotonic()

    def _note(self, wanted: Wanted, question: Question, told: Told, sent_at: float) -> None:
        with self.lock:
            self._note_success()
            lease_id, ttl_seconds = question.lease_id, question.ttl_seconds
            lease = wanted.account.told(wanted.ask, told, lease_id, sent_at, ttl_seconds)
            if lease is not None and self.book.add(wanted.key, lease):
                return
            if told.is_allowed and not wanted.ask.is_look:
                self._unwanted[lease_id] = sent_at + ttl_seconds

    def _note_success(self) -> None:
        if self._failures:
            self._failures, self._down_until = 0, 0.0
            problems.settle(Problem.UNCHECKED_CALLS)

    def _note_failure(self, error: Exception) -> None:
        if not isinstance(error, UnavailableError):
            problems.report(Problem.UNCHECKED_CALLS, error, count=0)
            return
        with self.lock:
            pause = min(_DOWN_SECONDS * 2.0 ** min(self._failures, 10), _MAX_DOWN_SECONDS)
            self._failures += 1
            self._down_until = self._now() + pause
        problems.report(Problem.UNCHECKED_CALLS, error, count=0)

    def _run(self) -> None:
        while not self._is_stopping:
            began = self._now()
            try:
                self._tick()
            except Exception as error:  # noqa: BLE001 -- top of the loop: a fault must not end it
                problems.report(Problem.INTERNAL_ERRORS, error)
            with self.lock:
                has_work = self.book.accounts or self.book.leases or self._unwanted
                self._is_resting = not has_work
            worked = self._now() - began
            pause = min(max(_TICK_SECONDS, _SHARE_OF_TIME * worked), _MAX_TICK_SECONDS)
            if began < self._hurried_until:
                pause = _HURRIED_TICK_SECONDS
            self._wake.wait(pause if has_work else None)
            self._wake.clear()

    def _tick(self) -> None:
        self._confirm(self.desk.delivery)
        self._tend()
        now = self._now()
        for name, ends_at in list(self._unwanted.items()):
            if now >= ends_at:
                self._is_gone(name)
        if self.is_down(now):
            return
        try:
            self._extend(self.book.waning(now, self._ttl_seconds))
            self._refill()
            self._release()
        except (UnavailableError, InvalidUsageError) as error:
            self._note_failure(error)

    def _tend(self) -> None:
        keys = list(self.book.accounts)
        for start in range(0, len(keys), _TENDED_TOGETHER):
            with self.lock:
                back = self.book.tend(self._now(), keys[start : start + _TENDED_TOGETHER])
            self._returning |= {lease.lease_id: (lease.account, lease.left) for lease in back}
            self._unwanted |= {lease.lease_id: lease.ends_at for lease in back}

    def _confirm(self, delivery: Delivery) -> None:
        """Find out what was delivered: all that was used before a flush, once nothing waits any more."""
        if self._flushed:
            if delivery.is_all_delivered():
                with self.lock:
                    for lease, used in self._flushed.items():
                        lease.delivered = used
                self._flushed = {}
            return
        unconfirmed = self.book.unconfirmed(self._now())
        if unconfirmed and delivery.flush():
            self._flushed = unconfirmed

    def _extend(self, waning: Sequence[Lease]) -> None:
        for lease in waning:
            sent_at = self._now()
            is_held = self.api.extend(lease.lease_id, self._ttl_seconds)
            with self.lock:
                if is_held:
                    lease.renew(sent_at, self._ttl_seconds)
                else:
                    self.book.drop(lease)

    def _refill(self) -> None:
        now = self._now()
        wanted = [
            Wanted(meter, tenant, account, ask)
            for (meter, tenant), account in list(self.book.accounts.items())
            if (ask := account.refill(now)) is not None
        ]
        with self.lock:
            wanted = [one for one in wanted[:MAX_TOGETHER] if self.begin(one.account)]
        if wanted:
            self.ask(wanted)

    def _release(self) -> None:
        for name in list(self._unwanted)[:_RELEASED_TOGETHER]:
            self.api.release(name)
            self._is_gone(name)

    def _is_gone(self, name: str) -> None:
        self._unwanted.pop(name, None)
        account, nanos = self._returning.pop(name, (None, 0))
        if account is not None:
            with self.lock:
                account.is_back(nanos)
                self.answered.notify_all()
