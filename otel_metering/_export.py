"""The sender: queue to network, oldest first, until the receiver has it."""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, assert_never

from otel_metering._answers import Answer, Delivered, NotNow, Refused
from otel_metering._backlog import Backlog, Tries
from otel_metering._config import Settings
from otel_metering._destination import destination_of
from otel_metering._guard import Problem, problems
from otel_metering._modes import AnyOutbox
from otel_metering._parcel import Parcel
from otel_metering._wakeup import Wakeup
from otel_metering.clock import Clock
from otel_metering.errors import UnavailableError

_ADOPTION_SECONDS: Final = 30.0
"""Between two looks for spools of ended processes."""

_TRIES_BEFORE_OTHERS: Final = 5
"""Failed attempts after which a request lets the others pass before each further one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long to wait after failed attempts.

    Attributes:
        initial_seconds: After the first.
        max_seconds: After many.
        jitter: A number in [0, 1): keeps processes that failed together from returning together.
    """

    initial_seconds: float
    max_seconds: float
    jitter: Callable[[], float]

    def pause_seconds(self, failures: int, at_least: float) -> float:
        """The pause after `failures` (1 or more) failures in a row, `at_least` if the receiver asked."""
        # The exponent is bounded, because an outage of a day is thousands of attempts.
        pause = min(self.initial_seconds * 2.0 ** min(failures - 1, 30), self.max_seconds)
        return max(pause * (0.5 + self.jitter() / 2), at_least)


def rest_forever() -> None:
    """End a greenlet that a fork copied: to end like a thread it would have to be one of the child's."""
    threading.Event().wait()


