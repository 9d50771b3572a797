"""Counters and reservations in this process: plain integers behind one lock."""

import heapq
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, assert_never

from otel_metering.clock import Clock
from query_api.counters import (
    GRACE_MS,
    KEPT_MS,
    Active,
    Adjust,
    Asked,
    Check,
    Checked,
    Count,
    Counted,
    Drop,
    End,
    Extend,
    Find,
    Hold,
    Put,
    Reservation,
    Restore,
    Settlement,
    State,
)
from query_api.quotas import Tag

_MS_NS: Final = 1_000_000


class MemoryCounters:
    """They live as long as the process does; see `counters.Counters`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._used: dict[str, int] = {}
        self._reserved: defaultdict[tuple[Tag, str], int] = defaultdict(int)
        self._reservations: dict[tuple[Tag, str], Reservation] = {}
        self._tags_of: defaultdict[str, dict[Tag, None]] = defaultdict(dict)
        self._active: defaultdict[Tag, dict[str, None]] = defaultdict(dict)
        # (when, tag, id): when the units of an active one are freed, when an ended one is forgotten.
        self._due: list[tuple[int, Tag, str]] = []
        self._numbers: dict[tuple[Tag, str], int] = {}

    def check(self, check: Check) -> Checked:
        """Read counters, and hold units."""
        now_ms = self._now_ms()
        with self._lock:
            if self._due and self._due[0][0] <= now_ms:
                self._purge(now_ms)
            found = made = None
            if check.asked is not None:
                found = self._reservations.get((check.tag, check.asked.reservation_id))
                if found is None and self._fits(check):
                    found = made = self._make(check, check.asked, now_ms)
            used = tuple([self._used.get(key) for key, _, _ in check.lines])
            reserved = tuple([self._reserved.get((check.tag, s), 0) for _, s, _ in check.lines])
        return Checked(used, reserved, found and _seen(found, now_ms), made is not None)

    async def check_soon(self, check: Check) -> Checked:
        """As `check`: it waits for nothing but the lock, which is held for microseconds."""
        return self.check(check)

    def count(self, counts: Sequence[Count]) -> list[Counted]:
        """Add usage; each atomically."""
        with self._lock:
            return [self._count(one) for one in counts]

    def touch(self, operation: Find | End | Extend | Hold) -> Reservation | None:
        """Do something to a reservation; returns it as it then is. None: there is none."""
        now_ms = self._now_ms()
        with self._lock:
            self._purge(now_ms)
            found = self._reservations.get((operation.tag, operation.reservation_id))
            if found is None:
                return None
            match operation:
                case Find():
                    pass
                case End():
                    self._end_if_open(found, operation.state)
                case Extend():
                    self._extend(found, now_ms, operation.ttl_ms)
                case Hold():
                    self._hold(found, operation.scope)
                case _:
                    assert_never(operation)
            return _seen(self._reservations[found.tag, found.reservation_id], now_ms)

    def active(self, operation: Active) -> list[Reservation]:
        """Every active reservation of a tag."""
        with self._lock:
            self._purge(self._now_ms())
            ids = self._active.get(operation.tag, {})
            return [self._reservations[operation.tag, one] for one in ids]

    def change(self, operations: Sequence[Put | Adjust | Drop | Restore]) -> None:
        """Do these, one by one."""
        with self._lock:
            for one in operations:
                match one:
                    case Put():
                        self._used[one.key] = one.value
                    case Adjust():
                        if one.key in self._used:
                            self._used[one.key] += one.delta
                    case Drop():
                        self._used.pop(one.key, None)
                    case Restore():
                        self._restore(one.reservation)
                    case _:
                        assert_never(one)

    def locate(self, reservation_id: str) -> list[Tag]:
        """The tags that have a reservation of this id."""
        with self._lock:
            return list(self._tags_of.get(reservation_id, ()))

    def _fits(self, check: Check) -> bool:
        for key, scope, ceiling in check.lines:
            used = self._used.get(key)
            if used is None:
                return False
            total = used + self._reserved.get((check.tag, scope), 0) + check.quantity
            if ceiling is not None and total > ceiling:
                return False
        return True

    def _make(self, check: Check, asked: Asked, now_ms: int) -> Reservation:
        made = Reservation(
            tag=check.tag,
            reservation_id=asked.reservation_id,
            quantity=check.quantity,
            left=check.quantity,
            dimensions=asked.dimensions,
            is_lease=asked.is_lease,
            state=State.ACTIVE,
            expires_ms=now_ms + asked.ttl_ms,
            scopes=asked.scopes,
        )
        self._restore(made)
        return made

    def _restore(self, made: Reservation) -> None:
        key = made.tag, made.reservation_id
        if key in self._reservations:
            return
        self._reservations[key] = made
        self._tags_of[made.reservation_id][made.tag] = None
        is_active = made.state is State.ACTIVE
        if is_active:
            self._active[made.tag][made.reservation_id] = None
            for scope in made.scopes:
                self._reserved[made.tag, scope] += made.left
        due_ms = made.expires_ms + (GRACE_MS if is_active else KEPT_MS)
        heapq.heappush(self._due, (due_ms, *key))

    def _count(self, count: Count) -> Counted:
        if self._numbers.get((count.tag, count.source), -1) >= count.number:
            return Counted()
        self._numbers[count.tag, count.source] = count.number
        missing = []
        for key, amount in count.deltas:
            if key in self._used:
                self._used[key] += amount
            else:
                missing.append(key)
        settled = [self._settle(count.tag, one) for one in count.settlements]
        return Counted(tuple(missing), tuple([one for one in settled if one is not None]))

    def _settle(self, tag: Tag, settlement: Settlement) -> Reservation | None:
        found = self._reservations.get((tag, settlement.reservation_id))
        if found is None:
            return None
        if settlement.is_commit:
            self._end_if_open(found, State.COMMITTED)
        elif found.state is State.ACTIVE and not found.is_lease:
            self._end_if_open(found, State.SETTLED)
        elif found.state is State.ACTIVE:
            self._keep(found, left=max(found.left - max(settlement.amount, 0), 0))
        return self._reservations[tag, settlement.reservation_id]

    def _end_if_open(self, found: Reservation, state: State) -> None:
        is_late = found.state is State.EXPIRED and state is State.COMMITTED
        if found.state is State.ACTIVE or is_late:
            self._keep(found, left=0, state=state)
            self._active[found.tag].pop(found.reservation_id, None)
            if not self._active[found.tag]:
                del self._active[found.tag]

    def _keep(self, found: Reservation, *, left: int, state: State | None = None) -> None:
        """A reservation changes, and with it what is held."""
        key = found.tag, found.reservation_id
        self._reservations[key] = replace(found, left=left, state=state or found.state)
        for scope in found.scopes:
            self._reserved[found.tag, scope] -= found.left - left
            if not self._reserved[found.tag, scope]:
                del self._reserved[found.tag, scope]

    def _extend(self, found: Reservation, now_ms: int, ttl_ms: int) -> None:
        if found.state is State.ACTIVE and now_ms < found.expires_ms:
            key = found.tag, found.reservation_id
            self._reservations[key] = replace(found, expires_ms=now_ms + ttl_ms)
            heapq.heappush(self._due, (now_ms + ttl_ms + GRACE_MS, *key))

    def _hold(self, found: Reservation, scope: str) -> None:
        if found.state is State.ACTIVE and scope not in found.scopes:
            key = found.tag, found.reservation_id
            self._reservations[key] = replace(found, scopes=(*found.scopes, scope))
            self._reserved[found.tag, scope] += found.left

    def _purge(self, now_ms: int) -> None:
        while self._due and self._due[0][0] <= now_ms:
            _, tag, reservation_id = heapq.heappop(self._due)
            found = self._reservations.get((tag, reservation_id))
            if found is None:
                continue
            if found.state is State.ACTIVE:
                if found.expires_ms + GRACE_MS <= now_ms:
                    self._end_if_open(found, State.EXPIRED)
                    heapq.heappush(self._due, (now_ms + KEPT_MS, tag, reservation_id))
            elif found.expires_ms + KEPT_MS <= now_ms:
                del self._reservations[tag, reservation_id]
                self._tags_of[reservation_id].pop(tag, None)
                if not self._tags_of[reservation_id]:
                    del self._tags_of[reservation_id]
            else:
                heapq.heappush(self._due, (found.expires_ms + KEPT_MS, tag, reservation_id))

    def _now_ms(self) -> int:
        return self._clock.now_ns() // _MS_NS


def _seen(found: Reservation, now_ms: int) -> Reservation:
    """As it is shown: its time is over before its units are free."""
    if found.state is State.ACTIVE and found.expires_ms <= now_ms:
        return replace(found, state=State.EXPIRED)
    return found
