"""Which units a process may spend, and which it should reserve, keep or give back: pure rules.

A lease is units that the service holds for this process. Whoever spends has to be sure of two things: that
the service still holds them, and that it goes on doing so until the usage was counted. So a lease is spent
only until well before its end, and is kept as long as usage of it is on its way.

Times are seconds of a monotonic clock, amounts 10**-9 units. Nobody may be between the load and the store
of an amount: callers have a lock against other threads, and no call or backward jump stands between the two,
at which a signal handler of the same thread could run.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

Key = tuple[str, str]
"""(meter, tenant)"""

AHEAD_SECONDS: Final = 20.0
"""A lease should last so long: each one is a series of its own for the receiver."""

IDLE_SECONDS: Final = 10.0
"""Units that nobody took for so long are given back."""

MAX_AHEAD_SECONDS: Final = 3 * AHEAD_SECONDS
"""Units that would last longer are given back too."""

DENIED_SECONDS: Final = 1.0
"""How long a denial is believed."""

FREE_SECONDS: Final = 5.0
"""How long it is believed that there is no quota."""

_SHARE: Final = 8
"""One part of so many of what remains may be reserved ahead: the rest is for other processes."""

_GROWTH: Final = 8
"""A lease is at most so many times the one before it."""

_MIN_WINDOW_SECONDS: Final = 1.0
_MAX_WINDOW_SECONDS: Final = 2 * AHEAD_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is to be asked.

    Attributes:
        nanos: How much.
        is_look: Only whether a quota allows it: nothing is to be held.
    """

    nanos: int
    is_look: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the service says.

    Attributes:
        is_allowed: Whether it may be used.
        reason: Why, in its words.
        is_unlimited: No quota applies.
        is_soft: The quota with the least left denies nothing; others may.
        remaining: What that quota has left; None: it did not say.
        resets_at: When it begins anew; None: never, or it did not say.
        resets_seconds: How far away that is.
    """

    is_allowed: bool
    reason: str
    is_unlimited: bool = False
    is_soft: bool = False
    remaining: int | None = None
    resets_at: datetime | None = None
    resets_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """A quota denied so much, and is not asked for as much again `until` then."""

    nanos: int
    until: float
    told: Told


class Lease:
    """Units that the service holds.

    Attributes:
        lease_id: What usage of it has to name.
        account: Whose.
        left: Not given out.
        out: Given out, to calls that are not over.
        used: Used by calls that are over.
        delivered: As much of `used` as the receiver has for certain.
        since: When it was had.
        taken_at: When somebody last took from it.
        ends_at: The service frees it then, at the earliest.
        spend_until: Nobody takes from it afterwards.
        is_closing: It is to be given back; taken from only where all else fails.
    """

    __slots__ = (
        "account",
        "delivered",
        "ends_at",
        "is_closing",
        "lease_id",
        "left",
        "out",
        "since",
        "spend_until",
        "taken_at",
        "used",
    )

    def __init__(self, account: "Account", lease_id: str, nanos: int, now: float) -> None:
        self.account = account
        self.lease_id = lease_id
        self.left = nanos
        self.out = 0
        self.used = 0
        self.delivered = 0
        self.since = now
        self.taken_at = now
        self.ends_at = now
        self.spend_until = now
        self.is_closing = False

    def renew(self, sent_at: float, ttl_seconds: float) -> None:
        """The service was asked at `sent_at` to hold it for so long, and does."""
        self.ends_at = sent_at + ttl_seconds
        # The last quarter is for usage that is on its way when the service cannot be asked any more.
        self.spend_until = sent_at + ttl_seconds * 0.75

    def settle(self, granted: int, used: int) -> None:
        """A call is over that had `granted`, and used so much; the rest can be taken again."""
        left = self.left + granted - used
        # Below 0: it used more than it was granted. And max() would be a call, see above.
        self.left = left if left > 0 else 0
        self.out -= granted
        self.used += used
        self.account.gave_back(granted - used)

    def is_over(self, now: float) -> bool:
        """Whether nobody should take from it, or nobody does."""
        is_idle = now - self.taken_at > IDLE_SECONDS
        return self.left == 0 or self.is_closing or is_idle or now >= self.spend_until

    @property
    def is_settled(self) -> bool:
        """Whether no usage of it is on its way, or to come."""
        return self.out <= 0 and self.delivered == self.used


class Account:
    """The leases of one tenant and meter.

    Attributes:
        leases: Oldest first.
        free_until: No quota applies until then.
        denial: The last one.
        asked_at: When somebody last asked for units.
        returning: Units of leases that were given up here, and that the service does not have back yet.
    """

    __slots__ = (
        "_has_quota",
        "_is_soft",
        "_largest",
        "_last",
        "_remaining",
        "_since",
        "_taken",
        "asked_at",
        "denial",
        "free_until",
        "leases",
        "returning",
    )

    def __init__(self, now: float) -> None:
        self.leases: list[Lease] = []
        self.returning = 0
        self.free_until = now
        self.denial: Denial | None = None
        self.asked_at = now
        self._has_quota = False
        self._is_soft = False
        self._remaining: int | None = None
        # Of the last lease, and of any call.
        self._last = 0
        self._largest = 0
        # Taken since then: how fast units are used.
        self._taken = 0
        self._since = now

    def take(self, nanos: int, now: float, *, even_closing: bool = False) -> Lease | None:
        """Take units from a lease; None: no lease has them."""
        for lease in self.leases:
            left = lease.left
            if left >= nanos and now < lease.spend_until and (even_closing or not lease.is_closing):
                lease.left = left - nanos
                lease.out += nanos
                lease.taken_at = now
                self._taken += nanos
                if nanos > self._largest:
                    self._largest = nanos
                return lease
        return None

    def decide(self, nanos: int, now: float) -> Lease | Ask | Denial | None:
        """Take units for a call: from this lease, after asking, or not at all. None: no quota applies."""
        self.asked_at = now
        lease = self.take(nanos, now)
        if lease is not None or now < self.free_until:
            return lease
        if not self._has_quota:
            return Ask(nanos=nanos, is_look=True)
        denial = self.denial
        if denial is None or now >= denial.until:
            return Ask(nanos=self._size(nanos, now), is_look=False)
        if nanos < denial.nanos:
            return Ask(nanos=nanos, is_look=False)
        lease = self.take(nanos, now, even_closing=True)
        if lease is None:
            self._close_leftovers(nanos, denial.told.remaining)
        return lease or denial

    def would_have(self, nanos: int) -> bool:
        """Whether a call that was denied would be allowed if the service had all the pieces back."""
        remaining = None if self.denial is None else self.denial.told.remaining
        pieces = self.returning + sum(one.left for one in self.leases if one.out <= 0)
        return pieces > 0 and remaining is not None and remaining + pieces >= nanos

    def is_back(self, nanos: int) -> None:
        """The service has so much back: what it denied may be asked again."""
        self.returning = max(self.returning - nanos, 0)
        self.denial = None

    def refill(self, now: float) -> Ask | None:
        """What should be asked before anybody needs it."""
        if now - self.asked_at > IDLE_SECONDS and not self.is_busy(now):
            return None
        if not self._has_quota:
            is_due = self.free_until - now < FREE_SECONDS / 2 and now - self.asked_at < FREE_SECONDS
            return Ask(nanos=1, is_look=True) if is_due else None
        if self.denial is not None and now < self.denial.until:
            return None
        if not self._largest:
            return None
        left = sum(one.left for one in self.leases if not one.is_closing and now < one.spend_until)
        if left > self._rate(now) * AHEAD_SECONDS / 4:
            return None
        size = self._size(self._largest, now)
        # Near the limit units are asked for when they are needed: what one holds, another lacks.
        return Ask(nanos=size, is_look=False) if size >= 2 * self._largest else None

    def told(
        self, ask: Ask, told: Told, lease_id: str, sent_at: float, ttl_seconds: int
    ) -> Lease | None:
        """Remember an answer to what was asked at `sent_at`; returns the lease that it made."""
        self._remaining, self._is_soft = told.remaining, told.is_soft
        self._has_quota = not told.is_unlimited
        self.denial = None
        if told.is_unlimited:
            self.free_until = sent_at + FREE_SECONDS
            return None
        self.free_until = sent_at
        if not told.is_allowed:
            pause = DENIED_SECONDS
            if told.resets_seconds is not None:
                pause = min(pause, max(told.resets_seconds, 0.0))
            self.denial = Denial(nanos=ask.nanos, until=sent_at + pause, told=told)
            return None
        if ask.is_look:
            return None
        lease = Lease(self, lease_id, ask.nanos, sent_at)
        lease.renew(sent_at, ttl_seconds)
        self.leases.append(lease)
        self._last = ask.nanos
        return lease

    def tend(self, now: float) -> None:
        """Close what is more than will be needed soon."""
        if now - self._since > _MAX_WINDOW_SECONDS:
            # Half of what was forgets half of the time: a mean of the last minute, about.
            self._taken //= 2
            self._since += (now - self._since) / 2
            self._largest //= 2
        most = self._rate(now) * MAX_AHEAD_SECONDS
        for lease in self.leases:
            if now - lease.since > AHEAD_SECONDS and lease.left > most:
                lease.is_closing = True

    def is_busy(self, now: float) -> bool:
        """Whether units were taken lately."""
        return any(now - one.taken_at <= IDLE_SECONDS for one in self.leases)

    def gave_back(self, nanos: int) -> None:
        """So much of what was taken was not used."""
        self._taken -= nanos

    def _size(self, need: int, now: float) -> int:
        size = min(int(self._rate(now) * AHEAD_SECONDS), _GROWTH * max(self._last, need))
        if not self._is_soft:
            size = min(size, (self._remaining or 0) // _SHARE)
        # A multiple of what a call takes: no call can use the piece that would be left.
        return max(size - size % need, need)

    def _rate(self, now: float) -> float:
        return max(self._taken, 0) / max(now - self._since, _MIN_WINDOW_SECONDS)

    def _close_leftovers(self, nanos: int, remaining: int | None) -> None:
        """Give back pieces that are too small for a call, if with them it would be allowed."""
        some = [one for one in self.leases if one.left > 0 and one.out <= 0]
        if remaining is not None and remaining + sum(one.left for one in some) >= nanos:
            for one in some:
                one.is_closing = True


class Book:
    """All accounts of a process, and all their leases.

    Attributes:
        accounts: By meter and tenant.
        leases: By id.
    """

    def __init__(self) -> None:
        self.accounts: dict[Key, Account] = {}
        self.leases: dict[str, Lease] = {}

    def add(self, key: Key, lease: Lease) -> bool:
        """Have a new one; False: its account was forgotten meanwhile, and another took its place."""
        if self.accounts.setdefault(key, lease.account) is not lease.account:
            return False
        self.leases[lease.lease_id] = lease
        return True

    def drop(self, lease: Lease) -> None:
        """Nobody takes from it any more."""
        self.leases.pop(lease.lease_id, None)
        if lease in lease.account.leases:
            lease.account.leases.remove(lease)

    def tend(self, now: float, some: Iterable[Key] | None = None) -> list[Lease]:
        """Forget what has ended, and close what is idle.

        Args:
            now: The time.
            some: These accounts alone; None: all.

        Returns:
            Leases to give back; they are forgotten.
        """
        back = []
        for key in list(self.accounts) if some is None else some:
            account = self.accounts.get(key)
            if account is None:
                continue
            account.tend(now)
            for lease in account.leases.copy():
                if now >= lease.ends_at or (lease.is_settled and lease.is_over(now)):
                    self.drop(lease)
                    if lease.left and now < lease.ends_at:
                        account.returning += lease.left
                        back.append(lease)
            if not account.leases and now - account.asked_at > MAX_AHEAD_SECONDS:
                del self.accounts[key]
        return back

    def waning(self, now: float, ttl_seconds: float) -> list[Lease]:
        """Leases of which less than half of the time is left; needs no lock."""
        return [one for one in list(self.leases.values()) if one.ends_at - now < ttl_seconds / 2]

    def unconfirmed(self, now: float) -> dict[Lease, int]:
        """What was used of each lease, if one waits for that to be delivered; else nothing. Needs no lock."""
        used = {one: one.used for one in list(self.leases.values()) if one.used > one.delivered}
        return used if any(one.is_over(now) for one in used) else {}

    def all_back(self) -> list[Lease]:
        """Forget all leases; returns those that can be given back, as all usage was delivered."""
        some = sorted(self.leases.values(), key=lambda one: -one.left)
        self.leases.clear()
        self.accounts.clear()
        return [one for one in some if one.left and one.out <= 0]
