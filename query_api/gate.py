"""The quota gate: may a tenant use so much more? And units held for usage that is to come.

A check reads counters, and holds units if it is asked to, in one step: whatever runs side by side, units of
a hard quota are never given away twice. Where the counters cannot be had, a policy answers.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from concurrent import futures
from contextlib import suppress
from dataclasses import replace
from typing import Final

from otel_metering.clock import Clock
from otel_metering.contract.meter import Meters
from otel_metering.contract.quota import QuotaDefinition
from otel_metering.errors import UnavailableError
from query_api.counters import (
    Asked,
    Check,
    Checked,
    Counters,
    End,
    Extend,
    Find,
    Reservation,
    State,
)
from query_api.journal import Journal
from query_api.problems import ConflictError, NotFoundError
from query_api.quotas import (
    Applied,
    Book,
    Counter,
    Decision,
    Reason,
    Standing,
    decide,
    nano_text,
)
from query_api.tally import Tally
from query_api.verdicts import Outage, Policy, Question, Status, Verdict

ATTEMPTS: Final = 3
"""How often counters that vanish (Redis was emptied) are loaded for one check."""

_MS_NS: Final = 1_000_000
_log = logging.getLogger(__name__)


class Gate:
    """Decides. `check` belongs to the event loop; any thread may call the other methods."""

    def __init__(
        self,
        *,
        quotas: Callable[[], Sequence[QuotaDefinition]],
        meters: Callable[[], Meters],
        counters: Counters,
        journal: Journal,
        clock: Clock,
        outage: Outage,
        policy: Policy,
        count_unavailable: Callable[[str], None],
    ) -> None:
        """Put it together; `follow` comes next.

        Args:
            quotas: Those in force; `reload` reads them again.
            meters: The definitions in force.
            counters: Where counters and reservations live.
            journal: The reservations that were made here.
            clock: The time.
            outage: Whether counters can be had.
            policy: What is answered where they cannot.
            count_unavailable: Told the enforcement, once for each answer without counters.
        """
        self._quotas = quotas
        self._meters = meters
        self._counters = counters
        self._journal = journal
        self._clock = clock
        self._outage = outage
        self._policy = policy
        self._count_unavailable = count_unavailable
        self._known_meters = meters()
        self._book = Book((), self._known_meters)
        self._tally: Tally
        self._unkept: list[tuple[Reservation, asyncio.Future[UnavailableError | None]]] = []
        self._keeping: asyncio.Task[None] | None = None

    def follow(self, tally: Tally) -> None:
        """Who loads the counters."""
        self._tally = tally

    def reload(self) -> None:
        """Read the quotas again."""
        self._known_meters = self._meters()
        self._book = Book(self._quotas(), self._known_meters)

    @property
    def book(self) -> Book:
        """The quotas in force."""
        if self._meters() is not self._known_meters:
            self.reload()
        return self._book

    async def check(self, question: Question) -> Verdict:
        """Answer one check.

        Raises:
            ConflictError: There is or was a reservation of this id, for something else or no longer active.
        """
        dimensions = dict(question.dimensions)
        applied = [
            one
            for one in self.book.of(question.tag)
            if not one.rule.filter or one.rule.admits(dimensions)
        ]
        if not applied and question.reservation_id is None:
            return _NO_QUOTA
        if question.reservation_id == "":
            question = replace(question, reservation_id=f"res_{secrets.token_hex(12)}")
        try:
            return await self._answer(question, applied)
        except UnavailableError:
            return self._answer_without(question, applied)

    async def _answer(self, question: Question, applied: Sequence[Applied]) -> Verdict:
        self._outage.check()
        now_ns = self._clock.now_ns()
        if any(one.rule.aggregation is None for one in applied):
            raise UnavailableError("the meter does not add up any more")
        counters = [one.rule.counter(now_ns) for one in applied]
        if counters and self._tally.is_behind:
            raise UnavailableError("usage is not counted at the moment")
        checked = await self._check(question, applied, counters)
        standings = [
            Standing(one, used or 0, reserved)
            for one, used, reserved in zip(applied, checked.used, checked.reserved, strict=True)
        ]
        held = checked.reservation
        if held is None:
            decision = decide(standings, question.quantity)
        else:
            if checked.is_new:
                await self._keep(held)
            else:
                _check_same(question, held)
            decision = decide(standings, 0)
            if not decision.is_allowed:
                # It was held before usage came that was not asked for.
                decision = replace(decision, is_allowed=True, reason=Reason.OK)
        ends_ns = None
        if decision.binding is not None:
            ends_ns = decision.binding.applied.rule.counter(now_ns).span.end_ns
        return Verdict(decision, held, ends_ns)

    async def _check(
        self, question: Question, applied: Sequence[Applied], counters: Sequence[Counter]
    ) -> Checked:
        lines = tuple(
            [
                (counter.key, one.rule.scope, one.ceiling)
                for counter, one in zip(counters, applied, strict=True)
            ]
        )
        check = Check(question.tag, lines, question.quantity, _asked(question, applied))
        for _ in range(ATTEMPTS):
            missing = [one for one in counters if not self._tally.is_loaded(one)]
            if missing:
                await self._load(missing)
                if not all(self._tally.is_loaded(one) for one in missing):
                    continue  # it is loaded, and was forgotten again
            try:
                checked = await self._counters.check_soon(check)
            except UnavailableError:
                self._outage.notice()
                raise
            gone = [
                one.key for one, used in zip(counters, checked.used, strict=True) if used is None
            ]
            if not gone:
                return checked
            self._tally.forget(gone)
        raise UnavailableError("the counters vanish as soon as they are loaded")

    async def _load(self, missing: Sequence[Counter]) -> None:
        waiting = [asyncio.wrap_future(one) for one in self._tally.want(missing)]
        if not waiting:
            return
        # Not cancelled when the time is up: others wait for the same.
        done, late = await asyncio.wait(waiting, timeout=self._policy.load_seconds)
        errors = [error for one in done if (error := one.result()) is not None]
        if errors:
            raise errors[0]
        if late:
            raise UnavailableError("the counters were not loaded in time")

    async def _keep(self, made: Reservation) -> None:
        """Make a new reservation durable; those that come while the disk works are its next transaction."""
        done: asyncio.Future[UnavailableError | None] = asyncio.get_running_loop().create_future()
        self._unkept.append((made, done))
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep_all())
        error = await done
        if error is not None:
            with suppress(UnavailableError):
                self._counters.touch(End(made.tag, made.reservation_id, State.RELEASED))
            raise error

    async def _keep_all(self) -> None:
        try:
            while self._unkept:
                some, self._unkept = self._unkept, []
                error = None
                try:
                    await asyncio.to_thread(self._journal.put, [made for made, _ in some])
                except UnavailableError as failure:
                    error = failure
                for _, done in some:
                    if not done.done():
                        done.set_result(error)
        finally:
            self._keeping = None

    def _answer_without(self, question: Question, applied: Sequence[Applied]) -> Verdict:
        """What the policy says where counters cannot be had."""
        is_recovering = self._outage.is_recovering and not self._outage.is_away
        reason = Reason.RECOVERING if is_recovering else Reason.STATE_UNAVAILABLE
        denying = [one for one in applied if one.quota.enforcement not in self._policy.allows]
        for one in applied:
            self._count_unavailable(one.quota.enforcement)
        held = None
        if not denying and question.reservation_id is not None:
            # Held from when the counters can be had again.
            held = self._hold_later(question, applied)
        if not applied:
            return Verdict(Decision(is_allowed=True, reason=Reason.NO_QUOTA, binding=None), held)
        binding = Standing((denying or list(applied))[0], 0, 0)
        return Verdict(Decision(is_allowed=not denying, reason=reason, binding=binding), held)

    def _hold_later(self, question: Question, applied: Sequence[Applied]) -> Reservation:
        asked = _asked(question, applied)
        assert asked is not None  # noqa: S101 - it is asked for
        made = Reservation(
            tag=question.tag,
            reservation_id=asked.reservation_id,
            quantity=question.quantity,
            left=question.quantity,
            dimensions=asked.dimensions,
            is_lease=asked.is_lease,
            state=State.ACTIVE,
            expires_ms=self._clock.now_ns() // _MS_NS + asked.ttl_ms,
            scopes=asked.scopes,
        )
        self._journal.put([made])
        self._outage.has_held = True
        return made

    def find(self, reservation_id: str, tenant_id: str | None, meter: str | None) -> Reservation:
        """The reservation of this id, of this tenant and meter; None: any.

        Raises:
            NotFoundError: There is none.
            ConflictError: There are several.
            UnavailableError: The counters cannot be reached.
        """
        tags = [
            tag
            for tag in self._counters.locate(reservation_id)
            if tenant_id in {None, tag[0]} and meter in {None, tag[1]}
        ]
        if len(tags) > 1:
            named = "tenant_id" if len({tag[0] for tag in tags}) > 1 else "meter"
            raise ConflictError(
                f"there are {len(tags)} reservations {reservation_id!r}; name the one with {named}"
            )
        found = self._counters.touch(Find(tags[0], reservation_id)) if tags else None
        if found is None:
            self._outage.check()
            if self._outage.has_held:
                raise UnavailableError("reservations are being brought back; ask again in a second")
            raise NotFoundError(
                f"there is no reservation {reservation_id[:128]!r}; one that has ended is forgotten after ten minutes"
            )
        return found

    def end(self, found: Reservation, state: State) -> Reservation:
        """End a reservation, if it has not ended; returns it as it then is.

        Raises:
            UnavailableError: The counters, or the journal, cannot be reached; do it again.
        """
        # Usage of a lease that was acknowledged before must be counted before: released first, its units
        # would be in neither.
        if found.is_lease and not self._tally.wait_applied(self._policy.load_seconds):
            raise UnavailableError(
                "usage is not counted at the moment; release it again in a second"
            )
        return self._kept(self._counters.touch(End(found.tag, found.reservation_id, state)), found)

    def extend(self, found: Reservation, ttl_ms: int) -> Reservation:
        """From now on it has so much time, if it is active; returns it as it then is.

        Raises:
            UnavailableError: As `end`.
        """
        operation = Extend(found.tag, found.reservation_id, ttl_ms)
        return self._kept(self._counters.touch(operation), found)

    def committed(self, found: Reservation) -> Reservation:
        """Its usage is recorded: end it, once that is counted; returns it as it then is.

        Raises:
            UnavailableError: As `end`.
        """
        # What is counted ends it in the same step: before, its units would be in neither.
        self._tally.wait_applied(self._policy.load_seconds)
        return self.end(found, State.COMMITTED)

    def status(self, applied: Sequence[Applied]) -> list[Status]:
        """How much of these quotas is used now; waits for counters that must be loaded.

        Raises:
            UnavailableError: They cannot be had.
        """
        self._outage.check()
        now_ns = self._clock.now_ns()
        sound = [one for one in applied if one.rule.aggregation is not None]
        counters = [one.rule.counter(now_ns) for one in sound]
        waiting = self._tally.want(counters)
        done = futures.wait(waiting, timeout=self._policy.load_seconds)
        errors = [error for one in done.done if (error := one.result()) is not None]
        if errors or done.not_done:
            raise errors[0] if errors else UnavailableError("the counters were not loaded in time")
        found = []
        for one, counter in zip(sound, counters, strict=True):
            line = (counter.key, one.rule.scope, None)
            checked = self._counters.check(Check(one.rule.tag, (line,), 0))
            if checked.used[0] is None:
                self._tally.forget([counter.key])
                raise UnavailableError("a counter is gone; ask again")
            found.append(Status(Standing(one, checked.used[0], checked.reserved[0]), counter))
        return found

    def settled(self, reservations: Sequence[Reservation]) -> None:
        """Usage has changed these; keeps them, and raises nothing."""
        try:
            self._journal.put(reservations)
        except UnavailableError as error:
            # After a crash they are settled again, by the usage.
            details = {"event": "journal_failed", "error": str(error)}
            _log.warning("The journal of reservations is behind", extra=details)

    def _kept(self, now: Reservation | None, before: Reservation) -> Reservation:
        if now is None:
            raise NotFoundError(f"there is no reservation {before.reservation_id!r} any more")
        self._journal.put([now])
        return now


def _check_same(question: Question, held: Reservation) -> None:
    asked = (question.quantity, question.dimensions, question.is_lease)
    if (held.quantity, held.dimensions, held.is_lease) != asked:
        raise ConflictError(
            f"reservation_id {held.reservation_id!r} is taken: by {nano_text(held.quantity)} units with "
            "other contents; choose another id, or send the same request"
        )
    if held.state is not State.ACTIVE:
        raise ConflictError(
            f"reservation {held.reservation_id!r} is {held.state}; reserve under another id"
        )


_NO_QUOTA: Final = Verdict(Decision(is_allowed=True, reason=Reason.NO_QUOTA, binding=None))


def _asked(question: Question, applied: Sequence[Applied]) -> Asked | None:
    if question.reservation_id is None:
        return None
    return Asked(
        reservation_id=question.reservation_id,
        ttl_ms=question.ttl_ms,
        dimensions=question.dimensions,
        is_lease=question.is_lease,
        scopes=tuple(dict.fromkeys(one.rule.scope for one in applied)),
    )
