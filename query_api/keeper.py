"""Keeps the state of quotas alive: what was lost is recovered, what has ended is closed, drift is corrected.

Redis may be away, or come back without what it had. What this process admitted is in its journal, and is
asserted again at once; but other processes have reservations as well, and each needs a moment to notice. So
after a loss no counter is loaded, and hard quotas refuse, for `recovery_seconds`.
"""

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from otel_metering.clock import Clock
from otel_metering.errors import MeteringError, UnavailableError
from query_api.counters import (
    GRACE_MS,
    Counters,
    End,
    Find,
    Reservation,
    Restore,
    Settlement,
    State,
)
from query_api.counters_redis import RedisCounters
from query_api.feed import Add
from query_api.gate import Gate
from query_api.journal import Journal
from query_api.quota_usage import pending_settlements, stored_settlements
from query_api.quotas import Tag
from query_api.tally import Tally
from query_api.usage_source import Source
from query_api.verdicts import Outage
from receiver.store.client import ReadLimits

TICK_SECONDS: Final = 1.0
START_SECONDS: Final = 30.0
"""How long the start may look for usage that settled reservations."""

AHEAD_NS: Final = 10 * 10**9
"""The counter of the next period is loaded so long before it begins."""

_LOOK_BACK_NS: Final = 32 * 86_400 * 10**9
"""Usage that settles a reservation is not older than it by more than this."""