class Sender:
    """A thread that empties the outbox.

    Attributes:
        sent_count: Requests the receiver acknowledged.
        refused_count: Requests set aside.
    """

    def __init__(
        self, settings: Settings, outbox: AnyOutbox, *, clock: Clock, jitter: Callable[[], float]
    ) -> None:
        self.sent_count = 0
        self.refused_count = 0
        self._outbox = outbox
        self._clock = clock
        self._destination = destination_of(settings, clock)
        self._max_attempts = settings.retry_max_attempts
        self._tries = Tries()
        self._backlog = Backlog(max_bytes=settings.spool_max_bytes)
        self._backoff = Backoff(
            initial_seconds=settings.retry_initial_seconds,
            max_seconds=settings.retry_max_seconds,
            jitter=jitter,
        )
        self._failures = 0
        self._single_count = 0
        self._not_before = 0.0
        self._adopt_at = 0.0
        self._has_adopted_once = False
        self._is_stopping = False
        self._is_abandoned = False
        self._wake = Wakeup()  # also of a flush that a finalizer asks for
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="otel-metering-send", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Something new is in the outbox."""
        self._backlog.note_put(self._outbox.put_count, self._clock.monotonic())
        self._wake.set()

    def wait_until_sent(self, timeout_seconds: float, *, even_if_failing: bool) -> bool:
        """Wait until all requests put so far are settled, and adopted ones too.

        Args:
            timeout_seconds: At most.
            even_if_failing: False: return as soon as an attempt failed.

        Returns:
            Whether they all were acknowledged.
        """
        target, refused = self._outbox.put_count, self.refused_count

        def is_over() -> bool:
            return self._is_settled(target) or (not even_if_failing and self._failures > 0)

        if even_if_failing:
            self._not_before = 0.0
        self._wake.set()
        with self._changed:
            self._changed.wait_for(is_over, timeout_seconds)
        return self._is_settled(target) and self.refused_count == refused

    def stop(self, timeout_seconds: float) -> None:
        """End the thread; a request it is waiting for will be sent again by whoever is next."""
        self._is_stopping = True
        self._wake.set()
        self._destination.abort()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def abandon(self) -> None:
        """In a forked child: send nothing any more, and leave the parent's connection as it is."""
        self._is_abandoned = self._is_stopping = True

    def _is_settled(self, target: int) -> bool:
        return (
            self._outbox.settled_count >= target
            and self._has_adopted_once
            and not self._outbox.has_adopted
        )

    def _run(self) -> None:
        while not self._is_stopping:
            try:
                pause = self._step()
                self._watch()
            except Exception as error:  # noqa: BLE001 -- top of the loop: a fault must not end sending
                problems.report(Problem.INTERNAL_ERRORS, error)
                pause = self._fail(str(error), 0.0)
            with self._changed:
                self._changed.notify_all()
            if pause > 0:
                self._wake.wait(pause)
        if self._is_abandoned:
            rest_forever()
        self._destination.close()

    def _step(self) -> float:
        """Send one request; return how many seconds there is nothing to do."""
        now = self._clock.monotonic()
        if self._is_stopping or now < self._not_before:
            return max(self._not_before - now, 0.0)
        try:
            if now >= self._adopt_at:
                self._adopt_at = now + _ADOPTION_SECONDS
                self._outbox.adopt_orphans()
                self._has_adopted_once = True
            parcel = self._outbox.take(is_single=self._single_count > 0)
            if parcel is None:
                return max(self._adopt_at - now, 0.001)
            return self._handle(parcel, self._destination.send(parcel.key, parcel.payload))
        except UnavailableError as error:
            return self._fail(str(error), 0.0)

    def _handle(self, parcel: Parcel, answer: Answer) -> float:
        match answer:
            case Delivered():
                self._succeed(parcel, answer)
                return 0.0
            case Refused():
                if not self._take_apart(parcel):
                    self._set_aside(parcel, answer.reason)
                return 0.0
            case NotNow():
                return self._try_later(parcel, answer)
            case _:
                assert_never(answer)

    def _try_later(self, parcel: Parcel, answer: NotNow) -> float:
        tries = self._tries.count(parcel.entries[0].payload)
        if self._max_attempts is not None and tries >= self._max_attempts:
            if not self._take_apart(parcel):
                self._set_aside(parcel, answer.reason)
            return 0.0
        pause = self._fail(answer.reason, answer.after_seconds)
        if tries < _TRIES_BEFORE_OTHERS or self._take_apart(parcel):
            return pause
        if self._outbox.pending_requests > 1:
            # It may be this request that the receiver stumbles over, again and again. On a full disk it
            # stays where it is.
            with suppress(UnavailableError):
                self._outbox.postpone(parcel)
                self._backlog.note_postponed(self._clock.monotonic())
        return pause

    def _take_apart(self, parcel: Parcel) -> bool:
        """Send one by one what went as one: what is wrong with one must not cost the others."""
        self._single_count = len(parcel.entries)
        return self._single_count > 1

    def _watch(self) -> None:
        """Say once that usage piles up, and be ready to say it again when it has drained."""
        outbox = self._outbox
        reason = self._backlog.look(
            self._clock.monotonic(),
            settled_count=outbox.settled_count,
            has_adopted=outbox.has_adopted,
            pending_requests=outbox.pending_requests,
            pending_bytes=outbox.pending_bytes,
        )
        if reason is not None:
            problems.report(Problem.PILED_UP, f"usage piles up: {reason}")
        elif not self._backlog.is_piled_up:
            problems.settle(Problem.PILED_UP)

    def _succeed(self, parcel: Parcel, answer: Delivered) -> None:
        self._outbox.settle(parcel)
        self._close_case(parcel)
        self.sent_count += 1
        self._failures = 0
        problems.settle(Problem.FAILED_SENDS)
        if answer.rejected_points:
            problems.report(Problem.REJECTED_POINTS, answer.message, count=answer.rejected_points)
        elif answer.message:
            problems.report(Problem.WARNED_REQUESTS, f"the receiver warns: {answer.message}")

    def _set_aside(self, parcel: Parcel, reason: str) -> None:
        self._outbox.set_aside(parcel, reason)
        self._close_case(parcel)
        self.refused_count += 1
        self._failures = 0
        problems.report(Problem.REFUSED_REQUESTS, f"a request is kept aside: {reason}")

    def _close_case(self, parcel: Parcel) -> None:
        self._tries.forget(parcel.entries[0].payload)
        self._single_count = max(self._single_count - 1, 0)

    def _fail(self, reason: str, after_seconds: float) -> float:
        if self._is_stopping:
            return 0.0
        self._failures += 1
        pause = self._backoff.pause_seconds(self._failures, after_seconds)
        self._not_before = self._clock.monotonic() + pause
        problems.report(Problem.FAILED_SENDS, f"usage waits: {reason}")
        return pause