_MS_NS: Final = 1_000_000
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often.

    Attributes:
        reconcile_seconds: Between comparisons with the database.
        recovery_seconds: How long nothing is loaded after a loss.
    """

    reconcile_seconds: float = 60.0
    recovery_seconds: float = 3.0


class Keeper:
    """Two threads beside the gate."""

    def __init__(
        self,
        *,
        gate: Gate,
        tally: Tally,
        counters: Counters,
        journal: Journal,
        source: Source,
        outage: Outage,
        clock: Clock,
        pace: Pace,
        add: Add,
    ) -> None:
        self._gate = gate
        self._tally = tally
        self._counters = counters
        self._journal = journal
        self._source = source
        self._outage = outage
        self._clock = clock
        self._pace = pace
        self._add = add
        self._recovered_at = 0.0
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._due = threading.Event()
        outage.notice = self._notice
        self._threads = [
            threading.Thread(target=self._run(self.tick, TICK_SECONDS, self._wake), daemon=True),
            threading.Thread(
                target=self._run(self._reconcile, pace.reconcile_seconds, self._due),
                daemon=True,
            ),
        ]

    def start(self) -> None:
        """Know again what was known when the process ended, and go on."""
        self._restore()
        self.tick()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads."""
        self._stopping.set()
        self._wake.set()
        self._due.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def tick(self) -> None:
        """What is done each second."""
        if isinstance(self._counters, RedisCounters):
            self._look(self._counters)
        if self._outage.is_away:
            return
        if self._outage.has_held:
            self._outage.has_held = False
            self._assert_reservations()
        self._close_ended()
        self._load_ahead()

    def _notice(self) -> None:
        """Somebody could not reach the counters."""
        self._outage.is_away = True
        self._wake.set()

    def _look(self, counters: RedisCounters) -> None:
        was_away = self._outage.is_away
        try:
            if was_away or counters.has_moved or not counters.is_whole():
                self._return(counters)
            self._outage.is_away = False
        except UnavailableError as error:
            self._outage.is_away = True
            if not was_away:
                self._add("outages", 1)
                details = {"event": "redis_away", "error": str(error)}
                _log.warning("The state of quotas cannot be had", extra=details)
        if self._outage.is_recovering and self._clock.monotonic() >= self._recovered_at:
            self._outage.is_recovering = False
            self._tally.resume()

    def _return(self, counters: RedisCounters) -> None:
        """Find out what there is, before anything of it is believed."""
        # First: a load that is under way ends before the look, or is void.
        self._tally.pause()
        if not counters.look():
            self._recovered_at = self._clock.monotonic() + self._pace.recovery_seconds
            self._outage.is_recovering = True
            self._add("losses", 1)
            _log.warning("Redis has lost the state of quotas", extra={"event": "redis_lost"})
        self._assert_reservations()
        counters.settle_in()
        _log.info("Redis answers", extra={"event": "redis_back"})
        if not self._outage.is_recovering:
            self._tally.resume()

    def _assert_reservations(self) -> None:
        self._counters.change([Restore(one) for one in self._journal.all(State.ACTIVE)])

    def _restore(self) -> None:
        """Have the reservations of the journal; those that usage has settled meanwhile are closed."""
        known = self._journal.all()
        active = [one for one in known if one.state is State.ACTIVE]
        ended: list[Reservation] = []
        if active:
            ended = self._settled(active)
            self._journal.put(ended)
            changed = {(one.tag, one.reservation_id): one for one in ended}
            known = [changed.get((one.tag, one.reservation_id), one) for one in known]
        if isinstance(self._counters, RedisCounters):
            # Nothing is known of it yet: the first look counts as coming back.
            self._outage.is_away = True
            self._look(self._counters)
            if self._outage.is_away:
                return
            for one in ended:
                # By usage that Redis was not told of. What a lease has left is known to Redis alone.
                if one.state is not State.ACTIVE:
                    self._counters.touch(End(one.tag, one.reservation_id, one.state))
        self._counters.change([Restore(one) for one in known])

    def _settled(self, active: Sequence[Reservation]) -> list[Reservation]:
        of_tags: defaultdict[Tag, list[Reservation]] = defaultdict(list)
        for one in active:
            of_tags[one.tag].append(one)
        changed = []
        limits = ReadLimits(seconds=START_SECONDS, rows=10**12)
        try:
            with self._source.at_rest(START_SECONDS) as pending:
                for tag, some in of_tags.items():
                    since_ns = min(one.expires_ms for one in some) * _MS_NS - _LOOK_BACK_NS
                    ids = [one.reservation_id for one in some]
                    found = stored_settlements(self._source.store, limits, tag, ids, since_ns)
                    found += pending_settlements(pending.events, tag)
                    changed += [settle(one, found) for one in some]
        except MeteringError as error:
            # They hold their units until they end: too much is held, never too little.
            details = {"event": "settlements_unknown", "error": str(error)}
            _log.warning("Reservations that usage settled stay active", extra=details)
        return [one for one in changed if one not in active]

    def _close_ended(self) -> None:
        now_ms = self._clock.now_ns() // _MS_NS
        try:
            ended = self._journal.all(State.ACTIVE, before_ms=now_ms - GRACE_MS)
            found = [self._counters.touch(Find(one.tag, one.reservation_id)) for one in ended]
            self._journal.put(
                now or replace(before, state=State.EXPIRED, left=0)
                for before, now in zip(ended, found, strict=True)
            )
            self._journal.forget_old(now_ms)
        except UnavailableError as error:
            details = {"event": "journal_failed", "error": str(error)}
            _log.warning("The journal of reservations is behind", extra=details)

    def _load_ahead(self) -> None:
        now_ns = self._clock.now_ns()
        nexts = [
            one.rule.counter(one.span.end_ns)
            for one in self._tally.loaded
            if one.span.end_ns is not None and 0 <= one.span.end_ns - now_ns < AHEAD_NS
        ]
        try:
            if nexts:
                self._tally.want(nexts)
        except UnavailableError:
            pass  # they are loaded when they are needed

    def _reconcile(self) -> None:
        if not (self._outage.is_away or self._outage.is_recovering):
            self._tally.reconcile()

    def _run(
        self, work: Callable[[], None], seconds: float, wake: threading.Event
    ) -> Callable[[], None]:
        def run() -> None:
            while not self._stopping.is_set():
                wake.wait(seconds)
                if self._stopping.is_set():
                    return
                wake.clear()
                try:
                    work()
                except Exception as error:  # noqa: BLE001 - the top of a worker loop
                    details = {"event": "quota_keeper_failed", "error": repr(error)}
                    _log.warning("The state of quotas was not looked after", extra=details)

        return run


def settle(one: Reservation, settlements: Sequence[Settlement]) -> Reservation:
    """A reservation after these settlements, counted from its begin."""
    mine = [found for found in settlements if found.reservation_id == one.reservation_id]
    if not mine:
        return one
    if any(found.is_commit for found in mine):
        return replace(one, state=State.COMMITTED, left=0)
    if not one.is_lease:
        return replace(one, state=State.SETTLED, left=0)
    taken = sum(max(found.amount, 0) for found in mine)
    return replace(one, left=max(one.quantity - taken, 0))
